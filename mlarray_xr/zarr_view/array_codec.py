"""B2ndCodec: a Zarr array whose chunks are those of `.mla` files, read block by block."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin

from mlarray_xr.errors import LayoutError
from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.storage.chunk_box import decode_picked, encode_chunk
from mlarray_xr.storage.chunk_pick import plan_pick
from mlarray_xr.zarr_view.chunk_reading import decoded, read_chunk, read_chunk_sync
from mlarray_xr.zarr_view.codec_form import (
    ARRAY_CODEC,
    codec_of,
    configuration_of,
    extents_of,
    form_of,
)

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

    from mlarray_xr.format.chunk_form import Chunked
    from mlarray_xr.storage.chunk_pick import Pick

__all__ = ["B2ndCodec"]

_KNOWN = frozenset(("typesize", "chunks", "blocks", "endian", "codec"))
_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}


@dataclass(frozen=True, kw_only=True)
class B2ndCodec(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """Zarr 3 codec of Blosc2 N-D chunks: from arrays to bytes, ``mlarray_xr.b2nd``.

    Parameters
    ----------
    typesize : int, optional
        Bytes of an element; by default those of the array's type.
    chunks : sequence of int, optional
        Extents of a chunk, array order; by default those of the array's chunks. The array may have
        more axes, along which its chunks are 1 long.
    blocks : sequence of int, optional
        Extents of a block: what is decoded at once. By default the chunk, halved along its longest
        axis until it takes at most 64 KiB.
    endian : {"little", "big"}
        Byte order of the stored elements.
    codec : str, optional
        Compression of what is written, such as ``"zstd-1-bitshuffle"``; by default ``"lz4hc-8"``.

    Raises
    ------
    LayoutError
        If these are no extents, byte order or codec.

    Examples
    --------
    >>> import zarr
    >>> values = np.arange(64 * 64, dtype="int16").reshape(64, 64)
    >>> array = zarr.create_array(
    ...     {}, data=values, chunks=(32, 32), serializer=B2ndCodec(blocks=(8, 8)), compressors=None
    ... )
    >>> array[40, 2:5]
    array([2562, 2563, 2564], dtype=int16)
    """

    typesize: int | None = None
    """Bytes of an element."""
    chunks: tuple[int, ...] | None = None
    """Extents of a chunk, array order."""
    blocks: tuple[int, ...] | None = None
    """Extents of a block, array order."""
    endian: Literal["little", "big"] = "little"
    """Byte order of the stored elements."""
    codec: str | None = None
    """Compression of what is written."""

    def __post_init__(self) -> None:
        """Refuse what is no configuration: it may come from files of others."""
        object.__setattr__(self, "chunks", extents_of(self.chunks))
        object.__setattr__(self, "blocks", extents_of(self.blocks))
        if not isinstance(self.endian, str) or self.endian not in _ORDERS:
            msg = f"endian {str(self.endian)[:200]!r} is neither 'little' nor 'big'"
            raise LayoutError(msg)
        codec_of(self.codec)
        typesize, chunks = self.typesize, self.chunks
        blocks = () if chunks is None else self.blocks
        form_of(1 if typesize is None else typesize, chunks or (), blocks, chunks or ())

    @classmethod
    def of(cls, array: Chunked, *, codec: str | None = None) -> Self:
        """Return the codec of the chunks of a file.

        Parameters
        ----------
        array
            A file, its header, or what else has a type, chunks and blocks.
        codec
            Compression of what is written.

        Examples
        --------
        >>> import mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.zeros((10, 6), ">i2"), "scan.mla", chunks=(10, 6), blocks=4)
        >>> B2ndCodec.of(mlarray_xr.MlaArray("scan.mla"))
        B2ndCodec(typesize=2, chunks=(10, 6), blocks=(4, 4), endian='big', codec=None)
        """
        form, dtype = ChunkForm.of(array), array.dtype
        is_big = dtype.newbyteorder("<") != dtype
        return cls(
            typesize=form.typesize,
            chunks=form.chunks,
            blocks=form.blocks,
            endian="big" if is_big else "little",
            codec=codec,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec that JSON configures.

        Raises
        ------
        LayoutError
            When it is that of another codec, or has no sense.
        """
        return cls(**configuration_of(data, name=ARRAY_CODEC, known=_KNOWN))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON has it; what is not set is left away."""
        configuration = {
            "typesize": self.typesize,
            "chunks": None if self.chunks is None else list(self.chunks),
            "blocks": None if self.blocks is None else list(self.blocks),
            "endian": self.endian,
            "codec": self.codec,
        }
        stated = {key: value for key, value in configuration.items() if value is not None}
        return {"name": ARRAY_CODEC, "configuration": stated}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Return the codec for arrays of a type: its element size is filled in."""
        itemsize = self._stored_dtype(array_spec).itemsize
        return self if self.typesize == itemsize else replace(self, typesize=itemsize)

    def validate(
        self,
        *,
        shape: tuple[int, ...],  # noqa: ARG002 - zarr's signature
        dtype: Any,
        chunk_grid: Any,
    ) -> None:
        """Check that the configuration fits an array.

        Raises
        ------
        LayoutError
            When type or chunks of the array are others than those configured.
        """
        itemsize = self._checked_dtype(dtype.to_native_dtype()).itemsize
        # Chunks of a grid that is not regular are looked at one by one, when they are read.
        extents = getattr(chunk_grid, "chunk_shape", None)
        if extents is not None:
            form_of(itemsize, self.chunks, self.blocks, tuple(extents))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse to tell: the size depends on the values."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        """Decode a chunk."""
        nbytes = math.prod(chunk_spec.shape) * self._stored_dtype(chunk_spec).itemsize

        def decode() -> NDBuffer:
            return self._decode_sync(chunk_data, chunk_spec)

        return await decoded(decode, decoded_bytes=nbytes)

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        """Decode a chunk in this thread."""
        dtype = self._stored_dtype(chunk_spec)
        form, pick = self._picked((), chunk_spec)
        stored = np.ascontiguousarray(chunk_data.as_numpy_array()).view(np.uint8)
        values = decode_picked(stored, form, pick, dtype=dtype, name="chunk")
        return _given(values, chunk_spec)

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        """Decode what is selected of a chunk; None when there is no chunk."""
        dtype = self._stored_dtype(chunk_spec)
        form, pick = self._picked(selection, chunk_spec)
        values = await read_chunk(byte_getter, chunk_spec.prototype, form, pick, dtype=dtype)
        return None if values is None else _given(values, chunk_spec)

    def _decode_partial_sync(
        self, byte_getter: Any, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        """Decode what is selected of a chunk in this thread; None when there is no chunk."""
        dtype = self._stored_dtype(chunk_spec)
        form, pick = self._picked(selection, chunk_spec)
        values = read_chunk_sync(byte_getter, chunk_spec.prototype, form, pick, dtype=dtype)
        return None if values is None else _given(values, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        """Encode a chunk in another thread."""
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        """Encode a chunk in this thread."""
        dtype = self._stored_dtype(chunk_spec)
        form, _ = self._forms(chunk_spec)
        values = np.asarray(chunk_data.as_numpy_array())
        stored = values.reshape(form.chunks).astype(dtype, copy=False)
        data = encode_chunk(stored, form, codec_of(self.codec))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def _picked(self, selection: Any, chunk_spec: ArraySpec) -> tuple[ChunkForm, Pick]:
        """Return the form of the stored chunk, and what is picked from it."""
        form, in_array = self._forms(chunk_spec)
        return form, plan_pick(selection, in_array)

    def _forms(self, chunk_spec: ArraySpec) -> tuple[ChunkForm, ChunkForm]:
        """Return the form of a chunk as it is stored, and as zarr sees it."""
        itemsize = self._stored_dtype(chunk_spec).itemsize
        return form_of(itemsize, self.chunks, self.blocks, chunk_spec.shape)

    def _stored_dtype(self, spec: ArraySpec) -> np.dtype[Any]:
        """Return the type of the stored elements."""
        return self._checked_dtype(spec.dtype.to_native_dtype())

    def _checked_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return a type in the stored byte order, refusing those of variable or another size."""
        if dtype.hasobject or dtype.kind == "T" or dtype.itemsize == 0:
            msg = (
                f"elements of type {dtype} have no fixed size, which chunks of Blosc2 need. "
                "To fix: use another serializer, or strings of fixed length"
            )
            raise LayoutError(msg)
        if self.typesize not in (None, dtype.itemsize):
            msg = (
                f"the codec is configured for {self.typesize} bytes per element, {dtype} has "
                f"{dtype.itemsize}. To fix: leave typesize away"
            )
            raise LayoutError(msg)
        return dtype.newbyteorder(_ORDERS[self.endian])


def _given(values: NDArray[Any], chunk_spec: ArraySpec) -> NDBuffer:
    """Return values as zarr wants them, in its own byte order."""
    native: Any = values.astype(chunk_spec.dtype.to_native_dtype(), copy=False)
    return chunk_spec.prototype.nd_buffer.from_ndarray_like(native)
