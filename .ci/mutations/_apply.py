"""Put a mutant in place of the loaded code, so that every importer of it sees it."""

from __future__ import annotations

import ast
import gc
import sys
from pathlib import Path
from types import CodeType, FunctionType

from _find import THEORY, Mutant

Functions = dict[tuple[str, str], list[FunctionType]]


def functions() -> Functions:
    """Return the loaded functions of the theory, by file and qualified name."""
    found: Functions = {}
    for item in gc.get_objects():
        if type(item) is FunctionType:  # isinstance() would ask proxies, which may warn
            file = item.__code__.co_filename
            at = file.find(f"/{THEORY}/")
            if at >= 0:
                found.setdefault((file[at + 1 :], item.__qualname__), []).append(item)
    return found


def apply(mutant: Mutant, loaded: Functions) -> None:
    """Change the running process; there is no way back."""
    tree = mutant.tree()
    module = sys.modules[".".join(Path(mutant.file).with_suffix("").parts)]
    known = loaded.get((mutant.file, mutant.function), [])
    if not known:
        _set_names(mutant, tree, module.__dict__)
        return
    codes = _codes(compile(tree, known[0].__code__.co_filename, "exec"))
    for function in known:
        function.__code__ = codes[mutant.function]
    definition = _definition(tree, mutant.function)
    for function in known:
        space = function.__globals__
        defaults = [_value(d, space) for d in definition.args.defaults]
        function.__defaults__ = tuple(defaults) or None
        named = zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
        function.__kwdefaults__ = {a.arg: _value(d, space) for a, d in named if d is not None}


def _codes(code: CodeType, prefix: str = "") -> dict[str, CodeType]:
    """Return the code objects of functions and class members by qualified name."""
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            name = f"{prefix}{inner.co_name}"
            found[name] = inner
            if not inner.co_flags & 1:  # a class: its members are functions of their own
                found |= _codes(inner, f"{name}.")
    return found


def _definition(tree: ast.Module, function: str) -> ast.FunctionDef:
    body: list[ast.stmt] = tree.body
    for name in function.split("."):
        found = next(n for n in body if getattr(n, "name", None) == name)
        body = found.body  # type: ignore[attr-defined]
    assert isinstance(found, ast.FunctionDef)
    return found


def _value(expression: ast.expr, space: dict[str, object]) -> object:
    return eval(compile(ast.Expression(expression), "default", "eval"), space)


def _set_names(mutant: Mutant, tree: ast.Module, space: dict[str, object]) -> None:
    """Assign a module's constant, or a dataclass's default, anew wherever it was imported to."""
    statement = tree.body[mutant.path[0][1] or 0]
    if isinstance(statement, ast.ClassDef):
        inner = statement.body[mutant.path[1][1] or 0]
        made = space[statement.name].__init__  # type: ignore[misc]
        assert isinstance(inner, ast.AnnAssign)
        assert inner.value is not None
        made.__defaults__ = (*made.__defaults__[:-1], _value(inner.value, space))
        return
    before = dict(space)
    exec(compile(ast.Module([statement], []), "constant", "exec"), space)
    changed = [name for name in space if name not in before or before[name] is not space[name]]
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name in changed:
            if name in names and names[name] is before.get(name) and names is not space:
                names[name] = space[name]
