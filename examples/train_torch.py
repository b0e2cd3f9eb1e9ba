"""Train a small U-Net with PyTorch alone: patches of a T1 image, a mask of grey matter to learn.

    python examples/train_torch.py                         # the MNI template that nilearn brings
    python examples/train_torch.py --image t1.nii.gz --mask gm.nii.gz

The volumes are converted first; `mla convert t1.nii.gz t1.mla --patch 48` does the same in a shell.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import mlarray_xr
from mlarray_xr.ml.torch import create_segmentation_dataloader, predict_volume

PATCH = 48


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
            nn.Conv3d(n_in, n_out, 3, padding=1), nn.InstanceNorm3d(n_out), nn.ReLU()
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


def prepared(sample: dict) -> dict:
    """Scale the image of a sample, and make its mask the target."""
    image = sample["image"].float()
    threshold = 0.5 * 255 if sample["mask"].max() > 1 else 0.5
    target = (sample["mask"] > threshold).float()
    return {**sample, "image": (image - 100) / 60, "mask": target}


def train(loader, model: nn.Module, *, steps: int | None, seconds: float) -> list[float]:
    """Train for a number of steps or a time; return the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses: list[float] = []
    begin = time.perf_counter()
    while True:
        for batch in loader:  # each round is another epoch, with other patches
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(batch["image"]), batch["mask"]
            )
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
        loader = create_segmentation_dataloader(
            {"mni": files},
            mask="gm",
            patch_size=PATCH,
            patches_per_volume=40,
            foreground_sampling=0.5,
            batch_size=2,
            num_workers=options.workers,
            transform=prepared,
        )
        model = TinyUNet()
        losses = train(loader, model, steps=options.steps, seconds=options.seconds)
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        model.eval()
        report = predict_volume(
            lambda image: model((image.float() - 100) / 60),
            files["t1"],
            f"{folder}/probability.mla",
            patch=2 * PATCH,
            overlap=0.25,
            activation=torch.sigmoid,
        )
        print(report)


if __name__ == "__main__":
    main()
