"""Notes about the data: in full for its owner, and without names of files and clients for all others."""

from __future__ import annotations

from collections.abc import Iterable

from fedvlm.errors import listed


class Note(str):
    """A sentence that may name files, rows or clients; `public` is the same sentence without these names."""

    public: str

    def __new__(cls, full: str, public: str | None = None) -> Note:
        """`full` with names; `public` without, by default the same text."""
        note = super().__new__(cls, full)
        note.public = full if public is None else public
        return note


def public(note: str) -> str:
    """The text that may leave the owner's machine. A plain string names nobody and is returned unchanged."""
    return note.public if isinstance(note, Note) else note


def counted_note(
    items: Iterable[object], one: str, many: str, *, limit: int = 3, before: str = "", is_public: bool = False
) -> str:
    """`"4 images are missing: a, b, c and 1 more"`: a count, a phrase and the first items.

    The items are names of files, rows or clients and stay out of the public text, unless `is_public` (classes are).
    """
    found = list(items)
    counted_text = f"{before}{len(found)} {one if len(found) == 1 else many}"
    full = f"{counted_text}: {listed(found, limit)}"
    return Note(full, full if is_public else counted_text)
