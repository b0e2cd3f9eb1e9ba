"""OME-Zarr: one level of a multiscale image, lazily, where its metadata says it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlarray_xr.attributes import METADATA_ATTR
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.labelled import choose_dataset, dataset_parts, plain_attributes
from mlarray_xr.foreign.ngff import Level, Multiscale, level_metadata
from mlarray_xr.foreign.zarr_labels import array_of, labelled_image
from mlarray_xr.foreign.zarr_store import ZarrNode, ZarrStore, explained

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_ome", "open_image"]

_MARKS = {"multiscales", "ome", "bioformats2raw.layout", "plate", "well", "image-label"}
_LABELS = "labels"


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open one level of an OME-Zarr image (NGFF 0.1 to 0.5); reads metadata only.

    Axes, units, scale and translation, those of the level and those of the image, become
    dimensions, geometry and coordinates. An array that was written here from an `.mla` file has its
    metadata back.

    Parameters
    ----------
    path
        A local folder or zip file: of one image, or of several (bioformats2raw, a plate).
    scratch_dir
        Unused: arrays are read where they lie.
    dataset
        A level such as ``"0"``, an image of several such as ``"A/1/0"``, or a level of one,
        ``"A/1/0/2"``. Segmentations are found by name: ``"labels/cells"``. By default the finest
        level of the only image.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ConversionError
        When it is no OME-Zarr or a damaged one, or there are several images and none was chosen.
    MissingDependencyError
        When zarr is not installed.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    >>> scale = [{"type": "scale", "scale": [2.0, 0.5]}]
    >>> levels = [{"path": "0", "coordinateTransformations": scale}]
    >>> ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    >>> group = zarr.open_group("cells.ome.zarr", mode="w", attributes={"ome": ome})
    >>> _ = group.create_array("0", data=np.zeros((4, 5), "uint8"))
    >>> image = open_image("cells.ome.zarr", scratch_dir=None, dataset=None)
    >>> image.metadata.spatial.affine, image.metadata.spatial.axis_units
    (((2.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 1.0)), ['um', 'um'])
    """
    del scratch_dir
    store = ZarrStore.at(path)
    with explained(store.path):
        name = "/".join(dataset_parts(dataset or ""))
        start = store.node(name)
        if start is None:
            raise ConversionError(
                f"nothing named {name!r} is there; the root holds {store.members('')[:20]}. "
                "To fix: choose with dataset="
            )
        found = _level_of(store, start) if start.is_array else _finest(store, start)
        return _opened(store, *found)


def is_ome(group: ZarrNode) -> bool:
    """Tell whether a group says that it is OME-Zarr."""
    return bool(_MARKS & group.attributes.keys())


def _opened(store: ZarrStore, group: ZarrNode, image: Multiscale, level: Level) -> ForeignImage:
    """Open a level of an image."""
    node = store.node(group.inside("/".join(dataset_parts(level.path))))
    if node is None or not node.is_array:
        raise ConversionError(f"{group.name!r} names a level {level.path!r}, which is no array")
    if METADATA_ATTR in node.attributes:
        return labelled_image(store, node)
    values = array_of(store, node)
    metadata = level_metadata(
        image,
        level,
        shape=values.shape,
        group_attributes=group.attributes,
        attrs=plain_attributes(node.attributes, file_format="zarr"),
    )
    return ForeignImage(values=values, metadata=metadata)


def _finest(store: ZarrStore, start: ZarrNode) -> tuple[ZarrNode, Multiscale, Level]:
    """Return the finest level of the only image in a group, or below it."""
    group = start
    images = Multiscale.all_of(group.attributes)
    if not images:
        candidates = {found.name: found for found in _images_below(store, start)}
        if not candidates:
            raise ConversionError(
                f"{start.name or 'the root'!r} describes no multiscale image, nor does anything "
                "below it"
            )
        shapes = {name: (_shape(store, each), "image") for name, each in candidates.items()}
        group = candidates[choose_dataset(shapes)]
        images = Multiscale.all_of(group.attributes)
    if len(images) > 1:
        firsts = [group.inside(image.levels[0].path) for image in images]
        raise ConversionError(
            f"{group.name!r} describes {len(images)} images; their finest levels are {firsts}. "
            f"To fix: choose one, dataset={firsts[0]!r}"
        )
    return group, images[0], images[0].levels[0]


def _images_below(store: ZarrStore, start: ZarrNode) -> Iterator[ZarrNode]:
    """Yield the groups of images below a group; segmentations only when asked for."""
    inside = len(dataset_parts(start.name))
    for found in store.walk(start):
        is_label = _LABELS in dataset_parts(found.name)[inside:]
        if not found.is_array and not is_label and Multiscale.all_of(found.attributes):
            yield found


def _shape(store: ZarrStore, group: ZarrNode) -> tuple[int, ...]:
    """Return the shape of the finest level, for people to tell images apart."""
    level = Multiscale.all_of(group.attributes)[0].levels[0]
    node = store.node(group.inside("/".join(dataset_parts(level.path))))
    return () if node is None or not node.is_array else node.shape


def _level_of(store: ZarrStore, array: ZarrNode) -> tuple[ZarrNode, Multiscale, Level]:
    """Return the image that an array is a level of, the innermost one."""
    parts = dataset_parts(array.name)
    for depth in reversed(range(len(parts))):
        group = store.node("/".join(parts[:depth]))
        images = () if group is None else Multiscale.all_of(group.attributes)
        for image in images:
            for level in image.levels:
                if group is not None and dataset_parts(level.path) == parts[depth:]:
                    return group, image, level
    raise ConversionError(
        f"the array {array.name!r} is no level of a multiscale image, so its axes are unknown"
    )
