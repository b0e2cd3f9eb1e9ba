"""Deciding chunk and block shapes from a patch size, an item size and two cache sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["DEFAULT_PATCH", "Layout", "Sizes", "plan_layout"]

# One size for every axis, one per axis, or one per dimension name.
Sizes: TypeAlias = int | Sequence[int] | Mapping[str, int]
DEFAULT_PATCH = 192

_L1_BYTES = 32_768
_L3_BYTES = 1_441_792
_CACHE_SHARE = 0.8

_MAX_NDIM = 16
_MAX_BLOCK_BYTES = 536_866_816
_MAX_CHUNK_BYTES = 2**31 - 33
_MAX_CHUNKS = 268_435_455

_SPATIAL_NAMES = frozenset({"x", "y", "z"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The chunk and block shapes of one file.

    Chunks may exceed the array (files of other writers do) and blocks need not divide chunks.

    Parameters
    ----------
    chunks : tuple of int
        Extent of a chunk per axis, in array order; 0 only on an axis of extent 0.
    blocks : tuple of int
        Extent of a block per axis, at most the chunk's; 0 exactly where the chunk is 0.
    patch : tuple of int or None
        The patch the shapes were planned for, one extent per spatial axis; None if there was none.

    Raises
    ------
    LayoutError
        If the shapes differ in length, have more than 16 axes, or a block exceeds its chunk.

    Examples
    --------
    >>> layout = Layout(chunks=(1, 64, 80), blocks=(1, 32, 32))
    >>> layout.block_grid
    (1, 2, 3)
    >>> layout.padded_chunk
    (1, 64, 96)
    >>> layout.chunk_bytes(4)
    24576
    """

    chunks: tuple[int, ...]
    blocks: tuple[int, ...]
    patch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not nest."""
        ndim = len(self.chunks)
        if ndim != len(self.blocks):
            raise LayoutError(
                f"chunks {self.chunks} have {ndim} axes, blocks {self.blocks} have "
                f"{len(self.blocks)}; give one chunk and one block extent per axis"
            )
        if ndim > _MAX_NDIM:
            raise LayoutError(f"a layout of {ndim} axes was asked for; Blosc2 holds {_MAX_NDIM}")
        for axis, (chunk, block) in enumerate(zip(self.chunks, self.blocks, strict=True)):
            if not (0 < block <= chunk or chunk == block == 0):
                raise LayoutError(
                    f"axis {axis} has chunk {chunk} and block {block}; a block must be at least 1 "
                    "and at most its chunk (both are 0 on an axis of extent 0)"
                )
        if self.patch is not None and (len(self.patch) > ndim or min(self.patch, default=0) < 1):
            raise LayoutError(
                f"patch {self.patch} does not fit {ndim} axes; give one positive extent per "
                "spatial axis, or None"
            )

    @property
    def block_grid(self) -> tuple[int, ...]:
        """Number of blocks along each axis of one chunk."""
        return tuple(
            -(-chunk // block) if block else 0
            for chunk, block in zip(self.chunks, self.blocks, strict=True)
        )

    @property
    def padded_chunk(self) -> tuple[int, ...]:
        """Extent of a chunk per axis, rounded up to whole blocks: what is stored and decoded."""
        return tuple(n * block for n, block in zip(self.block_grid, self.blocks, strict=True))

    def chunk_bytes(self, itemsize: int) -> int:
        """Return the uncompressed bytes of one padded chunk of `itemsize`-byte elements."""
        return math.prod(self.padded_chunk) * itemsize


def plan_layout(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    patch: Sizes | str | None = "default",
    dims: Sequence[str] | None = None,
    spatial: Sequence[int] | None = None,
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
) -> Layout:
    """Decide the chunks and blocks with which an array is stored; a pure function.

    The rule is that of the reference package ``mlarray`` 0.0.54 and gives the same numbers. A block
    may fill 0.8 of a 32 768-byte L1 cache, a chunk 0.8 of a 1 441 792-byte L3 share. Blocks start
    at 2 along every spatial axis. In each round one axis grows, by twice its weight: its patch
    extent over the smallest one, rounded. The axis whose growth fills the cache best wins, the last
    one on a tie, until none fits. Chunks grow from the block alike, by weight times block, and an
    axis rests beyond 1.5 patches. Growth is clipped at the array's extent. Where the reference
    gives up (large elements, many axes), axes stay at 1. An empty array is one chunk and one block.

    Parameters
    ----------
    shape : sequence of int
        Extents of the array.
    dtype : dtype_like
        Element type; only its item size matters.
    patch : "default", int, sequence of int, mapping or None
        The window that will be read, in voxels. ``"default"`` is 192 per spatial axis. An int holds
        for every spatial axis. A sequence has one entry per spatial axis or one per array axis. A
        mapping goes by dimension name, with 192 for spatial dimensions it lacks. None plans for the
        whole array. Entries of non-spatial axes have no effect.
    dims : sequence of str, optional
        Dimension names. ``x``, ``y``, ``z`` and names that start with ``spatial`` are spatial, all
        axes if none is; chunks and blocks have extent 1 along the others.
    spatial : sequence of int, optional
        Numbers of the spatial axes, ascending, instead of what their names say.
    chunks : int, sequence of int or mapping, optional
        Take these chunks, clipped to the shape, instead of planning for a patch. An int holds for
        every axis; dimensions that a mapping lacks are not split.
    blocks : int, sequence of int or mapping, optional
        Blocks to go with `chunks`, clipped to the chunk. Without them the block rule is applied
        inside the chunk, with equal weights, and the result is evened out to need least padding.

    Returns
    -------
    Layout
        Its `patch` has one entry per spatial axis; None for given chunks or unnamed space.

    Raises
    ------
    LayoutError
        If sizes are not positive integers, do not match the axes or contradict each other, or if
        the result exceeds what a Blosc2 frame holds.

    Examples
    --------
    >>> plan_layout((128, 512, 512), "float32")
    Layout(chunks=(54, 54, 80), blocks=(18, 18, 20), patch=(192, 192, 192))
    >>> plan_layout((4, 512, 512), "float32", patch=256, dims=("channel", "y", "x"))
    Layout(chunks=(1, 400, 400), blocks=(1, 80, 80), patch=(256, 256))
    """
    extents = tuple(_size(n, "shape", least=0) for n in shape)
    if len(extents) > _MAX_NDIM:
        raise LayoutError(f"shape {extents} has {len(extents)} axes; Blosc2 holds {_MAX_NDIM}")
    itemsize = np.dtype(dtype).itemsize
    if itemsize == 0:
        raise LayoutError(f"dtype {np.dtype(dtype)!r} has no bytes to store; give it a length")
    if dims is not None and len(dims) != len(extents):
        raise LayoutError(
            f"dims {tuple(dims)} name {len(dims)} axes, shape {extents} has {len(extents)}; "
            "give one name per axis"
        )
    named = _spatial_axes(dims, len(extents)) if spatial is None else tuple(spatial)
    if chunks is not None:
        if not isinstance(patch, str):
            raise LayoutError(
                f"patch={patch!r} and chunks={chunks!r} exclude each other; give the patch to have "
                "chunks planned, or the chunks alone"
            )
        layout = _given_layout(
            extents, itemsize, chunks=chunks, blocks=blocks, dims=dims, named=named
        )
    elif blocks is not None:
        raise LayoutError(f"blocks={blocks!r} were given without chunks; give both or neither")
    else:
        layout = _patch_layout(extents, itemsize, patch=patch, dims=dims, named=named)
    _check_limits(layout, extents, itemsize)
    return layout


def _patch_layout(
    shape: tuple[int, ...],
    itemsize: int,
    *,
    patch: Sizes | str | None,
    dims: Sequence[str] | None,
    named: tuple[int, ...],
) -> Layout:
    """Plan chunks and blocks for a patch."""
    axes = named or tuple(range(len(shape)))
    window = _patch_extents(patch, shape=shape, axes=axes, dims=dims)
    # The format wants one patch entry per spatial axis: with none, there is none.
    recorded = window if named else None
    if 0 in shape:
        return Layout(chunks=shape, blocks=shape, patch=recorded)
    extents = tuple(shape[axis] for axis in axes)
    weights = tuple(round(n / min(window)) for n in window)
    block = _grown_block(extents, weights, itemsize)
    chunk = _grown_chunk(extents, weights, itemsize, block=block, patch=window)
    return Layout(
        chunks=_spread(chunk, axes, len(shape)),
        blocks=_spread(block, axes, len(shape)),
        patch=recorded,
    )


def _given_layout(
    shape: tuple[int, ...],
    itemsize: int,
    *,
    chunks: Sizes,
    blocks: Sizes | None,
    dims: Sequence[str] | None,
    named: tuple[int, ...],
) -> Layout:
    """Check and clip given chunks, and choose blocks for them if none are given."""
    chunk = _clipped(chunks, "chunks", whole=shape, dims=dims)
    block = None if blocks is None else _clipped(blocks, "blocks", whole=chunk, dims=dims)
    if 0 in shape:
        return Layout(chunks=shape, blocks=shape)
    if block is None:
        axes = named or tuple(range(len(shape)))
        extents = tuple(chunk[axis] for axis in axes)
        grown = _grown_block(extents, (1,) * len(axes), itemsize)
        counts = [-(-n // size) for n, size in zip(extents, grown, strict=True)]
        even = tuple(-(-n // count) for n, count in zip(extents, counts, strict=True))
        block = _spread(even, axes, len(shape))
    return Layout(chunks=chunk, blocks=block)


def _grown_block(
    extents: tuple[int, ...], weights: tuple[int, ...], itemsize: int
) -> tuple[int, ...]:
    """Grow a block over the spatial axes from 2 per axis to the L1 budget."""
    budget = max(1, int(_L1_BYTES * _CACHE_SHARE) // itemsize)
    start = [1] * len(extents)
    for axis in reversed(range(len(extents))):
        if math.prod(start) * 2 <= budget:
            start[axis] = min(2, extents[axis])
    steps = tuple(2 * weight for weight in weights)
    return _grown(tuple(start), steps=steps, extents=extents, rests=extents, budget=budget)


def _grown_chunk(
    extents: tuple[int, ...],
    weights: tuple[int, ...],
    itemsize: int,
    *,
    block: tuple[int, ...],
    patch: tuple[int, ...],
) -> tuple[int, ...]:
    """Grow a chunk over the spatial axes from one block to the L3 budget or 1.5 patches."""
    steps = tuple(weight * size for weight, size in zip(weights, block, strict=True))
    beyond = tuple(3 * n // 2 + 1 for n in patch)
    rests = tuple(min(pair) for pair in zip(extents, beyond, strict=True))
    budget = max(1, int(_L3_BYTES * _CACHE_SHARE) // itemsize)
    return _grown(block, steps=steps, extents=extents, rests=rests, budget=budget)


def _grown(
    start: tuple[int, ...],
    *,
    steps: tuple[int, ...],
    extents: tuple[int, ...],
    rests: tuple[int, ...],
    budget: int,
) -> tuple[int, ...]:
    """Grow one axis after the other, largest volume first, while an axis below its rest fits."""
    sizes = list(start)
    while True:
        volume = math.prod(sizes)
        best = (0, 0, 0)
        for axis in reversed(range(len(sizes))):
            if sizes[axis] < rests[axis]:
                size = min(sizes[axis] + steps[axis], extents[axis])
                grown = volume // sizes[axis] * size
                if best[0] < grown <= budget:
                    best = (grown, axis, size)
        if best[0] == 0:
            return tuple(sizes)
        sizes[best[1]] = best[2]


def _spatial_axes(dims: Sequence[str] | None, ndim: int) -> tuple[int, ...]:
    """Return the axes that are spatial by name; all of them without names."""
    return tuple(
        axis
        for axis in range(ndim)
        if dims is None or dims[axis] in _SPATIAL_NAMES or dims[axis].startswith("spatial")
    )


def _spread(sizes: tuple[int, ...], axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Place spatial sizes on their array axes, with 1 on every other axis."""
    placed = dict(zip(axes, sizes, strict=True))
    return tuple(placed.get(axis, 1) for axis in range(ndim))


def _patch_extents(
    patch: Sizes | str | None,
    *,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    dims: Sequence[str] | None,
) -> tuple[int, ...]:
    """Express every spelling of a patch as one positive extent per spatial axis."""
    if patch is None:
        return tuple(max(1, shape[axis]) for axis in axes)
    if isinstance(patch, str):
        if patch != "default":
            raise LayoutError(f"patch={patch!r} is no patch; give 'default', sizes or None")
        return (DEFAULT_PATCH,) * len(axes)
    if isinstance(patch, Sequence) and len(patch) == len(axes):
        return tuple(_size(n, "patch", least=1) for n in patch)
    if isinstance(patch, Sequence) and len(patch) != len(shape):
        raise LayoutError(
            f"patch={tuple(patch)} has {len(patch)} entries for {len(axes)} spatial axes of "
            f"{len(shape)}; give one entry per spatial axis or one per axis"
        )
    per_axis = _per_axis(patch, "patch", missing=(DEFAULT_PATCH,) * len(shape), dims=dims)
    return tuple(per_axis[axis] for axis in axes)


def _clipped(
    sizes: Sizes, name: str, *, whole: tuple[int, ...], dims: Sequence[str] | None
) -> tuple[int, ...]:
    """Return one size per axis, at most that of the whole."""
    per_axis = _per_axis(sizes, name, missing=whole, dims=dims)
    return tuple(min(pair) for pair in zip(per_axis, whole, strict=True))


def _per_axis(
    sizes: Sizes, name: str, *, missing: tuple[int, ...], dims: Sequence[str] | None
) -> tuple[int, ...]:
    """Express sizes as one per axis; `missing` serves dimensions that a mapping lacks."""
    if isinstance(sizes, Mapping):
        if dims is None:
            raise LayoutError(f"{name}={dict(sizes)} goes by dimension name; give dims= as well")
        unknown = [dim for dim in sizes if dim not in dims]
        if unknown:
            raise LayoutError(f"{name} names {unknown}; the dimensions are {tuple(dims)}")
        given = {dim: _size(n, name, least=1) for dim, n in sizes.items()}
        return tuple(given.get(dim, n) for dim, n in zip(dims, missing, strict=True))
    if not isinstance(sizes, Sequence):
        return (_size(sizes, name, least=1),) * len(missing)
    if len(sizes) != len(missing):
        raise LayoutError(
            f"{name}={tuple(sizes)} has {len(sizes)} entries for {len(missing)} axes; "
            "give one per axis, one int for all, or a mapping by dimension name"
        )
    return tuple(_size(n, name, least=1) for n in sizes)


def _size(value: object, name: str, *, least: int) -> int:
    """Return a plain int of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise LayoutError(f"{name} holds {value!r}; every size must be an integer >= {least}")
    return int(value)


def _check_limits(layout: Layout, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse layouts that a Blosc2 frame cannot hold."""
    block_bytes = math.prod(layout.blocks) * itemsize
    if block_bytes > _MAX_BLOCK_BYTES:
        raise LayoutError(
            f"blocks {layout.blocks} of {itemsize}-byte elements take {block_bytes} bytes; "
            f"Blosc2 holds {_MAX_BLOCK_BYTES}; give smaller blocks"
        )
    chunk_bytes = layout.chunk_bytes(itemsize)
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise LayoutError(
            f"chunks {layout.chunks} of {itemsize}-byte elements, padded to whole blocks "
            f"{layout.blocks}, take {chunk_bytes} bytes; Blosc2 holds {_MAX_CHUNK_BYTES}; "
            "give smaller chunks"
        )
    nchunks = math.prod(-(-n // max(1, c)) for n, c in zip(shape, layout.chunks, strict=True))
    if nchunks > _MAX_CHUNKS:
        raise LayoutError(
            f"shape {shape} in chunks {layout.chunks} makes {nchunks} chunks; a frame's index "
            f"holds {_MAX_CHUNKS}; give larger chunks="
        )
