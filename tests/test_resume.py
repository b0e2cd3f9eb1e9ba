"""Writes that fail and are resumed, in any order: nothing half is ever seen, nothing is redone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.config
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import mlarray_xr
from mlarray_xr.errors import ConversionError, TargetBusy
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.planning.write_plan import Parts
from mlarray_xr.storage import encode
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.process_identity import this_process
from tests.write_kit import check_file, folder_of, names_in, segments_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HEX = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of one chunk, and take the chunks of small Dask arrays as they are."""
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    monkeypatch.setattr("mlarray_xr.planning.write_plan._SMALLEST_BYTES", 0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make what is done before a failure a matter of order: Hypothesis repeats what it did."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("dask.local.order", order_by_place)
    with dask.config.set(scheduler="synchronous"):
        yield


def order_by_place(graph: dict[Any, Any]) -> dict[Any, int]:
    """Return the order of tasks: Dask's own depends on their names, which are random here."""
    places = sorted(graph, key=lambda key: key[1:] if isinstance(key, tuple) else ())
    return {key: number for number, key in enumerate(places)}


# Every order of failing, damaging, resuming and starting over


class Stop(BaseException):
    """What ends an attempt; neither an Exception nor anything that is caught by name."""


class CountedSource:
    """An array that notes which boxes are taken of it, and fails from one of them on."""

    def __init__(self, values: NDArray[Any], token: str, *, stop_at: int | None) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        self.ndim, self.size = values.ndim, values.size
        self.taken: list[tuple[int, ...]] = []
        self._values, self._token, self._stop_at = values, token, stop_at
        self._lock = threading.Lock()

    def __dask_tokenize__(self) -> str:
        return self._token

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        found: NDArray[Any] = self._values[key]
        with self._lock:
            if found.size:  # Dask takes an empty box to learn the type
                if len(self.taken) == self._stop_at:
                    raise Stop
                self.taken.append(tuple(along.start for along in key))
        return found


SPECS: dict[str, dict[str, Any]] = {
    "first": {"seed": 1, "chunks": (4, 5), "codec": "lz4-1", "notes": "a"},
    "other values": {"seed": 2, "chunks": (4, 5), "codec": "lz4-1", "notes": "a"},
    "other layout": {"seed": 1, "chunks": (3, 5), "codec": "lz4-1", "notes": "a"},
    "other codec": {"seed": 1, "chunks": (4, 5), "codec": "zstd-1", "notes": "a"},
    "other metadata": {"seed": 1, "chunks": (4, 5), "codec": "lz4-1", "notes": "b"},
}
DIFFERENCE = {"seed": "source", "chunks": "chunks", "codec": "codec", "notes": "metadata"}
BY_CHUNK = {(4, 5): ((4, 4, 4), (5, 5)), (3, 5): ((3, 3, 3, 3), (5, 5))}
OF_DASK = {(4, 5): ((8, 4), (5, 5)), (3, 5): ((3, 6, 3), (10,))}


def values_of(spec: str) -> NDArray[np.int16]:
    return np.random.default_rng(SPECS[spec]["seed"]).integers(0, 99, (12, 10), np.int16)


def options_of(spec: str) -> dict[str, Any]:
    wanted = SPECS[spec]
    metadata = Metadata(has_array=True, extra={"notes": wanted["notes"]})
    return {"chunks": wanted["chunks"], "codec": wanted["codec"], "metadata": metadata}


@cache
def uninterrupted(spec: str, extents: tuple[tuple[int, ...], ...]) -> bytes:
    """Return the file that a write in these parts leaves when nothing goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.mla")
        subject = da.from_array(values_of(spec), chunks=extents)
        mlarray_xr.to_mla(subject, path, **options_of(spec))
        return path.read_bytes()


@cache
def foreign_segments(spec: str, extents: tuple[tuple[int, ...], ...]) -> list[bytes]:
    """Return the segments that another write of the same values left, by part."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = Path(folder, "a.mla")
        subject = da.from_array(values_of(spec), chunks=extents)
        patched.setattr(FrameWriter, "finish", fail)
        with pytest.raises(Stop):
            mlarray_xr.to_mla(subject, path, resume=True, **options_of(spec))
        return [segment.read_bytes() for segment in segments_in(path)]


def fail(*_: Any, **__: Any) -> None:
    raise Stop


class InterruptedWrites(RuleBasedStateMachine):
    """A target, its staging folder, and what is known of both."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.target = Path(self._folder.name, "a.mla")
        self.published: tuple[str, bytes] | None = None
        self.begun: str | None = None
        self.is_ours = False
        self.good: dict[str, bool] = {}

    # What is known

    def extents(self, default: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """Return the parts of the write that was begun, or those it will have."""
        if self.begun is None:
            return default
        recorded = json.loads((folder_of(self.target) / "plan.json").read_text())["parts"]
        return tuple(map(tuple, recorded))

    def done(self) -> set[int]:
        return {int(name.partition(".")[0]) for name, is_good in self.good.items() if is_good}

    @invariant()
    def target_is_whole(self) -> None:
        assert self.target.exists() == (self.published is not None)
        if self.published is not None:
            assert self.target.read_bytes() == self.published[1]

    @invariant()
    def folder_is_there_while_a_write_is_unfinished(self) -> None:
        assert folder_of(self.target).exists() == (self.begun is not None)

    # What happens

    @rule(
        spec=st.sampled_from(["first"] * 6 + list(SPECS)),
        way=st.sampled_from(["direct", "dask", "delayed"]),
        stop=st.sampled_from(["source", "chunk", "assembly", "nothing"]),
        at=st.integers(0, 7),
        resume=st.sampled_from([True, True, True, False]),
    )
    def attempt(self, *, spec: str, way: str, stop: str, at: int, resume: bool) -> None:
        if not resume and self.is_ours:
            # A Delayed that failed may be computed again: its claim lasts.
            with pytest.raises(TargetBusy, match=f"process {os.getpid()}"):
                self.write(spec, way, resume=False)
        elif resume and self.begun not in (None, spec):
            self.refused(spec, way)
        else:
            self.attempted(spec, way, stop=stop, at=at, resume=resume)

    def write(
        self, spec: str, way: str, *, resume: bool, extents: Any = None, stop_at: int | None = None
    ) -> tuple[CountedSource, bool]:
        """Write, and return the source with its notes, and whether the file was made."""
        token = f"seed {SPECS[spec]['seed']}"
        source = CountedSource(values_of(spec), token, stop_at=stop_at)
        subject: Any = source
        if way != "direct":
            cut = extents or OF_DASK[SPECS[spec]["chunks"]]
            subject = da.from_array(source, chunks=cut, name=repr(token))
        options = {"mode": "w", "resume": resume, "compute": way != "delayed", **options_of(spec)}
        with contextlib.suppress(Stop):
            done = mlarray_xr.to_mla(subject, self.target, **options)
            if way == "delayed":
                done.compute()
            return source, True
        return source, False

    def refused(self, spec: str, way: str) -> None:
        """Resume with something else."""
        before = {path.name: path.read_bytes() for path in self.left_behind()}
        names = ["source"]
        if self.begun in SPECS:
            then, now = SPECS[self.begun], SPECS[spec]
            names = [name for key, name in DIFFERENCE.items() if then[key] != now[key]]
        with pytest.raises(ConversionError, match="holds the beginning of another") as raised:
            self.write(spec, way, resume=True)
        assert all(f"{name} was " in str(raised.value) for name in names)
        assert {path.name: path.read_bytes() for path in self.left_behind()} == before

    def attempted(self, spec: str, way: str, *, stop: str, at: int, resume: bool) -> None:
        """Write, be stopped perhaps, and compare what was taken and what is left."""
        if not resume:
            self.begun, self.good = None, {}
        usual = BY_CHUNK if way == "direct" else OF_DASK
        extents = self.extents(usual[SPECS[spec]["chunks"]])
        boxes = Parts(extents=extents, in_flight=1, itemsize=2).boxes()
        before, stopped = self.done(), set[int]()
        missing = sorted(set(range(len(boxes))) - before)
        with pytest.MonkeyPatch.context() as patched:
            if stop == "chunk":
                fail_from_chunk(patched, at, stopped)
            if stop == "assembly":
                patched.setattr(FrameWriter, "finish", fail)
            stop_at = at if stop == "source" else None
            source, is_done = self.write(spec, way, resume=resume, extents=extents, stop_at=stop_at)
        starts = [tuple(start for start, _ in box) for box in boxes]
        taken = sorted(starts.index(box) for box in source.taken)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(missing)
        failed = {part_of_chunk(number, boxes, SPECS[spec]["chunks"]) for number in stopped}
        stops = {"source": at < len(missing), "chunk": bool(failed), "assembly": True}
        assert is_done == (not stops.get(stop, False))
        if is_done:
            assert taken == missing
            self.published = (spec, self.target.read_bytes())
            assert self.published[1] == uninterrupted(spec, extents)
            self.begun, self.good, self.is_ours = None, {}, False
        elif resume or way == "delayed":
            self.begun, self.is_ours = spec if resume else "anonymous", way == "delayed"
            self.note_segments()
            assert self.done() == before | (set(taken) - failed)
            own = ["owner.json"] * self.is_ours + ["plan.json"]
            names = [n for n in names_in(folder_of(self.target)) if not n.startswith("joined")]
            assert names == sorted([*self.good, *own])

    def note_segments(self) -> None:
        """Take what was not there before for good."""
        names = [path.name for path in segments_in(self.target)]
        self.good = {name: self.good.get(name, True) for name in names}

    def left_behind(self) -> list[Path]:
        """Return what a write left, but for its owner."""
        paths = folder_of(self.target).iterdir()
        return sorted(path for path in paths if path.name != "owner.json")

    @precondition(lambda self: self.begun in SPECS and self.done())
    @rule(
        which=st.integers(0, 11),
        kind=st.sampled_from(["flip", "truncate", "remove", "foreign", "copy"]),
        where=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
    )
    def damage(self, *, which: int, kind: str, where: float, bit: int) -> None:
        names = sorted(name for name, is_good in self.good.items() if is_good)
        path = folder_of(self.target) / names[which % len(names)]
        data = bytearray(path.read_bytes())
        position = int(where * len(data))
        if kind == "copy":
            other = path.with_name(f"{path.name[:10]}.{random.randbytes(16).hex()}.seg")
            other.write_bytes(data)
            self.good[other.name] = True
            return
        if kind == "flip":
            data[position] ^= 1 << bit
            path.write_bytes(data)
        elif kind == "truncate":
            os.truncate(path, position)
        elif kind == "foreign":
            assert self.begun is not None
            foreign = foreign_segments(self.begun, self.extents(()))
            path.write_bytes(foreign[int(path.name[:10])])
        else:
            path.unlink()
        self.good[path.name] = False

    @precondition(lambda self: self.begun is not None)
    @rule()
    def die(self) -> None:
        """Leave the folder as a process does that was killed."""
        folder = folder_of(self.target)
        ended = subprocess_that_ended()
        owner = {**this_process(), "pid": ended, "claim_id": HEX}
        (folder / "owner.json").write_text(json.dumps(owner))
        (folder / f"0000000001.{HEX}.tmp").write_bytes(b"half a segment")
        self.is_ours = False

    @precondition(lambda self: self.published is not None)
    @rule()
    def reopen(self) -> None:
        assert self.published is not None
        check_file(self.target, values_of(self.published[0]))

    def teardown(self) -> None:
        try:
            if self.begun in SPECS:
                self.attempted(str(self.begun), "dask", stop="nothing", at=0, resume=True)
                self.reopen()
                assert names_in(self.target.parent) == ["a.mla"]
        finally:
            self._folder.cleanup()


def fail_from_chunk(patched: pytest.MonkeyPatch, number: int, stopped: set[int]) -> None:
    """Let the encoding of a chunk fail, and of all that come after it; note which."""
    real = encode._encode_chunk

    def failing(values: Any, tiles: Any, params: Any, entry: Any) -> bytes:
        if stopped or entry["number"] == number:
            stopped.add(int(entry["number"]))
            raise Stop
        return real(values, tiles, params, entry)

    patched.setattr(encode, "_encode_chunk", failing)


def part_of_chunk(number: int, boxes: list[Any], chunks: tuple[int, int]) -> int:
    corner = [i * c for i, c in zip(divmod(number, 10 // chunks[1]), chunks, strict=True)]
    (part,) = (
        part
        for part, box in enumerate(boxes)
        if all(start <= i < stop for i, (start, stop) in zip(corner, box, strict=True))
    )
    return part


@cache
def subprocess_that_ended() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        return process.pid


TestInterruptedWrites = InterruptedWrites.TestCase
TestInterruptedWrites.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
