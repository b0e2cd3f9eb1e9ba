"""Choosing a codec on real chunks: what is tried, what comes out, and that all of it reads back."""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import itertools
import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest

from benchmarks.data import make_values
from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.explore.phantom import phantom_part
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.codec_choice import CodecTrial, choose_codec_from
from mlarray_xr.planning.codec_cost import WITH_COSTS, decode_cost, encode_cost
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.storage import trial
from mlarray_xr.storage.encode import FramePlan, encode_part
from mlarray_xr.storage.trial import choose_codec, choose_codec_for
from mlarray_xr.write import to_mla
from tests.package_source import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.grid import Box

SHAPE = (96, 112, 96)
TEMPLATES = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def template(name: str) -> NDArray[np.uint8]:
    """Read the middle of an average brain, 1 mm: single-file NIfTI, uint8, Fortran order."""
    path = importlib.resources.files("nilearn.datasets") / "data" / TEMPLATES.format(name)
    shape = (197, 233, 189)
    voxels = gzip.decompress(path.read_bytes())[-math.prod(shape) :]
    whole = np.frombuffer(voxels, "u1").reshape(shape, order="F")
    return np.ascontiguousarray(whole[40:157, 50:183, 40:149])


def scores(values: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = ((values - values.mean()) / values.std()).astype("f4")
    return found


def mri() -> NDArray[Any]:
    return make_values(SHAPE, "int16")


def z_scored() -> NDArray[Any]:
    return make_values(SHAPE, "float32")


def z_scored_template() -> NDArray[Any]:
    return scores(template("t1").astype("f8"))


def labels() -> NDArray[Any]:
    grey, white = template("gm"), template("wm")
    return np.where(np.maximum(grey, white) < 100, 0, np.where(white > grey, 2, 1)).astype("u1")


def ct() -> NDArray[Any]:
    body = phantom_part(tuple((0, n) for n in SHAPE), shape=SHAPE)
    noise = np.random.default_rng(5).normal(0, 18, SHAPE)
    values = np.where(body > 900, body * 0.9, (body - 450) * 0.25) + noise
    return np.where(body > 0, values, -1024).clip(-1024, 3071).astype("i2")


def continuous() -> NDArray[Any]:
    found: NDArray[Any] = (mri() * np.random.default_rng(0).normal(1, 0.1, SHAPE)).astype("f4")
    return found


def complex_image() -> NDArray[Any]:
    noise = np.random.default_rng(1).normal(0, 8, (2, *SHAPE))
    found: NDArray[Any] = (mri() * np.exp(0.3j) + noise[0] + 1j * noise[1]).astype("c8")
    return found


def series() -> NDArray[Any]:
    first = make_values((24, 48, 48), "int16")
    noise = np.random.default_rng(2).normal(0, 10, (12, *first.shape))
    return np.where(first > 40, first + noise, 0).astype("i2")


def colours() -> NDArray[Any]:
    return np.stack([template(name)[:, :, 54] for name in ("t1", "gm", "wm")], axis=-1)


DATA: dict[str, Callable[[], NDArray[Any]]] = {
    "mri": mri,
    "z_scored": z_scored,
    "z_scored_template": z_scored_template,
    "labels": labels,
    "wide_labels": lambda: labels().astype("i8"),
    "mask": lambda: labels() > 0,
    "template": lambda: template("t1"),
    "probabilities": lambda: (template("gm") / np.float32(255)).astype("f4"),
    "ct": ct,
    "continuous": continuous,
    "doubles": lambda: scores(template("t1").astype("f8")).astype("f8"),
    "complex": complex_image,
    "series": series,
    "colours": colours,
    "noise": lambda: np.random.default_rng(0).standard_normal(SHAPE, np.float32),
    "ramp": lambda: np.arange(math.prod(SHAPE), dtype="i4").reshape(SHAPE),
}


@functools.cache
def data(name: str) -> NDArray[Any]:
    values = DATA[name]()
    values.flags.writeable = False
    return values


def fitted_layout(values: NDArray[Any]) -> Layout:
    """The blocks that the costs were fitted with."""
    return plan_layout(values.shape, values.dtype, strategy="mlarray-0.0.54")


@functools.cache
def chosen(name: str, prefer: Preference = "balanced") -> Codec:
    values = data(name)
    layout = fitted_layout(values)
    return choose_codec(values, prefer=prefer, chunks=layout.chunks, blocks=layout.blocks).codec


@functools.cache
def stored_bytes(name: str, codec: Codec) -> int:
    values = data(name)
    plan = FramePlan(
        shape=values.shape,
        dtype_str=values.dtype.str,
        layout=fitted_layout(values),
        codec=codec,
    )
    box = tuple((0, n) for n in values.shape)
    return sum(len(chunk.data) for chunk in encode_part(values, box, plan))


def against_reference(name: str, codec: Codec) -> tuple[float, float, float]:
    """Return stored size of the whole array, modelled reading and writing against LZ4HC 8."""
    values, sizes = data(name), [stored_bytes(name, c) for c in (codec, DEFAULT_CODEC)]
    reading, reference = (
        decode_cost(c, itemsize=values.itemsize, ratio=values.nbytes / size)
        for c, size in zip((codec, DEFAULT_CODEC), sizes, strict=True)
    )
    return sizes[0] / sizes[1], reading / reference, encode_cost(codec) / encode_cost(DEFAULT_CODEC)


@pytest.mark.parametrize(
    ("name", "expected", "size", "reading", "writing"),
    [
        ("mri", "lz4-9-bitshuffle", 0.82, 1.4, 0.25),
        ("z_scored", "lz4hc-1-none", 0.68, 1.6, 0.25),
        ("z_scored_template", "lz4hc-1-none", 0.7, 1.5, 0.25),
        ("labels", "zstd-1-none", 0.85, 0.8, 0.25),
        ("wide_labels", "zstd-1", 0.85, 1.6, 0.25),
        ("probabilities", "lz4-9-bitshuffle", 0.75, 1.4, 0.25),
        ("template", "lz4-9-none", 1.05, 0.5, 0.25),
    ],
)
def test_balanced_choices_reach_their_bars(
    name: str, expected: str, size: float, reading: float, writing: float
) -> None:
    assert str(chosen(name)) == expected
    found = against_reference(name, chosen(name))
    assert found[0] <= size
    assert found[1] <= reading
    assert found[2] <= writing


@pytest.mark.parametrize("name", DATA)
def test_no_balanced_choice_is_silly(name: str) -> None:
    size, reading, writing = against_reference(name, chosen(name))
    # Chosen on samples, counted on all: a few per cent beyond the rule's own bounds.
    assert size <= 1.12 or reading <= 0.5
    assert reading <= 1.7
    assert writing <= 0.6


@pytest.mark.parametrize("name", ["mri", "labels", "z_scored_template"])
def test_preferences_do_what_they_say(name: str) -> None:
    preferences: tuple[Preference, ...] = ("size", "balanced", "speed")
    found = [against_reference(name, chosen(name, prefer)) for prefer in preferences]
    assert found[0][0] < found[2][0]
    assert found[0][0] <= found[1][0] <= found[2][0]
    assert found[1][1] >= found[2][1]


def test_a_trial_counts_what_a_file_would_store() -> None:
    values = np.arange(40 * 50 * 60, dtype="i2").reshape(40, 50, 60) // 7
    blocks = (8, 16, 32)
    choice = choose_codec(values, chunks=values.shape, blocks=blocks, prefer="size")
    assert len(choice.trials) == 19
    for tried in choice.trials:
        assert tried.nbytes == values.nbytes
        cparams = blosc2.CParams(**tried.codec.cparams(2))
        stored = blosc2.asarray(values, chunks=values.shape, blocks=blocks, cparams=cparams)
        assert tried.stored_bytes == len(stored.schunk.get_chunk(0))


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_and_repeats_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    values = ct()
    expected = choose_codec(values, chunks=32, blocks=16)
    monkeypatch.setattr(trial, "available_threads", lambda: threads)
    assert choose_codec(values, chunks=32, blocks=16) == expected


CHOOSE = """
import json, sys
import numpy as np
from mlarray_xr import choose_codec
values = np.load(sys.argv[1], mmap_mode="r")
print(json.dumps(choose_codec(values, chunks=32, blocks=16).to_json()))
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_other_processes_choose_the_same(tmp_path: Path, hash_seed: str) -> None:
    path = tmp_path / "values.npy"
    np.save(path, ct())
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, str(path)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "BLOSC_NTHREADS": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == choose_codec(ct(), chunks=32, blocks=16).to_json()


def test_the_choice_is_the_rule_over_the_trials() -> None:
    choice = choose_codec(mri(), chunks=32, blocks=16)
    assert choose_codec_from(choice.trials, prefer="balanced") == choice
    tried = {t.codec: t for t in choice.trials}
    assert tried[DEFAULT_CODEC].nbytes == max(t.nbytes for t in choice.trials)
    assert len({t.nbytes for t in choice.trials}) == 2  # some were given up
    assert all(isinstance(t, CodecTrial) and t.itemsize == 2 for t in choice.trials)


class Recorder:
    """An array that notes which boxes of it are read."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        self.boxes: list[Box] = []

    def __call__(self, box: Box) -> NDArray[Any]:
        self.boxes.append(box)
        inside: tuple[Any, ...] = (*(slice(a, b) for a, b in box), ...)
        found: NDArray[Any] = self.values[inside]
        return found

    def choose(self, layout: Layout, *, seed: int = 0) -> CodecChoice:
        return choose_codec_for(
            self, shape=self.values.shape, dtype=self.values.dtype, layout=layout, seed=seed
        )


def test_few_and_small_boxes_are_read() -> None:
    values = np.random.default_rng(0).integers(0, 9, (256, 256, 256), "u1")
    recorder = Recorder(values)
    choice = recorder.choose(Layout(chunks=(128, 128, 128), blocks=(32, 32, 32)))
    assert len(recorder.boxes) == 6
    read = sum(math.prod(b - a for a, b in box) for box in recorder.boxes)
    assert choice.trials[0].nbytes == read <= 3 << 19


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_constant_regions_are_passed_over(seed: int) -> None:
    values = np.full((160, 160, 160), -1024, "i2")
    values[:, :, 96:] = np.random.default_rng(0).normal(0, 99, (160, 160, 64))
    recorder = Recorder(values)
    choice = recorder.choose(Layout(chunks=(32, 32, 32), blocks=(16, 16, 16)), seed=seed)
    assert 6 < len(recorder.boxes) <= 16
    tried = max(t.nbytes for t in choice.trials)
    seen = [recorder(box) for box in list(recorder.boxes)]
    assert tried == sum(part.nbytes for part in seen if np.ptp(part))
    assert tried < sum(part.nbytes for part in seen)


@pytest.mark.parametrize(
    ("values", "codec"),
    [
        (np.zeros((64, 64, 64), "u1"), "zstd-1-none"),
        (np.full((64, 64, 64), 7, "i2"), "zstd-1"),
        (np.full((64, 64, 64), np.nan, "f4"), "zstd-1"),
        (np.zeros((5, 0, 3), "f8"), "zstd-1"),
        (np.array(3.5), "zstd-1"),
        (np.zeros((), "?"), "zstd-1-none"),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_arrays_that_say_nothing_get_a_sensible_codec(values: NDArray[Any], codec: str) -> None:
    choice = choose_codec(values)
    assert str(choice.codec) == codec
    assert choice.trials == ()
    assert ("empty" if values.size == 0 else "one value each") in choice.reason


ODD: dict[str, NDArray[Any]] = {
    "big-endian": np.arange(9**3, dtype=">i2").reshape(9, 9, 9),
    "dates": np.arange(300).astype("M8[s]").reshape(20, 15),
    "strings": np.array([f"name {i % 7}" for i in range(200)]),
    "bytes": np.array([b"abc", b"de", b""] * 50, "S3"),
    "six axes": np.arange(4**6, dtype="u2").reshape((4,) * 6),
    "doubles": np.linspace(0, 1, 200),
    "complex": np.exp(1j * np.linspace(0, 9, 500)),
    "a mask": np.arange(1000).reshape(10, 100) % 3 == 0,
    "two elements": np.array([1, 2], "i4"),
}


@pytest.mark.parametrize("name", ODD)
def test_every_storable_type_gets_a_codec_that_reads_back(tmp_path: Path, name: str) -> None:
    values, path = ODD[name], tmp_path / "odd.mla"
    choice = choose_codec(values)
    assert choice.trials
    to_mla(values, path, codec=choice.codec)
    np.testing.assert_array_equal(MlaArray(path)[...], values)


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<c8"])
@pytest.mark.parametrize("codec", WITH_COSTS, ids=str)
def test_files_of_every_candidate_are_read_by_everybody(
    tmp_path: Path, codec: Codec, dtype: str
) -> None:
    noise = np.random.default_rng(0).normal(0, 3, (40, 40, 40))
    values = (np.arange(40**3).reshape(40, 40, 40) // 900 + noise).astype(dtype, casting="unsafe")
    path = tmp_path / "candidate.mla"
    to_mla(values, path, codec=codec, chunks=(32, 24, 40), blocks=(16, 24, 20))
    for found in (
        blosc2.open(str(path))[...],
        mlarray.MLArray.open(path)[...],
        mlarray.MLArray.load(path)[...],
        MlaArray(path)[...],
    ):
        assert np.asarray(found).tobytes() == values.tobytes()
    part: tuple[slice, ...] = (slice(5, 37), slice(20, 31), slice(1, 39, 3))
    np.testing.assert_array_equal(blosc2.open(str(path))[part[:2]][..., part[2]], values[part])
    np.testing.assert_array_equal(MlaArray(path)[part], values[part])


def test_what_no_file_holds_is_refused() -> None:
    with pytest.raises(ConversionError, match="arrays of type object cannot be written"):
        choose_codec(np.array([{}, None]))
    with pytest.raises(LayoutError, match="elements of 400 bytes cannot be stored"):
        choose_codec(np.array(["x" * 100, "y"]))
    wish: Preference = "small"  # type: ignore[assignment]
    with pytest.raises(LayoutError, match="prefer='small' is not one of"):
        choose_codec(mri(), prefer=wish)


def test_a_source_that_reads_something_else_is_refused() -> None:
    values = np.arange(24**3, dtype="i2").reshape(24, 24, 24)
    layout = Layout(chunks=(24, 24, 24), blocks=(8, 8, 8))
    bad: tuple[Callable[[Box], NDArray[Any]], ...] = (
        lambda box: values.astype("f4"),
        lambda box: values[:-1],
        lambda box: values.reshape(-1),
        lambda box: values.astype(">i2"),
    )
    for read, seed in itertools.product(bad, (0, 1)):
        with pytest.raises(ConversionError, match=r"box \(\(0, 24\), .* of int16 was read as"):
            choose_codec_for(read, shape=values.shape, dtype=values.dtype, layout=layout, seed=seed)


def test_values_of_any_strides_are_tried_alike() -> None:
    values = ct()
    turned = values.transpose(2, 1, 0).copy().transpose(2, 1, 0)
    assert not turned.flags.c_contiguous
    assert choose_codec(turned, chunks=32, blocks=16) == choose_codec(values, chunks=32, blocks=16)


def test_a_choice_is_a_codec_to_write_with(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 60, (40, 40, 40), np.int16)
    choice = choose_codec(values, prefer="size")
    report = to_mla(values, tmp_path / "a.mla", codec=choice)
    assert (report.codec, report.choice) == (choice.codec, choice)
    assert str(choice) in str(report)
