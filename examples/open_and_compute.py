"""Write a labelled volume, open it lazily, select by position and compute in parts."""

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import mlarray_xr


def make_volume(path: Path) -> None:
    """Write a ball of 80 mm across in a box of 192 mm, voxels of 1 x 1 x 1.5 mm."""
    z, y, x = 1.5 * np.arange(128), 1.0 * np.arange(192), 1.0 * np.arange(192)
    squares = (z[:, None, None] - 96) ** 2 + (y[:, None] - 96) ** 2 + (x - 96) ** 2
    volume = xr.DataArray(
        np.where(squares < 40**2, 1000, 10).astype(np.int16),
        dims=("z", "y", "x"),
        coords={"z": z, "y": y, "x": x},
        attrs={"study": "example"},
    )
    print(mlarray_xr.to_mla(volume, path, patch=64))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ball.mla"
        make_volume(path)

        # Parts are whole chunks of the file; nothing is read yet.
        image = xr.open_dataset(path, engine="mlarray", chunks={}).image
        print("dimensions", dict(image.sizes), "spacing", image.mla.spacing)

        middle = image.sel(z=96, method="nearest")
        print("area of the middle slice", int((middle > 500).sum()), "mm2")

        voxel_mm3 = np.prod(list(image.mla.spacing.values()))
        volume_mm3 = float((image > 500).sum() * voxel_mm3)
        print("volume", round(volume_mm3 / 1000), "ml")

        crop = image.sel(x=slice(56, 136))[:, ::-2]
        print("affine of a crop, every second row, flipped:")
        print(crop.mla.affine)


if __name__ == "__main__":
    main()
