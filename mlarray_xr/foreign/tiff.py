"""TIFF: single files, stacks, hyperstacks, pyramids, and folders of numbered planes."""

from __future__ import annotations

import os

from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.raw import local_source
from mlarray_xr.foreign.tiff_file import TiffArray, read_image
from mlarray_xr.foreign.tiff_folder import read_stack

__all__ = ["open_image"]


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a TIFF file, or a folder of numbered single-page ones, without reading pixels.

    Axes are named after what ImageJ, OME or tifffile say of them: time, channel, z, y, x; samples
    are ``channel``, or ``sample`` beside another ``channel``; letters that mean nothing in
    particular stay. A plain stack, and the files of a folder, become z, y, x, which are said to be
    assumed. Sizes of voxels come from OME-XML, and from ImageJ's ``unit`` with the resolution tags;
    without a unit, and in inches, those tags speak to a printer and are kept in ``source`` only.
    Where the size along one axis is not known, there is no geometry. OME-TIFF that is spread over
    several files is refused.

    A box is read from the strips or tiles that it touches; plain pages are mapped. JPEG in YCbCr
    gives RGB, as tifffile decodes it; palettes stay indices.

    Parameters
    ----------
    path
        A TIFF or BigTIFF file, or a folder. The files of a folder are ordered by number; they agree
        in shape, type and axes, and no number is missing.
    scratch_dir
        Not needed: every part is decoded from where it lies.
    dataset
        Image of a file with several, ``"1"``; or level of a pyramid, ``"0/2"``; or in a folder the
        names of the files with a star for the number, ``"slice_*.tif"``.

    Raises
    ------
    ConversionError
        When the file is damaged or of a kind that is not read, or holds several images or levels,
        which the message lists, and `dataset` is none of them.
    FileNotFoundError
        When nothing is there.
    MissingDependencyError
        When tifffile is not installed, or imagecodecs where the compression needs it.

    Examples
    --------
    >>> import numpy as np, tifffile
    >>> stack = np.arange(24, dtype="u2").reshape(2, 3, 4)
    >>> tifffile.imwrite(
    ...     "a.tif",
    ...     stack,
    ...     imagej=True,
    ...     resolution=(2, 2),
    ...     metadata={"axes": "ZYX", "unit": "um", "spacing": 3},
    ... )
    >>> image = open_image("a.tif", scratch_dir=None, dataset=None)
    >>> image.metadata.spatial.axis_labels, image.metadata.spatial.spacing
    (('spatial_z', 'spatial_y', 'spatial_x'), (3.0, 0.5, 0.5))
    >>> image.values[0:1, 0:1, 1:3]
    array([[[1, 2]]], dtype=uint16)
    """
    del scratch_dir
    whole = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(whole):
        values, metadata = read_stack(whole, dataset)
        return ForeignImage(values=values, metadata=metadata)
    source = local_source(whole)
    image = read_image(source, dataset)
    return ForeignImage(values=TiffArray.of(image, source), metadata=image.metadata)
