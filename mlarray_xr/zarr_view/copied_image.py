"""One array of a Zarr copy: which of its objects hold which stored chunks of a file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError, LayoutError
from mlarray_xr.format.chunk import repeated_chunk
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.zarr_view.chunk_runs import ChunkChecks, plan_runs, read_run
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from mlarray_xr.zarr_view.shard import encode_shard_table, shard_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.remote_source import Source
    from mlarray_xr.zarr_view.chunk_runs import ChunkRun
    from mlarray_xr.zarr_view.chunk_target import ChunkTarget

__all__ = [
    "CopiedImage",
    "ImagePiece",
    "copy_piece",
    "plan_image",
    "plan_pieces",
    "shard_extents",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CopiedImage:
    """Where the chunks of an array come from, and what they are called; picklable."""

    path: str
    """Path of the array in the Zarr store."""
    source: Source
    """The file."""
    header: FrameHeader
    """Its checked header."""
    per_shard: tuple[int, ...] | None
    """Number of chunks of a shard along each axis; None for one object per chunk."""
    nan_chunk: bytes = field(repr=False)
    """What stands for a chunk of NaN that the file has no payload of; empty of types without."""

    def key(self, position: Iterable[int]) -> str:
        """Return the key of the chunk or the shard at a place of its grid."""
        return "/".join((self.path, "c", *map(str, position)))

    def chunk_key(self, number: int) -> str:
        """Return the key of a chunk by its number."""
        grid = self.header.chunk_grid
        return self.key(map(int, np.unravel_index(number, grid)) if grid else ())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImagePiece:
    """What one task copies: the chunks of a run, one object each, or those of one shard."""

    runs: Sequence[ChunkRun]
    """Chunks that are copied."""
    nan_numbers: NDArray[np.int64]
    """Chunks of NaN without payload, where the fill value is another."""
    shard: tuple[int, ...] | None = None
    """Place of the shard in the grid of shards."""

    @property
    def n_chunks(self) -> int:
        """Number of chunks that are stored."""
        return sum(len(run.numbers) for run in self.runs) + len(self.nan_numbers)


def shard_extents(
    shards: str | int | Sequence[int], *, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return the extents of a shard: whole chunks, no more than cover the array.

    None for arrays without elements, and without axes: they have no shards.

    Parameters
    ----------
    shards
        ``"file"``, which is one shard for all; or extents, elements, one for all axes or each.
    shape, chunks
        Of the array.

    Raises
    ------
    LayoutError
        When these are no extents.

    Examples
    --------
    >>> shard_extents("file", shape=(100, 70), chunks=(32, 32))
    (128, 96)
    >>> shard_extents(40, shape=(100, 70), chunks=(32, 32))
    (64, 64)
    """
    is_file = isinstance(shards, str) and shards == "file"
    wanted: tuple[Any, ...] = (shards,) * len(shape)
    if np.iterable(shards) and not isinstance(shards, str):
        wanted = tuple(shards)
    if len(wanted) != len(shape) or not (is_file or all(map(_is_extent, wanted))):
        raise LayoutError(
            f"shards={shards!r} for shape {shape}: give 'file', one extent, or one per axis"
        )
    if not shape or 0 in shape:
        return None
    return tuple(
        -(-(n if is_file else min(int(s), n)) // c) * c
        for s, n, c in zip(wanted, shape, chunks, strict=True)
    )


def _is_extent(number: Any) -> bool:
    """Tell whether something is a positive integer, Python's or NumPy's."""
    is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return is_integer and bool(number > 0)


def plan_image(file: MlaArray, *, path: str, shards: tuple[int, ...] | None) -> CopiedImage:
    """Return where the chunks of a file go.

    Parameters
    ----------
    file
        The file.
    path
        Path of the array in the Zarr store.
    shards
        Extents of a shard; None for one object per chunk.
    """
    header = file._header  # noqa: SLF001 - bytes, where the array gives values
    per_shard = None
    if shards is not None:
        per_shard = tuple(s // c for s, c in zip(shards, file.chunks, strict=True))
    has_nan = header.dtype.kind in "fc"
    return CopiedImage(
        path=path,
        source=file._source,  # noqa: SLF001
        header=header,
        per_shard=per_shard,
        nan_chunk=_nan_chunk(header) if has_nan else b"",
    )


def _nan_chunk(header: FrameHeader) -> bytes:
    """Return a chunk of NaN with a payload."""
    return repeated_chunk(np.full((), np.nan, header.dtype).tobytes(), header)


def plan_pieces(image: CopiedImage) -> Iterator[ImagePiece]:
    """Yield what has to be copied, piece by piece.

    Raises
    ------
    FormatError
        When the chunk table of the file, or what it records of its chunks, is damaged.
    """
    header, table = image.header, ChunkTable.read(image.source)
    runs_of = partial(plan_runs, header=header, name=image.source.name)
    checks = ChunkChecks.read(image.source, header)
    odd, everything = table.odd(header.dtype), np.arange(len(table.starts))
    if len(odd) and not image.nan_chunk:
        raise ChunkError(
            f"{image.source.name}: chunk {odd[0]} of {header.dtype} is said to be NaN: the chunk "
            "index is damaged"
        )
    if image.per_shard is None:
        for run in runs_of(everything, table, checks):
            yield ImagePiece(runs=(run,), nan_numbers=odd[:0])
        if len(odd):
            yield ImagePiece(runs=(), nan_numbers=odd)
        return
    grid = (-(-n // m) for n, m in zip(table.grid, image.per_shard, strict=True))
    for shard in itertools.product(*map(range, grid)):
        numbers, _ = shard_members(shard, per_shard=image.per_shard, grid=table.grid)
        runs = runs_of(numbers, table, checks)
        piece = ImagePiece(runs=runs, nan_numbers=np.intersect1d(numbers, odd), shard=shard)
        if piece.n_chunks:
            yield piece


def copy_piece(
    piece: ImagePiece, image: CopiedImage, target: ChunkTarget, *, side_by_side: bool
) -> int:
    """Copy the chunks of a piece, and return how many.

    Parameters
    ----------
    piece, image
        What is copied.
    target
        Where to.
    side_by_side
        Whether the runs of a shard are read by several threads.

    Raises
    ------
    ChunkError
        When a chunk is damaged.
    """
    tasks = (partial(read_run, run, image.source, image.header) for run in piece.runs)
    runs = run_ordered(tasks) if side_by_side else (task() for task in tasks)
    chunks: Iterator[tuple[int, bytes | memoryview]] = itertools.chain(
        itertools.chain.from_iterable(runs),
        ((number, image.nan_chunk) for number in piece.nan_numbers.tolist()),
    )
    if piece.shard is None:
        for number, data in chunks:
            target.put(image.chunk_key(number), data)
    else:
        _copy_shard(chunks, piece.shard, image, target)
    return piece.n_chunks


def _copy_shard(
    chunks: Iterable[tuple[int, bytes | memoryview]],
    shard: tuple[int, ...],
    image: CopiedImage,
    target: ChunkTarget,
) -> None:
    """Put chunks one after another into a shard, and the table of their places behind them."""
    per_shard: Any = image.per_shard
    numbers, places = shard_members(shard, per_shard=per_shard, grid=image.header.chunk_grid)
    place_of = dict(zip(numbers.tolist(), places.tolist(), strict=True))
    table = np.full((2, int(np.prod(per_shard))), -1, np.int64)
    end = 0
    with target.joined(image.key(shard)) as write:
        for number, data in chunks:
            table[:, place_of[number]] = end, len(data)
            write(data)
            end += len(data)
        write(encode_shard_table(*table))
