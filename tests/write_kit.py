"""Writes to be watched from outside: what is taken of an array, and what is on disk."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.config
import mlarray
import numpy as np

import mlarray_xr
from mlarray_xr.planning import write_plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "EXTENTS",
    "LAYOUT",
    "N_PARTS",
    "SHAPE",
    "PacedSource",
    "check_file",
    "folder_of",
    "lazy",
    "names_in",
    "segments_in",
    "small_parts",
]

SHAPE = (48, 40, 36)
LAYOUT: dict[str, Any] = {"chunks": (8, 20, 36), "blocks": (4, 10, 12), "codec": "lz4-1"}
EXTENTS = ((8,) * 6, (20, 20), (36,))
N_PARTS = 12
POLL_SECONDS = 0.002


@dataclass(frozen=True)
class PacedSource:
    """Values that depend on their position; `folder` has a note of every box that was taken."""

    folder: str

    shape = SHAPE
    dtype = np.dtype("<i4")
    ndim = len(SHAPE)
    size = int(np.prod(SHAPE))

    def __dask_tokenize__(self) -> str:
        return "paced"

    def __getitem__(self, key: Any) -> NDArray[np.int32]:
        whole = np.arange(self.size, dtype=self.dtype).reshape(self.shape)
        values: NDArray[np.int32] = (whole // 3)[key]
        if values.size:
            rank = self._note(json.dumps({"first": int(values.flat[0]) * 3, "pid": os.getpid()}))
            gate = Path(self.folder, "gate")
            while rank >= _number_in(gate):
                time.sleep(POLL_SECONDS)
        return values

    def allow(self, n_boxes: int | None) -> None:
        """Let so many boxes be taken, counting those that were; None is all."""
        gate = Path(self.folder, "gate")
        if n_boxes is None:
            gate.unlink(missing_ok=True)
        else:
            new = gate.with_suffix(".new")
            new.write_text(str(n_boxes))
            new.replace(gate)

    def taken(self) -> list[tuple[int, int]]:
        """Return the number of the part and of the process of every box that was taken."""
        notes = [json.loads(path.read_text()) for path in sorted(Path(self.folder).glob("[0-9]*"))]
        strides = SHAPE[1] * SHAPE[2] * 8, SHAPE[2] * 20
        parts = [divmod(note["first"], strides[0]) for note in notes]
        return [
            (slab * 2 + rest // strides[1], note["pid"])
            for (slab, rest), note in zip(parts, notes, strict=True)
        ]

    def _note(self, text: str) -> int:
        """Leave the next note, which no other process can leave as well; return its number."""
        folder = Path(self.folder)
        own = folder / uuid.uuid4().hex
        own = own.with_name(f"new-{own.name}")
        own.write_text(text)
        rank = 0
        while True:
            try:
                (folder / f"{rank:04d}").hardlink_to(own)
            except FileExistsError:
                rank += 1
            else:
                own.unlink()
                return rank


def _number_in(gate: Path) -> float:
    """Return how many boxes a gate allows: all where there is none."""
    try:
        return int(gate.read_text())
    except FileNotFoundError:
        return float("inf")


def lazy(source: PacedSource) -> Any:
    """Return a Dask array of the source with the same name in every process."""
    return da.from_array(source, chunks=EXTENTS, name=repr("paced"))


def segments_in(target: Path) -> list[Path]:
    return sorted(folder_of(target).glob("*.seg"))


def folder_of(target: Path) -> Path:
    return target.with_name(target.name + ".parts")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_file(path: Path, values: NDArray[Any]) -> None:
    """Compare a file with an array, as read by this package and by the reference package."""
    assert mlarray_xr.verify(path).state == "ok"
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path)[...], values)
    np.testing.assert_array_equal(mlarray.MLArray.open(str(path))[...], values)


def small_parts() -> None:
    """Make parts of one chunk, and take the chunks of small Dask arrays as they are."""
    write_plan._PART_BYTES, write_plan._SMALLEST_BYTES = 1, 0


def main() -> None:
    """Write as the JSON on the command line asks, and print how that ended."""
    asked = json.loads(sys.argv[1])
    small_parts()
    if asked["most_bytes"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["most_bytes"],) * 2)
    source = PacedSource(asked["folder"])
    subject: Any = source if asked["scheduler"] is None else lazy(source)
    with contextlib.ExitStack() as stack:
        if asked["scheduler"] == "cluster":
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=2,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address="127.0.0.1:0",
                    memory_limit=0,
                )
            )
            stack.enter_context(Client(cluster))
        elif asked["scheduler"] is not None:
            stack.enter_context(dask.config.set(scheduler=asked["scheduler"], num_workers=2))
        try:
            report = mlarray_xr.to_mla(subject, asked["target"], **asked["options"], **LAYOUT)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        else:
            print(f"done: {report.n_resumed_chunks} resumed", flush=True)
