"""Verbs that list methods, presets and the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from fedvlm import presets
from fedvlm.cli.app import app, print_tables, print_text


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="One method, with all its settings.")] = None,
) -> None:
    """The methods and what each shares; with a name, its mathematics, tensors and settings."""
    from fedvlm.reports import listing

    if name is None:
        print_tables(listing.methods_table())
        print_text("\nfedvlm methods NAME shows a method's tensors and settings")
        return
    words, settings = listing.method_page(name)
    print_text(words + "\n")
    print_tables(settings)


@app.command("presets")
def presets_() -> None:
    """The experiments that ship with the package."""
    for name in presets.names():
        print_text(f"{name}\n  " + presets.about(name).replace("\n", "\n  "))


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
    only: Annotated[str, typer.Option(help="Only what mentions these words, such as a model's name.")] = "",
) -> None:
    """What is kept of photographs for later runs, above all activations; any of it may be deleted at any time."""
    from fedvlm.data import decode_cache
    from fedvlm.reports import listing
    from fedvlm.training.disk_cache import DiskCache, folder

    disk_cache = DiskCache(folder(), 0)
    held = [item for item in disk_cache.tables() if item.mentions(only)]
    print_tables(listing.cache_table(held))
    total = sum(item.size for item in held)
    print_text(f"{total / 2**20:,.0f} MiB in {disk_cache.root}")
    if not only:
        size = decode_cache.used_bytes() / 2**20
        print_text(f"{size:,.1f} MiB in {decode_cache.folder()}: which images were found sound")
    if clear:
        freed = disk_cache.clear(only) + (decode_cache.clear() if not only else 0)
        print_text(f"deleted {freed / 2**20:,.0f} MiB")
