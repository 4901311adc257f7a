"""Kill sweeps, fill their disk, take their workers: they must end with the same bits.

A maintainer's command, not in the gate: python .ci/kills.py [TRIAL ...] [--kills N]. Prints a line
per trial, and exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, Timer

import numpy as np
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError

ENSEMBLE = qm.Ensemble(30, 60)


def diagram(**running: object) -> xr.Dataset:
    """Return a phase diagram of a few seconds."""
    return qm.phase_diagram(ENSEMBLE, 10, 5, steps=300, replicas=8, seed=2, **running)


def same(found: xr.Dataset, expected: xr.Dataset) -> bool:
    """Whether all numbers and attributes are the same bits."""
    return found.identical(expected) and all(
        found[name].values.tobytes() == expected[name].values.tobytes()
        for name in expected.variables
        if expected[name].dtype.kind == "f"
    )


def partial(folder: Path) -> list[Path]:
    """Return temporary files."""
    return list(folder.rglob("*.part"))


def by_sigkill(folder: Path, expected: xr.Dataset, kills: int, seconds: float) -> str:
    """Kill the process of a sweep of so many seconds at random moments; read it each time."""
    chance, done, sweeps, unread, left = random.Random(0), 0, 0, 0, 0
    shares: list[float] = []
    while done < kills:
        store = folder / str(sweeps)
        child = os.fork()
        if child == 0:
            try:
                diagram(store=store, threads=2)
            finally:
                os._exit(0)
        time.sleep(0.05 + chance.uniform(0.0, 0.25 * seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it was finished before
            if not same(diagram(store=store), expected) or partial(store):
                return "FAILED: another result"
            sweeps += 1
            continue
        done += 1
        left += len(partial(store)) if store.exists() else 0
        try:
            shares.append(float(qm.open_phase_diagram(store).attrs["share_done"]))
        except InputError:
            unread += (store / "manifest.json").exists()
    store = folder / str(sweeps)
    if not same(diagram(store=store), expected) or partial(store):
        return "FAILED: another result"
    return (
        f"{done} kills of {sweeps + 1} sweeps, {left} temporary files on the way and none at the "
        f"end, {unread} stores that could not be read; shares done at kills "
        f"{min(shares):.2f} to {max(shares):.2f}"
        if not unread
        else "FAILED: a store could not be read"
    )


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Make a folder of 64 kB, and give what it is and how it grows."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        check=False, capture_output=True,
    ).returncode == 0  # fmt: skip
    if not mounted:  # files at least can't grow
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            yield "files of 1500 bytes", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    try:
        grow = ["mount", "-o", "remount,size=32m", str(folder)]
        yield "a tmpfs of 64 kB", lambda: subprocess.run(grow, check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def on_a_full_disk(folder: Path, expected: xr.Dataset) -> str:
    """Fill the disk, and go on when there is space again."""
    with small_disk(folder / "small") as (what, grow):
        store = folder / "small" / "x"
        try:
            diagram(store=store)
            return f"FAILED: {what} was not full"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                raise
            said = " ".join(str(error).replace(str(store), "DIR").split())
        share = qm.open_phase_diagram(store).attrs["share_done"]
        left = len(partial(store))
        grow()
        if left or not same(diagram(store=store), expected):
            return "FAILED: a temporary file or another result"
        return f"{what}: {said!r}; share done {share:.2f}, the same bits after it grew"


def without_workers(expected: xr.Dataset) -> str:
    """Kill both workers of Dask while they work."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        before = set(client.run(os.getpid).values())
        timers = [Timer(1.0 + n, os.kill, (p, signal.SIGKILL)) for n, p in enumerate(before)]
        for timer in timers:
            timer.start()
        found = diagram(store=Path(folder) / "x", executor=client.get_executor(pure=False))
        for timer in timers:
            timer.cancel()
        client.wait_for_workers(2)
        gone = len(before - set(client.run(os.getpid).values()))
    if not same(found, expected):
        return "FAILED: another result"
    return f"{gone} of 2 workers were killed, the same bits"


def at_the_end_of_their_lifetime() -> str:
    """Let workers end again and again, as jobs with a walltime do, and start others for them."""
    from distributed import Client, LocalCluster

    def longer(**running: object) -> xr.Dataset:
        return qm.phase_diagram(ENSEMBLE, 24, 10, steps=24_000, replicas=32, seed=2, **running)

    began = time.perf_counter()
    expected = longer()
    seconds = time.perf_counter() - began
    lifetime = max(10.0, seconds / 4)
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        start = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        start += ["--no-nanny", "--nthreads", "1", "--no-dashboard"]
        start += ["--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", "3s"]
        started: list[subprocess.Popen[bytes]] = []
        done = Event()

        def jobs() -> None:
            """Keep two workers running."""
            while not done.wait(0.5):
                alive = sum(job.poll() is None for job in started)
                started.extend(
                    subprocess.Popen(start, cwd=folder, stderr=subprocess.DEVNULL)
                    for _ in range(2 - alive)
                )

        queue = Thread(target=jobs)
        queue.start()
        try:
            found = longer(store=Path(folder) / "x", executor=client.get_executor(pure=False))
        finally:
            done.set()
            queue.join()
            for job in started:
                job.kill()
                job.wait()
    if not same(found, expected):
        return "FAILED: another result"
    ended = len(started) - 2
    if ended < 4:
        return f"FAILED: only {ended} workers ended"
    return (
        f"{ended} workers ended after about {lifetime:.0f} s each in a sweep of {seconds:.0f} s, "
        "the same bits"
    )


def main() -> None:
    """Run all trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    names = ["sigkill", "disk", "workers", "lifetime"]
    parser.add_argument("trials", nargs="*", default=names, metavar="TRIAL", help=", ".join(names))
    asked = parser.parse_args()
    began = time.perf_counter()
    expected = diagram()  # compiles
    began = time.perf_counter()
    diagram()
    seconds = time.perf_counter() - began
    print(f"uninterrupted: {seconds:.1f} s", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kills").mkdir()
        trials = {
            "sigkill": lambda: by_sigkill(folder / "kills", expected, asked.kills, seconds),
            "disk": lambda: on_a_full_disk(folder, expected),
            "workers": lambda: without_workers(expected),
            "lifetime": at_the_end_of_their_lifetime,
        }
        for what in asked.trials:
            line = trials[what]()
            failed |= line.startswith("FAILED")
            print(f"{what}: {line}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
