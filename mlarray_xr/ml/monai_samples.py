"""AsMetaTensord: samples of our datasets as MONAI's dict transforms want them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import MetaKeys, PatchKeys

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["AsMetaTensord"]

_SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""What MONAI reads these as: PyTorch compares and sorts no unsigned type but uint8."""


class AsMetaTensord(MapTransform):
    """Turns image and mask of a sample into `MetaTensor`, each with the affine of the patch.

    It is the first transform for samples of `mlarray_xr.ml.torch.PatchDataset`: the dict transforms
    of MONAI that follow flip, rotate and resample image and mask alike and keep their affines true.
    Voxels are not copied; those of type uint16, uint32 and uint64 become signed, as MONAI reads
    them. ``affine`` leaves the sample: it would be wrong after the next transform. ``box`` stays
    and says which part of the file was read.

    Parameters
    ----------
    keys
        What becomes a `MetaTensor`, channel first.
    space : {"RAS", "LPS"} or None
        What the world axes of the affines are; what the sample says unless given.
    allow_missing_keys
        Whether samples may lack some of `keys`.

    Notes
    -----
    The meta holds ``affine``, ``original_affine``, ``spatial_shape``, ``space``,
    ``original_channel_dim`` (0), ``location`` (first index in the file) and, so that writers find a
    name, the subject as ``filename_or_obj``. A slice of a volume has the affine of its plane.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> from mlarray_xr.ml.torch import PatchDataset, RandomPatches
    >>> from monai.transforms import Compose, RandFlipd
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "ct.mla")
    >>> augment = Compose([AsMetaTensord("image"), RandFlipd("image", prob=1, spatial_axis=0)])
    >>> dataset = PatchDataset(["ct.mla"], sampling=RandomPatches(16), transform=augment)
    >>> dataset[0]["image"].affine[:, 0].tolist()
    [-1.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        keys: Hashable | Iterable[Hashable],
        *,
        space: Literal["RAS", "LPS"] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)  # type: ignore[arg-type]
        self.space = space

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the sample with `MetaTensor` in it.

        Raises
        ------
        KeyError
            When a key is missing, or the affine.
        ConversionError
            When the sample has axes that are not spatial.
        """
        sample = dict(data)
        space = self.space or sample.pop("coord_system", "unknown")
        affine, box = np.asarray(sample.pop("affine")), np.asarray(sample["box"])
        columns = np.asarray(sample.pop("axes"))
        if (columns < 0).any():
            msg = (
                "the image has an axis that is not spatial, such as time, which transforms of "
                "MONAI would take for one. To fix: sampling=Slices2D('time') takes single frames"
            )
            raise ConversionError(msg)
        for key in self.key_iterator(sample):
            voxels = sample[key].to(_SIGNED.get(sample[key].dtype, sample[key].dtype))
            shape = tuple(voxels.shape[1:])
            own = _affine_of(affine, columns)
            sample[key] = MetaTensor(
                voxels,
                meta={
                    str(MetaKeys.AFFINE): own,
                    str(MetaKeys.ORIGINAL_AFFINE): own.copy(),
                    str(MetaKeys.SPATIAL_SHAPE): np.array(shape),
                    str(MetaKeys.SPACE): space,
                    str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0,
                    str(PatchKeys.LOCATION): box[:, 0].copy(),
                    "filename_or_obj": str(sample.get("subject", "")),
                },
            )
        return sample


def _affine_of(affine: NDArray[np.float64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the affine over the axes that a sample has.

    With each axis that was left out goes the world axis that it runs along, which is exact where
    they are aligned and MONAI's own way (`SqueezeDimd`) otherwise.
    """
    affine = affine.astype(np.float64)  # a copy: image and mask change theirs apart
    left_out = [axis for axis in range(len(affine) - 1) if axis not in columns]
    for axis in left_out[::-1]:
        row = int(np.abs(affine[:-1, axis]).argmax())
        affine = np.delete(np.delete(affine, row, axis=0), axis, axis=1)
    return affine
