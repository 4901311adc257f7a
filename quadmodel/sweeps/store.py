"""Where the records of a sweep are kept: in a folder, or in memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from quadmodel._util.checks import InputError, shown
from quadmodel._util.version import __version__
from quadmodel.sweeps import _lock
from quadmodel.sweeps._records import PARTIAL, Record, packed, read, write_whole, written_aside

if TYPE_CHECKING:
    import xarray as xr

MANIFEST, STAGES, RESULT = "manifest.json", "stages.json", "result.nc"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a sweep is asked for: all that its result depends on, as JSON has it.

    `expected` says how many units each stage has, at most, before it is known; `weights` how the
    times compare that units of different stages take.
    """

    kind: str
    specification: Mapping[str, Any]
    expected: Mapping[str, int] = field(default_factory=dict)
    version: str = __version__
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """What two sweeps must share to be the same."""
        named: dict[str, Any] = {"kind": self.kind, "quadmodel_version": self.version}
        for name, value in json.loads(json.dumps(self.specification)).items():
            parts = value if isinstance(value, dict) else {"": value}
            named |= {f"{name}.{part}".rstrip("."): content for part, content in parts.items()}
        return named

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the fields."""
        text = json.dumps(self.fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def content(self) -> bytes:
        """Return the text of the file."""
        content = {
            "format": _FORMAT,
            "kind": self.kind,
            "quadmodel_version": self.version,
            "seed": self.specification.get("seed"),
            "hash": self.hash,
            "specification": self.specification,
            "expected": self.expected,
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a store, or raise InputError."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(
            content["kind"],
            dict(content["specification"]),
            dict(content["expected"]),
            content["quadmodel_version"],
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"store {folder} must be the folder of a sweep, got one without {MANIFEST}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"store {folder} must hold the {MANIFEST} of a sweep, got another"
        ) from None


class Store(Protocol):
    """What a sweep needs of a place for its records."""

    def begin(self, stage: str, count: int) -> None:
        """Say that a stage begins, and how many units it has."""

    def records(self, stage: str, count: int) -> dict[int, Record]:
        """Return the records of a stage by unit, as far as they are there."""

    def keep(self, stage: str, unit: int, record: Record) -> None:
        """Keep the record of a unit."""

    def left(self) -> str:
        """Say what is kept and how to go on."""


class Memory:
    """Records in memory."""

    def __init__(self, manifest: Manifest) -> None:
        """Hold nothing yet."""
        self.manifest = manifest
        self.stages: dict[str, int] = {}
        self._records: dict[str, dict[int, Record]] = {}

    def begin(self, stage: str, count: int) -> None:
        """Say that a stage begins, and how many units it has."""
        self.stages[stage] = count
        self._records.setdefault(stage, {})

    def records(self, stage: str, count: int) -> dict[int, Record]:
        """Return the records of a stage by unit, as far as they are there."""
        return dict(self._records.get(stage, {}))

    def keep(self, stage: str, unit: int, record: Record) -> None:
        """Keep the record of a unit."""
        self._records[stage][unit] = record

    @property
    def kept(self) -> int:
        """How many records there are."""
        return sum(map(len, self._records.values()))

    def left(self) -> str:
        """Say what is kept and how to go on."""
        if not self.kept:
            return "nothing is kept"
        return (
            f"{self.kept} finished units are kept in memory: the same call goes on with them, or "
            "with store=DIR to keep them on disk"
        )

    def save(self, folder: Path) -> None:
        """Write everything to a folder, as a sweep with a store would have."""
        with open_folder(folder, self.manifest) as store:
            self.copy_to(store)

    def copy_to(self, store: Store) -> None:
        """Put everything into another store."""
        for stage, count in self.stages.items():
            store.begin(stage, count)
            for unit, record in self._records[stage].items():
                store.keep(stage, unit, record)


# The last sweep that was interrupted without a store.
_UNFINISHED: list[Memory] = []


def unfinished(manifest: Manifest | None = None) -> Memory | None:
    """Return what an interrupted sweep has left in memory; of this `manifest`, if one is given."""
    for memory in _UNFINISHED:
        if memory.kept and (manifest is None or memory.manifest.hash == manifest.hash):
            return memory
    return None


def leave(memory: Memory) -> None:
    """Keep what an interrupted sweep has left, in place of what an earlier one did."""
    _UNFINISHED[:] = [memory]


def forget(manifest: Manifest) -> None:
    """Drop what a sweep has left that is now finished."""
    _UNFINISHED[:] = [m for m in _UNFINISHED if m.manifest.hash != manifest.hash]


class Folder:
    """Records in a folder: a file per unit, in a subfolder per stage."""

    def __init__(self, path: Path) -> None:
        """Read a store that is there; :func:`open_folder` is for writers."""
        self.path = path

    def stages(self) -> dict[str, int]:
        """Return how many units the stages have that have begun."""
        try:
            return dict(json.loads((self.path / STAGES).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def begin(self, stage: str, count: int) -> None:
        """Say that a stage begins, and how many units it has."""
        self._of(stage).mkdir(exist_ok=True)
        stages = self.stages()
        if stages.get(stage) != count:
            self._write(self.path / STAGES, json.dumps({**stages, stage: count}).encode())

    def records(self, stage: str, count: int) -> dict[int, Record]:
        """Return the records of a stage by unit, as far as they are there."""
        there = {unit: read(self._of(stage) / self._name(unit)) for unit in self._units(stage)}
        return {u: record for u, record in there.items() if u < count and record is not None}

    def keep(self, stage: str, unit: int, record: Record) -> None:
        """Keep the record of a unit."""
        self._write(self._of(stage) / self._name(unit), packed(record))

    def read(self, stage: str, units: Sequence[Any], undecided: Any = None) -> list[Record | None]:
        """Return the records of a stage in the order of its units; None for those not there."""
        found = self.records(stage, len(units))
        return [found.get(unit) for unit in range(len(units))]

    def done(self) -> dict[str, int]:
        """Return how many units of each stage are done."""
        return {stage: len(self._units(stage)) for stage in self.stages()}

    def left(self) -> str:
        """Say what is kept and how to go on."""
        kept = sum(self.done().values())
        return f"{kept} finished units are kept in {self.path}: the same call goes on with them"

    def result(self) -> xr.Dataset | None:
        """Return the result of a finished sweep; None while it isn't one."""
        import xarray as xr

        try:
            with xr.open_dataset(self.path / RESULT, engine="h5netcdf") as file:
                found = file.load()
        except FileNotFoundError:
            return None
        # Texts come back as objects.
        texts = [name for name, values in found.variables.items() if values.dtype == object]
        return found.assign(
            {n: found[n].astype(str) for n in texts if n not in found.coords}
        ).assign_coords({n: found[n].astype(str) for n in texts if n in found.coords})

    def finish(self, found: xr.Dataset) -> None:
        """Write the result, built aside and then moved; records are no longer needed then."""
        try:
            with written_aside(self.path / RESULT) as partial:
                found.to_netcdf(partial, engine="h5netcdf")
        except OSError as error:
            raise self._refused(error) from None
        self.tidy()

    def tidy(self) -> None:
        """Remove what killed processes have left, and records that the result holds."""
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        if (self.path / RESULT).exists():
            for stage in self.stages():
                shutil.rmtree(self._of(stage), ignore_errors=True)

    def _of(self, stage: str) -> Path:
        return self.path / stage.replace(" ", "-")

    @staticmethod
    def _name(unit: int) -> str:
        return f"{unit:05d}.npz"

    def _units(self, stage: str) -> list[int]:
        """Return which units of a stage are done."""
        try:
            names = [entry.name for entry in os.scandir(self._of(stage))]
        except FileNotFoundError:
            return []
        return sorted(int(name[:-4]) for name in names if name.endswith(".npz"))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> OSError:
        """Return the error of a write, with what is kept all the same."""
        reason = f"store {self.path} must be writable, got {error.strerror or error}"
        said = f"{reason}; {self.left()}"
        return OSError(said) if error.errno is None else OSError(error.errno, said)


class Progress(NamedTuple):
    """How far a sweep with a store has come: units per stage, done and in all, at most."""

    kind: str
    done: dict[str, int]
    expected: dict[str, int]
    finished: bool

    @property
    def share(self) -> float:
        """Share of the units that are done."""
        if self.finished:
            return 1.0
        return min(sum(self.done.values()) / max(sum(self.expected.values()), 1), 1.0)


def progress_of(path: Path) -> Progress:
    """Return how far a sweep has come, at any time; or raise InputError if there is none."""
    manifest, store = read_manifest(path), Folder(path)
    done = store.done()
    expected = {**manifest.expected, **store.stages()}
    finished = (path / RESULT).exists()
    return Progress(manifest.kind, expected if finished else done, expected, finished)


@contextmanager
def open_folder(path: Path, manifest: Manifest) -> Iterator[Folder]:
    """Open a store for this sweep, new or begun earlier, and keep other writers out.

    Raises InputError, and touches nothing, where the folder holds something else.
    """
    _check(path, manifest)
    store = Folder(path)
    with ExitStack() as opened:
        try:
            path.mkdir(parents=True, exist_ok=True)
            opened.enter_context(_lock.locked(path))
            if not _check(path, manifest):
                write_whole(path / MANIFEST, manifest.content())
            store.tidy()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"store {path} must be a folder to write to, got {reason}") from None
        yield store


def _check(path: Path, manifest: Manifest) -> bool:
    """Raise InputError unless a store may be written; return whether it holds this sweep."""
    if not os.path.lexists(path):
        return False
    if not path.is_dir():
        raise InputError(f"store {path} must be a folder, got a file")
    if not (path / MANIFEST).exists():
        others = [
            entry.name for entry in os.scandir(path)
            if entry.name != _lock.NAME and not entry.name.endswith(PARTIAL)
        ]  # fmt: skip
        if others:
            raise InputError(
                f"store {path} must be a new or empty folder, or that of a sweep, got one with "
                f"{shown(sorted(others))}"
            )
        return False
    theirs, ours = read_manifest(path).fields, manifest.fields
    for name in dict.fromkeys([*ours, *theirs]):
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"store {path} must be of this sweep, got one with {name} "
                f"{shown(theirs.get(name))} in place of {shown(ours.get(name))}"
            )
    return True
