"""Tables of the model card are replaced in place, and all else stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedvlm import clip

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import card

SHIPPED = Path(clip.__file__).parent / "embedded" / "CARD.md"


@pytest.mark.parametrize("text", [SHIPPED.read_text(), (Path(card.__file__).parent / "CARD.template.md").read_text()])
@pytest.mark.parametrize("heading", [card.BY_STYLE, card.CALIBRATION])
def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path, text: str, heading: str) -> None:
    path = tmp_path / "CARD.md"
    path.write_text(text)
    card.replace_section(path, heading, "| new |")
    once = path.read_text()
    assert once.count("| new |") == 1
    assert [line for line in once.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
    before, _, after = once.partition("| new |")
    assert text.startswith(before)
    assert text.endswith(after.lstrip("\n"))
    card.replace_section(path, heading, "| new |")
    assert path.read_text() == once


def test_a_card_without_the_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "CARD.md"
    path.write_text("# A model\n")
    with pytest.raises(SystemExit, match="no heading '### By style'"):
        card.replace_section(path, card.BY_STYLE, "| new |")
    assert path.read_text() == "# A model\n"
