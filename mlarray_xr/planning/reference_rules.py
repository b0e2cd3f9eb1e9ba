"""The chunk and block rules of two releases of the reference package, number for number.

Written anew from the behaviour of ``mlarray`` (MIT licence, Division of Medical Image Computing,
DKFZ Heidelberg): ``comp_blosc2_params`` of release 0.0.53, the rule of every release up to 0.0.51
too, and ``comp_blosc2_params_spatial_only_magnitude`` of release 0.0.54, also the rule of 0.0.52.
Both fit a block in 0.8 of a 32 768-byte L1 cache and size a chunk for 0.8 of a 1 441 792-byte L3
share, which the older rule may exceed by its last step.
Where a rule raises, never ends or makes a layout that Blosc2 refuses, so do we.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlarray_xr.errors import LayoutError

__all__ = ["STRATEGIES", "reference_layout"]

STRATEGIES = ("mlarray-0.0.53", "mlarray-0.0.54")

_BLOCK_BYTES = 26_214  # 0.8 of L1
_CHUNK_BYTES = 1_153_433  # 0.8 of L3

# Up to here the reference's floating-point logarithms round to the right integer; beyond 2**48 its
# loop may never end.
_MAX_PATCH = 2**46
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked of a rule, checked as far as both rules agree."""

    strategy: str
    shape: tuple[int, ...]
    itemsize: int
    patch: tuple[int, ...]
    spatial: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what neither rule holds."""
        if self.strategy not in STRATEGIES:
            raise LayoutError(
                f"strategy={self.strategy!r} is not known; give one of {STRATEGIES} or leave it out"
            )
        if list(self.spatial) != sorted(set(self.spatial) & set(range(len(self.shape)))):
            raise self.refusal("spatial axes must be ascending axis numbers of the shape")
        if not self.spatial:
            raise self.refusal("the rule holds no array without a spatial axis")
        if len(self.patch) != len(self.spatial):
            raise self.refusal("a patch has one entry per spatial axis")
        if min(*self.shape, *self.patch, self.itemsize) < 1:
            raise self.refusal("the rule holds positive extents only")
        if max(self.patch) > _MAX_PATCH:
            raise self.refusal(f"the rule's arithmetic holds patch extents up to {_MAX_PATCH}")

    @property
    def extents(self) -> tuple[int, ...]:
        """Extents of the spatial axes."""
        return tuple(self.shape[axis] for axis in self.spatial)

    @property
    def others(self) -> tuple[int, ...]:
        """Extents of the other axes."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.spatial)

    def spread(self, sizes: tuple[int, ...], *, others: tuple[int, ...]) -> tuple[int, ...]:
        """Place spatial sizes and those of the other axes in array order."""
        spatial, rest = iter(sizes), iter(others)
        return tuple(
            next(spatial if axis in self.spatial else rest) for axis in range(len(self.shape))
        )

    def refusal(self, reason: str) -> LayoutError:
        """Return the error that names the request, the reason and the way out."""
        return LayoutError(
            f"strategy={self.strategy!r} was asked for shape {self.shape} of {self.itemsize}-byte "
            f"elements with patch {self.patch} on axes {self.spatial}; {reason}. "
            "To fix: leave out strategy="
        )


def reference_layout(
    strategy: str,
    shape: tuple[int, ...],
    itemsize: int,
    *,
    patch: tuple[int, ...],
    spatial: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunks and blocks as the reference package computes them; a pure function.

    ``"mlarray-0.0.53"`` starts with a block of powers of two that covers the patch, halves the axis
    that exceeds its patch most until the block fits, and repeats the block along the axis that
    repeats it least, until the chunk is full or would exceed 1.5 patches on average. It holds two
    or three spatial axes and at most one other, which is never split.

    ``"mlarray-0.0.54"`` grows a block from 2 per axis, always where growth fills most, by steps in
    proportion to the patch; chunks grow alike, by blocks, along axes up to 1.5 patches. It holds
    any number of spatial axes; chunks and blocks have extent 1 along the others.

    Parameters
    ----------
    strategy : {"mlarray-0.0.53", "mlarray-0.0.54"}
        The rule, by the newest release that had it.
    shape : tuple of int
        Extents of the array, in array order, at least 1 each.
    itemsize : int
        Bytes per element.
    patch : tuple of int
        The window that will be read, in voxels: one extent per spatial axis, in array order.
    spatial : tuple of int
        Numbers of the spatial axes, ascending.

    Returns
    -------
    chunks, blocks : tuple of int
        One extent per axis, in array order; ``block <= chunk <= extent`` everywhere.

    Raises
    ------
    LayoutError
        If the strategy is unknown, or the rule has no valid answer to the request.

    Examples
    --------
    >>> volume = {"patch": (192, 192, 192), "spatial": (0, 1, 2)}
    >>> reference_layout("mlarray-0.0.53", (128, 512, 512), 4, **volume)
    ((80, 64, 64), (16, 16, 16))
    >>> reference_layout("mlarray-0.0.54", (128, 512, 512), 4, **volume)
    ((54, 54, 80), (18, 18, 20))
    """
    request = _Request(
        strategy=strategy, shape=shape, itemsize=itemsize, patch=patch, spatial=spatial
    )
    if strategy == "mlarray-0.0.53":
        return _layout_by_halving(request)
    return _layout_by_growing(request)


def _layout_by_halving(request: _Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Apply the rule of 0.0.53."""
    ndim = len(request.spatial)
    if ndim not in (2, 3) or len(request.others) > 1:
        raise request.refusal("the rule holds 2 or 3 spatial axes and at most one other")
    # A plane is planned as a volume of one slice: that slice counts in the mean over the axes.
    flat = (1,) * (3 - ndim)
    extents, patch = flat + request.extents, flat + request.patch
    voxel_bytes = request.itemsize * math.prod(request.others)
    block = _halved_block(request, extents, patch, voxel_bytes=voxel_bytes)
    chunk = _tiled_chunk(request, extents, patch, block=block, voxel_bytes=voxel_bytes)
    chunks = request.spread(chunk[-ndim:], others=request.others)
    blocks = request.spread(block[-ndim:], others=request.others)
    if any(inner > outer for inner, outer in zip(blocks, chunks, strict=True)):
        raise request.refusal(
            f"the rule makes blocks {blocks} in chunks {chunks}, and a block must fit its chunk"
        )
    return chunks, blocks


def _halved_block(
    request: _Request, extents: tuple[int, ...], patch: tuple[int, ...], *, voxel_bytes: int
) -> tuple[int, ...]:
    """Halve powers of two that cover the patch, the last axis first on a tie, until they fit."""
    block = [1 << (n - 1).bit_length() for n in patch]
    if math.prod(block) * voxel_bytes > _MAX_INT64:
        raise request.refusal("the rule counts bytes in 64-bit integers, which overflow")
    while math.prod(block) * voxel_bytes > _BLOCK_BYTES:
        excess = [(block[axis] / patch[axis], axis) for axis in range(3) if block[axis] > 1]
        if not excess:
            raise request.refusal(
                f"the rule never splits other axes, {request.others} here, and one voxel with all "
                f"of them takes {voxel_bytes} bytes where a block holds {_BLOCK_BYTES}"
            )
        axis = max(excess)[1]
        # The extent counts only now: an axis that is never halved is clipped at the end.
        block[axis] = min(1 << ((block[axis] - 1).bit_length() - 1), extents[axis])
    return tuple(min(pair) for pair in zip(block, extents, strict=True))


def _tiled_chunk(
    request: _Request,
    extents: tuple[int, ...],
    patch: tuple[int, ...],
    *,
    block: tuple[int, ...],
    voxel_bytes: int,
) -> tuple[int, ...]:
    """Repeat the block along its least repeated axis, the first on a tie, until it is full."""
    # A patch of one slice gets chunks of one slice; along later axes a patch of 1 is a dead end.
    first = 1 if patch[0] == 1 else 0
    chunk = list(block)
    while math.prod(chunk) * voxel_bytes <= _CHUNK_BYTES:
        partial = [axis for axis in range(first, 3) if chunk[axis] < extents[axis]]
        if not partial:
            break
        repeats = [(chunk[axis] / block[axis], axis) for axis in partial if patch[axis] > 1]
        if not repeats:
            raise request.refusal(
                "the rule must grow the chunk, never along an axis with a patch of 1, and only "
                "such axes are left"
            )
        axis = min(repeats)[1]
        chunk[axis] = min(chunk[axis] + block[axis], extents[axis])
        ratios = [n / window for n, window in zip(chunk, patch, strict=True)]
        # Not `sum`: since Python 3.12 it rounds once, the reference's mean after each addition.
        if (ratios[0] + ratios[1] + ratios[2]) / 3 > 1.5:
            # A step clipped at the extent is taken back whole: the chunk may end below its block.
            chunk[axis] -= block[axis]
            break
    return tuple(chunk)


def _layout_by_growing(request: _Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Apply the rule of 0.0.54."""
    extents, patch = request.extents, request.patch
    weights = tuple(round(n / min(patch)) for n in patch)
    start = tuple(min(2, n) for n in extents)
    if math.prod(start) * request.itemsize > _BLOCK_BYTES:
        raise request.refusal(
            f"the rule starts with 2 per spatial axis, {start} here, which exceed the "
            f"{_BLOCK_BYTES} bytes that a block holds"
        )
    block = _grown(
        start,
        steps=tuple(2 * weight for weight in weights),
        extents=extents,
        rests=extents,
        budget=_BLOCK_BYTES // request.itemsize,
    )
    chunk = _grown(
        block,
        steps=tuple(weight * size for weight, size in zip(weights, block, strict=True)),
        extents=extents,
        rests=tuple(3 * n // 2 + 1 for n in patch),
        budget=_CHUNK_BYTES // request.itemsize,
    )
    ones = (1,) * len(request.others)
    return request.spread(chunk, others=ones), request.spread(block, others=ones)


def _grown(
    start: tuple[int, ...],
    *,
    steps: tuple[int, ...],
    extents: tuple[int, ...],
    rests: tuple[int, ...],
    budget: int,
) -> tuple[int, ...]:
    """Grow the axis that fills most, the last on a tie, while one below its rest fits."""
    sizes = list(start)
    while True:
        volume = math.prod(sizes)
        fitting = []
        for axis, extent in enumerate(extents):
            if sizes[axis] < min(extent, rests[axis]):
                size = min(sizes[axis] + steps[axis], extent)
                grown_volume = volume // sizes[axis] * size
                if grown_volume <= budget:
                    fitting.append((grown_volume, axis, size))
        if not fitting:
            return tuple(sizes)
        _, axis, size = max(fitting)
        sizes[axis] = size
