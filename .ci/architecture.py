"""Measure the import graph and the functions of quadmodel/; write or check the graph in the docs.

A room is a file or folder of quadmodel/; a floor lies above all that it imports, the ground is 1.
"""

import argparse
import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PAGE = Path("docs/architecture.md")
BEGIN, END = "<!-- import graph: python .ci/architecture.py --write -->\n", "<!-- end -->"
MOST = {"rooms": 20, "floors": 7, "arrows": 70, "arguments": 12, "lines of a function": 80}


def rooms() -> dict[str, set[str]]:
    """Return which rooms each room imports, type-only imports included."""
    graph = grimp.build_graph("quadmodel", exclude_type_checking_imports=False)
    found: dict[str, set[str]] = {}
    for module in sorted(graph.modules - {"quadmodel"}):
        room = module.split(".")[1]
        targets = (name.split(".") for name in graph.find_modules_directly_imported_by(module))
        found.setdefault(room, set()).update(t[1] for t in targets if len(t) > 1 and t[1] != room)
    return found


def check_files() -> None:
    """Raise CycleError where files import each other in a circle."""
    graph = grimp.build_graph("quadmodel", exclude_type_checking_imports=False)
    TopologicalSorter(
        {m: graph.find_modules_directly_imported_by(m) - {m} for m in graph.modules}
    ).prepare()


def floors(found: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of every room; a CycleError says which import each other."""
    floor: dict[str, int] = {}
    for room in TopologicalSorter(found).static_order():
        floor[room] = 1 + max((floor[below] for below in found[room]), default=0)
    return floor


def table(found: dict[str, set[str]], floor: dict[str, int]) -> str:
    """Return the graph as a table, top floor first."""
    lines = ["| floor | room | imports |", "|---|---|---|"]
    for room in sorted(found, key=lambda r: (-floor[r], r)):
        below = sorted(found[room], key=lambda r: (-floor[r], r))
        lines.append(f"| {floor[room]} | `{room}` | {', '.join(below) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def functions() -> Iterator[tuple[int, int, str]]:
    """Yield arguments, lines of the body without its docstring, and place of every function."""
    for path in sorted(Path("quadmodel").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            given = node.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
            body = node.body[ast.get_docstring(node) is not None :]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            yield count, lines, f"{path}:{node.lineno} {node.name}"


def main() -> None:
    """Print the measures; fail where they are passed or the page says something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the graph into {PAGE}")
    write = parser.parse_args().write
    check_files()
    found = rooms()
    floor = floors(found)
    each = list(functions())
    measured = {
        "rooms": len(found),
        "floors": max(floor.values()),
        "arrows": sum(map(len, found.values())),
        "arguments": max(each)[0],
        "lines of a function": max(lines for _, lines, _ in each),
    }
    print(", ".join(f"{count} {name} (at most {MOST[name]})" for name, count in measured.items()))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    shown, after = rest.split(END, 1)
    wanted = table(found, floor)
    if write:
        PAGE.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
    elif shown != wanted:
        raise SystemExit(f"{PAGE} shows another graph: run python .ci/architecture.py --write")
    passed = [name for name in MOST if measured[name] > MOST[name]]
    if passed:
        for count, lines, place in each:
            if count > MOST["arguments"] or lines > MOST["lines of a function"]:
                print(f"{place}: {count} arguments, {lines} lines")
        raise SystemExit(f"too many {', '.join(passed)}")


if __name__ == "__main__":
    main()
