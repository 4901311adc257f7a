"""Forked processes: a child does one piece of work and sends back what it found."""

from __future__ import annotations

import os
import pickle
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

ENDLESS = "endless"
# Address space of a child: a mutant may ask for any size.
_MEMORY = 24 * 2**30


class TimeUp(BaseException):
    """Raised in a child that has used up its processor time."""

    raised = False


def limit(seconds: float) -> None:
    """Raise TimeUp after so much more processor time; 0 takes the limit away."""

    def stop(*_: object) -> NoReturn:
        TimeUp.raised = True  # pytest takes the exception for a failure
        raise TimeUp

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def in_children(
    work: list[Callable[[], Any]], jobs: int, seconds: float
) -> Iterator[tuple[int, Any]]:
    """Yield number and result of every piece of work as it ends; ENDLESS after that much time.

    The result is None where a child dies.
    """
    waiting = list(enumerate(work))[::-1]
    running: dict[int, tuple[int, int, bytearray, float]] = {}
    selector = selectors.DefaultSelector()
    while waiting or running:
        while waiting and len(running) < jobs:
            number, piece = waiting.pop()
            receiving, pid = _fork(piece, seconds)
            selector.register(receiving, selectors.EVENT_READ)
            running[receiving] = number, pid, bytearray(), time.monotonic()
        for key, _ in selector.select(1.0):
            receiving = key.fd
            number, pid, data, _began = running[receiving]
            more = os.read(receiving, 2**20)
            if more:
                data += more
                continue
            selector.unregister(receiving)
            os.close(receiving)
            del running[receiving]
            _, status = os.waitpid(pid, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (
                signal.SIGXCPU,
                signal.SIGKILL,
            )
            yield number, (pickle.loads(data) if data else ENDLESS if killed else None)
        for _number, pid, _data, began in running.values():
            # A child that waits for itself uses no processor time.
            if time.monotonic() - began > 10 * seconds + 60:
                os.kill(pid, signal.SIGKILL)


def _fork(piece: Callable[[], Any], seconds: float) -> tuple[int, int]:
    receiving, sending = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(sending)
        return receiving, pid
    try:
        os.close(receiving)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        empty = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(empty, stream)
        try:
            result = piece()
        except TimeUp:
            result = ENDLESS
        data = pickle.dumps(result)
        while data:
            data = data[os.write(sending, data) :]
    except BaseException:  # a child never goes on with its parent's work
        if path := os.environ.get("MUTATIONS_LOG"):
            with open(path, "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
    finally:
        os._exit(0)
