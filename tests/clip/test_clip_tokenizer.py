from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from fedvlm.clip import tokenizer as tokenizers
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

TEXTS = [
    "a photo of a cat.", "A PHOTO  of\ta\nCat", "golden retriever", "windsor_chair", "it's they'll I'd we've you're don't isn't",
    "3.14 + 2,718 = 5858!", "naïve café Zürich Straße Ångström", "cafe\u0301", "日本語のテキスト", "смешанный текст mixed", "👩🏽‍🚀 emoji 🎉",
    "!!! ??? ...", "$100 50% #tag @user", "x"*60, "İstanbul ǅ ﬁ ½ ²", "'s 't 're", "", " ", "  leading and trailing  ",
    "tab\u00a0nbsp\u2003em\u200bzero", "quote “curly” ‘single’ — dash", "a/b\\c|d~e`f^g", "o'neil's 'quoted'", "DNA-2 A.B.C.", "\u0000\u0007",
    "‏עברית العربية हिन्दी ไทย",
]  # fmt: skip
CONTEXT = 400
"""Above the longest of them, letter by letter."""


@pytest.fixture(scope="module")
def theirs(vocabulary: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def ours(vocabulary: Path) -> tokenizers.Tokenizer:
    return tokenizers.load(vocabulary, CONTEXT)


@pytest.fixture(scope="module")
def from_merges(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """From vocab.json and merges.txt alone."""
    place = tmp_path_factory.mktemp("merges")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, place)
    return tokenizers.load(place, CONTEXT)


def test_published_ids(full: Path) -> None:
    """The ids of CLIP's own examples ("a photo of a cat", "a diagram")."""
    ours = tokenizers.load(full / "tiny-clip", 77)
    assert ours.words("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert ours.words("a diagram") == [320, 22697]
    assert (ours.sot, ours.eot) == (49406, 49407)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(
    ours: tokenizers.Tokenizer, from_merges: tokenizers.Tokenizer, theirs: CLIPTokenizer, text: str
) -> None:
    expected = theirs(text)["input_ids"]
    ids, eot = ours([text])
    assert ids[0].tolist() == expected
    assert eot.tolist() == [len(expected) - 1]
    assert from_merges.words(text) == expected[1:-1]


def test_every_word_of_the_vocabulary_survives(
    ours: tokenizers.Tokenizer, from_merges: tokenizers.Tokenizer, vocabulary: Path
) -> None:
    words = [
        w.removesuffix("</w>")
        for w in json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8"))
        if w.isascii()
    ]
    for word in words[:: max(1, len(words) // 500)]:
        assert ours.words(word) == from_merges.words(word)


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    ids, eot = tiny.tokenizer()(["cat", "", "a photo of a cat."])
    words = tiny.vocabulary()
    first = [words["<|startoftext|>"], words["cat</w>"], words["<|endoftext|>"]]
    assert ids.dtype == eot.dtype == torch.int64
    assert ids.shape == (3, int(eot[2]) + 1)
    assert ids[0].tolist()[:3] == first
    assert eot.tolist()[:2] == [2, 1]
    assert [int(row[place]) for row, place in zip(ids, eot, strict=True)] == [first[2]] * 3
    assert all(int((row[:place] == first[2]).sum()) == 0 for row, place in zip(ids, eot, strict=True))


def test_a_text_fills_the_context_exactly_or_is_refused() -> None:
    own = tiny.tokenizer(context=10)
    letters = " ".join("x" * 8)
    assert own([letters])[0].shape == (1, 10)
    with pytest.raises(FedvlmError, match=r"11 tokens.*10 positions.*shorten"):
        own([letters + " x"])
    learned, word = [-1, -2, -3], own.words("x")
    assert own.rows([[*learned, *5 * word]], ["x x x x x"])[0].tolist() == [[own.sot, *learned, *5 * word, own.eot]]
    with pytest.raises(FedvlmError, match=r"8 tokens beside 3 prompt tokens"):
        own.rows([[*learned[:1], *6 * word, *learned[1:]]], ["x x x x x x"])


def test_a_model_that_reads_padding_is_read_at_the_end_of_its_context() -> None:
    """No start token, and learned tokens displace padding: 2 + 1 + 1 tokens and 4 of padding."""
    own = tokenizers.Tokenizer(tiny.byte_pairs(), 8, start=None, pad="<|startoftext|>", read_padding=True)
    word, pad = own.words("x"), own.inner.token_to_id("<|startoftext|>")
    ids, end = own.rows([[-1, -2, *word], word], ["x", "x"])
    assert ids.tolist() == [[-1, -2, *word, own.eot, *4 * [pad]], [*word, own.eot, *6 * [pad]]]
    assert end.tolist() == [7, 7]
    assert own.sot is None
    same = tokenizers.Tokenizer(tiny.byte_pairs(), 8, start=None)
    assert own.identity != same.identity
    assert tokenizers.Tokenizer(tiny.byte_pairs(), 8).identity == tiny.tokenizer(8).identity
    with pytest.raises(FedvlmError, match=r"lacks <\|startoftext\|> or EOS$"):
        tokenizers.Tokenizer(tiny.byte_pairs(), 8, end="EOS", start="<|startoftext|>")


def test_padding_or_truncation_stored_in_the_file_does_no_harm(tmp_path: Path) -> None:
    """`tokenizer.json` may carry the settings of whoever wrote it."""
    inner = tiny.byte_pairs()
    inner.enable_padding(length=20)
    inner.enable_truncation(4)
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    assert tokenizers.load(tmp_path, 40).words("black cat") == tiny.tokenizer().words("black cat")


def test_a_post_processor_in_the_file_adds_nothing(tmp_path: Path, ours: tokenizers.Tokenizer) -> None:
    assert ours.sot not in ours.words("a cat")


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_vocabulary_is_none(vocabulary: Path, tmp_path: Path, missing: str) -> None:
    for name in {"vocab.json", "merges.txt"} - {missing}:
        shutil.copy(vocabulary / name, tmp_path)
    with pytest.raises(FedvlmError, match=r"tokenizer.json \(nor vocab.json and merges.txt\)"):
        tokenizers.load(tmp_path, 77)


@pytest.mark.parametrize(("vocabulary", "merges"), [("{", ""), ("[]", ""), ('{"a": 0}', "a b c\n"), ('{"a": 0}', "a\n"),
    pytest.param("{}", "")])  # fmt: skip
def test_a_damaged_vocabulary(tmp_path: Path, vocabulary: str, merges: str) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(FedvlmError, match="tokenizer"):
        tokenizers.load(tmp_path, 77)
