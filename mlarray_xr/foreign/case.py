"""Case: one image of whatever files it consists of, and the `.mla` file that it becomes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlarray_xr.foreign.formats import is_dicom_name, split_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.foreign.formats import Format

__all__ = ["Case", "is_slice_name"]

_SPREAD_SUFFIXES = (".hdr", ".img", ".nhdr")
"""Of formats that have header and voxels in files of their own."""

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image to convert; picklable."""

    source: str
    """Absolute path of a file or folder."""
    target: str
    """Absolute path of the file to make."""
    format: Format
    """The format of the source."""
    content: str = ""
    """Digest of names, sizes and modification times of the files; empty before `measured`."""
    nbytes: int = 0
    """Bytes of the files; 0 before `measured`."""

    def files(self) -> Iterator[str]:
        """Yield the paths of the files that the image consists of, sorted by name.

        Sidecars are among them: what they say is kept. Of header files all that share their name
        up to the suffix: it is not known before they are opened which of those they refer to.
        """
        if not os.path.isdir(self.source):
            yield from sorted({*self._beside(), *self.format.files_beside(self.source)})
            return
        for folder, folders, names in os.walk(self.source):
            folders.sort()
            if self.format.name == "zarr":
                yield from (os.path.join(folder, name) for name in sorted(names))
                continue
            folders.clear()
            slices = (name for name in sorted(names) if is_slice_name(name, self.format))
            yield from (os.path.join(folder, name) for name in slices)

    def measured(self) -> Case:
        """Return the case with content and size; no voxel is read.

        Raises
        ------
        OSError
            When a file is gone.
        """
        digest, nbytes = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        for path in self.files():
            found = os.stat(path)
            name = os.path.relpath(path, os.path.dirname(self.source))
            if os.path.isdir(self.source):
                name = os.path.relpath(path, self.source)
            digest.update(os.fsencode(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0"))
            nbytes += found.st_size
        return replace(self, content=digest.hexdigest(), nbytes=nbytes)

    def _beside(self) -> Iterator[str]:
        """Yield the source, and what may belong to it."""
        folder, name = os.path.split(self.source)
        if not name.lower().endswith(_SPREAD_SUFFIXES):
            yield self.source
            return
        stem = split_name(name)[0]
        for other in sorted(os.listdir(folder)):
            path = os.path.join(folder, other)
            if other.startswith(f"{stem}.") and os.path.isfile(path):
                yield path


def is_slice_name(name: str, file_format: Format) -> bool:
    """Tell the names of files that are slices of one image, when they are in one folder.

    Examples
    --------
    >>> from mlarray_xr.foreign.formats import format_named
    >>> dicom = format_named("dicom")
    >>> [is_slice_name(name, dicom) for name in ("IM0001", "1.2.840.3", "s.dcm", "s.tif", ".x")]
    [True, True, True, False, False]
    """
    if name.startswith("."):
        return False
    found = split_name(name)[1]
    if file_format.name == "dicom":
        return is_dicom_name(name) and (found is None or found.name == "dicom")
    return found is file_format
