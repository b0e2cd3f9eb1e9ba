"""The stored objects of a Zarr hierarchy, read in parts and without trusting who wrote them."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mlarray_xr.errors import ConversionError, SourceChanged
from mlarray_xr.zarr_view.given_store import GivenStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.foreign.zarr_store import ZarrStore

__all__ = ["StoredObjects", "opened_objects"]


class StoredObjects(Protocol):
    """What reads objects by their keys, in any thread."""

    def size(self, key: str) -> int | None:
        """Return the bytes of an object; None where there is none."""

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return a range of the bytes of an object that is there."""


@contextlib.contextmanager
def opened_objects(store: ZarrStore) -> Iterator[StoredObjects]:
    """Give the objects of a store while the block runs.

    Raises
    ------
    SourceChanged
        When a zip file was replaced since it was opened.
    """
    if isinstance(store, GivenStore):
        yield _GivenObjects(store=store.given)
    elif store.archive is None:
        yield _FolderObjects(folder=store.path)
    else:
        store.archive.check()
        with zipfile.ZipFile(store.path) as archive:
            yield _ZipObjects(archive)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FolderObjects:
    """Files of a folder; links are not followed, they could lead anywhere."""

    folder: str
    """Path without links."""
    known: set[str] = field(default_factory=set, repr=False)
    """Folders inside that are no links."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a file.

        Raises
        ------
        ConversionError
            When it is no file of the folder.
        """
        path = self._path(key)
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        inside = os.path.dirname(path)
        if inside not in self.known and os.path.realpath(inside) == inside:
            self.known.add(inside)
        if inside not in self.known or not stat.S_ISREG(found.st_mode):
            raise ConversionError(
                f"{path}: no file of this folder but a link or a device, which are not followed. "
                "To fix: copy the store, following links (cp -rL)"
            )
        return found.st_size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes of a file whose size was asked for.

        Raises
        ------
        SourceChanged
            When there are fewer.
        """
        path = self._path(key)
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            data = b"".join(_pieces(file, stop - start))
        return _complete(data, stop - start, path)

    def _path(self, key: str) -> str:
        """Return the path of a key."""
        return os.path.join(self.folder, *key.split("/"))


class _ZipObjects:
    """Members of an open zip file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}

    def size(self, key: str) -> int | None:
        """Return the bytes of a member, as the zip file claims them."""
        info = self._members.get(key)
        return None if info is None else info.file_size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes of a member.

        Raises
        ------
        ConversionError
            When it is damaged, or compressed by the zip file and not read as a whole.
        """
        info = self._members[key]
        name = f"{self._archive.filename}: {key}"
        if (start, stop) != (0, info.file_size) and info.compress_type != zipfile.ZIP_STORED:
            raise ConversionError(
                f"{name}: a shard that the zip file compresses once more has to be unpacked for "
                "every chunk. To fix: unzip the file, and convert the folder"
            )
        try:
            with self._archive.open(info) as file:
                if start:
                    file.seek(start)
                data = file.read(stop - start)
        except (EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
            raise ConversionError(f"{name}: cannot be read: {e}") from e
        return _complete(data, stop - start, name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _GivenObjects:
    """Objects of a store of zarr-python."""

    store: Any
    """The store."""

    def size(self, key: str) -> int | None:
        """Return the bytes of an object."""
        from zarr.core.sync import sync

        try:
            size: int = sync(self.store.getsize(key))
        except FileNotFoundError:
            return None
        return size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes of an object."""
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        wanted = RangeByteRequest(start, stop)
        found = sync(self.store.get(key, default_buffer_prototype(), wanted))
        return _complete(b"" if found is None else found.to_bytes(), stop - start, key)


def _pieces(file: Any, count: int) -> Iterator[bytes]:
    """Yield so many bytes of an unbuffered file, or fewer where it ends."""
    while count and (piece := file.read(count)):
        yield piece
        count -= len(piece)


def _complete(data: bytes, count: int, name: str) -> bytes:
    """Return bytes, refusing fewer than there were."""
    if len(data) != count:
        raise SourceChanged(f"{name}: {len(data)} of {count} bytes are there: it was changed")
    return data
