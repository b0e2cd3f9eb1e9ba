"""to_mla: arrays and labelled arrays become `.mla` files."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import METADATA_ATTR
from mlarray_xr.dask import encoded_parts, is_dask
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import ConversionError, MlaWarning
from mlarray_xr.format.metadata import Metadata, Storage
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.grid import part_boxes, plan_part
from mlarray_xr.planning.layout import Layout, Sizes, plan_layout
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.encode import STORABLE_KINDS, EncodedChunk, FramePlan, encode_part
from mlarray_xr.storage.publication import published
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.planning.grid import Box

__all__ = ["WriteReport", "to_mla"]

_SUFFIX = ".mla"
_PART_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What a write did.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> report = mlarray_xr.to_mla(np.zeros((64, 64), "uint8"), "report.mla", mode="w")
    >>> report.nbytes, report.n_chunks
    (4096, 1)
    """

    path: str
    """Absolute path of the file."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: str
    """Type of the elements."""
    nbytes: int
    """Bytes of the decoded array."""
    file_bytes: int
    """Bytes of the file."""
    n_chunks: int
    """Number of chunks."""
    seconds: float
    """Wall time."""
    layout: Layout
    """Chunks and blocks."""
    codec: Codec
    """Compression."""

    @property
    def ratio(self) -> float:
        """Decoded bytes over stored bytes."""
        return self.nbytes / self.file_bytes

    def __str__(self) -> str:
        """Return the report as a few lines."""
        rate = self.nbytes / max(self.seconds, 1e-9) / 1e6
        return (
            f"{self.path}\n"
            f"  {self.dtype} {self.shape}: {self.nbytes / 1e6:.1f} MB in "
            f"{self.file_bytes / 1e6:.1f} MB, ratio {self.ratio:.2f}\n"
            f"  {self.n_chunks} chunks {self.layout.chunks} of blocks {self.layout.blocks}, "
            f"{self.codec}\n"
            f"  {self.seconds:.2f} s, {rate:.0f} MB/s"
        )


def to_mla(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    codec: str | Codec = DEFAULT_CODEC,
    mode: Literal["w-", "w"] = "w-",
    metadata: Metadata | None = None,
) -> WriteReport:
    """Write an array to one `.mla` file, which appears complete or not at all.

    The file is written beside the target under a temporary name, checked, forced to disk and
    renamed; an error leaves the target as it was. The same values, layout and codec give the same
    bytes. The reference package reads the result: releases 0.0.49 to 0.0.54, of files that state a
    coordinate system 0.0.54 only, because older ones refuse that field.

    Parameters
    ----------
    obj
        A DataArray, a Dataset with one data variable, a Dask array, an `MlaArray`, or anything
        NumPy takes. Labels, geometry and attributes of xarray objects are stored. Dask arrays are
        encoded on their workers; without a distributed client all their compressed chunks are in
        memory before the first is written.
    path
        The target, ending in ``.mla``.
    patch
        Window that will be read most, elements: one number for every spatial axis, one entry per
        spatial axis, or a mapping from dimension. Decides chunks and blocks. ``"default"`` is 192
        per spatial axis, None the whole array.
    chunks, blocks
        Explicit shapes instead of `patch`, elements, array order.
    codec
        Compression, such as ``"lz4hc-8"`` or ``"zstd-1-bitshuffle"``.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it. Replacing the file that `obj` is
        read from is safe.
    metadata
        Written instead of what the object itself says.

    Returns
    -------
    WriteReport
        Bytes, chunks, ratio, seconds, layout and codec.

    Raises
    ------
    FileExistsError
        When the target exists and `mode` is ``"w-"``.
    ConversionError
        When the object cannot be expressed: object types, several variables, another suffix.
    LayoutError
        When no layout satisfies the request.

    Examples
    --------
    >>> import numpy as np, xarray as xr, mlarray_xr
    >>> volume = xr.DataArray(
    ...     np.zeros((8, 16, 16), "int16"),
    ...     dims=("z", "y", "x"),
    ...     coords={"z": 2.0 * np.arange(8), "y": 0.5 * np.arange(16), "x": 0.5 * np.arange(16)},
    ... )
    >>> report = mlarray_xr.to_mla(volume, "volume.mla", patch=8)
    >>> xr.open_dataset("volume.mla", engine="mlarray").image.mla.spacing
    {'z': 2.0, 'y': 0.5, 'x': 0.5}
    """
    begin = time.perf_counter()
    target = _target(path)
    if mode not in ("w-", "w"):
        msg = f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)"
        raise ValueError(msg)
    values, found = _values_and_metadata(obj)
    _check_values(values)
    described = found if metadata is None else metadata
    axes = stored_axes(described, values.ndim)
    layout = plan_layout(
        values.shape,
        values.dtype,
        patch=patch,
        dims=axes.dims,
        spatial=axes.spatial,
        chunks=chunks,
        blocks=blocks,
    )
    chosen = Codec.parse(codec) if isinstance(codec, str) else codec
    plan = FramePlan(shape=values.shape, dtype_str=values.dtype.str, layout=layout, codec=chosen)
    stored = encode_metadata(_with_storage(described, plan))
    with published(target, overwrite=mode == "w") as file:
        writer = FrameWriter(file, plan=plan, metadata=stored)
        for encoded in _encoded(values, plan):
            writer.append(encoded)
        file_bytes = writer.finish()
    return WriteReport(
        path=target,
        shape=plan.shape,
        dtype=str(plan.dtype),
        nbytes=values.size * plan.dtype.itemsize,
        file_bytes=file_bytes,
        n_chunks=int(np.prod(plan.chunk_grid)) if values.size else 0,
        seconds=time.perf_counter() - begin,
        layout=layout,
        codec=chosen,
    )


def _target(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a target that the reference package would open."""
    target = os.fsdecode(path)
    if "://" in target:
        msg = f"{target}: URLs cannot be written. To fix: write a local file and upload it"
        raise ConversionError(msg)
    if not target.endswith(_SUFFIX):
        msg = f"{target}: the name must end in {_SUFFIX!r}: other readers go by it"
        raise ConversionError(msg)
    return os.path.abspath(os.path.expanduser(target))


def _values_and_metadata(obj: Any) -> tuple[Any, Metadata]:
    """Return an object's values, lazy where they are, and the metadata it stands for."""
    if isinstance(obj, xr.Dataset):
        if len(obj.data_vars) != 1:
            msg = (
                f"a Dataset of {len(obj.data_vars)} variables {sorted(map(str, obj.data_vars))}: "
                "one file holds one array. To fix: write each variable, ds[name], to its own file"
            )
            raise ConversionError(msg)
        _warn_of_left_behind(obj)
        obj = next(iter(obj.data_vars.values()))
    if isinstance(obj, xr.DataArray):
        data = obj.variable._data  # noqa: SLF001 - .data would load a lazy array whole
        lazy = data if is_dask(data) or isinstance(data, np.ndarray) else _LazyVariable(obj)
        return lazy, metadata_of(obj)
    if isinstance(obj, MlaArray):
        return obj, obj.metadata
    if is_dask(obj):
        return obj, Metadata(has_array=True)
    if isinstance(obj, str | bytes):
        msg = f"{obj[:80]!r}: an array is needed, not text. To fix: mlarray_xr.convert takes paths"
        raise ConversionError(msg)
    return np.asanyarray(obj), Metadata(has_array=True)


def _warn_of_left_behind(dataset: xr.Dataset) -> None:
    """Warn of what a dataset says beyond its variable: a file has no place for it."""
    array = next(iter(dataset.data_vars.values()))
    left = [*dataset.attrs, *(name for name in dataset.coords if name not in array.coords)]
    # What the engine itself puts on a dataset is in the variable's metadata.
    left = [name for name in left if name != METADATA_ATTR]
    if left:
        msg = (
            f"attributes and coordinates {sorted(map(str, left))} of the Dataset are not stored: "
            "a file holds one variable. To fix: put them on the variable"
        )
        warnings.warn(msg, MlaWarning, stacklevel=4)


def _check_values(values: Any) -> None:
    """Refuse what a type string and a shape of integers cannot express."""
    if values.dtype.names is not None or values.dtype.kind not in STORABLE_KINDS:
        msg = (
            f"arrays of type {values.dtype} cannot be written: numbers, booleans, dates and "
            "strings of fixed size can. To fix: convert with .astype(...)"
        )
        raise ConversionError(msg)
    if isinstance(getattr(values, "_meta", values), np.ma.MaskedArray):
        msg = "a masked array: its mask has no place in a file. To fix: array.filled(value)"
        raise ConversionError(msg)
    if not all(n >= 0 for n in values.shape):
        msg = f"extents of {values.shape} are unknown. To fix: array.compute_chunk_sizes()"
        raise ConversionError(msg)


class _LazyVariable:
    """A lazy DataArray as something that can be sliced part by part."""

    def __init__(self, source: xr.DataArray) -> None:
        self._source = source.variable
        self.shape, self.dtype = source.shape, source.dtype
        self.ndim, self.size = source.ndim, source.size

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self._source[key].to_numpy()


def _with_storage(metadata: Metadata, plan: FramePlan) -> Metadata:
    """Return the metadata with the layout that is really written."""
    patch = plan.layout.patch
    storage = Storage(
        chunk_size=plan.layout.chunks,
        block_size=plan.layout.blocks,
        patch_size=patch,
        cparams={"codec": plan.cparams().codec.value, "clevel": plan.codec.level},
        dparams={"nthreads": 1},
    )
    return replace(metadata, has_array=True, blosc2=storage)


def _encoded(values: Any, plan: FramePlan) -> Iterator[list[EncodedChunk]]:
    """Encode all parts, yielding them in order."""
    part = plan_part(
        plan.shape,
        plan.layout.chunks,
        itemsize=plan.dtype.itemsize,
        target_bytes=_PART_BYTES,
    )
    if is_dask(values):
        yield from encoded_parts(values, plan=plan, part=part)
        return
    if 0 in plan.shape:
        return

    def encode(box: Box) -> list[EncodedChunk]:
        # The ellipsis keeps a 0-d array an array: a scalar would lose its byte order.
        piece = values[(*(slice(a, b) for a, b in box), ...)]
        return encode_part(np.asarray(piece), box, plan)

    # One more part than threads waits, so that no thread idles while a part is written.
    threads = available_threads()
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for box in part_boxes(plan.shape, part):
            waiting.append(pool.submit(encode, box))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
