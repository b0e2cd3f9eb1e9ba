"""Trying codecs on samples of an array, as they would be stored."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.codec import DEFAULT_CODEC
from mlarray_xr.planning.codec_choice import (
    CodecTrial,
    check_preference,
    choose_codec_from,
    choose_codec_unseen,
    plan_candidates,
    plan_samples,
    shortlist,
)
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.storage.encode import FramePlan, encode_part
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["choose_codec", "choose_codec_for"]

_SAMPLES = 6
# What all candidates are tried on; only the best ones see the other samples.
_FIRST_SAMPLES = 2
# A chunk of zeros is stored in the index alone, which takes a few bytes.
_LEAST_BYTES = 8


def choose_codec(
    sample: NDArray[Any],
    *,
    prefer: Preference = "balanced",
    patch: Sizes | str | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    caches: CacheSizes | Mapping[str, int | str] | str | None = None,
) -> CodecChoice:
    """Choose how to compress arrays like this one, by trying it.

    Some blocks of at most six chunks, 1.5 MiB in all, are compressed: of two chunks with every
    candidate, of the others with the best ones. The choice depends on the sizes and on a fixed
    model of speed, never on how long anything took: the same values in the same blocks give the
    same choice in every process, with any number of threads. Only lossless codecs that every reader
    knows are tried. Besides `sample`, that takes the memory of the blocks and of two copies of one
    per thread.

    Parameters
    ----------
    sample : array_like
        The array, or a part of one that stands for it, array order. Constant regions are passed
        over. What is no NumPy array is read whole.
    prefer : {"speed", "balanced", "size"}
        ``"balanced"`` takes the smallest of the codecs that read and write fast, ``"speed"`` the
        one that reads fastest among them, ``"size"`` the smallest one.
    patch, chunks, blocks, caches
        Layout of the file to be, as `plan_layout` takes them: blocks are what is compressed.

    Returns
    -------
    CodecChoice
        The codec, what was tried, and why this one.

    Raises
    ------
    LayoutError
        When no layout satisfies the request, or `prefer` is something else.
    ConversionError
        When no file can hold the type.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(scale=8, size=(64, 64, 64))
    >>> scan = np.linspace(0, 700, 64)[:, None, None] + noise
    >>> print(choose_codec(scan.astype("int16")))
    lz4-9-bitshuffle (balanced): ... % smaller than lz4hc-8; modelled reading 0.7...x, writing 9.6x
    """
    values = np.asanyarray(sample)
    layout = plan_layout(
        values.shape, values.dtype, patch=patch, chunks=chunks, blocks=blocks, caches=caches
    )

    def read(box: Box) -> NDArray[Any]:
        # The ellipsis keeps a 0-d array an array.
        inside: tuple[Any, ...] = (*(slice(start, stop) for start, stop in box), ...)
        found: NDArray[Any] = values[inside]
        return found

    return choose_codec_for(
        read, shape=values.shape, dtype=values.dtype, layout=layout, prefer=prefer
    )


def choose_codec_for(
    read: Callable[[Box], NDArray[Any]],
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: Layout,
    prefer: Preference = "balanced",
    seed: int = 0,
) -> CodecChoice:
    """Choose how to compress an array of which boxes can be read.

    Parameters
    ----------
    read
        Returns the elements of a box. Called one box at a time, six times as a rule, for 1.5 MiB
        in all; up to 16 times when boxes turn out to hold one value only.
    shape, dtype
        Of the array.
    layout
        Chunks and blocks of the file.
    prefer
        As in `choose_codec`.
    seed
        Which chunks are sampled.

    Raises
    ------
    LayoutError
        When `prefer` is unknown or Blosc2 cannot hold elements of this size.
    ConversionError
        When no file can hold the type, or `read` returns another type or shape than was asked for.
    """
    check_preference(prefer)
    plan = FramePlan(shape=shape, dtype_str=dtype.str, layout=layout, codec=DEFAULT_CODEC)
    plan.cparams()
    boxes = plan_samples(shape, layout, itemsize=dtype.itemsize, seed=seed)
    samples = _samples(read, boxes, plan)
    first = tuple(itertools.islice(samples, _FIRST_SAMPLES))
    if not first:
        reason = f"{len(boxes)} samples hold one value each" if boxes else "the array is empty"
        return choose_codec_unseen(dtype.itemsize, prefer=prefer, reason=reason)
    trials = _try_all(plan_candidates(dtype.itemsize, prefer=prefer), first)
    others = tuple(samples)
    if others:
        more = _try_all(shortlist(tuple(trials.values()), prefer=prefer), others)
        trials |= {codec: trials[codec].merged(trial) for codec, trial in more.items()}
    return choose_codec_from(tuple(trials.values()), prefer=prefer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Some blocks of a chunk, as if they were an array of one chunk."""

    values: NDArray[Any]
    """The elements."""
    box: Box
    """Their place in that array: all of it."""
    blocks: tuple[int, ...]
    """Shape of a block; smaller than the layout's where the sample is."""

    def stored_bytes(self, codec: Codec) -> int:
        """Return the bytes of the chunk that a codec makes of it."""
        plan = FramePlan(
            shape=self.values.shape,
            dtype_str=self.values.dtype.str,
            layout=Layout(chunks=self.values.shape, blocks=self.blocks),
            codec=codec,
        )
        stored = sum(len(chunk.data) for chunk in encode_part(self.values, self.box, plan))
        return max(stored, _LEAST_BYTES)


def _samples(
    read: Callable[[Box], NDArray[Any]], boxes: Iterable[Box], plan: FramePlan
) -> Iterator[_Sample]:
    """Read boxes until there are enough that hold different values."""
    n_found = 0
    for box in boxes:
        values = np.asarray(read(box), order="C")
        if values.shape != box_shape(box) or values.dtype != plan.dtype:
            msg = f"box {box} of {plan.dtype} was read as {values.dtype} of shape {values.shape}"
            raise ConversionError(msg)
        if _is_constant(values):
            continue
        yield _Sample(
            values=values,
            box=tuple((0, n) for n in values.shape),
            blocks=tuple(min(b, n) for b, n in zip(plan.layout.blocks, values.shape, strict=True)),
        )
        n_found += 1
        if n_found == _SAMPLES:
            return


def _is_constant(values: NDArray[Any]) -> bool:
    """Tell whether all elements have the same bytes; NaN equals NaN."""
    elements = values.reshape(-1).view(np.uint8).reshape(values.size, -1)
    return bool((elements == elements[0]).all())


def _try_all(codecs: Sequence[Codec], samples: Sequence[_Sample]) -> dict[Codec, CodecTrial]:
    """Compress samples with every codec, one per thread."""

    def try_one(codec: Codec) -> CodecTrial:
        return CodecTrial(
            codec=codec,
            itemsize=samples[0].values.dtype.itemsize,
            nbytes=sum(sample.values.nbytes for sample in samples),
            stored_bytes=sum(sample.stored_bytes(codec) for sample in samples),
        )

    with ThreadPoolExecutor(available_threads()) as pool:
        return dict(zip(codecs, pool.map(try_one, codecs), strict=True))
