"""verify: what was written is proved, what was damaged is named, what cannot be known is said."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import MlaError, MlaWarning, SourceChanged, SourceError
from mlarray_xr.format.integrity import INTEGRITY_NAME, encode_integrity
from mlarray_xr.format.trailer import parse_trailer
from mlarray_xr.storage import inspection
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.frame_file import read_index, read_payload
from mlarray_xr.storage.inspection import Inspection
from mlarray_xr.storage.source import source_of
from mlarray_xr.verification import VerifyReport, verify, verify_files, verify_folder
from tests.frame_kit import encoded_index, make_frame, offsets_of, replaced, sections_of
from tests.stored_metadata import DATA, GENUINE, name_of
from tests.strategies import Stored, stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE, CHUNK = (20, 18), 8
# Of every kind of chunk: zeros, streams, raw.
VALUES = np.cumsum(np.random.default_rng(5).integers(0, 3, SHAPE), axis=1, dtype="i2")
VALUES[:8, :8] = 0
VALUES[8:16, :8] = np.random.default_rng(5).integers(-9999, 9999, (8, 8))
METADATA = mlarray_xr.Metadata(
    source={"name": "someone"}, extra={"list": [1, 2, "three"]}, has_array=True
)
BOXES = [
    tuple((i * CHUNK, min((i + 1) * CHUNK, n)) for i, n in zip(position, SHAPE, strict=True))
    for position in np.ndindex(3, 3)
]


def written(path: Path, values: Any = VALUES, **options: Any) -> Path:
    given_options = {"chunks": CHUNK, "blocks": (8, 4), "codec": "lz4-5", "metadata": METADATA}
    mlarray_xr.to_mla(values, path, **{**given_options, **options})
    return path


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("frame") / "good.mla").read_bytes()


@pytest.fixture
def path(tmp_path: Path, frame: bytes) -> Path:
    path = tmp_path / "good.mla"
    path.write_bytes(frame)
    return path


def content_of(data: bytes) -> tuple[Any, ...] | None:
    """Return all that a reader gets from a file, None when it refuses."""
    try:
        array = mlarray_xr.MlaArray(data)
        values = array[...]
    except (MlaError, MlaWarning):
        return None
    return values.shape, values.dtype.str, values.tobytes(), repr(array.metadata.to_dict())


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return replaced(data, at, bytes([data[at] ^ 1 << bit]))


def chunk_spans(data: bytes) -> dict[int, tuple[int, int]]:
    """Return where each chunk with payload stands in the file."""
    record = read_integrity(source_of(data))
    header, offsets = read_index(source_of(data))
    assert record is not None
    starts = {n: header.header_len + offset for n, offset in enumerate(offsets.tolist())}
    return {
        number: (start, start + int(record.length[number]))
        for number, start in starts.items()
        if offsets[number] >= 0
    }


def with_entry(data: bytes, **changes: Any) -> bytes:
    """Return the file with other facts in its integrity entry."""
    record = read_integrity(source_of(data))
    assert record is not None
    array = blosc2.ndarray_from_cframe(data, copy=True)
    array.schunk.vlmeta[INTEGRITY_NAME] = encode_integrity(replace(record, **changes))
    changed: bytes = array.to_cframe()
    return changed


# What was written


@settings(max_examples=40)
@given(case=stored(), codec=st.sampled_from(["lz4hc-8", "zstd-1-bitshuffle", "lz4-5-none"]))
def test_whatever_was_written_is_ok(
    tmp_path_factory: pytest.TempPathFactory, case: Stored, codec: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.mla"
    mlarray_xr.to_mla(case.values, path, chunks=case.chunks, blocks=case.blocks, codec=codec)
    report = verify(path)
    assert (report.state, report.reasons, report.damaged) == ("ok", (), ())
    assert report.n_matching == report.n_chunks == mlarray_xr.MlaArray(path).info()["n_chunks"]
    assert report.passes(require_checksums=True)
    assert verify(path, decode=True).state == "ok"


def test_chunks_without_payload_are_compared_too(tmp_path: Path) -> None:
    values = np.zeros((24, 8), "f4")
    values[8:16] = np.nan
    values[16:] = 1
    report = verify(written(tmp_path / "s.mla", values))
    assert (report.state, report.n_matching) == ("ok", 3)


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_files_of_the_reference_are_unknown(path: Path) -> None:
    report = verify(path)
    assert report.state == "unknown"
    assert report.n_unchecked == report.n_chunks
    assert report.writer is None
    assert "no checksums" in report.reasons[0]
    assert report.passes()
    assert not report.passes(require_checksums=True)


def test_bytes_and_file_objects_are_verified(path: Path) -> None:
    with path.open("rb") as file:
        reports = [verify(address) for address in (path, path.read_bytes(), file)]
    assert {report.state for report in reports} == {"ok"}
    assert {report.file_bytes for report in reports} == {path.stat().st_size}


# Damage


def test_a_flip_of_any_byte_is_never_ok_when_it_matters(frame: bytes) -> None:
    """Flip one bit of every byte: what reads the same may be ok, nothing else may."""
    good, states = content_of(frame), []
    assert verify(frame).state == "ok"
    for at in range(len(frame)):
        data = flipped(frame, at, at % 8)
        report = verify(data)
        states.append(report.state)
        assert report.state != "ok" or content_of(data) == good, at
        assert report.state in {"ok", "unknown", "damaged"}
    assert states.count("damaged") > 0.9 * len(frame)
    # The default codec, threads and the like say nothing about the content.
    assert states.count("ok") < 0.06 * len(frame)


@settings(max_examples=150)
@given(data=st.data())
def test_random_damage_is_never_ok_when_it_matters(frame: bytes, data: st.DataObject) -> None:
    sections = sections_of(frame)
    borders = np.cumsum([0, *map(len, (sections.header, sections.payload, sections.index))])
    region = data.draw(st.sampled_from([0, 1, 2, 3]), label="region")
    first, last = int(borders[region]), [*borders.tolist()[1:], len(frame)][region] - 1
    damaged = bytearray(frame)
    places = data.draw(st.lists(st.integers(first, last), min_size=1, max_size=4), label="places")
    for at in places:
        damaged[at] = data.draw(st.integers(0, 255), label="byte")
    with contextlib.suppress(MlaWarning):
        state = verify(bytes(damaged)).state
        assert state != "ok" or content_of(bytes(damaged)) == content_of(frame)


def test_a_flip_in_a_chunk_names_that_chunk(frame: bytes) -> None:
    spans = chunk_spans(frame)
    assert sorted(spans) == list(range(1, 9))
    for number, (start, stop) in spans.items():
        for at in {start, start + 2, start + 13, start + 31, start + 33, stop - 1}:
            report = verify(flipped(frame, at, 1))
            assert report.state == "damaged"
            (found,) = report.damaged
            assert (found.number, found.box) == (number, BOXES[number])
            assert found.position == divmod(number, 3)
            assert (report.n_damaged, report.n_matching) == (1, 8)


def test_the_reason_is_the_checksum(frame: bytes) -> None:
    start, stop = chunk_spans(frame)[4]
    written_crc = zlib.crc32(frame[start:stop])
    data = flipped(frame, stop - 1)
    (found,) = verify(data).damaged
    assert found.reason == (
        f"its checksum is {zlib.crc32(data[start:stop]):08x}, {written_crc:08x} was written"
    )


def entry_span(data: bytes, name: str) -> tuple[int, int]:
    """Return where the value of an entry stands in the file."""
    trailer = sections_of(data).trailer
    header, _ = read_index(source_of(data))
    first = len(data) - len(trailer)
    start, stop = parse_trailer(trailer, header, name="f")[name]
    return first + start, first + stop


@pytest.mark.parametrize(
    ("entry", "what"), [("mlarray", "gzip"), (INTEGRITY_NAME, "integrity entry: ")]
)
def test_damaged_entries_are_damage_and_chunks_are_still_looked_at(
    frame: bytes, entry: str, what: str
) -> None:
    start, stop = entry_span(frame, entry)
    report = verify(flipped(frame, (start + stop) // 2))
    assert report.state == "damaged"
    assert report.damaged == ()
    assert report.n_matching + report.n_unchecked == 9
    assert what in report.reasons[0]


def test_lost_metadata_is_damage(frame: bytes) -> None:
    """A reader of bytes takes such a file for a plain array."""
    data = frame.replace(b"\xa7mlarray\xd2", b"\xa7mlassay\xd2")
    assert mlarray_xr.MlaArray(data).metadata.source == {}
    report = verify(data)
    assert (report.state, report.n_matching) == ("damaged", 9)
    assert report.reasons == ("the metadata entry is gone",)


def test_what_only_the_reader_refuses_is_damage(frame: bytes) -> None:
    """The default filters of the header: chunks have their own."""
    report = verify(replaced(frame, 71, b"\x40"))
    assert (report.state, report.n_matching) == ("damaged", 9)
    assert "refuses the frame" in report.reasons[0]


def test_a_lost_entry_is_no_proof(frame: bytes) -> None:
    name = frame.index(INTEGRITY_NAME.encode())
    report = verify(replaced(frame, name, b"x"))
    assert (report.state, report.n_unchecked) == ("unknown", 9)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"<i2", b">i2", "the header says dtype_str >i2, written was <i2"),
        (struct.pack(">q", 18), struct.pack(">q", 17), r"shape \(20, 17\), written was \(20, 18\)"),
    ],
)
def test_a_header_that_lies_is_damage(frame: bytes, old: bytes, new: bytes, reason: str) -> None:
    data = replaced(frame, frame.index(old, 100), new)
    assert content_of(data) is not None
    report = verify(data)
    assert (report.state, report.n_matching) == ("damaged", 9)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.reasons[0])


@pytest.mark.parametrize("n_bytes", [0, 1, 14, 100, 165, 170, 500, -200, -23, -1])
def test_truncated_files_are_damaged(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])
    report = verify(path)
    assert (report.state, report.n_chunks, report.file_bytes) == (
        "damaged",
        0,
        path.stat().st_size,
    )
    assert len(report.reasons) == 1
    assert str(path) not in report.reasons[0]


def test_chunks_that_changed_places_are_named(frame: bytes) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[[3, 7]] = offsets[[7, 3]]
    report = verify(sections.with_index(encoded_index(offsets)).joined())
    assert [found.number for found in report.damaged] == [3, 7]
    assert report.n_matching == 7


@pytest.mark.parametrize("to", [-(0x7F << 56), -(0x7E << 56), -(0x7C << 56)])
def test_a_chunk_that_lost_its_payload_is_named(frame: bytes, to: int) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[5] = to
    report = verify(sections.with_index(encoded_index(offsets)).joined())
    (found,) = report.damaged
    assert (found.number, report.n_matching) == (5, 8)
    assert found.reason.endswith("written was stored bytes")


def test_zeros_that_became_nan_are_named(frame: bytes) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[0] = -(0x7E << 56)
    (found,) = verify(sections.with_index(encoded_index(offsets)).joined()).damaged
    assert (found.number, found.reason) == (0, "the chunk table says NaN, written was zeros")


@pytest.mark.parametrize("shift", [1, 8, 100])
def test_an_entry_that_points_into_another_chunk_condemns_only_its_own(
    frame: bytes, shift: int
) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[6] = offsets[2] + shift
    report = verify(sections.with_index(encoded_index(offsets)).joined())
    assert [found.number for found in report.damaged] == [6]
    assert report.n_matching == 8


def test_many_entries_that_share_a_chunk(frame: bytes) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[1:] = offsets[8]
    report = verify(sections.with_index(encoded_index(offsets)).joined())
    assert [found.number for found in report.damaged] == [1, 2, 3, 4, 5, 6, 7]


def test_an_impossible_table_is_damage_of_the_file(frame: bytes) -> None:
    sections = sections_of(frame)
    offsets = offsets_of(sections)
    offsets[6] = len(sections.payload)
    report = verify(sections.with_index(encoded_index(offsets)).joined())
    assert (report.state, report.n_chunks) == ("damaged", 0)
    assert "chunk 6 points to byte" in report.reasons[0]


def test_a_chunk_that_does_not_decode_is_found_when_asked(frame: bytes) -> None:
    spans = chunk_spans(frame)
    record = read_integrity(source_of(frame))
    assert record is not None
    start, stop = spans[4]
    # Past header and block starts: the lengths of the streams.
    data = replaced(frame, start + 32 + 8, b"\xff\xff\xff\x7f")
    crc32 = record.crc32.copy()
    crc32[4] = zlib.crc32(data[start:stop])
    data = with_entry(data, crc32=crc32)
    assert verify(data).state == "ok"
    report = verify(data, decode=True)
    assert (report.state, report.n_matching) == ("damaged", 8)
    assert "cannot be decoded" in report.damaged[0].reason


def test_without_checksums_every_chunk_is_decoded() -> None:
    values = np.random.default_rng(0).integers(0, 9, (40, 40), "i4")
    frame = make_frame(values, chunks=(20, 20), blocks=(10, 20), entries=None)
    sections = sections_of(frame)
    assert (verify(frame).state, verify(frame).n_unchecked) == ("unknown", 4)
    start = len(sections.header) + int(offsets_of(sections)[2])
    report = verify(replaced(frame, start + 32 + 8, b"\xff\xff\xff\x7f"))
    assert (report.state, report.n_unchecked, report.n_damaged) == ("damaged", 3, 1)
    assert report.damaged[0].box == ((20, 40), (0, 20))
    assert "cannot be decoded" in report.damaged[0].reason


HOSTILE_SCRIPT = """
import json, random, resource, sys
from pathlib import Path
from mlarray_xr.verification import verify
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
folder, plain = map(Path, sys.argv[1:])
found = {}
for path in sorted(folder.iterdir()):
    if path.suffix in {".mla", ".b2nd"}:
        found[path.name] = verify(path, threads=2).state
good, own = plain.read_bytes(), random.Random(7)
for i in range(600):
    data = bytearray(good)
    for _ in range(own.randrange(1, 4)):
        data[own.randrange(len(data))] = own.randrange(256)
    found[str(i)] = verify(bytes(data)).state
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_hostile_files_end_no_process(tmp_path: Path) -> None:
    """Files without checksums are decoded whatever they hold: in a process that may die."""
    plain = tmp_path / "plain.b2nd"
    ramp = (np.arange(40 * 30, dtype="<i2") // 11).reshape(40, 30)
    ramp[:10] = 0
    plain.write_bytes(make_frame(ramp, chunks=(10, 15), blocks=(5, 6)))
    arguments = map(str, (DATA / "hostile", plain))
    command = [sys.executable, "-W", "ignore", "-c", HOSTILE_SCRIPT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) > 660
    assert set(found.values()) == {"unknown", "damaged"}
    assert found["_control_good.mla"] == "unknown"
    assert not list(tmp_path.glob("*marker*"))


# Other programs


def test_metadata_edited_by_the_reference_leaves_the_proof(path: Path) -> None:
    array = mlarray.MLArray.open(str(path), mode="a", mmap_mode=None)
    array.meta.source.data["note"] = "edited"
    array.close()
    assert mlarray_xr.MlaArray(path).metadata.source["note"] == "edited"
    report = verify(path)
    assert (report.state, report.n_matching) == ("ok", 9)


def test_voxels_edited_in_place_are_not_ok(path: Path) -> None:
    array = blosc2.open(path, mode="a")
    array[8:16, 8:16] = 5
    array[17, 17] = 0
    del array
    report = verify(path)
    assert report.state == "unknown"
    assert (report.n_changed, report.n_matching, report.n_damaged) == (2, 7, 0)
    (reason,) = report.reasons
    assert reason.startswith("edited by another program since mlarray_xr ")


def test_an_edit_that_keeps_every_length_counts_as_damage(path: Path) -> None:
    """Nothing but the content tells it from flipped bits."""
    array = blosc2.open(path, mode="a")
    array[8:16, :8] = np.ascontiguousarray(VALUES[8:16, :8][::-1])  # is not compressible
    del array
    report = verify(path)
    assert (report.state, report.n_matching) == ("damaged", 8)
    assert [found.number for found in report.damaged] == [3]


def test_an_edited_file_may_be_damaged_as_well(path: Path) -> None:
    array = blosc2.open(path, mode="a")
    array[8:16, 8:16] = 5
    del array
    data = path.read_bytes()
    header, offsets = read_index(source_of(data))
    start = header.header_len + int(offsets[2])
    report = verify(replaced(data, start + 4, b"\xff\xff\xff\xff"))
    assert (report.state, report.n_changed, report.n_matching) == ("damaged", 1, 7)
    assert [found.number for found in report.damaged] == [2]
    assert "header" in report.damaged[0].reason


def test_a_file_saved_again_without_the_entry_is_unknown(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mla"
    mlarray.MLArray(mlarray.MLArray.open(path)[...]).save(again)
    report = verify(again)
    assert (report.state, report.n_matching) == ("unknown", 0)


def test_a_file_saved_again_with_the_entry_is_still_proved(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mla"
    mlarray.MLArray.load(path).save(again)
    report = verify(again)
    assert (report.state, report.n_matching) == ("ok", 9)


def test_a_resized_array_is_unknown(path: Path) -> None:
    array = blosc2.open(path, mode="a")
    array.resize((30, 18))
    del array
    report = verify(path)
    assert (report.state, report.n_unchecked) == ("unknown", 12)


# How it is done


@pytest.mark.parametrize("threads", [None, 1, 4])
@pytest.mark.parametrize(("run_bytes", "run_chunks"), [(1, 1), (300, 3), (1 << 20, 2)])
def test_runs_do_not_change_the_report(
    frame: bytes, monkeypatch: pytest.MonkeyPatch, run_bytes: int, run_chunks: int, threads: Any
) -> None:
    data = flipped(flipped(frame, chunk_spans(frame)[3][0] + 12), chunk_spans(frame)[8][1] - 2)
    expected = verify(data)
    monkeypatch.setattr(inspection, "_RUN_BYTES", run_bytes)
    monkeypatch.setattr(inspection, "_RUN_CHUNKS", run_chunks)
    found = verify(data, threads=threads)
    assert replace(found, seconds=0) == replace(expected, seconds=0)
    assert [each.number for each in found.damaged] == [3, 8]


def test_files_are_read_once_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, int]] = []

    def counted(*arguments: Any, start: int, stop: int) -> NDArray[np.uint8]:
        reads.append((start, stop))
        return read_payload(*arguments, start=start, stop=stop)

    monkeypatch.setattr(inspection, "read_payload", counted)
    monkeypatch.setattr(inspection, "_RUN_CHUNKS", 3)
    assert verify(path, threads=1).state == "ok"
    assert len(reads) == 3
    assert reads == sorted(reads)
    assert [start for start, _ in reads[1:]] == [stop for _, stop in reads[:-1]]


def test_large_chunks_take_fewer_threads(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def run_shared(tasks: Iterator[Any], *, threads: int) -> None:
        used.append(threads)

    monkeypatch.setattr(inspection, "run_shared", run_shared)
    source = source_of(frame)
    header, offsets = read_index(source)
    for chunksize in (1 << 20, 100 << 20, 2**31 - 33):
        large = replace(header, chunksize=chunksize)
        Inspection(source, large, offsets, None, decode=False).run(threads=64)
    assert used == [64, 3, 1]


def test_bytes_that_the_disk_does_not_give_are_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, offsets = read_index(source_of(path))

    def failing(*arguments: Any, start: int, stop: int) -> NDArray[np.uint8]:
        if start <= offsets[4] + 40 < stop:
            raise OSError(errno.EIO, "Input/output error")
        return read_payload(*arguments, start=start, stop=stop)

    monkeypatch.setattr(inspection, "read_payload", failing)
    report = verify(path)
    (found,) = report.damaged
    assert (found.number, found.reason) == (4, "it cannot be read: Input/output error")
    assert report.n_matching == 8


def test_a_file_replaced_meanwhile_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(*arguments: Any, start: int, stop: int) -> NDArray[np.uint8]:
        path.write_bytes(path.read_bytes() + b"x")
        return read_payload(*arguments, start=start, stop=stop)

    monkeypatch.setattr(inspection, "read_payload", replacing)
    with pytest.raises(SourceChanged):
        verify(path)
    (report,) = verify_files([path])
    assert (report.state, report.path) == ("unreadable", str(path))


def test_what_is_no_damage_is_raised(tmp_path: Path, frame: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "absent.mla")
    with pytest.raises(SourceError, match="a directory"):
        verify(tmp_path)
    with pytest.raises(ValueError, match="threads=0"):
        verify(frame, threads=0)


# Reports


def test_a_report_says_it_in_words(path: Path) -> None:
    text = str(verify(path))
    assert text.startswith(f"{path}: ok\n  of 9 chunks: 9 match their checksum; 0.0 MB in ")
    assert text.count("\n") == 1
    data = flipped(path.read_bytes(), chunk_spans(path.read_bytes())[4][1] - 1)
    lines = str(verify(data)).splitlines()
    assert lines[0].endswith("in memory>: damaged")
    assert lines[1].startswith("  of 9 chunks: 8 match their checksum, 1 damaged; ")
    assert lines[2].startswith("  chunk 4 at (1, 1), box ((8, 16), (8, 16)): its checksum is ")


def test_long_lists_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 9, (64, 64), "u1")
    data = bytearray(written(tmp_path / "m.mla", values, chunks=4, blocks=4).read_bytes())
    for _, stop in chunk_spans(bytes(data)).values():
        data[stop - 1] ^= 1
    report = verify(bytes(data))
    assert [found.number for found in report.damaged] == list(range(256))
    lines = str(report).splitlines()
    assert lines[-1] == "  and 236 more"
    assert len(lines) == 23
    monkeypatch.setattr(inspection, "_MOST_LISTED", 7)
    monkeypatch.setattr(inspection, "_RUN_CHUNKS", 5)
    few = verify(bytes(data))
    assert few.damaged == report.damaged[:7]
    assert few.n_damaged == 256


def test_a_report_is_plain_values(frame: bytes) -> None:
    report = verify(flipped(frame, chunk_spans(frame)[4][1] - 1))
    facts = report.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["state"] == "damaged"
    assert facts["damaged"][0]["box"] == [[8, 16], [8, 16]]
    assert facts["writer"].startswith("mlarray_xr")


@pytest.mark.parametrize(
    ("state", "passes", "passes_strictly"),
    [
        ("ok", True, True),
        ("unknown", True, False),
        ("damaged", False, False),
        ("unreadable", False, False),
    ],
)
def test_which_states_pass(state: Any, *, passes: bool, passes_strictly: bool) -> None:
    report = VerifyReport(path="f", state=state)
    assert report.passes() == passes
    assert report.passes(require_checksums=True) == passes_strictly


# Many files


@pytest.fixture
def folder(tmp_path: Path, frame: bytes) -> Path:
    """Make a tree of good, damaged, foreign and linked files."""
    folder = tmp_path / "tree"
    outside = tmp_path / "outside"
    for place in (folder / "b" / "deep", folder / "a", outside):
        place.mkdir(parents=True)
    (folder / "a" / "2.mla").write_bytes(frame)
    (folder / "a" / "1.mla").write_bytes(frame[:-5])
    (folder / "b" / "deep" / "3.mla").write_bytes(flipped(frame, chunk_spans(frame)[4][1] - 1))
    shutil.copy(DATA / "mla" / "0.0.54" / "img2d.mla", folder / "b" / "4.mla")
    (folder / "notes.txt").write_text("no image")
    (folder / "a" / "5.mla.tmp").write_bytes(b"unfinished")
    (outside / "6.mla").write_bytes(frame)
    (folder / "link.mla").symlink_to(outside / "6.mla")
    (folder / "links").symlink_to(outside)
    return folder


EXPECTED = [
    ("a/1.mla", "damaged"),
    ("a/2.mla", "ok"),
    ("b/4.mla", "unknown"),
    ("b/deep/3.mla", "damaged"),
]


def states_of(reports: Iterator[VerifyReport], folder: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(report.path, folder), report.state) for report in reports]


@pytest.mark.parametrize("jobs", [None, 1, 2, 9])
def test_folders_are_walked_in_order_and_links_are_not_followed(
    folder: Path, jobs: int | None
) -> None:
    assert states_of(verify_folder(folder, jobs=jobs), folder) == EXPECTED


def test_progress_counts_files(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    reports = verify_folder(folder, jobs=2, progress=lambda *counts: seen.append(counts))
    next(reports)
    assert seen == [(1, 4)]
    assert len(list(reports)) == 3
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_files_and_folders_may_be_mixed(folder: Path) -> None:
    """A link that is named is followed; what is missing is a report."""
    paths = [folder / "link.mla", folder / "absent.mla", folder / "b", folder / "notes.txt"]
    assert states_of(verify_files(paths), folder) == [
        ("link.mla", "ok"),
        ("absent.mla", "unreadable"),
        *EXPECTED[2:],
        ("notes.txt", "damaged"),
    ]
    assert list(verify_files([])) == []


def test_leaving_early_stops_the_rest(folder: Path) -> None:
    for i in range(40):
        shutil.copy(folder / "a" / "2.mla", folder / f"{i:02d}.mla")
    reports = verify_folder(folder, jobs=1)
    assert next(reports).state == "ok"
    reports.close()  # type: ignore[attr-defined]
    assert list(reports) == []


def test_a_folder_that_is_none_is_an_error_at_once(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_folder(folder / "absent")
    with pytest.raises(NotADirectoryError):
        verify_folder(folder / "notes.txt")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_what_may_not_be_read_is_reported(folder: Path) -> None:
    (folder / "a" / "2.mla").chmod(0)
    (folder / "b" / "deep").chmod(0)
    try:
        found = dict(states_of(verify_folder(folder), folder))
    finally:
        (folder / "b" / "deep").chmod(0o700)
    assert found["a/2.mla"] == found["b/deep"] == "unreadable"


def test_a_folder_that_fails_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def failing(place: Any) -> Any:
        if os.fspath(place).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", failing)
    reports = list(verify_folder(folder))
    assert states_of(iter(reports), folder) == [
        *EXPECTED[:3],
        ("b/deep", "unreadable"),
    ]
    assert "Permission denied" in reports[-1].reasons[0]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
def test_pipes_are_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "a" / "0.mla")
    (report, *_) = verify_folder(folder)
    assert report.state == "unreadable"
    assert "not a regular file" in report.reasons[0]
