"""One file, left as it is, gives the same values everywhere in the world of Zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset

import mlarray_xr
from mlarray_xr.serving.server import served
from mlarray_xr.zarr import MlaParser, as_store, from_zarr, to_zarr

if TYPE_CHECKING:
    from pathlib import Path

DIMS = ("z", "y", "x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A scan in world coordinates with edge chunks, a chunk of zeros, and two overviews."""
    values = np.random.default_rng(1).integers(-1000, 3000, (45, 70, 52), np.int16)
    values[:16, :24, :20] = 0
    starts, steps = (-12.5, 30.0, 7.25), (2.5, -0.75, 0.5)
    coords = {
        dim: (dim, start + step * np.arange(n), {"units": "mm"})
        for dim, start, step, n in zip(DIMS, starts, steps, values.shape, strict=True)
    }
    attrs = {"coord_system": "LPS", "protocol": "head"}
    scan = xr.DataArray(values, dims=DIMS, coords=coords, attrs=attrs)
    target = tmp_path / "scan.mla"
    mlarray_xr.to_mla(scan, target, chunks=(16, 24, 20), blocks=(5, 8, 10), levels=2)
    return target


def without_ome(dataset: xr.Dataset) -> xr.Dataset:
    """Without the attribute that only the Zarr views have."""
    dataset.attrs.pop("ome", None)
    return dataset


def virtual_dataset(path: Path) -> xr.Dataset:
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    return open_virtual_dataset(f"file://{path}", registry=registry, parser=MlaParser())


def through_icechunk(path: Path) -> xr.Dataset:
    prefix = f"file://{path.parent}/"
    config = icechunk.RepositoryConfig.default()
    local = icechunk.local_filesystem_store(str(path.parent))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, local))
    repository = icechunk.Repository.create(
        icechunk.local_filesystem_storage(str(path.parent / "repository")),
        config=config,
        authorize_virtual_chunk_access=icechunk.containers_credentials({prefix: None}),
    )
    session = repository.writable_session("main")
    virtual_dataset(path).vz.to_icechunk(session.store)
    session.commit("references")
    store = repository.readonly_session("main").store
    dataset: xr.Dataset = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None)
    return dataset


def through_kerchunk(path: Path) -> xr.Dataset:
    references = str(path.parent / "references.json")
    virtual_dataset(path).vz.to_kerchunk(references, format="json")
    options = {"storage_options": {"fo": references}, "consolidated": False}
    dataset = xr.open_dataset(
        "reference://", engine="zarr", backend_kwargs=options, mask_and_scale=False
    ).load()
    for variable in dataset.variables.values():
        variable.attrs.pop("_FillValue", None)
    return dataset


def copied(path: Path) -> xr.Dataset:
    """To Zarr and back, the bytes of the chunks as they are."""
    folder, again = path.parent / "copy.zarr", path.parent / "again.mla"
    to_zarr(path, folder)
    from_zarr(folder, again)
    assert again.read_bytes() == path.read_bytes()
    dataset: xr.Dataset = xr.open_zarr(folder, chunks=None)
    return dataset


def test_every_road_gives_the_values_of_the_engine(path: Path) -> None:
    before = path.read_bytes()
    expected = xr.load_dataset(path, engine="mlarray")
    roads: dict[str, Any] = {
        "zarr view": lambda: xr.open_zarr(as_store(path), chunks=None),
        "icechunk": lambda: through_icechunk(path),
        "kerchunk": lambda: through_kerchunk(path),
        "copied": lambda: copied(path),
    }
    for name, road in roads.items():
        found = without_ome(road().load())
        assert found.identical(expected), name
    values = expected.image.values
    array = zarr.open_array(as_store(path), path="image", mode="r")
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(array[3:40:7, 5, 1:50:3], values[3:40:7, 5, 1:50:3])
    np.testing.assert_array_equal(da.from_zarr(as_store(path), component="image"), values)
    with served([path]) as address:
        url = f"{address}zarr/{path.name}"
        for level, group in enumerate((None, "level1", "level2")):
            found = without_ome(xr.open_zarr(url, group=group, chunks=None).load())
            wanted = mlarray_xr.open_mla(path, level=level).load()
            assert found.image.identical(wanted), group
        assert mlarray_xr.open_mla(f"{address}raw/{path.name}").identical(expected.image)
    assert path.read_bytes() == before


def test_ngff_zarr_reads_the_served_levels(path: Path) -> None:
    import ngff_zarr

    with served([path]) as address:
        found = ngff_zarr.from_ngff_zarr(f"{address}zarr/{path.name}")
        assert len(found.images) == 3
        for level, image in enumerate(found.images):
            expected = mlarray_xr.open_mla(path, level=level)
            np.testing.assert_array_equal(image.data.compute(), expected.values)
            for dim in DIMS:
                # Viewers want positive scales: what falls is counted the other way round.
                sign = -1 if dim == "y" else 1
                step = float(expected[dim][1] - expected[dim][0])
                assert image.scale[dim] == sign * step > 0
                assert image.translation[dim] == sign * float(expected[dim][0])
        orientations = found.images[0].axes_orientations
        assert orientations is not None
        shown = {dim: orientations[dim].value for dim in DIMS}
    assert shown == {
        "x": "right-to-left",
        "y": "posterior-to-anterior",
        "z": "inferior-to-superior",
    }


def test_what_napari_reads_images_with_reads_it(path: Path) -> None:
    """ome-zarr-py, which napari-ome-zarr is made of: a copy with our codec, and what is served."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    folder = path.parent / "copy.zarr"
    to_zarr(path, folder)
    with served([path]) as address:
        for url in (str(folder), f"{address}zarr/{path.name}"):
            location = parse_url(url)
            assert location is not None
            (image,) = Reader(location)()
            assert len(image.data) == 3
            for level, values in enumerate(image.data):
                expected = mlarray_xr.open_mla(path, level=level).values
                np.testing.assert_array_equal(np.asarray(values), expected)
