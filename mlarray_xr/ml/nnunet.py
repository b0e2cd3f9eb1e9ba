"""Folders that nnU-Net has preprocessed: images and labels as Blosc2 arrays, with properties."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, MetadataError
from mlarray_xr.format.pickle_arrays import decode_array_pickle
from mlarray_xr.format.pickle_numpy import PickledArray
from mlarray_xr.ml.collection_folder import entries_of, file_inside, folder_path
from mlarray_xr.ml.subject_record import SubjectRecord, natural_order
from mlarray_xr.storage.frame_sections import reading
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from mlarray_xr.storage.frame_sections import RandomAccess

__all__ = ["IMAGE", "SEGMENTATION", "nnunet_records", "read_nnunet_properties"]

IMAGE = "image"
"""Modality of ``case.b2nd``: float32 (channel, axes of the volume)."""
SEGMENTATION = "seg"
"""Modality of ``case_seg.b2nd``: int8 or int16 (1, axes of the volume); -1 is outside."""

_ARRAY = ".b2nd"
_SEGMENTATION_END = "_seg"
_PROPERTIES = ".pkl"
_OLD = (".npz", ".npy")
# Of an array that may be a label: spacings, shapes and boxes are a few numbers.
_LABEL_BYTES = 4 << 10


def nnunet_records(folder: str | os.PathLike[str], *, labels: bool) -> tuple[SubjectRecord, ...]:
    """Return the cases of a folder that nnU-Net (2.6 or later) has preprocessed.

    Parameters
    ----------
    folder
        That of a configuration, such as ``.../Dataset001_X/nnUNetPlans_3d_fullres``.
    labels
        Whether to read the properties of every case.

    Raises
    ------
    ConversionError
        When there are no cases.
    MetadataError
        When properties are damaged or hold what they should not.
    SourceError
        When a file is a link out of the folder.
    FileNotFoundError
        When there is no such folder, or a case has no properties.
    """
    root = folder_path(folder)
    files: dict[str, dict[str, str]] = {}
    for name in entries_of(root, depth=1):
        stem, suffix = os.path.splitext(name)
        if suffix != _ARRAY:
            continue
        # nnU-Net itself takes every name with this end for a segmentation.
        is_image = not stem.endswith(_SEGMENTATION_END)
        case = stem if is_image else stem.removesuffix(_SEGMENTATION_END)
        modality = IMAGE if is_image else SEGMENTATION
        files.setdefault(case, {})[modality] = file_inside(root, name)
    if not files:
        raise ConversionError(_nothing_in(root))
    return tuple(
        SubjectRecord(
            subject=case,
            files={m: files[case][m] for m in (IMAGE, SEGMENTATION) if m in files[case]},
            labels=_labels(file_inside(root, case + _PROPERTIES)) if labels else {},
        )
        for case in sorted(files, key=natural_order)
    )


def read_nnunet_properties(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what nnU-Net keeps beside a preprocessed case, without executing any of it.

    Parameters
    ----------
    path
        A ``.pkl`` file: a pickle of protocol 2 to 5.

    Returns
    -------
    dict
        Plain values, tuples as lists, and NumPy arrays. Where there is ``class_locations``, it
        holds voxels of each class or region: int64 (n, 4), channel first.

    Raises
    ------
    MetadataError
        When it is damaged, or holds anything but plain values and arrays of numbers.
    FileNotFoundError
        When there is no such file.

    Examples
    --------
    >>> import pickle
    >>> import numpy as np
    >>> properties = {"spacing": [np.float64(1.5)], "class_locations": {1: np.zeros((9, 4), "i8")}}
    >>> with open("case.pkl", "wb") as file:
    ...     pickle.dump(properties, file)
    >>> found = read_nnunet_properties("case.pkl")
    >>> found["spacing"], found["class_locations"][1].shape
    ([1.5], (9, 4))
    """
    source = source_of(path)
    with reading(source) as (read, size):
        properties = _decode(read, size, name=source.name)
        loaded: dict[int, Any] = {}
        return {key: _loaded(value, read, loaded) for key, value in properties.items()}


def _decode(read: RandomAccess, size: int, *, name: str) -> dict[str, Any]:
    """Decode the properties of a case, arrays left where they are."""
    try:
        return decode_array_pickle(read, size=size)
    except MetadataError as error:
        msg = f"{name}: {error}"
        raise MetadataError(msg) from error


def _labels(path: str) -> dict[str, Any]:
    """Return the properties of a case that are numbers, text, or lists of them."""
    source = source_of(path)
    with reading(source) as (read, size):
        properties = _decode(read, size, name=source.name)
        loaded: dict[int, Any] = {}
        return {
            key: _listed(value, read, loaded)
            for key, value in properties.items()
            if isinstance(key, str) and not isinstance(value, dict)
        }


def _listed(value: Any, read: RandomAccess, loaded: dict[int, Any]) -> Any:
    """Return a value with lists in place of small arrays, one that is shared once.

    Larger ones are no labels, and become None: `read_nnunet_properties` reads them.
    """
    if isinstance(value, list):
        return [_listed(item, read, loaded) for item in value]
    if not isinstance(value, PickledArray):
        return value
    if value.nbytes > _LABEL_BYTES:
        return None
    if id(value) not in loaded:
        loaded[id(value)] = value.load(read).tolist()
    return loaded[id(value)]


def _loaded(value: Any, read: RandomAccess, loaded: dict[int, Any]) -> Any:
    """Replace descriptions of arrays by the arrays, one that is shared once."""
    if isinstance(value, dict):
        return {key: _loaded(item, read, loaded) for key, item in value.items()}
    if isinstance(value, list):
        return [_loaded(item, read, loaded) for item in value]
    if not isinstance(value, PickledArray):
        return value
    if id(value) not in loaded:
        loaded[id(value)] = value.load(read)
    return loaded[id(value)]


def _nothing_in(root: str) -> str:
    """Say why a folder holds no cases."""
    names = os.listdir(root)
    msg = f"{root}: no case ({_ARRAY}) is there"
    if any(name.endswith(_OLD) for name in names):
        return f"{msg}, but .npz files of nnU-Net before 2.6. To fix: preprocess with 2.6 or later"
    inner = [
        name
        for name in sorted(names)
        if os.path.isdir(os.path.join(root, name))
        and any(n.endswith(_ARRAY) for n in os.listdir(os.path.join(root, name)))
    ]
    where = f", such as {inner[0]!r} inside it" if inner else ""
    return f"{msg}. To fix: name the folder of one configuration{where}"
