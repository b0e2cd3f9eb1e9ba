"""Files made to break readers: refused with typed errors, in time, in memory, running nothing."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

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

Answers = dict[str, dict[str, dict[str, Any]]]

FOLDER = DATA / "hostile"
SMALL = DATA / "mla" / "0.0.54" / "img2d.mla"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".mla", ".b2nd"})
GOOD = {"_control_good.mla", "op.b2nd"}
MODES = ("array", "dataset")
MOST_GROWN_BYTES = 512 << 20


@pytest.fixture(scope="module", params=[True, False], ids=["native", "portable"])
def readers(request: pytest.FixtureRequest) -> bool:
    wanted: bool = request.param
    return wanted


@pytest.fixture(scope="module")
def answers(readers: bool, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    marker = tmp_path_factory.mktemp("hostile") / "marker"
    jobs = [{"action": mode, "path": str(FOLDER / name)} for name in NAMES for mode in MODES]
    found = run_jobs(jobs, marker=marker, native=readers)
    assert len(found) == len(jobs)
    assert not marker.exists()
    assert not list(FOLDER.glob("mla_marker*"))
    result: Answers = {name: {} for name in NAMES}
    for job, answer in zip(jobs, found, strict=True):
        result[job["path"].rpartition("/")[2]][job["action"]] = answer
    return result


def test_every_hostile_file_is_tried() -> None:
    assert set(NAMES) - GOOD == set(HOSTILE) - GOOD
    assert len(NAMES) >= 70


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_file(answers: Answers, name: str, mode: str) -> None:
    answer = answers[name][mode]
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


def test_the_good_file_reads_right(answers: Answers) -> None:
    expected = np.load(FOLDER / "_control_good.npy")
    corner = expected[(slice(0, 2),) * expected.ndim]
    assert answers["_control_good.mla"]["array"]["value"] == corner.tolist()


@pytest.mark.parametrize(
    "name",
    ["frame_codec_unknown.mla", "frame_trailing_junk.mla", "sem_shape_lie.mla",
     "vlmeta_other_key_ext43.mla", "sem_axis_labels_dup.mla"],
)  # fmt: skip
def test_harmless_damage_reads_right_values_or_is_refused(answers: Answers, name: str) -> None:
    answer = answers[name]["array"]
    if answer["outcome"] == "done":
        assert answer["value"] == answers["_control_good.mla"]["array"]["value"]


def job(path: Path, region: str, *, seed: int = 0, count: int = 1) -> dict[str, Any]:
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


def assert_survived(found: list[dict[str, Any]]) -> dict[str, int]:
    total = {"read": 0, "refused": 0}
    for answer in found:
        assert answer["outcome"] == "done", answer["text"]
        for key in total:
            total[key] += answer["value"][key]
    return total


def test_truncation_at_every_length(readers: bool, victims: list[Path], tmp_path: Path) -> None:
    found = run_jobs(
        [job(v, "truncations") for v in victims], marker=tmp_path / "m", native=readers
    )
    total = assert_survived(found)
    assert total == {"read": 0, "refused": sum(v.stat().st_size for v in victims)}


@pytest.mark.parametrize("region", ["integers", "fields"])
def test_extreme_numbers_in_every_field(
    readers: bool, victims: list[Path], tmp_path: Path, region: str
) -> None:
    found = run_jobs([job(v, region) for v in victims], marker=tmp_path / "m", native=readers)
    assert assert_survived(found)["refused"] > 100


@pytest.mark.parametrize("region", ["header", "payload", "index", "trailer", "anywhere"])
def test_random_bit_flips(readers: bool, victims: list[Path], tmp_path: Path, region: str) -> None:
    jobs = [job(v, region, seed=seed, count=150) for v in victims for seed in range(2)]
    total = assert_survived(run_jobs(jobs, marker=tmp_path / "m", native=readers))
    assert sum(total.values()) == 600
    assert total["refused"] > 0


def crafted_indexes() -> dict[str, bytes]:
    """Tables that the C library might read differently from the checks."""
    sections = sections_of(make_frame(np.arange(40, dtype="<i4"), chunks=(10,), blocks=(5,)))
    found = {}
    for code in range(8):
        for value in (b"", bytes(8), bytes(16), b"\x7f" * 8, b"\xff" * 8, b"\x01" * 32):
            index = special_chunk(32, code, value)
            found[f"{code}-{value.hex()}"] = sections.with_index(index).joined()
    return found


def test_indexes_without_streams(readers: bool, tmp_path: Path) -> None:
    jobs = []
    for name, frame in crafted_indexes().items():
        path = tmp_path / f"{name}.b2nd"
        path.write_bytes(frame)
        jobs.append({"action": "array", "path": str(path)})
    for answer in run_jobs(jobs, marker=tmp_path / "m", native=readers):
        assert answer["outcome"] in {"done", "error"}, answer["text"]
        if answer["outcome"] == "done":
            assert answer["value"] == [0, 1]


def many_tiny_chunks(n_chunks: int) -> bytes:
    """Return a file of a few hundred bytes that claims very many chunks of one byte."""
    import blosc2

    sections = sections_of(blosc2.zeros((1024,), dtype="u1", chunks=(1,), blocks=(1,)).to_cframe())
    extent = sections.header.index((1024).to_bytes(8, "big"), 100)
    header = replaced(sections.header, extent, n_chunks.to_bytes(8, "big"))
    header = replaced(header, 30, n_chunks.to_bytes(8, "big"))
    zeros = special_chunk(8 * n_chunks, 3, (0x81 << 56).to_bytes(8, "little"))
    frame = header + zeros + sections.trailer
    return replaced(frame, 16, len(frame).to_bytes(8, "big"))


@pytest.mark.parametrize("n_chunks", [1 << 20, 1 << 24, 1 << 26])
def test_very_many_chunks_cost_little(readers: bool, tmp_path: Path, n_chunks: int) -> None:
    path = tmp_path / "many.b2nd"
    path.write_bytes(many_tiny_chunks(n_chunks))
    jobs = [{"action": mode, "path": str(path)} for mode in MODES]
    for answer in run_jobs(jobs, marker=tmp_path / "m", native=readers):
        assert answer["outcome"] in {"done", "error"}, answer["text"]
        assert answer["grown_bytes"] < MOST_GROWN_BYTES


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


@pytest.mark.parametrize("url", ["s3://bucket/ct.mla", "https://host/ct.mla", "file:///ct.mla"])
def test_an_address_on_the_network_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="URLs are not read"):
        MlaArray(url)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.mla"):
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
    for name, entry in HOSTILE.items():
        if entry["caught_by"] if "caught_by" in entry else False:
            assert json.dumps(name)
    data = SMALL.read_bytes()
    with pytest.raises(MlaError) as caught:
        MlaArray(data[:-1])
    assert "spacing" not in str(caught.value)
