"""MlaStore: an unconverted file, local or remote, as a read-only Zarr 3 store."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from mlarray_xr.array import MlaArray
from mlarray_xr.foreign.zarr_group import ImageForm
from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from mlarray_xr.zarr_view.hierarchy import hierarchy_of
from mlarray_xr.zarr_view.stored_chunks import StoredChunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from mlarray_xr.zarr_view.hierarchy import Hierarchy

__all__ = ["MlaStore", "as_store", "stored_form"]

_CHUNKS = "c"
_NUMBER = re.compile("0|[1-9][0-9]{0,18}")
# Bytes that are in memory, or first and last byte of a file.
_Found: TypeAlias = "bytes | tuple[StoredChunks, int, int] | None"


def as_store(
    path: Any,
    *,
    overviews: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> MlaStore:
    """Show a file as a Zarr 3 store, for everything that reads such: nothing is converted.

    Its chunks are the stored bytes of the file's chunks, which zarr-python decodes with the codec
    ``mlarray_xr.b2nd`` of this package: that has to be installed wherever they are read.

    Parameters
    ----------
    path
        A local path, a URL, a file's bytes, or a binary file object.
    overviews
        Whether the levels beside the file are shown, as groups ``level1``, ``level2`` and so on.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Returns
    -------
    MlaStore
        The root group holds the image, named as ``xarray.open_dataset(path, engine="mlarray")``
        names it, and the coordinates that `mlarray_xr.open_mla` shows. Where dimensions and
        geometry allow it, its attributes are those of an OME-NGFF 0.5 image, with the overviews as
        levels.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    FormatError
        When the file is damaged or hostile.
    ConversionError
        When Zarr has no such type, or names of the file cannot be names in Zarr.

    Examples
    --------
    >>> import numpy as np, mlarray_xr, xarray, zarr
    >>> from mlarray_xr.zarr import as_store
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(2, 3, 4), "small.mla")
    >>> zarr.open_array(as_store("small.mla"), path="image", mode="r")[1, 2]
    array([20, 21, 22, 23], dtype=int16)
    >>> xarray.open_zarr(as_store("small.mla")).image.dims
    ('z', 'y', 'x')
    """
    file = MlaArray(path, storage_options=storage_options, store=store)
    return MlaStore(hierarchy_of(file, form=stored_form, overviews=overviews))


def stored_form(file: MlaArray) -> ImageForm:
    """Return how the chunks of a file are stored: in the file's own chunks and codec."""
    table = ChunkTable.read(file._source)  # noqa: SLF001 - the table, where the array gives values
    return ImageForm(
        chunks=tuple(max(1, n) for n in file.chunks),
        fill_value=table.fill_value(file.dtype),
        serializer=B2ndCodec.of(file),
    )


class MlaStore(Store):
    """A read-only Zarr 3 store over one file: its chunks are those of the file, byte for byte.

    Only metadata and coordinates are in memory. Chunks of zeros are not there: they are the fill
    value of their array. The store pickles as these and the address of the file.

    Parameters
    ----------
    hierarchy
        What the store shows; the chunks of its images are those of their files.

    See Also
    --------
    as_store : opens one.
    """

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = True

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__(read_only=True)
        self._documents = hierarchy.documents
        self._chunks = {path: StoredChunks(node.file) for path, node in hierarchy.images.items()}

    def __eq__(self, other: object) -> bool:
        """Tell whether another store shows the same content."""
        return isinstance(other, MlaStore) and self._identity() == other._identity()

    def __hash__(self) -> int:
        """Return a number that is the same for stores of the same content."""
        return hash(self._identity())

    def __str__(self) -> str:
        """Name the file."""
        names = [each.source.name for each in self._chunks.values()]
        return f"mla+{names[0]}" if names else "mla"

    def __repr__(self) -> str:
        """Name the file."""
        return f"MlaStore({str(self)!r})"

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.MlaStore", *self._identity())

    def with_read_only(self, read_only: bool = False) -> MlaStore:
        """Return the store itself, which nobody can write to.

        Raises
        ------
        ValueError
            When one is wanted that can be written to.
        """
        if not read_only:
            self._check_writable()
        return self

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a document or the stored bytes of a chunk, or a range of them; None without.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        """
        found = self._found(key, byte_range)
        if not isinstance(found, tuple):
            return _buffer(found, prototype)
        chunks, start, stop = found
        if chunks.is_remote:
            fetched = await asyncio.wrap_future(chunks.request(start, stop))
            return _buffer(fetched, prototype)
        # Most is in the page cache. Handing over to a thread takes as long as reading it there.
        cached = chunks.read_cached(start, stop)
        if cached is not None:
            return _buffer(cached, prototype)
        return _buffer(await asyncio.to_thread(chunks.read, start, stop), prototype)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return what `get` returns, in the calling thread."""
        found = self._found(key, byte_range)
        if not isinstance(found, tuple):
            return _buffer(found, prototype)
        chunks, start, stop = found
        return _buffer(chunks.read(start, stop), prototype)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return ranges of several values; see `get`."""
        wanted = [self.get(key, prototype, byte_range) for key, byte_range in key_ranges]
        return list(await asyncio.gather(*wanted))

    async def exists(self, key: str) -> bool:
        """Tell whether there is a value."""
        return self._found(key, None) is not None

    async def getsize(self, key: str) -> int:
        """Return the bytes of a value.

        Raises
        ------
        FileNotFoundError
            When there is none.
        """
        found = self._found(key, None)
        if found is None:
            raise FileNotFoundError(key)
        return found[2] - found[1] if isinstance(found, tuple) else len(found)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: the store is read-only."""
        del key, value
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: the store is read-only."""
        del key
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:
        """Refuse: the store is read-only."""
        del prefix
        self._check_writable()

    async def clear(self) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    def set_sync(self, key: str, value: Buffer) -> None:
        """Refuse, as `set` does: zarr-python asks whether there are all three of these methods."""
        del key, value
        self._check_writable()

    def delete_sync(self, key: str) -> None:
        """Refuse, as `delete` does."""
        del key
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys: of a file of many chunks these are many."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield all keys that begin with a text."""
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what lies directly below a path."""
        folder = f"{prefix.strip('/')}/".lstrip("/")
        below = {key.removeprefix(folder) for key in self._documents if key.startswith(folder)}
        names = dict.fromkeys(sorted(name.partition("/")[0] for name in below))
        chunks, position = self._image(folder.rstrip("/"))
        if chunks is not None and position is not None:
            names |= dict.fromkeys(map(str, chunks.positions(position)))
        elif folder.rstrip("/") in self._chunks:
            names[_CHUNKS] = None
        for name in names:
            yield name

    @property
    def _supports_sync_io(self) -> bool:
        """Whether zarr-python may read in its own threads; it should not wait for servers there."""
        return not any(chunks.is_remote for chunks in self._chunks.values())

    def _identity(self) -> tuple[object, ...]:
        """Return what tells stores apart."""
        files = ((path, each.source.token) for path, each in self._chunks.items())
        return tuple(sorted(self._documents)), *files

    def _keys(self) -> Iterator[str]:
        """Yield all keys."""
        yield from self._documents
        for path, chunks in self._chunks.items():
            for position in chunks.all_positions():
                yield "/".join((path, _CHUNKS, *map(str, position)))

    def _image(self, key: str) -> tuple[StoredChunks | None, tuple[int, ...] | None]:
        """Return the chunks that a key leads to, and the position or the beginning of one."""
        path, slash, rest = f"{key}/".rpartition(f"/{_CHUNKS}/")
        parts = rest.split("/")[:-1]
        if not slash or not all(map(_NUMBER.fullmatch, parts)):
            return None, None
        return self._chunks.get(path), tuple(map(int, parts))

    def _found(self, key: str, byte_range: ByteRequest | None) -> _Found:
        """Return where the bytes of a key are, or the bytes."""
        place: tuple[int, int] | bytes | None = self._documents.get(key)
        chunks = None
        if place is None:
            chunks, position = self._image(key)
            if chunks is None or position is None:
                return None
            place = chunks.place(position)
        if place is None:
            return None
        if isinstance(place, bytes):
            start, stop = _clipped(byte_range, len(place))
            return place[start:stop]
        assert chunks is not None
        start, stop = _clipped(byte_range, place[1] - place[0])
        return chunks, place[0] + start, place[0] + stop


def _clipped(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Return which bytes of a value are meant."""
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return min(start, size), min(max(start, end), size)
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
    raise TypeError(f"{byte_range!r} is no range of bytes")


def _buffer(data: bytes | bytearray | None, prototype: BufferPrototype | None) -> Buffer | None:
    """Return bytes as zarr-python hands them on."""
    if data is None:
        return None
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)
