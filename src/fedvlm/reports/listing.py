"""Tables for the terminal: methods, the settings of a method, activations on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from rich.markup import escape
from rich.table import Table

from fedvlm import methods, plugins
from fedvlm.training.disk_cache import CacheInfo


def methods_table() -> Table:
    """All methods, and the tensors that leave a client."""
    shown = Table("method", "", "leaves the client", "paper", box=None, pad_edge=False)
    for key, method in methods.known().items():
        leaves = ", ".join(method.shared) or "nothing"
        shown.add_row(key, method.title, "all that is trained" if leaves == "*" else leaves, method.paper)
    for name, path in plugins.entry_points(methods.GROUP).items():
        shown.add_row(escape(name), escape(path), "", "another package")
    return shown


def method_page(name: str) -> tuple[str, Table]:
    """The docstring of a method's file, and every setting with its default and effect."""
    kind = type(methods.build(name))
    shown = Table(f"method.{name}.", "default", "", box=None, pad_edge=False)
    for key, field in kind.Config.model_fields.items():
        shown.add_row(key, escape(repr(field.default)), escape(field.description or ""))
    return (sys.modules[kind.__module__].__doc__ or "").strip(), shown


def cache_table(held: Sequence[CacheInfo]) -> Table:
    """The tables of activations on disk."""
    shown = Table("model", "weights", "begins at", "kept as", "files", "MiB", "last used", box=None, pad_edge=False)
    for item in held:
        facts, used = item.facts, datetime.fromtimestamp(item.used).isoformat(" ", "minutes")
        words = [str(facts.get(key, "?")) for key in ("model", "weights", "entry", "kept as")]
        words[1], words[3] = words[1][:12], words[3].removeprefix("torch.")
        shown.add_row(*map(escape, words), str(item.files), f"{item.size / 2**20:,.0f}", used)
    return shown
