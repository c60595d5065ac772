"""One file per method; the classes found in these files are the methods that exist."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fedvlm import plugins
from fedvlm.errors import FedvlmError, nearest
from fedvlm.methods.base import Method

__all__ = ["Method", "build", "check", "expanded", "find", "known"]

GROUP = "fedvlm.methods"
"""Entry points of other packages' methods."""


@cache
def known() -> dict[str, type[Method]]:
    """The package's own methods by name, in alphabetical order."""
    found = {each.name: each for each in plugins.classes(sys.modules[__name__], Method) if "name" in vars(each)}
    return dict(sorted(found.items()))


def find(name: str) -> type[Method]:
    """A method by its name, the name of an entry point, or `package.module:Class`. Raises `FedvlmError`."""
    return plugins.find(name, known(), Method, GROUP, "method")


def renamed(name: str, table: Mapping[str, Any]) -> dict[str, str]:
    """Earlier names of the settings of a table `[method.NAME]`, by their names of now."""
    try:
        kinds = [find(str(table.get("method", name)))] if name != "all" else list(known().values())
    except FedvlmError:  # told where the method is built
        return {}
    return {now: before for kind in kinds for now, before in kind.Config.renamed().items()}


def build(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Method:
    """A configured method from the experiment's `[method.*]` tables.

    `[method.all]` gives values to every method that has the key. A table may name another method to build a variant:
    `[method.pfedmoap_random] method = "pfedmoap", select = "random"`; it starts from that method's own table.
    """
    tables = settings or {}
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise FedvlmError(f"'{name}' is no name of a method: letters, digits, '_', '-' and '.', as it names a folder")
    own = dict(tables.get(name, {}))
    kind = str(own.pop("method", name))
    chosen = find(kind)
    common = {key: value for key, value in tables.get("all", {}).items() if key in chosen.Config.model_fields}
    inherited = dict(tables.get(kind, {})) if kind != name else {}
    return chosen(common | inherited | own, table=name)


def expanded(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`all` written out: controls, methods that share nothing, the others, then the variants of the experiment."""
    if "all" not in names:
        return list(names)
    every = sorted(known(), key=lambda name: (known()[name].trains, bool(known()[name].shared), name))
    variants = [name for name, table in settings.items() if "method" in table]
    return list(dict.fromkeys(each for name in names for each in ([*every, *variants] if name == "all" else [name])))


def check(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Every `[method.*]` table belongs to a method; each setting of `[method.all]` fits all methods that know it."""
    # Variants last: what is wrong with a table that they start from is told of that table.
    for name in sorted(settings, key=lambda name: name not in known()):
        if name != "all":
            build(name, settings)
    fields = {field for method in known().values() for field in method.Config.model_fields}
    for key, value in settings.get("all", {}).items():
        if key not in fields:
            raise FedvlmError(f"unknown setting 'method.all.{key}'{nearest(key, fields)}")
        for method in known().values():
            if key in method.Config.model_fields:
                method.check(key, value)
