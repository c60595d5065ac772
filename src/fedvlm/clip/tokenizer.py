"""CLIP's byte-pair tokenizer through the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers
from torch import Tensor

from fedvlm.errors import FedvlmError

SOT, EOT = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """Texts to token ids: `[SOT] words [EOT]`, padded with end-of-text to the longest of the batch."""

    def __init__(self, inner: tokenizers.Tokenizer, context: int) -> None:
        sot, eot = inner.token_to_id(SOT), inner.token_to_id(EOT)
        if sot is None or eot is None:
            raise FedvlmError(f"the tokenizer lacks {SOT} or {EOT}: this is not a CLIP tokenizer")
        # Files may carry settings of the code that wrote them; lengths are decided here.
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self.context = context
        self.sot: int = sot
        self.eot: int = eot

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what texts become: the rules and the vocabulary, start, end and room."""
        parts = [self.inner.to_str(), self.sot, self.eot, self.context]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def words(self, text: str) -> list[int]:
        """Token ids of a text, without start and end; a word without token and without substitute is an error."""
        try:
            return list(self.inner.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the Rust library raises bare exceptions
            raise FedvlmError(f"the tokenizer has no tokens for '{text}': {error}") from error

    def __call__(self, texts: Sequence[str], room: int = 0) -> tuple[Tensor, Tensor]:
        """Ids `[K, L]` and end-of-text positions `[K]`; `room` positions of the context are kept for prompt tokens.

        L is the longest text of the batch, not the context length (see `text.TextEncoder`).
        """
        rows = [[self.sot, *self.words(text), self.eot] for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) + room > self.context:
                raise FedvlmError(
                    f"'{text}' needs {len(row)} tokens{f' beside {room} prompt tokens' if room else ''}, "
                    f"but the text encoder has {self.context} positions: shorten the class name or the template"
                )
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.eot] * (length - len(row)) for row in rows])
        return ids, torch.tensor([len(row) - 1 for row in rows])


def load(folder: Path, context: int) -> Tokenizer:
    """The tokenizer of a CLIP directory: `tokenizer.json`, or `vocab.json` with `merges.txt`."""
    try:
        if (folder / "tokenizer.json").exists():
            return Tokenizer(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), context)
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return Tokenizer(_from_vocabulary(folder / "vocab.json", folder / "merges.txt"), context)
    except FedvlmError:
        raise
    except Exception as error:  # the Rust library raises bare exceptions
        raise FedvlmError(f"the tokenizer files in {folder} cannot be read: {error}") from error
    raise FedvlmError(f"{folder} has no tokenizer.json (nor vocab.json and merges.txt)")


def _from_vocabulary(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    lines = [line for line in merges.read_text().splitlines() if line and not line.startswith("#version")]
    pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=json.loads(vocabulary.read_text()), merges=pairs, end_of_word_suffix="</w>", unk_token=EOT)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    if inner.token_to_id(SOT) is not None and inner.token_to_id(EOT) is not None:
        inner.add_special_tokens([SOT, EOT])  # now they are cut out of texts whole
    return inner
