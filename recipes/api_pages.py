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

WIDTH = 100
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
    Page("method", "The method base class", "What a method may override: [add a method](../add-a-method.md) shows how.", [
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
        Part("fedvlm.testing.conformance"), Part("fedvlm.testing.case"), Part("fedvlm.testing.tiny"),
    ]),
    Page("site", "A site's settings", "What the owner of photographs decides: [privacy](../privacy.md).", [
        Part("fedvlm.network.site.settings"),
    ]),
)  # fmt: skip


def render(page: Page, source: Path) -> str:
    """A page as Markdown. Raises `KeyError` for a name that its module does not define."""
    parts = [f"# {page.title}", page.about]
    for part in page.parts:
        parts += _module(part, ast.parse(_file(part.module, source).read_text(encoding="utf-8")))
    return "\n\n".join(parts) + "\n"


def _file(module: str, source: Path) -> Path:
    path = source.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_docstring(file: Path) -> str:
    """The docstring of a module's file."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _module(part: Part, tree: ast.Module) -> Iterator[str]:
    yield f"## `{part.module}`"
    if not part.names:
        yield ast.get_docstring(tree) or ""
    found = dict(_documented(tree.body))
    for name in part.names or found:
        kind, text = found[name]
        yield f"### `{name}`"
        yield from _definition(kind, 4) if isinstance(kind, Definition) else [_code(ast.unparse(kind)), text]


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
        yield "\n".join(f"- {_field(one)}{': ' if text else ''}{' '.join(text.split())}" for one, text in fields)
    for name, (one, _) in members.items():
        if isinstance(one, ast.FunctionDef):
            yield f"{'#' * level} `{node.name}.{name}`"
            yield from _definition(one, level + 1)


def _field(node: ast.stmt) -> str:
    """`name: type = default`, with the default of a field's call alone."""
    text = ast.unparse(node)
    match node:
        case ast.AnnAssign(annotation=kind, value=ast.Call(func=ast.Name(id="Field" | "field"), keywords=words)):
            given = {word.arg: ast.unparse(word.value) for word in words}
            default = given.get("default", f"{given['default_factory']}()" if "default_factory" in given else None)
            text = f"{ast.unparse(node.target)}: {ast.unparse(kind)}{'' if default is None else f' = {default}'}"
    return f"`{' '.join(text.split())}`"


def signature(node: Definition) -> str:
    """What is written before the colon, without `self`, in lines of at most `WIDTH`."""
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base) for base in node.bases]
        return f"class {node.name}" + (f"({', '.join(bases)})" if bases else "")
    marks = [f"@{mark.id}" for mark in node.decorator_list if isinstance(mark, ast.Name)]
    known = node.args.posonlyargs + node.args.args
    hidden = bool(known) and known[0].arg in ("self", "cls")
    end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    words = [ast.unparse(one) for one in _arguments(node.args)][hidden:]
    line = f"def {node.name}({', '.join(words)}){end}"
    if len(line) > WIDTH:
        line = f"def {node.name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"
    return "\n".join([*marks, line])


def _arguments(all_: ast.arguments) -> Iterator[ast.arguments]:
    """The arguments one by one, each as arguments of its own."""
    plain = all_.posonlyargs + all_.args
    missing = len(plain) - len(all_.defaults)
    for number, one in enumerate(plain):
        yield _only(args=[one], defaults=all_.defaults[number - missing :][:1] if number >= missing else [])
    if all_.vararg or all_.kwonlyargs:
        yield _only(vararg=all_.vararg) if all_.vararg else _only(args=[ast.arg(arg="*")])
    for one, default in zip(all_.kwonlyargs, all_.kw_defaults, strict=True):
        yield _only(args=[one], defaults=[default] if default else [])
    if all_.kwarg:
        yield _only(kwarg=all_.kwarg)


def _only(
    args: Sequence[ast.arg] = (),
    defaults: Sequence[ast.expr] = (),
    vararg: ast.arg | None = None,
    kwarg: ast.arg | None = None,
) -> ast.arguments:
    return ast.arguments([], list(args), vararg, [], [], kwarg, list(defaults))


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
