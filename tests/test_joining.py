"""Joining: whatever order tasks end in, die in or run twice in, the file is the same."""

from __future__ import annotations

import os
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.write_plan import Parts
from mlarray_xr.storage import joining
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.job import PartRecord, WriteJob
from mlarray_xr.storage.joining import Prefix, forget_prefix, join_ready, take_prefix
from mlarray_xr.storage.segments import copy_segment
from mlarray_xr.storage.staging import claim

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE, N_PARTS = (12, 10), 6
# Parts of every kind: zeros have no payload, noise fills more than a page.
VALUES = np.random.default_rng(1).integers(0, 1 << 60, (12, 10, 90))
VALUES[2:6] = 0
PLAN = FramePlan(
    shape=VALUES.shape,
    dtype_str="<i8",
    layout=Layout(chunks=(1, 5, 90), blocks=(1, 5, 45)),
    codec=Codec.parse("lz4-1"),
)
PARTS = Parts(extents=((2,) * N_PARTS, (10,), (90,)), in_flight=2, itemsize=8)


def job_in(folder: Path) -> WriteJob:
    wanted = {"fingerprint": {}, "parts": PARTS.extents}
    staging, _ = claim(str(folder / "a.mla"), wanted, resume=False)
    return WriteJob(
        staging=staging,
        plan=PLAN,
        parts=PARTS,
        metadata=encode_metadata(Metadata(has_array=True)),
        overwrite=True,
        before=None,
    )


def write(job: WriteJob, part: int) -> PartRecord:
    box = PARTS.boxes()[part]
    return job.write_part(VALUES[tuple(slice(*pair) for pair in box)], box, part=part)


def recorded(job: WriteJob) -> int:
    return joining._prefix_at(joining._path(job.staging)).n_parts


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes without joining before the end."""
    folder = tmp_path_factory.mktemp("expected")
    job = job_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlarray_xr.storage.job.join_ready", lambda *_, **__: None)
        job.finish([write(job, part) for part in range(N_PARTS)])
    np.testing.assert_array_equal(mlarray_xr.MlaArray(folder / "a.mla")[...], VALUES)
    return (folder / "a.mla").read_bytes()


@settings(max_examples=60)
@given(order=st.permutations([*range(N_PARTS), 0, 3]), n_taken=st.integers(0, 2))
def test_any_order_gives_the_same_file(
    tmp_path_factory: pytest.TempPathFactory,
    expected: bytes,
    order: list[int],
    n_taken: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    job = job_in(folder)
    records = []
    for number, part in enumerate(order):
        records.append(write(job, part))
        done = set(order[: number + 1])
        first_missing = next(p for p in range(N_PARTS + 1) if p not in done)
        assert recorded(job) == (first_missing if n_taken == 0 else recorded(job))
        if number < n_taken:  # an attempt to finish that died with what it had taken
            take_prefix(job.staging)
    job.finish(records)
    assert (folder / "a.mla").read_bytes() == expected
    assert mlarray_xr.verify(folder / "a.mla").state == "ok"
    assert os.listdir(folder) == ["a.mla"]


def test_threads_join_side_by_side(tmp_path: Path, expected: bytes) -> None:
    for seed in range(10):
        job = job_in(tmp_path)
        order = [*range(N_PARTS), *range(N_PARTS)]
        random.Random(seed).shuffle(order)
        with ThreadPoolExecutor(8) as pool:
            records = list(pool.map(lambda part, job=job: write(job, part), order))
        assert recorded(job) == N_PARTS
        job.finish(records)
        assert (tmp_path / "a.mla").read_bytes() == expected


def test_what_is_joined_is_not_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    plain = copy_segment

    def counting(segment: Any, **options: Any) -> None:
        copied.append(segment.part)
        plain(segment, **options)

    monkeypatch.setattr("mlarray_xr.storage.joining.copy_segment", counting)
    monkeypatch.setattr("mlarray_xr.storage.assembly.copy_segment", counting)
    job = job_in(tmp_path)
    job.finish([write(job, part) for part in (1, 0, 2, 4, 3, 5)])
    assert copied == [0, 3, 4, 5]  # 1 and 2 are zeros


@pytest.mark.parametrize("wrong", [(3, 7), (99, 5000), None])
def test_a_prefix_of_another_length_is_not_used(
    tmp_path: Path, expected: bytes, wrong: tuple[int, int] | None
) -> None:
    job = job_in(tmp_path)
    records = [write(job, part) for part in range(N_PARTS)]
    path = Path(joining._path(job.staging))
    extent = struct.pack("<QQ", *(wrong or (3, 7)))
    checksum = zlib.crc32(extent) ^ (wrong is None)
    path.write_bytes(struct.pack("<16sI", extent, checksum) + b"\xff" * (2 * len(expected)))
    assert recorded(job) == (wrong or (0,))[0]
    job.finish(records)
    assert (tmp_path / "a.mla").read_bytes() == expected


def test_a_task_that_died_while_it_copied_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: bytes
) -> None:
    job = job_in(tmp_path)
    plain = copy_segment

    def dying(segment: Any, *, target: int, position: int, page_bytes: int) -> None:
        os.pwrite(target, b"half of it", position)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mlarray_xr.storage.joining.copy_segment", dying)
    records = [write(job, part) for part in (0, 1)]
    assert recorded(job) == 0
    monkeypatch.setattr("mlarray_xr.storage.joining.copy_segment", plain)
    records += [write(job, part) for part in (0, *range(2, N_PARTS))]
    assert recorded(job) == N_PARTS
    job.finish(records)
    assert (tmp_path / "a.mla").read_bytes() == expected


def test_a_late_task_does_not_go_on_in_an_empty_file(tmp_path: Path, expected: bytes) -> None:
    job = job_in(tmp_path)
    records = [write(job, part) for part in (0, 1, 3, 4, 5)]
    assert take_prefix(job.staging) is not None  # somebody began to finish, and died
    records.append(write(job, 2))
    write(job, 3)
    assert recorded(job) in (0, N_PARTS)
    job.finish(records)
    assert (tmp_path / "a.mla").read_bytes() == expected


def test_a_task_of_a_client_that_died_fills_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: bytes
) -> None:
    job = job_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mlarray_xr.storage.job.join_ready", lambda *_, **__: None)
        records = [write(job, part) for part in (1, 2)]
    plain = copy_segment

    def resumed_meanwhile(segment: Any, **options: Any) -> None:
        plain(segment, **options)
        if segment.part == 0:  # while the old task copies, a new write begins to join
            forget_prefix(job.staging)
            Path(joining._path(job.staging)).touch()

    monkeypatch.setattr("mlarray_xr.storage.joining.copy_segment", resumed_meanwhile)
    records += [write(job, 0)]
    monkeypatch.setattr("mlarray_xr.storage.joining.copy_segment", plain)
    assert recorded(job) == 0
    records += [write(job, part) for part in range(3, N_PARTS)]
    job.finish(records)
    assert (tmp_path / "a.mla").read_bytes() == expected


def test_a_resumed_write_begins_to_join_anew(tmp_path: Path) -> None:
    values: NDArray[Any] = np.random.default_rng(5).integers(0, 99, (8, 4000))
    options: dict[str, Any] = {"chunks": (1, 4000), "codec": "lz4-1", "resume": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
        patch.setattr("mlarray_xr.planning.grid._SMALLEST_PART_BYTES", 1)
        patch.setattr("mlarray_xr.storage.job.WriteJob.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mlarray_xr.to_mla(values, tmp_path / "a.mla", **options)
        (segment, *_) = sorted((tmp_path / "a.mla.parts").glob("*.seg"))
        damaged = bytearray(segment.read_bytes())
        damaged[50] ^= 1
        segment.write_bytes(damaged)
        patch.undo()
        report = mlarray_xr.to_mla(values, tmp_path / "a.mla", **options)
    assert report.n_resumed_chunks == report.n_chunks - 1
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], values)


def test_nothing_to_take_and_nothing_to_forget(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    assert take_prefix(job.staging) is None
    forget_prefix(job.staging)
    job.staging.remove()
    join_ready(job.staging, PLAN, part=0, parts=PARTS)  # its folder has gone: no error
    assert os.listdir(tmp_path) == []
    assert joining._prefix_at(joining._path(job.staging)) == Prefix()
