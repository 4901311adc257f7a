"""Measure the import graph and the functions of quadmodel/; write or check the graph in the docs.

A module stands for a file or a subpackage of quadmodel/; its layer lies above all that it imports,
the lowest is 1.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PAGE = Path("docs/architecture.md")
TREES = (".ci", "quadmodel", "tests", "benchmarks", "derivations", "docs")
BEGIN, END = "<!-- import graph: python .ci/architecture.py --write -->\n", "<!-- end -->"
MOST = {"modules": 20, "layers": 7, "imports": 75, "arguments": 12, "lines of a function": 80}


def modules() -> dict[str, set[str]]:
    """Return which modules each module imports, type-only imports included."""
    graph = grimp.build_graph("quadmodel", exclude_type_checking_imports=False)
    found: dict[str, set[str]] = {}
    for module in sorted(graph.modules - {"quadmodel"}):
        part = module.split(".")[1]
        targets = (name.split(".") for name in graph.find_modules_directly_imported_by(module))
        found.setdefault(part, set()).update(t[1] for t in targets if len(t) > 1 and t[1] != part)
    return found


def check_files() -> None:
    """Raise CycleError where files import each other in a circle."""
    graph = grimp.build_graph("quadmodel", exclude_type_checking_imports=False)
    TopologicalSorter(
        {m: graph.find_modules_directly_imported_by(m) - {m} for m in graph.modules}
    ).prepare()


def layers(found: dict[str, set[str]]) -> dict[str, int]:
    """Return the layer of every module; a CycleError says which import each other."""
    layer: dict[str, int] = {}
    for part in TopologicalSorter(found).static_order():
        layer[part] = 1 + max((layer[below] for below in found[part]), default=0)
    return layer


def table(found: dict[str, set[str]], layer: dict[str, int]) -> str:
    """Return the graph as a table, top layer first."""
    lines = ["| layer | module | imports |", "|---|---|---|"]
    for part in sorted(found, key=lambda r: (-layer[r], r)):
        below = sorted(found[part], key=lambda r: (-layer[r], r))
        lines.append(f"| {layer[part]} | `{part}` | {', '.join(below) or 'nothing'} |")
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


def missing_places() -> list[str]:
    """Return what the pages name, as `file.py` or `file.py: name`, that isn't there."""
    known = [path for top in TREES for path in Path(top).rglob("*.*")] + [*Path().glob("*.md")]
    missing = []
    for page in (PAGE, Path("CONTRIBUTING.md")):
        for place in re.findall(r"`([\w./-]+\.(?:py|md|pyi)(?:: \w+)?)", page.read_text("utf-8")):
            file, _, name = place.partition(": ")
            files = [p for p in known if f"/{p}".endswith(f"/{file}") or str(p) == file]
            text = "".join(p.read_text("utf-8") for p in files)
            if not files or (
                name and not re.search(rf"\b(def|class) {name}\b|^{name} = ", text, re.M)
            ):
                missing.append(f"{page}: {place}")
    return missing


def main() -> None:
    """Print the measures; fail where they are passed or the page says something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the graph into {PAGE}")
    write = parser.parse_args().write
    check_files()
    found = modules()
    layer = layers(found)
    each = list(functions())
    measured = {
        "modules": len(found),
        "layers": max(layer.values()),
        "imports": sum(map(len, found.values())),
        "arguments": max(each)[0],
        "lines of a function": max(lines for _, lines, _ in each),
    }
    print(", ".join(f"{count} {name} (at most {MOST[name]})" for name, count in measured.items()))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    shown, after = rest.split(END, 1)
    wanted = table(found, layer)
    if write:
        PAGE.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
    elif shown != wanted:
        raise SystemExit(f"{PAGE} shows another graph: run python .ci/architecture.py --write")
    gone = missing_places()
    if gone:
        raise SystemExit("named but not there: " + ", ".join(gone))
    passed = [name for name in MOST if measured[name] > MOST[name]]
    if passed:
        for count, lines, place in each:
            if count > MOST["arguments"] or lines > MOST["lines of a function"]:
                print(f"{place}: {count} arguments, {lines} lines")
        raise SystemExit(f"too many {', '.join(passed)}")


if __name__ == "__main__":
    main()
