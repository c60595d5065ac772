"""Removal of duplicates: rows of the same file first, then files with the same pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedvlm.data.notes import counted_note
from fedvlm.data.rows import ImageRow, InspectedRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed

_RANK = {None: 0, "train": 0, "val": 1, "test": 2}
"""Rank of splits: a duplicate counts for the highest, so that no test image is a training image."""


def drop_repeated(rows: Sequence[ImageRow], notes: list[str]) -> list[ImageRow]:
    """One row for each file. Raises FedvlmError for a file with two labels."""
    groups = _group_places([row.image.key for row in rows])
    kept, repeated = [], []
    for group in groups:
        same = [rows[place] for place in group]
        chosen = same[_representative(same)]
        other = next((row for row in same if row.name != same[0].name), None)
        if other is not None:
            labels = f"'{same[0].name}' and '{other.name}'"
            raise FedvlmError(f"{chosen.image.key} has two labels, {labels}: keep one of them")
        kept.append(chosen)
        repeated += [chosen.image.key] * (len(group) - 1)
    if repeated:
        notes.append(counted_note(repeated, "image is listed twice (used once)", "images are listed twice (used once)"))
    _note_shared([[rows[place] for place in group] for group in groups], "used once", notes)
    return kept


def drop_copies(
    source: str, inspected: Sequence[InspectedRow], config: FileData, notes: list[str]
) -> list[InspectedRow]:
    """One row for each photograph; with `data.on_duplicate = "keep"` all rows.

    Of several copies the first row of the last of train, val and test is used. Raises FedvlmError for
    a photograph with two labels.
    """
    groups = _group_places([item.facts.pixels for item in inspected])
    copied = [[inspected[place].row for place in group] for group in groups if len(group) > 1]
    if not copied:
        return list(inspected)
    is_kept = config.on_duplicate == "keep"
    twofold = [rows for rows in copied if len({row.name for row in rows}) > 1]
    if twofold and not is_kept:
        raise FedvlmError(
            f"{source}: {_two_labels_note(twofold)}. Remove what is labelled wrongly, leave a label out with "
            'data.exclude, or set data.on_duplicate = "keep" to use every file as it is'
        )
    used = "every file is used" if is_kept else "used once"
    pairs = [f"{row.image.key} = {rows[0].image.key}" for rows in copied for row in rows[1:]]
    one, many = f"image is a copy of another ({used})", f"images are copies of others ({used})"
    notes.append(counted_note(pairs, one, many))
    if twofold:
        notes.append(_two_labels_note(twofold))
    _note_splits(copied, used if is_kept else "tested on, not trained on", notes)
    _note_shared(copied, used, notes)
    if is_kept:
        return list(inspected)
    return [inspected[group[_representative([inspected[place].row for place in group])]] for group in groups]


def _group_places(identities: Sequence[str]) -> list[list[int]]:
    """Positions of each identity, ordered by first occurrence."""
    groups: dict[str, list[int]] = {}
    for place, identity in enumerate(identities):
        groups.setdefault(identity, []).append(place)
    return list(groups.values())


def _representative(same: Sequence[ImageRow]) -> int:
    """Position of the row that represents a photograph."""
    return max(range(len(same)), key=lambda place: (_RANK[same[place].split], -place))


def _two_labels_note(groups: Sequence[Sequence[ImageRow]]) -> str:
    def pairs() -> Iterator[str]:
        for rows in groups:
            other = next(row for row in rows if row.name != rows[0].name)
            yield f"{rows[0].image.key} ('{rows[0].name}') = {other.image.key} ('{other.name}')"

    return counted_note(pairs(), "photograph stands under two labels", "photographs stand under two labels")


def _note_splits(groups: Sequence[Sequence[ImageRow]], used: str, notes: list[str]) -> None:
    """Add a note on photographs that are both training images and validation or test images."""
    across = []
    for rows in groups:
        trained = [row for row in rows if _RANK[row.split] == 0]
        tested = [row for row in rows if _RANK[row.split] > 0]
        if trained and tested:
            across.append(f"{trained[0].image.key} = {tested[0].image.key}")
    if across:
        both = f"among the training and the validation or test images ({used})"
        notes.append(counted_note(across, f"photograph is {both}", f"photographs are {both}"))


def _note_shared(groups: Sequence[Sequence[ImageRow]], used: str, notes: list[str]) -> None:
    """Add a note on photographs of several clients: one client might train on another's held-out images."""
    shared = []
    for rows in groups:
        clients = list(dict.fromkeys(row.client for row in rows if row.client is not None))
        if len(clients) > 1:
            shared.append(f"{rows[0].image.key} ({listed(clients, 3)})")
    if shared:
        who = f"held by several clients ({used})"
        notes.append(counted_note(shared, f"photograph is {who}", f"photographs are {who}"))
