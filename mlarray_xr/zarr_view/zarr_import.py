"""from_zarr: a Zarr array of our codec becomes a file; compressed chunks are copied."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlarray_xr.attributes import LAYOUT_ATTR
from mlarray_xr.errors import ConversionError
from mlarray_xr.file_write import file_name, with_storage
from mlarray_xr.foreign.labelled import dataset_parts
from mlarray_xr.foreign.zarr_labels import labelled_image
from mlarray_xr.foreign.zarr_store import explained
from mlarray_xr.format.block_layout import head_bytes
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.grid import box_shape, chunk_boxes
from mlarray_xr.planning.layout import Basis, Layout
from mlarray_xr.planning.write_plan import plan_parts
from mlarray_xr.prepared import claim_write, parts_in_flight
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.chunk_box import chunk_layout, decode_picked
from mlarray_xr.storage.chunk_pick import plan_pick
from mlarray_xr.storage.encode import EncodedChunk, FramePlan, adopt_chunk, encode_part
from mlarray_xr.storage.planning_record import checked_planning, recorded_windows
from mlarray_xr.storage.publication import check_target
from mlarray_xr.subject import Subject
from mlarray_xr.zarr_view.encoded_array import ArrayChunks, EncodedArray, is_encoded, not_encoded
from mlarray_xr.zarr_view.given_store import GivenStore
from mlarray_xr.zarr_view.stored_objects import opened_objects

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from mlarray_xr.foreign.zarr_store import ZarrNode, ZarrStore
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.progress import Shown
    from mlarray_xr.report import WriteReport

__all__ = ["from_zarr"]

_BATCH_BYTES = 4 << 20
"""Decoded by one task: small chunks are not worth one each."""

_SPECIAL_SHIFT, _NANS, _UNINITIALISED = 4, 2, 4
_SHOWN = 20


def from_zarr(
    store: Any,
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    mode: Literal["w-", "w"] = "w-",
    progress: Shown = None,
) -> WriteReport:
    """Copy an array that is stored with the codec ``mlarray_xr.b2nd`` to a new `.mla` file.

    Its chunks, in shards or not, become those of the file as they are. Each is decoded once, for
    the checksums and statistics that files have, which is many times faster than encoding it. What
    `to_zarr` made of a file that `mlarray_xr.to_mla` wrote becomes the same file, byte for byte, as
    far as its parts were not cut by Dask; statistics in its metadata are left out, as somebody may
    have changed values. It takes a few times 4 MiB, or one chunk where chunks are larger, for each
    thread and two more. Zarr has no checksums of these chunks: flipped bits that still decode are
    copied.

    Parameters
    ----------
    store
        Path of a folder or of a zip file, or a store of zarr-python.
    path
        The target, ending in ``.mla``.
    array
        Path of the array in the store. By default the one in the root group, or the only one.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.
    progress
        Called with the number of chunks done and of all; True, False and None as in
        `mlarray_xr.to_mla`.

    Returns
    -------
    WriteReport
        As `mlarray_xr.to_mla` returns it.

    Raises
    ------
    FileNotFoundError, FileExistsError
        When the store is missing, or the target exists and `mode` is ``"w-"``.
    ConversionError
        When there is no such array, or several, or it is stored with other codecs: then
        `mlarray_xr.convert` decodes and encodes.
    ChunkError
        When a chunk or a shard is damaged. Nothing is written then.
    TargetBusy
        When another writer is at work on the target.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.zarr_view.zarr_export import to_zarr
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(4, 6), "there.mla")
    >>> to_zarr("there.mla", "there.zarr")
    >>> report = from_zarr("there.zarr", "back.mla")
    >>> import filecmp
    >>> filecmp.cmp("back.mla", "there.mla", shallow=False)
    True
    """
    if mode not in ("w-", "w"):
        raise ValueError(f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)")
    began, name, overwrite = time.time(), file_name(path), mode == "w"
    target, _ = check_target(name, overwrite=overwrite)
    hierarchy = GivenStore.of(store)
    with explained(hierarchy.path):
        node = _chosen(hierarchy, array)
        encoded = EncodedArray.of(hierarchy, node)
        image = labelled_image(hierarchy, node)
        plan = _plan(encoded, node, image.metadata)
    parts = plan_parts(
        plan.shape,
        plan.layout,
        itemsize=plan.dtype.itemsize,
        in_flight=parts_in_flight(uses_tasks=False),
    )
    prepared = claim_write(
        Subject(values=image.values, metadata=image.metadata),
        path=name,
        target=target,
        plan=plan,
        parts=parts,
        metadata=encode_metadata(with_storage(image.metadata, plan)),
        overwrite=overwrite,
        resume=False,
        uses_tasks=False,
        choice=None,
        began=began,
    )
    with (
        prepared.cleaned_up(),
        opened_objects(hierarchy) as objects,
        shown_progress(progress, unit="chunk") as tell,
    ):
        copy = _Copy(encoded, plan, ArrayChunks(encoded, objects), where=hierarchy.path)
        return prepared.report(prepared.job.write_encoded(copy.tasks(parts), tell))


def _chosen(store: ZarrStore, name: str | None) -> ZarrNode:
    """Return the array that is meant."""
    node = store.node(_path_of(name or ""))
    if node is not None and node.is_array:
        return node
    if node is None or name:
        raise ConversionError(
            f"no array {name or ''!r} is there; the root holds {store.members('')[:_SHOWN]}. To "
            "fix: choose with array="
        )
    arrays = {each.name: each for each in store.walk(node) if each.is_array}
    found = {key: each for key, each in arrays.items() if is_encoded(each)}
    if not found:
        raise not_encoded(", ".join(list(arrays)[:_SHOWN]))
    top = [key for key in found if "/" not in key] or list(found)
    if len(top) > 1:
        raise ConversionError(
            f"there are {len(top)} arrays: {top[:_SHOWN]}. To fix: choose one, array={top[0]!r}"
        )
    return found[top[0]]


def _path_of(name: str) -> str:
    """Return the path of the array of a name, which may lead nowhere else."""
    try:
        return "/".join(dataset_parts(name))
    except ConversionError as error:
        raise ConversionError(
            f"array={name!r} is no name of an array in a store: names are separated by '/', and "
            "none of them is '.' or '..'. To fix: name it from the root, 'group/array'"
        ) from error


def _plan(array: EncodedArray, node: ZarrNode, metadata: Metadata) -> FramePlan:
    """Return what decides the bytes of the file."""
    facts = node.attributes.get(LAYOUT_ATTR)
    known = facts if isinstance(facts, dict) else {}
    recorded = known.get("planning")
    planning = checked_planning(
        recorded if isinstance(recorded, dict) else None, ndim=len(array.shape)
    )
    caches = planning.get("caches")
    # An array without elements has no chunks: as many elements as it has are in one.
    is_empty = 0 in array.shape
    chunks, blocks = (
        (array.shape, array.shape) if is_empty else (array.form.chunks, array.form.blocks)
    )
    patch = metadata.blosc2.patch_size
    layout = Layout(
        chunks=chunks,
        blocks=blocks,
        patch=patch if patch and len(patch) <= len(chunks) and min(patch) > 0 else None,
        basis=Basis(
            shape=array.shape,
            itemsize=array.dtype.itemsize,
            rule=planning.get("rule", "given"),
            caches=None if caches is None else CacheSizes.from_plain(caches),
            windows=recorded_windows(planning),
            remote=planning.get("remote", False),
        ),
    )
    return FramePlan(
        shape=array.shape,
        dtype_str=array.dtype.str,
        layout=layout,
        codec=DEFAULT_CODEC if array.codec is None else Codec.parse(array.codec),
        has_block_index=known.get("block_index") is True,
    )


class _Copy:
    """One copy under way: gives the chunks of the file, part after part."""

    def __init__(
        self, array: EncodedArray, plan: FramePlan, chunks: ArrayChunks, *, where: str
    ) -> None:
        self._array, self._plan, self._chunks, self._where = array, plan, chunks, where
        self._constants: dict[tuple[int, ...], EncodedChunk] = {}
        self._lock = threading.Lock()

    def tasks(self, parts: Parts) -> Iterator[Callable[[], list[EncodedChunk]]]:
        """Yield what gives some chunks each, in the order of the file."""
        count = max(1, _BATCH_BYTES // max(1, self._array.form.header.chunksize))
        for part in parts.boxes():
            boxes = chunk_boxes(part, chunks=self._plan.layout.chunks)
            while batch := list(itertools.islice(boxes, count)):
                yield partial(self._batch, batch)

    def _batch(self, batch: list[tuple[tuple[int, ...], Box]]) -> list[EncodedChunk]:
        """Return chunks."""
        return [self._chunk(position, box) for position, box in batch]

    def _chunk(self, position: tuple[int, ...], box: Box) -> EncodedChunk:
        """Return one chunk, checked and decoded."""
        data = self._chunks.read(position)
        if data is None:
            return self._constant(box)
        form, dtype = self._array.form, self._plan.dtype
        name = f"{self._where}: {self._array.name}: chunk {position}"
        layout = chunk_layout(data[: head_bytes(form.header)], form, room=len(data), name=name)
        pick = plan_pick(tuple(slice(0, n) for n in box_shape(box)), form)
        stored = np.frombuffer(data, np.uint8)
        values = np.ascontiguousarray(decode_picked(stored, form, pick, dtype=dtype, name=name))
        special = (data[31] >> _SPECIAL_SHIFT) & 7
        if special in (_NANS, _UNINITIALISED):
            return self._encoded(values, box)
        length = CHUNK_HEADER_BYTES if special == 1 else layout.cbytes
        return adopt_chunk(data[:length], values.reshape(box_shape(box)), box, self._plan)

    def _constant(self, box: Box) -> EncodedChunk:
        """Return a chunk of the fill value; they are all the same but at the edges."""
        extents = box_shape(box)
        with self._lock:
            if extents not in self._constants:
                values = np.full(extents, self._array.fill_value, self._plan.dtype)
                self._constants[extents] = self._encoded(values, box)
            found = self._constants[extents]
        entry = found.entry.copy()
        (entry["number"],) = self._plan.numbers_in(box)
        return EncodedChunk(entry=entry, data=found.data)

    def _encoded(self, values: np.ndarray[Any, Any], box: Box) -> EncodedChunk:
        """Encode a chunk, without losing bits."""
        lossless = replace(self._plan, codec=replace(self._plan.codec, mantissa_bits=None))
        (encoded,) = encode_part(values, box, lossless)
        return encoded
