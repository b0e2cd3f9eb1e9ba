"""B2ndChunkCodec: the bytes of whole chunks of `.mla` files, for a chain of Zarr 3 codecs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import BytesBytesCodec

from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.storage.chunk_box import decode_bytes, encode_bytes
from mlarray_xr.zarr_view.chunk_reading import decoded
from mlarray_xr.zarr_view.codec_form import CHUNK_CODEC, codec_of, configuration_of, extents_of

if TYPE_CHECKING:
    from typing import Self

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

    from mlarray_xr.format.chunk_form import Chunked

__all__ = ["B2ndChunkCodec"]

_NEEDED = frozenset(("typesize", "chunks", "blocks"))
_KNOWN = _NEEDED | {"codec"}


@dataclass(frozen=True, kw_only=True)
class B2ndChunkCodec(BytesBytesCodec):
    """Zarr 3 codec of Blosc2 N-D chunks: from bytes to bytes, ``mlarray_xr.b2nd_chunk``.

    It gives and takes the elements of a whole chunk in C order; byte order and type are up to the
    codec before it. `mlarray_xr.zarr.B2ndCodec` decodes parts of a chunk: use this one where only
    codecs of bytes can be recorded, as in kerchunk references.

    Parameters
    ----------
    typesize : int
        Bytes of an element.
    chunks, blocks : sequence of int
        Extents of the chunk and of its blocks, array order.
    codec : str, optional
        Compression of what is written, such as ``"zstd-1-bitshuffle"``; by default ``"lz4hc-8"``.

    Raises
    ------
    LayoutError
        If these are no extents or codec.

    Examples
    --------
    >>> import zarr
    >>> values = np.arange(64 * 64, dtype="int16").reshape(64, 64)
    >>> codec = B2ndChunkCodec(typesize=2, chunks=(32, 32), blocks=(8, 8))
    >>> array = zarr.create_array({}, data=values, chunks=(32, 32), compressors=[codec])
    >>> array[40, 2:5]
    array([2562, 2563, 2564], dtype=int16)
    """

    typesize: int
    """Bytes of an element."""
    chunks: tuple[int, ...]
    """Extents of the chunk, array order."""
    blocks: tuple[int, ...]
    """Extents of a block, array order."""
    codec: str | None = None
    """Compression of what is written."""

    def __post_init__(self) -> None:
        """Refuse what is no configuration: it may come from files of others."""
        object.__setattr__(self, "chunks", extents_of(self.chunks))
        object.__setattr__(self, "blocks", extents_of(self.blocks))
        codec_of(self.codec)
        self._form()

    @classmethod
    def of(cls, array: Chunked, *, codec: str | None = None) -> Self:
        """Return the codec of the chunks of a file, or of what else has a type, chunks and blocks.

        Examples
        --------
        >>> import mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.zeros((10, 6), "i2"), "small.mla", chunks=(10, 6), blocks=4)
        >>> B2ndChunkCodec.of(mlarray_xr.MlaArray("small.mla"))
        B2ndChunkCodec(typesize=2, chunks=(10, 6), blocks=(4, 4), codec=None)
        """
        form = ChunkForm.of(array)
        return cls(typesize=form.typesize, chunks=form.chunks, blocks=form.blocks, codec=codec)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec that JSON configures.

        Raises
        ------
        LayoutError
            When it is that of another codec, or has no sense.
        """
        return cls(**configuration_of(data, name=CHUNK_CODEC, known=_KNOWN, needed=_NEEDED))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON has it."""
        configuration: dict[str, Any] = {
            "typesize": self.typesize,
            "chunks": list(self.chunks),
            "blocks": list(self.blocks),
        }
        if self.codec is not None:
            configuration["codec"] = self.codec
        return {"name": CHUNK_CODEC, "configuration": configuration}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse to tell: the size depends on the values."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        """Decode a chunk."""
        decode = partial(self._decode_sync, chunk_data, chunk_spec)
        return await decoded(decode, decoded_bytes=self._form().nbytes)

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        """Decode a chunk in this thread."""
        stored = np.ascontiguousarray(chunk_data.as_numpy_array()).view(np.uint8)
        values: Any = decode_bytes(stored, self._form(), name="chunk")
        return chunk_spec.prototype.buffer.from_array_like(values)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        """Encode a chunk in another thread."""
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    def _encode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        """Encode a chunk in this thread."""
        values = np.ascontiguousarray(chunk_data.as_numpy_array()).view(np.uint8)
        data = encode_bytes(values, self._form(), codec_of(self.codec))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def _form(self) -> ChunkForm:
        """Return the form of a chunk."""
        return ChunkForm(typesize=self.typesize, chunks=self.chunks, blocks=self.blocks)
