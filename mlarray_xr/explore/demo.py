"""The package at work on one machine: write in parallel, open, compute, read patches, check."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.axes import axis_labels_for
from mlarray_xr.backend import MlaBackendEntrypoint
from mlarray_xr.dask import embedded_cluster, from_address
from mlarray_xr.errors import ConversionError, FormatError, MissingDependencyError
from mlarray_xr.explore.phantom import PHANTOM_DTYPE, phantom_part
from mlarray_xr.explore.preview import preview
from mlarray_xr.foreign.formats import format_of_source
from mlarray_xr.format.metadata import SPATIAL_LABELS, Metadata, Spatial
from mlarray_xr.planning.grid import plan_part
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.read import open_mla
from mlarray_xr.record import stored_axes
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box

__all__ = ["DemoReport", "run_demo"]

_DIMS = ("z", "y", "x")
_SPACING = (1.2, 0.9, 0.9)
_PART_BYTES = 32 << 20
_N_CHECKED = 8
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What a demo did and how long it took."""

    path: str
    """The `.mla` file."""
    picture: str | None
    """The PNG file of three planes, None without Pillow."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: str
    """Type of the voxels."""
    nbytes: int
    """Bytes of the decoded array."""
    file_bytes: int
    """Bytes of the file."""
    n_threads: int
    """Threads of the embedded cluster."""
    write_seconds: float
    """Wall time of making or reading the source, encoding and writing."""
    open_seconds: float
    """Wall time of opening the file lazily."""
    mean: float
    """Mean of all voxels, computed by Dask."""
    mean_seconds: float
    """Wall time of that."""
    patch: tuple[int, ...]
    """Extents of a patch, array order."""
    n_patches: int
    """How many random patches were read."""
    patch_seconds: float
    """Wall time of reading them."""
    n_checked: int
    """How many of them were compared with the source, bit by bit."""

    def __str__(self) -> str:
        """Return the report as a table."""
        megabytes = self.nbytes / 1e6
        rows = (
            ("volume", f"{' x '.join(map(str, self.shape))} {self.dtype}, {megabytes:.1f} MB"),
            ("file", f"{self.path}, {self.file_bytes / 1e6:.1f} MB"),
            ("ratio", f"{self.nbytes / self.file_bytes:.2f}"),
            ("write", f"{megabytes / self.write_seconds:.0f} MB/s on {self.n_threads} threads"),
            ("open", f"{self.open_seconds * 1e3:.1f} ms"),
            ("mean", f"{self.mean:.6g}, {megabytes / self.mean_seconds:.0f} MB/s through Dask"),
            (
                "patches",
                f"{self.n_patches / self.patch_seconds:.0f} per second of "
                f"{' x '.join(map(str, self.patch))}",
            ),
            ("checked", f"{self.n_checked} patches equal the source bit by bit"),
            ("picture", self.picture or "none: it needs Pillow"),
        )
        return "\n".join(f"{name:<9}{text}" for name, text in rows)


def run_demo(
    *,
    input: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str],
    shape: tuple[int, int, int] = (256, 256, 256),
    patch: int = 64,
    n_patches: int = 200,
) -> DemoReport:
    """Write a volume on an embedded Dask cluster, open it, compute, read patches and check them.

    Parameters
    ----------
    input
        An image of any format that `mlarray_xr.convert` reads; without one a phantom is made on the
        workers.
    output_dir
        Gets ``demo.mla`` and ``demo.png``, replacing those of an earlier run; made when missing.
    shape
        Extents of the phantom along z, y and x.
    patch
        Extent of a patch along every spatial axis, voxels.
    n_patches
        How many random patches are read.

    Returns
    -------
    DemoReport
        Its ``str`` is a table.

    Raises
    ------
    ConversionError
        When the input is empty, not of real numbers, or is the output.
    FormatError
        When a patch differs from the source.

    Examples
    --------
    >>> report = run_demo(output_dir="out", shape=(24, 32, 32), patch=16, n_patches=4)
    >>> report.shape, report.dtype, report.n_checked
    ((24, 32, 32), 'int16', 4)
    """
    folder = os.path.abspath(os.path.expanduser(os.fspath(output_dir)))
    path, picture = os.path.join(folder, "demo.mla"), os.path.join(folder, "demo.png")
    os.makedirs(folder, exist_ok=True)
    with embedded_cluster() as client:
        source, metadata = _source(input, path, shape=shape, patch=patch)
        begin = time.perf_counter()
        written = to_mla(source, path, patch=patch, mode="w", metadata=metadata)
        write_seconds = time.perf_counter() - begin

        begin = time.perf_counter()
        with xr.open_dataset(path, engine=MlaBackendEntrypoint):
            open_seconds = time.perf_counter() - begin

        begin = time.perf_counter()
        mean = float(open_mla(path, chunks={}).mean())
        mean_seconds = time.perf_counter() - begin

        array = MlaArray(path)
        labels = metadata.spatial.axis_labels or ("spatial",) * array.ndim
        boxes = _random_boxes(array.shape, labels, patch=patch, n=n_patches)
        begin = time.perf_counter()
        for box in boxes:
            array.read(box)
        patch_seconds = time.perf_counter() - begin
        n_checked = _check(array, source, boxes[:_N_CHECKED])
        n_threads = sum(client.nthreads().values())
    return DemoReport(
        path=path,
        picture=_picture(array, picture),
        shape=array.shape,
        dtype=str(array.dtype),
        nbytes=array.nbytes,
        file_bytes=written.file_bytes,
        n_threads=n_threads,
        write_seconds=write_seconds,
        open_seconds=open_seconds,
        mean=mean,
        mean_seconds=mean_seconds,
        patch=tuple(stop - start for start, stop in boxes[0]),
        n_patches=n_patches,
        patch_seconds=patch_seconds,
        n_checked=n_checked,
    )


def _source(
    path: str | os.PathLike[str] | None, target: str, *, shape: tuple[int, int, int], patch: int
) -> tuple[xr.DataArray, Metadata]:
    """Return what is written, in parts of the target's chunks, and its metadata."""
    if path is None:
        part = _plan_part(shape, PHANTOM_DTYPE, _DIMS, patch)
        return _phantom(shape, part), _phantom_metadata(shape)
    if os.path.exists(target) and os.path.samefile(path, target):
        raise ConversionError(f"{target}: the demo would overwrite its input. Copy it elsewhere")
    name = os.path.abspath(os.path.expanduser(os.fspath(path)))
    found = format_of_source(name)
    if found is None:
        raise ConversionError(f"{name}: of no format that is read. To fix: see mla convert --help")
    image = found.open_image(name, scratch_dir=None, dataset=None)
    values = image.values
    if values.dtype.kind not in "biuf" or 0 in values.shape:
        raise ConversionError(
            f"{name}: shape {values.shape} of {values.dtype}; the demo needs real numbers"
        )
    dims = stored_axes(image.metadata, len(values.shape)).dims
    part = _plan_part(values.shape, values.dtype, dims, patch)
    extents = tuple(
        tuple(min(size, n - start) for start in range(0, n, size))
        for n, size in zip(values.shape, part, strict=True)
    )
    return xr.DataArray(from_address(values, chunks=extents), dims=dims), image.metadata


def _plan_part(
    shape: tuple[int, ...], dtype: np.dtype[Any], dims: tuple[str, ...], patch: int
) -> tuple[int, ...]:
    """Return the part that one task makes: the one that it then writes."""
    layout = plan_layout(shape, dtype, patch=patch, dims=dims)
    return plan_part(shape, layout.chunks, itemsize=dtype.itemsize, target_bytes=_PART_BYTES)


def _phantom(shape: tuple[int, int, int], part: tuple[int, ...]) -> xr.DataArray:
    """Return the phantom as a lazy array that workers make part by part."""
    along = [
        xr.DataArray(np.arange(n), dims=dim).chunk({dim: size})
        for n, dim, size in zip(shape, _DIMS, part, strict=True)
    ]

    def make(*indices: NDArray[np.int64]) -> NDArray[np.int16]:
        box = tuple((int(index.min()), int(index.max()) + 1) for index in indices)
        return phantom_part(box, shape=shape, seed=_SEED)

    made: xr.DataArray = xr.apply_ufunc(
        make, *along, dask="parallelized", output_dtypes=[PHANTOM_DTYPE]
    )
    return made


def _phantom_metadata(shape: tuple[int, int, int]) -> Metadata:
    """Return the metadata of a head in the middle of the scanner, axial planes from below."""
    corner = [-step * (n - 1) / 2 for step, n in zip(_SPACING, shape, strict=True)]
    (dz, dy, dx), (z, y, x) = _SPACING, corner
    affine = ((0.0, 0.0, dx, x), (0.0, dy, 0.0, y), (dz, 0.0, 0.0, z), (0.0, 0.0, 0.0, 1.0))
    return Metadata(
        spatial=Spatial(
            affine=affine,
            axis_labels=axis_labels_for(_DIMS),
            coord_system="RAS+",
            axis_units=["mm", "mm", "mm"],
        ),
        has_array=True,
    )


def _random_boxes(
    shape: tuple[int, ...], labels: tuple[str, ...], *, patch: int, n: int
) -> list[Box]:
    """Return boxes anywhere in the array: patches along spatial axes, one index along others."""
    rng = np.random.default_rng(_SEED)
    sizes = [
        min(patch, extent) if label in SPATIAL_LABELS else 1
        for extent, label in zip(shape, labels, strict=True)
    ]
    starts = rng.integers(0, np.subtract(shape, sizes), (n, len(shape)), endpoint=True).tolist()
    return [tuple((a, a + s) for a, s in zip(start, sizes, strict=True)) for start in starts]


def _check(array: MlaArray, source: xr.DataArray, boxes: list[Box]) -> int:
    """Compare boxes of the file with the source; return how many there were."""
    for box in boxes:
        expected = source[tuple(slice(start, stop) for start, stop in box)].to_numpy()
        if array.read(box).tobytes() != expected.tobytes():
            raise FormatError(f"{array.path}: box {box} differs from what was written")
    return len(boxes)


def _picture(array: MlaArray, path: str) -> str | None:
    """Draw the file and return the path of the picture, None without Pillow."""
    try:
        preview(array, path)
    except MissingDependencyError:
        return None
    return path
