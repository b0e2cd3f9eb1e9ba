"""The training examples, for two steps on a corner of the volume that they train on."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nibabel as nib
import pytest

from tests.package_source import ROOT

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("train_*.py"))
SECONDS = 300


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    data = importlib.resources.files("nilearn.datasets").joinpath("data")
    for name in ("t1", "gm"):
        whole: Any = nib.load(str(data / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"))
        nib.save(whole.slicer[60:120, 80:136, 60:108], folder / f"{name}.nii.gz")
    return folder


def test_there_is_one_for_every_library() -> None:
    assert EXAMPLES == ["train_monai.py", "train_torch.py", "train_torchio.py"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_trains_predicts_and_leaves_nothing(
    example: str, volumes: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / example)]
    options = ["--image", str(volumes / "t1.nii.gz"), "--mask", str(volumes / "gm.nii.gz")]
    done = subprocess.run(
        [*command, *options, "--steps", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "patches/s" in done.stdout
    assert not list(tmp_path.iterdir())
