"""Train a small MONAI U-Net on patches of a T1 image; a mask of grey matter is to be learned.

    python examples/train_monai.py                         # the MNI template that nilearn brings
    python examples/train_monai.py --image t1.nii.gz --mask gm.nii.gz

The volumes are converted first; `mla convert t1.nii.gz t1.mla --patch 48` does the same in a shell.
Nothing is cached: every patch is read from the compressed files when it is needed.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import torch
from monai.data import DataLoader
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    ScaleIntensityRange,
    ScaleIntensityRanged,
)

import mlarray_xr
from mlarray_xr.ml.monai import AsMetaTensord
from mlarray_xr.ml.torch import (
    Foreground,
    ForegroundPatches,
    PatchDataset,
    PatchSampler,
    predict_volume,
)

PATCH = 48
INTENSITY = {"a_min": 0, "a_max": 255, "b_min": -1, "b_max": 1}


def template(name: str) -> Path:
    """Return a volume of the MNI template in the nilearn package."""
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise SystemExit("nilearn is not installed: give --image and --mask")
    folder = Path(found.origin).parent / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"


def make_loader(files: dict[str, str], *, threshold: float, workers: int) -> DataLoader:
    """Return a loader of augmented patches, half of them around grey matter."""
    keys = ["image", "mask"]
    dataset = PatchDataset(
        {"mni": files},
        sampling=ForegroundPatches(
            PATCH,
            foreground=Foreground(threshold=threshold),
            probability=0.5,
            patches_per_volume=64,
        ),
        image="t1",
        mask="gm",
        transform=Compose(
            [
                AsMetaTensord(keys),
                ScaleIntensityRanged("image", **INTENSITY),
                AsDiscreted("mask", threshold=threshold),
                RandFlipd(keys, prob=0.5, spatial_axis=0),
                RandRotate90d(keys, prob=0.5, spatial_axes=(1, 2)),
                RandGaussianNoised("image", prob=0.5, std=0.05),
            ]
        ),
    )
    # MONAI's own DataLoader: it collates MetaTensors and gives each worker other random numbers.
    return DataLoader(
        dataset,
        batch_size=2,
        sampler=PatchSampler(dataset),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def train(loader: DataLoader, model: UNet, *, steps: int | None, seconds: float) -> list[float]:
    """Train for a number of steps or a time; return the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = DiceCELoss(sigmoid=True)
    losses: list[float] = []
    begin = time.perf_counter()
    while True:
        for batch in loader:  # each round is another epoch, with other patches
            loss = criterion(model(batch["image"]), batch["mask"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            spent = time.perf_counter() - begin
            if len(losses) % 10 == 1:
                rate = len(losses) * loader.batch_size / spent
                print(f"step {len(losses):4}  loss {losses[-1]:.3f}  {rate:5.1f} patches/s")
            if len(losses) == steps or (steps is None and spent > seconds):
                return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=None)
    parser.add_argument("--mask", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=None, help="instead of --seconds")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = {"t1": f"{folder}/t1.mla", "gm": f"{folder}/gm.mla"}
        mlarray_xr.convert(options.image or template("t1"), files["t1"], patch=PATCH)
        mlarray_xr.convert(options.mask or template("gm"), files["gm"], patch=PATCH)
        # Probabilities of grey matter are stored as 0 to 255; a mask of labels as 0 and 1.
        largest = mlarray_xr.MlaArray(files["gm"])[...].max()
        loader = make_loader(files, threshold=largest / 2, workers=options.workers)
        model = UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
        losses = train(loader, model, steps=options.steps, seconds=options.seconds)
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        scale = ScaleIntensityRange(**INTENSITY)
        model.eval()
        report = predict_volume(
            lambda image: model(scale(image)),
            files["t1"],
            f"{folder}/probability.mla",
            patch=PATCH,
            overlap=0.25,
            activation=torch.sigmoid,
        )
        print(report)


if __name__ == "__main__":
    main()
