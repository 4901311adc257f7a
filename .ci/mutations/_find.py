"""Find the mutants of a source file: every sign, operator, integer and index, one at a time."""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

THEORY = Path("quadmodel/theory")
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
# Functions of NumPy whose first two (or last two) arguments don't commute.
_ORDERED = {"outer": 0, "where": 1, "full": 0, "arctan2": 0}
# Calls and functions that estimate memory or report, which no formula depends on.
_NO_FORMULA = {"check_memory", "numbers_needed", "InputError", "isinstance", "TypeVar", "zip"}
# Floats of other sizes are tolerances of a method, on which results don't depend.
_FLOATS = (1e-2, 1e2)

Way = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Mutant:
    """One change of one node: where it is and what it is replaced by."""

    file: str
    function: str  # qualified name of the outermost function or class member; "" in the module
    line: int
    lines: tuple[int, ...]  # of the innermost statement
    kind: str
    old: str
    new: str
    ordinal: int  # among mutants of a function with the same texts
    path: Way
    node: ast.AST

    @property
    def key(self) -> str:
        """Name that stays the same while the function does."""
        count = f" #{self.ordinal}" if self.ordinal else ""
        return (
            f"{Path(self.file).name}: {self.function or 'module'}: {self.old} -> {self.new}{count}"
        )

    def tree(self) -> ast.Module:
        """Return the mutated module."""
        tree = ast.parse(_text(self.file), self.file)
        *way, (field, index) = self.path
        at: ast.AST = tree
        for name, place in way:
            at = getattr(at, name) if place is None else getattr(at, name)[place]
        node = copy.deepcopy(self.node)
        if index is None:
            setattr(at, field, node)
        else:
            getattr(at, field)[index] = node
        return ast.fix_missing_locations(tree)


def mutants(files: list[Path]) -> list[Mutant]:
    """Return the mutants of files of the theory, in the order of the source."""
    types = _argument_types()
    found = []
    for file in files:
        tree = ast.parse(_text(str(file)), str(file))
        seen: dict[tuple[str, str, str], int] = {}
        for at, node, kind, new in _walk(tree, At((), "", ()), types):
            old, text = _shown(node), _shown(new)
            count = seen[at.function, old, text] = seen.get((at.function, old, text), -1) + 1
            line = getattr(node, "lineno", 0)
            found.append(
                Mutant(str(file), at.function, line, at.lines, kind, old, text, count, at.path, new)
            )
    return found


@functools.cache
def _text(file: str) -> str:
    """Return the source as it was first read: a long run doesn't notice edits."""
    return Path(file).read_text("utf-8")


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    if isinstance(node, ast.stmt):
        text = text.split(":")[0] if isinstance(node, ast.If | ast.While) else text
    return text


def _argument_types() -> dict[str, list[str]]:
    """Return the annotations of every function's positional arguments, by its bare name."""
    found = {}
    for file in sorted(THEORY.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [a for a in node.args.args if a.arg not in ("self", "cls")]
                found[node.name] = [
                    ast.unparse(a.annotation) if a.annotation else "" for a in given
                ]
    return found


class At(NamedTuple):
    """Where a node is: way from the root, outermost function, lines of its statement."""

    path: Way
    function: str
    lines: tuple[int, ...]


def _walk(
    node: ast.AST, at: At, types: dict[str, list[str]]
) -> Iterator[tuple[At, ast.AST, str, ast.AST]]:
    """Yield place, node, kind of change and changed node, of this node and all below."""
    for kind, new in _variants(node, types):
        yield at, node, kind, new
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "type_params"):
            continue
        several = isinstance(value, list)
        for index, child in enumerate(value if several else [value]):
            if not isinstance(child, ast.AST) or _left_out(child):
                continue
            function = at.function
            named = isinstance(node, ast.Module | ast.ClassDef)
            if named and isinstance(child, ast.FunctionDef | ast.ClassDef):
                function = f"{function}.{child.name}".lstrip(".")
            lines = _lines(child) if isinstance(child, ast.stmt) else at.lines
            inside = At((*at.path, (field, index if several else None)), function, lines)
            yield from _walk(child, inside, types)


def _lines(statement: ast.stmt) -> tuple[int, ...]:
    """Return the lines of a statement: of a function its body, of a loop or condition its head."""
    body = getattr(statement, "body", None)
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    if isinstance(statement, ast.FunctionDef):
        first = statement.body[0].lineno
    elif body:
        last = max(body[0].lineno - 1, first)
    return tuple(range(first, last + 1))


def _left_out(node: ast.AST) -> bool:
    """Whether a part of the source holds no formula."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in _NO_FORMULA
    if isinstance(node, ast.Assign | ast.AugAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id in ("need", "NormAndSlope"):
            return True
    if isinstance(node, ast.Call):
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        return name in _NO_FORMULA
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _variants(node: ast.AST, types: dict[str, list[str]]) -> Iterator[tuple[str, ast.AST]]:
    """Yield the changes of a node itself."""
    match node:
        case ast.BinOp(left, ast.MatMult(), right):
            yield "order", _with(node, left=right, right=left)
        case ast.BinOp(op=op) if type(op) in _BINARY:
            yield "operator", _with(node, op=_BINARY[type(op)]())
        case ast.AugAssign(op=op) if type(op) in _BINARY:
            yield "operator", _with(node, op=_BINARY[type(op)]())
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield "sign", operand
        case ast.BoolOp(op=op):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "comparison", _with(node, op=other)
        case ast.Compare(ops=ops):
            for k, op in enumerate(ops):
                changed = [*ops]
                changed[k] = _COMPARED[type(op)]()
                yield "comparison", _with(node, ops=changed)
        case ast.Constant(bool() as value):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int() as value):
            yield "integer", ast.Constant(value + 1)
        case ast.Constant(float() as value) if value == 0 or _FLOATS[0] <= value <= _FLOATS[1]:
            yield "constant", ast.Constant(1.5 * value if value else 1.0)
        case ast.Attribute(attr="T", value=value):
            yield "index", value
        case ast.Subscript(slice=ast.Tuple([first, second]), ctx=ast.Load()):
            if ast.dump(first) != ast.dump(second):
                yield "index", _with(node, slice=ast.Tuple([second, first], ast.Load()))
        case ast.Call():
            yield from _swapped_arguments(node, types)
        case ast.If() | ast.IfExp() | ast.While():
            bare = ast.Name, ast.Attribute, ast.Call, ast.NamedExpr
            if isinstance(node.test, bare):
                yield "comparison", _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _swapped_arguments(
    node: ast.Call, types: dict[str, list[str]]
) -> Iterator[tuple[str, ast.AST]]:
    """Yield the call with two neighbouring arguments of the same type swapped."""
    numpy = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "np"
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    for k in range(len(node.args) - 1):
        one, other = node.args[k : k + 2]
        if isinstance(one, ast.Starred) or isinstance(other, ast.Starred):
            continue
        if ast.dump(one) == ast.dump(other):
            continue
        if numpy:
            fits = name in _ORDERED and k == _ORDERED[name]
        else:
            known = types.get(name, [])
            fits = k + 1 < len(known) and known[k] == known[k + 1]
        if fits:
            yield "order", _with(node, args=[*node.args[:k], other, one, *node.args[k + 2 :]])


def _with(node: ast.AST, **changed: object) -> ast.AST:
    """Return a copy of a node with other fields."""
    fields = dict(ast.iter_fields(node)) | changed
    new = type(node)(**fields)
    return ast.copy_location(new, node)
