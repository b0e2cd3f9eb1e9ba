"""VirtualStore: one file as VirtualiZarr sees it, a table of byte ranges with coordinates."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import numpy as np
import xarray as xr
import zarr
from virtualizarr.manifests import ChunkManifest, ManifestArray, ManifestGroup, ManifestStore
from virtualizarr.manifests.manifest import validate_and_normalize_path_to_uri
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec
from zarr.core.dtype import parse_data_type
from zarr.core.metadata.v3 import ArrayV3Metadata

from mlarray_xr.array import MlaArray
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.zarr_group import zarr_attributes
from mlarray_xr.foreign.zarr_store import is_member_name
from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_codec import B2ndChunkCodec
from mlarray_xr.zarr_view.stored_chunks import StoredChunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from mlarray_xr.zarr_view.chunk_table import ChunkTable

__all__ = ["VirtualStore", "open_virtual_store"]

_KINDS = "biufcmM"
_STORED, _NAN = 0, 2
_URL_SYNTAX = re.compile(r"[?#]|%[0-9A-Fa-f]{2}")


class VirtualStore(ManifestStore):
    """A `ManifestStore` whose virtual dataset has the coordinates of the file, in memory.

    Coordinates are computed from the metadata: there are no bytes of them that a manifest could
    point at. As a Zarr store it therefore shows the image alone.

    Parameters
    ----------
    dataset
        The file's dataset, of `ManifestArray` and coordinates.
    registry
        The ``ObjectStoreRegistry`` that knows where its chunks are.
    """

    def __init__(self, dataset: xr.Dataset, *, registry: Any) -> None:
        arrays = {str(name): _labelled(image) for name, image in dataset.data_vars.items()}
        group = ManifestGroup(arrays=arrays, attributes=dict(dataset.attrs))
        super().__init__(group, registry=registry)
        self._dataset = dataset

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a document or the bytes of a chunk, or those of a range that it has."""
        try:
            return await super().get(key, prototype, byte_range)
        except ValueError:
            if not isinstance(byte_range, RangeByteRequest):
                raise
            # VirtualiZarr (2.5.1) refuses ranges beyond the end of a chunk, which others cut off.
            # Only short chunks end before a range of ours.
            whole = await super().get(key, prototype)
            return None if whole is None else whole[byte_range.start : byte_range.end]

    def to_virtual_dataset(
        self,
        group: str = "",
        loadable_variables: Iterable[str] | None = None,
        decode_times: bool | None = None,  # noqa: ARG002 - VirtualiZarr's signature
    ) -> xr.Dataset:
        """Return the file's dataset; coordinates are in it whatever shall be loaded.

        Parameters
        ----------
        group
            Empty: there is one.
        loadable_variables
            Arrays to load now instead of pointing at their bytes.
        decode_times
            Without effect: voxels are returned as they are stored.
        """
        if group:
            raise ValueError(f"group={group!r}: an .mla file has none. To fix: leave it out")
        names = {loadable_variables} if isinstance(loadable_variables, str) else loadable_variables
        loaded = {
            name: array.copy(data=zarr.open_array(self, path=str(name), zarr_format=3)[...])
            for name, array in self._dataset.data_vars.items()
            if name in {*(names or ())}
        }
        return self._dataset.assign(loaded)

    def to_virtual_datatree(
        self,
        group: str = "",
        *,
        loadable_variables: Iterable[str] | None = None,
        decode_times: bool | None = None,
    ) -> xr.DataTree:
        """Return a tree of one node; see `to_virtual_dataset`."""
        dataset = self.to_virtual_dataset(group, loadable_variables, decode_times)
        return xr.DataTree(dataset)


def open_virtual_store(
    url: str,
    registry: Any,
    *,
    reads: Literal["chunks", "blocks"],
    fill_value: float,
    variable: str | None,
) -> VirtualStore:
    """Read header, metadata and chunk table of a file; see `MlaParser`."""
    url = validate_and_normalize_path_to_uri(url)
    file = _opened(url, registry)
    if not file.metadata.has_array:
        return VirtualStore(dataset_from(None, file), registry=registry)
    table, name = StoredChunks(file).table, file.path or url
    image = ManifestArray(
        metadata=_array_metadata(file, reads=reads, fill_value=fill_value, name=name),
        chunkmanifest=_manifest(table, _location(url), fill_value=fill_value, name=name),
    )
    dataset = dataset_from(image, file, variable=variable)
    _check_names(dataset, name=name)
    for array in dataset.variables.values():
        array.encoding = {}  # VirtualiZarr's kerchunk writer takes it for attributes
    return VirtualStore(dataset, registry=registry)


def _opened(url: str, registry: Any) -> MlaArray:
    """Open the file that a URL stands for in its store."""
    store, path = registry.resolve(url)
    kinds = {base.__name__ for base in type(store).__mro__}
    if "LocalStore" in kinds:
        return MlaArray(os.path.join(store.prefix or os.sep, unquote(path)))
    if "MemoryStore" in kinds:  # has no address for other processes, and is as small as memory
        return MlaArray(bytes(store.get(path).bytes()))
    return MlaArray(path, store=store)


def _location(url: str) -> str:
    """Return a URL as references have to say it.

    Of a local file VirtualiZarr and fsspec take the path as it is, where icechunk decodes what
    looks like a URL's escapes, query or fragment.
    """
    plain = unquote(url)
    return plain if url.startswith("file://") and not _URL_SYNTAX.search(plain) else url


def _array_metadata(
    file: MlaArray, *, reads: Literal["chunks", "blocks"], fill_value: float, name: str
) -> ArrayV3Metadata:
    """Describe the array in Zarr's words; dimensions and attributes are those of the dataset."""
    native = file.dtype.newbyteorder("=")
    if math.isnan(fill_value) and native.kind != "f":
        raise ConversionError(
            f"{name}: {native} has no NaN for the fill value. To fix: MlaParser(fill_value=0)"
        )
    if native.kind not in _KINDS:
        raise ConversionError(
            f"{name}: elements of type {native} are nothing that all readers of Zarr 3 know. To "
            "fix: write the file with numbers, booleans or times"
        )
    return ArrayV3Metadata(
        shape=file.shape,
        data_type=parse_data_type(native, zarr_format=3),
        # An axis without extent has chunks without any, which Zarr has not.
        chunk_grid=_named("regular", {"chunk_shape": [max(n, 1) for n in file.chunks]}),
        # The only separator with which VirtualiZarr lists chunks.
        chunk_key_encoding=_named("default", {"separator": "."}),
        fill_value=np.array(fill_value).astype(native)[()],
        codecs=_codecs(file, reads),
        attributes={},
        dimension_names=None,
    )


def _named(name: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a Zarr 3 document."""
    return {"name": name, "configuration": configuration}


def _codecs(file: MlaArray, reads: Literal["chunks", "blocks"]) -> list[Any]:
    """Return the codecs of Zarr that decode a chunk; they say nothing of its compression."""
    endian: Literal["little", "big"] = "little"
    if file.dtype.newbyteorder("<") != file.dtype:
        endian = "big"
    if 0 in file.shape:
        # There is no chunk. Other codecs than those of files that have some: VirtualiZarr, which
        # would join them at the wrong place, compares them.
        return [BytesCodec(endian=endian)]
    size, chunks, blocks = file.dtype.itemsize, file.chunks, file.blocks
    # Of an array without axes VirtualiZarr (2.5.1) writes kerchunk references that nobody finds,
    # and it refuses to do so with this codec.
    if reads == "blocks" or not file.shape:
        return [B2ndCodec(typesize=size, chunks=chunks, blocks=blocks, endian=endian)]
    stored = B2ndChunkCodec(typesize=size, chunks=chunks, blocks=blocks)
    return [BytesCodec(endian=endian), stored]


def _manifest(table: ChunkTable, location: str, *, fill_value: float, name: str) -> ChunkManifest:
    """Return where each chunk is: those without bytes are left out, for the fill value."""
    is_nan = math.isnan(fill_value)
    is_odd = (table.special != _STORED) & ((table.special == _NAN) != is_nan)
    if is_odd.any():
        first = tuple(map(int, np.unravel_index(int(np.argmax(is_odd)), table.grid)))
        holds, other = ("zeros", "0") if is_nan else ("NaN", "math.nan")
        raise ConversionError(
            f"{name}: chunk {first}, one of {int(is_odd.sum())} such among {is_odd.size}, holds "
            f"{holds} and has no bytes that a reference could name, while fill_value={fill_value} "
            f"stands for others. To fix: (1) MlaParser(fill_value={other}), for all files that are "
            "joined; (2) of a file with chunks of zeros and of NaN mlarray_xr.zarr.as_store shows "
            "both, and to_zarr copies them"
        )
    if 0 in table.grid:
        # VirtualiZarr (2.5.1) cannot write a manifest without entries: one that is not there.
        grid = tuple(max(n, 1) for n in table.grid)
        return ChunkManifest(entries={}, shape=grid)
    paths = np.full(table.grid, location, np.dtypes.StringDType())
    paths[(table.special != _STORED).reshape(table.grid)] = ""
    return ChunkManifest.from_arrays(
        paths=paths,
        offsets=table.starts.reshape(table.grid).astype(np.uint64),
        lengths=table.lengths.reshape(table.grid).astype(np.uint64),
        validate_paths=False,
    )


def _labelled(image: xr.DataArray) -> ManifestArray:
    """Return a manifest array with the dimension names and attributes of its variable."""
    described = {
        **image.variable.data.metadata.to_dict(),
        "dimension_names": image.dims,
        "attributes": zarr_attributes(image.attrs),
    }
    return ManifestArray(
        metadata=ArrayV3Metadata.from_dict(described),
        chunkmanifest=image.variable.data.manifest,
    )


def _check_names(dataset: xr.Dataset, *, name: str) -> None:
    """Refuse names that cannot be those of arrays in a Zarr group."""
    names = {*dataset.variables, *dataset.dims}
    wrong = sorted(str(each) for each in names if not is_member_name(each))
    if wrong:
        raise ConversionError(
            f"{name}: {wrong} cannot name arrays in Zarr. To fix: MlaParser(variable=...), or "
            "rename dimensions and coordinates and write the file anew"
        )
