"""Flip every sign, operator, integer and index of the theory; table what notices.

    python .ci/mutations                      # tests, then validate() quick and full, all files
    python .ci/mutations --checks tests --files _noise.py --share 0.1 --seed 3
    python .ci/mutations --table              # only print what is known, with the survivors' names

Results are appended to a file: a run that was cut off goes on, and only mutants of functions that
have changed since are tried again (`--again`: survivors too, after tests or rows were added).
Mutants that nothing can notice stand in `explained.txt`, each under its reason (after `*`: all
whose names hold that text). They are tried with `--explained` only, and no part of the shares.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from _children import ENDLESS, in_children  # noqa: E402
from _find import THEORY, Mutant, mutants  # noqa: E402
from _tests import UNDECIDED  # noqa: E402

CHECKS = ("tests", "quick", "full")
# Marks of mutants that were caught while their function was what it is; see `--keep`.
CAUGHT = HERE / "caught.txt"
# Processor seconds of a mutant.
_LIMIT = 1800.0


class Results:
    """What caught each mutant, by check: a file of lines that is only ever appended to."""

    def __init__(self, path: Path, found: list[Mutant]) -> None:
        self._path = path
        self._digests = _digests(found)
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        kept = set(CAUGHT.read_text("utf-8").split()) if CAUGHT.exists() else set()
        for mutant in found:
            for check in CHECKS:
                if self._mark(mutant.key, check) in kept:
                    self.known[mutant.key, check] = {"caught": "before"}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                if row["digest"] == self._digests.get(row["mutant"]):
                    self.known[row["mutant"], row["check"]] = row

    def add(self, mutant: Mutant, check: str, caught: str | None, seconds: float) -> None:
        """Note what caught a mutant; None if it survived."""
        row = {
            "mutant": mutant.key,
            "check": check,
            "caught": caught,
            "seconds": round(seconds, 2),
            "digest": self._digests[mutant.key],
        }
        self.known[mutant.key, check] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _mark(self, key: str, check: str) -> str:
        """Return what stands for a mutant of the present function in the file that is kept."""
        text = f"{key}\0{self._digests[key]}\0{check}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def keep(self) -> None:
        """Write down which mutants are caught, for other machines."""
        rows = [k for k, row in self.known.items() if row["caught"] is not None]
        CAUGHT.write_text("".join(f"{m}\n" for m in sorted(self._mark(*k) for k in rows)), "utf-8")

    def open(self, found: list[Mutant], check: str, again: bool, everything: bool) -> list[Mutant]:
        """Return the mutants that are still to be tried."""
        explained = {} if everything else read_explained()
        rows = [(m, self.known.get((m.key, check))) for m in found if not reason_of(m, explained)]
        return [m for m, row in rows if row is None or (again and row["caught"] is None)]


def _digests(found: list[Mutant]) -> dict[str, str]:
    """Return a digest of the function of each mutant."""
    text: dict[tuple[str, str], str] = {}
    for file in {m.file for m in found}:
        tree = ast.parse(Path(file).read_text("utf-8"))
        for node in ast.walk(tree):
            members = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            for member in members:
                name = getattr(member, "name", "")
                if name:
                    text[file, owner + name] = ast.unparse(member)
    return {
        m.key: hashlib.sha256(text.get((m.file, m.function), m.old).encode()).hexdigest()[:12]
        for m in found
    }


def try_all(
    found: list[Mutant],
    check: str,
    ask: Callable[[Mutant], str | None],
    results: Results,
    options: argparse.Namespace,
) -> None:
    """Try mutants, each in a child of its own, and note what caught them."""

    def piece(mutant: Mutant) -> tuple[str | None, float]:
        start = time.process_time()
        return ask(mutant), time.process_time() - start

    work = [partial(piece, mutant) for mutant in found]
    start = time.monotonic()
    gc.collect()
    gc.freeze()  # else every child would copy all of its parent's memory
    for done, (number, result) in enumerate(in_children(work, options.jobs, _LIMIT), 1):
        mutant = found[number]
        if result is None:
            caught, seconds = "the process died", 0.0
        elif result == ENDLESS:
            caught, seconds = ENDLESS, _LIMIT
        else:
            caught, seconds = result
        if caught == UNDECIDED:
            print(f"undecided {mutant.key}", flush=True)
            continue
        results.add(mutant, check, caught, seconds)
        if caught is None or done % 50 == 0:
            passed = time.monotonic() - start
            state = f"survived {mutant.key}" if caught is None else ""
            print(f"{check} {done}/{len(found)} {passed:.0f} s {state}", flush=True)


def ask_tests(found: list[Mutant], results: Results, options: argparse.Namespace) -> None:
    """Collect the test suite and let it judge."""
    import pytest
    from _apply import functions
    from _tests import Suite, ask, coverage, first, plan

    def then(suite: Suite) -> None:
        _warm()
        covered = coverage(suite, options.results.parent / "coverage", options.jobs)
        plans = {m.key: plan(suite, covered, m, _everywhere(m)) for m in found}
        order = sorted(found, key=lambda m: (not plans[m.key], m.file, m.line))
        loaded = functions()

        def judge(mutant: Mutant) -> str | None:
            # What caught the mutants next to it is likely to catch this one.
            near = [m.key for m in order if m.function == mutant.function and m.file == mutant.file]
            rows = [results.known.get((key, "tests")) for key in near]
            names = [row["caught"] for row in rows if row and row["caught"]]
            tests = first(plans[mutant.key], names[-3:])
            return ask(suite, covered, mutant, tests, loaded, options.seconds)

        try_all(order, "tests", judge, results, options)

    given = options.tests or ["tests", "quadmodel"]
    pytest.main(["-q", "-p", "no:cacheprovider", *given], plugins=[Suite(then)])


def ask_validation(
    found: list[Mutant], check: str, results: Results, options: argparse.Namespace
) -> None:
    """Let validate() judge, with simulations that are done once."""
    from _apply import functions
    from _memory import Memory, Validation

    memory = Memory(options.results.parent / "simulations")
    validation = Validation(memory, options.seed_of_validation)
    right = validation.right(check)
    worst = max(abs(z) for _, z in right)
    print(f"{check}: {len(right)} rows, worst |z| of the right theory {worst:.2f}", flush=True)
    loaded = functions()

    def judge(mutant: Mutant) -> str | None:
        return validation.ask(mutant, check, _everywhere(mutant), loaded)

    try_all(found, check, judge, results, options)


def _everywhere(mutant: Mutant) -> bool:
    """Whether a mutant is of a constant, whose uses are not where it stands."""
    return not mutant.function or mutant.function[-1] == "." or _is_class(mutant.function)


def _is_class(function: str) -> bool:
    return function.rsplit(".", 1)[-1].lstrip("_")[:1].isupper()


def _warm() -> None:
    """Load all modules and compiled loops, so that children share them."""
    import importlib
    import pkgutil

    import quadmodel
    from quadmodel.studies import validation

    for module in pkgutil.walk_packages(quadmodel.__path__, "quadmodel."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    least = validation.Effort(40, 10, 2, 64, 1, 0)
    for part in validation.SUITE:
        list(part(least))


def table(found: list[Mutant], results: Results, named: bool) -> str:
    """Return shares caught per file and check, of those that are not explained, and the others."""
    explained = read_explained()
    lines = [f"{'file':<28}{'mutants':>8}{'explained':>10}" + "".join(f"{c:>9}" for c in CHECKS)]
    for file in [*sorted({m.file for m in found}), "all"]:
        every = [m for m in found if file in (m.file, "all")]
        cells, expected = [], [m for m in every if not reason_of(m, explained)]
        for check in CHECKS:
            rows = [results.known.get((m.key, check)) for m in expected]
            tried = [r for r in rows if r is not None]
            caught = sum(r["caught"] is not None for r in tried)
            share = f"{100 * caught / len(tried):.1f}%" if tried else "-"
            cells.append(f"{share:>9}" if len(tried) == len(rows) else f"{share + '*':>9}")
        counts = f"{len(every):>8}{len(every) - len(expected):>10}"
        lines.append(f"{Path(file).name:<28}{counts}" + "".join(cells))
    lines.append("(*: of those that were tried)")
    for check in CHECKS if named else ():
        rows = [(m, results.known.get((m.key, check))) for m in found]
        if all(row is None for _, row in rows):
            continue
        expected = [(m, row) for m, row in rows if not reason_of(m, explained)]
        caught = [m for m, row in rows if row and row["caught"] and reason_of(m, explained)]
        survive = [m for m, row in expected if row and row["caught"] is None]
        undecided = [m for m, row in expected if row is None]
        for what, some in (
            ("survive", survive), ("undecided", undecided), ("caught, though explained", caught)
        ):  # fmt: skip
            lines.append(f"\n{check}: {len(some)} {what}")
            lines += [f"  {m.line:>4} {m.key}" for m in some]
    return "\n".join(lines)


def read_explained() -> dict[str, str]:
    """Return the reasons of mutants, by their names or, after `* `, by what these hold."""
    reasons, reason = {}, ""
    path = HERE / "explained.txt"
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            reasons[line.strip()] = reason
    return reasons


def reason_of(mutant: Mutant, explained: dict[str, str]) -> str:
    """Return why nothing can notice a mutant; nothing where it should be noticed."""
    if mutant.key in explained:
        return explained[mutant.key]
    texts = (text for text in explained if text.startswith("* "))
    return next((explained[text] for text in texts if text[2:] in mutant.key), "")


def main() -> None:
    """Try mutants and print the table."""
    parser = argparse.ArgumentParser(
        prog="python .ci/mutations", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--files", nargs="+", default=[], help="names of files; all by default")
    parser.add_argument("--checks", nargs="+", default=CHECKS, choices=CHECKS)
    parser.add_argument("--share", type=float, default=1.0, help="part of the mutants, at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--seed-of-validation", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--tests", nargs="+", help="paths of tests; all by default")
    parser.add_argument(
        "--seconds", type=float, default=_LIMIT, help="of tests per mutant; then it stays open"
    )
    parser.add_argument("--again", action="store_true", help="try survivors again")
    parser.add_argument("--explained", action="store_true", help="try what is explained, too")
    parser.add_argument("--keep", action="store_true", help="write caught.txt, to be committed")
    parser.add_argument("--table", action="store_true", help="try nothing")
    parser.add_argument("--only", default="", help="mutants whose name holds this text")
    parser.add_argument("--results", type=Path, default=Path("mutations/results.jsonl"))
    options = parser.parse_args()
    everything = mutants(sorted(THEORY.glob("*.py")))
    wanted: Iterable[Mutant] = everything
    if options.files:
        wanted = [m for m in everything if Path(m.file).name in options.files]
    chosen = [m for m in wanted if options.only in m.key]
    if options.share < 1:
        count = round(options.share * len(chosen))
        chosen = random.Random(options.seed).sample(chosen, count)
    results = Results(options.results, everything)
    for check in () if options.table else options.checks:
        rest = results.open(chosen, check, options.again, options.explained)
        print(f"{check}: {len(rest)} mutants to try, {len(chosen) - len(rest)} known", flush=True)
        if rest and check == "tests":
            ask_tests(rest, results, options)
        elif rest:
            ask_validation(rest, check, results, options)
    if options.keep:
        results.keep()
    print(table(chosen, results, named=True))


if __name__ == "__main__":
    main()
