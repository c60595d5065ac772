"""Classes of other packages: by dotted path, by entry point, or as the class itself.

`my_pkg.my_method:MyMethod` names a class of an installed module. Importing the module runs its code with the rights of
the user: read experiment files that name other packages' code before you run them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

from fedvlm.errors import FedvlmError, nearest

T = TypeVar("T")


def classes(package: ModuleType, kind: type[T]) -> Iterator[type[T]]:
    """The subclasses of `kind` that the modules of a package define, in the order of the modules' names."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__:
                yield value


def entry_points(group: str) -> dict[str, str]:
    """Entry points of installed packages in a group: `package.module:Class` by name."""
    return {point.name: point.value for point in metadata.entry_points(group=group)}


def dotted_path(value: type) -> str:
    """The dotted path of a class. Raises `FedvlmError` if the class cannot be imported by this path."""
    path = f"{value.__module__}:{value.__qualname__}"
    if "<locals>" in path or getattr(sys.modules.get(value.__module__), value.__qualname__, None) is not value:
        raise FedvlmError(f"{path} cannot be found by its name: define it at the top of a module")
    return path


def load_object(path: str, kind: type[T], what: str) -> Any:
    """The subclass (or instance) of `kind` at `package.module:Name`. Raises `FedvlmError` if there is none."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise FedvlmError(
            f"{what} '{path}' cannot be imported ({error}): install its package (pip install .), or look at the name"
        ) from error
    except AttributeError:
        names = [key for key, value in vars(sys.modules[module]).items() if isinstance(value, kind | type)]
        raise FedvlmError(f"{what} '{path}': {module} has no '{name}'{nearest(name, names)}") from None
    if not (isinstance(found, kind) or (isinstance(found, type) and issubclass(found, kind))):
        raise FedvlmError(f"{what} '{path}' is no {kind.__module__}.{kind.__qualname__}")
    return found


def find(name: str, known: Mapping[str, type[T]], kind: type[T], group: str, what: str) -> type[T]:
    """A class by its name in `known`, by entry point or by `package.module:Class`. Raises `FedvlmError` otherwise."""
    if name in known:
        return known[name]
    path = offered_path(name, entry_points(group), what, known)
    found = load_object(path, kind, what)
    if not isinstance(found, type):
        raise FedvlmError(f"{what} '{path}' is no class")
    return found


def offered_path(name: str, offered: Mapping[str, str], what: str, known: Iterable[str] = ()) -> str:
    """The dotted path of a name that other packages offer; a dotted path is its own. Raises `FedvlmError` otherwise."""
    path = offered.get(name, name)
    if ":" not in path:
        names = [*known, *offered]
        raise FedvlmError(
            f"unknown {what} '{name}'{nearest(name, names)}; "
            f"known: {', '.join(names) or 'none from other packages'}; or package.module:Class"
        )
    return path
