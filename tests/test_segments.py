"""Segments: what was written is found again, and nothing else is."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.write_plan import Parts
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.encode import FramePlan, encode_part
from mlarray_xr.storage.joining import Prefix
from mlarray_xr.storage.segments import (
    PAGE_BYTES,
    Segment,
    find_segments,
    parts_on_disk,
    write_segment,
)
from mlarray_xr.storage.staging import Staging
from tests.strategies import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from tests.strategies import Stored

WRITE_ID = "0123456789abcdef" * 2
FOOTER_BYTES = 48
METADATA = encode_metadata(Metadata(has_array=True))
PLAN = FramePlan(
    shape=(8, 16),
    dtype_str="<i2",
    layout=Layout(chunks=(2, 16), blocks=(1, 16)),
    codec=Codec.parse("lz4-1"),
)
VALUES = np.random.default_rng(3).integers(0, 9000, PLAN.shape, np.int16)
VALUES[2:4] = 0
PARTS = Parts(extents=((4, 4), (16,)), in_flight=1, itemsize=2)


def staging_in(folder: str | Path, write_id: str = WRITE_ID) -> Staging:
    return Staging(folder=str(folder), target=f"{folder}.mla", write_id=write_id, claim_id=write_id)


def inside(values: NDArray[Any], box: Box) -> NDArray[Any]:
    # The ellipsis keeps a 0-d array an array.
    key: tuple[Any, ...] = (*(slice(start, stop) for start, stop in box), ...)
    part: NDArray[Any] = values[key]
    return part


def write(
    staging: Staging,
    part: int,
    *,
    plan: FramePlan = PLAN,
    parts: Parts = PARTS,
    values: NDArray[Any] = VALUES,
) -> Segment:
    box = parts.boxes()[part]
    chunks = encode_part(inside(values, box), box, plan)
    return write_segment(chunks, staging=staging, plan=plan, part=part)


def found_in(
    staging: Staging, *, check: bool = True, plan: FramePlan = PLAN, parts: Parts = PARTS
) -> dict[int, Segment]:
    numbers = {part: plan.numbers_in(box) for part, box in enumerate(parts.boxes())}
    return find_segments(staging, plan, numbers=numbers, check=check)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What was written is found


@st.composite
def cut(draw: st.DrawFn) -> tuple[Stored, Parts]:
    """Draw an array, its layout, and parts of whole chunks of any number along every axis."""
    content = draw(stored(max_dims=4, min_side=1, max_side=7))
    extents = []
    for n, chunk in zip(content.values.shape, content.chunks, strict=True):
        borders = range(chunk, n, chunk)
        cuts = draw(st.lists(st.sampled_from(borders), unique=True)) if borders else []
        edges = [0, *sorted(cuts), n]
        extents.append(tuple(b - a for a, b in itertools.pairwise(edges)))
    itemsize = content.values.dtype.itemsize
    return content, Parts(extents=tuple(extents), in_flight=1, itemsize=itemsize)


@settings(max_examples=120)
@given(case=cut(), codec=st.sampled_from(["lz4-1", "zstd-3-none", "blosclz-5-bitshuffle"]))
def test_what_was_written_is_found_again(case: tuple[Stored, Parts], codec: str) -> None:
    content, parts = case
    plan = FramePlan(
        shape=content.values.shape,
        dtype_str=content.values.dtype.str,
        layout=Layout(chunks=content.chunks, blocks=content.blocks),
        codec=Codec.parse(codec),
    )
    with tempfile.TemporaryDirectory() as folder:
        staging = staging_in(folder)
        for part in reversed(range(len(parts))):
            write(staging, part, plan=plan, parts=parts, values=content.values)
        found = found_in(staging, plan=plan, parts=parts)
        assert list(found) == list(range(len(parts)))
        for part, box in enumerate(parts.boxes()):
            segment = found[part]
            data = Path(segment.path).read_bytes()
            chunks = list(encode_part(inside(content.values, box), box, plan))
            assert len(chunks) == len(segment.entries)
            for chunk, entry in zip(chunks, segment.entries[:, None], strict=True):
                start = int(entry["offset"][0])
                assert data[start : start + len(chunk.data)] == chunk.data
                chunk.entry["offset"] = start
                assert entry.tobytes() == chunk.entry.tobytes()
            assert segment.payload_bytes == sum(len(chunk.data) for chunk in chunks)
            padding = data[segment.payload_bytes : -(-segment.payload_bytes // 4096) * 4096]
            assert padding.count(0) == len(padding)
        assert parts_on_disk(staging) == set(range(len(parts)))


def test_segments_join_to_the_file_that_one_process_writes(tmp_path: Path) -> None:
    staging = staging_in(tmp_path)
    segments = [write(staging, 0), write(staging, 1)]
    boxes = PARTS.boxes()
    for name in ("adopted", "appended"):
        with (tmp_path / name).open("x+b") as file:
            writer = FrameWriter(file, plan=PLAN, metadata=METADATA, n_parts=2)
            if name == "adopted":
                writer.adopt(segments, prefix=Prefix())
            else:
                for box in boxes:
                    writer.append(encode_part(inside(VALUES, box), box, PLAN))
            writer.finish()
    assert (tmp_path / "adopted").read_bytes() == (tmp_path / "appended").read_bytes()


# Damage


@pytest.fixture
def one(tmp_path: Path) -> tuple[Staging, Segment, bytes]:
    """A segment of a chunk of noise and one of zeros."""
    folder = tmp_path / "a.mla.parts"
    folder.mkdir()
    staging = staging_in(folder)
    segment = write(staging, 0)
    data = Path(segment.path).read_bytes()
    assert [int(n) for n in segment.entries["special"]] == [0, 1]
    assert len(data) == PAGE_BYTES + segment.entries.nbytes + FOOTER_BYTES
    return staging, segment, data


def test_every_flipped_bit_is_found(one: tuple[Staging, Segment, bytes]) -> None:
    staging, segment, data = one
    path = Path(segment.path)
    payload, records = range(segment.payload_bytes), range(PAGE_BYTES, len(data))
    for position, bit in itertools.product((*payload, *records), range(8)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        # What is stored is only looked at when it may be of another process.
        assert bool(found_in(staging, check=False)) == (position in payload)
        assert not found_in(staging, check=True)


def test_every_truncation_is_found(one: tuple[Staging, Segment, bytes]) -> None:
    staging, segment, data = one
    path = Path(segment.path)
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        assert not found_in(staging, check=False)
    path.write_bytes(data)
    assert list(found_in(staging)) == [0]


@pytest.mark.parametrize(
    "more", [b"\0", bytes(4096), b"MLASEG01" + bytes(40)], ids=["byte", "page", "footer"]
)
def test_additions_are_found(one: tuple[Staging, Segment, bytes], more: bytes) -> None:
    staging, segment, data = one
    for changed in (data + more, more + data, more, data + data):
        Path(segment.path).write_bytes(changed)
        assert not found_in(staging, check=False)


@settings(max_examples=200)
@given(data=st.binary(max_size=200), is_aligned=st.booleans())
def test_any_other_bytes_are_no_segment(data: bytes, is_aligned: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = bytes(4096) + data if is_aligned else data
        Path(folder, f"0000000000.{WRITE_ID}.seg").write_bytes(content)
        assert not found_in(staging_in(folder))


def forged(segment: Segment, data: bytes, **fields: Any) -> bytes:
    """Change the records of a segment, checksums included."""
    table = segment.entries.copy()
    for name, value in fields.items():
        table[name] = value
    footer = data[-FOOTER_BYTES:-4]
    body = table.tobytes()
    crc = zlib.crc32(footer + bytes(4), zlib.crc32(body))
    return data[: -FOOTER_BYTES - len(body)] + body + footer + struct.pack("<I", crc)


FORGERIES: dict[str, dict[str, Any]] = {
    "negative length": {"length": [-1, 0]},
    "long": {"length": [2**31 - 1, 0]},
    "longer than its share": {"length": [5000, 0]},
    "elsewhere": {"offset": [4096, 4096]},
    "before the file": {"offset": [-8, -8]},
    "other chunks": {"number": [2, 3]},
    "one chunk twice": {"number": [0, 0]},
    "no such chunk": {"number": [0, 2**40]},
}


@pytest.mark.parametrize("fields", FORGERIES.values(), ids=list(FORGERIES))
def test_records_that_contradict_each_other(
    one: tuple[Staging, Segment, bytes], fields: dict[str, Any]
) -> None:
    staging, segment, data = one
    assert forged(segment, data) == data
    Path(segment.path).write_bytes(forged(segment, data, **fields))
    assert not found_in(staging, check=False)
    assert not found_in(staging, check=True)


def test_a_damaged_segment_never_comes_before_its_replacement(tmp_path: Path) -> None:
    """Joining does not check: both have a right footer, and the name decides by chance."""
    for attempt in range(16):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        staging = staging_in(folder)
        damaged = Path(write(staging, 0).path)
        with damaged.open("r+b") as file:
            file.seek(20)
            file.write(b"\xff\x00\xff")
        assert not found_in(staging, check=True)
        good = write(staging, 0)
        assert found_in(staging, check=False)[0].path == good.path


# What is of somebody else


def test_of_duplicates_one_is_taken(tmp_path: Path) -> None:
    staging = staging_in(tmp_path)
    paths = sorted(write(staging, 1).path for _ in range(5))
    assert {part: s.path for part, s in found_in(staging).items()} == {1: paths[0]}
    Path(paths[0]).write_bytes(b"")
    assert found_in(staging)[1].path == paths[1]


FOREIGN: dict[str, dict[str, Any]] = {
    "another write": {"staging": lambda folder: staging_in(folder, "f" * 32)},
    "another type": {"plan": replace(PLAN, dtype_str="<i4"), "values": VALUES.astype("i4")},
    "another layout": {"plan": replace(PLAN, layout=Layout(chunks=(4, 16), blocks=(1, 16)))},
    "other parts": {"parts": Parts(extents=((2, 6), (16,)), in_flight=1, itemsize=2)},
}


@pytest.mark.parametrize("kind", FOREIGN.values(), ids=list(FOREIGN))
def test_segments_of_another_write_are_passed_over(tmp_path: Path, kind: dict[str, Any]) -> None:
    keywords = dict(kind)
    staging = keywords.pop("staging", staging_in)(tmp_path)
    write(staging, 0, **keywords)
    write(staging, 1, **keywords)
    assert not found_in(staging_in(tmp_path))
    assert len(names_in(tmp_path)) == 2


def test_a_segment_of_another_part_is_passed_over(tmp_path: Path) -> None:
    staging = staging_in(tmp_path)
    box = PARTS.boxes()[1]
    for part in (0, 2, 2**40):  # its chunks are those of part 1
        chunks = encode_part(inside(VALUES, box), box, PLAN)
        write_segment(chunks, staging=staging, plan=PLAN, part=part)
    assert not found_in(staging)
    assert parts_on_disk(staging) == {0, 2, 2**40}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_other_things_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    staging = staging_in(tmp_path)
    good = Path(write(staging, 0).path)
    hexes = "0" * 32
    shutil.copy(good, tmp_path / f"0000000001.{hexes}.tmp")
    (tmp_path / f"0000000001.{hexes}.seg").mkdir()
    os.mkfifo(tmp_path / f"0000000001.{hexes[1:]}1.seg")  # to open it would wait for a writer
    (tmp_path / "notes.seg").write_text("mine")
    (tmp_path / "²٣.seg").touch()
    (tmp_path / f"0000000001.{hexes[1:]}2.seg").symlink_to("nowhere")
    assert list(found_in(staging)) == [0]
    assert parts_on_disk(staging) == {0}
    assert (tmp_path / "notes.seg").read_text() == "mine"


def test_a_folder_that_is_gone_has_no_parts(tmp_path: Path) -> None:
    staging = staging_in(tmp_path / "gone")
    assert parts_on_disk(staging) == set()
    with pytest.raises(FileNotFoundError):
        write(staging, 0)
    assert names_in(tmp_path) == []


# Failures


def failing(n_good: int) -> Iterator[Any]:
    box = PARTS.boxes()[0]
    yield from itertools.islice(encode_part(inside(VALUES, box), box, PLAN), n_good)
    msg = "the source failed"
    raise RuntimeError(msg)


@pytest.mark.parametrize("n_good", [0, 1, 2])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, n_good: int) -> None:
    with pytest.raises(RuntimeError, match="the source failed"):
        write_segment(failing(n_good), staging=staging_in(tmp_path), plan=PLAN, part=0)
    assert names_in(tmp_path) == []


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlarray_xr.storage.segments.os.rename", full)
    with pytest.raises(OSError, match="No space left"):
        write(staging_in(tmp_path), 0)
    assert names_in(tmp_path) == []
