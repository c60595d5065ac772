"""Mutants of a Python file: copies with one small mistake, found in its syntax tree and written into its text.

| what | becomes |
|---|---|
| `a < b`, `a == b`, `a is b`, `a in b` (one operator) | `a <= b`, `a != b`, `a is not b`, `a not in b`, and back |
| `a + b`, `a * b`, `a // b`, `a % b`, `a ** b` | `a - b`, `a / b`, `a * b`, `a * b`, `a * b`, and back |
| `a | b` | `a`, so that what b adds or lays over is lost |
| `a and b`, `not a`, `-a` | `a or b`, `a`, `a` |
| any other condition `a` of if, while, a choice or a comprehension | `not a` |
| an integer n, a float x, `True` | n + 1, 2 x (1 for 0), `False` |
| `min`, `sum`, `any`, `argmax`, `floor`, `zeros`, ... called | `max`, `mean`, `all`, `argmin`, `ceil`, `ones`, ... |
| `x.clone()`, `x.detach()`, `normalize(x, ...)`, `sorted(x)`, ... | `x`: the call is left out |
| `f(a, key=b)` | `f(a)` |
| `x[a:b]` | `x[:b]` and `x[a:]` |
| a call alone, `x.a = b`, `x[i] = b`, `x += b`, `raise`, `del` | `pass` |
| `break`, `continue` | `continue`, `break` |

Left alone, as little hangs on them that a test should hold: annotations and `Annotated` bounds, docstrings and all
other strings with what is formatted into them, decorators, `assert`, imports, `__all__`, what stands in a `raise` or a
warning (its words), `strict=`, and what changes nothing on a CPU (`device=`, `.to`, `.cpu`, `.contiguous`).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
PAIRS = (("min", "max"), ("sum", "mean"), ("any", "all"), ("argmax", "argmin"), ("floor", "ceil"), ("zeros", "ones"),
         ("exp", "expm1"), ("relu", "abs"), ("union", "intersection"))  # fmt: skip
SWAPPED = {a: b for one, other in PAIRS for a, b in ((one, other), (other, one))}
METHODS = {"clone", "detach", "double", "float", "clamp", "square", "copy", "neg", "abs", "flip"}
FUNCTIONS = {"normalize", "relu", "tanh", "sorted"}
"""Methods and functions of one main value that are left out."""
GUARDS = {"strict", "device"}
"""Keyword arguments without effect in a correct program, or without effect on a CPU."""
SAID = {"warn", "print", "Field", "ConfigDict", "TypeVar"}
"""Calls whose arguments are words or bounds of settings."""


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes `start..end` of a file become `after`. `first..last` are its statement's lines, from 1."""

    path: str
    start: int
    end: int
    before: str
    after: str
    line: int
    first: int
    last: int
    at_import: bool
    """Whether the change is outside functions, such as in a default or a constant."""
    source: str
    """Digest of the whole file, so that results of a mutant are valid until the file changes."""

    @property
    def id(self) -> str:
        """The unique name of the mutant."""
        return f"{self.source}:{self.start}:{self.end}:{self.after}"

    def applied(self, text: bytes) -> bytes:
        """The text of the file with the mutation."""
        return text[: self.start] + self.after.encode() + text[self.end :]


def digest(text: bytes) -> str:
    """Digest of a text: sixteen hexadecimal digits."""
    return hashlib.sha256(text).hexdigest()[:16]


def mutants(path: str, text: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    lines = text.splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]
    source, found = digest(text), dict[str, Mutant]()

    def at(line: int, column: int) -> int:
        return starts[line - 1] + column

    for (statement, at_import), node, after in _changes(ast.parse(text)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        last = node.end_lineno if hasattr(statement, "body") else statement.end_lineno or node.end_lineno
        before = text[start:end].decode()
        one = Mutant(path, start, end, before, after, node.lineno, statement.lineno, last, at_import, source)
        if before != after:
            found.setdefault(one.id, one)
    return sorted(found.values(), key=lambda one: (one.start, one.end, one.after))


Node = ast.stmt | ast.expr
Where = tuple[ast.stmt, bool]
"""The statement that something stands in, and whether it runs at import."""
Change = tuple[Where, Node, str]
"""The place of a node, the node, and the text that replaces it."""


def _changes(tree: ast.Module) -> Iterator[Change]:
    for where, node in _walk(tree, (ast.Pass(), True)):
        if isinstance(node, ast.stmt):
            yield from ((where, node, after) for after in _statement(node))
        elif isinstance(node, ast.expr):
            yield from ((where, node, after) for after in _expression(node))
        for condition in _conditions(node):
            if not isinstance(condition, (ast.Compare, ast.BoolOp, ast.Constant)) and not _is_not(condition):
                yield where, condition, f"(not ({ast.unparse(condition)}))"


def _walk(node: ast.AST, where: Where) -> Iterator[tuple[Where, ast.AST]]:
    """Every node that may be changed, with where it stands."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr)) or _words(node):
        return
    if isinstance(node, ast.keyword) and node.arg in GUARDS:
        return
    where = (node, where[1]) if isinstance(node, ast.stmt) else where
    yield where, node
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in SAID):
        return
    skipped = {"annotation", "returns", "decorator_list", "type_comment", "bases", "format_spec", "type_params"}
    for name, value in ast.iter_fields(node):
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and name == "body"
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child, (where[0], where[1] and not inside))


def _words(node: ast.AST) -> bool:
    """A docstring, a type or a list of names: nothing to change."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id[0].isupper()


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return [node.test]
    return list(node.ifs) if isinstance(node, ast.comprehension) else []


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _called(node: ast.Call) -> str:
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _statement(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.Break, ast.Continue)):
        yield "continue" if isinstance(node, ast.Break) else "break"
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value) not in SAID
    stored = isinstance(node, ast.Assign) and not any(isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets)
    if alone or stored or isinstance(node, (ast.AugAssign, ast.Raise, ast.Delete)):
        yield "pass"


def _expression(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _text(ast.Compare(node.left, [COMPARED[type(node.ops[0])]()], node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in COUNTED:
        yield _text(ast.BinOp(node.left, COUNTED[type(node.op)](), node.right))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and not _types(node):
        yield _text(node.left)
    elif isinstance(node, ast.BoolOp):
        yield _text(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield _text(node.operand)
    elif isinstance(node, ast.Constant):
        yield from _constant(node.value)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        part = node.slice
        if part.lower is not None:
            yield _text(ast.Subscript(node.value, ast.Slice(None, part.upper, part.step), node.ctx))
        if part.upper is not None:
            yield _text(ast.Subscript(node.value, ast.Slice(part.lower, None, part.step), node.ctx))


def _types(node: ast.BinOp) -> bool:
    """`A | B` and `A | None` of types."""
    return isinstance(node.right, ast.Constant) or (isinstance(node.right, ast.Name) and node.right.id[0].isupper())


def _constant(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield str(value + 1)
    elif isinstance(value, float):
        yield repr(2 * value or 1.0)


def _call(node: ast.Call) -> Iterator[str]:
    name, function = _called(node), node.func
    if name in SAID:
        return
    if name in SWAPPED and not (isinstance(function, ast.Name) and name in ("sum", "mean")):
        other = SWAPPED[name]
        renamed = ast.Attribute(function.value, other) if isinstance(function, ast.Attribute) else ast.Name(other)
        yield _text(ast.Call(renamed, node.args, node.keywords))
    if name in METHODS and isinstance(function, ast.Attribute):
        yield _text(function.value)
    if name in FUNCTIONS and node.args:
        yield _text(node.args[0])
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in GUARDS:
            yield _text(ast.Call(function, node.args, [other for other in node.keywords if other is not keyword]))


def _text(node: ast.expr) -> str:
    plain = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)
    written = ast.unparse(ast.fix_missing_locations(node))
    return written if isinstance(node, plain) else f"({written})"
