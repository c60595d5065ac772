"""The embedded model's tokenizer: CLIP's byte-level BPE over a given list of words, built without chance.

A trained BPE depends on hash order; here the merges are made one after the other, so that the same words give the
same file. Every word becomes one token; anything else falls back to parts, at worst to single bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from fedvlm.clip.tokenizer import EOT, SOT

END = "</w>"

Pair = tuple[str, str]

WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP cuts text into words (Radford et al. 2021, released tokenizer)."""


def byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes, printable ones first (the convention of GPT-2 and CLIP)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(others))]


def merges(words: Iterable[str]) -> list[Pair]:
    """Merges that turn each word into one token. Later ones never disturb earlier words: they rank behind them."""
    ranks: dict[Pair, int] = {}
    for word in words:
        while len(parts := split(word, ranks)) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
    return list(ranks)


def split(word: str, ranks: dict[Pair, int]) -> list[str]:
    """The parts of a word under ranked merges: the first-ranked neighbouring pair is joined until none is left."""
    parts = [*word[:-1], word[-1] + END]
    while True:
        ranked = [pair for pair in pairwise(parts) if pair in ranks]
        if not ranked:
            return parts
        first = min(ranked, key=lambda pair: ranks[pair])
        parts = _joined(parts, first)


def _joined(parts: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and result[-1] == pair[0] and part == pair[1]:
            result[-1] += part
        else:
            result.append(part)
    return result


def build(words: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer in CLIP's format: 256 bytes, the same as word ends, one entry per merge, start, end."""
    pairs = merges(words)
    letters = byte_letters()
    entries = [*letters, *(letter + END for letter in letters), *(left + right for left, right in pairs), SOT, EOT]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, continuing_subword_prefix="", end_of_word_suffix=END, unk_token=EOT)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([SOT, EOT])
    inner.post_processor = processors.RobertaProcessing(
        (EOT, vocabulary[EOT]), (SOT, vocabulary[SOT]), trim_offsets=False, add_prefix_space=False
    )
    return inner
