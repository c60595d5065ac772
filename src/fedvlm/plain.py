"""Plain settings, before they are validated: read from TOML, overridden by `key=value` words, laid over each other."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError


def read(path: Path) -> dict[str, Any]:
    """The plain settings of a TOML file."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FedvlmError(f"no such experiment file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FedvlmError(f"{path} is not a readable TOML file: {error}") from None


def override(settings: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Settings with `key=value` words laid over them. Lists may be written `a,b,c`."""
    result = copy.deepcopy(settings)
    for word in words:
        path, sign, text = (part.strip() for part in word.partition("="))
        if not sign or not path:
            raise FedvlmError(f"'{word}' is not of the form key=value")
        put(result, path, _value(text, is_list=path in _LISTS))
    return result


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set `table.key` in plain settings, in place."""
    *tables, last = path.split(".")
    for table in tables:
        settings = settings.setdefault(table, {})
        if not isinstance(settings, dict):
            raise FedvlmError(f"'{path}': '{table}' is a value, not a table of settings")
    settings[last] = value


def several(word: str) -> tuple[str, list[Any]]:
    """`key=a,b,c` as the key and its values."""
    path, sign, text = (part.strip() for part in word.partition("="))
    if not sign or not path:
        raise FedvlmError(f"'{word}' is not of the form key=value,value")
    return path, _value(text, is_list=True)


def text(value: Any) -> str:
    """A value as it is written in `key=value`."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Plain settings with others laid over them, table by table. Data of another source replace the base's."""
    result = base | own
    for key, value in own.items():
        there = base.get(key)
        if not (isinstance(there, dict) and isinstance(value, dict)):
            continue
        if "source" not in value or value["source"] == there.get("source"):
            result[key] = laid_over(there, value)
    return result


_LISTS = ("methods", "seeds", "faults", "data.styles", "data.include", "data.exclude")


def _value(text: str, *, is_list: bool) -> Any:
    if is_list and not text.startswith("["):
        return [_value(item.strip(), is_list=False) for item in text.split(",") if item.strip()]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # Dates and times are no settings: such a word is a name.
    return value if isinstance(value, bool | int | float | str | list | dict) else text
