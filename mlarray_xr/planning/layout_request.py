"""LayoutRequest: what a writer asks of the layout, before shape and type are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import check_limits, plan_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["LayoutRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRequest:
    """What is asked of the layout of a file; see `mlarray_xr.to_mla`.

    Raises
    ------
    LayoutError
        When a layout is given, and something else that decides it.
    """

    patch: Sizes | Literal["default"] | None = "default"
    """Window that will be read most."""
    chunks: Sizes | None = None
    """Extents of a chunk, instead of `patch`."""
    blocks: Sizes | None = None
    """Extents of a block, instead of `patch`."""
    layout: Layout | Preset | None = None
    """A layout that was decided before, or the name of a pattern, instead of `patch`."""
    caches: CacheSizes | None = None
    """Of the cores that will read; None are those of this machine."""

    def __post_init__(self) -> None:
        """Refuse to decide a layout twice."""
        if isinstance(self.layout, Layout) and not (self.is_open and self.caches is None):
            raise LayoutError(
                f"layout={self.layout!r} and patch, chunks, blocks or caches exclude each other; "
                "give the layout alone"
            )

    @property
    def is_open(self) -> bool:
        """Whether neither patch, chunks nor blocks were given."""
        is_default = isinstance(self.patch, str) and self.patch == "default"
        return is_default and self.chunks is None and self.blocks is None

    @property
    def goes_by_caches(self) -> bool:
        """Whether the sizes of caches have a say."""
        is_given = isinstance(self.layout, Layout) or self.patch is None
        return not is_given and (self.chunks is None or self.blocks is None)

    def plan(
        self,
        shape: Sequence[int],
        *,
        dtype_str: str,
        dims: tuple[str, ...],
        spatial: tuple[int, ...],
        codec: Codec | None,
    ) -> Layout:
        """Decide the layout of an array.

        Parameters
        ----------
        shape, dims, spatial
            Extents, names, and which axes are spatial.
        dtype_str
            NumPy's text of the element type.
        codec
            Compression, if it is known.

        Raises
        ------
        LayoutError
            When no layout satisfies the request.
        """
        if isinstance(self.layout, Layout):
            itemsize = np.dtype(dtype_str).itemsize
            fitted = _fitted(
                self.layout, tuple(shape), itemsize=itemsize, dims=dims, spatial=spatial
            )
            check_limits(fitted, tuple(shape), itemsize)
            return fitted
        return plan_layout(
            shape,
            dtype_str,
            patch=self.patch,
            dims=dims,
            spatial=spatial,
            layout=self.layout,
            chunks=self.chunks,
            blocks=self.blocks,
            caches=self.caches,
            codec=codec,
        )


def _fitted(
    layout: Layout,
    shape: tuple[int, ...],
    *,
    itemsize: int,
    dims: tuple[str, ...],
    spatial: tuple[int, ...],
) -> Layout:
    """Return a layout clipped to another array."""
    if len(layout.chunks) != len(shape):
        raise LayoutError(
            f"{layout} has {len(layout.chunks)} axes, and the array of {shape} has {len(shape)}; "
            "take the layout of an array with as many axes"
        )
    if 0 in shape:
        return replace(layout, chunks=shape, blocks=shape, basis=None)
    chunks = tuple(max(1, min(c, n)) for c, n in zip(layout.chunks, shape, strict=True))
    blocks = tuple(max(1, min(b, c)) for b, c in zip(layout.blocks, chunks, strict=True))
    patch = layout.patch if layout.patch and len(layout.patch) == len(spatial) else None
    basis = layout.basis
    if basis is not None:
        windows = tuple(
            replace(w, shape=tuple(min(p, n) for p, n in zip(w.shape, shape, strict=True)))
            for w in basis.windows
        )
        basis = replace(
            basis, shape=shape, itemsize=itemsize, dims=dims, spatial=spatial, windows=windows
        )
    return Layout(chunks=chunks, blocks=blocks, patch=patch, basis=basis)
