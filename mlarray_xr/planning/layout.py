"""Layout: the chunk and block shapes of one file, and what reading with them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.caches import detect_caches
from mlarray_xr.planning.explanation import explained
from mlarray_xr.planning.read_cost import expected_cost, read_model
from mlarray_xr.planning.sizes import patch_extents, spatial_axes

if TYPE_CHECKING:
    from mlarray_xr.planning.access import Window
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.explanation import Explanation
    from mlarray_xr.planning.read_cost import ReadCost, ReadModel
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["Basis", "Layout"]

_MAX_NDIM = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a layout is for: the array, the machine that reads it, and how."""

    shape: tuple[int, ...]
    """Extents of the array."""
    itemsize: int
    """Bytes of an element."""
    caches: CacheSizes | None = None
    """Of the core that reads; None are those of this machine, looked at when they are needed."""
    dims: tuple[str, ...] | None = None
    """Names of the axes."""
    spatial: tuple[int, ...] | None = None
    """Numbers of the spatial axes; None is what the names say."""
    rule: str = "given"
    """Who decided: ``"searched"``, ``"given"``, ``"Blosc2"`` or a release of the reference."""
    windows: tuple[Window, ...] = ()
    """What the layout was planned for; nothing for layouts that were given."""
    codec: Codec | None = None
    """Compression; None is not known yet."""
    ratio: float | None = None
    """Decoded over stored bytes; None is not known yet."""
    remote: bool = False
    """Whether the bytes come through a network."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Numbers of the axes that are spatial; of all of them where none is."""
        named = spatial_axes(self.dims, len(self.shape)) if self.spatial is None else self.spatial
        return named or tuple(range(len(self.shape)))

    @property
    def model(self) -> ReadModel:
        """What reading costs there."""
        return read_model(
            self.caches or detect_caches(),
            codec=self.codec,
            itemsize=self.itemsize,
            ratio=self.ratio,
            remote=self.remote,
        )

    def patch_window(self, patch: Sizes | str) -> tuple[int, ...]:
        """Return a patch as one extent per axis, inside the array."""
        extents = patch_extents(patch, shape=self.shape, axes=self.axes, dims=self.dims)
        return tuple(min(p, n) for p, n in zip(extents, self.shape, strict=True))


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
    basis : Basis or None
        What the layout is for, which `cost` and `explain` need; not compared.

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
    basis: Basis | None = field(default=None, compare=False, repr=False)

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
        if self.basis is not None and len(self.basis.shape) != ndim:
            raise LayoutError(f"a layout of {ndim} axes is not for an array of {self.basis.shape}")

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

    def cost(self, patch: Sizes | str | None = None) -> ReadCost:
        """Return what reading a patch costs, mean over all places where it can be.

        Parameters
        ----------
        patch : int, sequence of int, mapping or "default", optional
            As of `plan_layout`; what the layout was planned for when left out.

        Returns
        -------
        ReadCost
            Chunks, blocks and bytes touched, read amplification, and the modelled time of one
            thread. Counts are exact, time is that of the machine the model was fitted to.

        Raises
        ------
        LayoutError
            When the layout is of no array, of an empty one, or no patch is known.

        Examples
        --------
        >>> from mlarray_xr import plan_layout
        >>> layout = plan_layout(
        ...     (60, 512, 512), "float32", chunks=(1, 512, 512), blocks=(1, 64, 64)
        ... )
        >>> layout.cost((1, 512, 512)).amplification
        1.0
        """
        basis = self._known_basis()
        if 0 in basis.shape:
            raise LayoutError(f"an array of {basis.shape} has no patch to read")
        if patch is not None:
            window = basis.patch_window(patch)
        elif basis.windows:
            window = basis.windows[0].shape
        else:
            raise LayoutError(
                f"{self} was planned for no patch; say which one: layout.cost(patch), "
                "layout.explain(patch)"
            )
        return self._cost_of(window, basis=basis)

    def explain(self, patch: Sizes | str | None = None) -> Explanation:
        """Return a short table of what reads touch, decode and cost.

        Its text is what `print` and the prompt show; notebooks show a table.

        Parameters
        ----------
        patch : int, sequence of int, mapping or "default", optional
            A patch to explain, as of `plan_layout`; what the layout was planned for when left out.

        Returns
        -------
        Explanation
            Of the patch, a slice along every axis and a full read: chunks touched, bytes decoded,
            amplification, what is held of a chunk and the cache that holds it, modelled time; and
            the number of Dask tasks of a full read.

        Raises
        ------
        LayoutError
            When the layout is of no array.

        Examples
        --------
        >>> from mlarray_xr import plan_layout
        >>> layout = plan_layout(
        ...     (60, 512, 512), "float32", chunks=(1, 512, 512), blocks=(1, 64, 64)
        ... )
        >>> print(layout.explain((1, 512, 512)))
        chunks (1, 512, 512) of 1 MiB: 60 of them, edges add 0 %
        blocks (1, 64, 64) of 16 KiB: 64 in a chunk
        ...
        """
        basis = self._known_basis()
        caches = basis.caches or detect_caches()
        windows = [(f"window, weight {w.weight:g}", w.shape) for w in basis.windows]
        if patch is not None or len(windows) == 1:
            shape = basis.windows[0].shape if patch is None else basis.patch_window(patch)
            windows = [("patch", shape)]
        known = replace(basis, caches=caches)
        return explained(
            self,
            known,
            caches=caches,
            dims=basis.dims,
            windows=windows,
            cost_of=partial(self._cost_of, basis=known),
        )

    def _repr_html_(self) -> str:
        """Return the table of `explain` for notebooks; the shapes when there is none."""
        if self.basis is None:
            return f"<code>{self!r}</code>"
        return self.explain()._repr_html_()

    def _cost_of(self, window: tuple[int, ...], *, basis: Basis) -> ReadCost:
        """Return what a window costs."""
        return expected_cost(
            window,
            shape=basis.shape,
            chunks=self.chunks,
            blocks=self.blocks,
            itemsize=basis.itemsize,
            model=basis.model,
        )

    def _known_basis(self) -> Basis:
        """Return what the layout is for.

        Raises
        ------
        LayoutError
            When that is not known.
        """
        if self.basis is None:
            raise LayoutError(
                f"{self} does not say of which array it is. To fix: take it from plan_layout(...), "
                "from MlaArray(path).layout or from a WriteReport"
            )
        return self.basis
