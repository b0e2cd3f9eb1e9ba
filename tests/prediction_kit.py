"""Volumes to predict, as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import mlarray_xr
from mlarray_xr.planning.grid_patches import GridPatches

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.planning.patch_weights import Weighting

__all__ = ["SAMPLING", "SHAPE", "VALUES", "WEIGHTINGS", "labelled", "read", "written"]

WEIGHTINGS: tuple[Weighting, ...] = ("uniform", "hann", "gaussian")
SHAPE = (20, 17, 9)
VALUES = np.random.default_rng(5).integers(-3000, 3000, SHAPE, np.int16)
SAMPLING = GridPatches(8, overlap=0.5)


def written(folder: Path, values: Any, **options: Any) -> Path:
    path = folder / "source.mla"
    mlarray_xr.to_mla(values, path, mode="w", **options)
    return path


def read(path: Path) -> NDArray[Any]:
    values: NDArray[Any] = mlarray_xr.MlaArray(path)[...]
    return values


def labelled(values: NDArray[Any], *, dims: tuple[str, ...], **attrs: Any) -> xr.DataArray:
    coords = {dim: 3.0 + 0.5 * np.arange(n) for dim, n in zip(dims, values.shape, strict=True)}
    return xr.DataArray(
        values,
        dims=dims,
        coords={dim: coords[dim] for dim in dims if dim in {"x", "y", "z"}},
        attrs=attrs,
        name="t1",
    )
