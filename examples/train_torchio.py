"""Train a small U-Net with TorchIO: a queue of patches around grey matter, then a grid of patches.

    python examples/train_torchio.py                         # the MNI template that nilearn brings
    python examples/train_torchio.py --image t1.nii.gz --mask gm.nii.gz

The volumes are converted first; `mla convert t1.nii.gz t1.mla --patch 48` does the same in a shell.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchio as tio
from torch import nn

import mlarray_xr
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.torchio import ForegroundSampler, subjects_dataset

PATCH = 48
BATCH = 2
REGION = 88


class TinyUNet(nn.Module):
    """Two levels, a few thousand parameters: enough to see the loss fall on a CPU."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = self.block(1, width)
        self.down = self.block(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.leave = self.block(2 * width, width)
        self.head = nn.Conv3d(width, 1, 1)

    @staticmethod
    def block(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(n_in, n_out, 3, padding=1), nn.GroupNorm(1, n_out), nn.ReLU()
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.enter(image)
        coarse = self.down(nn.functional.max_pool3d(fine, 2))
        return self.head(self.leave(torch.cat([fine, self.up(coarse)], 1)))


def template(name: str) -> Path:
    """Return a volume of the MNI template in the nilearn package."""
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise SystemExit("nilearn is not installed: give --image and --mask")
    folder = Path(found.origin).parent / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"


def convert(image: Path, mask: Path, folder: Path) -> Collection:
    """Write image and mask as `.mla` files whose chunks suit the patches."""
    files = {"t1": folder / "t1.mla", "gm": folder / "gm.mla"}
    mlarray_xr.convert(image, files["t1"], patch=PATCH)
    mlarray_xr.convert(mask, folder / "source.mla", patch=PATCH)
    source = mlarray_xr.open_mla(folder / "source.mla")
    # A map of probabilities from 0 to 255, as the template has it, or any labels.
    threshold = 127 if source.max() == 255 else 0
    labels = source.copy(data=(source.values > threshold).astype(np.uint8))
    mlarray_xr.to_mla(labels, files["gm"], patch=PATCH)
    return Collection.from_files({"mni": files})


def scaled(batch: dict) -> torch.Tensor:
    """Return the images of a batch, near 0 and 1."""
    return (batch["t1"][tio.DATA].float() - 100) / 60


def batches(dataset: tio.SubjectsDataset) -> Iterator[dict]:
    """Iterate over batches of patches around grey matter, without an end."""
    queue = tio.Queue(
        dataset,
        max_length=32,
        samples_per_volume=32,
        sampler=ForegroundSampler(PATCH, "gm"),
    )
    while True:
        yield from tio.SubjectsLoader(queue, batch_size=BATCH)


def train(
    dataset: tio.SubjectsDataset, model: nn.Module, *, steps: int | None, seconds: float
) -> None:
    """Train for a number of steps or a time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses: list[float] = []
    begin = time.perf_counter()
    for batch in batches(dataset):
        target = batch["gm"][tio.DATA].float()
        loss = nn.functional.binary_cross_entropy_with_logits(model(scaled(batch)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        spent = time.perf_counter() - begin
        is_last = len(losses) == steps or (steps is None and spent > seconds)
        if len(losses) % 10 == 0 or is_last:
            rate, recent = len(losses) * BATCH / spent, statistics.fmean(losses[-10:])
            print(f"step {len(losses):4}  loss {recent:.3f}  {rate:5.1f} patches/s")
        if is_last:
            break


@torch.no_grad()
def predict(subject: tio.Subject, model: nn.Module) -> torch.Tensor:
    """Predict a subject patch by patch; return the probabilities (1, i, j, k)."""
    sampler = tio.GridSampler(subject, PATCH, patch_overlap=8)
    aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
    model.eval()
    for batch in tio.SubjectsLoader(sampler, batch_size=BATCH):
        aggregator.add_batch(model(scaled(batch)).sigmoid(), batch[tio.LOCATION])
    return aggregator.get_output_tensor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, default=None)
    parser.add_argument("--mask", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=None, help="instead of --seconds")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        collection = convert(
            options.image or template("t1"), options.mask or template("gm"), Path(folder)
        )
        dataset = subjects_dataset(collection, labels=["gm"])
        model = TinyUNet()
        train(dataset, model, steps=options.steps, seconds=options.seconds)
        # A region around the centre, which is all that is read of it.
        subject = tio.CropOrPad(REGION, only_crop=True)(dataset[0])
        predicted, target = predict(subject, model) > 0.5, subject.gm.data > 0
        dice = 2 * (predicted & target).sum() / (predicted.sum() + target.sum())
        print(f"Dice in the middle {subject.spatial_shape}: {dice:.3f}")


if __name__ == "__main__":
    main()
