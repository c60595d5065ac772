"""An experiment: the sections of all rooms together, checked as a whole, and digested.

`load` is the one way to an experiment: a preset or TOML file, with settings and `key=value` words laid over it.
Settings of a method are in a table `[method.NAME]`, which is validated by the method's configuration class.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from fedvlm import durable, methods, overrides, plugins, presets
from fedvlm.clip import ModelSection
from fedvlm.config import Count, Section, Share, problems, to_current_names
from fedvlm.data import DataSource, Source, load_source
from fedvlm.data import settings as sources
from fedvlm.data.partitions import PartitionSection
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError, listed
from fedvlm.training import metrics
from fedvlm.training.device import ComputeSection
from fedvlm.training.evaluation import EvaluationSection


class Experiment(Section):
    """All settings of a run or of a comparison of methods."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = "experiment"
    """Title of tables and pictures, and part of the run folder's name."""
    methods: list[str] = Field(default=["zero_shot", "pfedmma"], min_length=1)
    """Names of methods or of variants (`[method.NAME]`); `all` for all of them."""
    seeds: list[int] = Field(default=[0], min_length=1)
    rounds: Count = 10
    participation: Share = 1.0
    """Share of clients in a round: max(1, floor(share x clients)) clients train."""
    views: Literal["none", "online"] | Count = "none"
    """Views of training images: `none` (the test transform), `online` (new crops and flips in every epoch), or the
    number of cached views of which an epoch uses one."""
    model: ModelSection = ModelSection()
    data: SerializeAsAny[DataSource] = ScenesData()
    partition: PartitionSection = PartitionSection()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()
    faults: list[str] = Field(default=[])
    """Faults of released code to build in on purpose; all outputs name them (see `fedvlm audit`)."""
    method: dict[str, dict[str, Any]] = Field(default={})
    """Settings by method name; those of `all` apply to every method that has the key."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        """Raise ValueError unless the name is valid for a folder in `runs`; files of others may hold any name."""
        if value.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", value):
            raise ValueError("expected a name for a folder: no '/', no '\\', no '.' at its beginning")
        return value

    def load_source(self, seed: int) -> Source:
        """All records of the data; digests of sound files are cached for the user unless `compute.disk_gib` is 0."""
        return load_source(self.data, seed, use_cache=self.compute.disk_gib > 0)

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, as plain JSON values."""
        settings = self.dump()
        for name, table in settings["method"].items():
            before = methods.renamed(name, table)
            settings["method"][name] = {before.get(key, key): value for key, value in table.items()}
        return settings

    def digest(self) -> str:
        """SHA-256 of all settings that can change results: all but the name, the device and the bounds of caches."""
        return durable.json_digest(self._digested_settings())

    def basis(self) -> str:
        """The digest without methods, seeds and methods' settings: equal for all points of a comparison."""
        return durable.json_digest(
            {key: value for key, value in self._digested_settings().items() if key not in _POINT_SETTINGS}
        )

    def _digested_settings(self) -> dict[str, Any]:
        settings = {key: value for key, value in self.resolved().items() if key != "name"}
        for section, keys in ADDED_LATER.items():
            table, model = (settings[section], getattr(self, section)) if section else (settings, self)
            fields = {field.serialization_alias or name: field for name, field in type(model).model_fields.items()}
            for key in keys & table.keys():
                if table[key] in (fields[key].default, []):
                    del table[key]
        settings["compute"] = {key: settings["compute"][key] for key in ("dtype", "kept_as")}
        return settings


ADDED_LATER = {
    "": {"faults"}, "evaluation": {"metrics"}, "partition": {"late"},
    "data": {"on_duplicate", "grey_bits", "classes", "rename", "novel_shapes", "homonyms", "rarer"},
}  # fmt: skip
"""Settings of later versions, by table. Digests omit them while they have their defaults (or are empty), so that runs
of earlier versions can be resumed."""
_POINT_SETTINGS = ("methods", "seeds", "method")


def load(what: str, words: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a preset or TOML file, with `settings` laid over it table by table, and `words` over both.

    In `settings`, methods and data sources may be classes. Raises `FedvlmError` as `parse` does.
    """
    given = overrides.apply_words(
        overrides.merge_settings(presets.settings(what), _replace_classes(settings or {})), words
    )
    warn_renamed(given)
    return parse(given)


def warn_renamed(settings: Mapping[str, Any]) -> None:
    """Warn of each setting that is given by an earlier name."""
    sections = {name: field.annotation for name, field in Experiment.model_fields.items()}
    tables = [(f"{name}.", settings.get(name), kind.renamed()) for name, kind in sections.items()
              if isinstance(kind, type) and issubclass(kind, Section)]  # fmt: skip
    own = settings.get("method", {})
    for name, table in own.items() if isinstance(own, dict) else ():
        if isinstance(table, dict):
            tables.append((f"method.{name}.", table, methods.renamed(name, table)))
    for above, table, renamed in tables:
        for name, before in renamed.items():
            if isinstance(table, dict) and before in table:
                warnings.warn(f"setting '{above}{before}' is called '{above}{name}' now", FutureWarning, stacklevel=3)


def _replace_classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from Python, with classes replaced by their dotted names."""

    def name(value: Any) -> Any:
        if isinstance(value, type):
            return plugins.dotted_path(value)
        if isinstance(value, Mapping):
            return {key: name(each) for key, each in value.items()}
        return [name(each) for each in value] if isinstance(value, list | tuple) else value

    return {key: name(value) for key, value in settings.items()}


def parse(settings: Mapping[str, Any]) -> Experiment:
    """A valid experiment: every setting known, every method and source found, `all` written out.

    Raises `FedvlmError` with the key path, the expected value and the nearest key of every problem. A `[data]` table
    without a source, with settings of drawn scenes only, changes the default data.
    """
    if "sweep" in settings:
        keys = ", ".join(settings["sweep"]) if isinstance(settings["sweep"], dict) else settings["sweep"]
        raise FedvlmError(
            f"these settings have a [sweep] over {keys}: run them with fedvlm sweep, or set it to one value"
        )
    rest, wrong = _name_outside_methods(dict(settings)), []
    if isinstance(rest.get("data"), dict):
        try:
            rest["data"] = _parse_data(rest["data"])
        except FedvlmError as error:
            wrong.append(str(error))
            del rest["data"]
    try:
        found = Experiment.model_validate(rest)
    except ValidationError as error:
        raise FedvlmError("\n".join([*problems(error, Experiment), *wrong])) from None
    if wrong:
        raise FedvlmError("\n".join(wrong))
    if found.data.transform != "clip" and found.views != "none":
        raise FedvlmError(
            f'data.preprocess = "{found.data.transform}" has no augmentation, but views = {json.dumps(found.views)} '
            'asks for it: set views = "none", or data.preprocess = "clip"'
        )
    metrics.select_metrics(found.evaluation.metrics)
    return _check_methods(found)


def _parse_data(table: dict[str, Any]) -> DataSource:
    """The `[data]` table as an object of its source's class."""
    known = sources.builtin_sources()
    if "source" not in table and table.keys() <= ScenesData.model_fields.keys():
        table = {"source": "scenes", **table}
    name = table.get("source")
    if not isinstance(name, str) or (name not in known and not _is_outside(name, sources.GROUP)):
        raise FedvlmError(f"setting 'data.source' is one of: {', '.join(known)}; or package.module:Class")
    kind = sources.find_source(name)
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise FedvlmError("\n".join(problems(error, kind, "data."))) from None


def _is_outside(name: str, group: str) -> bool:
    return ":" in name or name in plugins.entry_points(group)


def _name_outside_methods(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which methods of other packages have their own names, and tables with their dotted paths."""
    names, tables = settings.get("methods"), settings.get("method", {})
    if not isinstance(tables, dict):
        return settings
    plain_names, added = [], {}
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and ":" in name:
            path, name = name, methods.find(name).name
            if name in methods.known():
                raise FedvlmError(f"method '{path}' calls itself '{name}', as one of ours does: rename it")
            added[name] = {"method": path, **tables.get(name, {})}
        plain_names.append(name)
    tables = {name: _method_to_current_names(name, table) for name, table in (tables | added).items()}
    return settings | {"method": tables} | ({"methods": plain_names} if isinstance(names, list) else {})


def _method_to_current_names(name: str, table: Any) -> Any:
    """A method's table by the current names of its settings."""
    try:
        return to_current_names(table, methods.renamed(name, table)) if isinstance(table, dict) else table
    except ValueError as error:
        raise FedvlmError(f"setting 'method.{name}': {error}") from None


def _check_methods(experiment: Experiment) -> Experiment:
    """The experiment with `all` replaced by names. Raises `FedvlmError` for unknown methods and for duplicates."""
    methods.check(experiment.method)
    experiment = experiment.model_copy(update={"methods": methods.expanded(experiment.methods, experiment.method)})
    for name in experiment.methods:
        methods.build(name, experiment.method)
    for what, given in (("methods", experiment.methods), ("seeds", experiment.seeds)):
        twice = [each for place, each in enumerate(given) if each in given[:place]]
        if twice:
            raise FedvlmError(f"setting '{what}' names {listed(twice)} twice")
    return experiment
