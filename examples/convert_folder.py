"""Convert a folder of scans to .mla; what is damaged is named, and running it again goes on.

    python convert_folder.py SOURCE TARGET

Without arguments it makes a folder of small scans, one of them damaged, and converts that. The same
on the command line, with four processes: mla convert SOURCE TARGET --resume --scheduler local:4
"""

import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from mlarray_xr import convert_folder

PATCH = 64


def make_folder(source: Path) -> None:
    """Write three small scans and one of which the end is missing."""
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 100, (64, 64, 48), np.int16)
        scan = nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1]))
        (source / f"sub-{number}").mkdir(parents=True)
        nibabel.save(scan, source / f"sub-{number}" / "t1.nii.gz")
    whole = source / "sub-3" / "t1.nii.gz"
    whole.write_bytes(whole.read_bytes()[:10_000])


def show(done: int, total: int) -> None:
    """Tell how many bytes of the sources are done."""
    print(f"{100 * done // total:3} %", file=sys.stderr)


def demonstrate() -> int:
    """Convert a folder, replace the damaged scan and convert again."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "raw", Path(name) / "mla"
        make_folder(source)
        print(convert_folder(source, target, patch=PATCH, verify=True))
        (source / "sub-3" / "t1.nii.gz").write_bytes((source / "sub-0" / "t1.nii.gz").read_bytes())
        print("once more, with a sound copy:")
        report = convert_folder(source, target, patch=PATCH, verify=True)
        print(report)
        return len(report.failed)


def main() -> int:
    if len(sys.argv) != 3:
        return demonstrate()
    report = convert_folder(sys.argv[1], sys.argv[2], patch=PATCH, progress=show)
    print(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
