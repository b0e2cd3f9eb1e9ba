"""One small volume in every format that is read, written by the format's own library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import blosc2
import h5py
import netCDF4
import nibabel as nib
import nrrd
import numpy as np
import tifffile
import zarr

from mlarray_xr import to_mla
from tests import dicom_kit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["MAKERS", "VOXELS", "make"]

VOXELS = np.random.default_rng(5).integers(0, 1000, (6, 10, 12), np.int16)


def _nifti(path: Path, values: NDArray[Any]) -> None:
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), path)


def _nrrd(path: Path, values: NDArray[Any]) -> None:
    nrrd.write(str(path), values, index_order="C")


def _npz(path: Path, values: NDArray[Any]) -> None:
    np.savez_compressed(path, volume=values)


def _hdf5(path: Path, values: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("t0/raw", data=values, chunks=(2, 5, 12), compression="gzip")


def _netcdf(path: Path, values: NDArray[Any]) -> None:
    with netCDF4.Dataset(path, "w") as file:
        for name, extent in zip("zyx", values.shape, strict=True):
            file.createDimension(name, extent)
        file.createVariable("ct", values.dtype, tuple("zyx"))[:] = values


def _zarr(zarr_format: Any) -> Callable[[Path, NDArray[Any]], None]:
    def write(path: Path, values: NDArray[Any]) -> None:
        zarr.create_array(path, data=values, chunks=(2, 5, 12), zarr_format=zarr_format)

    return write


def _ome(path: Path, values: NDArray[Any]) -> None:
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [3.0, 0.5, 0.5]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    zarr.open_group(path, mode="w", attributes={"ome": ome}).create_array("0", data=values)


def _tiff_folder(path: Path, values: NDArray[Any]) -> None:
    path.mkdir()
    for number, plane in enumerate(values):
        tifffile.imwrite(path / f"s{number}.tif", plane)


def _blosc2(path: Path, values: NDArray[Any]) -> None:
    blosc2.asarray(values, urlpath=str(path))


MAKERS: dict[str, Callable[[Path, NDArray[Any]], Any]] = {
    "a.nii": _nifti,
    "a.nii.gz": _nifti,
    "a.img": lambda path, values: nib.save(nib.Nifti1Pair(values, np.eye(4)), path),
    "a.nrrd": _nrrd,
    "a.nhdr": _nrrd,
    "a.npy": np.save,
    "a.npz": _npz,
    "a.h5": _hdf5,
    "a.nc": _netcdf,
    "a3.zarr": _zarr(3),
    "a2.zarr": _zarr(2),
    "a.ome.zarr": _ome,
    "a.tif": lambda path, values: tifffile.imwrite(path, values, metadata={"axes": "ZYX"}),
    "planes": _tiff_folder,
    "slices": dicom_kit.series,
    "a.b2nd": _blosc2,
    "a.mla": lambda path, values: to_mla(values, path),
}


def make(name: str, folder: Path, values: NDArray[Any] = VOXELS) -> Path:
    """Write a volume, in a folder that is made when it is missing; return its path."""
    folder.mkdir(exist_ok=True, parents=True)
    MAKERS[name](folder / name, values)
    return folder / name
