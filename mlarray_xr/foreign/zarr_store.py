"""Zarr folders and zip files opened without trusting them: no link, pickle or giant chunk.

Metadata documents are read here, arrays by zarr-python. What is open is never kept: Zarr has no
open files, and a zip file is opened for each read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import stat
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import is_name
from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError, SourceChanged
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = [
    "ZarrArray",
    "ZarrNode",
    "ZarrStore",
    "check_size",
    "chunk_keys",
    "explained",
    "is_member_name",
]

_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_MAX_DOCUMENT_BYTES = 64 << 20
_MAX_CHUNK_BYTES = 4 << 30
"""As in HDF5: what reading one element may take in memory."""

_MOST_NODES = 100_000
_CODEC_KEYS = ("codecs", "compressor", "filters", "storage_transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrNode:
    """One array or group, as its metadata documents describe it."""

    name: str
    """Path inside the store; empty for the root."""
    zarr_format: int
    """2 or 3."""
    is_array: bool
    """False for a group."""
    attributes: dict[str, Any]
    """The user's attributes, JSON."""
    document: dict[str, Any] = field(repr=False)
    """The metadata of the node itself, JSON."""
    digest: str = field(repr=False)
    """SHA-256 of the documents."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of an array as they are claimed."""
        shape = self.document.get("shape")
        if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
            raise ConversionError(f"{self.name!r}: shape {shape!r} is none")
        return tuple(shape)

    def inside(self, name: str) -> str:
        """Return the path of a member of this group."""
        return f"{self.name}/{name}".strip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrStore:
    """The address of a Zarr hierarchy: a folder, or a zip file of one.

    Links inside a folder are not followed: they could lead anywhere.

    Examples
    --------
    >>> import zarr
    >>> group = zarr.open_group("cells.zarr", mode="w", attributes={"sample": 3})
    >>> _ = group.create_array("raw", data=np.arange(6).reshape(2, 3))
    >>> store = ZarrStore.at("cells.zarr")
    >>> store.node("").attributes, store.members(""), store.node("raw").shape
    ({'sample': 3}, ['raw'], (2, 3))
    """

    path: str
    """Absolute path without links."""
    archive: LocalSource | None
    """The zip file, pinned; None for a folder."""

    @classmethod
    def at(cls, path: str) -> ZarrStore:
        """Return the address of a path.

        Raises
        ------
        FileNotFoundError
            When nothing is there.
        ConversionError
            When it is a file of another kind.
        """
        whole = os.path.realpath(os.path.expanduser(path))
        if os.path.isdir(whole):
            return cls(path=whole, archive=None)
        source = source_of(path)
        if not isinstance(source, LocalSource) or not zipfile.is_zipfile(whole):
            raise ConversionError(f"{path}: neither a folder nor a zip file, so no Zarr store")
        return cls(path=whole, archive=source)

    def node(self, name: str) -> ZarrNode | None:
        """Return the array or group of that name, None where there is none.

        Raises
        ------
        ConversionError
            When its documents are broken, too large, or not where they seem to be.
        """
        keys = [f"{name}/{document}".lstrip("/") for document in _DOCUMENTS]
        found = dict(zip(_DOCUMENTS, self._read(keys), strict=True))
        kind = next((each for each in _DOCUMENTS[:3] if found[each] is not None), None)
        if kind is None:
            return None
        document = _parsed(found[kind], name)
        is_v3 = kind == "zarr.json"
        node_type = document.get("node_type") if is_v3 else None
        attributes = (
            document.get("attributes", {}) if is_v3 else _parsed(found[".zattrs"] or b"{}", name)
        )
        if type(attributes) is not dict:
            raise ConversionError(f"{name!r}: the attributes are no JSON object")
        content = b"\0".join(text or b"" for text in found.values())
        return ZarrNode(
            name=name,
            zarr_format=3 if is_v3 else 2,
            is_array=node_type == "array" if is_v3 else kind == ".zarray",
            attributes=attributes,
            document=document,
            digest=hashlib.sha256(content).hexdigest(),
        )

    def members(self, name: str) -> list[str]:
        """Return the names of the folders inside a group, sorted; not all need be nodes."""
        if self.archive is None:
            with os.scandir(os.path.join(self.path, name)) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        prefix = f"{name}/".lstrip("/")
        with self._zip() as archive:
            inside = [n[len(prefix) :] for n in archive.namelist() if n.startswith(prefix)]
        return sorted({rest.partition("/")[0] for rest in inside if "/" in rest} - {""})

    def walk(self, start: ZarrNode) -> Iterator[ZarrNode]:
        """Yield all arrays and groups below a group, parents first.

        Raises
        ------
        ConversionError
            When there are more than 100 000.
        """
        pending, n_nodes = [start], 0
        while pending:
            group = pending.pop()
            for member in self.members(group.name):
                n_nodes += 1
                if n_nodes > _MOST_NODES:
                    raise ConversionError(f"the store holds more than {_MOST_NODES} members")
                found = self.node(group.inside(member))
                if found is not None:
                    yield found
                    if not found.is_array:
                        pending.append(found)

    @contextlib.contextmanager
    def opened(self, node: ZarrNode) -> Iterator[Any]:
        """Open an array through zarr-python, for reading.

        Raises
        ------
        ConversionError
            When a chunk would take more than 4 GiB, or decoding could run code.
        MissingDependencyError
            When zarr is not installed.
        """
        try:
            import zarr
        except ImportError as error:
            raise MissingDependencyError(
                'Zarr needs zarr-python 3, which is not installed. To fix: pip install "mlarray-xr'
                '[zarr]"'
            ) from error
        _check_codecs(node)
        with self._zarr_store() as store:
            array = zarr.open_array(
                store, path=node.name, mode="r", zarr_format=3 if node.zarr_format == 3 else 2
            )
            if math.prod(array.chunks) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
                raise ConversionError(
                    f"a chunk {array.chunks} of {array.dtype} takes more than 4 GiB. To fix: "
                    "rechunk the array"
                )
            yield array

    def _zarr_store(self) -> contextlib.AbstractContextManager[Any]:
        """Give the store of zarr-python, and close it."""
        from zarr.storage import LocalStore, ZipStore

        if self.archive is not None:
            return contextlib.closing(ZipStore(self.path, mode="r"))
        return contextlib.closing(LocalStore(self.path, read_only=True))

    def check_stored(self, keys: Iterable[str]) -> None:
        """Refuse chunks that are links, devices, or of a size that no chunk has.

        Raises
        ------
        ConversionError
            When one is.
        """
        if self.archive is None:
            for key in keys:
                self._size(key)
            return
        with self._zip() as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        for key in keys:
            check_size(key, sizes.get(key, 0), _MAX_CHUNK_BYTES)

    def _read(self, keys: list[str]) -> list[bytes | None]:
        """Return the contents of small files, None where there is none."""
        if self.archive is None:
            return [self._read_file(key) for key in keys]
        with self._zip() as archive:
            return [_read_member(archive, key) for key in keys]

    def _read_file(self, key: str) -> bytes | None:
        """Return the content of one small file of a folder."""
        size = self._size(key)
        if size is None:
            return None
        check_size(key, size)
        with open(os.path.join(self.path, key), "rb") as file:
            return file.read(_MAX_DOCUMENT_BYTES)

    def _size(self, key: str) -> int | None:
        """Return the size of a file that really lies in the folder, None where there is none."""
        path = os.path.normpath(os.path.join(self.path, key))
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if os.path.realpath(path) != path or not stat.S_ISREG(found.st_mode):
            raise ConversionError(
                f"{key!r} is no file of this folder but a link or a device, which are not "
                "followed. To fix: copy the store, following links (cp -rL)"
            )
        return found.st_size

    def _zip(self) -> zipfile.ZipFile:
        """Open the zip file that was pinned."""
        if self.archive is not None:
            self.archive.check()
        return zipfile.ZipFile(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrArray:
    """One array of a Zarr store: an address; each read opens the array, which takes a millisecond.

    Chunks that were never written read as the fill value, as the format has it.
    """

    store: ZarrStore
    """Where it is."""
    name: str
    """Path of the array inside the store; empty when the store is one array."""
    digest: str
    """SHA-256 of the metadata documents."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements; of format 3 in the machine's byte order."""

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box.

        Raises
        ------
        SourceChanged
            When the metadata, or the zip file, were replaced since the array was opened.
        ConversionError
            When a chunk of the box is damaged or its codec is not installed.
        """
        node = self.store.node(self.name)
        if node is None or node.digest != self.digest:
            raise SourceChanged(f"{self.store.path}: {self.name!r} changed. Open it again")
        with explained(self.store.path), self.store.opened(node) as array:
            self.store.check_stored(chunk_keys(array, self.name, key))
            # zarr gives scalars for arrays without axes.
            return np.asarray(array[key], self.dtype)

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes with the metadata."""
        archive = () if self.store.archive is None else self.store.archive.token
        return ("mlarray_xr.ZarrArray", self.store.path, self.name, self.digest, *archive)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Name the store in errors, whoever raises them: codecs raise anything.

    Raises
    ------
    ConversionError
        Instead of what was raised, but for memory, absence, and errors that say what to do.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError, MissingDependencyError, SourceChanged):
        raise
    except MlaError as error:
        raise ConversionError(f"{path}: {error}") from error
    except Exception as error:
        raise ConversionError(
            f"{path}: the store is damaged, or needs a codec that is not installed: "
            f"{type(error).__name__}: {error}"
        ) from error


def _parsed(text: bytes | None, name: str) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        value = json.loads(text or b"")
    except (RecursionError, ValueError) as error:
        raise ConversionError(f"{name!r}: the metadata document is no JSON: {error}") from error
    if type(value) is not dict:
        raise ConversionError(f"{name!r}: the metadata document is no JSON object")
    return value


def _read_member(archive: zipfile.ZipFile, key: str) -> bytes | None:
    """Return the content of one small member of a zip file."""
    try:
        info = archive.getinfo(key)
    except KeyError:
        return None
    check_size(key, info.file_size)
    return archive.read(info)


def check_size(key: str, size: int, limit: int | None = None) -> None:
    """Refuse what is larger than its kind, by default that of documents, ever is."""
    if size > (most := limit or _MAX_DOCUMENT_BYTES):
        raise ConversionError(f"{key!r} has {size} bytes, at most {most} are believed")


def _check_codecs(node: ZarrNode) -> None:
    """Refuse codecs that restore Python objects, wherever they are nested."""
    pending: list[Any] = [node.document.get(key) for key in _CODEC_KEYS]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and "pickle" in value.lower():
            raise ConversionError(
                f"{node.name!r} is encoded with {value!r}: reading it could run any code. To fix: "
                "store it as numbers"
            )


def is_member_name(name: object) -> bool:
    """Tell names that an array in a group can have: those of one folder, and not of a document.

    Examples
    --------
    >>> is_member_name("energy level"), is_member_name("../x"), is_member_name(".zattrs")
    (True, False, False)
    """
    is_reserved = name in _DOCUMENTS or str(name).startswith((".", "__"))
    return is_name(name) and not is_reserved and not {"/", "\\"} & {*str(name)}


def chunk_keys(array: Any, name: str, key: tuple[slice, ...]) -> Iterator[str]:
    """Return the keys of the chunks, or shards of chunks, that a box touches."""
    if any(k.start >= k.stop for k in key):
        return
    stored = array.shards or array.chunks
    ranges = [range(k.start // n, -(-k.stop // n)) for k, n in zip(key, stored, strict=True)]
    for at in itertools.product(*ranges):
        yield f"{name}/{array.metadata.encode_chunk_key(at)}".lstrip("/")
