"""The configuration of an experiment: typed sections, strict about unknown keys, resolved once and digested.

An experiment is read from a TOML file, overridden by `key=value` words (both `fedvlm.plain`), validated here, and
stored whole in the run folder. What a method adds is a table of its own, `[method.NAME]`, which is validated by that
method's configuration class.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedvlm import durable
from fedvlm.errors import FedvlmError, nearest
from fedvlm.templates import Template

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Gib = Annotated[float, Field(ge=0, le=2**20)]


class Section(BaseModel):
    """A table of settings: unknown keys are errors, values are not silently converted, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _words(cls, values: Any) -> Any:
        """TOML has no null: `none` stands for it in settings that may be absent. A whole number may be a name."""
        if not isinstance(values, dict):
            return values
        kinds = {key: {field.annotation, *get_args(field.annotation)} for key, field in cls.model_fields.items()}
        return {key: _worded(value, kinds.get(key, set())) for key, value in values.items()}


def _worded(value: Any, kinds: set[Any]) -> Any:
    if value == "none" and type(None) in kinds:
        return None
    return str(value) if type(value) is int and str in kinds and int not in kinds else value


class ModelSection(Section):
    """Which frozen CLIP."""

    name: str = "embedded"
    """`embedded`, a local directory, or a hub id such as `openai/clip-vit-base-patch16`."""
    revision: str | None = None
    """Hub revision (commit, tag or branch) to pin."""
    offline: bool = False
    """Use only files that are already in the hub cache."""


class ScenesData(Section):
    """Drawn scenes (no files, no network)."""

    source: Literal["scenes"] = "scenes"
    styles: Annotated[list[str], Field(min_length=1)] = ["sketch"]
    """Visual styles; each is a domain. `style:0.7` sets the strength."""
    base_classes: Count = 20
    novel_classes: Annotated[int, Field(ge=0)] = 20
    shots: Count = 16
    """Training images per class and style."""
    val_per_class: Annotated[int, Field(ge=0)] = 8
    test_per_class: Count = 20
    """Test images per class and style."""


class FileData(Section):
    """What all sources of real photographs share."""

    path: str
    """Folder that holds the photographs."""
    shots: Count | None = None
    """Training images per class (and domain); all of them where not given."""
    novel: Literal["half", "none"] = "half"
    """`half`: the first ceil(C/2) classes are base, the rest novel; `none`: every class is base."""
    classes: list[str] = []
    """Class names in the order of their numbers at every site; images of others are left out. Empty: the data's own."""
    include: list[str] = []
    """The only labels to use (the papers take 10 of DomainNet's 345); all of them where empty."""
    exclude: list[str] = []
    """Labels to leave out (noise labels)."""
    test_fraction: Fraction = 0.3
    """Share of each class (and client) held out for testing where the source has no split of its own."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images held out for validation where the source has no split of its own."""
    test_per_class: Count | None = None
    """At most so many test images per class (and domain); all of them where not given."""
    max_megapixels: Annotated[float, Field(gt=0)] = 40.0
    """Larger images are refused before they are decoded."""
    on_unreadable: Literal["skip", "error"] = "skip"
    """What an unreadable image does: left out and counted in the warnings, or an error."""
    on_duplicate: Literal["once", "keep"] = "once"
    """Images with the same pixels: used once (an error under two labels), or every one, as some published protocols
    have it. The warnings count them either way."""
    grey_bits: Literal[8, 10, 12, 14, 16] | None = None
    """Range of grey values that are stored in more than 8 bits; the least of 8, 12 and 16 that holds all of them where
    not given. Sites of one federation should give it, so that all have the same."""
    preprocess: Literal["clip", "cifar10", "cifar100"] = "clip"
    """`clip`: the model's own transform. `cifar10`, `cifar100`: what the papers' released code does with these data
    (images of 32 x 32, no augmentation)."""


class FolderData(FileData):
    """Image folders: `class/img`, `client/class/img` or `domain/class/img`, with or without `train`/`test` above."""

    source: Literal["folder"]
    layout: Literal["class", "client", "domain"] = "class"
    train_list: str | None = None
    """Text file below `path` with a line `domain/class/img.jpg 23` for each training image, as DomainNet and PACS are
    published; `{domain}` in its name (`{domain}_train.txt`) stands for every domain that has one."""
    val_list: str | None = None
    test_list: str | None = None
    """The same for test images; without it `test_fraction` of the listed training images is held out."""
    images: str | None = None
    """Folder below `path` that the paths in the lists start from."""


class CifarData(FileData):
    """CIFAR-10 or CIFAR-100 in the authors' binary version."""

    source: Literal["cifar"]
    complete: bool = True
    """Every file must hold as many images as the published one; false to read a smaller copy."""
    on_duplicate: Literal["once", "keep"] = "keep"
    """The published files are the benchmark, whatever they hold twice."""


class ManifestData(FileData):
    """A CSV with one image per row."""

    source: Literal["manifest"]
    manifest: str
    """CSV file, relative to `path`."""
    image: str = "image"
    """Column with the image's path."""
    image_path: str = "{}"
    """Where the image is, relative to `path`, `{}` being the column's value (`images/{}.jpg`)."""
    label: str = "label"
    client: str | None = None
    domain: str | None = None
    split: str | None = None


class CoopData(FileData):
    """CoOp's layout: an image folder and `split_zhou_*.json`."""

    source: Literal["coop"]
    split_file: str | None = None
    """Found by its name where not given."""
    images: str | None = None
    """Image folder inside `path`; found by the paths in the split file where not given."""
    on_duplicate: Literal["once", "keep"] = "keep"
    """The published lists are the protocol, whatever they hold twice."""


class HubData(FileData):
    """A Hugging Face dataset: a hub id or a directory written by `save_to_disk` (extra `hub`)."""

    source: Literal["huggingface"]
    config: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    client: str | None = None
    domain: str | None = None
    superclass: str | None = None
    """Column with the class that a class belongs to (`coarse_label` of CIFAR-100)."""
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = "test"
    """`none`: hold out `test_fraction` of the training images."""
    offline: bool = False


AnyData = Annotated[
    ScenesData | FolderData | ManifestData | CoopData | CifarData | HubData, Field(discriminator="source")
]


class PartitionSection(Section):
    """How training (and own test) images are dealt to clients."""

    kind: Literal["pathological", "dirichlet", "pachinko", "domain", "natural", "iid", "quantity"] = "pathological"
    clients: Count | None = 10
    """Number of clients (`natural`: at most so many, the largest first; `domain`: not used)."""
    order: Literal["seeded", "paper"] = "seeded"
    """From the run's seed, or fixed as in the papers' code. `pathological`: the constant `random.seed(2023)` shuffle of
    classes; `pachinko`: a constant seed, only which client gets which share follows the run's seed."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Dirichlet concentration over labels (`dirichlet`, and `domain` to split each domain unevenly), over super-classes
    (`pachinko`), or over the clients' sizes (`quantity`)."""
    inner_alpha: Annotated[float, Field(gt=0)] = 10.0
    """`pachinko`: Dirichlet concentration over the classes inside a super-class."""
    cap: bool = False
    """`dirichlet` and uneven `domain`: who has a fair share of all (the domain's) images gets none of the classes that
    follow, as in the papers' code."""
    clients_per_domain: Count = 1
    """`domain`: so many clients for each domain."""
    one_domain_each: bool = False
    """`pathological`/`iid`/`dirichlet`/`quantity`: client i sees only domain i mod D."""
    min_images: Count = 1
    """Clients with fewer usable images are left out (`natural`); `dirichlet`, `quantity` and uneven `domain` draw again
    below it in training ones."""
    min_test: Annotated[int, Field(ge=0)] = 0
    """`dirichlet`, `quantity` and uneven `domain`: draw again below so many own test images; who trains on what depends
    on the test images only if it is set."""
    late: int | list[str] = 0
    """Clients that join after the last round: so many, drawn by the run's seed, or those of these names or domains
    (`["webcam"]`). They are in no round and no average, and are evaluated apart: on arrival, and after
    `method.all.fine_tune` visits of their own."""

    @field_validator("late", mode="before")
    @classmethod
    def _number_or_names(cls, value: Any) -> Any:
        """A word is a list of names, `a,b`; a whole number in a list is a name."""
        value = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        if isinstance(value, list) and all(type(item) in (str, int) and item != "" for item in value):
            return [str(item) for item in value]
        if type(value) is int and value >= 0:
            return value
        raise ValueError("expected a number of clients, or a list of names of clients or domains")


class EvaluationSection(Section):
    """What is measured, when, on which images."""

    every: Count = 1
    """Evaluate after every so many rounds (the last round always)."""
    state: Literal["after_aggregation", "after_training"] | None = None
    """State whose accuracies head the table; the method's own default where not given. Both are recorded."""
    split: Literal["test", "val"] = "test"
    """`val` to choose hyper-parameters without looking at test images."""
    general: Literal["own_domain", "all"] = "all"
    """Base and novel images: of the client's own domain, or of all domains."""
    template: Template = "a photo of a {}."
    """What texts are made of, with `{}` for the class name; or a CoOp data set for its template (`OxfordPets`)."""
    batch: Count | None = None
    """Images at a time; by default 256, and on a CPU 32, which its caches hold."""


class ComputeSection(Section):
    """Where and how it is computed. Nothing here changes results beyond rounding.

    The run folder tells what was used; a run that is taken up again keeps its threads and its clients together.
    """

    device: str = "auto"
    """`auto` (a GPU when present), `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of the forward pass; trained tensors stay float32. `tf32`: float32, but an NVIDIA GPU rounds what
    goes into products to 10 bits."""
    together: Count | None = None
    """Clients whose training steps are computed as one; by default 8 for a small CLIP or on a GPU, else 1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; by default those the run was begun with, or all cores (shared by `--processes`), but one for a CLIP
    as small as the embedded one."""
    cache_gib: Gib = 2.0
    """Bound of remembered activations in memory."""
    clients_gib: Gib = 1.0
    """Bound of clients' tensors in memory between their visits; more of them are read from the run folder."""
    disk_gib: Gib = 20.0
    """Bound of activations of image files on disk, for later runs (`fedvlm cache` shows and clears them); 0: none."""
    kept_as: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of activations on disk. Half precision halves them, and changes results in the third digit."""


class Experiment(Section):
    """Everything a comparison of methods depends on."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = "experiment"
    """Heads tables and pictures, and names the run folder."""
    methods: Annotated[list[str], Field(min_length=1)] = ["zero_shot", "pfedmma"]
    """Names of methods or of their variants; `all` for every one of both."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    rounds: Count = 10
    participation: Fraction = 1.0
    """Share of clients trained in a round: max(1, floor(share x clients)) of them."""
    views: Literal["none", "online"] | Count = "none"
    """Training sees the test transform, new crops and flips in every epoch (`online`), or one of so many remembered."""
    model: ModelSection = ModelSection()
    data: AnyData = ScenesData()
    partition: PartitionSection = PartitionSection()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()
    faults: list[str] = []
    """Faults of the released code to build in on purpose, named in every output (see `fedvlm audit`)."""
    method: dict[str, dict[str, Any]] = {}
    """Settings by method name; `all` holds those of every method that knows the key."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        """Files that others send may hold any name; the folder it names lies in `runs`."""
        if value.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", value):
            raise ValueError("expected a name for a folder: no '/', no '\\', no '.' at its beginning")
        return value

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, as plain JSON values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of what can change results: everything but the name, the device and the bounds of caches."""
        return durable.json_digest(self._counted())

    def basis(self) -> str:
        """The same without methods, seeds and methods' settings: what all points of a comparison have in common."""
        return durable.json_digest({key: value for key, value in self._counted().items() if key not in _POINTS})

    def _counted(self) -> dict[str, Any]:
        settings = self.model_dump(mode="json", exclude={"name"})
        for section, keys in LATER.items():
            table, model = (settings[section], getattr(self, section)) if section else (settings, self)
            for key in keys & table.keys():
                if table[key] in (type(model).model_fields[key].default, []):
                    del table[key]
        settings["compute"] = {key: settings["compute"][key] for key in ("dtype", "kept_as")}
        return settings


LATER = {"": {"faults"}, "data": {"on_duplicate", "grey_bits", "classes"}, "partition": {"late"}}
"""Settings that came later, by table: digests leave them out while they have their defaults (or name nothing), so that
runs that were begun before there were any can be resumed."""
_POINTS = ("methods", "seeds", "method")


def parse(settings: dict[str, Any]) -> Experiment:
    """Validate plain settings; every problem is told with its key path, what was expected and the nearest key.

    A `[data]` table without a source that has only settings of drawn scenes changes the default data.
    """
    if "sweep" in settings:
        keys = ", ".join(settings["sweep"]) if isinstance(settings["sweep"], dict) else settings["sweep"]
        raise FedvlmError(
            f"these settings have a [sweep] over {keys}: play them with fedvlm sweep, or set it to one value"
        )
    data = settings.get("data")
    if isinstance(data, dict) and "source" not in data and data.keys() <= ScenesData.model_fields.keys():
        settings = settings | {"data": {"source": "scenes", **data}}
    try:
        found = Experiment.model_validate(settings)
    except ValidationError as error:
        raise FedvlmError("\n".join(problems(error, Experiment))) from None
    if isinstance(found.data, FileData) and found.data.preprocess != "clip" and found.views != "none":
        raise FedvlmError(
            f'data.preprocess = "{found.data.preprocess}" has no augmentation, but views = {json.dumps(found.views)} '
            'asks for it: set views = "none", or data.preprocess = "clip"'
        )
    return found


def problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One sentence per problem of a pydantic error, with the nearest known key for an unknown one."""
    return [_problem(dict(detail), model, prefix) for detail in error.errors()]


def _problem(detail: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in detail["loc"] if part not in _SOURCES]
    name = prefix + ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _known(model, detail["loc"])
        words = ", ".join(sorted(known))
        return f"unknown setting '{name}'{nearest(path[-1], known)}; known here: {words}"
    if detail["type"] == "missing":
        return f"setting '{name}' is needed"
    if detail["type"].startswith("union_tag"):
        return f"setting '{name}.source' is one of: {', '.join(_SOURCES)}"
    message = detail["msg"].removeprefix("Value error, ")
    if not path:  # of the table as a whole
        return f"setting '{name.rstrip('.')}': {message}"
    if repr(detail["input"]) in message:
        return f"setting '{name}': {message}"
    for pydantic, ours in (("Input should be", "expected"), ("a valid integer", "an integer"), ("a valid", "a")):
        message = message.replace(pydantic, ours)
    return f"setting '{name}': {message}, not {detail['input']!r}"


_SOURCES: dict[str, type[Section]] = {
    "scenes": ScenesData, "folder": FolderData, "manifest": ManifestData, "coop": CoopData, "cifar": CifarData,
    "huggingface": HubData,
}  # fmt: skip


def _known(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for part in loc[:-1]:
        field = model.model_fields.get(part)
        inner = _SOURCES.get(part) or (field.annotation if field else None)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
