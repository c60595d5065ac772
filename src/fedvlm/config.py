"""Sections: typed tables of settings that reject unknown keys. Every room with settings defines its own sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvlm.errors import nearest

Share = Annotated[float, Field(gt=0, le=1)]
"""A share of a whole: above 0, at most 1."""
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of settings: unknown keys are errors, values are not silently converted, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def renamed(cls) -> dict[str, str]:
        """Earlier names of settings by their current names. Files keep the earlier ones, because digests cover them."""
        fields = cls.model_fields.items()
        return {name: field.serialization_alias for name, field in fields if field.serialization_alias}

    def dump(self) -> dict[str, Any]:
        """The settings as JSON values, by the names that files keep (`renamed`)."""
        return self.model_dump(mode="json", by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, values: Any) -> Any:
        """Settings by their current names, with words converted.

        TOML has no null, so `none` stands for it in optional settings. A whole number may be a name.
        """
        if not isinstance(values, dict):
            return values
        values = to_current_names(values, cls.renamed())
        kinds = {key: {field.annotation, *get_args(field.annotation)} for key, field in cls.model_fields.items()}
        return {key: _parse_words(value, kinds.get(key, set())) for key, value in values.items()}


def _parse_words(value: Any, kinds: set[Any]) -> Any:
    if value == "none" and type(None) in kinds:
        return None
    return str(value) if type(value) is int and str in kinds and int not in kinds else value


def to_current_names(table: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """A table of settings by their current names. Raises `ValueError` if a setting is given by both names."""
    now = {before: name for name, before in renamed.items()}
    both = [name for name, before in renamed.items() if name in table and before in table]
    if both:
        raise ValueError(f"'{renamed[both[0]]}' is the earlier name of '{both[0]}': give one of them")
    return {now.get(key, key): value for key, value in table.items()}


def problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One sentence per problem of a pydantic error, with the nearest known key for an unknown one."""
    return [_problem(dict(detail), model, prefix) for detail in error.errors()]


def _problem(detail: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in detail["loc"]]
    name = prefix + ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _field_names(model, detail["loc"])
        words = ", ".join(sorted(known))
        return f"unknown setting '{name}'{nearest(path[-1], known)}; known here: {words}"
    if detail["type"] == "missing":
        return f"setting '{name}' is needed"
    message = detail["msg"].removeprefix("Value error, ")
    if not path:  # a problem of the whole table
        return f"setting '{name.rstrip('.')}': {message}"
    if repr(detail["input"]) in message:
        return f"setting '{name}': {message}"
    for pydantic, ours in (("Input should be", "expected"), ("a valid integer", "an integer"), ("a valid", "a")):
        message = message.replace(pydantic, ours)
    return f"setting '{name}': {message}, not {detail['input']!r}"


def _field_names(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for part in loc[:-1]:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
