"""Reading parts of stored chunks: which byte ranges are asked for, in turn, and by whom."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.block_layout import head_bytes, most_chunk_bytes
from mlarray_xr.planning.byte_ranges import affordable_gap, plan_ranges
from mlarray_xr.planning.chunk_fetch import plan_chunk_fetch
from mlarray_xr.storage.chunk_box import chunk_layout, decode_fetched, decode_picked

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from zarr.abc.store import RangeByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from mlarray_xr.format.chunk_form import ChunkForm
    from mlarray_xr.storage.chunk_pick import Pick

__all__ = ["decoded", "read_chunk", "read_chunk_sync"]

_Result = TypeVar("_Result")
_Range: TypeAlias = "tuple[int, int] | None"
_Decode: TypeAlias = "Callable[[], NDArray[Any]]"
_Steps: TypeAlias = "Generator[list[_Range], list[NDArray[np.uint8] | None], _Decode | None]"

# Handing work to a thread takes 0.1 ms, and more when many do, as all wait for the GIL between two
# calls of the C library. On two CPUs decoding at once is faster for every size, on more of them
# whole chunks decode side by side: below this, patches of 64 cubed take two thirds of the time.
_INLINE_BYTES = 1 << 20


async def read_chunk(
    byte_getter: Any,
    prototype: BufferPrototype,
    form: ChunkForm,
    pick: Pick,
    *,
    dtype: np.dtype[Any],
) -> NDArray[Any] | None:
    """Read what a pick needs of a stored chunk; None when there is no chunk.

    Parameters
    ----------
    byte_getter
        What zarr reads the chunk from.
    prototype
        What zarr wants it in.
    form, pick, dtype
        As for `mlarray_xr.storage.chunk_box.decode_picked`.

    Raises
    ------
    ChunkError
        When the chunk is damaged.
    """
    steps = _reading(form, pick, dtype=dtype, name=_name_of(byte_getter))
    try:
        wanted = next(steps)
        while True:
            found = await _fetch(byte_getter, prototype, wanted)
            wanted = steps.send([_as_bytes(buffer) for buffer in found])
    except StopIteration as end:
        decode: _Decode | None = end.value
    if decode is None:
        return None
    return await decoded(decode, decoded_bytes=len(pick.numbers) * form.header.blocksize)


def read_chunk_sync(
    byte_getter: Any,
    prototype: BufferPrototype,
    form: ChunkForm,
    pick: Pick,
    *,
    dtype: np.dtype[Any],
) -> NDArray[Any] | None:
    """Read as `read_chunk` does, without an event loop: in a thread that zarr brings along."""
    steps = _reading(form, pick, dtype=dtype, name=_name_of(byte_getter))
    try:
        wanted = next(steps)
        while True:
            found = [
                byte_getter.get_sync(prototype=prototype, byte_range=_requested(span))
                for span in wanted
            ]
            wanted = steps.send([_as_bytes(buffer) for buffer in found])
    except StopIteration as end:
        decode: _Decode | None = end.value
    return None if decode is None else decode()


async def decoded(decode: Callable[[], _Result], *, decoded_bytes: int) -> _Result:
    """Decode in another thread, unless that is over before the thread would begin."""
    if decoded_bytes <= _INLINE_BYTES:
        return decode()
    return await asyncio.to_thread(decode)


def _reading(form: ChunkForm, pick: Pick, *, dtype: np.dtype[Any], name: str) -> _Steps:
    """Yield the ranges that are wanted at the same time, take their bytes; return the decoding.

    None stands for the whole object as a range, for no such object as bytes, and for no chunk as
    decoding.
    """
    header, n_wanted = form.header, len(pick.numbers)
    from_whole = partial(decode_picked, form=form, pick=pick, dtype=dtype, name=name)
    plan = plan_chunk_fetch(chunk_bytes=header.chunksize, n_blocks=form.n_blocks, n_wanted=n_wanted)
    if plan == "chunk":
        (stored,) = yield [None]
        return None if stored is None else partial(from_whole, stored)
    (head,) = yield [(0, head_bytes(header))]
    if head is None:
        return None
    layout = chunk_layout(head.tobytes(), form, room=most_chunk_bytes(header), name=name)
    if not layout.is_divisible:
        (stored,) = yield [(0, layout.cbytes)]
        return partial(from_whole, _there(stored, name=name))
    starts, stops = layout.spans(pick.numbers)
    ranges = plan_ranges(starts, stops, gap_bytes=affordable_gap(starts, stops))
    found = yield [(begin, end) for begin, end, _ in ranges]
    payloads = [b""] * n_wanted
    for (begin, end, spans), part in zip(ranges, found, strict=True):
        data = _there(part, name=name).tobytes()
        if len(data) < end - begin:
            msg = (
                f"{name}: {len(data)} bytes came from byte {begin}, {end - begin} were asked for: "
                "the chunk is cut off, or was replaced while it was read. To fix: read it again"
            )
            raise ChunkError(msg)
        for place in spans.tolist():
            payloads[place] = data[int(starts[place]) - begin : int(stops[place]) - begin]
    return partial(
        decode_fetched, payloads, layout=layout, form=form, pick=pick, dtype=dtype, name=name
    )


async def _fetch(
    byte_getter: Any, prototype: BufferPrototype, wanted: list[_Range]
) -> list[Buffer | None]:
    """Fetch ranges at the same time, as many as zarr is configured for."""
    import zarr

    room = asyncio.Semaphore(zarr.config.get("async.concurrency"))

    async def fetch(span: _Range) -> Buffer | None:
        async with room:
            found: Buffer | None = await byte_getter.get(prototype, byte_range=_requested(span))
            return found

    return await asyncio.gather(*map(fetch, wanted))


def _name_of(byte_getter: Any) -> str:
    """Return what to call a chunk in errors; the text of one in a shard would be all its bytes."""
    from zarr.storage import StorePath

    return str(byte_getter) if isinstance(byte_getter, StorePath) else "chunk of a shard"


def _there(found: NDArray[np.uint8] | None, *, name: str) -> NDArray[np.uint8]:
    """Return bytes that have to be there, as others of the same chunk were."""
    if found is None:
        msg = f"{name}: the chunk was removed while it was read. To fix: read it again"
        raise ChunkError(msg)
    return found


def _requested(span: _Range) -> RangeByteRequest | None:
    """Return a range as zarr asks for it."""
    from zarr.abc.store import RangeByteRequest

    return None if span is None else RangeByteRequest(*span)


def _as_bytes(buffer: Buffer | None) -> NDArray[np.uint8] | None:
    """Return what came as a contiguous array of bytes."""
    if buffer is None:
        return None
    return np.ascontiguousarray(buffer.as_numpy_array()).view(np.uint8)
