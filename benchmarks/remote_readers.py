"""Ways of reading the served volume over HTTP: ours, python-blosc2's, zarr-python, TensorStore."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import blosc2
import numpy as np
import zarr

from benchmarks import zarr_http
from benchmarks.contenders import slices
from benchmarks.report import Skip
from benchmarks.zarr_http import ZarrArray
from mlarray_xr import MlaArray
from mlarray_xr.storage.block_cache import block_cache
from mlarray_xr.storage.read_settings import ReadSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from benchmarks.data import Box

__all__ = [
    "BLOSC2",
    "BLOSC2_MANY",
    "INDEXED",
    "TENSORSTORE",
    "TENSORSTORE_SHARDED",
    "UNINDEXED",
    "RemoteContender",
    "RemoteReader",
    "check",
    "remote_contenders",
]

INDEXED, UNINDEXED = "ours, block index", "ours, no block index"
_CONCURRENCY = ReadSettings().max_concurrency
BLOSC2, BLOSC2_MANY = "blosc2 lazy, 8 at a time", f"blosc2 lazy, {_CONCURRENCY} at a time"
TENSORSTORE, TENSORSTORE_SHARDED = "tensorstore, shard = chunk", "tensorstore, one shard"
_CACHE_BYTES = ReadSettings().cache_bytes
# An interpreter with the newest zarr-python and obstore, which need a newer Python than we do.
_OTHER_PYTHON = "MLARRAY_XR_ZARR_PYTHON"
_ZARR_STORES = {"plain 64-cubed": "plain.zarr", "shard = chunk": "sharded.zarr"}


class RemoteReader(Protocol):
    """One served array."""

    def open(self) -> object:
        """Open it anew, with nothing cached; connections to the server stay."""

    def read(self, box: Box) -> Any:
        """Return the values of a box."""

    def pick(self, points: Sequence[NDArray[np.int64]]) -> Any:
        """Return the values at points, one array per axis."""

    def read_all(self, boxes: list[Box], threads: int) -> None:
        """Read boxes in threads that share the array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteContender:
    """One way of reading the served volume."""

    name: str
    """What reports call it."""
    reader: RemoteReader
    """What reads; opened by whoever measures."""
    is_elsewhere: bool = False
    """Whether it reads in another process, whose CPU time is not counted."""


class _Threaded:
    """Reads boxes in threads of this process."""

    read: Callable[[Box], Any]

    def read_all(self, boxes: list[Box], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.read, boxes))


class _Ours(_Threaded):
    """MlaArray."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._array: MlaArray | None = None

    def open(self) -> None:
        if self._array is not None:
            self._array.close()
        block_cache().clear()
        self._array = MlaArray(self._url)

    def read(self, box: Box) -> Any:
        assert self._array is not None
        return self._array.read(box)

    def pick(self, points: Sequence[NDArray[np.int64]]) -> Any:
        assert self._array is not None
        return self._array[tuple(points)]


class _Blosc2(_Threaded):
    """What python-blosc2 opens a URL as."""

    def __init__(self, url: str, *, concurrency: int) -> None:
        self._url, self._concurrency = url, concurrency
        self._array: Any = None

    def open(self) -> None:
        self._array = blosc2.open(self._url, lazy=True, max_concurrency=self._concurrency)

    def read(self, box: Box) -> Any:
        return self._array[slices(box)]

    def pick(self, points: Sequence[NDArray[np.int64]]) -> Any:
        return self._array[tuple(points)]


class _TensorStore(_Threaded):
    """TensorStore, with as large a cache and as many requests at a time as ours."""

    def __init__(self, url: str) -> None:
        self._tensorstore: Any = importlib.import_module("tensorstore")
        self._spec = {"driver": "zarr3", "kvstore": {"driver": "http", "base_url": url}}
        self._array: Any = None

    def open(self) -> None:
        context = self._tensorstore.Context(
            {
                "cache_pool": {"total_bytes_limit": _CACHE_BYTES},
                "http_request_concurrency": {"limit": _CONCURRENCY},
            }
        )
        self._array = self._tensorstore.open(
            self._spec, read=True, context=context, recheck_cached_data="open"
        ).result()

    def read(self, box: Box) -> Any:
        return self._array[slices(box)].read().result()

    def pick(self, points: Sequence[NDArray[np.int64]]) -> Any:
        return self._array.vindex[tuple(points)].read().result()


class _OtherPython:
    """zarr-python in another interpreter; what it read comes back as a digest."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process, self._url = process, url

    def open(self) -> None:
        self._ask("open")

    def read(self, box: Box) -> Any:
        return self._ask("read", box)

    def pick(self, points: Sequence[NDArray[np.int64]]) -> Any:
        return self._ask("pick", [p.tolist() for p in points])

    def read_all(self, boxes: list[Box], threads: int) -> None:
        self._ask("read_all", boxes, threads)

    def _ask(self, command: str, *arguments: Any) -> Any:
        """Return the answer to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([self._url, command, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def remote_contenders(
    address: Callable[[str], str], stack: ExitStack
) -> tuple[list[RemoteContender], list[Skip]]:
    """Return the ways of reading a served folder, and those whose library is not installed.

    Parameters
    ----------
    address
        Returns the URL of what is served under a name.
    stack
        Ends what was started for them, and puts back what was set.
    """
    found: list[tuple[str, RemoteReader]] = [
        (INDEXED, _Ours(address("indexed.mla"))),
        (UNINDEXED, _Ours(address("volume.mla"))),
        (BLOSC2, _Blosc2(address("volume.mla"), concurrency=8)),
        (BLOSC2_MANY, _Blosc2(address("volume.mla"), concurrency=_CONCURRENCY)),
    ]
    stack.enter_context(zarr.config.set({"async.concurrency": _CONCURRENCY}))
    for label, store in _ZARR_STORES.items():
        reader = ZarrArray(address(store))
        found.append((f"zarr {zarr.__version__}, {label}", reader))
    skips: list[Skip] = []
    for name, store in ((TENSORSTORE, "sharded.zarr/"), (TENSORSTORE_SHARDED, "one.zarr/")):
        try:
            found.append((name, _TensorStore(address(store))))
        except ImportError as error:
            skips.append(Skip(contender=name, reason=str(error)))
    contenders = [RemoteContender(name=name, reader=reader) for name, reader in found]
    python = os.environ.get(_OTHER_PYTHON)
    if python is None:
        reason = f"{_OTHER_PYTHON} names no Python that has it and obstore"
        skips.append(Skip(contender="newest zarr-python", reason=reason))
    else:
        contenders += _of_other_python(python, address, stack)
    return contenders, skips


def _of_other_python(
    python: str, address: Callable[[str], str], stack: ExitStack
) -> list[RemoteContender]:
    """Start another interpreter and return what its zarr-python reads."""
    process = subprocess.Popen(
        [python, str(Path(zarr_http.__file__)), str(_CONCURRENCY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.communicate)
    assert process.stdout is not None
    version = json.loads(process.stdout.readline())
    return [
        RemoteContender(
            name=f"zarr {version}, {label}",
            reader=_OtherPython(process, address(store)),
            is_elsewhere=True,
        )
        for label, store in _ZARR_STORES.items()
    ]


def check(contender: RemoteContender, values: NDArray[Any]) -> None:
    """Compare a box and some points with the true values.

    Raises
    ------
    RuntimeError
        When they differ: its time would mean nothing.
    """
    box = tuple((n // 3, n // 3 + 20) for n in values.shape)
    points = np.random.default_rng(0).integers(0, min(values.shape), (values.ndim, 20))
    reader = contender.reader
    reader.open()
    for found, true in (
        (reader.read(box), values[slices(box)]),
        (reader.pick(list(points)), values[tuple(points)]),
    ):
        if isinstance(found, str):
            digest = hashlib.blake2b(np.ascontiguousarray(true)).hexdigest()
            is_right = found == digest
        else:
            is_right = np.array_equal(found, true)
        if not is_right:
            msg = f"{contender.name} reads wrong values"
            raise RuntimeError(msg)
