"""Chunks that the C library would run code for, look for elsewhere, or read differently."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import blosc2
import numpy as np
import pytest

import mlarray_xr
from mlarray_xr.errors import ChunkError, FormatError
from tests.frame_kit import offsets_of, sections_of

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.arange(24 * 20 * 16, dtype="i2").reshape(24, 20, 16)
PLUGIN = 6 << 5
SPAWNING = (36, 37, 38, 39, 40, 160, 255)


@pytest.fixture
def frame(tmp_path: Path) -> bytearray:
    path = tmp_path / "good.mla"
    mlarray_xr.to_mla(VALUES, path, chunks=8, blocks=(8, 8, 4), codec="lz4-5")
    return bytearray(path.read_bytes())


def first_chunk(frame: bytearray) -> int:
    return int.from_bytes(frame[11:15], "big")


def metadata_chunk(frame: bytearray) -> int:
    at = len(frame) - int.from_bytes(frame[-22:-18], "big")
    return frame.index(b"\x05\x01", at)


def as_plugin(frame: bytearray, at: int, plugin: int) -> None:
    frame[at + 2] = frame[at + 2] & 0x1F | PLUGIN
    frame[at + 22] = plugin


@pytest.mark.parametrize("plugin", SPAWNING)
def test_codecs_that_start_an_interpreter_are_refused(
    tmp_path: Path, frame: bytearray, plugin: int
) -> None:
    as_plugin(frame, first_chunk(frame), plugin)
    path = tmp_path / "evil.mla"
    path.write_bytes(frame)
    with pytest.raises(ChunkError, match="chunk 0"):
        mlarray_xr.MlaArray(path)[0, 0, 0]


def test_metadata_in_a_plugin_codec_is_refused_at_open(frame: bytearray) -> None:
    as_plugin(frame, metadata_chunk(frame), 37)
    with pytest.raises(FormatError, match="refused kind"):
        mlarray_xr.MlaArray(bytes(frame))


@pytest.mark.skipif(sys.platform == "win32", reason="the trap is a shell script")
@pytest.mark.parametrize("where", [first_chunk, metadata_chunk])
def test_no_interpreter_is_started(tmp_path: Path, frame: bytearray, where: object) -> None:
    assert callable(where)
    as_plugin(frame, where(frame), 37)
    path, marker = tmp_path / "evil.mla", tmp_path / "started"
    path.write_bytes(frame)
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("python", "python3"):
        (traps / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (traps / name).chmod(0o755)
    code = (
        "import sys, mlarray_xr\n"
        "try:\n    mlarray_xr.MlaArray(sys.argv[1])[0, 0, 0]\n"
        "except ValueError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{traps}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "refused\n"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("byte", "value"),
    [(0, 3), (0, 4), (0, 6), (1, 0), (2, 0x20), (30, 1), (30, 0x80), (31, 0x08), (31, 0x80)],
)
def test_chunks_of_foreign_kinds_are_refused(frame: bytearray, byte: int, value: int) -> None:
    frame[first_chunk(frame) + byte] = value
    array = mlarray_xr.MlaArray(bytes(frame))
    with pytest.raises(ChunkError, match="chunk 0"):
        array[0, 0, 0]
    np.testing.assert_array_equal(array[16:], VALUES[16:])


def test_an_index_that_reads_differently_in_parts_is_refused(frame: bytearray) -> None:
    sections = sections_of(bytes(frame))
    delta = [blosc2.Filter.NOFILTER] * 5 + [blosc2.Filter.DELTA]
    params = blosc2.CParams(typesize=8, nthreads=1, blocksize=64, filters=delta)
    index = blosc2.compress2(offsets_of(sections), cparams=params)
    with pytest.raises(FormatError, match="chunk index"):
        mlarray_xr.MlaArray(replace(sections, index=index).joined())


def test_metadata_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    array = blosc2.asarray(VALUES, chunks=(8, 8, 8), blocks=(8, 8, 4))
    array.schunk.vlmeta["one"] = b"x" * 4096
    array.schunk.vlmeta["two"] = b"y" * 4096
    frame = bytearray(array.to_cframe())
    trailer = len(frame) - int.from_bytes(frame[-22:-18], "big")
    one, two = frame.index(b"\xa3one\xd2", trailer), frame.index(b"\xa3two\xd2", trailer)
    frame[two + 5 : two + 9] = frame[one + 5 : one + 9]
    with pytest.raises(FormatError, match="overlap"):
        mlarray_xr.MlaArray(bytes(frame))
