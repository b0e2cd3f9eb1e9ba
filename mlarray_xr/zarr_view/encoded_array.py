"""An array of a Zarr store whose chunks are encoded as those of `.mla` files are."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError, ConversionError
from mlarray_xr.foreign.labelled import check_values
from mlarray_xr.format.block_layout import most_chunk_bytes
from mlarray_xr.zarr_view.codec_form import ARRAY_CODEC, form_of
from mlarray_xr.zarr_view.shard import decode_shard_table, shard_table_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.foreign.zarr_store import ZarrNode, ZarrStore
    from mlarray_xr.format.chunk_form import ChunkForm
    from mlarray_xr.zarr_view.stored_objects import StoredObjects

__all__ = ["ArrayChunks", "EncodedArray", "is_encoded", "not_encoded"]

_MOST_CHUNKS = 1 << 24
"""As many as a file that is read here may have."""

_SHARDING = "sharding_indexed"
_LITTLE, _CRC32C = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
_SEPARATORS = ("/", ".")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedArray:
    """What the metadata of the array say, checked."""

    name: str
    """Path of the array in its store."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements, in the byte order of the chunks."""
    form: ChunkForm
    """Of a chunk."""
    codec: str | None
    """Compression of the chunks, where that is stated."""
    fill_value: NDArray[Any]
    """What chunks hold that are not there, 0-d."""
    per_shard: tuple[int, ...] | None
    """Number of chunks of a shard along each axis; None for one object per chunk."""
    begins_with_table: bool
    """Whether the table of a shard is at its beginning."""
    has_checksum: bool
    """Whether the table of a shard has a checksum."""
    key_encoding: str
    """How keys are made of positions: ``"default"`` or ``"v2"``."""
    separator: str
    """What is between the numbers of a key."""

    @classmethod
    def of(cls, store: ZarrStore, node: ZarrNode) -> EncodedArray:
        """Return the array of a node.

        Raises
        ------
        ConversionError
            When it is stored in another way, or its metadata are broken.
        """
        with store.opened(node) as array:
            if not is_encoded(node):
                raise not_encoded(node.name)
            shape, dtype, fill = tuple(array.shape), np.dtype(array.dtype), array.fill_value
            extents = tuple(array.chunks)
            serializer = array.metadata.codecs[0]
        sharding = _configuration(node) if _names(node.document) == [_SHARDING] else None
        codec = serializer if sharding is None else serializer.codecs[0]
        check_values(shape, dtype, way_out="choose another array with array=")
        stored = dtype.newbyteorder(">" if codec.endian == "big" else "<")
        form, _ = form_of(dtype.itemsize, codec.chunks, codec.blocks, extents)
        encoding, separator = _key_encoding(node)
        grid = [-(-n // c) for n, c in zip(shape, extents, strict=True)]
        if form.chunks != extents or math.prod(grid) > _MOST_CHUNKS:
            raise ConversionError(
                f"{node.name!r}: {math.prod(grid)} chunks {extents} of shape {shape}, each encoded "
                f"as {form.chunks} in blocks {form.blocks}, are no chunks of a file. To fix: "
                "mlarray_xr.convert(src, dst) decodes and encodes"
            )
        return cls(
            name=node.name,
            shape=shape,
            dtype=stored,
            form=form,
            codec=codec.codec,
            fill_value=np.asarray(fill, dtype),
            per_shard=None if sharding is None else _per_shard(node, extents),
            begins_with_table=(sharding or {}).get("index_location") == "start",
            has_checksum=_CRC32C["name"] in _codec_names((sharding or {}).get("index_codecs")),
            key_encoding=encoding,
            separator=separator,
        )

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.form.chunks, strict=True))

    def key(self, position: tuple[int, ...]) -> str:
        """Return the key of the chunk or the shard at a place of its grid."""
        parts = [str(i) for i in position]
        if self.key_encoding == "default":
            parts.insert(0, "c")
        return f"{self.name}/{self.separator.join(parts) or '0'}".lstrip("/")


class ArrayChunks:
    """The stored chunks of an array, for several threads.

    Parameters
    ----------
    array
        Whose chunks they are.
    objects
        Where they lie.
    """

    def __init__(self, array: EncodedArray, objects: StoredObjects) -> None:
        self._array, self._objects = array, objects
        # 16 bytes for every chunk: less than what is recorded of each for the file.
        self._tables: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]] | None] = {}
        self._lock = threading.Lock()

    def read(self, position: tuple[int, ...]) -> bytes | None:
        """Return the stored bytes of the chunk at a place of the grid; None when it is not there.

        Raises
        ------
        ChunkError
            When it has more bytes than any chunk of its form, or its shard is damaged.
        """
        per_shard = self._array.per_shard
        if per_shard is None:
            key = self._array.key(position)
            start, length = 0, self._objects.size(key)
            if length is None:
                return None
        else:
            shard = tuple(i // n for i, n in zip(position, per_shard, strict=True))
            inside = tuple(i % n for i, n in zip(position, per_shard, strict=True))
            key, table = self._array.key(shard), self._table(shard)
            if table is None:
                return None
            place = int(np.ravel_multi_index(inside, per_shard)) if inside else 0
            start, length = int(table[0][place]), int(table[1][place])
            if start < 0:
                return None
        most = most_chunk_bytes(self._array.form.header)
        if length > most:
            raise ChunkError(f"{key}: a chunk of {length} bytes, at most {most} are one: damaged")
        return self._objects.read(key, start, start + length)

    def _table(self, shard: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return the table of a shard, read once; None where there is no shard."""
        with self._lock:
            if shard not in self._tables:
                self._tables[shard] = self._read_table(shard)
            return self._tables[shard]

    def _read_table(
        self, shard: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Read the table of a shard."""
        array, key = self._array, self._array.key(shard)
        size = self._objects.size(key)
        if size is None:
            return None
        n_chunks = math.prod(array.per_shard or ())
        table_bytes = shard_table_bytes(n_chunks, has_checksum=array.has_checksum)
        if size < table_bytes:
            raise ChunkError(
                f"{key}: a shard of {size} bytes, its table has {table_bytes}: damaged"
            )
        start = 0 if array.begins_with_table else size - table_bytes
        return decode_shard_table(
            self._objects.read(key, start, start + table_bytes),
            n_chunks=n_chunks,
            shard_bytes=size,
            has_checksum=array.has_checksum,
            name=key,
        )


def is_encoded(node: ZarrNode) -> bool:
    """Tell whether the chunks of a node are encoded as those of files are, be it inside shards."""
    if not node.is_array or node.zarr_format != 3:
        return False
    if _names(node.document) != [_SHARDING]:
        return _names(node.document) == [ARRAY_CODEC]
    configuration = _configuration(node)
    index = configuration.get("index_codecs")
    is_plain = index in ([_LITTLE], [_LITTLE, _CRC32C])
    return is_plain and _codec_names(configuration.get("codecs")) == [ARRAY_CODEC]


def not_encoded(name: str) -> ConversionError:
    """Return the error of an array whose chunks cannot be copied."""
    return ConversionError(
        f"{name!r}: its chunks are not stored with the codec {ARRAY_CODEC!r} alone, so they cannot "
        "be copied. To fix: mlarray_xr.convert(src, dst) decodes and encodes"
    )


def _names(document: dict[str, Any]) -> list[str]:
    """Return the names of the codecs of an array."""
    return _codec_names(document.get("codecs"))


def _codec_names(codecs: Any) -> list[str]:
    """Return the names of codecs; ``"?"`` for what is none."""
    entries = codecs if isinstance(codecs, list) else []
    return [str(each.get("name", "?")) if isinstance(each, dict) else "?" for each in entries]


def _configuration(node: ZarrNode) -> dict[str, Any]:
    """Return the configuration of the first codec of an array; nothing where there is none."""
    found = node.document["codecs"][0].get("configuration")
    return found if isinstance(found, dict) else {}


def _per_shard(node: ZarrNode, chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of chunks of a shard along each axis."""
    shard = node.document["chunk_grid"]["configuration"]["chunk_shape"]
    if len(shard) != len(chunks) or not all(
        type(s) is int and s > 0 and s % c == 0 for s, c in zip(shard, chunks, strict=True)
    ):
        raise ConversionError(
            f"{node.name!r}: shards {shard} are no whole chunks {chunks}: damaged"
        )
    return tuple(s // c for s, c in zip(shard, chunks, strict=True))


def _key_encoding(node: ZarrNode) -> tuple[str, str]:
    """Return how keys are made, and the separator."""
    grid, encoding = node.document.get("chunk_grid"), node.document.get("chunk_key_encoding")
    if isinstance(grid, dict) and isinstance(encoding, dict):
        name, configuration = encoding.get("name"), encoding.get("configuration") or {}
        separator = configuration.get("separator", "/" if name == "default" else ".")
        is_known = name in ("default", "v2") and separator in _SEPARATORS
        if is_known and grid.get("name") == "regular":
            return str(name), str(separator)
    raise ConversionError(
        f"{node.name!r}: neither a regular chunk grid nor keys of a known kind: {grid}, {encoding}"
    )
