"""Showing files to Zarr tools: how long it takes to describe them, and what is read for that."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from benchmarks.report import Goal, Row, Skip, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, measure, to_mla
from mlarray_xr.zarr import MlaParser, as_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.data import Workplace
    from benchmarks.timing import Samples

__all__ = ["run"]

STORE, PARSER, OPEN_ALL, JOIN, BYTES = (
    "as_store",
    "VirtualiZarr, MlaParser",
    "VirtualiZarr, files one after another",
    "xr.concat of their datasets",
    "read of one file",
)
_MOST_REPEATS = 5
_FULL = "full"
_WITHIN_S = Goal(of="median", relation="<=", bound=1000)
_FEW_SECONDS = Goal(of="median", relation="<=", bound=10_000)
_FEW_BYTES = Goal(of="median", relation="<=", bound=100)


def run(workplace: Workplace) -> list[Table]:
    """Return one table: milliseconds per description."""
    is_full = workplace.size.name == _FULL
    many = _many_chunks(workplace.folder, edge=46 if is_full else 8)
    n_chunks, n_files = MlaArray(many).info()["n_chunks"], 1000 if is_full else 20
    repeats = min(workplace.size.repeats, _MOST_REPEATS)
    case = f"a file of {n_chunks} chunks"
    rows, skips = [], []
    stored = time_paired({STORE: lambda _: as_store(many)}, repeats=repeats)[STORE]
    rows.append(_row(case, STORE, stored, _WITHIN_S if is_full else None))
    try:
        open_virtual = _opener()
    except ImportError as error:
        skips.append(Skip(contender=PARSER, reason=str(error)))
    else:
        parsed = time_paired({PARSER: lambda _: open_virtual(many)}, repeats=repeats)[PARSER]
        rows.append(_row(case, PARSER, parsed, _WITHIN_S if is_full else None))
        rows += _joined(workplace.folder, open_virtual, n_files=n_files, is_full=is_full)
    rows.append(_fetched(workplace))
    return [
        Table(
            name="zarr-virtual",
            title="Showing files to Zarr tools",
            about=(
                "Milliseconds to describe local files, in the page cache, without reading a voxel; "
                "the kilobytes are those that opening a remote file fetches besides its table of "
                "chunks."
            ),
            rows=tuple(rows),
            skips=tuple(skips),
        )
    ]


def _row(case: str, name: str, samples: Samples, goal: Goal | None) -> Row:
    """Return a row of milliseconds."""
    return Row(
        case=case,
        contender=name,
        unit="ms",
        median=samples.median * 1e3,
        best=samples.best * 1e3,
        goal=goal,
        others=samples.others,
    )


def _many_chunks(folder: Path, *, edge: int) -> Path:
    """Return a file of edge cubed chunks of four cubed."""
    path = folder / "many-chunks.mla"
    values = np.random.default_rng(7).integers(0, 250, (4 * edge,) * 3, np.uint8)
    to_mla(values, path, chunks=4, blocks=4, codec="lz4-1")
    return path


def _opener() -> Callable[[Path], xr.Dataset]:
    """Return what opens a file as a virtual dataset.

    Raises
    ------
    ImportError
        When VirtualiZarr is not installed.
    """
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr import open_virtual_dataset

    registry = ObjectStoreRegistry({"file://": LocalStore()})

    def opened(path: Path) -> Any:
        return open_virtual_dataset(f"file://{path}", registry=registry, parser=MlaParser())

    return opened


def _joined(
    folder: Path, open_virtual: Callable[[Path], xr.Dataset], *, n_files: int, is_full: bool
) -> list[Row]:
    """Open many small files and join them along a new dimension, once."""
    values = np.random.default_rng(2).integers(0, 99, (32, 32, 32), np.int16)
    one = folder / "case.mla"
    to_mla(values, one, chunks=16, blocks=8)
    paths = [folder / f"case{number}.mla" for number in range(n_files)]
    for path in paths:
        path.write_bytes(one.read_bytes())
    begin = time.perf_counter()
    datasets = [open_virtual(path) for path in paths]
    opened = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # xarray's defaults for `concat` will change
        joined = xr.concat(datasets, dim="case", join="override", combine_attrs="override")
    end = time.perf_counter()
    if joined.image.shape != (n_files, 32, 32, 32):
        msg = f"joined to {joined.image.shape}"
        raise RuntimeError(msg)
    case = f"{n_files} files of 8 chunks"
    return [
        Row(
            case=case,
            contender=name,
            unit="ms",
            median=seconds * 1e3,
            best=seconds * 1e3,
            goal=_FEW_SECONDS if is_full else None,
        )
        for name, seconds in ((OPEN_ALL, opened - begin), (JOIN, end - opened))
    ]


def _fetched(workplace: Workplace) -> Row:
    """Count the bytes that opening a served file of the usual layout fetches."""
    import fsspec

    data = workplace.volume("int16").path.read_bytes()
    fsspec.filesystem("memory").pipe("/benchmark/volume.mla", data)
    with measure() as measured:
        MlaArray("memory://benchmark/volume.mla")
    kilobytes = measured.stats.bytes_fetched / 1e3
    fsspec.filesystem("memory").rm("/benchmark/volume.mla")
    return Row(
        case="opening a remote file",
        contender=BYTES,
        unit="kB",
        median=kilobytes,
        best=kilobytes,
        goal=_FEW_BYTES,
    )
