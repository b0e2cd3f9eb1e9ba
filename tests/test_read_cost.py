"""The model of reading: what grows costs more, larger caches never do, counts are exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.read_cost import (
    ReadModel,
    expected_cost,
    read_model,
    size_penalty,
)
from mlarray_xr.planning.touching import expected_blocks, expected_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

CACHES = CacheSizes(l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=2 << 20)
MODEL = read_model(CACHES, itemsize=2)
CODECS = ("lz4-9", "lz4hc-8", "zstd-1-bitshuffle", "zstd-9-none", "blosclz-1", "zlib-5-none")

level = st.integers(1 << 10, 1 << 30)
caches = st.tuples(level, level, level).map(
    lambda n: CacheSizes(l1_bytes=min(n), l2_bytes=sorted(n)[1], l3_bytes=max(n))
)
factor = st.floats(1, 100)


@st.composite
def models(draw: st.DrawFn) -> ReadModel:
    codec = draw(st.none() | st.sampled_from(CODECS).map(Codec.parse))
    return read_model(
        draw(caches),
        codec=codec,
        itemsize=draw(st.sampled_from([1, 2, 3, 4, 8, 255])),
        ratio=draw(st.none() | st.floats(1, 100)),
        remote=draw(st.booleans()),
    )


@st.composite
def reads(draw: st.DrawFn) -> dict[str, float]:
    """Draw what a read touches: at least one block in every chunk."""
    n_chunks = draw(st.floats(1, 1e6))
    return {
        "n_chunks": n_chunks,
        "n_blocks": n_chunks * draw(factor),
        "chunk_grid": draw(st.floats(1, 1e5)),
        "block_bytes": draw(st.floats(1, 1e9)),
        "wanted_bytes": draw(st.floats(1, 1e12)),
        "n_runs": draw(st.floats(1, 1e9)),
    }


@given(model=models(), read=reads(), more=factor)
@pytest.mark.parametrize(
    "name", ["n_blocks", "chunk_grid", "block_bytes", "wanted_bytes", "n_runs"]
)
def test_more_costs_more(name: str, model: ReadModel, read: dict[str, float], more: float) -> None:
    larger = {**read, name: read[name] * more}
    assert model.read_time_ns(**larger) >= model.read_time_ns(**read)


@given(model=models(), read=reads(), more=factor)
def test_more_chunks_of_as_many_blocks_each_cost_more(
    model: ReadModel, read: dict[str, float], more: float
) -> None:
    larger = {name: n * more if name in ("n_chunks", "n_blocks") else n for name, n in read.items()}
    assert model.read_time_ns(**larger) >= model.read_time_ns(**read)


@given(model=models(), read=reads(), more=factor)
def test_more_chunks_for_the_same_blocks_cost_more_where_the_buffer_fits_the_cache(
    model: ReadModel, read: dict[str, float], more: float
) -> None:
    held = read["n_blocks"] / read["n_chunks"] * read["block_bytes"]
    roomy = replace(model, caches=CacheSizes(l1_bytes=1 << 40, l2_bytes=1 << 40, l3_bytes=1 << 40))
    model = model if held <= model.caches.l1_bytes else roomy
    larger = {**read, "n_chunks": min(read["n_chunks"] * more, read["n_blocks"])}
    assert model.read_time_ns(**larger) >= model.read_time_ns(**read)


@given(model=models(), read=reads(), grown=st.tuples(factor, factor, factor))
def test_larger_caches_never_cost_more(
    model: ReadModel, read: dict[str, float], grown: tuple[float, float, float]
) -> None:
    small = model.caches
    l1, l2, l3 = (
        int(size * more)
        for size, more in zip((small.l1_bytes, small.l2_bytes, small.l3_bytes), grown, strict=True)
    )
    large = CacheSizes(l1_bytes=l1, l2_bytes=max(l1, l2), l3_bytes=max(l1, l2, l3))
    assert replace(model, caches=large).read_time_ns(**read) <= model.read_time_ns(**read)


@given(model=models(), read=reads())
def test_arrays_give_one_time_each(model: ReadModel, read: dict[str, float]) -> None:
    doubled = {name: n * 2 for name, n in read.items()}
    together = {name: np.array([read[name], doubled[name]]) for name in read}
    separate = [model.read_time_ns(**read), model.read_time_ns(**doubled)]
    np.testing.assert_allclose(model.read_time_ns(**together), separate, rtol=1e-12)


def test_the_formula_of_the_documentation() -> None:
    """Blocks of 16 KiB, and of a chunk 32 KiB, which is the first level, or 64 KiB."""
    small, large = (
        MODEL.read_time_ns(
            n_chunks=2,
            n_blocks=n_blocks,
            chunk_grid=64,
            block_bytes=16 << 10,
            wanted_bytes=100_000,
            n_runs=300,
        )
        for n_blocks in (4, 8)
    )
    fixed = MODEL.read_ns + 2 * (MODEL.chunk_ns + 64 * MODEL.scan_ns) + 300 * MODEL.run_ns
    fixed += 100_000 * MODEL.copy_ns_per_byte
    per_block = MODEL.block_ns + (16 << 10) * MODEL.decode_ns_per_byte
    assert small == pytest.approx(fixed + 4 * per_block)
    beyond = (large - fixed) / (8 * per_block)
    assert 1.01 < beyond < 1.3


@given(sizes=st.tuples(st.integers(1, 1 << 31), st.integers(1, 1 << 31)).map(sorted))
def test_smaller_blocks_make_larger_files(sizes: list[int]) -> None:
    smaller, larger = sizes
    assert size_penalty(smaller) >= size_penalty(larger) >= 1
    both = size_penalty(np.array(sizes, np.float64))
    np.testing.assert_allclose(both, [size_penalty(smaller), size_penalty(larger)])


def test_blocks_of_128_kib_are_large_enough() -> None:
    assert size_penalty(128 << 10) == size_penalty(1 << 30) == 1
    assert size_penalty((128 << 10) - 1) > 1


@given(n_bytes=st.integers(1, 1 << 31), thin=st.floats(0, 31), thinner=st.floats(0, 31))
def test_thinner_blocks_make_larger_files(n_bytes: int, thin: float, thinner: float) -> None:
    penalty = size_penalty(n_bytes, thin)
    assert size_penalty(n_bytes) <= penalty <= size_penalty(n_bytes, thin + thinner)


def test_a_network_makes_chunks_and_bytes_dearer_but_not_copies() -> None:
    remote = read_model(CACHES, itemsize=2, remote=True)
    for name in ("chunk_ns", "block_ns", "decode_ns_per_byte"):
        assert getattr(remote, name) > getattr(MODEL, name)
    for name in ("read_ns", "scan_ns", "copy_ns_per_byte"):
        assert getattr(remote, name) == getattr(MODEL, name)
    # What compresses better is sent sooner.
    packed = read_model(CACHES, itemsize=2, ratio=20, remote=True)
    assert packed.decode_ns_per_byte < remote.decode_ns_per_byte


@pytest.mark.parametrize("codec", ["lz4-9", "lz4hc-1", "zstd-1", "zstd-3-bitshuffle", "lz4-9-none"])
def test_every_level_is_decoded_like_its_decoder(codec: str) -> None:
    """The level decides how long encoding takes; truncated bits change nothing."""
    known = Codec.parse(codec)
    unknown = replace(known, level=2)
    truncated = replace(known, mantissa_bits=9)
    times = {read_model(CACHES, codec=c, itemsize=4) for c in (known, unknown, truncated)}
    assert len(times) == 1


def test_zstd_takes_longer_than_lz4_and_no_codec_is_the_default() -> None:
    def decoding(codec: Codec | None) -> float:
        return read_model(CACHES, codec=codec, itemsize=4).decode_ns_per_byte

    assert decoding(Codec.parse("zstd-1")) > 2 * decoding(Codec.parse("lz4-9"))
    assert decoding(None) == decoding(DEFAULT_CODEC)


@st.composite
def stored(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Draw shape, window, chunks and blocks of up to three small axes."""
    side = st.integers(1, 8)
    shape = tuple(draw(st.lists(side, max_size=3)))
    window, chunks = (tuple(draw(st.integers(1, 10)) for _ in shape) for _ in range(2))
    return shape, window, chunks, tuple(draw(st.integers(1, c)) for c in chunks)


def counted(
    shape: tuple[int, ...], inside: tuple[int, ...], cell_of: Callable[[int, int], Any]
) -> float:
    """Return the mean number of cells that a window has elements in, over all its offsets."""
    offsets = [range(n - p + 1) for n, p in zip(shape, inside, strict=True)]
    counts = [
        math.prod(
            len({cell_of(axis, x) for x in range(o, o + p)})
            for axis, (o, p) in enumerate(zip(corner, inside, strict=True))
        )
        for corner in itertools.product(*offsets)
    ]
    return sum(counts) / len(counts)


@given(stored=stored(), itemsize=st.integers(1, 9))
def test_expected_costs_are_means_over_all_places(
    stored: tuple[tuple[int, ...], ...], itemsize: int
) -> None:
    shape, window, chunks, blocks = stored
    inside = tuple(min(p, n) for p, n in zip(window, shape, strict=True))
    cost = expected_cost(
        window, shape=shape, chunks=chunks, blocks=blocks, itemsize=itemsize, model=MODEL
    )
    n_chunks = counted(shape, inside, lambda axis, x: x // chunks[axis])
    n_blocks = counted(
        shape, inside, lambda axis, x: (x // chunks[axis], x % chunks[axis] // blocks[axis])
    )
    assert cost.window == inside
    assert cost.chunks == pytest.approx(n_chunks, rel=1e-12)
    assert cost.blocks == pytest.approx(n_blocks, rel=1e-12)
    block_bytes = math.prod(blocks) * itemsize
    assert cost.decoded_bytes == pytest.approx(n_blocks * block_bytes)
    assert cost.wanted_bytes == math.prod(inside) * itemsize
    assert cost.amplification == pytest.approx(cost.decoded_bytes / cost.wanted_bytes)
    assert cost.working_set_bytes == pytest.approx(cost.decoded_bytes / n_chunks)
    # In every row of the window one run per block that the row touches.
    last = len(shape) - 1
    n_runs = counted(
        shape[last:],
        inside[last:],
        lambda _, x: (x // chunks[last], x % chunks[last] // blocks[last]),
    ) * math.prod(inside[:last])
    time_ns = MODEL.read_time_ns(
        n_chunks=cost.chunks,
        n_blocks=cost.blocks,
        chunk_grid=math.prod(-(-c // b) for c, b in zip(chunks, blocks, strict=True)),
        block_bytes=block_bytes,
        wanted_bytes=cost.wanted_bytes,
        n_runs=n_runs if shape else 1,
    )
    assert cost.milliseconds == pytest.approx(time_ns / 1e6)


def test_huge_arrays_cost_something_finite() -> None:
    shape, chunks, blocks = (10**12, 10**12), (10**4, 10**4), (100, 100)
    window = (10**11, 10**11)
    cost = expected_cost(window, shape=shape, chunks=chunks, blocks=blocks, itemsize=8, model=MODEL)
    assert cost.chunks == expected_chunks(shape, window, chunks)
    assert cost.blocks == expected_blocks(shape, window, chunks, blocks)
    assert 1 <= cost.amplification < 1.01
    assert 0 < cost.milliseconds < math.inf
