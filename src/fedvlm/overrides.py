"""Settings as plain tables, before validation: read from TOML, merged, and overridden by `key=value` words."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError


def read_toml(path: Path) -> dict[str, Any]:
    """The plain settings of a TOML file."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FedvlmError(f"no such experiment file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FedvlmError(f"{path} is not a readable TOML file: {error}") from None


def apply_words(settings: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Settings with `key=value` words laid over them. Lists may be written `a,b,c`."""
    result = copy.deepcopy(settings)
    swept = result.get("sweep")
    for word in words:
        path, text = _split_word(word, "key=value")
        if path.split(".")[0] == "sweep":
            raise FedvlmError(f"'{word}': what is swept is changed by fedvlm sweep --over KEY=VALUE,VALUE")
        if isinstance(swept, dict) and path in swept:
            result.pop("sweep", None)  # one value instead of the sweep
        set_value(result, path, _parse_value(text, is_list=path in LIST_SETTINGS))
    return result


def set_value(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set `table.key` in plain settings, in place. Raises `FedvlmError` if `table` is a value."""
    *tables, last = path.split(".")
    for table in tables:
        settings = settings.setdefault(table, {})
        if not isinstance(settings, dict):
            raise FedvlmError(f"'{path}': '{table}' is a value, not a table of settings")
    settings[last] = value


def parse_values(word: str) -> tuple[str, list[Any]]:
    """`key=a,b,c` as the key and its values."""
    path, text = _split_word(word, "key=value,value")
    return path, _parse_value(text, is_list=True)


def _split_word(word: str, form: str) -> tuple[str, str]:
    path, sign, text = (part.strip() for part in word.partition("="))
    if not sign or not path:
        raise FedvlmError(f"'{word}' is not of the form {form}")
    return path, text


def format_value(value: Any) -> str:
    """A value as it is written in `key=value`."""
    if isinstance(value, list):
        return ",".join(map(format_value, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def folder_name(key: str, text: str) -> str:
    """The folder of a setting's value among others, such as `data.shots=4`."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", f"{key}={text}")


def flatten(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Tables in tables as one, by `table.key`."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        result |= flatten(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return result


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Plain settings with `changes` laid over them, table by table.

    A table of another data source, or of another method, replaces the table of the base.
    """
    result = base | changes
    for key, value in changes.items():
        before = base.get(key)
        if not (isinstance(before, dict) and isinstance(value, dict)):
            continue
        if all(value.get(kind, before.get(kind, usual)) == before.get(kind, usual) for kind, usual in _KINDS.items()):
            result[key] = merge(before, value)
    return result


def merge_settings(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`merge` for settings from Python; a `[sweep]` over one of these settings is removed."""
    swept = base.get("sweep")
    if isinstance(swept, dict) and swept.keys() & flatten(changes).keys():
        base = {key: value for key, value in base.items() if key != "sweep"}
    return merge(base, changes)


_KINDS = {"source": "scenes", "method": None}
"""Keys that decide which settings a table may have, with their defaults."""
LIST_SETTINGS = ("methods", "seeds", "faults", "evaluation.metrics", "data.styles", "data.include", "data.exclude")


def _parse_value(text: str, *, is_list: bool) -> Any:
    if is_list and not text.startswith("["):
        return [_parse_value(item.strip(), is_list=False) for item in text.split(",") if item.strip()]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # No setting is a date or a time: such a word is a name.
    return value if isinstance(value, bool | int | float | str | list | dict) else text
