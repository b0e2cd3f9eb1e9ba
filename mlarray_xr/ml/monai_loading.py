"""LoadMlad: `LoadImaged` for `.mla` files, with a region of interest per sample."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.transforms.utility.array import EnsureChannelFirst
from monai.utils.misc import ensure_tuple
from monai.utils.type_conversion import convert_to_tensor

from mlarray_xr.ml.monai_reader import MlaReader

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from monai.config.type_definitions import DtypeLike

__all__ = ["LoadMlad"]


class LoadMlad(MapTransform):
    """Loads `.mla` files named in a sample, all of them in the region that the sample states.

    Only blocks that the region touches are decoded. What comes out is what `LoadImaged` with
    `MlaReader` gives. URLs work, too.

    Parameters
    ----------
    keys
        What names files: a path or URL, or several whose images become channels.
    roi_key
        What holds the region, as `MlaReader` takes it. Samples without it are read as `reader`
        says.
    reader
        How to read.
    dtype
        Type of the result; None keeps the stored one.
    ensure_channel_first
        Whether the channel axis is moved or added to the front.
    allow_missing_keys
        Whether samples may lack some of `keys`.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> for name in ("ct.mla", "liver.mla"):
    ...     _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), name)
    >>> load = LoadMlad(["image", "label"], ensure_channel_first=True)
    >>> sample = load({"image": "ct.mla", "label": "liver.mla", "roi": {"z": (8, 24)}})
    >>> sample["label"].shape
    torch.Size([1, 16, 40, 40])
    """

    def __init__(
        self,
        keys: Hashable | Iterable[Hashable],
        *,
        roi_key: Hashable = "roi",
        reader: MlaReader | None = None,
        dtype: DtypeLike = np.float32,
        ensure_channel_first: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)  # type: ignore[arg-type]
        self.roi_key = roi_key
        self.reader = MlaReader() if reader is None else reader
        self.dtype, self.ensure_channel_first = dtype, ensure_channel_first

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the sample with images in place of names.

        Raises
        ------
        KeyError
            When a key is missing.
        MlaError, OSError, IndexError, ValueError
            As `MlaReader`.
        """
        sample = dict(data)
        reader = replace(self.reader, roi=sample.get(self.roi_key, self.reader.roi))
        for key in self.key_iterator(sample):
            sample[key] = self._loaded(sample[key], reader)
        return sample

    def _loaded(self, names: Any, reader: MlaReader) -> Any:
        """Load one file, or several as channels."""
        values, meta = reader.get_data(reader.read(names))
        meta["filename_or_obj"] = str(ensure_tuple(names)[0])
        voxels = convert_to_tensor(values, dtype=self.dtype)
        image = MetaTensor.ensure_torch_and_prune_meta(voxels, meta)
        return EnsureChannelFirst()(image, meta) if self.ensure_channel_first else image
