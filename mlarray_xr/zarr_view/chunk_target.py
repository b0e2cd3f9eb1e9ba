"""Where copied chunks go: the folder of a Zarr store, or a store of zarr-python."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import unquote

from mlarray_xr.errors import ConversionError, SourceError
from mlarray_xr.foreign.zarr_folder import check_apart, published_folder
from mlarray_xr.storage.address import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager
    from io import FileIO

    Data: TypeAlias = "bytes | memoryview"

__all__ = ["ChunkTarget", "FolderTarget", "StoreTarget", "opened_target"]

_ROOT = "zarr.json"
_UNFINISHED = ".tmp"


class ChunkTarget(Protocol):
    """What keeps objects by their keys."""

    def put(self, key: str, data: Data) -> None:
        """Keep an object."""

    def joined(self, key: str) -> AbstractContextManager[Callable[[Data], object]]:
        """Give what takes the pieces of an object, in order; kept when the block ends well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTarget:
    """A folder that is being filled; picklable."""

    folder: str
    """Absolute path."""
    is_shared: bool
    """Whether several processes fill it: then a task may run twice, or when all is over."""

    def put(self, key: str, data: Data) -> None:
        """Keep an object as a file."""
        with self.joined(key) as write:
            write(data)

    @contextlib.contextmanager
    def joined(self, key: str) -> Iterator[Callable[[Data], object]]:
        """Give what takes the pieces of a file, in order.

        Raises
        ------
        SourceError
            When the folder is gone: the copy ended meanwhile.
        """
        path = os.path.join(self.folder, *key.split("/"))
        # Under a name of its own until it is complete: whoever writes it twice never cuts it.
        own = os.path.join(self.folder, f"{uuid.uuid4().hex}{_UNFINISHED}")
        written = own if self.is_shared else path
        if not os.path.isdir(os.path.dirname(path)):
            if not os.path.isdir(self.folder):
                msg = f"{self.folder}: gone: the copy ended meanwhile, or is not seen from here"
                raise SourceError(msg)
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(written, "xb", buffering=0) as file:
            yield partial(_write_all, file)
        if self.is_shared:
            os.replace(written, path)

    def clear(self) -> None:
        """Remove what processes that died had not finished."""
        for name in os.listdir(self.folder):
            if name.endswith(_UNFINISHED):
                os.unlink(os.path.join(self.folder, name))


def _write_all(file: FileIO, data: Data) -> None:
    """Write all of some bytes: of large ones the system may take a part at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoreTarget:
    """A store of zarr-python, which takes objects as a whole."""

    store: Any
    """The store."""

    def put(self, key: str, data: Data) -> None:
        """Keep an object."""
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        buffer = default_buffer_prototype().buffer.from_bytes(bytes(data))
        sync(self.store.set(key, buffer))

    @contextlib.contextmanager
    def joined(self, key: str) -> Iterator[Callable[[Data], object]]:
        """Give what takes the pieces of an object, in order, and holds them."""
        whole = bytearray()
        yield whole.extend
        self.put(key, bytes(whole))


@contextlib.contextmanager
def opened_target(
    store: Any, *, overwrite: bool, sources: Collection[str], is_shared: bool
) -> Iterator[ChunkTarget]:
    """Give a target that has its name, or its root document, when the block ends without error.

    Parameters
    ----------
    store
        A path, or a store of zarr-python.
    overwrite
        Whether what is there is replaced, if it is Zarr.
    sources
        Paths and URLs of what is read meanwhile, which must not be replaced.
    is_shared
        Whether several processes fill a folder.

    Raises
    ------
    FileExistsError
        When something is there and is not to be replaced.
    ConversionError
        When what is there is no Zarr group, or contains a source; when the target is a URL, or a
        store for reading only.
    """
    if getattr(store, "read_only", False):
        raise ConversionError(
            f"{store}: this store was opened for reading only. To fix: give one that can be "
            "written, store.with_read_only(False)"
        )
    path = folder_path(store)
    if path is None:
        with _filled(store, overwrite=overwrite, sources=sources) as emptied:
            yield emptied
        return
    if overwrite:
        check_apart(path, [source for source in sources if not is_url(source)])
    with published_folder(path, overwrite=overwrite, source=None) as folder:
        os.mkdir(folder)
        target = FolderTarget(folder=folder, is_shared=is_shared)
        yield target
        target.clear()


def folder_path(store: Any) -> str | None:
    """Return the folder that a path or a store stands for; None of other stores.

    Raises
    ------
    ConversionError
        When it is a URL.
    """
    from zarr.storage import LocalStore

    if isinstance(store, LocalStore):
        return os.fspath(store.root)
    if not isinstance(store, str | os.PathLike):
        return None
    path = os.fsdecode(store)
    if "://" in path:
        raise ConversionError(
            f"{path.partition('?')[0]}: URLs name no folder. To fix: give a store of zarr-python, "
            "zarr.storage.FsspecStore.from_url(...) or zarr.storage.ObjectStore(...)"
        )
    return path


@contextlib.contextmanager
def _filled(store: Any, *, overwrite: bool, sources: Collection[str]) -> Iterator[StoreTarget]:
    """Give a store that is empty; it is again when the block fails."""
    from zarr.abc.store import Store
    from zarr.core.sync import sync

    if not isinstance(store, Store):
        raise TypeError(f"{type(store).__name__} is neither a path nor a store of zarr-python")
    sync(store._ensure_open())  # noqa: SLF001 - zarr-python itself opens stores in no other way
    if not sync(store.is_empty("")):
        if not overwrite:
            raise FileExistsError(
                f"{store}: the store is not empty. To fix: (1) mode='w' replaces what is in it; "
                "(2) choose another one"
            )
        if not sync(store.exists(_ROOT)):
            raise ConversionError(
                f"{store}: mode='w' replaces Zarr hierarchies, and this is none. To fix: choose "
                "another store, or empty it yourself"
            )
        _check_holds_none(store, sources)
        sync(store.clear())
    try:
        yield StoreTarget(store=store)
    except BaseException:
        sync(store.clear())
        raise


def _check_holds_none(store: Any, sources: Collection[str]) -> None:
    """Refuse to empty a store that holds what is read: it may show a local folder, or a bucket."""
    from zarr.core.sync import sync

    for source in sources:
        for key in _possible_keys(source):
            if sync(store.exists(key)):
                raise ConversionError(
                    f"{store}: the store contains the file that is read, or another one that is "
                    f"called {key!r}. To fix: write to another store"
                )


def _possible_keys(address: str) -> list[str]:
    """Return what an object may be called in the stores that hold it: all ends of its path."""
    if is_url(address):
        _, _, path = address.partition("://")
        paths = [Path(path), Path(unquote(path))]
    else:
        whole = os.path.abspath(address)
        paths = [Path(whole), Path(os.path.realpath(whole))]
    parts = [path.relative_to(path.anchor).parts for path in paths]
    keys = ["/".join(each[first:]) for each in parts for first in range(len(each))]
    return list(dict.fromkeys(keys))
