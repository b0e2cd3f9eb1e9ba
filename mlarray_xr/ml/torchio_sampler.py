"""ForegroundSampler: TorchIO patches around foreground, without reading the label map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torchio as tio
from torchio.data.sampler import RandomSampler

from mlarray_xr.ml.torchio_tensor import FileTensor
from mlarray_xr.planning.draw import Draw
from mlarray_xr.planning.foreground import Foreground
from mlarray_xr.planning.foreground_patches import ForegroundPatches

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["ForegroundSampler"]

_SEEDS = 2**63 - 1


class ForegroundSampler(RandomSampler):
    """Draws patches around foreground of a label map that stays in its file.

    `torchio.LabelSampler` reads the whole label map of every subject to know where its labels are.
    This sampler knows from the statistics of the file's chunks, or from one pass over a file
    without, and reads the chunk that it draws from. A patch around foreground at the border is
    moved inside, where `LabelSampler` takes no patch. Chance is torch's: `torch.manual_seed`.

    Parameters
    ----------
    patch_size
        Extents of a patch, one number or three, in the order of the file's axes.
    label_name
        Image of the subject that is sampled; the first label map unless given.
    foreground
        What counts: values above 0, a threshold, classes with weights, a function.
    probability
        Share of the patches that are drawn around foreground; the others lie anywhere.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> from mlarray_xr.ml.torchio import open_image
    >>> labels = np.zeros((40, 40, 40), "uint8")
    >>> labels[20, 3, 30] = 1
    >>> _ = mlarray_xr.to_mla(labels, "labels.mla")
    >>> subject = tio.Subject(labels=open_image("labels.mla", kind=tio.LABEL))
    >>> patch = next(ForegroundSampler(8)(subject))
    >>> patch[tio.LOCATION].tolist(), patch.labels.count_labels()
    ([16, 0, 26, 24, 8, 34], {0: 511, 1: 1})
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int, int],
        label_name: str | None = None,
        *,
        foreground: Foreground | None = None,
        probability: float = 1.0,
    ) -> None:
        super().__init__(patch_size)
        self.label_name = label_name
        self.foreground = Foreground() if foreground is None else foreground
        self.probability = probability

    def _generate_patches(
        self, subject: tio.Subject, num_patches: int | None = None
    ) -> Generator[tio.Subject]:
        """Iterate over patches of a subject, without an end unless a number is given."""
        volume = self._label_map(subject).volume.volume
        space = volume.space
        sampling = ForegroundPatches(
            tuple(map(int, self.patch_size[: space.ndim])),
            foreground=self.foreground,
            probability=self.probability,
        )
        taken = 0
        while num_patches is None or taken < num_patches:
            draw = Draw(seed=int(torch.randint(_SEEDS, ())), epoch=0, index=0)
            place = sampling.place(space, number=0, draw=draw, find=volume.find)
            i, j, k = (*place.start, 0, 0)[:3]
            yield self.extract_patch(subject, (i, j, k))
            taken += 1

    def _label_map(self, subject: tio.Subject) -> FileTensor:
        """Return the tensor of the label map, which nothing may have changed.

        Raises
        ------
        KeyError
            When the subject has no such image.
        ValueError
            When its voxels are not those of a file.
        """
        images = subject.get_images_dict(intensity_only=False)
        labels = [name for name, image in images.items() if image.type == tio.LABEL]
        name = self.label_name or next(iter(labels), None)
        if name is None or name not in images:
            raise KeyError(
                f"{name or 'a label map'} is not among the images {list(images)} of the subject. "
                "To fix: label_name= names one of them"
            )
        tensor = images[name].data
        if not isinstance(tensor, FileTensor):
            raise ValueError(  # noqa: TRY004 - the right type of image, at the wrong time
                f"{name!r} is not as its file has it: a transform changed it, or it was not opened "
                "with open_image. To fix: (1) transform patches instead of whole images; "
                "(2) torchio.LabelSampler, which takes label maps in memory"
            )
        return tensor
