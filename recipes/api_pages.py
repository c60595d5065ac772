"""Pages on the Python interface, from signatures and docstrings. The source is read, not imported.

`python recipes/site_pages.py` calls it. A page is a list of modules; of each it shows the names that are given, or all
that do not begin with `_`. Classes show their fields and what they hold of methods. Docstrings are Markdown.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
WIDTH = 84
"""Signatures that are longer get one line per argument."""
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Part:
    """A module of a page, and the names that are shown of it."""

    module: str
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A page of the interface."""

    file: str
    title: str
    about: str
    parts: Sequence[Part]


PAGES = (
    Page("python", "fedvlm", "What `import fedvlm` gives. Everything else is imported from its module.", [
        Part("fedvlm", ["run", "load"]), Part("fedvlm.errors", ["FedvlmError"]),
    ]),
    Page("results", "Results of a run", "What `fedvlm.run` returns.", [
        Part("fedvlm.runs.results", ["Results", "ResultRow", "Value"]),
        Part("fedvlm.runs.result", ["PointResult", "Digests"]),
    ]),
    Page("personal", "Personal models", "What `fedvlm.load` returns, and what it predicts.", [
        Part("fedvlm.personal.model", ["PersonalModel", "Prediction", "Facts", "Base", "Calibrated", "sources"]),
    ]),
    Page("experiment", "Experiments", "Every setting of an experiment file. Methods and data sources have their own.", [
        Part("fedvlm.experiment", ["load", "Experiment"]), Part("fedvlm.clip.load", ["ModelSection"]),
        Part("fedvlm.data.partitions", ["PartitionSection"]), Part("fedvlm.training.evaluation", ["EvaluationSection"]),
        Part("fedvlm.training.device", ["ComputeSection"]),
    ]),
    Page("method", "The method base class", "What a method may override: [add a method](../add-a-method.md).", [
        Part("fedvlm.methods.base"), Part("fedvlm.methods", ["known", "find", "build"]),
        Part("fedvlm.tensors"),
    ]),
    Page("tuners", "Tuners", "The trainable parts that methods put into the frozen CLIP.", [
        Part("fedvlm.tuners.base"), Part("fedvlm.tuners.prompt"), Part("fedvlm.tuners.deep_prompt"),
        Part("fedvlm.tuners.adapter"), Part("fedvlm.tuners.lora"), Part("fedvlm.tuners.gate"),
    ]),
    Page("data", "Data", "Images, labels, sources, and what clients get of them.", [
        Part("fedvlm.data.settings"), Part("fedvlm.data", ["load_source"]), Part("fedvlm.data.record"),
        Part("fedvlm.data.rows"), Part("fedvlm.data.build", ["build_source"]),
        Part("fedvlm.data.files", ["FileImage", "existing_folder"]), Part("fedvlm.data.federation"),
        Part("fedvlm.data.assembly", ["federate", "federate_validation"]),
    ]),
    Page("metrics", "Metrics", "What is measured, and how clients' numbers add up.", [Part("fedvlm.training.metrics")]),
    Page("clip", "The frozen CLIP", "The dual encoder that tuners are put into.", [
        Part("fedvlm.clip.load", ["load", "save"]), Part("fedvlm.clip.model", ["CLIP", "FrozenCLIP"]),
        Part("fedvlm.clip.transformer", ["Insertions", "ParallelTo", "Patches", "Entry"]),
    ]),
    Page("testing", "Promises of methods", "The suite that every method is held to, for methods of your own.", [
        Part("fedvlm.testing.conformance", ["conformance"]), Part("fedvlm.testing.case"), Part("fedvlm.testing.tiny"),
    ]),
    Page("site", "A site's settings", "What the owner of photographs decides: [privacy](../privacy.md).", [
        Part("fedvlm.network.site.settings"),
    ]),
)  # fmt: skip


def sources() -> dict[str, str]:
    """The page that shows a module, by the module's file below `src`."""
    return {_path(part.module): f"api/{page.file}.md" for page in reversed(PAGES) for part in reversed(page.parts)}


def render(page: Page) -> str:
    """A page as Markdown. Raises `KeyError` for a name that its module does not define."""
    parts = [f"# {page.title}", page.about]
    for part in page.parts:
        parts += _module(part, ast.parse((SOURCE / _path(part.module)).read_text(encoding="utf-8")))
    return "\n\n".join(parts) + "\n"


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (SOURCE / path).is_dir() else f"{path}.py"


def module_docstring(file: Path) -> str:
    """The docstring of a module's file."""
    return _about(ast.parse(file.read_text(encoding="utf-8")))


def _about(tree: ast.Module) -> str:
    # As it stands: a part that is indented is code.
    return (ast.get_docstring(tree, clean=False) or "").strip()


def _module(part: Part, tree: ast.Module) -> Iterator[str]:
    yield f"## `{part.module}`"
    yield _about(tree)
    found = dict(_documented(tree.body))
    for name in part.names or found:
        kind, text = found[name]
        yield f"### `{name}`"
        yield from _definition(kind, 4) if isinstance(kind, Definition) else [_code(_shown(kind)), text]


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, tuple[ast.stmt, str]]]:
    """Public definitions, and assignments that a docstring follows, by name."""
    for number, node in enumerate(body):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                text = ast.get_docstring(node) or ""
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                after = body[number + 1] if number + 1 < len(body) else None
                text = _text(after)
                if not text and isinstance(node, ast.Assign):
                    continue
            case _:
                continue
        if not name.startswith("_"):
            yield name, (node, text)


def _text(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return ""


def _definition(node: Definition, level: int) -> Iterator[str]:
    yield _code(signature(node))
    yield ast.get_docstring(node) or ""
    if not isinstance(node, ast.ClassDef):
        return
    members = dict(_documented(node.body))
    fields = [(one, text) for one, text in members.values() if not isinstance(one, Definition)]
    if fields:
        yield "\n".join(_field_line(one, text) for one, text in fields)
    for name, (one, _) in members.items():
        if isinstance(one, ast.FunctionDef):
            yield f"{'#' * level} `{node.name}.{name}`"
            yield from _definition(one, level + 1)


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _field(node: ast.stmt) -> tuple[str, str]:
    """`name: type = default`, with the default of a field's call alone; bounds in words."""
    if not isinstance(node, ast.AnnAssign):
        return _shown(node), ""
    kind, value, calls = node.annotation, node.value, []
    match kind:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *rest])):
            kind, calls = inner, rest
    if isinstance(value, ast.Call) and _shown(value.func).lower() == "field":
        given = {word.arg: _shown(word.value) for word in value.keywords}
        default = given.get("default") or (f"{given['default_factory']}()" if "default_factory" in given else "")
        calls.append(value)
    else:
        default = _shown(value) if value else ""
    bounds = [f"{BOUNDS[word.arg]} {_shown(word.value)}" for call in calls if isinstance(call, ast.Call)
              for word in call.keywords if word.arg in BOUNDS]  # fmt: skip
    line = f"{_shown(node.target)}: {_shown(kind)}{f' = {default}' if default else ''}"
    return line, " and ".join(bounds)


def _field_line(node: ast.stmt, text: str) -> str:
    line, bounds = _field(node)
    more = f" ({bounds})" if bounds else ""
    return f"- `{line}`{more}{': ' if text else ''}{' '.join(text.split())}"


def signature(node: Definition) -> str:
    """What is written before the colon, without `self`, in lines of at most `WIDTH`."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(_shown, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    marks = [f"@{mark.id}" for mark in node.decorator_list if isinstance(mark, ast.Name)]
    words = list(_arguments(node.args))
    words = words[1:] if words[:1] in (["self"], ["cls"]) else words
    end = f" -> {_shown(node.returns)}" if node.returns else ""
    line = f"def {node.name}({', '.join(words)}){end}"
    if len(line) > WIDTH:
        line = f"def {node.name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"
    return "\n".join([*marks, line])


def _arguments(args: ast.arguments) -> Iterator[str]:
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    for one, default in zip(plain, defaults, strict=True):
        yield _argument(one, default)
    if args.vararg or args.kwonlyargs:
        yield f"*{_argument(args.vararg)}" if args.vararg else "*"
    for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _argument(one, default)
    if args.kwarg:
        yield f"**{_argument(args.kwarg)}"


def _argument(one: ast.arg, default: ast.expr | None = None) -> str:
    kind = f": {_shown(one.annotation)}" if one.annotation else ""
    return f"{one.arg}{kind}{f' = {_shown(default)}' if default else ''}"


def _shown(node: ast.AST) -> str:
    """Source text of a node, on one line, with the quotes of this project."""
    text = " ".join(ast.unparse(node).split())
    return text if '"' in text else text.replace("'", '"')


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
