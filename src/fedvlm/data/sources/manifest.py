"""A CSV manifest: one image per row, with its label, and optionally its client, domain and split."""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fedvlm.data.build import SPLITS, build_source, parse_split
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import FileImage, existing_folder, read_text
from fedvlm.data.notes import counted_note
from fedvlm.data.record import Source, Split
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed, nearest


class ManifestData(FileData):
    """A CSV with one image per row."""

    source: Literal["manifest"]
    manifest: str
    """CSV file, relative to `path`."""
    image: str = "image"
    """Column with the image's path."""
    image_path: str = "{}"
    """Where the image is, relative to `path`, `{}` being the column's value (`images/{}.jpg`)."""
    label: str = "label"
    client: str | None = None
    domain: str | None = None
    split: str | None = None

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of the data (`manifest_source`)."""
        return manifest_source(self, decode_cache)


def manifest_source(config: ManifestData, decode_cache: DecodeCache) -> Source:
    """The images of a CSV. Rows without a label are counted; an invalid row raises FedvlmError with its line."""
    root = existing_folder(config.path)
    path = root / config.manifest
    if "{}" not in config.image_path:
        raise FedvlmError(f"data.image_path = '{config.image_path}' has no {{}} where the image's name goes")
    rows, unlabelled = [], []
    for line, cells in _lines(path, config):
        if not cells[config.label]:
            unlabelled.append(f"line {line}")
            continue
        rows.append(_row(root, path, line, cells, config))
    if not rows:
        why = "no row below its header has a label" if unlabelled else "it has no row below its header"
        raise FedvlmError(f"{path} lists no image: {why}")
    notes = (
        [counted_note(unlabelled, "row has no label", "rows have no label", before="left out: ")] if unlabelled else []
    )
    return build_source(root.name, rows, config, decode_cache, warnings=notes)


def _row(root: Path, path: Path, line: int, cells: dict[str, str], config: ManifestData) -> ImageRow:
    if not cells[config.image]:
        raise FedvlmError(f"{path}, line {line}: the column '{config.image}' is empty")
    image = posixpath.normpath(config.image_path.replace("{}", cells[config.image]))
    return ImageRow(
        FileImage(root, image, config.max_megapixels),
        name=cells[config.label],
        domain=cells[config.domain] or None if config.domain else None,
        client=cells[config.client] or None if config.client else None,
        split=_split(path, line, cells, config),
    )


def _split(path: Path, line: int, cells: dict[str, str], config: ManifestData) -> Split | None:
    if config.split is None:
        return None
    split = parse_split(cells[config.split])
    if split is None:
        cell = f"'{cells[config.split]}' in the column '{config.split}'"
        raise FedvlmError(f"{path}, line {line}: {cell} is no split ({', '.join(SPLITS)})")
    return split


def _lines(path: Path, config: ManifestData) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells by column, blank lines skipped. Raises FedvlmError for a wrong header or row."""
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, config)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                numbers = f"{len(cells)} cells, but the header has {len(header)}"
                raise FedvlmError(f"{path}, line {reader.line_num}: {numbers}")
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise FedvlmError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _check_header(path: Path, header: list[str], config: ManifestData) -> None:
    if not header:
        raise FedvlmError(f"{path} is empty: its first line must name the columns")
    if len(header) == 1 and any(sign in header[0] for sign in ";\t|"):
        raise FedvlmError(f"{path} is not separated by commas (first line: {header[0]!r}): save it with commas")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise FedvlmError(f"{path} names a column twice: {listed(twice)}")
    for key in ("image", "label", "client", "domain", "split"):
        column = getattr(config, key)
        if column is not None and column not in header:
            raise FedvlmError(f"{path} has no column '{column}' (data.{key}){nearest(column, header)}; "
                              f"its columns are {listed(header)}")  # fmt: skip
