"""The small files beside a NIfTI image that belong to it: which there are, and their bytes.

What is recognised, for an image ``<stem>.nii.gz``:

* ``<stem>.json``, ``<stem>.bval`` and ``<stem>.bvec`` in the same folder;
* in a BIDS dataset, which is a folder with ``dataset_description.json``, also those that apply by
  the inheritance principle (BIDS 1.10, "The Inheritance Principle"): in the folders from there down
  to the image, with the suffix of the image and no entity that the image lacks;
* as a brain mask ``<stem>_mask.nii.gz``, else ``<entities>_desc-brain_mask.nii.gz`` with the
  entities of the image other than ``desc``; also ``.nii``.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.raw import local_source

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SidecarFiles", "find_sidecars", "mask_file", "read_text"]

_DATASET = "dataset_description.json"
_MOST_BYTES = 4 << 20
"""Of one text file; those of a series of thousands of volumes have some ten thousand."""

_MASK_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarFiles:
    """Absolute paths of what tells more of an image."""

    json: tuple[str, ...] = ()
    """JSON files, the nearest last: it overrides the others."""
    bval: str | None = None
    """File of b-values."""
    bvec: str | None = None
    """File of b-vectors."""

    def paths(self) -> tuple[str, ...]:
        """Return all of them."""
        return (*self.json, *(path for path in (self.bval, self.bvec) if path is not None))


def find_sidecars(stem: str) -> SidecarFiles:
    """Find the text files that belong to an image; none of them is opened.

    Parameters
    ----------
    stem
        Absolute path of the image without its suffix.

    Raises
    ------
    ConversionError
        When two files of one folder apply and neither is more specific.

    Examples
    --------
    >>> for name in (
    ...     "dataset_description.json",
    ...     "task-rest_bold.json",
    ...     "sub-1_task-rest_bold.json",
    ... ):
    ...     open(name, "wb").close()
    >>> found = find_sidecars(os.path.abspath("sub-1_task-rest_bold"))
    >>> [os.path.basename(path) for path in found.json], found.bval
    (['task-rest_bold.json', 'sub-1_task-rest_bold.json'], None)
    """
    folders = _dataset_folders(os.path.dirname(stem))
    found = {
        suffix: [path for folder in folders for path in _applying(folder, stem, suffix)]
        if folders
        else [path for path in (stem + suffix,) if _is_there(path)]
        for suffix in (".json", ".bval", ".bvec")
    }
    nearest = {suffix: paths[-1] if paths else None for suffix, paths in found.items()}
    return SidecarFiles(json=tuple(found[".json"]), bval=nearest[".bval"], bvec=nearest[".bvec"])


def mask_file(stem: str) -> str | None:
    """Return the path of the brain mask beside an image, None without one.

    Parameters
    ----------
    stem
        Absolute path of the image without its suffix.

    Examples
    --------
    >>> open("sub-1_space-T1w_desc-brain_mask.nii.gz", "wb").close()
    >>> found = mask_file(os.path.abspath("sub-1_space-T1w_desc-preproc_dwi"))
    >>> os.path.basename(found)
    'sub-1_space-T1w_desc-brain_mask.nii.gz'
    """
    folder, name = os.path.split(stem)
    entities = [part for part in name.split("_")[:-1] if not part.startswith("desc-")]
    names = [f"{name}_mask"]
    if entities:
        names.append("_".join([*entities, "desc-brain", "mask"]))
    paths = (os.path.join(folder, each + suffix) for each in names for suffix in _MASK_SUFFIXES)
    return next(filter(os.path.isfile, paths), None)


def read_text(path: str) -> str:
    """Read a small text file, UTF-8 with or without a mark.

    Raises
    ------
    ConversionError
        When it is longer than 4 MiB, no regular file, or no text.
    """
    try:
        with local_source(path).open() as raw, io.BufferedReader(raw) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConversionError(
            f"{path}: the file belongs to the image and cannot be read: {error.strerror or error}. "
            "To fix: (1) fetch or repair it; (2) rename it, and it is not read"
        ) from error
    if len(data) > _MOST_BYTES:
        raise ConversionError(
            f"{path}: a text file of at most {_MOST_BYTES} bytes was expected beside an image, and "
            "this one is longer. To fix: rename it, and it is not read"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConversionError(
            f"{path}: byte {error.start} is no UTF-8 text. To fix: re-save it"
        ) from error


def _dataset_folders(folder: str) -> list[str]:
    """Return the folders from the root of the BIDS dataset down to one inside; empty outside."""
    folders = [folder]
    while not os.path.isfile(os.path.join(folders[0], _DATASET)):
        above = os.path.dirname(folders[0])
        if above == folders[0]:
            return []
        folders.insert(0, above)
    return folders


def _applying(folder: str, stem: str, suffix: str) -> Iterator[str]:
    """Yield the files of a folder that apply to an image, the most specific last."""
    *entities, kind = os.path.basename(stem).split("_")
    n_parts: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(suffix) or not _is_there(os.path.join(folder, name)):
            continue
        *others, other_kind = name.removesuffix(suffix).split("_")
        if other_kind != kind or not {*others} <= {*entities}:
            continue
        if len(others) in n_parts:
            raise ConversionError(
                f"{folder}: both {n_parts[len(others)]} and {name} apply to "
                f"{os.path.basename(stem)}, and BIDS allows one. To fix: merge or rename them"
            )
        n_parts[len(others)] = name
    yield from (os.path.join(folder, n_parts[n]) for n in sorted(n_parts))


def _is_there(path: str) -> bool:
    """Tell whether something has this name that should be a file: a link to nothing, too."""
    return os.path.lexists(path) and not os.path.isdir(path)
