"""Hierarchy: everything of a file's Zarr view but the chunks of its images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from mlarray_xr.attributes import METADATA_ATTR, metadata_text
from mlarray_xr.errors import MissingDependencyError
from mlarray_xr.foreign.labelled import check_values
from mlarray_xr.foreign.zarr_group import ImageForm, add_image, add_multiscales
from mlarray_xr.overview_siblings import find_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlarray_xr.array import MlaArray

__all__ = ["Hierarchy", "ImageNode", "hierarchy_of"]

_CONSOLIDATED = "Consolidated metadata is currently not part"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageNode:
    """An array of the view whose chunks are made when they are asked for."""

    file: MlaArray
    """The file, or the level of it, that has the voxels."""
    form: ImageForm
    """How its chunks are stored in the view."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis; 0 along an axis without extent."""
        return tuple(-(-n // c) for n, c in zip(self.file.shape, self.form.chunks, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hierarchy:
    """A Zarr 3 group that shows a file, its coordinates and its overviews.

    The file is in the root, as ``xarray.open_dataset(path, engine="mlarray")`` shows it: the image
    and its coordinates. Level k is the group ``levelk``. Where dimensions and geometry allow it,
    the root is an OME-NGFF 0.5 image.
    """

    documents: dict[str, bytes]
    """Metadata documents, and the chunks of coordinates, by their keys."""
    images: dict[str, ImageNode]
    """Arrays of voxels by their paths, finest first: the chunk (i, j) of one is the key
    ``{path}/c/{i}/{j}``, which is not among the documents."""


def hierarchy_of(
    file: MlaArray,
    *,
    form: Callable[[MlaArray], ImageForm],
    overviews: bool = True,
    shows: Callable[[MlaArray], bool] | None = None,
) -> Hierarchy:
    """Describe a file as Zarr: metadata and coordinates, no voxel.

    Parameters
    ----------
    file
        The file itself.
    form
        Tells how the chunks of a file, or of a level of it, will be stored.
    overviews
        Whether the levels beside the file are shown as well.
    shows
        Tells of a level whether it may be shown; one that may not, and coarser ones, are left out.

    Raises
    ------
    ConversionError
        When Zarr has no such type, or names of the file cannot be names in Zarr.
    MissingDependencyError
        When zarr is not installed.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 6), "int16"), "plain.mla")
    >>> plain = hierarchy_of(
    ...     mlarray_xr.MlaArray("plain.mla"), form=lambda f: ImageForm(chunks=(4, 3), fill_value=0)
    ... )
    >>> sorted(plain.documents), plain.images["image"].grid
    (['image/zarr.json', 'x/c/0', 'x/zarr.json', 'y/c/0', 'y/zarr.json', 'zarr.json'], (1, 2))
    """
    try:
        import zarr
        from zarr.storage import MemoryStore
    except ImportError as error:
        raise MissingDependencyError(
            'a Zarr view needs zarr-python 3, which is not installed. To fix: pip install "mlarray-'
            'xr[zarr]"'
        ) from error
    kept: dict[str, zarr.core.buffer.Buffer] = {}
    store = MemoryStore(kept)
    images: dict[str, ImageNode] = {}
    if not file.metadata.has_array:
        text = metadata_text(file.metadata, shape=())
        zarr.create_group(store, zarr_format=3, attributes={METADATA_ATTR: list(text)})
    else:
        coarser = find_levels(file)[1:] if overviews else ()
        shown = coarser if shows is None else takewhile(shows, coarser)
        for number, level in enumerate((file, *shown)):
            check_values(level.shape, level.dtype, way_out="write numbers instead of texts")
            node = ImageNode(file=level, form=form(level))
            group = f"level{number}" if number else ""
            images[add_image(store, level, node.form, group=group)] = node
        add_multiscales(store, {path: node.file for path, node in images.items()})
    with warnings.catch_warnings():
        # Without it, what is read over HTTP, which cannot list, would show nothing.
        warnings.filterwarnings("ignore", message=_CONSOLIDATED)
        zarr.consolidate_metadata(store)
    return Hierarchy(
        documents={key: value.to_bytes() for key, value in kept.items()}, images=images
    )
