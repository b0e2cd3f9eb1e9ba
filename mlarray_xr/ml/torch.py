"""Training with PyTorch: datasets of patches, loaders, and inference window by window.

Install with ``pip install mlarray-xr[torch]``.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401 - what follows needs it, and says it less well
except ImportError as error:
    from mlarray_xr.errors import MissingDependencyError

    msg = "mlarray_xr.ml.torch needs PyTorch. To fix: pip install mlarray-xr[torch]"
    raise MissingDependencyError(msg) from error

from mlarray_xr.ml.aggregator import Aggregator
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.torch_batch import collate_patches
from mlarray_xr.ml.torch_dataset import PatchDataset
from mlarray_xr.ml.torch_inference import predict_volume
from mlarray_xr.ml.torch_loaders import (
    create_inference_dataloader,
    create_segmentation_dataloader,
    create_training_dataloader,
    create_validation_dataloader,
)
from mlarray_xr.ml.torch_sampler import PatchSampler
from mlarray_xr.ml.torch_stream import IterablePatchDataset
from mlarray_xr.planning.foreground import Foreground
from mlarray_xr.planning.foreground_patches import ForegroundPatches
from mlarray_xr.planning.grid_patches import GridPatches
from mlarray_xr.planning.padding import Padding
from mlarray_xr.planning.random_patches import RandomPatches
from mlarray_xr.planning.slices import Slices2D, WholeVolume

__all__ = [
    "Aggregator",
    "Collection",
    "Foreground",
    "ForegroundPatches",
    "GridPatches",
    "IterablePatchDataset",
    "Padding",
    "PatchDataset",
    "PatchSampler",
    "RandomPatches",
    "Slices2D",
    "WholeVolume",
    "collate_patches",
    "create_inference_dataloader",
    "create_segmentation_dataloader",
    "create_training_dataloader",
    "create_validation_dataloader",
    "predict_volume",
]
