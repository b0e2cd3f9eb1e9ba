"""Files made to break readers: refused with typed errors, in time, in memory, running nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import FormatError, MlaError, SourceError
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.source import source_of
from tests.frame_kit import make_frame, replaced, sections_of, special_chunk
from tests.hostile_reader import run_jobs
from tests.stored_metadata import DATA, HOSTILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDER = DATA / "hostile"
SMALL = DATA / "mla" / "0.0.54" / "img2d.mla"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".mla", ".b2nd"})
GOOD = {"_control_good.mla", "op.b2nd"}
MODES = ("array", "dataset")
FLIPPED = ("header", "payload", "index", "trailer", "anywhere")
MOST_GROWN_BYTES = 512 << 20


Job = tuple[str, str]


def mutate(path: Path, region: str, *, seed: int = 0, count: int = 1) -> dict[str, Any]:
    options = {"seed": seed, "count": count, "region": region}
    return {"action": "mutations", "path": str(path), "options": options}


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small files with several chunks, streams, raw chunks and special chunks."""
    folder = tmp_path_factory.mktemp("victims")
    ramp = (np.arange(40 * 30, dtype="<i2") // 11).reshape(40, 30)
    ramp[:10] = 0
    ramp[20:30, :15] = np.random.default_rng(0).integers(0, 9999, (10, 15))
    plain = folder / "ramp.b2nd"
    plain.write_bytes(make_frame(ramp, chunks=(10, 15), blocks=(5, 6)))
    image = folder / "img2d.mla"
    shutil.copy(SMALL, image)
    return [plain, image]


@pytest.fixture(scope="module", params=[True, False], ids=["native", "portable"])
def answers(
    request: pytest.FixtureRequest, victims: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[Job, dict[str, Any]]:
    """Read everything once with each reader, in one subprocess that forks for every job."""
    folder = tmp_path_factory.mktemp("hostile")
    jobs: dict[Job, dict[str, Any]] = {
        (mode, name): {"action": mode, "path": str(FOLDER / name)}
        for name in NAMES
        for mode in MODES
    }
    for i, victim in enumerate(victims):
        for region in ("truncations", "integers", "fields"):
            jobs[region, str(i)] = mutate(victim, region)
        for region in FLIPPED:
            for seed in range(2):
                jobs[region, f"{i} {seed}"] = mutate(victim, region, seed=seed, count=150)
    for name, frame in {**crafted_indexes(), **crafted_extents()}.items():
        path = folder / f"{name}.b2nd"
        path.write_bytes(frame)
        for mode in MODES:
            jobs[mode, name] = {"action": mode, "path": str(path)}
    found = run_jobs(list(jobs.values()), marker=folder / "marker", native=request.param)
    assert len(found) == len(jobs)
    assert not (folder / "marker").exists()
    assert not list(FOLDER.glob("mla_marker*"))
    return dict(zip(jobs, found, strict=True))


def test_every_hostile_file_is_tried() -> None:
    assert set(NAMES) - GOOD == set(HOSTILE) - GOOD
    assert len(NAMES) >= 70


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_file(answers: dict[Job, dict[str, Any]], name: str, mode: str) -> None:
    answer = answers[mode, name]
    assert answer["outcome"] in {"done", "error"}, answer["text"]
    assert answer["left"] == []
    assert answer["grown_bytes"] < MOST_GROWN_BYTES
    expect = "open" if name in GOOD else HOSTILE[name]["expect"]
    if expect == "refuse" or (expect == "read_error" and mode == "array"):
        assert answer["outcome"] == "error"
    if expect == "open" or (expect == "read_error" and mode == "dataset"):
        assert answer["outcome"] == "done", answer["text"]
    if answer["outcome"] == "error":
        assert "FormatError" in answer["kinds"]
        assert name in answer["text"]
        if expect == "read_error":
            assert "ChunkError" in answer["kinds"]


def test_the_good_file_reads_right(answers: dict[Job, dict[str, Any]]) -> None:
    expected = np.load(FOLDER / "_control_good.npy")
    corner = expected[(slice(0, 2),) * expected.ndim]
    assert answers["array", "_control_good.mla"]["value"] == corner.tolist()


@pytest.mark.parametrize(
    "name",
    ["frame_codec_unknown.mla", "frame_trailing_junk.mla", "sem_shape_lie.mla",
     "vlmeta_other_key_ext43.mla", "sem_axis_labels_dup.mla"],
)  # fmt: skip
def test_harmless_damage_reads_right(answers: dict[Job, dict[str, Any]], name: str) -> None:
    answer = answers["array", name]
    if HOSTILE[name]["expect"] == "open" or answer["outcome"] == "done":
        assert answer["value"] == answers["array", "_control_good.mla"]["value"]


def total_of(answers: dict[Job, dict[str, Any]], region: str) -> dict[str, int]:
    """Sum what became of the damaged copies; every one was read or refused."""
    total = {"read": 0, "refused": 0}
    for (kind, _), answer in answers.items():
        if kind == region:
            assert answer["outcome"] == "done", answer["text"]
            for key in total:
                total[key] += answer["value"][key]
    return total


def test_truncation_at_every_length(
    answers: dict[Job, dict[str, Any]], victims: list[Path]
) -> None:
    n_bytes = sum(victim.stat().st_size for victim in victims)
    assert total_of(answers, "truncations") == {"read": 0, "refused": n_bytes}


@pytest.mark.parametrize("region", ["integers", "fields"])
def test_extreme_numbers_in_every_field(answers: dict[Job, dict[str, Any]], region: str) -> None:
    assert total_of(answers, region)["refused"] > 100


@pytest.mark.parametrize("region", FLIPPED)
def test_random_bit_flips(answers: dict[Job, dict[str, Any]], region: str) -> None:
    total = total_of(answers, region)
    assert sum(total.values()) == 600
    assert total["refused"] > 0


def crafted_indexes() -> dict[str, bytes]:
    """Tables that the C library might read differently from the checks."""
    sections = sections_of(make_frame(np.arange(40, dtype="<i4"), chunks=(10,), blocks=(5,)))
    found = {}
    for code in range(8):
        for value in (b"", bytes(8), bytes(16), b"\x7f" * 8, b"\xff" * 8, b"\x01" * 32):
            index = special_chunk(32, code, value)
            found[f"index-{code}-{value.hex()}"] = sections.with_index(index).joined()
    return found


def crafted_extents() -> dict[str, bytes]:
    """Arrays of a few hundred bytes that claim very many chunks."""
    return {f"many-{bits}": many_tiny_chunks(1 << bits) for bits in (10, 20, 24, 26)}


@pytest.mark.parametrize("mode", MODES)
def test_indexes_without_streams(answers: dict[Job, dict[str, Any]], mode: str) -> None:
    for name in crafted_indexes():
        answer = answers[mode, name]
        assert answer["outcome"] in {"done", "error"}, answer["text"]
        if answer["outcome"] == "done" and mode == "array":
            assert answer["value"] == [0, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["many-10", "many-20", "many-24", "many-26"])
def test_very_many_chunks_cost_little(
    answers: dict[Job, dict[str, Any]], name: str, mode: str
) -> None:
    answer = answers[mode, name]
    assert answer["outcome"] in {"done", "error"}, answer["text"]
    assert answer["grown_bytes"] < MOST_GROWN_BYTES


def many_tiny_chunks(n_chunks: int) -> bytes:
    """Return a file of a few hundred bytes that claims very many chunks of one byte."""
    sections = sections_of(blosc2.zeros((1024,), dtype="u1", chunks=(1,), blocks=(1,)).to_cframe())
    extent = sections.header.index((1024).to_bytes(8, "big"), 100)
    header = replaced(sections.header, extent, n_chunks.to_bytes(8, "big"))
    header = replaced(header, 30, n_chunks.to_bytes(8, "big"))
    zeros = special_chunk(8 * n_chunks, 3, (0x81 << 56).to_bytes(8, "little"))
    frame = header + zeros + sections.trailer
    return replaced(frame, 16, len(frame).to_bytes(8, "big"))


def test_every_truncation_is_refused_on_opening() -> None:
    data = SMALL.read_bytes()
    open_frame(source_of(data))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            open_frame(source_of(data[:length]))


def empty(folder: Path) -> Path:
    (folder / "empty.mla").write_bytes(b"")
    return folder / "empty.mla"


def picture(folder: Path) -> Path:
    (folder / "picture.mla").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    return folder / "picture.mla"


def text(folder: Path) -> Path:
    (folder / "text.mla").write_text("spacing: 1 1 1\n" * 50)
    return folder / "text.mla"


def plain_array(folder: Path) -> Path:
    shutil.copy(DATA / "mla" / "nnunetv2" / "case_v28.b2nd", folder / "plain.mla")
    return folder / "plain.mla"


@pytest.mark.parametrize("make", [empty, picture, text, plain_array])
def test_other_files_are_refused_by_name(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(FormatError, match=rf"{path.name}: .*not an \.mla file.*To fix"):
        MlaArray(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="this is a directory"):
        MlaArray(tmp_path)


def test_a_device_is_refused() -> None:
    with pytest.raises(SourceError, match="not a regular file"):
        MlaArray("/dev/zero")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gopher://host/ct.mla", "knows no protocol 'gopher'"),
        ("s3://bucket", "names no object"),
        ("file://host/ct.mla", "names the host 'host'"),
    ],
)
def test_an_address_that_nobody_serves_is_refused(url: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        MlaArray(url)


def test_options_of_a_network_are_refused_for_local_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"storage_options=\['anon'\] were given"):
        MlaArray(tmp_path / "ct.mla", storage_options={"anon": True})


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mla"):
        MlaArray(tmp_path / "none.mla")


@pytest.mark.parametrize("address", [None, 5, 1.5, ["a.mla"]])
def test_other_addresses_are_refused(address: object) -> None:
    with pytest.raises(TypeError, match="a path, bytes or a binary file object is needed"):
        MlaArray(address)


def test_a_text_file_object_is_refused(tmp_path: Path) -> None:
    with text(tmp_path).open() as stream, pytest.raises(TypeError, match="gave text"):
        MlaArray(stream)


def test_an_unreadable_file_raises_the_package_s_error(tmp_path: Path) -> None:
    path = tmp_path / "locked.mla"
    shutil.copy(SMALL, path)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(SourceError, match="cannot be read"):
            MlaArray(path)
    else:  # the superuser reads everything
        assert MlaArray(path).ndim == 2


def test_errors_never_show_metadata() -> None:
    data = SMALL.read_bytes()
    with pytest.raises(MlaError) as caught:
        MlaArray(data[:-1])
    assert "spacing" not in str(caught.value)
