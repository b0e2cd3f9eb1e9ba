"""Volumes predicted patch by patch: against what the model gives of the whole."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError, MlaError
from mlarray_xr.ml.aggregator import Aggregator
from mlarray_xr.ml.subject_record import SubjectRecord
from mlarray_xr.ml.torch import create_inference_dataloader, predict_volume
from mlarray_xr.ml.volume import Volume
from mlarray_xr.planning.padding import Padding
from tests.prediction_kit import SAMPLING, SHAPE, VALUES, WEIGHTINGS, labelled, read, written

if TYPE_CHECKING:
    from mlarray_xr.planning.patch_weights import Weighting

N_PATCHES = 32


def identity(batch: Any) -> Any:
    return batch


@settings(max_examples=15)
@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    patch=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    weights=st.sampled_from(WEIGHTINGS),
)
def test_a_model_that_repeats_its_input_gives_the_volume_back(
    shape: tuple[int, ...], patch: int, batch_size: int, weights: Weighting
) -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, shape, np.int32)
    with tempfile.TemporaryDirectory() as folder:
        source, target = written(Path(folder), values), Path(folder, "target.mla")
        report = predict_volume(
            identity,
            source,
            target,
            patch=(patch,) * len(shape),
            overlap=0.5,
            weights=weights,
            batch_size=batch_size,
            input_dtype="float64",
            dtype="int32",
        )
        assert (report.path, report.shape) == (str(target), shape)
        np.testing.assert_array_equal(read(target), values)


def test_a_model_without_context_gives_what_it_gives_of_the_whole(tmp_path: Path) -> None:
    values = labelled(VALUES, dims=("y", "x", "channel"))
    source, target = written(tmp_path, values), tmp_path / "target.mla"
    model = torch.nn.Conv2d(9, 4, kernel_size=1, dtype=torch.float64)
    done = []
    predict_volume(
        model,
        Volume(str(source)),
        target,
        patch=6,
        batch_size=3,
        activation=torch.sigmoid,
        input_dtype="float64",
        dtype="float64",
        progress=lambda n, total: done.append((n, total)),
    )
    whole = torch.from_numpy(np.moveaxis(VALUES, -1, 0).astype("f8"))
    expected = torch.sigmoid(model(whole[None]))[0].detach().numpy()
    np.testing.assert_allclose(read(target), expected, rtol=1e-9, atol=1e-12)
    assert done == [(n, 30) for n in range(3, 31, 3)]


def test_labels_by_a_model(tmp_path: Path) -> None:
    source, target = written(tmp_path, VALUES), tmp_path / "target.mla"
    predict_volume(
        lambda batch: torch.cat([batch * 0, batch], dim=1).to(torch.bfloat16),
        str(source),
        target,
        patch=100,
        argmax=True,
    )
    np.testing.assert_array_equal(read(target), VALUES > 0)


def test_padding_is_shown_to_the_model_and_cut_off(tmp_path: Path) -> None:
    source, target = written(tmp_path, np.ones((3, 4), "u1")), tmp_path / "target.mla"
    shown = []

    def model(batch: Any) -> Any:
        shown.append(batch.clone())
        return batch

    predict_volume(
        model,
        str(source),
        target,
        patch=6,
        padding=Padding(value=7),
    )
    assert shown[0].shape == (1, 1, 6, 6)
    assert (shown[0] == 7).sum() == 36 - 12
    np.testing.assert_array_equal(read(target), np.ones((3, 4)))


class Watching(torch.nn.Module):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Dropout().eval()
        self.dropout = torch.nn.Dropout(0.9)
        self.seen: list[Any] = []

    def forward(self, batch: Any) -> Any:
        self.seen.append((self.training, torch.is_inference_mode_enabled(), batch.data_ptr()))
        return self.dropout(batch)


def test_a_module_is_evaluated_and_comes_back_as_it_was(tmp_path: Path) -> None:
    source, model = written(tmp_path, VALUES), Watching()
    for overlap, error in ((0.5, None), (2.0, LayoutError)):
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        with expected:
            predict_volume(
                model, source, tmp_path / "target.mla", patch=8, overlap=overlap, mode="w"
            )
        assert (model.training, model.dropout.training, model.frozen.training) == (1, 1, 0)
    np.testing.assert_allclose(read(tmp_path / "target.mla"), VALUES, rtol=1e-6)
    training, inferring, addresses = zip(*model.seen, strict=True)
    assert (set(training), set(inferring)) == ({False}, {True})
    assert len(set(addresses)) == 2  # memory is used again


def test_the_next_batch_is_read_while_the_model_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path, VALUES)
    begun = threading.Semaphore(0)
    original = Volume.read

    def noted(volume: Volume, *args: Any, **options: Any) -> None:
        begun.release()
        original(volume, *args, **options)

    monkeypatch.setattr(Volume, "read", noted)
    left = N_PATCHES

    def model(batch: Any) -> Any:
        nonlocal left
        left -= 1
        assert begun.acquire(timeout=30)
        if left:  # what comes next is on its way before this returns
            assert begun.acquire(timeout=30)
            begun.release()
        return batch

    predict_volume(model, source, tmp_path / "target.mla", patch=8, batch_size=1)
    assert left == 0


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda batch: (batch, batch), "returned tuple"),
        (lambda batch: batch[0, 0], r"returned \(8, 8, 8\) for a batch of 4 patches \(8, 8, 8\)"),
        (lambda batch: batch[..., :4], r"patch 0 of 32, .* shape \(1, 8, 8, 4\)"),
        (lambda batch: batch[:2], "boxes of shape"),
    ],
)
def test_models_that_return_something_else(tmp_path: Path, model: Any, found: str) -> None:
    source = written(tmp_path, VALUES)
    with pytest.raises(ConversionError, match=found):
        predict_volume(model, source, tmp_path / "target.mla", patch=8)
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


def test_errors_of_model_and_file_leave_nothing(tmp_path: Path) -> None:
    source = written(tmp_path, VALUES)
    calls: list[None] = []

    def failing(batch: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return batch

    with pytest.raises(RuntimeError, match="out of memory"):
        predict_volume(failing, source, tmp_path / "target.mla", patch=8)

    def replacing(batch: Any) -> Any:
        written(tmp_path, VALUES + 1)
        return batch

    with pytest.raises(MlaError, match=r"^subject '.*source.mla', .*, box \(\("):
        predict_volume(replacing, source, tmp_path / "target.mla", patch=8, batch_size=1)
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


def test_a_model_does_not_work_for_a_target_that_cannot_be(tmp_path: Path) -> None:
    source = written(tmp_path, VALUES)

    def model(batch: Any) -> Any:
        pytest.fail(f"called for {batch.shape}")

    with pytest.raises(FileExistsError):
        predict_volume(model, source, source, patch=8)
    with pytest.raises(ConversionError, match="must end in"):
        predict_volume(model, source, tmp_path / "target.nii", patch=8)
    wrong: dict[str, Any]
    for wrong in ({"batch_size": 0}, {"overlap": 9}, {"patch": (8, 8)}):
        options: dict[str, Any] = {"patch": 8, **wrong}
        with pytest.raises(LayoutError):
            predict_volume(model, source, tmp_path / "target.mla", **options)
    with pytest.raises(FileNotFoundError):
        predict_volume(model, tmp_path / "none.mla", tmp_path / "target.mla", patch=8)


def test_modalities_of_a_subject_are_the_channels(tmp_path: Path) -> None:
    files = {}
    for number, name in enumerate(("t1", "t2", "short", "long")):
        shape = {"short": (20, 17, 8), "long": (3, *SHAPE)}.get(name, SHAPE)
        values = np.full(shape, number, "u1")
        dims = ("time", "z", "y", "x")[4 - len(shape) :]
        files[name] = str(tmp_path / f"{name}.mla")
        mlarray_xr.to_mla(xr.DataArray(values, dims=dims), files[name])
    record = SubjectRecord(subject="sub-07", files=files, labels={})

    def predict(**options: Any) -> Any:
        return predict_volume(
            identity, record, tmp_path / "target.mla", patch=8, mode="w", **options
        )

    assert predict(image=("t2", "t1")).shape == (2, *SHAPE)
    found = read(tmp_path / "target.mla")
    np.testing.assert_allclose(found, np.stack([np.ones(SHAPE), np.zeros(SHAPE)]), atol=1e-6)
    assert predict(image="t2").shape == SHAPE
    with pytest.raises(LayoutError, match=r"'sub-07' has .* image= says"):
        predict()
    with pytest.raises(MlaError, match="sub-07"):
        predict(image=("t1", "short"))
    with pytest.raises(LayoutError, match=r"'sub-07': 'long' has .*'time': 3"):
        predict(image=("t1", "long"))


def test_the_batches_of_an_inference_loader_go_into_an_aggregator(tmp_path: Path) -> None:
    source, target = written(tmp_path, VALUES), tmp_path / "target.mla"
    loader = create_inference_dataloader(
        [str(source)], patch_size=8, overlap=0.5, batch_size=5, num_workers=0
    )
    with Aggregator(target, source=str(source), sampling=SAMPLING, dtype="int16") as aggregator:
        for batch in loader:
            aggregator.add(batch["box"], batch["image"])
    np.testing.assert_array_equal(read(target), VALUES)
