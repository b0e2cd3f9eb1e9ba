"""Creation: a new `.mla` file that is filled piece by piece, by assignment."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from mlarray_xr.errors import ConversionError
from mlarray_xr.file_write import file_name, prepare_file
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.planning.caches import caches_from
from mlarray_xr.planning.codec_choice import choose_codec_unseen
from mlarray_xr.planning.layout_request import LayoutRequest
from mlarray_xr.storage.canvas import Canvas
from mlarray_xr.subject import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.report import WriteReport
    from mlarray_xr.subject import Subject

__all__ = ["ArrayWriter", "create"]

_MEMORY = "512 MiB"


class ArrayWriter(Canvas):
    """What `create` gives: takes ``writer[key] = values`` until the ``with`` block ends."""

    report: WriteReport | None = None
    """What was written; there when the block has ended well."""


@contextlib.contextmanager
def create(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    dtype: DTypeLike,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    layout: Layout | Preset | None = None,
    caches: CacheSizes | Mapping[str, int | str] | str | None = None,
    dims: Sequence[str] | None = None,
    codec: str | Codec | CodecChoice = "auto",
    lossy: bool = False,
    prefer: Preference = "balanced",
    metadata: Metadata | None = None,
    mode: Literal["w-", "w"] = "w-",
    memory_limit: int | str = _MEMORY,
) -> Iterator[ArrayWriter]:
    """Fill a new `.mla` file in any order; it appears when the ``with`` block ends without error.

    Any region may be assigned, any number of times, and read back; what was never assigned is
    zeros. Chunks written last stay in memory decoded, others are compressed into a scratch file in
    ``<name>.mla.parts/`` beside the target. When the memory holds the chunks that are being
    filled, each is compressed once: for a volume that is filled plane by plane, those of one layer.
    Threads may share the writer, as ``dask.array.store`` does; processes may not: a Dask array on
    a cluster is written by `to_mla`.

    Parameters
    ----------
    path
        The target, ending in ``.mla``.
    shape
        Extents, array order.
    dtype
        Type of the elements. Values that it cannot hold are refused: whole numbers outside its
        range, floats for integers. Floats may be rounded.
    patch, chunks, blocks, layout, lossy, mode
        As of `to_mla`.
    caches
        As of `plan_layout`.
    codec, prefer
        As of `to_mla`, but ``"auto"`` has no values to try: it takes what suits most arrays.
        `choose_codec` tries codecs on a sample.
    dims
        Names of the dimensions, which are stored.
    metadata
        What is stored of the array, instead of `dims`.
    memory_limit
        Memory that chunks may take, bytes or a text such as ``"2GB"``.

    Yields
    ------
    ArrayWriter
        With shape, dtype and NumPy's indexing; its ``report`` is a `WriteReport` afterwards.

    Raises
    ------
    FileExistsError
        When the target exists and `mode` is ``"w-"``.
    TargetBusy
        When another writer is at work on the target.
    ConversionError
        When the type cannot be stored, or the suffix is another.
    LayoutError
        When no layout satisfies the request, not even one chunk fits the memory, or the codec is
        unknown, or lossy without ``lossy=True``.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> with mlarray_xr.create("planes.mla", shape=(3, 64, 64), dtype="int16", patch=32) as out:
    ...     for z in range(3):
    ...         out[z] = z + np.arange(64)
    >>> mlarray_xr.MlaArray("planes.mla")[2, 0, :3], out.report.nbytes
    (array([2, 3, 4], dtype=int16), 24576)
    """
    if mode not in ("w-", "w"):
        msg = f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)"
        raise ValueError(msg)
    memory_bytes, element = parse_bytes(memory_limit), np.dtype(dtype)
    choice = None
    if codec == "auto":
        reason = "no values to try codecs on"
        choice = choose_codec_unseen(element.itemsize, prefer=prefer, reason=reason)
    prepared = prepare_file(
        _blank(tuple(shape), element, dims=dims, metadata=metadata),
        file_name(path),
        request=LayoutRequest(
            patch=patch,
            chunks=chunks,
            blocks=blocks,
            layout=layout,
            caches=None if caches is None else caches_from(caches),
        ),
        codec=codec if choice is None else choice.codec,
        lossy=lossy,
        prefer=prefer,
        overwrite=mode == "w",
        metadata=metadata,
        block_index=False,
        align_chunks=True,
        compute=True,
        resume=False,
        memory_limit=None,
    )
    process = os.getpid()
    try:
        writer = ArrayWriter(prepared.job, memory_bytes=memory_bytes)
        try:
            yield writer
            writer.report = replace(prepared.report(writer.publish()), choice=choice)
        finally:
            writer.discard()
    except BaseException:
        if os.getpid() == process:  # not a forked child, whose parent goes on
            prepared.give_up()
        raise


def _blank(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    dims: Sequence[str] | None,
    metadata: Metadata | None,
) -> Subject:
    """Return what stands for the array before it has values."""
    zeros = np.broadcast_to(np.zeros((), dtype), shape)
    if zeros.dtype != dtype:
        msg = f"dtype {dtype} has no size. To fix: say how many characters, such as {zeros.dtype}"
        raise ConversionError(msg)
    if dims is None:
        return subject_of(zeros)
    if metadata is not None:
        msg = "dims and metadata were both given. To fix: name the axes in metadata.spatial"
        raise ConversionError(msg)
    if len(dims) != len(shape):
        msg = f"dims {tuple(dims)} for shape {shape}: one name per axis is needed"
        raise ConversionError(msg)
    return subject_of(xr.DataArray(zeros, dims=tuple(dims)))
