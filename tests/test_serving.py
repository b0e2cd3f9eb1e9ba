"""Files over HTTP: NumPy, xarray and zarr-python are the oracles, raw sockets the enemies."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr import MlaArray
from mlarray_xr.errors import FormatError, MissingDependencyError, SourceChanged, SourceError
from mlarray_xr.serving.admission import Admission, parse_origin
from mlarray_xr.serving.byte_range import parse_range
from mlarray_xr.serving.catalogue import Catalogue
from mlarray_xr.serving.conditions import Version, choose_status
from mlarray_xr.serving.connection import Limits
from mlarray_xr.serving.request import Request
from mlarray_xr.serving.served_chunks import ENCODINGS, plan_served_chunks
from mlarray_xr.serving.server import run_server, served
from mlarray_xr.serving.url_path import segments_of, url_path
from tests import range_answer
from tests.frame_kit import make_frame, offsets_of, replaced, sections_of, write_b2nd
from tests.stored_metadata import GENUINE, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


RNG = np.random.default_rng(11)
VALUES = RNG.integers(-50, 1000, (20, 30, 44), np.int16)
CHUNKS, BLOCKS = (10, 16, 24), (5, 8, 8)
PATIENCE_S = 60
SECRET = b"the name of the patient"


def write_volume(path: Path, values: NDArray[Any] = VALUES, **options: Any) -> Path:
    array = xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords={
            "z": ("z", 5 + 2.5 * np.arange(values.shape[0]), {"units": "mm"}),
            "y": ("y", -3 + 0.5 * np.arange(values.shape[1]), {"units": "mm"}),
            "x": ("x", 7 - 0.5 * np.arange(values.shape[2]), {"units": "mm"}),
        },
        attrs={"protocol": "head"},
    )
    mlarray_xr.to_mla(array, path, **{"chunks": CHUNKS, "blocks": BLOCKS, **options})
    return path


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def port_of(address: str) -> int:
    port = urlsplit(address).port
    assert port is not None
    return port


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Reply:
    """Send one request; underscores in the names of headers stand for dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(address), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(address)), timeout=PATIENCE_S)


def told(address: str, request: bytes) -> bytes:
    """Send bytes as they are; everything that comes back until the server closes."""
    with connect(address) as client:
        client.sendall(request)
        return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def head(path: str, *lines: str, method: str = "GET") -> bytes:
    every = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *lines]
    return "\r\n".join([*every, "", ""]).encode("latin-1")


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, and beside the folder one that is nobody's business."""
    outside = tmp_path_factory.mktemp("serving")
    shown = outside / "shown"
    (shown / "a folder").mkdir(parents=True)
    (outside / "secret.mla").write_bytes(SECRET)
    write_volume(shown / "ct.mla")
    mlarray_xr.build_overviews(shown / "ct.mla", levels=2)
    write_volume(shown / "a folder" / "100%.mla", VALUES[:4])
    (shown / "broken.mla").write_bytes(b"no frame" * 100)
    (shown / "link.mla").symlink_to(outside / "secret.mla")
    (shown / "folder").symlink_to(outside)
    (shown / ".hidden").mkdir()
    for hidden in (shown / ".hidden" / "ct.mla", shown / ".hidden.mla"):
        hidden.write_bytes(SECRET)
    (shown / "to-hidden.mla").symlink_to(".hidden/ct.mla")
    return shown


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served([folder]) as running:
        yield running


def opened(url: str, **options: Any) -> xr.Dataset:
    """Without what only NGFF has a place for."""
    dataset: xr.Dataset = xr.open_zarr(url, decode_timedelta=False, chunks=None, **options).load()
    dataset.attrs.pop("ome", None)
    return dataset


# --- Zarr ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_xarray_sees_over_http_what_the_engine_sees(folder: Path, encoding: Any) -> None:
    expected = xr.load_dataset(folder / "ct.mla", engine="mlarray")
    with served([folder / "ct.mla"], encoding=encoding) as address:
        found = opened(f"{address}zarr/ct.mla/", consolidated=True)
    xr.testing.assert_identical(found, expected)


@pytest.fixture(scope="module")
def genuine() -> Iterator[str]:
    """All stored files, by their paths."""
    with served([os.path.commonpath(GENUINE)]) as running:
        yield running


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_every_genuine_file_is_what_the_engine_shows(path: Path, genuine: str) -> None:
    name = url_path(path.relative_to(os.path.commonpath(GENUINE)).as_posix())
    with contextlib.ExitStack() as stack:
        url = f"{genuine}zarr/{name}/"
        if path.suffix != ".mla":  # shown when it is given, not when it is in a folder
            url = f"{stack.enter_context(served([path]))}zarr/{path.name}/"
        expected = stack.enter_context(xr.open_dataset(path, engine="mlarray"))
        found = opened(url)
        assert set(found.variables) == set(expected.variables)
        for variable_name, variable in expected.variables.items():
            np.testing.assert_array_equal(found[variable_name].values, variable.values)


ODD: dict[str, tuple[Any, Any, Any]] = {
    "big-endian": (VALUES.astype(">i2"), CHUNKS, BLOCKS),
    "bool": (VALUES[0] > 400, (16, 24), (8, 8)),
    "0-d": (np.float64(2.5), None, None),
    "empty": (np.zeros((0, 5), np.float32), None, None),
    "complex": (VALUES[0] + 1j, (16, 24), (8, 8)),
    "times": (VALUES[0].astype("<M8[ns]"), (16, 24), (8, 8)),
    "chunk-beyond-the-array": (VALUES[:3, :5, :7], (8, 8, 8), (4, 4, 4)),
    "blocks-that-do-not-divide": (VALUES, (7, 11, 13), (4, 3, 5)),
    "chunk-too-large": (np.arange(1 << 21).reshape(8, 512, 512), (8, 512, 512), (2, 64, 64)),
    "NaN": (np.full((9, 9), np.nan, np.float32), (4, 4), (2, 2)),
}
"""Values, chunks and blocks."""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("odd")
    paths = [
        write_b2nd(folder / f"{name}.b2nd", values, chunks=chunks, blocks=blocks)
        for name, (values, chunks, blocks) in ODD.items()
    ]
    with served(paths) as running:
        yield running


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_are_read_by_zarr(odd: str, name: str) -> None:
    values = np.asarray(ODD[name][0])
    found = zarr.open_array(f"{odd}zarr/{name}.b2nd/image", mode="r")
    np.testing.assert_array_equal(found[...], values)
    assert found.dtype == values.dtype.newbyteorder("=")
    assert math.prod(found.chunks) * values.itemsize <= 4 << 20


def test_overviews_are_levels_and_can_be_left_out(folder: Path, address: str) -> None:
    root: Any = zarr.open_group(f"{address}zarr/ct.mla/", mode="r")
    (scales,) = root.attrs["ome"]["multiscales"]
    paths = [level["path"] for level in scales["datasets"]]
    assert paths == ["image", "level1/image", "level2/image"]
    for number, path in enumerate(paths):
        level = mlarray_xr.open_mla(folder / "ct.mla", level=number)
        np.testing.assert_array_equal(root[path][...], level.values)
    with served([folder], overviews=False) as alone:
        root = zarr.open_group(f"{alone}zarr/ct.mla/", mode="r")
        (scales,) = root.attrs["ome"]["multiscales"]
        assert [level["path"] for level in scales["datasets"]] == ["image"]


def test_overviews_that_come_later_are_shown(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "ct.mla")
    with served([path]) as address:
        assert ask(address, "/zarr/ct.mla/level1/zarr.json").status == 404
        mlarray_xr.build_overviews(path, levels=1)
        assert ask(address, "/zarr/ct.mla/level1/zarr.json").status == 200


def test_a_file_of_metadata_only_is_a_group_without_images(tmp_path: Path) -> None:
    source = next(path for path in GENUINE if not MlaArray(path).metadata.has_array)
    shutil.copy(source, tmp_path / "plan.mla")
    with served([tmp_path]) as address:
        assert list(zarr.open_group(f"{address}zarr/plan.mla", mode="r").members()) == []
        assert ask(address, "/zarr/plan.mla/image/c/0").status == 404


def test_chunks_are_tagged_checked_and_given_in_parts(address: str) -> None:
    path = "/zarr/ct.mla/image/c/0/1/1"
    whole = ask(address, path)
    tag = whole.headers["etag"]
    assert (whole.status, whole.headers["cache-control"]) == (200, "no-cache")
    assert ask(address, path).headers["etag"] == tag
    assert ask(address, "/zarr/ct.mla/image/c/0/1/0").headers["etag"] != tag
    described = ask(address, path, "HEAD")
    assert (described.status, described.body) == (200, b"")
    assert described.headers["content-length"] == str(len(whole.body))
    unchanged = ask(address, path, If_None_Match=f'"x", W/{tag}')
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", tag)
    part = ask(address, path, Range="bytes=3-9")
    assert (part.status, part.body) == (206, whole.body[3:10])
    document = ask(address, "/zarr/ct.mla/zarr.json")
    assert document.headers["content-type"] == "application/json"
    tag = document.headers["etag"]
    assert ask(address, "/zarr/ct.mla/zarr.json", If_None_Match=tag).status == 304


def test_chunks_at_the_edge_are_whole(folder: Path) -> None:
    with served([folder], encoding="none") as address:
        body = ask(address, "/zarr/ct.mla/image/c/1/1/1").body
    chunk = np.frombuffer(body, "<i2").reshape(CHUNKS)
    np.testing.assert_array_equal(chunk[:, :14, :20], VALUES[10:, 16:, 24:])
    assert not chunk[:, 14:].any()
    assert not chunk[:, :, 20:].any()


@pytest.mark.parametrize(
    "key",
    [
        "image/c/2/0/0",
        "image/c/0/0",
        "image/c/0/0/0/0",
        "image/c/00/0/0",
        "image/c/-1/0/0",
        "image/c/+1/0/0",
        "image/c/0/0/x",
        "image/c/0/0/%D9%A1",
        f"image/c/0/0/{10**17}",
        f"image/c/0/0/{'1' * 5000}",
        "image/c",
        "image",
        "c/0/0/0",
        "zarr.json/c/0/0/0",
        "nothing/zarr.json",
        "",
    ],
)
def test_keys_that_are_none_are_not_found(address: str, key: str) -> None:
    assert ask(address, f"/zarr/ct.mla/{key}").status == 404


def test_concurrent_readers_get_their_own_chunks(folder: Path) -> None:
    grid = tuple(-(-n // c) for n, c in zip(VALUES.shape, CHUNKS, strict=True))
    beyond = [(0, g * c - n) for g, c, n in zip(grid, CHUNKS, VALUES.shape, strict=True)]
    padded = np.pad(VALUES, beyond)

    def is_right(index: tuple[int, ...]) -> bool:
        body = ask(running, "/zarr/ct.mla/image/c/" + "/".join(map(str, index))).body
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, CHUNKS, strict=True))
        return np.array_equal(np.frombuffer(body, "<i2").reshape(CHUNKS), padded[place])

    with served([folder], encoding="none") as running, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(is_right, list(np.ndindex(grid)) * 12))


def test_a_damaged_chunk_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    frame = make_frame(VALUES, chunks=CHUNKS, blocks=BLOCKS)
    sections = sections_of(frame)
    last = len(sections.header) + int(offsets_of(sections)[-1])
    path = tmp_path / "ct.b2nd"
    path.write_bytes(replaced(frame, last + 4, b"\xff" * 12))
    with served([path]) as address:
        damaged = ask(address, "/zarr/ct.b2nd/image/c/1/1/1")
        told_so = b"the file is damaged, or is no .mla file\n"
        assert (damaged.status, damaged.body) == (500, told_so)
        assert ask(address, "/zarr/ct.b2nd/image/c/0/0/0").status == 200


def test_what_is_no_file_of_ours_is_no_zarr_but_bytes(folder: Path, address: str) -> None:
    assert ask(address, "/zarr/broken.mla/zarr.json").status == 500
    assert ask(address, "/raw/broken.mla").body == (folder / "broken.mla").read_bytes()


def test_a_replaced_file_is_served_anew(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "ct.mla")
    with served([path], encoding="none") as address:
        key = "/zarr/ct.mla/image/c/0/0/0"
        before = ask(address, key)
        write_volume(path, VALUES + 1, mode="w")
        after = ask(address, key, If_None_Match=before.headers["etag"])
        assert after.status == 200
        np.testing.assert_array_equal(
            np.frombuffer(after.body, "<i2"), np.frombuffer(before.body, "<i2") + 1
        )


axes = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 64), st.integers(0, 200)), max_size=4)


@given(axes=axes, itemsize=st.sampled_from([1, 2, 8]), most_bytes=st.integers(1, 1 << 16))
def test_served_chunks_are_small_and_cut_no_block(
    axes: list[tuple[int, int, int]], itemsize: int, most_bytes: int
) -> None:
    shape = tuple(n for n, _, _ in axes)
    blocks = tuple(b for _, b, _ in axes)
    chunks = tuple(b + more for _, b, more in axes)
    served_as = plan_served_chunks(
        shape, chunks=chunks, blocks=blocks, itemsize=itemsize, most_bytes=most_bytes
    )
    clipped = tuple(max(1, min(c, n)) for c, n in zip(chunks, shape, strict=True))
    smallest = math.prod(map(min, blocks, clipped)) * itemsize
    assert all(1 <= s <= c for s, c in zip(served_as, clipped, strict=True))
    if all(c % b == 0 for c, b in zip(chunks, blocks, strict=True)):
        assert math.prod(served_as) * itemsize <= max(most_bytes, smallest)
    if math.prod(clipped) * itemsize <= most_bytes:
        assert served_as == clipped
    for s, n, c, b in zip(served_as, shape, chunks, blocks, strict=True):
        assert s in (n, c) or s == 1 > n or s % b == 0
        assert n <= c or c % b or c % s == 0


@pytest.mark.parametrize(
    ("chunks", "blocks"),
    [((8, 2048, 2048), (8, 2048, 2048)), ((7, 2048, 2048), (5, 2048, 2048))],
    ids=["one block", "blocks that overlap"],
)
def test_blocks_that_are_too_large_are_not_decoded_again_and_again(
    tmp_path: Path, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    huge = np.broadcast_to(np.int32(3), (16, 2048, 2048))
    path = write_b2nd(tmp_path / "huge.b2nd", huge, chunks=chunks, blocks=blocks)
    with served([path]) as address:
        refused = ask(address, "/zarr/huge.b2nd/zarr.json")
        assert (refused.status, refused.body) == (404, b"this file cannot be shown as Zarr\n")
        assert ask(address, "/raw/huge.b2nd", "HEAD").status == 200


OVERWRITTEN = """
import itertools, sys, time
from mlarray_xr.serving.server import served

first, second, target = sys.argv[1:]
versions = [open(path, "rb").read() for path in (first, second)]
with served([target], encoding="none") as address:
    print(address, flush=True)
    for version in itertools.cycle(versions):
        with open(target, "wb") as file:
            for start in range(0, len(version), 1 << 14):
                file.write(version[start : start + (1 << 14)])
                file.flush()
        time.sleep(0.06)
"""


def test_a_file_that_is_overwritten_while_it_is_read_ends_nobody(tmp_path: Path) -> None:
    options = {"chunks": (64, 128, 256), "blocks": (2, 128, 256)}
    noise = RNG.integers(0, 200, (64, 128, 256), np.int16)
    paths = [
        write_volume(tmp_path / f"{value}.mla", noise + np.int16(value), **options)
        for value in (0, 1000)
    ]
    target = shutil.copy(paths[0], tmp_path / "ct.mla")
    expected = [(noise + np.int16(value)).tobytes() for value in (0, 1000)]
    process = subprocess.Popen(
        [sys.executable, "-c", OVERWRITTEN, *map(str, (*paths, target))],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        seen: set[int] = set()

        def read(number: int) -> None:
            assert process.poll() is None, number
            reply = ask(address, "/zarr/ct.mla/image/c/0/0/0")
            assert reply.status in (200, 500, 503)
            if reply.status == 200:
                seen.add(expected.index(reply.body))

        with ThreadPoolExecutor(4) as pool:
            assert until(lambda: bool(list(pool.map(read, range(60)))) and seen == {0, 1})
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


# --- bytes -----------------------------------------------------------------------------------


def test_our_reader_takes_the_bytes_as_a_remote_file(folder: Path, address: str) -> None:
    expected = mlarray_xr.open_mla(folder / "ct.mla").load()
    found = mlarray_xr.open_mla(f"{address}raw/ct.mla")
    xr.testing.assert_identical(found.load(), expected)
    level = mlarray_xr.open_mla(f"{address}raw/ct.mla", level=1)
    np.testing.assert_array_equal(
        level.values, mlarray_xr.open_mla(folder / "ct.mla", level=1).values
    )
    odd = mlarray_xr.open_mla(f"{address}raw/{url_path('a folder/100%.mla')}")
    np.testing.assert_array_equal(odd.values, VALUES[:4])


def test_bytes_are_those_of_the_file(folder: Path, address: str) -> None:
    data = (folder / "ct.mla").read_bytes()
    whole = ask(address, "/raw/ct.mla")
    assert (whole.status, whole.body) == (200, data)
    assert whole.headers["accept-ranges"] == "bytes"
    described = ask(address, "/raw/ct.mla", "HEAD", Range="bytes=0-3")
    assert (described.status, described.body) == (200, b"")
    assert described.headers["content-length"] == str(len(data))
    assert described.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=10-99999999999999999999999999", 10, None),
        (f"bytes=-{'9' * 5000}", 0, None),
        ("Bytes = 3 - 4", 3, 5),
    ],
)
def test_ranges_are_slices(
    folder: Path, address: str, asked: str, start: int, stop: int | None
) -> None:
    data = (folder / "ct.mla").read_bytes()
    part = ask(address, "/raw/ct.mla", Range=asked)
    assert (part.status, part.body) == (206, data[start:stop])
    first = range(len(data))[start:stop][0]
    last = first + len(part.body) - 1
    assert part.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=999999999-",
        "bytes=-0",
        "bytes=5-4",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "bytes=0x1-0x2",
        "bytes=1--2",
        "bytes=\u00b2-\u00b3",
        "bytes=1-2-3",
    ],
)
def test_ranges_that_hold_nothing_are_refused(folder: Path, address: str, asked: str) -> None:
    size = (folder / "ct.mla").stat().st_size
    refused = ask(address, "/raw/ct.mla", Range=asked)
    assert (refused.status, refused.headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=" + "0-," * 2000 + "0-", "lines=1-2"])
def test_several_ranges_and_other_units_are_the_whole(
    folder: Path, address: str, asked: str
) -> None:
    found = ask(address, "/raw/ct.mla", Range=asked)
    assert (found.status, found.body) == (200, (folder / "ct.mla").read_bytes())


@given(
    first=st.none() | st.integers(0, 40),
    last=st.none() | st.integers(0, 40),
    size=st.integers(0, 30),
)
def test_ranges_agree_with_another_server(first: int | None, last: int | None, size: int) -> None:
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    expected = range_answer.parse_range(text, size)
    if expected is None or expected[0] >= expected[1]:
        with pytest.raises(IndexError):
            parse_range(text, size)
    else:
        assert parse_range(text, size) == expected


def test_conditions_are_those_of_the_standard(address: str) -> None:
    now = ask(address, "/raw/ct.mla", "HEAD").headers
    tag, modified = now["etag"], now["last-modified"]
    assert tag.startswith('"')
    for status, headers in (
        (304, {"If_None_Match": tag}),
        (304, {"If_None_Match": f'"other", W/{tag}'}),
        (304, {"If_None_Match": "*"}),
        (304, {"If_Modified_Since": modified}),
        (200, {"If_None_Match": '"other"', "If_Modified_Since": modified}),
        (200, {"If_Modified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"}),
        (200, {"If_Modified_Since": "yesterday"}),
        (200, {"If_Match": f'"other", {tag}'}),
        (200, {"If_Match": "*"}),
        (412, {"If_Match": '"other"'}),
        (412, {"If_Match": f"W/{tag}"}),
        (412, {"If_Unmodified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"}),
        (200, {"If_Unmodified_Since": modified}),
        (206, {"Range": "bytes=0-1", "If_Range": tag}),
        (200, {"Range": "bytes=0-1", "If_Range": '"other"'}),
        (200, {"Range": "bytes=0-1", "If_Range": f"W/{tag}"}),
        (412, {"Range": "bytes=0-1", "If_Match": '"other"'}),
    ):
        assert ask(address, "/raw/ct.mla", **headers).status == status, headers


@given(st.text(), st.text())
def test_conditions_of_any_text_are_decided(tag: str, date: str) -> None:
    version = Version(etag='"a"', modified_s=10**9)
    headers = {"if-none-match": tag, "if-modified-since": date}
    assert choose_status(headers, version) == (304 if tag.strip() == "*" or '"a"' in tag else 200)
    assert choose_status({"if-modified-since": date}, version) in (200, 304)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than the buffers between a server and a client hold."""
    path = tmp_path / "large.mla"
    path.write_bytes(RNG.bytes(24 << 20))
    return path


def start_reading(client: socket.socket) -> bytes:
    client.sendall(head("/raw/large.mla"))
    return client.recv(1000)


@pytest.mark.parametrize("how", ["replaced", "truncated", "rewritten", "removed"])
def test_a_file_that_changes_under_way_ends_the_answer(large: Path, how: str) -> None:
    data = large.read_bytes()
    with served([large.parent]) as address, connect(address) as client:
        begun = start_reading(client)
        if how == "replaced":
            (large.parent / "new").write_bytes(b"\0" * len(data))
            os.replace(large.parent / "new", large)
        elif how == "truncated":
            os.truncate(large, 1 << 20)
        elif how == "rewritten":
            large.write_bytes(b"\0" * len(data))
            os.utime(large, (1, 1))
        else:
            large.unlink()
        reply = begun + rest_of(client)
    body = reply.partition(b"\r\n\r\n")[2]
    assert len(body) < len(data)
    assert body == data[: len(body)]


@pytest.mark.parametrize("door", ["raw/ct.mla", "zarr/ct.mla/zarr.json"])
@pytest.mark.parametrize(
    ("error", "status"), [(PermissionError(13, "denied"), 403), (OSError(5, "disk"), 503)]
)
def test_what_cannot_be_read_is_not_said_to_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str, error: OSError, status: int
) -> None:
    write_volume(tmp_path / "ct.mla")

    def refuse(path: str) -> Any:
        raise error

    with served([tmp_path]) as address:
        monkeypatch.setattr("mlarray_xr.storage.source.FileIO", refuse)
        reply = ask(address, f"/{door}")
    assert reply.status == status
    assert b"cannot be read" in reply.body
    assert "retry-after" not in reply.headers


def test_a_disk_that_fails_under_way_ends_the_answer(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> Any:
        raise OSError(5, "disk")

    with served([large.parent]) as address, connect(address) as client:
        begun = start_reading(client)
        monkeypatch.setattr("mlarray_xr.storage.source.FileIO", fail)
        assert len(begun + rest_of(client)) < large.stat().st_size


def test_files_that_are_described_at_once_leave_the_filters_of_warnings(tmp_path: Path) -> None:
    paths = [write_volume(tmp_path / f"{number}.mla") for number in range(6)]
    before = list(warnings.filters)
    with served(paths) as address, ThreadPoolExecutor(6) as pool:
        keys = [f"/zarr/{path.name}/zarr.json" for path in paths]
        assert {reply.status for reply in pool.map(lambda key: ask(address, key), keys)} == {200}
    assert warnings.filters == before


# --- clients that are slow, many, or neither -------------------------------------------------


def test_a_client_that_takes_a_byte_at_a_time_holds_up_nobody(large: Path) -> None:
    with served([large.parent]) as address, contextlib.ExitStack() as clients:
        for _ in range(40):
            client = clients.enter_context(connect(address))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            assert start_reading(client)[:12] == b"HTTP/1.1 200"
            assert len(client.recv(1)) == 1
        assert ask(address, "/raw/large.mla", Range="bytes=-3").status == 206


def test_a_client_that_takes_nothing_is_dropped(large: Path) -> None:
    with (
        run_server([large.parent], limits=Limits(stall_s=0.2)) as server,
        connect(server.address) as client,
    ):
        start_reading(client)
        assert until(lambda: server.n_connections == 0)
        assert len(rest_of(client)) < large.stat().st_size


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /raw/ct.mla HTTP/1.1\r\nHost: 127", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"],
)
def test_requests_that_never_end_are_dropped(folder: Path, begun: bytes) -> None:
    with (
        run_server([folder], limits=Limits(first_wait_s=0.3)) as server,
        connect(server.address) as client,
    ):
        client.sendall(begun)
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while begun and not ended.wait(0.05):
                    client.sendall(b"a")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert rest_of(client) == b""
        ended.set()
        dripping.join()


def test_200_requests_at_once_are_answered(address: str) -> None:
    expected = ask(address, "/zarr/ct.mla/image/c/0/0/0").body
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(200)]
        for client in clients:
            client.sendall(head("/zarr/ct.mla/image/c/0/0/0"))
        for client in clients:
            reply = rest_of(client)
            assert status_of(reply) == 200
            assert reply.endswith(expected)


def test_connections_that_ask_nothing_lock_out_nobody(folder: Path) -> None:
    limits = Limits(n_requests=4)
    with run_server([folder], limits=limits) as server, contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(connect(server.address))
        assert until(lambda: server.n_connections == 7)
        assert ask(server.address, "/").status == 200
        stack.enter_context(connect(server.address))
        assert until(lambda: server.n_connections == 8)
        assert told(server.address, head("/")) == b""


def test_more_requests_at_once_than_allowed_are_refused(large: Path) -> None:
    with run_server([large.parent], limits=Limits(n_requests=2)) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                start_reading(stack.enter_context(connect(server.address)))
            busy = ask(server.address, "/", Origin="http://localhost:1")
            assert (busy.status, busy.headers["retry-after"]) == (503, "1")
            assert busy.headers["access-control-allow-origin"] == "http://localhost:1"
        assert until(lambda: ask(server.address, "/").status == 200)


def test_who_asked_once_may_wait_longer(folder: Path) -> None:
    with (
        run_server([folder], limits=Limits(first_wait_s=0.1)) as server,
        connect(server.address) as asked,
        connect(server.address) as silent,
    ):
        asked.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert rest_of(silent) == b""
        asked.sendall(head("/raw/none.mla"))
        assert rest_of(asked).count(b"HTTP/1.1") == 2


def until(is_so: Callable[[], bool]) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            if is_so():
                return True
        time.sleep(0.02)
    return False


# --- enemies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["raw", "zarr"])
@pytest.mark.parametrize(
    "escape",
    [
        "../secret.mla",
        "../../secret.mla",
        "a%20folder/../../secret.mla",
        "%2e%2e/secret.mla",
        "%2E%2E%2Fsecret.mla",
        "..%2fsecret.mla",
        "..%5csecret.mla",
        "..\\secret.mla",
        "%252e%252e/secret.mla",
        "%c0%ae%c0%ae/secret.mla",
        "./ct.mla",
        "/ct.mla",
        "{outside}/secret.mla",
        "%2F{outside}/secret.mla",
        "file://{outside}/secret.mla",
        "ct.mla%00",
        "%00",
        "ct.mla%0d%0aX-Evil:%201",
        "ct.mla%",
        "ct.mla%ff",
        "~/secret.mla",
        "C:%5csecret.mla",
        "secret.mla",
        "link.mla",
        "to-hidden.mla",
        "folder/secret.mla",
        ".hidden/ct.mla",
        ".hidden.mla",
        "x" * 5000,
        "x/" * 2000 + "x",
    ],
)
def test_nothing_else_can_be_reached(folder: Path, address: str, door: str, escape: str) -> None:
    path = f"/{door}/{escape.format(outside=folder.parent)}"
    for suffix in ("", "/zarr.json"):
        reply = told(address, head(path + suffix))
        assert status_of(reply) in (400, 404)
        assert SECRET not in reply
        assert b"X-Evil" not in reply
        assert str(folder.parent).encode() not in reply


@pytest.mark.parametrize(
    "name", ["link.mla", "to-hidden.mla", "folder/secret.mla", ".hidden/ct.mla", ".hidden.mla"]
)
def test_what_leads_out_or_is_hidden_is_in_no_list(folder: Path, name: str) -> None:
    catalogue = Catalogue([folder], rescan_after_s=0)
    assert (folder / name).read_bytes() == SECRET
    assert catalogue.find(name.split("/")) is None
    assert name not in [file.name for file in catalogue.listed()]


def test_a_link_that_is_put_there_after_the_look_up_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.mla").write_bytes(SECRET)
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "ct.mla").write_bytes(b"harmless")
    (shown / ".hidden.mla").write_bytes(SECRET)
    catalogue = Catalogue([shown])
    found = catalogue.find(["ct.mla"])
    assert found is not None
    for target in ("../secret.mla", ".hidden.mla"):
        (shown / "ct.mla").unlink()
        (shown / "ct.mla").symlink_to(target)
        with pytest.raises(FileNotFoundError):
            catalogue.pinned(found[0])


def test_a_link_that_goes_away_after_it_was_followed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.mla").write_bytes(SECRET)
    shown = tmp_path / "shown"
    shown.mkdir()
    path = shown / "ct.mla"
    path.write_bytes(b"harmless")
    catalogue = Catalogue([shown])
    found = catalogue.find(["ct.mla"])
    assert found is not None
    path.unlink()
    path.symlink_to(tmp_path / "secret.mla")
    realpath = os.path.realpath

    def swapped(asked: str) -> str:
        path.unlink()
        path.write_bytes(b"harmless")
        return realpath(asked)

    monkeypatch.setattr(os.path, "realpath", swapped)
    with pytest.raises(SourceChanged):
        catalogue.pinned(found[0])


@pytest.mark.parametrize("leads_to", ["outside", "hidden"])
@pytest.mark.parametrize("is_given", [False, True])
def test_overviews_that_are_links_to_elsewhere_are_left_out(
    tmp_path: Path, leads_to: str, is_given: bool
) -> None:
    shown = tmp_path / "shown"
    elsewhere = shown / ".hidden" if leads_to == "hidden" else tmp_path / "outside"
    shown.mkdir()
    elsewhere.mkdir()
    path = write_volume(shown / "ct.mla")
    mlarray_xr.build_overviews(path, levels=2)
    level = shown / "ct.level1.mla"
    with served([path if is_given else shown]) as address:
        assert ask(address, "/zarr/ct.mla/level1/image/c/0/0/0").status == 200
        level.rename(elsewhere / "level.mla")
        level.symlink_to(elsewhere / "level.mla")
        assert ask(address, "/raw/ct.level1.mla").status == 404
        for number in (1, 2):
            for key in ("zarr.json", "image/c/0/0/0"):
                assert ask(address, f"/zarr/ct.mla/level{number}/{key}").status == 404
        group = json.loads(ask(address, "/zarr/ct.mla/zarr.json").body)
        (scales,) = group["attributes"]["ome"]["multiscales"]
        assert [each["path"] for each in scales["datasets"]] == ["image"]


def test_a_file_that_becomes_a_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.mla").write_bytes(SECRET)
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "ct.mla").write_bytes(b"harmless")
    with served([shown]) as address:
        assert ask(address, "/raw/ct.mla").body == b"harmless"
        (shown / "ct.mla").unlink()
        (shown / "ct.mla").symlink_to(tmp_path / "secret.mla")
        assert ask(address, "/raw/ct.mla").status == 404


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        pytest.param(head("/", "X: " + "a" * 40_000), {400, 431}, id="huge header"),
        pytest.param(head("/", "X: " + "a" * 2_000_000), {400, 431, 0}, id="endless header"),
        pytest.param(head("/", *["X: y"] * 5000), {400, 431, 0}, id="many headers"),
        pytest.param(head("/" + "a" * 9000), {414}, id="long path"),
        pytest.param(head("/" + "a" * 400_000), {400, 414, 0}, id="huge path"),
        pytest.param(head("/raw/ct.mla", method="DELETE"), {405}, id="DELETE"),
        pytest.param(
            head("/raw/ct.mla", "Content-Length: 3", method="PUT") + b"abc", {405}, id="PUT"
        ),
        pytest.param(head("/", "Content-Length: 9"), {413}, id="GET with a body"),
        pytest.param(
            head("/", "Transfer-Encoding: chunked") + b"zz\r\n", {400, 413, 0}, id="chunked"
        ),
        pytest.param(head("/", "Expect: 100-continue", "Content-Length: 9"), {413}, id="Expect"),
        pytest.param(head("/", "Host: 127.0.0.1"), {400}, id="two hosts"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", {400}, id="no host"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", {421}, id="no host in 1.0"),
        pytest.param(b"\0\xff" * 50 + b"\r\n\r\n", {400}, id="noise"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", {400}, id="TLS"),
        pytest.param(head("http://evil.example/raw/ct.mla"), {421}, id="proxy"),
        pytest.param(head("HTTP://localhost:1/raw/ct.mla"), {200}, id="absolute"),
        pytest.param(head("http://localhost"), {200}, id="absolute without a path"),
        pytest.param(head("*", method="OPTIONS"), {204}, id="OPTIONS *"),
        pytest.param(
            head("/raw/ct.mla", "Upgrade: websocket", "Connection: upgrade"), {200}, id="upgrade"
        ),
    ],
)
def test_requests_that_are_wrong_are_refused(
    address: str, request_bytes: bytes, statuses: set[int]
) -> None:
    with connect(address) as client:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            client.sendall(request_bytes)
        assert status_of(rest_of(client)) in statuses
    assert ask(address, "/raw/ct.mla").status == 200


def test_several_requests_on_one_connection_are_answered_in_turn(
    folder: Path, address: str
) -> None:
    line = b"GET /raw/ct.mla HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-3\r\n\r\n"
    reply = told(address, line * 3 + head("/raw/none.mla"))
    assert reply.count(b"HTTP/1.1 206") == 3
    assert reply.count(b"HTTP/1.1 404") == 1
    assert reply.count((folder / "ct.mla").read_bytes()[:4]) == 3


@pytest.mark.parametrize(
    ("host", "bound", "is_known"),
    [
        ("127.0.0.1:8765", "127.0.0.1", True),
        ("LocalHost", "127.0.0.1", True),
        ("[::1]:80", "127.0.0.1", True),
        ("evil.example", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("user@localhost", "127.0.0.1", False),
        ("localhost, evil.example", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("192.168.0.7", "127.0.0.1", False),
        ("192.168.0.7:8765", "0.0.0.0", True),
        ("[fe80::1]", "::", True),
        (socket.gethostname(), "0.0.0.0", True),
        (socket.getfqdn(), "0.0.0.0", True),
        (f"{socket.gethostname().partition('.')[0]}.local:8765", "0.0.0.0", True),
        ("other.local", "0.0.0.0", False),
        (socket.gethostname(), "127.0.0.1", False),
        ("[fe80::1]:8765", "fe80::1%lo", True),
        ("evil.example", "0.0.0.0", False),
        ("Node7.cluster:1", "node7.cluster", True),
        ("node8.cluster", "node7.cluster", False),
    ],
)
def test_hosts_that_are_answered(host: str, bound: str, is_known: bool) -> None:
    assert Admission(bound_host=bound).knows_host(host) is is_known


def test_names_that_others_point_here_are_refused(address: str) -> None:
    reply = ask(address, "/raw/ct.mla", Host="evil.example:8765")
    assert reply.status == 421
    assert ask(address, "/raw/ct.mla", Host="localhost:1").status == 200


@pytest.mark.parametrize(
    ("origin", "allowed", "answered"),
    [
        ("http://localhost:3000", (), "http://localhost:3000"),
        ("https://127.0.0.1", (), "https://127.0.0.1"),
        ("http://[::1]:9", (), "http://[::1]:9"),
        ("https://viewer.example", (), None),
        ("https://viewer.example", ("https://viewer.example/",), "https://viewer.example"),
        ("http://viewer.example", ("https://viewer.example",), None),
        ("https://viewer.example:444", ("https://viewer.example",), None),
        ("https://evil.example", ("https://viewer.example",), None),
        ("http://localhost.evil.example", (), None),
        ("null", (), None),
        ("file://", (), None),
        ("null", ("*",), "*"),
        ("https://evil.example", ("*",), "*"),
    ],
)
def test_pages_of_allowed_origins_may_read(
    origin: str, allowed: tuple[str, ...], answered: str | None
) -> None:
    here = Admission(bound_host="127.0.0.1", origins=frozenset(map(parse_origin, allowed)))
    plain = {"host": "localhost", "origin": origin}
    asked = {
        **plain,
        "access-control-request-method": "GET",
        "access-control-request-headers": "range",
        "access-control-request-private-network": "true",
    }
    request = Request(method="OPTIONS", raw_path="/", headers=asked)
    preflight = here.refusal(request)
    assert preflight is not None
    assert preflight.status == (204 if answered else 403)
    permitted = preflight.headers.get("Access-Control-Allow-Private-Network")
    assert permitted == ("true" if answered else None)
    for each in (request, Request(method="GET", raw_path="/", headers=plain)):
        headers = here.headers(each)
        assert headers.get("Access-Control-Allow-Origin") == answered
        assert ("Content-Range" in headers.get("Access-Control-Expose-Headers", "")) is bool(
            answered
        )


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80/", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("HTTPS://A.example:", "https://a.example"),
        ("https://Stra\u00dfe.example", "https://xn--strae-oqa.example"),
        ("https://M\u00fcnchen.example:8443", "https://xn--mnchen-3ya.example:8443"),
        ("https://mu\u0308nchen.example", "https://xn--mnchen-3ya.example"),
        ("http://[0:0::1]:80", "http://[::1]"),
        ("*", "*"),
    ],
)
def test_origins_are_written_as_browsers_do(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


def test_browsers_are_told_which_pages_may_read(address: str) -> None:
    mine, other = "http://localhost:3000", "https://evil.example"
    found = ask(address, "/raw/ct.mla", Origin=mine, Range="bytes=0-1")
    assert (found.status, found.headers["access-control-allow-origin"]) == (206, mine)
    assert found.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in found.headers
    refused = ask(address, "/raw/ct.mla", Origin=other).headers
    assert not any(name.startswith("access-control") for name in refused)
    preflight = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "range"}
    allowed = ask(address, "/raw/ct.mla", "OPTIONS", Origin=mine, **preflight)
    assert (allowed.status, allowed.body) == (204, b"")
    assert "Range" in allowed.headers["access-control-allow-headers"]
    assert ask(address, "/raw/ct.mla", "OPTIONS", Origin=other, **preflight).status == 403


@pytest.mark.parametrize(
    "text",
    [
        "viewer.example",
        "https://",
        "ftp://a",
        "https://a/path",
        "https://a b",
        "https://u@a",
        "",
        "https://a:port",
        "https://a?b",
        "https://a\nb",
        "https://*.example\r",
    ],
)
def test_origins_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"origin|[Pp]ort"):
        parse_origin(text)


# --- what is shown ---------------------------------------------------------------------------


def names_of(*paths: Path) -> list[str]:
    return [file.name for file in Catalogue(paths).listed()]


def test_names_tell_files_apart(tmp_path: Path) -> None:
    for folder in ("a", "b", "c/a"):
        (tmp_path / folder).mkdir(parents=True)
        write_volume(tmp_path / folder / "ct.mla")
    a, b, other = tmp_path / "a", tmp_path / "b", tmp_path / "c" / "a"
    assert names_of(tmp_path) == ["a/ct.mla", "b/ct.mla", "c/a/ct.mla"]
    assert names_of(a) == names_of(a / "ct.mla") == ["ct.mla"]
    assert names_of(a, b, other) == ["a/ct.mla", "a~2/ct.mla", "b/ct.mla"]
    assert names_of(a / "ct.mla", b / "ct.mla", a / "ct.mla") == ["ct.mla", "ct~2.mla"]
    catalogue = Catalogue([a / "ct.mla", b / "ct.mla"])
    found = catalogue.find(["ct~2.mla", "zarr.json"])
    assert found is not None
    assert (found[0].path, found[1]) == (str(b / "ct.mla"), "zarr.json")


def test_a_folder_that_is_named_like_a_file_has_another_name(tmp_path: Path) -> None:
    (tmp_path / "x" / "ct.mla").mkdir(parents=True)
    write_volume(tmp_path / "x" / "ct.mla" / "inside.mla")
    write_volume(tmp_path / "ct.mla")
    assert names_of(tmp_path / "ct.mla", tmp_path / "x" / "ct.mla") == [
        "ct.mla",
        "ct~2.mla/inside.mla",
    ]


def test_overviews_can_be_asked_for_but_are_not_listed(folder: Path) -> None:
    for paths in ([folder], [folder / "ct.mla"]):
        catalogue = Catalogue(paths)
        assert "ct.mla" in [file.name for file in catalogue.listed()]
        assert not any("level" in file.name for file in catalogue.listed())
        assert catalogue.find(["ct.level2.mla"]) is not None
        assert catalogue.find(["ct.level3.mla"]) is None


def test_what_lies_beside_a_file_is_shown_only_if_it_is_an_overview(tmp_path: Path) -> None:
    write_volume(tmp_path / "ct.mla")
    write_volume(tmp_path / "ct.level1.mla")
    catalogue = Catalogue([tmp_path / "ct.mla"])
    assert [file.name for file in catalogue.listed()] == ["ct.mla"]
    assert catalogue.find(["ct.level1.mla"]) is None


def test_overviews_beside_a_link_to_a_folder_are_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Catalogue([tmp_path / "link" / "ct.mla"]).find(["ct.level1.mla"]) is not None


def test_a_file_with_the_name_of_an_overview_that_is_none_is_listed(tmp_path: Path) -> None:
    write_volume(tmp_path / "odd.level1.mla")
    assert names_of(tmp_path) == ["odd.level1.mla"]


def test_names_that_nobody_could_ask_for_are_not_listed(tmp_path: Path) -> None:
    odd = {"new\nline.mla", os.fsdecode(b"\xff.mla"), "back\\slash.mla"}
    usual = ["no\xa0break.mla", "plain.mla", "upper.MLA", "wide\u3000space.mla"]
    for name in (*odd, *usual):
        (tmp_path / name).write_bytes(b"x")
    catalogue = Catalogue([tmp_path])
    assert [file.name for file in catalogue.listed()] == usual
    assert {os.path.basename(path) for path in catalogue.unnamed} == odd
    with served([tmp_path]) as address:
        for name in usual:
            assert ask(address, f"/raw/{url_path(name)}").body == b"x"


def test_folders_may_be_deep_and_paths_no_deeper(tmp_path: Path) -> None:
    inside = [*"abcdefgh" * 5, "ct.mla"]
    path = tmp_path.joinpath(*inside)
    path.parent.mkdir(parents=True)
    write_volume(path)
    with served([tmp_path]) as address:
        assert ask(address, f"/zarr/{'/'.join(inside)}/image/c/0/0/0").status == 200
        assert segments_of("/raw" + "/x" * 63) is not None
        assert segments_of("/raw" + "/x" * 64) is None


def test_what_was_given_comes_before_the_overview_of_another_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_volume(tmp_path / "a" / "ct.mla")
    mlarray_xr.build_overviews(first, levels=1)
    second = write_volume(tmp_path / "b" / "ct.level1.mla", VALUES + 1)
    catalogue = Catalogue([first, second])
    assert [file.name for file in catalogue.listed()] == ["ct.level1.mla", "ct.mla"]
    with served([first, second]) as address:
        assert ask(address, "/raw/ct.level1.mla").body == second.read_bytes()
        assert ask(address, "/zarr/ct.mla/level1/zarr.json").status == 200


def test_an_overview_is_hidden_while_it_is_one_of_a_file_that_is_listed(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "ct.mla")
    mlarray_xr.build_overviews(path, levels=1)
    catalogue = Catalogue([tmp_path], rescan_after_s=0)

    def names() -> list[str]:
        return [file.name for file in catalogue.listed()]

    assert names() == ["ct.mla"]
    write_volume(tmp_path / "ct.level1.mla", mode="w")
    assert names() == ["ct.level1.mla", "ct.mla"]
    (tmp_path / "ct.level1.mla").unlink()
    mlarray_xr.build_overviews(path, levels=1)
    assert names() == ["ct.mla"]
    path.unlink()
    assert names() == ["ct.level1.mla"]


def test_while_one_looks_into_the_folders_others_use_what_it_found_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.mla").write_bytes(b"x")
    catalogue = Catalogue([tmp_path], rescan_after_s=0)
    (tmp_path / "new.mla").write_bytes(b"x")
    walk, begun, go_on = os.walk, threading.Event(), threading.Event()

    def slow_walk(top: str) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return walk(top)

    monkeypatch.setattr(os, "walk", slow_walk)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(catalogue.find, ["new.mla"])
        assert begun.wait(PATIENCE_S)
        assert catalogue.find(["new.mla"]) is None
        assert [file.name for file in catalogue.listed()] == ["old.mla"]
        go_on.set()
        assert looking.result() is not None


def test_links_inside_the_folder_are_shown_and_pipes_are_not(tmp_path: Path) -> None:
    (tmp_path / "real.mla").write_bytes(b"x")
    (tmp_path / "link.mla").symlink_to("real.mla")
    (tmp_path / "gone.mla").symlink_to("nothing.mla")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mla")
    assert names_of(tmp_path) == ["link.mla", "real.mla"]


def test_files_that_come_later_are_found(tmp_path: Path) -> None:
    catalogue = Catalogue([tmp_path], rescan_after_s=0)
    assert catalogue.listed() == []
    (tmp_path / "new.mla").write_bytes(b"x")
    assert catalogue.find(["new.mla"]) is not None
    assert [file.name for file in catalogue.listed()] == ["new.mla"]
    (tmp_path / "new.mla").unlink()
    assert catalogue.find(["new.mla"]) is None
    assert catalogue.listed() == []


def test_paths_that_cannot_be_served_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.mla").write_text("no frame")
    for path, error in (
        (tmp_path / "none.mla", FileNotFoundError),
        (tmp_path / "text.mla", FormatError),
        ("s3://bucket/ct.mla", SourceError),
    ):
        with pytest.raises(error):
            Catalogue([path])
    odd = write_volume(tmp_path / "ct.mla").rename(tmp_path / "new\nline.mla")
    with pytest.raises(SourceError, match="rename the file"):
        Catalogue([odd])


def test_the_page_lists_files_and_loads_nothing(folder: Path, address: str) -> None:
    page = ask(address, "/")
    text = page.body.decode()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert f"<code>{address}zarr/ct.mla/|zarr3:</code>" in text
    assert 'href="/raw/a%20folder/100%25.mla"' in text
    assert "src=" not in text
    files = json.loads(ask(address, "/", Accept="application/json").body)["files"]
    assert {"name": "ct.mla", "raw": "/raw/ct.mla", "zarr": "/zarr/ct.mla/"} in files
    assert [file["name"] for file in files] == ["a folder/100%.mla", "broken.mla", "ct.mla"]
    for file in files:
        assert ask(address, file["raw"], "HEAD").status == 200


@pytest.mark.parametrize("slash", ["", "/"])
def test_who_looks_at_a_group_is_told_what_it_is(address: str, slash: str) -> None:
    page = ask(address, f"/zarr/ct.mla{slash}", Accept="text/html,*/*")
    text = page.body.decode()
    assert page.status == 200
    assert 'href="/zarr/ct.mla/zarr.json"' in text
    assert f"<code>{address}zarr/ct.mla/|zarr3:</code>" in text
    plain = ask(address, f"/zarr/ct.mla{slash}", Accept="*/*")
    assert plain.status == 404
    assert b"zarr.json" in plain.body
    assert ask(address, f"/zarr/none.mla{slash}", Accept="text/html").status == 404


def test_names_are_no_markup(tmp_path: Path) -> None:
    name = '<script>alert("1")&amp;.mla'
    (tmp_path / name).write_bytes(b"x")
    with served([tmp_path]) as address:
        text = ask(address, "/").body.decode()
        assert "<script>" not in text
        assert ask(address, f"/raw/{url_path(name)}").body == b"x"
        text = ask(address, f"/zarr/{url_path(name)}", Accept="text/html").body.decode()
        assert "Zarr 3 group" in text
        assert "<script>" not in text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_paths_of_urls_lead_back_to_names(segments: list[str]) -> None:
    name = "/".join(segments)
    with contextlib.suppress(UnicodeEncodeError):
        found = segments_of("/raw/" + url_path(name))
        assert found is None or found == ("raw", *name.split("/"))
        refused = {"Cc", "Cf", "Cs", "Zl", "Zp"}
        plain = all(
            not {"\\"} & {*s}
            and not refused & {unicodedata.category(letter) for letter in s}
            and s not in ("", ".", "..")
            for s in name.split("/")
        )
        assert (found is not None) == plain


# --- the server itself -----------------------------------------------------------------------


def test_a_port_that_somebody_listens_on_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(OSError, match=rf"port {port}.*To fix: another port")
        with refused, served([folder], port=port):
            pytest.fail("it ran")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("nosuchhost.invalid", "no address or name"),
        ("", "no address or name"),
        ("a" * 70, "no address or name"),
        ("192.0.2.1", "no address of this machine"),
    ],
)
def test_hosts_that_are_none_are_named(folder: Path, host: str, reason: str) -> None:
    with (
        pytest.raises(OSError, match=rf"host '{host}' is {reason}.*To fix: 127\.0\.0\.1"),
        run_server([folder], host=host),
    ):
        pytest.fail("it ran")


def test_it_ends_with_clients_that_still_wait(large: Path) -> None:
    before = threading.active_count()
    with (
        run_server([large.parent], limits=Limits(finish_s=1)) as server,
        connect(server.address) as idle,
        connect(server.address) as slow,
    ):
        start_reading(slow)
        port = port_of(server.address)
        assert idle.fileno() >= 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert until(lambda: threading.active_count() <= before)


def test_it_listens_on_ipv6_as_well(folder: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with run_server([folder], host="::1") as server:
        assert server.address.startswith("http://[::1]:")
        with socket.create_connection(("::1", port_of(server.address))) as client:
            client.sendall(head("/raw/ct.mla", "Range: bytes=0-3"))
            assert rest_of(client).endswith((folder / "ct.mla").read_bytes()[:4])


def test_without_uvicorn_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[serve\]"), served([folder]):
        pytest.fail("it ran")
