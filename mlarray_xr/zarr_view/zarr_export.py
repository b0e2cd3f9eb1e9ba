"""to_zarr: a file becomes a Zarr group without being decoded; compressed chunks are copied."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import LAYOUT_ATTR
from mlarray_xr.dask import has_client, run_tasks
from mlarray_xr.dask_write import workers_without
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.foreign.zarr_group import ImageForm
from mlarray_xr.format.block_index import BLOCK_INDEX_NAME
from mlarray_xr.planning.codec import Codec
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.frame_entries import read_planning
from mlarray_xr.storage.frame_sections import read_sections, reading
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.planning_record import checked_planning
from mlarray_xr.storage.source import BytesSource
from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from mlarray_xr.zarr_view.chunk_target import FolderTarget, folder_path, opened_target
from mlarray_xr.zarr_view.copied_image import copy_piece, plan_image, plan_pieces, shard_extents
from mlarray_xr.zarr_view.hierarchy import hierarchy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.progress import Shown
    from mlarray_xr.storage.job import Progress
    from mlarray_xr.zarr_view.chunk_target import ChunkTarget
    from mlarray_xr.zarr_view.copied_image import CopiedImage, ImagePiece
    from mlarray_xr.zarr_view.hierarchy import Hierarchy

__all__ = ["to_zarr"]

_ROOT = "zarr.json"
_TRUNC_PREC = 4


def to_zarr(
    path: Any,
    store: Any,
    *,
    overviews: bool = True,
    shards: Literal["file"] | int | Sequence[int] | None = None,
    mode: Literal["w-", "w"] = "w-",
    storage_options: Mapping[str, Any] | None = None,
    progress: Shown = None,
) -> None:
    """Copy a file to a Zarr 3 group whose chunks are the compressed chunks of the file.

    Nothing is decoded: that is many times faster than ``dataset.to_zarr``, and needs 8 MiB, or one
    chunk where chunks are larger, for each thread and two more. Readers need the codec
    ``mlarray_xr.b2nd`` of this package; for all others `mlarray_xr.convert` recodes. Each chunk is
    compared with the checksum that the file has for it. A folder appears complete or not at all;
    other stores get the document of their root last. Processes that are killed leave
    ``.NAME.<32 digits>.tmp`` beside the folder, which can be deleted. With an active distributed
    client its workers copy, which must see the folder.

    Parameters
    ----------
    path
        A local path, a URL, a file's bytes, or an `MlaArray`.
    store
        Path of a folder, or a store of zarr-python that can be written, which is the group then.
    overviews
        Whether the levels beside the file are copied as well, to groups ``level1``, ``level2``.
    shards
        Extents of a shard, elements, rounded up to whole chunks: one for all axes or one for each;
        ``"file"`` is one shard for the array. None makes one object per chunk. A shard of a store
        that is no folder is put together in memory.
    mode
        ``"w-"`` refuses a target that is there, ``"w"`` replaces a Zarr store or an empty folder.
        A folder is replaced when the copy is complete. A store of zarr-python that is no
        ``LocalStore`` is emptied before the first chunk is copied: what it held is gone when the
        copy fails after that, such as at a damaged chunk (`mlarray_xr.verify` finds them before).
    storage_options
        How to get at a URL, as fsspec or obstore spell it.
    progress
        Called with the number of stored chunks that are copied and of all; True, False and None as
        in `mlarray_xr.to_mla`.

    Raises
    ------
    FileNotFoundError, FileExistsError
        When the file is missing, or the target is there and `mode` is ``"w-"``.
    FormatError
        When the file is damaged; of a chunk that is, a `ChunkError`.
    ConversionError
        When Zarr has no such type or names; when the target is a URL, for reading only, no Zarr
        store that could be replaced, contains the file, or is not seen by workers.
    LayoutError
        When `shards` are no extents.

    Examples
    --------
    >>> import numpy as np, mlarray_xr, zarr
    >>> from mlarray_xr.zarr_view.zarr_export import to_zarr
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(4, 6), "plane.mla", chunks=2)
    >>> to_zarr("plane.mla", "plane.zarr", shards="file")
    >>> zarr.open_array("plane.zarr/image", mode="r")[2, 3:]
    array([15, 16, 17], dtype=int16)
    """
    if mode not in ("w-", "w"):
        raise ValueError(f"mode={mode!r} is not 'w-' (refuse what is there) or 'w' (replace it)")
    file = path if isinstance(path, MlaArray) else MlaArray(path, storage_options=storage_options)
    view = hierarchy_of(file, form=partial(_form, shards=shards), overviews=overviews)
    images = [
        plan_image(node.file, path=key, shards=node.form.shards)
        for key, node in view.images.items()
    ]
    # All that can fail is done before the target is touched: a store has no way back.
    plans = [(image, list(plan_pieces(image))) for image in images]
    documents = _documents(view)
    files = [file, *(node.file for node in view.images.values())]
    uses_cluster = _uses_cluster(file, store)
    with (
        shown_progress(progress, unit="chunk") as tell,
        opened_target(
            store,
            overwrite=mode == "w",
            sources={each.path for each in files if each.path is not None},
            is_shared=uses_cluster,
        ) as target,
    ):
        if uses_cluster:
            _check_seen(target)
        _copy(plans, target, uses_cluster=uses_cluster, tell=tell)
        root = documents.pop(_ROOT)
        for key, data in documents.items():
            target.put(key, data)
        target.put(_ROOT, root)


def _form(file: MlaArray, *, shards: str | int | Sequence[int] | None) -> ImageForm:
    """Return how the chunks of a file are stored in the copy."""
    chunks = tuple(max(1, n) for n in file.chunks)
    codec = _codec(file._header)  # noqa: SLF001 - what is stored, where the array gives values
    extents = None if shards is None else shard_extents(shards, shape=file.shape, chunks=chunks)
    return ImageForm(
        chunks=chunks,
        shards=extents,
        fill_value=ChunkTable.read(file._source).fill_value(file.dtype),  # noqa: SLF001
        serializer=B2ndCodec.of(file, codec=None if codec is None else str(codec)),
    )


def _codec(header: FrameHeader) -> Codec | None:
    """Return the codec of a file; None when it is none of those that are written here."""
    kept = [
        meta
        for each, meta in zip(header.filters, header.filters_meta, strict=True)
        if each == _TRUNC_PREC
    ]
    names = [name for name in header.filter_names if name != "trunc_prec"] or ["none"]
    try:
        codec = Codec.parse(f"{header.codec_name}-{header.level}-{'-'.join(names)}")
        return replace(codec, mantissa_bits=kept[0]) if kept else codec
    except LayoutError:
        return None


def _uses_cluster(file: MlaArray, store: Any) -> bool:
    """Tell whether the workers of a cluster can copy: all that they need has an address."""
    is_in_memory = isinstance(file._source, BytesSource)  # noqa: SLF001
    return has_client() and not is_in_memory and folder_path(store) is not None


def _check_seen(target: ChunkTarget) -> None:
    """Refuse a folder that workers do not see."""
    assert isinstance(target, FolderTarget)
    blind = workers_without(target.folder)
    if blind:
        raise ConversionError(
            f"{target.folder}: {len(blind)} workers do not see this folder, the first is "
            f"{blind[0]}. To fix: (1) write where all of them see the same files; (2) close the "
            "client, and this process copies"
        )


def _copy(
    plans: Sequence[tuple[CopiedImage, Sequence[ImagePiece]]],
    target: ChunkTarget,
    *,
    uses_cluster: bool,
    tell: Progress | None,
) -> None:
    """Copy the chunks of all images."""
    total = sum(piece.n_chunks for _, pieces in plans for piece in pieces)
    n_done = 0
    for image, pieces in plans:
        for count in _copied(image, pieces, target, uses_cluster=uses_cluster):
            n_done += count
            if tell is not None:
                tell(n_done, total)


def _copied(
    image: CopiedImage, pieces: Sequence[ImagePiece], target: ChunkTarget, *, uses_cluster: bool
) -> Iterator[int]:
    """Copy the pieces of an image; yield how many chunks each had."""
    if uses_cluster:
        function = partial(copy_piece, image=image, target=target, side_by_side=False)
        for _, future in run_tasks(function, pieces):
            yield future.result()
    elif image.per_shard is None:
        yield from run_ordered(
            partial(copy_piece, piece, image, target, side_by_side=False) for piece in pieces
        )
    else:  # one after another: a shard may be the whole array
        for piece in pieces:
            yield copy_piece(piece, image, target, side_by_side=True)


def _documents(view: Hierarchy) -> dict[str, bytes]:
    """Return the documents of a copy: they also tell what the layout of each file is for."""
    documents = dict(view.documents)
    root = json.loads(documents[_ROOT])
    listed = root.get("consolidated_metadata", {}).get("metadata", {})
    for path, node in view.images.items():
        facts = _layout_facts(node.file)
        if facts:
            own = json.loads(documents[f"{path}/{_ROOT}"])
            for document in (own, listed.get(path, {})):
                document.setdefault("attributes", {})[LAYOUT_ATTR] = facts
            documents[f"{path}/{_ROOT}"] = json.dumps(own, indent=2).encode()
    documents[_ROOT] = json.dumps(root, indent=2).encode()
    return documents


def _layout_facts(file: MlaArray) -> dict[str, Any]:
    """Return what a file records of its layout, as JSON: who comes back with it writes the same."""
    source = file._source  # noqa: SLF001
    facts: dict[str, Any] = {}
    planning = checked_planning(read_planning(source), ndim=file.ndim)
    if planning:
        facts["planning"] = planning
    with reading(source) as (read, size):
        if BLOCK_INDEX_NAME in read_sections(read, size, name=source.name).entries:
            facts["block_index"] = True
    return facts
