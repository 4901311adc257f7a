"""Work in the background of which only what was asked for last matters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
# Whether what is worked on is no longer wanted, since something else is.
Stale = Callable[[], bool]


class Latest(Generic[T]):
    """Does one piece of work at a time, on a thread that lives while there is something to do."""

    def __init__(self, work: Callable[[T, Stale], None]) -> None:
        """Take what does the work, given what is wanted and a function that says it is stale."""
        self._work = work
        self._wanted: list[T] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, wanted: T) -> None:
        """Ask for something, in place of what was asked for and has not begun."""
        with self._lock:
            self._wanted = [wanted]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="explorer")
                self._thread.daemon = True
                self._thread.start()

    def cancel(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._wanted = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing to do; whether that came in time."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self._thread is None

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._wanted:
                        self._thread = None
                        return
                    wanted = self._wanted.pop()
                self._work(wanted, self._stale)
        except BaseException:
            with self._lock:
                self._thread = None
            raise

    def _stale(self) -> bool:
        return bool(self._wanted)
