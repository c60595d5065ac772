"""From rows of images to a source: every file is inspected first, and every class name has one label id."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from fedvlm.data.decode import GREY_BITS
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.duplicates import drop_copies, drop_repeated
from fedvlm.data.examine import grey_bits, inspect_rows, note_flat
from fedvlm.data.notes import counted_note
from fedvlm.data.record import Record, Source, Split
from fedvlm.data.rows import ImageRow, InspectedRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed, nearest

SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Splits by the names of folders and of values in columns (lower case)."""


def build_source(
    source: str,
    rows: Sequence[ImageRow],
    config: FileData,
    decode_cache: DecodeCache,
    classnames: Sequence[str] | None = None,
    warnings: Sequence[str] = (),
) -> Source:
    """The source of `rows`, without excluded labels; copies and unusable images are dropped and counted in warnings.

    Every image is read once and decoded in full, unless `decode_cache` has its digest; the image of a record refuses
    other bytes later. `classnames`: the class order of the data; by default names are sorted. Raises FedvlmError for an
    unknown label to exclude, for a photograph with two labels, and if no image is left.
    """
    if not rows:
        raise FedvlmError(f"{source} lists no image: look at data.path")
    notes = list(warnings)
    rows, classnames = _rename(source, rows, config, classnames)
    names = _select_names(source, rows, config, classnames, notes)
    known = set(names)
    kept = [row for row in rows if row.name in known]
    notes += _similar_names(names)
    kept = drop_repeated(kept, notes)
    found = inspect_rows(source, kept, config, decode_cache, notes)
    bits = grey_bits(found, config, notes)
    note_flat(found, bits, notes)
    found = drop_copies(source, found, config, notes)
    kept = [item.row for item in found]
    _note_empty_classes(names, kept, notes)
    ids = {name: label for label, name in enumerate(names)}
    records = tuple(_record(item, ids[item.row.name], bits) for item in found)
    return Source(source, tuple(names), records, tuple(notes), _superclasses(names, kept))


def _record(item: InspectedRow, label: int, bits: int) -> Record:
    row, facts = item.row, item.facts
    image = row.image.with_facts(facts, bits if facts.depth > 8 else GREY_BITS)
    return Record(image, label, row.name, row.domain, row.client, row.split)


def parse_split(word: str) -> Split | None:
    """The split that a folder's name or a column's value stands for; None if it names none."""
    return SPLITS.get(word.strip().lower())


def _rename(
    source: str, rows: Sequence[ImageRow], config: FileData, classnames: Sequence[str] | None
) -> tuple[Sequence[ImageRow], Sequence[str] | None]:
    """Rows and class names with the names of `data.rename`; two labels may become one."""
    if not config.rename:
        return rows, classnames
    known = sorted({row.name for row in rows}) if classnames is None else list(classnames)
    for label in config.rename:
        if label not in known:
            raise FedvlmError(f"data.rename names '{label}', which is no label of {source}{nearest(label, known)}")
    names = [config.rename.get(name, name) for name in known]
    renamed = [replace(row, name=config.rename.get(row.name, row.name)) for row in rows]
    return renamed, None if classnames is None else list(dict.fromkeys(names))


def _select_names(
    source: str, rows: Sequence[ImageRow], config: FileData, classnames: Sequence[str] | None, notes: list[str]
) -> list[str]:
    names = list(classnames) if classnames is not None else sorted({row.name for row in rows})
    if config.classes:
        others = [name for name in names if name not in config.classes]
        if len(others) == len(names):
            raise FedvlmError(
                f"{source} has no class of data.classes: it has {listed(others)}, and the list names "
                f"{listed(config.classes)}"
            )
        if others:
            what = "not in data.classes and left out"
            notes.append(counted_note(others, f"class is {what}", f"classes are {what}", is_public=True))
        names = list(config.classes)
    for key, words in (("include", config.include), ("exclude", config.exclude)):
        for word in words:
            if word not in names:
                raise FedvlmError(f"data.{key} names '{word}', which is no label of {source}{nearest(word, names)}")
    for name in names:
        if not name.strip() or name != name.encode(errors="replace").decode():
            raise FedvlmError(f"{source} has a class name that is empty or no valid text: {name!r}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FedvlmError(f"{source} gives several labels the same class name: {listed(twice)}")
    kept = [name for name in names if name in (config.include or names) and name not in config.exclude]
    if not kept:
        raise FedvlmError(f"data.exclude leaves no label of {source}")
    return kept


def _superclasses(names: Sequence[str], rows: Sequence[ImageRow]) -> tuple[str, ...]:
    """Super-class by label id; empty if no row has one. Raises FedvlmError for a class with two super-classes."""
    found: dict[str, str] = {}
    for row in rows:
        if row.superclass is not None and found.setdefault(row.name, row.superclass) != row.superclass:
            raise FedvlmError(
                f"{row.image.key} puts the class '{row.name}' into the super-class '{row.superclass}', another image "
                f"into '{found[row.name]}': the labels of this copy are damaged"
            )
    return tuple(found.get(name, "") for name in names) if found else ()


def _similar_names(names: Sequence[str]) -> list[str]:
    """A note on class names that differ only in case, spaces or underscores, and so give the same prompt."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(name.replace("_", " ").split()).casefold()].append(name)
    pairs = [" = ".join(f"'{name}'" for name in group) for group in groups.values() if len(group) > 1]
    one, many = "class name occurs twice but for its spelling", "class names occur twice but for their spelling"
    return [counted_note(pairs, one, many, is_public=True)] if pairs else []


def _note_empty_classes(names: Sequence[str], rows: Sequence[ImageRow], notes: list[str]) -> None:
    """Add a note on classes without images; they stay listed, so that no damaged file shifts base and novel classes."""
    present = {row.name for row in rows}
    empty = [name for name in names if name not in present]
    if empty:
        what = "no usable image (kept in the list of names)"
        notes.append(counted_note(empty, f"class has {what}", f"classes have {what}", is_public=True))
