"""Block layouts: mini chunks decode to the blocks they are made of, and damage is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.block_layout import (
    BlockLayout,
    head_bytes,
    mini_chunk,
    most_chunk_bytes,
    parse_block_layout,
)
from mlarray_xr.format.frame import parse_header
from mlarray_xr.storage.chunks import (
    decode_checked_chunk,
    decode_mini_chunk,
    decode_whole_chunk,
)
from tests import hostile_blocks
from tests.frame_kit import make_frame, offsets_of, replaced, sections_of
from tests.stored_metadata import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

Codec, Filter, Split = blosc2.Codec, blosc2.Filter, blosc2.SplitMode
CHUNKS, BLOCKS = (10, 30), (4, 10)
REPEATED = 3


@dataclass(frozen=True)
class Chunk:
    """One stored chunk of a frame, and what blosc2 says that it holds."""

    number: int
    stored: bytes
    header: FrameHeader
    blocks: NDArray[Any]

    def layout(self, stored: bytes | None = None) -> BlockLayout:
        data = self.stored if stored is None else stored
        head, room = data[: head_bytes(self.header)], min(len(data), most_chunk_bytes(self.header))
        return parse_block_layout(head, self.header, number=self.number, room=room, name="f.mla")


def chunks_of(frame: bytes) -> Iterator[Chunk]:
    """Yield the chunks that have a payload, with the bytes up to the next one."""
    sections = sections_of(frame)
    header = parse_header(sections.header, file_size=len(frame))
    array, offsets = blosc2.ndarray_from_cframe(frame), offsets_of(sections)
    edges = np.append(np.sort(offsets[offsets >= 0]), len(sections.payload))
    for number, offset in enumerate(offsets.tolist()):
        if offset >= 0:
            stop = int(edges[np.searchsorted(edges, offset, side="right")])
            whole = array.schunk.decompress_chunk(number)
            blocks = np.frombuffer(whole, header.dtype).reshape(-1, *header.blocks)
            yield Chunk(number, sections.payload[offset:stop], header, blocks)


def decoded(chunk: Chunk, numbers: NDArray[np.int64], stored: bytes | None = None) -> Any:
    """Decode blocks of a chunk as the readers do, by both ways there are for mini chunks."""
    layout, data = chunk.layout(stored), chunk.stored if stored is None else stored
    if layout.kind == "whole":
        return decode_whole_chunk(data[: layout.cbytes], chunk.header, name="f")[numbers]
    if layout.kind == "value":
        value = np.frombuffer(data, chunk.header.dtype, 1, 32)
        return np.full((len(numbers), *chunk.header.blocks), value, chunk.header.dtype)
    spans = zip(*layout.spans(numbers), strict=True)
    mini = mini_chunk(layout, [data[start:stop] for start, stop in spans])
    nbytes = len(numbers) * chunk.header.blocksize
    values = decode_checked_chunk(mini, nbytes=nbytes, name="f")
    if layout.kind == "streams":
        again = decode_mini_chunk(mini, chunk.header, name="f")
        assert again.tobytes() == values.tobytes()
    return values.view(chunk.header.dtype).reshape(-1, *chunk.header.blocks)


def check(frame: bytes) -> set[str]:
    """Compare selections of blocks of every chunk; return the kinds of chunks there were."""
    random = np.random.default_rng(7)
    kinds: set[str] = set()
    for chunk in chunks_of(frame):
        every = np.arange(len(chunk.blocks))
        some = random.permutation(every)[: random.integers(1, len(every) + 1)]
        for numbers in (every, some, every[-1:]):
            assert decoded(chunk, numbers).tobytes() == chunk.blocks[numbers].tobytes()
        kinds.add(chunk.layout().kind)
    return kinds


def values_of(dtype: str, shape: tuple[int, ...] = (20, 30)) -> NDArray[Any]:
    """Return a ramp with noise: some chunks compress, some do not."""
    ramp = np.arange(np.prod(shape)).reshape(shape) // 7
    noisy = ramp + np.random.default_rng(0).integers(0, 3, shape)
    return noisy.astype("U2" if np.dtype(dtype).kind in "SU" else dtype).astype(dtype)


PIPELINES: dict[str, tuple[list[Any], list[int]]] = {
    "none": ([], []),
    "shuffle": ([Filter.SHUFFLE], [0]),
    "bitshuffle": ([Filter.BITSHUFFLE], [0]),
    "delta": ([Filter.DELTA], [0]),
    "delta, shuffle": ([Filter.DELTA, Filter.SHUFFLE], [0, 0]),
    "truncated": ([Filter.TRUNC_PREC, Filter.SHUFFLE], [10, 0]),
    "bytedelta": ([Filter.SHUFFLE, Filter.BYTEDELTA], [0, 0]),
    "int truncated": ([Filter.INT_TRUNC, Filter.SHUFFLE], [-3, 0]),
    "ndcell": ([Filter.NDCELL], [2]),
    "ndmean": ([Filter.NDMEAN], [2]),
}
TYPES = ("u1", "<i2", ">i4", "<f4", "<f8", "<c16", "S3", "S300", "<M8[ns]")
ONLY_FOR = {"truncated": "f", "int truncated": "i", "ndmean": "f"}
WITH_DICTIONARY = (Codec.ZSTD, Codec.LZ4, Codec.LZ4HC)


def is_made(pipeline: str, dtype: str) -> bool:
    """Tell whether blosc2 takes a type through a pipeline."""
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    is_size_fit = {"bytedelta": size < 256, "ndcell": size in (1, 2, 4, 8)}.get(pipeline, True)
    return kind in ONLY_FOR.get(pipeline, kind) and is_size_fit


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "codec", [Codec.BLOSCLZ, Codec.LZ4, Codec.LZ4HC, Codec.ZLIB, Codec.ZSTD], ids=lambda c: c.name
)
def test_blocks_of_every_codec_filter_and_type(codec: Any, pipeline: str) -> None:
    filters, meta = PIPELINES[pipeline]
    kinds = set()
    for number, dtype in enumerate(name for name in TYPES if is_made(pipeline, name)):
        frame = make_frame(
            values_of(dtype), chunks=CHUNKS, blocks=BLOCKS, codec=codec, filters=filters,
            filters_meta=meta, splitmode=(Split.ALWAYS_SPLIT, Split.NEVER_SPLIT)[number % 2],
        )  # fmt: skip
        kinds |= check(frame)
    needs_all = pipeline in ("delta", "delta, shuffle", "ndcell", "ndmean")
    assert "whole" in kinds if needs_all else kinds <= {"streams", "raw"}
    assert "streams" in kinds or needs_all


@pytest.mark.parametrize("codec", WITH_DICTIONARY, ids=lambda c: c.name)
@pytest.mark.parametrize("pipeline", ["shuffle", "delta", "bytedelta"])
def test_blocks_that_share_a_dictionary(codec: Any, pipeline: str) -> None:
    filters, meta = PIPELINES[pipeline]
    values = np.tile(np.arange(1000, dtype="<i4"), 40)
    kinds = check(
        make_frame(values, chunks=(20_000,), blocks=(2_000,), codec=codec, use_dict=True,
                   filters=filters, filters_meta=meta)
    )  # fmt: skip
    assert kinds == {"whole"}


@pytest.mark.parametrize(
    ("codec", "dtype", "meta"),
    [("ZFP_ACC", "<f4", 1), ("ZFP_PREC", "<f8", 20), ("ZFP_RATE", "<f4", 37), ("NDLZ", "u1", 4)],
)
def test_blocks_of_codecs_that_know_of_axes(codec: str, dtype: str, meta: int) -> None:
    frame = make_frame(
        values_of(dtype, (40, 48)), chunks=(20, 48), blocks=(8, 16), codec=getattr(Codec, codec),
        codec_meta=meta, filters=[], filters_meta=[], splitmode=Split.NEVER_SPLIT,
    )  # fmt: skip
    assert check(frame) <= {"streams" if codec == "NDLZ" else "whole", "raw"}


def test_raw_chunks() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(2400), "<i4").reshape(20, 30)
    assert check(make_frame(noise, chunks=CHUNKS, blocks=BLOCKS)) == {"raw"}
    smooth = values_of("<i4")
    assert check(make_frame(smooth, chunks=CHUNKS, blocks=BLOCKS, clevel=0)) == {"raw"}


@pytest.mark.parametrize("value", [7, np.nan, b"abc"])
def test_chunks_of_one_value(value: Any) -> None:
    array = blosc2.full((20, 30), value, chunks=CHUNKS, blocks=BLOCKS, dtype=np.dtype(type(value))
                        if isinstance(value, float) else None)  # fmt: skip
    assert check(array.to_cframe()) == {"value"}


@pytest.mark.parametrize(
    ("shape", "chunks", "blocks"),
    [((5,), (5,), (5,)), ((9,), (4,), (3,)), ((5, 6, 7), (4, 4, 4), (3, 2, 4)),
     ((3, 3, 3, 3, 3), (2,) * 5, (1, 2, 1, 2, 1)), ((), (), ())],
)  # fmt: skip
def test_any_number_of_axes(
    shape: tuple[int, ...], chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    check(make_frame(values_of("<i2", shape), chunks=chunks, blocks=blocks))


@pytest.mark.parametrize("name", ["affine3d", "ch4d_first", "bigmeta"])
def test_files_of_the_reference_implementation(name: str) -> None:
    assert check((DATA / "mla" / "0.0.54" / f"{name}.mla").read_bytes()) <= {"streams", "raw"}


PLAIN = next(chunks_of(make_frame(values_of("<i4", (30, 30)), chunks=(30, 30), blocks=BLOCKS)))


def rearranged(chunk: Chunk, order: list[int]) -> bytes:
    """Return a chunk whose blocks stand in another order, as several threads write them."""
    layout, n_blocks = chunk.layout(), len(chunk.blocks)
    starts, stops = layout.spans(np.arange(n_blocks))
    table, at, streams = [0] * n_blocks, 32 + 4 * n_blocks, []
    for block in order:
        table[block] = at
        streams.append(chunk.stored[starts[block] : stops[block]])
        at += len(streams[-1])
    return chunk.stored[:32] + struct.pack(f"<{n_blocks}i", *table) + b"".join(streams)


@given(st.permutations(range(len(PLAIN.blocks))), st.data())
@settings(max_examples=50)
def test_blocks_may_stand_and_be_wanted_in_any_order(order: list[int], data: st.DataObject) -> None:
    wanted = st.lists(st.sampled_from(order), min_size=1, max_size=20)
    numbers = np.array(data.draw(wanted))
    stored = rearranged(PLAIN, order)
    assert len(stored) == len(PLAIN.stored)
    assert decoded(PLAIN, numbers, stored).tobytes() == PLAIN.blocks[numbers].tobytes()


def test_spans_leave_nothing_of_a_chunk_out() -> None:
    layout = PLAIN.layout()
    starts, stops = layout.spans(np.arange(len(PLAIN.blocks)))
    order = np.argsort(starts)
    assert starts[order][0] == head_bytes(PLAIN.header)
    np.testing.assert_array_equal(starts[order][1:], stops[order][:-1])
    assert stops.max() == layout.cbytes
    assert layout.nbytes == 32 + 4 * len(PLAIN.blocks)
    assert layout.is_divisible


def test_bytes_behind_a_chunk_are_not_of_it() -> None:
    """Frames may have gaps: a chunk may have less than the room up to the next one."""
    every = np.arange(len(PLAIN.blocks))
    assert decoded(PLAIN, every, PLAIN.stored + bytes(99)).tobytes() == PLAIN.blocks.tobytes()


def test_bytedelta_takes_the_size_of_elements_from_the_frame_where_the_chunk_says_nothing() -> None:
    filters, meta = PIPELINES["bytedelta"]
    chunk = next(
        chunks_of(make_frame(values_of("<i4"), chunks=CHUNKS, blocks=BLOCKS, codec=Codec.ZSTD,
                             filters=filters, filters_meta=meta))
    )  # fmt: skip
    place = 24 + chunk.stored[16:22].index(35)
    assert (chunk.layout().kind, chunk.stored[place]) == ("streams", 4)
    silent = replaced(chunk.stored, place, b"\0")
    assert decoded(chunk, np.array([2, 0]), silent).tobytes() == chunk.blocks[[2, 0]].tobytes()


def test_bytedelta_of_elements_that_no_parameter_can_name_needs_the_whole_chunk() -> None:
    values = values_of("S300")
    chunk = next(chunks_of(make_frame(values, chunks=CHUNKS, blocks=BLOCKS, codec=Codec.ZSTD)))
    assert chunk.layout().kind == "streams"
    assert chunk.layout(replaced(chunk.stored, 16, b"\x23")).kind == "whole"


BAD_HEADS: dict[str, tuple[int, bytes]] = {
    "version": (0, b"\x06"),
    "typesize": (3, b"\x08"),
    "nbytes": (4, struct.pack("<i", 960)),
    "blocksize": (8, struct.pack("<i", 80)),
    "cbytes too small": (12, struct.pack("<i", 40)),
    "cbytes negative": (12, struct.pack("<i", -1)),
    "cbytes beyond its room": (12, struct.pack("<i", len(PLAIN.stored) + 1)),
    "unknown filter": (16, b"\x07"),
    "unknown codec": (2, b"\xe5"),
    "blocks of any size": (30, b"\x01"),
    "lazy": (31, b"\x08"),
    "special": (31, b"\x10"),
    "first start in the table": (32, struct.pack("<i", head_bytes(PLAIN.header) - 1)),
    "second start negative": (36, struct.pack("<i", -1)),
    "third start at the end": (40, struct.pack("<i", len(PLAIN.stored))),
}


@pytest.mark.parametrize("rule", BAD_HEADS)
def test_what_cannot_be_a_chunk_of_the_frame_is_refused(rule: str) -> None:
    damaged = replaced(PLAIN.stored, *BAD_HEADS[rule])
    with pytest.raises(ChunkError, match=r"f\.mla: chunk 0 \(grid position \(0, 0\)\) is damaged"):
        PLAIN.layout(damaged)


def test_a_head_that_is_cut_is_refused() -> None:
    parse = partial(
        parse_block_layout, header=PLAIN.header, number=0, room=len(PLAIN.stored), name="f"
    )
    for length in range(head_bytes(PLAIN.header)):
        with pytest.raises(ChunkError, match="chunk 0"):
            parse(PLAIN.stored[:length])
    parse(PLAIN.stored[: head_bytes(PLAIN.header)])


def test_blocks_that_claim_the_same_start_take_no_more_than_blocks_do() -> None:
    """Otherwise each of a thousand blocks would be as long as the chunk."""
    values = np.random.default_rng(0).integers(0, 9, 40_000).astype("<i4")
    (chunk,) = chunks_of(make_frame(values, chunks=(40_000,), blocks=(40,)))
    layout, n_blocks = chunk.layout(), len(chunk.blocks)
    assert layout.kind == "streams"
    first = struct.pack("<i", head_bytes(chunk.header)) * n_blocks
    starts, stops = chunk.layout(replaced(chunk.stored, 32, first)).spans(np.arange(n_blocks))
    assert (starts == head_bytes(chunk.header)).all()
    assert stops.max() - starts.min() <= chunk.header.blocksize + 4 * chunk.header.typesize
    assert layout.cbytes > 100 * chunk.header.blocksize


def victims() -> Iterator[tuple[str, Chunk]]:
    """Yield one chunk of every kind that is decoded in its own way."""
    for codec in (Codec.BLOSCLZ, Codec.LZ4, Codec.ZLIB, Codec.ZSTD):
        frame = make_frame(values_of("<i4"), chunks=CHUNKS, blocks=BLOCKS, codec=codec)
        yield codec.name, next(chunks_of(frame))
    for pipeline in ("delta", "truncated", "bytedelta", "ndcell", "ndmean"):
        filters, meta = PIPELINES[pipeline]
        frame = make_frame(values_of("<f4"), chunks=CHUNKS, blocks=BLOCKS, codec=Codec.ZSTD,
                           filters=filters, filters_meta=meta)  # fmt: skip
        yield pipeline, next(chunks_of(frame))
    for codec in (Codec.ZFP_ACC, Codec.ZFP_RATE, Codec.NDLZ):
        frame = make_frame(
            values_of("u1" if codec is Codec.NDLZ else "<f4", (20, 48)), chunks=(20, 48),
            blocks=(8, 16), codec=codec, codec_meta=4 if codec is not Codec.ZFP_RATE else 37,
            filters=[], filters_meta=[], splitmode=Split.NEVER_SPLIT,
        )  # fmt: skip
        yield codec.name, next(chunks_of(frame))
    repeats = np.tile(np.arange(300, dtype="<i4"), 10)
    for codec in (Codec.ZSTD, Codec.LZ4):
        frame = make_frame(repeats, chunks=(3000,), blocks=(300,), codec=codec, use_dict=True)
        yield f"{codec.name} dictionary", next(chunks_of(frame))
    yield "raw", next(chunks_of(make_frame(values_of("<i4"), chunks=CHUNKS, clevel=0)))
    yield "value", next(chunks_of(blosc2.full((8, 9), 5, chunks=(4, 9)).to_cframe()))


def test_damaged_chunks_are_refused_or_decode_and_never_end_the_process(tmp_path: Path) -> None:
    for name, chunk in victims():
        hostile_blocks.save_victim(tmp_path, name, chunk.stored, chunk.header)
    script = Path(hostile_blocks.__file__)
    done = subprocess.run(
        [sys.executable, os.fspath(script), os.fspath(tmp_path), "60", "0"],
        env={**os.environ, "PYTHONPATH": os.fspath(script.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    last = tmp_path / "last"
    shown = last.read_text().splitlines()[0] if last.exists() else "none yet"
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}; damaged copy {shown}"
    answer = json.loads(done.stdout)
    assert len(answer["outcomes"]) == 16
    for name, outcome in answer["outcomes"].items():
        assert outcome["refused"] > 100, name
        assert outcome["decoded"] > 0, name
    assert answer["peak_bytes"] < 600 << 20
