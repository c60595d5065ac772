"""The JSON schema of experiment files: all settings of all rooms, with what they mean."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fedvlm import methods, presets
from fedvlm.data import settings as sources
from fedvlm.experiment import Experiment

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def experiment_schema() -> Schema:
    """The schema (draft 2020-12) of a TOML file that `fedvlm run`, `compare` or `sweep` takes.

    Methods and data sources of other packages are allowed with any settings.
    """
    whole, shared = _of(Experiment)
    fields = whole["properties"]
    kinds = {name: _of(kind) for name, kind in sources.builtin_sources().items()}
    own = {name: _of(kind.Config) for name, kind in methods.known().items()}
    for definitions in (shared, *(found for _, found in (*kinds.values(), *own.values()))):
        shared = shared | definitions
    fields["data"] = {"anyOf": [*(_named(one, name) for name, (one, _) in kinds.items()), _outside("source")]}
    fields["method"] = {
        "type": "object", "description": "Settings by method; those of `all` apply to every method that has the key.",
        "properties": {name: _as_table(one) for name, (one, _) in own.items()} | {"all": _all(own)},
        "additionalProperties": {"type": "object", "required": ["method"], "description": "A variant of a method.",
                                 "properties": {"method": _choice(list(own))}},
    }  # fmt: skip
    fields["methods"]["items"] = {"anyOf": [{"enum": ["all", *own]}, {"type": "string"}]}
    fields["like"] = {"description": "The preset, or file in the same folder, over which these settings are laid.",
                      "anyOf": [{"enum": presets.names()}, {"type": "string"}]}  # fmt: skip
    fields["sweep"] = {"type": "object", "description": "One setting with several values, for `fedvlm sweep`."}
    return {"$schema": DRAFT, "title": "fedvlm experiment", **whole, "$defs": shared}


def _of(model: type[BaseModel]) -> tuple[Schema, Schema]:
    """A model's schema, and its definitions apart."""
    whole = model.model_json_schema(by_alias=False, ref_template="#/$defs/{model}")
    found = whole.pop("$defs", {})
    for one in (whole, *found.values()):
        one.pop("title", None)
        for field in one.get("properties", {}).values():
            field.pop("title", None)
    return whole, found


def _named(one: Schema, name: str) -> Schema:
    """A data source's settings with its name; drawn scenes are the default source."""
    fields = one["properties"] | {"source": {"const": name}}
    needed = {*one.get("required", []), "source"} - ({"source"} if name == "scenes" else set())
    return one | {"properties": fields, "required": sorted(needed)}


def _outside(key: str) -> Schema:
    return {"type": "object", "required": [key], "properties": {key: {"type": "string", "pattern": ":"}}}


def _as_table(one: Schema) -> Schema:
    return {key: value for key, value in one.items() if key != "required"}


def _all(own: dict[str, tuple[Schema, Schema]]) -> Schema:
    fields: Schema = {}
    for one, _ in own.values():
        for key, field in one["properties"].items():
            fields.setdefault(key, []).append(field)
    plain = {key: each[0] if all(one == each[0] for one in each) else {"anyOf": _distinct(each)}
             for key, each in fields.items()}  # fmt: skip
    return {"type": "object", "properties": plain, "additionalProperties": False}


def _distinct(each: list[Schema]) -> list[Schema]:
    found: list[Schema] = []
    for one in each:
        kept = {key: value for key, value in one.items() if key != "default"}
        if kept not in found:
            found.append(kept)
    return found


def _choice(names: list[str]) -> Schema:
    return {"anyOf": [{"enum": names}, {"type": "string", "pattern": ":"}]}
