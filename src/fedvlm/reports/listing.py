"""Tables for the terminal: methods, the settings of a method, activations on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from rich.markup import escape
from rich.table import Table

from fedvlm import methods, plugins
from fedvlm.training.disk_cache import CacheInfo

OTHER = "another package"
"""In the place of the paper of a method that is not imported."""


@dataclass(frozen=True)
class MethodLine:
    """A method in the list."""

    method: str
    title: str
    shared: tuple[str, ...]
    """Name patterns of the tensors that leave a client."""
    paper: str


class MethodPage(TypedDict):
    """One method: its file's docstring, and its settings with defaults and effects."""

    method: str
    about: str
    settings: list[dict[str, Any]]


def method_lines() -> list[MethodLine]:
    """All methods; of those of other packages only the name is known."""
    own = [MethodLine(key, one.title, tuple(one.shared), one.paper) for key, one in methods.known().items()]
    others = [MethodLine(name, path, (), OTHER) for name, path in plugins.entry_points(methods.GROUP).items()]
    return own + others


def methods_table(lines: Sequence[MethodLine]) -> Table:
    """All methods, and the tensors that leave a client."""
    shown = Table("method", "", "leaves the client", "paper", box=None, pad_edge=False)
    for one in lines:
        leaves = "" if one.paper == OTHER else ", ".join(one.shared) or "nothing"
        leaves = "all that is trained" if leaves == "*" else leaves
        shown.add_row(escape(one.method), escape(one.title), leaves, one.paper)
    return shown


def method_page(name: str) -> MethodPage:
    """What is known of a method. Raises `FedvlmError` for an unknown one."""
    kind = type(methods.build(name))
    settings = [
        {"name": key, "default": field.get_default(call_default_factory=True), "effect": field.description or ""}
        for key, field in kind.Config.model_fields.items()
    ]
    about = (sys.modules[kind.__module__].__doc__ or "").strip()
    return {"method": name, "about": about, "settings": settings}


def settings_table(page: MethodPage) -> Table:
    """Every setting of a method with its default and effect."""
    shown = Table(f"method.{page['method']}.", "default", "", box=None, pad_edge=False)
    for one in page["settings"]:
        shown.add_row(one["name"], escape(repr(one["default"])), escape(one["effect"]))
    return shown


def cache_json(held: Sequence[CacheInfo]) -> list[dict[str, object]]:
    """The tables of activations on disk as plain values."""
    return [{"facts": item.facts, "files": item.files, "bytes": item.size, "last_used": _minute(item)} for item in held]


def _minute(item: CacheInfo) -> str:
    return datetime.fromtimestamp(item.used).isoformat(" ", "minutes")


def cache_table(held: Sequence[CacheInfo]) -> Table:
    """The tables of activations on disk."""
    shown = Table("model", "weights", "begins at", "kept as", "files", "MiB", "last used", box=None, pad_edge=False)
    for item in held:
        facts, used = item.facts, _minute(item)
        words = [str(facts.get(key, "?")) for key in ("model", "weights", "entry", "kept as")]
        words[1], words[3] = words[1][:12], words[3].removeprefix("torch.")
        shown.add_row(*map(escape, words), str(item.files), f"{item.size / 2**20:,.0f}", used)
    return shown
