"""Verbs that list methods, presets and the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from fedvlm import presets
from fedvlm.cli.answers import told
from fedvlm.cli.app import AsJson, app, print_json, print_tables, print_text


@app.command(epilog=told("methods"))
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="One method, with all its settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """The methods and what each shares; with a name, its mathematics, tensors and settings."""
    from fedvlm.reports import listing

    if name is None:
        found = listing.method_lines()
        if as_json:
            print_json({"methods": [vars(one) for one in found]})
            return
        print_tables(listing.methods_table(found))
        print_text("\nfedvlm methods NAME shows a method's tensors and settings")
        return
    page = listing.method_page(name)
    if as_json:
        print_json(page)
        return
    print_text(page["about"] + "\n")
    print_tables(listing.settings_table(page))


@app.command("presets", epilog=told("presets"))
def presets_(as_json: AsJson = False) -> None:
    """The experiments that ship with the package."""
    if as_json:
        print_json({"presets": [{"preset": name, "about": presets.about(name)} for name in presets.names()]})
        return
    for name in presets.names():
        print_text(f"{name}\n  " + presets.about(name).replace("\n", "\n  "))


@app.command(epilog=told("cache"))
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
    only: Annotated[str, typer.Option(help="Only what mentions these words, such as a model's name.")] = "",
    as_json: AsJson = False,
) -> None:
    """What is kept of photographs for later runs, above all activations; any of it may be deleted at any time."""
    from fedvlm.data import decode_cache
    from fedvlm.reports import listing
    from fedvlm.training.disk_cache import DiskCache, folder

    disk_cache = DiskCache(folder(), 0)
    held = [item for item in disk_cache.tables() if item.mentions(only)]
    total, sound = sum(item.size for item in held), 0 if only else decode_cache.used_bytes()
    freed = disk_cache.clear(only) + (decode_cache.clear() if not only else 0) if clear else 0
    if as_json:
        told = {"folder": disk_cache.root, "bytes": total, "tables": listing.cache_json(held)}
        print_json(told | {"sound_images_bytes": sound, "deleted_bytes": freed})
        return
    print_tables(listing.cache_table(held))
    print_text(f"{total / 2**20:,.0f} MiB in {disk_cache.root}")
    if not only:
        print_text(f"{sound / 2**20:,.1f} MiB in {decode_cache.folder()}: which images were found sound")
    if clear:
        print_text(f"deleted {freed / 2**20:,.0f} MiB")
