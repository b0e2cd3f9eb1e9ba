"""B2ndNumcodec: the bytes of whole chunks of `.mla` files, for Zarr 2 and kerchunk references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy

from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.storage.chunk_box import decode_bytes, encode_bytes
from mlarray_xr.zarr_view.codec_form import CHUNK_CODEC, codec_of, extents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["B2ndNumcodec"]


class B2ndNumcodec(Codec):  # type: ignore[misc]  # numcodecs has no types
    """Numcodecs codec of Blosc2 N-D chunks, ``mlarray_xr.b2nd_chunk``.

    It gives and takes the elements of a whole chunk in C order.

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
    >>> codec = B2ndNumcodec(typesize=2, chunks=(4, 4), blocks=(2, 2))
    >>> stored = codec.encode(np.arange(16, dtype="int16"))
    >>> codec.decode(stored).view("int16")[:4]
    array([0, 1, 2, 3], dtype=int16)
    """

    codec_id = CHUNK_CODEC

    def __init__(
        self,
        *,
        typesize: int,
        chunks: Sequence[int],
        blocks: Sequence[int],
        codec: str | None = None,
    ) -> None:
        form = ChunkForm(
            typesize=typesize, chunks=extents_of(chunks) or (), blocks=extents_of(blocks) or ()
        )
        codec_of(codec)
        self.typesize, self.chunks, self.blocks = form.typesize, form.chunks, form.blocks
        self.codec = codec

    def get_config(self) -> dict[str, Any]:
        """Return the configuration as JSON has it."""
        config: dict[str, Any] = {
            "id": self.codec_id,
            "typesize": self.typesize,
            "chunks": list(self.chunks),
            "blocks": list(self.blocks),
        }
        return config if self.codec is None else config | {"codec": self.codec}

    def __repr__(self) -> str:
        """Return the call that makes this codec."""
        config = self.get_config()
        del config["id"]
        return f"B2ndNumcodec({', '.join(f'{key}={value!r}' for key, value in config.items())})"

    def encode(self, buf: Any) -> bytes:
        """Encode a chunk.

        Parameters
        ----------
        buf
            Its elements in C order: anything with the buffer protocol.

        Raises
        ------
        LayoutError
            When these are not as many bytes as a chunk has.
        """
        values = ensure_contiguous_ndarray(buf).view(np.uint8)
        return encode_bytes(values, self._form(), codec_of(self.codec))

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk.

        Parameters
        ----------
        buf
            The stored bytes: anything with the buffer protocol.
        out
            Where the elements go, contiguous and writable; by default a new array.

        Returns
        -------
        array_like
            The elements in C order as bytes, or `out`.

        Raises
        ------
        ChunkError
            When the chunk is damaged.
        ValueError
            When `out` is too small.
        """
        stored = ensure_contiguous_ndarray(buf).view(np.uint8)
        return ndarray_copy(decode_bytes(stored, self._form(), name="chunk"), out)

    def _form(self) -> ChunkForm:
        """Return the form of a chunk."""
        return ChunkForm(typesize=self.typesize, chunks=self.chunks, blocks=self.blocks)
