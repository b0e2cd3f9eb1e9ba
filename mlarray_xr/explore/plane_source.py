"""Where the planes of an array come from: levels, slabs, the cache, and the samples of a plane."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.opened_file import file_of
from mlarray_xr.planning.plane_request import Level, level_factors, plan_plane
from mlarray_xr.template import stored_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.explore.plane_cache import PlaneCache
    from mlarray_xr.explore.scene import Scene
    from mlarray_xr.planning.plane_request import PlaneRequest, Slab, VisiblePlane

__all__ = ["PlaneSource", "Raster"]

_SLAB_SHARE = 8
"""A slab takes at most an eighth of the cache: those around it are kept, and those of labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """Samples of a plane and where they lie."""

    values: NDArray[Any]
    """(rows, columns), or (rows, columns, 3) of colours; the array's type."""
    extent: tuple[tuple[float, float], tuple[float, float]]
    """Edges of the first and the last sample along rows and columns, in voxels of the image."""
    coarseness: int
    """Voxels of the image along an axis that a sample stands for, the most of both."""


class PlaneSource:
    """Reads planes of a lazy or loaded array, as coarse as they are shown.

    Slabs of parallel planes that are stored in the same blocks are read together and kept, so
    that every block is decoded once while somebody goes from slice to slice. Thread-safe.

    Parameters
    ----------
    levels
        The array, then coarser overviews of it of the same dimensions; those that do not fit are
        left out.
    scene
        What is shown of the array.
    cache
        Keeps slabs.
    name
        Tells the slabs of this array from others in the cache.

    Examples
    --------
    >>> import xarray as xr
    >>> from mlarray_xr.explore.plane_cache import PlaneCache
    >>> from mlarray_xr.explore.scene import scene_of
    >>> from mlarray_xr.explore.viewer_state import first_state
    >>> image = xr.DataArray(np.arange(24).reshape(2, 3, 4), dims=("z", "y", "x"))
    >>> cache = PlaneCache(limit_bytes=1 << 20)
    >>> source = PlaneSource([image], scene=scene_of(image), cache=cache, name="image")
    >>> state = first_state(scene_of(image), size_px=64, window=(0, 23))
    >>> source.plane(state.visible).values[0]
    array([12, 13, 14, 15])
    """

    def __init__(
        self, levels: Sequence[xr.DataArray], *, scene: Scene, cache: PlaneCache, name: str
    ) -> None:
        self._cache, self._name = cache, name
        self._colours = (slice(None),) if scene.has_colours else ()
        known = [(array, _level_of(array, scene)) for array in levels]
        self._arrays = [array for array, level in known if level is not None]
        self._levels = [level for _, level in known if level is not None]
        array = self._arrays[0]
        self._itemsize = array.dtype.itemsize * (array.shape[-1] if scene.has_colours else 1)

    def plane(self, seen: VisiblePlane) -> Raster:
        """Return the samples of what is visible."""
        request = self._request(seen)
        values = self._slab(request.slab)[request.index]
        if request.is_transposed:
            values = values.swapaxes(0, 1)
        per_sample = [
            step * factor
            for step, factor in zip(
                request.slab.strides, self._levels[request.slab.level].factors, strict=True
            )
        ]
        return Raster(
            values=values,
            extent=request.extent,
            coarseness=max(per_sample[seen.rows], per_sample[seen.columns]),
        )

    def read_ahead(self, seen: VisiblePlane, *, heading: int) -> None:
        """Read the slab after the one that is visible, if there is one and it is not kept."""
        slab = self._request(seen).slab
        level = self._levels[slab.level]
        start, stop = slab.box[seen.scroll]
        after = stop if heading > 0 else start - 1
        if seen.scroll in (seen.rows, seen.columns) or not 0 <= after < level.shape[seen.scroll]:
            return
        position = list(seen.position)
        position[seen.scroll] = after * level.factors[seen.scroll]
        following = self._request(replace(seen, position=tuple(position))).slab
        if (self._name, following) not in self._cache:
            self._slab(following)

    def value(self, position: Sequence[int]) -> Any:
        """Return the value of one voxel, or its colours, of the array itself."""
        # A lazily transposed array cannot be indexed by integers alone (xarray 2026.9).
        key = tuple(slice(at, at + 1) for at in position)
        return _loaded(self._arrays[0], (*key, *self._colours)).squeeze(tuple(range(len(key))))

    def _request(self, seen: VisiblePlane) -> PlaneRequest:
        """Decide what is read."""
        return plan_plane(
            self._levels,
            seen,
            itemsize=self._itemsize,
            slab_bytes=self._cache.limit_bytes // _SLAB_SHARE,
        )

    def _slab(self, slab: Slab) -> NDArray[Any]:
        """Return the samples of a slab."""

        def read() -> NDArray[Any]:
            return _loaded(self._arrays[slab.level], (*slab.slices(), *self._colours))

        return self._cache.get((self._name, slab), read)


def _level_of(array: xr.DataArray, scene: Scene) -> Level | None:
    """Return how an array is stored and how coarse it is; None when it is no level of the image."""
    n = len(scene.shape)
    factors = None
    if array.ndim == n + scene.has_colours and array.dims[:n] == scene.dims:
        factors = level_factors(scene.shape, array.shape[:n])
    if factors is None:
        return None
    chunks, blocks = _stored_together(array)
    return Level(shape=array.shape[:n], factors=factors, chunks=chunks[:n], blocks=blocks[:n])


def _stored_together(array: xr.DataArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunks and blocks of an array, ones where nothing is known."""
    layout = None if file_of(array) is None else stored_layout(array)
    if layout is not None and layout.basis is not None:
        return layout.chunks, layout.blocks
    if array.chunks is not None:
        parts = tuple(max(sizes) for sizes in array.chunks)  # what a task computes
        return parts, parts
    preferred = array.encoding.get("preferred_chunks", {})
    sizes = [preferred.get(dim, 1) for dim in array.dims]
    known = tuple(size if isinstance(size, int) and size > 0 else 1 for size in sizes)
    return known, known


def _loaded(array: xr.DataArray, key: tuple[slice, ...]) -> NDArray[Any]:
    """Read a selection; of complex numbers the magnitude."""
    values: NDArray[Any] = array[key].to_numpy()
    return np.abs(values) if values.dtype.kind == "c" else values
