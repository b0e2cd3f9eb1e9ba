"""Zarr, formats 2 and 3: any array of a store, lazily; and `.mla` files written as Zarr 3."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlarray_xr.attributes import METADATA_ATTR
from mlarray_xr.errors import ConversionError, FormatError, MissingDependencyError
from mlarray_xr.foreign.labelled import check_values, choose_dataset, dataset_parts
from mlarray_xr.foreign.ome import is_ome
from mlarray_xr.foreign.ome import open_image as open_ome_image
from mlarray_xr.foreign.zarr_folder import published_folder
from mlarray_xr.foreign.zarr_group import ImageForm, add_image, add_multiscales
from mlarray_xr.foreign.zarr_labels import dimension_names, labelled_image
from mlarray_xr.foreign.zarr_store import ZarrNode, ZarrStore, explained
from mlarray_xr.planning.grid import part_boxes, plan_part

if TYPE_CHECKING:
    from mlarray_xr.array import MlaArray
    from mlarray_xr.foreign.image import ForeignImage
    from mlarray_xr.storage.job import Progress

__all__ = ["open_image", "write_image"]

_PART_BYTES = 32 << 20


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open an array of a Zarr store; reads metadata and coordinates, none of its elements.

    Groups that xarray wrote have their coordinates; OME-Zarr is opened by
    `mlarray_xr.foreign.ome.open_image`.

    Parameters
    ----------
    path
        A local folder or zip file: one array, or a group.
    scratch_dir
        Unused: arrays are read where they lie.
    dataset
        Path of the array inside the store. By default the only one of two or more axes that is no
        coordinate.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ConversionError
        When it is no Zarr store or a damaged one, the array has elements that cannot be converted
        or are encoded as Python objects, or there are several and none was chosen.
    MissingDependencyError
        When zarr is not installed.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> _ = zarr.create_array("raw.zarr", data=np.zeros((4, 5), "int16"), chunks=(2, 5))
    >>> image = open_image("raw.zarr", scratch_dir=None, dataset=None)
    >>> image.values[slice(0, 2), slice(0, 3)].shape
    (2, 3)
    """
    store = ZarrStore.at(path)
    with explained(store.path):
        root = store.node("")
    if root is not None and is_ome(root):
        return open_ome_image(path, scratch_dir=scratch_dir, dataset=dataset)
    with explained(store.path):
        name = "/".join(dataset_parts(dataset or ""))
        start = store.node(name)
        if start is None:
            raise ConversionError(
                f"no array or group {name!r} is there; the root holds {store.members('')[:20]}. "
                "To fix: choose with dataset="
            )
        return labelled_image(store, start if start.is_array else _only_array(store, start))


def write_image(
    array: MlaArray, path: str, *, mode: Literal["w-", "w"], progress: Progress | None = None
) -> None:
    """Write an array as a Zarr 3 group, a bounded number of voxels at a time.

    The group holds the array, in the chunks of the file (Blosc, zstd, shuffle), and its
    coordinates, as xarray reads them; the metadata are attributes, which `open_image` takes back.
    Stored statistics are not: anybody may change the voxels of a Zarr store. Where the
    dimensions and the geometry allow it the group is an OME-Zarr image (NGFF 0.5) of one level.
    Zarr 3 has one byte order: big-endian numbers become the machine's. The store is written to a
    folder beside the target, forced to disk, and renamed: it appears complete or not at all.

    Parameters
    ----------
    array
        What is written.
    path
        Name of a folder, which usually ends in ``.zarr``.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces a Zarr store or an empty folder.
    progress
        Called with the number of parts written and of all parts.

    Raises
    ------
    ConversionError
        When Zarr has no such type or names, or `mode` is ``"w"`` and the target is neither a Zarr
        store nor empty, or contains the file that is read.
    FileExistsError
        When the target exists and `mode` is ``"w-"``.
    MissingDependencyError
        When zarr is not installed.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6, dtype="int16").reshape(2, 3), "small.mla")
    >>> write_image(mlarray_xr.MlaArray("small.mla"), "small.zarr", mode="w-")
    >>> import xarray
    >>> xarray.open_dataset("small.zarr", engine="zarr", consolidated=False).image.values
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int16)
    """
    if mode not in ("w-", "w"):
        raise ValueError(
            f"mode={mode!r} is not 'w-' (refuse an existing folder) or 'w' (replace it)"
        )
    if "://" in path:
        raise ConversionError(f"{path}: URLs cannot be written. To fix: write a folder, upload it")
    if not array.metadata.has_array:
        raise FormatError(f"{array.path}: the file holds metadata only, no array to convert")
    check_values(array.shape, array.dtype)
    with published_folder(path, overwrite=mode == "w", source=array.path) as folder:
        name = add_image(folder, array, _form(array))
        add_multiscales(folder, {name: array})
        _write_values(array, folder, name, progress)


def _only_array(store: ZarrStore, group: ZarrNode) -> ZarrNode:
    """Return the only image in a group, or below it."""
    arrays = {node.name: node for node in store.walk(group) if node.is_array}
    ours = [node for node in arrays.values() if METADATA_ATTR in node.attributes]
    if len(ours) == 1:
        return ours[0]
    used = {other for node in (group, *arrays.values()) for other in _coordinates(node)}
    candidates = {
        name: (node.shape, kind)
        for name, node in arrays.items()
        if name not in used and (kind := _element_type(node)) is not None
    }
    return arrays[choose_dataset(candidates)]


def _coordinates(node: ZarrNode) -> set[str]:
    """Return the paths of the arrays that are coordinates by what one node says."""
    listed = node.attributes.get("coordinates")
    names = listed.split() if isinstance(listed, str) else []
    folder, _, own = node.name.rpartition("/")
    if not node.is_array:
        folder = node.name
    elif dimension_names(node, len(node.shape)) == [own]:
        names.append(own)
    return {f"{folder}/{name}".lstrip("/") for name in names}


def _element_type(node: ZarrNode) -> str | None:
    """Return the type of the elements as it is written; None where it is not one of numbers."""
    kind = node.document.get("data_type" if node.zarr_format == 3 else "dtype")
    name = kind.get("name", "").removeprefix("numpy.") if isinstance(kind, dict) else kind
    try:
        return name if np.dtype(name).kind in "biufcmM" else None
    except TypeError:
        return None


def _form(array: MlaArray) -> ImageForm:
    """Return the chunks of the file, in a codec that every program has."""
    try:
        from zarr.codecs import BloscCodec
    except ImportError as error:
        raise MissingDependencyError(
            'Zarr needs zarr-python 3, which is not installed. To fix: pip install "mlarray-xr'
            '[zarr]"'
        ) from error
    return ImageForm(
        chunks=_chunks(array),
        fill_value=0,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
    )


def _chunks(array: MlaArray) -> tuple[int, ...]:
    """Return the chunks of a file, no larger than its array."""
    pairs = zip(array.chunks, array.shape, strict=True)
    return tuple(min(chunk, max(n, 1)) for chunk, n in pairs)


def _write_values(array: MlaArray, folder: str, name: str, progress: Progress | None) -> None:
    """Copy the voxels, part by part; zarr encodes the chunks of a part side by side."""
    import zarr

    target = zarr.open_array(os.path.join(folder, name), mode="r+", zarr_format=3)
    part = plan_part(
        array.shape, _chunks(array), itemsize=array.dtype.itemsize, target_bytes=_PART_BYTES
    )
    if 0 in array.shape:
        return
    boxes = list(part_boxes(array.shape, part))
    for done, box in enumerate(boxes, 1):
        target[tuple(slice(a, b) for a, b in box)] = array.read(box)
        if progress is not None:
            progress(done, len(boxes))
