"""Writing a new file: layout, codec and parts are decided and the target is claimed."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask import has_client, thread_memory_bytes, warn_of_many_tasks
from mlarray_xr.dask_write import choose_on_worker
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.format.metadata import Stats, Storage
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.codec_choice import CodecChoice
from mlarray_xr.planning.write_plan import check_chunk_borders, plan_parts, plan_streamed_parts
from mlarray_xr.prepared import LARGER_PARTS, claim_write, parts_in_flight
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.address import is_url, local_path
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.job import Streamed, part_of
from mlarray_xr.storage.publication import check_target
from mlarray_xr.storage.trial import choose_codec_for
from mlarray_xr.subject import subject_of

if TYPE_CHECKING:
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.codec_choice import Preference
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.layout_request import LayoutRequest
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.subject import Subject

__all__ = ["SUFFIX", "file_name", "prepare_file", "with_storage"]

SUFFIX = ".mla"


def file_name(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a target that the reference package would open."""
    target = local_path(os.fsdecode(path))
    if is_url(target):
        msg = f"{target}: objects are written whole. To fix: mlarray_xr.to_mla, or upload a file"
        raise ConversionError(msg)
    if not target.endswith(SUFFIX):
        msg = f"{target}: the name must end in {SUFFIX!r}: other readers go by it"
        raise ConversionError(msg)
    return os.path.abspath(os.path.expanduser(target))


def prepare_file(
    obj: Any,
    path: str,
    *,
    request: LayoutRequest,
    codec: str | Codec | CodecChoice,
    lossy: bool,
    prefer: Preference,
    overwrite: bool,
    metadata: Metadata | None,
    block_index: bool,
    align_chunks: bool,
    compute: bool,
    resume: bool,
    memory_limit: int | None,
) -> PreparedWrite:
    """Plan the write of one new file, and claim its target.

    Parameters and errors as of `mlarray_xr.to_mla`; `request` is what is asked of the layout,
    `overwrite` tells whether an existing target is replaced, `compute` whether the write runs at
    once, `memory_limit` is in bytes.
    """
    began, subject = time.time(), subject_of(obj)
    target, _ = check_target(path, overwrite=overwrite)
    described = subject.metadata if metadata is None else metadata
    axes = stored_axes(described, len(subject.values.shape))
    layout = request.plan(
        subject.values.shape,
        dtype_str=subject.values.dtype.str,
        dims=axes.dims,
        spatial=axes.spatial,
        codec=None if codec == "auto" else _codec(codec, lossy=lossy),
    )
    is_now = compute and not resume and not has_client()
    subject, slabs, choice = _settled(
        subject, layout, codec, prefer, is_now=is_now, memory_limit=memory_limit
    )
    plan = FramePlan(
        shape=tuple(subject.values.shape),
        dtype_str=subject.values.dtype.str,
        layout=layout,
        codec=_codec(choice, lossy=lossy),
        has_block_index=block_index,
    )
    uses_tasks = subject.is_dask or not compute or subject.goes_to_workers
    parts = slabs or _parts(
        subject,
        plan,
        axes.dims,
        align_chunks=align_chunks,
        uses_tasks=uses_tasks,
        memory_limit=memory_limit,
    )
    return claim_write(
        subject,
        path=path,
        target=target,
        plan=plan,
        parts=parts,
        metadata=encode_metadata(with_storage(described, plan)),
        overwrite=overwrite,
        resume=resume,
        uses_tasks=uses_tasks,
        choice=choice if isinstance(choice, CodecChoice) else None,
        began=began,
    )


def _parts(
    subject: Subject,
    plan: FramePlan,
    dims: tuple[str, ...],
    *,
    align_chunks: bool,
    uses_tasks: bool,
    memory_limit: int | None,
) -> Parts:
    """Decide the parts, and refuse chunks that do not fit when they must; warn of many tasks."""
    source_chunks = subject.values.chunks if subject.is_dask else None
    if source_chunks is not None and not align_chunks:
        check_chunk_borders(source_chunks, plan.layout.chunks, dims)
    parts = plan_parts(
        plan.shape,
        plan.layout,
        itemsize=plan.dtype.itemsize,
        in_flight=parts_in_flight(uses_tasks=uses_tasks),
        source_chunks=source_chunks,
        memory_limit=memory_limit,
        thread_bytes=thread_memory_bytes() if uses_tasks else None,
    )
    if uses_tasks:
        warn_of_many_tasks(len(parts), fix=LARGER_PARTS)
    return parts


def _settled(
    subject: Subject,
    layout: Layout,
    codec: str | Codec | CodecChoice,
    prefer: Preference,
    *,
    is_now: bool,
    memory_limit: int | None,
) -> tuple[Subject, Parts | None, str | Codec | CodecChoice]:
    """Settle how the values are taken and compressed.

    What comes slab after slab is written so where that is done at once, in this process, slabs are
    small enough and the first ones tell enough to choose a codec. Otherwise it is unpacked first.

    Parameters
    ----------
    subject, layout, codec, prefer, memory_limit
        As in `prepare_file`.
    is_now
        Whether the write runs at once, once, and in this process.

    Returns
    -------
    subject : Subject
        With values that boxes can be taken of, unless there are slabs.
    slabs : Parts or None
        The parts of what is written slab after slab.
    choice : str, Codec or CodecChoice
        The codec, chosen where ``"auto"`` was asked for.
    """
    values = subject.values
    if isinstance(values, Streamed):
        slabs = plan_streamed_parts(
            tuple(subject.values.shape),
            layout.chunks,
            itemsize=values.dtype.itemsize,
            in_flight=parts_in_flight(uses_tasks=False),
            axis=values.axis,
            memory_limit=memory_limit,
        )
        if slabs is not None and is_now:
            if codec != "auto":
                return subject, slabs, codec
            first = values.beginning(slabs.extents[values.axis], n=slabs.in_flight)
            choice = _choice_by(first, layout, prefer)
            del first  # would be kept as long as the last of its slabs
            if choice.trials:
                return subject, slabs, choice
        subject = replace(subject, values=values.unpacked())
    return subject, None, _choice(subject, layout, prefer) if codec == "auto" else codec


def _choice(subject: Subject, layout: Layout, prefer: Preference) -> CodecChoice:
    """Choose a codec by trial."""
    if subject.is_dask:
        return choose_on_worker(subject.values, layout, prefer=prefer)
    return _choice_by(subject.values, layout, prefer)


def _choice_by(values: Any, layout: Layout, prefer: Preference) -> CodecChoice:
    """Choose a codec by trial on what can be sliced here, the array or the beginning of it."""
    return choose_codec_for(
        partial(part_of, values),
        shape=tuple(values.shape),
        dtype=values.dtype,
        layout=layout,
        prefer=prefer,
    )


def _codec(codec: str | Codec | CodecChoice, *, lossy: bool) -> Codec:
    """Return the codec that was named or chosen, unless it loses bits that nobody gave up."""
    named = codec.codec if isinstance(codec, CodecChoice) else codec
    named = Codec.parse(named) if isinstance(named, str) else named
    if named.is_lossy and not lossy:
        msg = (
            f"codec '{named}' is lossy: it keeps {named.mantissa_bits} bits of every mantissa. To "
            f"fix: (1) another codec; (2) to_mla(..., codec='{named}', lossy=True) if it is meant"
        )
        raise LayoutError(msg)
    return named


def with_storage(metadata: Metadata, plan: FramePlan) -> Metadata:
    """Return the metadata with the layout that is really written, and no statistics of others."""
    storage = Storage(
        chunk_size=plan.layout.chunks,
        block_size=plan.layout.blocks,
        patch_size=plan.layout.patch,
        cparams={"codec": plan.cparams().codec.value, "clevel": plan.codec.level},
        dparams={"nthreads": 1},
    )
    # Codecs that lose bits store other values than those that were counted.
    stats = Stats() if plan.codec.is_lossy else metadata.stats
    return replace(metadata, has_array=True, blosc2=storage, stats=stats)
