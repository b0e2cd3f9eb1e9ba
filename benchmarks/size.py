"""Sizes: how much work one run does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SMOKE", "Size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Shapes, patches and repeats of a run."""

    name: str
    """What a report calls it."""
    shape: tuple[int, ...]
    """Extents of the volumes, elements."""
    edges: tuple[int, ...]
    """Edges of the cubic patches, elements."""
    patch_voxels: int
    """Voxels read per contender, repeat and patch size: divided among the patches."""
    repeats: int
    """Interleaved repeats of everything."""
    patience_s: float
    """Seconds per comparison to wait for a quiet machine and take disturbed repeats again."""
    store_edges: tuple[int, int]
    """The two chunk edges that are tried for Zarr stores read through Dask."""
    sparse_shape: tuple[int, ...]
    """Extents of the large int16 file that holds zeros."""
    cube_shape: tuple[int, ...]
    """Extents of the large uint8 cube."""
    every_layout_case: int
    """Of the cases of layouts every so manieth is measured."""

    def patches(self, edge: int) -> int:
        """Return how many patches of one edge are read per contender and repeat."""
        return max(2, min(32, self.patch_voxels // edge**3))


FULL = Size(
    name="full",
    shape=(448, 512, 448),
    edges=(64, 128, 192),
    patch_voxels=48_000_000,
    repeats=11,
    patience_s=40,
    store_edges=(64, 128),
    sparse_shape=(2048, 3500, 3500),
    cube_shape=(8192, 8192, 8192),
    every_layout_case=1,
)

SMOKE = Size(
    name="smoke",
    shape=(96, 112, 96),
    edges=(24, 48, 80),
    patch_voxels=100_000,
    repeats=2,
    patience_s=0,
    store_edges=(32, 64),
    sparse_shape=(256, 512, 512),
    cube_shape=(512, 512, 512),
    every_layout_case=9,
)
