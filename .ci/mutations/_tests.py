"""What the test suite says to a mutant: the tests that cover its line, the fastest first."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from _apply import Functions, apply
from _children import ENDLESS, TimeUp, in_children, limit
from _find import THEORY, Mutant

# Not asked: that the committed file is the derived one says nothing about what is derived.
_NOT_ASKED = "test_the_committed_module_is_the_derived_one"
UNDECIDED = "undecided"


@dataclass
class Covered:
    """What a test ran through: lines by file, in its own call and in the fixtures it set up."""

    seconds: float = 0.0
    call: set[tuple[str, int]] = field(default_factory=set)
    setup: set[tuple[str, int]] = field(default_factory=set)


class Trace:
    """Records the lines of the theory that run, in all threads."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self._names: dict[str, str | None] = {}

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        self.lines.add((self._names[frame.f_code.co_filename] or "", frame.f_lineno))
        return self._line

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace frames of the theory's files only."""
        file = frame.f_code.co_filename
        if file not in self._names:
            at = file.find(f"/{THEORY}/")
            self._names[file] = file[at + 1 :] if at >= 0 else None
        if self._names[file] is None:
            return None
        return self._line(frame, event, argument)

    def start(self) -> None:
        """Begin."""
        self.lines = set()
        threading.settrace(self)
        sys.settrace(self)

    def stop(self) -> set[tuple[str, int]]:
        """End, and return the lines."""
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        return self.lines


class Suite:
    """A pytest plugin that collects, and then hands over instead of running."""

    def __init__(self, then: Callable[[Suite], None]) -> None:
        self._then = then
        self.failed: str | None = None
        self._trace: Trace | None = None
        self._now = Covered()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Let examples be the same every time, before the tests are imported."""
        import hypothesis

        settings = hypothesis.settings
        settings.register_profile("mutations", derandomize=True, database=None, deadline=None)
        settings.load_profile("mutations")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Take the collected tests."""
        self.items = [item for item in session.items if _NOT_ASKED not in item.nodeid]
        self._then(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notice a failure."""
        if report.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self) -> Any:
        """Record lines of fixtures."""
        yield from self._recorded(self._now.setup)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Any:
        """Record lines of the test itself."""
        yield from self._recorded(self._now.call)

    def _recorded(self, into: set[tuple[str, int]]) -> Any:
        if self._trace is None:
            return (yield)
        self._trace.start()
        try:
            return (yield)
        finally:
            into |= self._trace.stop()

    def run(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Run a test; return whether it passed."""
        self.failed = None
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        return self.failed is None

    # ---- coverage

    def record(self, items: list[pytest.Item]) -> dict[str, Covered]:
        """Run tests, in a child, and return what each ran through."""
        self._trace = Trace()
        found = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            self._now = Covered()
            began = time.process_time()
            passed = self.run(item, following)
            self._now.seconds = time.process_time() - began
            if passed:
                found[item.nodeid] = self._now
        return found


def shared_fixtures(item: pytest.Item) -> set[str]:
    """Return the names of fixtures that a test shares with others of its file."""
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return set()
    return {
        name
        for name, defs in info.name2fixturedefs.items()
        if any(d.scope in ("module", "class", "package") for d in defs)
    }


def coverage(suite: Suite, cache: Path, jobs: int) -> dict[str, Covered]:
    """Return what every test runs through, kept while neither it nor the theory changes."""
    theory = b"".join(p.read_bytes() for p in sorted(THEORY.glob("*.py")))
    by_file: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in suite.items:
        by_file[item.path].append(item)
    found: dict[str, Covered] = {}
    pieces: list[tuple[Path, list[pytest.Item]]] = []
    for path, items in by_file.items():
        kept = _kept(cache, path, theory)
        if kept.exists():
            found |= _load(kept)
        else:
            pieces.append((kept, items))
    cache.mkdir(parents=True, exist_ok=True)
    work = [lambda items=items: suite.record(items) for _, items in pieces]
    for number, result in in_children(work, jobs, 3600):
        kept, items = pieces[number]
        if not isinstance(result, dict):
            print(f"not recorded: {items[0].path}", flush=True)
            continue
        lost = [item.nodeid for item in items if item.nodeid not in result]
        if lost:
            print(f"fail or are not recorded: {', '.join(lost)}", flush=True)
        _save(kept, result)
        found |= result
        print(f"recorded {items[0].path.name}", flush=True)
    # Whoever shares a fixture depends on the lines that set it up.
    for items in by_file.values():
        of_fixture: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for item in items:
            for name in shared_fixtures(item):
                of_fixture[name] |= found.get(item.nodeid, Covered()).setup
        for item in items:
            if item.nodeid in found:
                for name in shared_fixtures(item):
                    found[item.nodeid].setup |= of_fixture[name]
    return found


def _kept(cache: Path, path: Path, theory: bytes) -> Path:
    text = theory + path.read_bytes() + str(path.name).encode()
    return cache / f"{path.stem}-{hashlib.sha256(text).hexdigest()[:16]}.json.gz"


def _load(path: Path) -> dict[str, Covered]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        known = json.load(file)
    return {
        name: Covered(seconds, {(f, n) for f, n in call}, {(f, n) for f, n in setup})
        for name, (seconds, call, setup) in known.items()
    }


def _save(path: Path, found: dict[str, Covered]) -> None:
    text = {n: (c.seconds, sorted(c.call), sorted(c.setup)) for n, c in found.items()}
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(text, file)


def plan(
    suite: Suite, covered: dict[str, Covered], mutant: Mutant, everything: bool
) -> list[pytest.Item]:
    """Return the tests that run through a mutant's statement, the fastest first.

    Tests that share a fixture stay together. A constant of a module is nobody's line: all tests of
    the file that run at all are asked.
    """
    lines = {(mutant.file, line) for line in mutant.lines}
    groups: dict[Any, list[pytest.Item]] = defaultdict(list)
    for item in suite.items:
        ran = covered.get(item.nodeid)
        if ran is None:
            continue
        touched = ran.call | ran.setup
        if everything:
            asked = any(file == mutant.file for file, _ in touched)
        else:
            asked = not lines.isdisjoint(touched)
        if asked:
            groups[str(item.path) if shared_fixtures(item) else item.nodeid].append(item)
    return [
        item
        for group in sorted(
            groups.values(), key=lambda g: sum(covered[i.nodeid].seconds for i in g)
        )
        for item in group
    ]


def ask(
    suite: Suite,
    covered: dict[str, Covered],
    mutant: Mutant,
    items: list[pytest.Item],
    loaded: Functions,
    seconds: float,
) -> str | None:
    """Run tests with a mutant, in a child; return which one fails, or None.

    UNDECIDED where tests are left when so much processor time has passed.
    """
    apply(mutant, loaded)
    until = time.process_time() + seconds
    for item, following in zip(items, [*items[1:], None], strict=True):
        if time.process_time() > until:
            return UNDECIDED
        try:
            limit(10 + 10 * covered[item.nodeid].seconds)
            passed = suite.run(item, following)
        except TimeUp:
            pass
        finally:
            limit(0)
        if TimeUp.raised:
            return f"{ENDLESS}: {item.nodeid}"
        if not passed:
            return str(item.nodeid)
    return None


def first(items: list[pytest.Item], names: list[str]) -> list[pytest.Item]:
    """Return tests in another order: those called `names` before all others."""
    ahead = [item for item in items if item.nodeid in names]
    return ahead + [item for item in items if item.nodeid not in names]
