"""validate() with simulations that are remembered, since they don't know the theory."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from _apply import Functions, apply
from _children import TimeUp, limit
from _find import Mutant
from _tests import Trace
from scipy.special import ndtri

# Arguments that results don't depend on.
_NO_KEY = {"pool", "advance", "threads", "progress", "show", "what"}
_SIMULATING = ("quadmodel.simulation.", "quadmodel.large_p.")


class Memory:
    """Results of simulations by their arguments, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        sources = [p for p in sorted(Path("quadmodel").rglob("*.py")) if "/theory/" not in str(p)]
        kept = [p for p in sources if "/studies/" not in str(p) and "/symbolic/" not in str(p)]
        text = b"".join(p.read_bytes() for p in kept)
        self._sources = hashlib.sha256(text).hexdigest()
        self._known: dict[str, Any] = {}
        self.missed = 0

    def remembering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that simulates once per arguments."""

        def remembered(*arguments: Any, **options: Any) -> Any:
            given = [a for a in arguments if type(a).__name__ != "Workers"]
            named = {k: v for k, v in sorted(options.items()) if k not in _NO_KEY}
            text = pickle.dumps((self._sources, function.__qualname__, given, named))
            key = hashlib.sha256(text).hexdigest()
            file = self._folder / f"{key}.pickle"
            if key not in self._known:
                if file.exists():
                    self._known[key] = pickle.loads(file.read_bytes())
                else:
                    self.missed += 1
                    self._known[key] = function(*arguments, **options)
                    if self.keep:
                        file.write_bytes(pickle.dumps(self._known[key]))
            return self._known[key]

        return remembered

    keep = True

    def install(self) -> None:
        """Let the studies remember what they simulate."""
        for name, module in list(sys.modules.items()):
            if not name.startswith("quadmodel.studies"):
                continue
            for attribute, value in list(vars(module).items()):
                simulates = isinstance(value, FunctionType) and value.__module__.startswith(
                    _SIMULATING
                )
                if simulates and not attribute.startswith("_"):
                    setattr(module, attribute, self.remembering(value))


class Validation:
    """The suite of validate(), one part at a time."""

    def __init__(self, memory: Memory, seed: int) -> None:
        from quadmodel.studies import validation

        self._parts = validation.SUITE
        self._memory = memory
        memory.install()
        self._efforts = {
            "quick": replace(validation._QUICK, seed=seed),
            "full": replace(validation._FULL, seed=seed),
        }
        self.lines: dict[tuple[str, str], set[tuple[str, int]]] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._rows: dict[str, int] = {}

    def right(self, which: str) -> list[tuple[str, float]]:
        """Run all parts with the right theory; return the rows and their z."""
        import time

        found = []
        for part in self._parts:
            rows = list(part(self._efforts[which]))
            found += [(r.name, (r.measured - r.predicted) / r.standard_error) for r in rows]
            trace = Trace()
            began = time.process_time()
            trace.start()
            list(part(self._efforts[which]))
            self.lines[which, part.__name__] = trace.stop()
            self._seconds[which, part.__name__] = time.process_time() - began
        self._rows[which] = len(found)
        return found

    def ask(self, mutant: Mutant, which: str, everything: bool, loaded: Functions) -> str | None:
        """Run the parts that run a mutant's line, in a child; return the row that differs."""
        apply(mutant, loaded)
        self._memory.keep = False
        bound = float(-ndtri(1e-6 / (2 * self._rows[which])))
        lines = {(mutant.file, line) for line in mutant.lines}
        asked = [
            part
            for part in self._parts
            if everything or not lines.isdisjoint(self.lines[which, part.__name__])
        ]
        for part in sorted(asked, key=lambda p: self._seconds[which, p.__name__]):
            limit(30 + 20 * self._seconds[which, part.__name__])
            try:
                with np.errstate(all="ignore"):
                    for row in part(self._efforts[which]):
                        z = (row.measured - row.predicted) / row.standard_error
                        if not abs(z) <= bound:
                            return f"{row.name}: z = {z:.3g}"
            except TimeUp:
                return f"endless: {part.__name__}"
            except Exception as error:
                return f"{type(error).__name__} in {part.__name__}"
            finally:
                limit(0)
        return None
