"""Texts to rows of token ids, through the `tokenizers` library; CLIP's byte pairs by default."""

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
    """Texts to rows of token ids: `[start] words [end]`, then padding.

    Only words and learned prompt tokens stand between start and end, in any order (`rows`). `start` is None where rows
    begin with the words. With `read_padding` a text goes on to the end of the context, as the encoder was trained
    (SigLIP); otherwise it ends at its end token, and padding up to the batch's longest text cannot matter.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, context: int, *, start: str | None = SOT, end: str = EOT,
        pad: str | None = None, read_padding: bool = False,
    ) -> None:  # fmt: skip
        special = {name: inner.token_to_id(name) for name in (start, end, pad) if name is not None}
        found = {name: number for name, number in special.items() if number is not None}
        if found.keys() != special.keys():
            kind = ": this is not a CLIP tokenizer" if (start, end) == (SOT, EOT) else ""
            raise FedvlmError(f"the tokenizer lacks {' or '.join(special)}{kind}")
        # Files may carry settings of the code that wrote them; lengths are decided here.
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self.context = context
        self.sot: int | None = None if start is None else found[start]
        self.eot: int = found[end]
        self.pad: int = self.eot if pad is None else found[pad]
        self.read_padding = read_padding

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what texts become: the rules and the vocabulary, start, end and room."""
        parts = [self.inner.to_str(), self.sot, self.eot, self.context]
        if self.read_padding or self.pad != self.eot:  # a CLIP's digest covers neither
            parts += [self.pad, self.read_padding]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def words(self, text: str) -> list[int]:
        """Token ids of a text, without start and end; a word without token and without substitute is an error."""
        try:
            return list(self.inner.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the Rust library raises bare exceptions
            raise FedvlmError(f"the tokenizer has no tokens for '{text}': {error}") from error

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids `[K, L]` of texts, and the positions `[K]` where they are read (`rows`)."""
        return self.rows([self.words(text) for text in texts], texts)

    def rows(self, words: Sequence[Sequence[int]], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids of words and of learned tokens (negative) as whole rows.

        Ids `[K, L]` and the positions `[K]` where the texts are read, their last tokens. L is the longest text of the
        batch, or the context where padding is read. `texts` name the rows in the error of one that is too long.
        """
        begin = [] if self.sot is None else [self.sot]
        whole = [[*begin, *row, self.eot] for row in words]
        for text, row in zip(texts, whole, strict=True):
            if len(row) > self.context:
                learned = sum(token < 0 for token in row)
                raise FedvlmError(
                    f"'{text}' needs {len(row) - learned} tokens"
                    f"{f' beside {learned} prompt tokens' if learned else ''}, but the text encoder has "
                    f"{self.context} positions: shorten the class name or the template"
                )
        length = self.context if self.read_padding else max(len(row) for row in whole)
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in whole])
        return ids, torch.tensor([(length if self.read_padding else len(row)) - 1 for row in whole])


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
