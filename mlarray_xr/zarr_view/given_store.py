"""A store of zarr-python that somebody has opened, read as cautiously as a folder."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlarray_xr.foreign.zarr_store import ZarrStore, check_size
from mlarray_xr.zarr_view.chunk_target import folder_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from contextlib import AbstractContextManager

__all__ = ["GivenStore"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenStore(ZarrStore):
    """A hierarchy in a store of zarr-python, which stays open."""

    given: Any
    """The store."""

    @classmethod
    def of(cls, store: Any) -> ZarrStore:
        """Return the hierarchy that a path or a store of zarr-python stands for.

        Raises
        ------
        FileNotFoundError
            When nothing is there.
        ConversionError
            When it is a file of another kind, or a URL.
        TypeError
            When it is neither.
        """
        from zarr.abc.store import Store
        from zarr.storage import ZipStore

        folder = folder_path(store)
        if folder is not None:
            return ZarrStore.at(folder)
        if isinstance(store, ZipStore):
            return ZarrStore.at(os.fspath(store.path))
        if not isinstance(store, Store):
            raise TypeError(f"{type(store).__name__} is neither a path nor a store of zarr-python")
        return cls(path=str(store), archive=None, given=store)

    def members(self, name: str) -> list[str]:
        """Return the names below a group, sorted; not all need be nodes."""
        from zarr.core.sync import sync

        return sorted(sync(_collected(self.given.list_dir(name))))

    def check_stored(self, keys: Iterable[str]) -> None:
        """Refuse nothing: there are neither links nor devices, and sizes are what servers say."""

    def _read(self, keys: list[str]) -> list[bytes | None]:
        """Return the contents of small objects, None where there is none."""
        return [self._read_object(key) for key in keys]

    def _read_object(self, key: str) -> bytes | None:
        """Return the content of one small object."""
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        try:
            check_size(key, sync(self.given.getsize(key)))
        except FileNotFoundError:
            return None
        found = sync(self.given.get(key, default_buffer_prototype()))
        return None if found is None else bytes(found.to_bytes())

    def _zarr_store(self) -> AbstractContextManager[Any]:
        """Give the store, which its owner closes."""
        return contextlib.nullcontext(self.given)


async def _collected(names: AsyncIterator[str]) -> list[str]:
    """Return what a store lists, without what ends the names of folders in some."""
    return [name.rstrip("/") async for name in names]
