"""Convert a folder of NIfTI files to .mla, several at a time; run it again to resume.

    python convert_folder.py SOURCE TARGET

Without arguments it makes a folder of small volumes and converts that. A target is complete or
absent, so files that exist are done: an interrupted run is resumed by starting it again.
"""

import multiprocessing
import sys
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

import nibabel
import numpy as np

import mlarray_xr
from mlarray_xr.errors import MlaError

PATCH = 64
WORKERS = 2


def convert_one(source: Path, target: Path) -> str:
    """Convert one file; two runs that meet at one target do no harm."""
    try:
        mlarray_xr.convert(source, target, patch=PATCH)
    except FileExistsError:
        return f"{target.name}: made by another run"
    return f"{target.name}: {target.stat().st_size / 1e6:.2f} MB"


def convert_folder(source: Path, target: Path, pool: Executor) -> int:
    """Convert what is missing; return how many files failed."""
    target.mkdir(parents=True, exist_ok=True)
    jobs = {}
    failed = 0
    for path in sorted([*source.glob("*.nii"), *source.glob("*.nii.gz")]):
        done = target / (path.name.removesuffix(".gz").removesuffix(".nii") + ".mla")
        if done.exists():
            print(f"{done.name}: skipped, exists")
        else:
            jobs[pool.submit(convert_one, path, done)] = path
    for job in as_completed(jobs):
        try:
            print(job.result())
        except MlaError as error:
            failed += 1
            print(f"{jobs[job].name}: {error}", file=sys.stderr)
    return failed


def make_folder(source: Path) -> None:
    """Write four small NIfTI volumes."""
    source.mkdir()
    for seed in range(4):
        values = np.random.default_rng(seed).integers(0, 100, (64, 64, 48), np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1])), source / f"{seed}.nii.gz")


def demonstrate(pool: Executor) -> int:
    """Convert a folder, lose one file and convert again."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "nifti", Path(name) / "mla"
        make_folder(source)
        failed = convert_folder(source, target, pool)
        (target / "2.mla").unlink()
        print("once more, with one file missing:")
        return failed + convert_folder(source, target, pool)


def main() -> int:
    # Spawned, not forked: workers need nothing of this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        if len(sys.argv) == 3:
            return convert_folder(Path(sys.argv[1]), Path(sys.argv[2]), pool)
        return demonstrate(pool)


if __name__ == "__main__":
    sys.exit(main())
