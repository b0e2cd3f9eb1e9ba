"""TorchIO: lazy images of `.mla` files, of which samplers and crops read the patch alone.

Install with ``pip install mlarray-xr[torchio]``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mlarray_xr.errors import MissingDependencyError

try:
    import torchio as tio
except ImportError as error:
    msg = "mlarray_xr.ml.torchio needs TorchIO. To fix: pip install mlarray-xr[torchio]"
    raise MissingDependencyError(msg) from error

from mlarray_xr.ml.subject_record import SUBJECT, absolute_address, named_errors
from mlarray_xr.ml.torchio_sampler import ForegroundSampler
from mlarray_xr.ml.torchio_tensor import FileTensor
from mlarray_xr.ml.torchio_volume import ImageVolume, Values
from mlarray_xr.planning.foreground import Foreground
from mlarray_xr.storage.address import is_url

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.ml.collection import Collection
    from mlarray_xr.ml.subject_record import SubjectRecord
    from mlarray_xr.ml.volume import Channel

__all__ = [
    "FileTensor",
    "Foreground",
    "ForegroundSampler",
    "open_image",
    "read_mla",
    "subjects_dataset",
]

Kind: TypeAlias = Literal["auto", "intensity", "label", "sampling_map"]
"""What TorchIO has an image for: `torchio.INTENSITY`, `torchio.LABEL`, `torchio.SAMPLING_MAP`."""

_CLASSES: dict[str, Callable[..., tio.Image]] = {
    tio.INTENSITY: tio.ScalarImage,
    tio.LABEL: tio.LabelMap,
    tio.SAMPLING_MAP: partial(tio.Image, type=tio.SAMPLING_MAP),
}
_OPENING_THREADS = 16


def open_image(
    path: str | os.PathLike[str],
    *,
    kind: Kind = "auto",
    channel: Channel = "auto",
    values: Values = "stored",
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tio.Image:
    """Open a file as a TorchIO image that reads what is taken from it.

    Shape, affine, spacing and orientation come from the header. Samplers, `torchio.Crop` and slices
    read the patch; what needs every voxel reads the file, once. Spatial axes are those of the
    array, in its order and as they lie: nothing is transposed, and the affine, whose columns have
    the same order, says where they point. Axes that the file lacks follow with extent 1.

    Parameters
    ----------
    path
        A path or URL.
    kind
        ``"auto"`` makes a `torchio.LabelMap` of files that say that they are a segmentation, a
        `torchio.ScalarImage` of others.
    channel
        The axis of the channels, by name or number; None when there is none. ``"auto"`` takes the
        one named ``channel`` or ``component``, else the only one that is not spatial, such as time.
    values
        ``"stored"``: the numbers in the file, in their type; bool, uint16 and uint32 become uint8,
        int32 and int64, as TorchIO has it. ``"scaled"``: with slope and intercept of NIfTI and
        DICOM applied, float32, as TorchIO reads such files.
    threads
        Threads of one read, see `mlarray_xr.MlaArray`.
    storage_options
        How to get at a URL, see `mlarray_xr.MlaArray`. Images of URLs have no `path`.

    Returns
    -------
    torchio.Image
        Copies and pickles of it hold the address until it is read whole.

    Raises
    ------
    FileNotFoundError, FormatError, SourceError
        As `mlarray_xr.MlaArray`.
    ConversionError
        When the array has more axes than TorchIO, or elements that torch does not know.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((90, 80, 70), "int16"), "ct.mla")
    >>> image = open_image("ct.mla")
    >>> image.shape, image[10:20, 30:40, 50:60].shape
    ((1, 90, 80, 70), (1, 10, 10, 10))
    >>> image.data.is_read
    False
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: choose one of {get_args(Kind)}")
    address = absolute_address(path)
    read = partial(
        read_mla, channel=channel, values=values, threads=threads, storage_options=storage_options
    )
    tensor, affine = read(address)
    if kind == "auto":
        kind = "label" if tensor.volume.is_segmentation else "intensity"
    # TorchIO looks for a local file behind every path, also when it makes a patch.
    return _CLASSES[kind](
        path=None if is_url(address) else address, tensor=tensor, affine=affine, reader=read
    )


def read_mla(
    path: str | os.PathLike[str],
    *,
    channel: Channel = "auto",
    values: Values = "stored",
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[FileTensor, NDArray[np.float64]]:
    """Read a file as ``torchio.ScalarImage(path, reader=read_mla)`` asks for it, without voxels.

    Parameters
    ----------
    path, channel, values, threads, storage_options
        As `open_image`.

    Returns
    -------
    tensor : FileTensor
        (channels, i, j, k); it reads what is taken from it.
    affine : numpy.ndarray
        4 x 4, index to world, in RAS where the file says RAS or LPS.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((9, 8, 7), "int16"), "mr.mla")
    >>> tio.ScalarImage("mr.mla", reader=read_mla).spatial_shape
    (9, 8, 7)
    """
    volume = ImageVolume.open(
        path, channel=channel, values=values, threads=threads, storage_options=storage_options
    )
    return FileTensor(volume), volume.affine


def subjects_dataset(
    collection: Collection,
    *,
    images: Sequence[str] | None = None,
    labels: Sequence[str] = (),
    transform: Callable[[tio.Subject], tio.Subject] | None = None,
    channel: Channel = "auto",
    values: Values = "stored",
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tio.SubjectsDataset:
    """Make a TorchIO dataset of a collection, one lazy subject per subject.

    Every `torchio.Subject` holds the images under the names of their modalities, the name of the
    subject as ``subject``, and the labels that the collection has for it. Headers are read now,
    several at a time, voxels when they are sampled.

    Parameters
    ----------
    collection
        The subjects.
    images
        Modalities that become images, by `open_image`; all that are not in `labels` unless given.
    labels
        Modalities that become a `torchio.LabelMap`; others do when their files say so.
    transform
        Applied to every subject as it is taken from the dataset. What changes voxels reads whole
        files: transform patches, where that is possible.
    channel, values, threads, storage_options
        As `open_image`. Label maps are never scaled.

    Raises
    ------
    ConversionError
        When a subject lacks one of the modalities, or TorchIO cannot hold a file.
    ValueError
        When two things would have one name, or TorchIO has that name for something else.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.collection import Collection
    >>> _ = mlarray_xr.to_mla(np.zeros((40, 40, 40), "int16"), "p1_t1.mla")
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "uint8"), "p1_seg.mla")
    >>> collection = Collection.from_files({"p1": {"t1": "p1_t1.mla", "seg": "p1_seg.mla"}})
    >>> dataset = subjects_dataset(collection, labels=["seg"])
    >>> queue = tio.Queue(
    ...     dataset, max_length=8, samples_per_volume=4, sampler=tio.UniformSampler(16)
    ... )
    >>> (batch,) = tio.SubjectsLoader(queue, batch_size=4)
    >>> batch["t1"]["data"].shape, batch["seg"]["data"].dtype, batch["subject"]
    (torch.Size([4, 1, 16, 16, 16]), torch.uint8, ['p1', 'p1', 'p1', 'p1'])
    """
    chosen = partial(open_image, channel=channel, threads=threads, storage_options=storage_options)
    make = partial(
        _subject,
        images=images,
        labels=labels,
        open_one=partial(chosen, values=values),
        open_label=partial(chosen, kind="label"),
    )
    with ThreadPoolExecutor(_OPENING_THREADS) as pool:
        subjects = list(pool.map(make, collection.records))
    return tio.SubjectsDataset(subjects, transform=transform)


def _subject(
    record: SubjectRecord,
    *,
    images: Sequence[str] | None,
    labels: Sequence[str],
    open_one: Callable[[str], tio.Image],
    open_label: Callable[[str], tio.Image],
) -> tio.Subject:
    """Open the images of one subject."""
    if images is None:
        images = [modality for modality in record.files if modality not in labels]
    ways = [*((name, open_one) for name in images), *((name, open_label) for name in labels)]
    names = [*(name for name, _ in ways), *record.labels, SUBJECT]
    taken = [name for name in names if hasattr(tio.Subject, name) or names.count(name) > 1]
    if taken:
        raise ValueError(
            f"subject {record.subject!r} cannot hold {taken[0]!r}: TorchIO or another image or "
            "label has that name. To fix: give the modality or the column another name"
        )
    items = {}
    for name, opened in ways:
        file = record.file(name)
        with named_errors(record.subject, name, file):
            items[name] = opened(file)
    return tio.Subject({**items, **record.labels, SUBJECT: record.subject})
