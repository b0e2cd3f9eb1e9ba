"""plan_layout: deciding chunk and block shapes from what is read, the machine and the format."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.access import Window, preset_windows, windows_of
from mlarray_xr.planning.blosc2_choice import blosc2_layout
from mlarray_xr.planning.caches import CacheSizes, caches_from
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.layout import Basis, Layout
from mlarray_xr.planning.layout_search import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    Task,
    amplification_of,
    search_blocks,
    search_shapes,
)
from mlarray_xr.planning.reference_rules import STRATEGIES, reference_layout
from mlarray_xr.planning.sizes import (
    patch_extents,
    sizes_per_axis,
    spatial_axes,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike

    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["Strategy", "check_limits", "plan_layout"]

Strategy = Literal["mlarray-0.0.53", "mlarray-0.0.54"]

_MAX_NDIM = 16
_MAX_EXTENT = 2**63 - 1


def plan_layout(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    patch: Sizes | str | None = "default",
    dims: Sequence[str] | None = None,
    spatial: Sequence[int] | None = None,
    access: Sequence[tuple[Sizes, float]] | None = None,
    layout: Preset | None = None,
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    caches: CacheSizes | Mapping[str, int | str] | str | None = None,
    codec: str | Codec | None = None,
    remote: bool = False,
    strategy: Strategy | None = None,
) -> Layout:
    """Decide the chunks and blocks with which an array is stored.

    What is read most decides: a patch, or several windows with weights. The shapes of least
    modelled cost are searched; the page "Choosing the layout" derives the model. One thread
    is modelled that reads windows at random offsets: bytes of blocks that are decoded, what every
    chunk and block costs besides, what caches hold, how much worse small blocks compress. Blocks
    decode no more for a patch than those of either rule of the reference package.

    Parameters
    ----------
    shape : sequence of int
        Extents of the array.
    dtype : dtype_like
        Element type; only its item size matters.
    patch : "default", int, sequence of int, mapping or None
        The window that will be read, in voxels. ``"default"`` is 192 per spatial axis. An int holds
        for every spatial axis. A sequence has one entry per spatial axis or one per array axis. A
        mapping goes by dimension name, with 192 for spatial dimensions it lacks. Along other axes
        one element is read unless the patch says more. None leaves the choice to Blosc2, which
        goes by the caches of this machine and not by what is read.
    dims : sequence of str, optional
        Dimension names. ``x``, ``y``, ``z`` and names that start with ``spatial`` are spatial, all
        axes if none is.
    spatial : sequence of int, optional
        Numbers of the spatial axes, ascending, instead of what their names say.
    access : sequence of (window, weight), optional
        Several windows instead of a patch, each with how often it is read. A window has one size
        per axis, -1 for the whole axis, or is a mapping by dimension name with whole axes where it
        says nothing: ``[((64, 64, 64), 10), ({"z": 1}, 1)]``.
    layout : {"frames", "series", "balanced"}, optional
        Named patterns for series: the whole space at one time, all times of one voxel, or both.
    chunks : int, sequence of int or mapping, optional
        Take these chunks, clipped to the shape, instead of planning for a patch. An int holds for
        every axis; dimensions that a mapping lacks are not split.
    blocks : int, sequence of int or mapping, optional
        Blocks to go with `chunks`, clipped to the chunk. Without them blocks are chosen for the
        patch that is the default, and evened out to need least padding.
    caches : CacheSizes, mapping or str, optional
        Cache sizes of the cores that will read; what `caches_from` takes. None detects those of
        this machine.
    codec : str or Codec, optional
        Compression, if it is known: how fast it is decoded moves the balance between bytes and
        pieces.
    remote : bool
        Whether the file will be read through a network, where every chunk costs a request.
    strategy : {"mlarray-0.0.53", "mlarray-0.0.54"}, optional
        The rule of a release of the reference package instead of the search, number for number.

    Returns
    -------
    Layout
        Its `patch` has one entry per spatial axis; None when no patch was planned for.

    Raises
    ------
    LayoutError
        If sizes are not positive integers, do not match the axes or contradict each other, if the
        result exceeds what a Blosc2 frame holds, or if the rule of a release has no answer.

    Examples
    --------
    >>> caches = {"l1": "32 KiB", "l2": "1 MiB", "l3": "2 MiB"}
    >>> plan_layout((60, 512, 512), "float32", patch=(1, 512, 512), caches=caches)
    Layout(chunks=(2, 256, 256), blocks=(1, 64, 128), patch=(1, 512, 512))
    >>> plan_layout((128, 512, 512), "float32", strategy="mlarray-0.0.54")
    Layout(chunks=(54, 54, 80), blocks=(18, 18, 20), patch=(192, 192, 192))
    """
    extents = _checked_shape(shape, dims)
    itemsize = np.dtype(dtype).itemsize
    if itemsize == 0:
        raise LayoutError(f"dtype {np.dtype(dtype)!r} has no bytes to store; give it a length")
    named = spatial_axes(dims, len(extents)) if spatial is None else _checked_axes(spatial, extents)
    _check_one_way(
        patch=patch, access=access, layout=layout, chunks=chunks, blocks=blocks, strategy=strategy
    )
    basis = Basis(
        shape=extents,
        itemsize=itemsize,
        caches=(
            None
            if caches is None and not _goes_by_caches(patch, chunks, blocks, strategy)
            else caches_from(caches)
        ),
        dims=None if dims is None else tuple(dims),
        spatial=named,
        codec=Codec.parse(codec) if isinstance(codec, str) else codec,
        remote=remote,
    )
    if not extents:
        planned = _with_basis(basis, (), (), rule="given")
    elif chunks is not None:
        planned = _given_layout(basis, chunks=chunks, blocks=blocks)
    elif access is not None:
        planned = _searched(basis, windows_of(access, shape=extents, dims=dims))
    elif layout is not None:
        planned = _searched(basis, preset_windows(layout, shape=extents, spatial=named))
    elif patch is None:
        planned = _blosc2_layout(basis)
    else:
        planned = _patch_layout(basis, patch=patch, strategy=strategy)
    check_limits(planned, extents, itemsize)
    return planned


def _checked_shape(shape: Sequence[int], dims: Sequence[str] | None) -> tuple[int, ...]:
    """Return plain extents that fit their names."""
    extents = tuple(whole_number(n, "shape", least=0) for n in shape)
    if max(extents, default=0) > _MAX_EXTENT:
        raise LayoutError(f"shape {extents} has an axis of more than {_MAX_EXTENT} elements")
    if len(extents) > _MAX_NDIM:
        raise LayoutError(f"shape {extents} has {len(extents)} axes; Blosc2 holds {_MAX_NDIM}")
    if dims is not None and len(dims) != len(extents):
        raise LayoutError(
            f"dims {tuple(dims)} name {len(dims)} axes, shape {extents} has {len(extents)}; "
            "give one name per axis"
        )
    return extents


def _goes_by_caches(patch: object, chunks: object, blocks: object, strategy: object) -> bool:
    """Tell whether the sizes of caches have a say."""
    is_given = chunks is not None and blocks is not None
    return not (is_given or patch is None or strategy is not None)


def _checked_axes(spatial: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return plain numbers of axes, ascending."""
    axes = tuple(whole_number(axis, "spatial", least=0) for axis in spatial)
    if list(axes) != sorted({*axes} & {*range(len(shape))}):
        raise LayoutError(
            f"spatial={axes} are not numbers of axes of {shape}, ascending, each once"
        )
    return axes


def _check_one_way(
    *,
    patch: object,
    access: object,
    layout: object,
    chunks: object,
    blocks: object,
    strategy: object,
) -> None:
    """Refuse several ways to say what is wanted."""
    ways = {"access": access, "layout": layout, "chunks": chunks}
    given = [f"{name}={value!r}" for name, value in ways.items() if value is not None]
    if not (isinstance(patch, str) and patch == "default"):
        given.insert(0, f"patch={patch!r}")
    if len(given) > 1:
        raise LayoutError(
            f"{' and '.join(given)} exclude each other; give the patch or the windows to have "
            "chunks planned, or the chunks alone"
        )
    if chunks is None and blocks is not None:
        raise LayoutError(f"blocks={blocks!r} were given without chunks; give both or neither")
    if strategy is not None:
        if strategy not in STRATEGIES:
            raise LayoutError(f"strategy={strategy!r} is unknown; there are {STRATEGIES}")
        if patch is None or [way for way in ways.values() if way is not None]:
            raise LayoutError(
                f"strategy={strategy!r} plans for one patch; give patch= or leave it at its default"
            )


def _patch_layout(basis: Basis, *, patch: Sizes | str, strategy: str | None) -> Layout:
    """Plan chunks and blocks for a patch."""
    shape = basis.shape
    named = basis.spatial or ()
    axes = named or tuple(range(len(shape)))
    wanted = patch_extents(patch, shape=shape, axes=axes, dims=basis.dims)
    window = tuple(min(p, max(n, 1)) for p, n in zip(wanted, shape, strict=True))
    # The format wants one patch entry per spatial axis: with none, there is none.
    recorded = tuple(wanted[axis] for axis in named) if named else None
    if strategy is not None:
        chunks, blocks = reference_layout(
            strategy,
            shape,
            basis.itemsize,
            patch=tuple(wanted[axis] for axis in axes),
            spatial=axes,
        )
        return _with_basis(
            basis, chunks, blocks, (Window(shape=window),), rule=strategy, patch=recorded
        )
    found = _searched(basis, (Window(shape=window),), bounded_by=wanted)
    return replace(found, patch=recorded)


def _searched(
    basis: Basis, windows: tuple[Window, ...], *, bounded_by: tuple[int, ...] | None = None
) -> Layout:
    """Search the layout of least cost; of one patch it decodes no more than the reference's."""
    if 0 in basis.shape:
        return _with_basis(basis, basis.shape, basis.shape, windows, rule="searched")
    task = Task(shape=basis.shape, itemsize=basis.itemsize, windows=windows, model=basis.model)
    if bounded_by is not None:
        bound = _least_amplification(basis, task, patch=bounded_by)
        task = replace(task, max_amplification=bound)
    chunks, blocks = search_shapes(task)
    return _with_basis(basis, chunks, blocks, windows, rule="searched")


def _least_amplification(basis: Basis, task: Task, *, patch: tuple[int, ...]) -> float:
    """Return the lower read amplification of the two rules of the reference package."""
    axes = basis.axes
    least = math.inf
    for strategy in STRATEGIES:
        try:
            chunks, blocks = reference_layout(
                strategy,
                basis.shape,
                basis.itemsize,
                patch=tuple(patch[axis] for axis in axes),
                spatial=axes,
            )
        except LayoutError:
            continue
        least = min(least, amplification_of(task, chunks=chunks, blocks=blocks))
    return least


def _blosc2_layout(basis: Basis) -> Layout:
    """Leave the choice to Blosc2."""
    chunks, blocks = blosc2_layout(basis.shape, basis.itemsize, codec=basis.codec or DEFAULT_CODEC)
    return _with_basis(basis, chunks, blocks, rule="Blosc2")


def _given_layout(basis: Basis, *, chunks: Sizes, blocks: Sizes | None) -> Layout:
    """Check and clip given chunks, and choose blocks for them if none are given."""
    shape = basis.shape
    chunk = _clipped(chunks, "chunks", whole=shape, dims=basis.dims)
    block = None if blocks is None else _clipped(blocks, "blocks", whole=chunk, dims=basis.dims)
    if 0 in shape:
        return _with_basis(basis, shape, shape, rule="given")
    if block is None:
        wanted = patch_extents("default", shape=shape, axes=basis.axes, dims=basis.dims)
        window = tuple(min(pair) for pair in zip(wanted, chunk, strict=True))
        block = search_blocks(
            Task(
                shape=chunk,
                itemsize=basis.itemsize,
                windows=(Window(shape=window),),
                model=basis.model,
            )
        )
    return _with_basis(basis, chunk, block, rule="given")


def _with_basis(
    basis: Basis,
    chunks: tuple[int, ...],
    blocks: tuple[int, ...],
    windows: tuple[Window, ...] = (),
    *,
    rule: str,
    patch: tuple[int, ...] | None = None,
) -> Layout:
    """Return a layout that knows what it is for, and who decided it."""
    known = replace(basis, windows=windows, rule=rule)
    return Layout(chunks=chunks, blocks=blocks, patch=patch, basis=known)


def _clipped(
    sizes: Sizes, name: str, *, whole: tuple[int, ...], dims: Sequence[str] | None
) -> tuple[int, ...]:
    """Return one size per axis, at most that of the whole."""
    per_axis = sizes_per_axis(sizes, name, missing=whole, dims=dims)
    return tuple(min(pair) for pair in zip(per_axis, whole, strict=True))


def check_limits(layout: Layout, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse layouts that a Blosc2 frame cannot hold.

    Raises
    ------
    LayoutError
        When blocks or chunks have too many bytes, or there are too many chunks.
    """
    block_bytes = math.prod(layout.blocks) * itemsize
    if block_bytes > MAX_BLOCK_BYTES:
        raise LayoutError(
            f"blocks {layout.blocks} of {itemsize}-byte elements take {block_bytes} bytes; "
            f"Blosc2 holds {MAX_BLOCK_BYTES}; give smaller blocks"
        )
    chunk_bytes = layout.chunk_bytes(itemsize)
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise LayoutError(
            f"chunks {layout.chunks} of {itemsize}-byte elements, padded to whole blocks "
            f"{layout.blocks}, take {chunk_bytes} bytes; Blosc2 holds {MAX_CHUNK_BYTES}; "
            "give smaller chunks"
        )
    nchunks = math.prod(-(-n // max(1, c)) for n, c in zip(shape, layout.chunks, strict=True))
    if nchunks > MAX_CHUNKS:
        raise LayoutError(
            f"shape {shape} in chunks {layout.chunks} makes {nchunks} chunks; a frame's index "
            f"holds {MAX_CHUNKS}; give larger chunks="
        )
