"""Aggregator: predictions for overlapping patches become one file, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from mlarray_xr.creation import create
from mlarray_xr.errors import ConversionError
from mlarray_xr.file_write import file_name
from mlarray_xr.ml.overlap_mean import OverlapMean
from mlarray_xr.ml.prediction_metadata import prediction_metadata
from mlarray_xr.ml.prediction_writer import PredictionWriter, result_type
from mlarray_xr.ml.volume import Volume
from mlarray_xr.planning.sizes import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.grid_patches import GridPatches
    from mlarray_xr.planning.patch_weights import Weighting
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.report import WriteReport

__all__ = ["Aggregator"]

_FLOAT32_HOLDS = ("float32", "float16", "int16", "uint16", "int8", "uint8")
"""Results that are as exact as their type with sums in float32."""


class Aggregator:
    """Takes the predictions for the patches of one volume and writes their weighted mean.

    The file appears when the ``with`` block ends without error and every patch has come, or not at
    all. It lies on the grid of the volume, whose geometry, coordinates and metadata it keeps, and
    has the channels first when there are several. Predictions come in the order of the grid, as
    the inference loader gives the patches: what no later one touches is written and forgotten, so
    that memory is that of the rows one patch spans, however many there are.

    Parameters
    ----------
    target
        The file to make, ending in ``.mla``.
    source
        The volume that the patches are of: a path, URL or `Volume`.
    sampling
        How the patches were taken.
    n_channels
        Channels of every prediction.
    weights
        How much a prediction counts within its patch: ``"gaussian"``, ``"hann"`` or ``"uniform"``,
        see `mlarray_xr.planning.patch_weights.axis_weights`.
    argmax
        Whether the result is the label of the channel with the greatest mean, the first of equals.
    dtype
        Type of the result: float32 unless given, and of labels the first of uint8, int16 and int32
        that holds them. Means are rounded to integer types, halves to even.
    subject
        What errors call the volume; its address unless given.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.
    codec, memory_limit
        As of `mlarray_xr.create`. The memory is that of the chunks that are being filled, those of
        all channels that one row of patches touches, and comes on top.

    Raises
    ------
    ConversionError
        When the type cannot hold the result, or the name of the target has another suffix.
    LayoutError
        When patch or overlap do not fit the axes of the volume.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.planning.grid_patches import GridPatches
    >>> _ = mlarray_xr.to_mla(np.arange(6, dtype="int16"), "line.mla", mode="w")
    >>> sampling = GridPatches(4, overlap=0.5)
    >>> with Aggregator("mean.mla", source="line.mla", sampling=sampling) as aggregator:
    ...     aggregator.add([(0, 4)], np.array([[1, 1, 1, 1]]))
    ...     aggregator.add([(2, 6)], np.array([[3, 3, 3, 3]]))
    >>> mlarray_xr.MlaArray("mean.mla")[...].round(2)
    array([1.  , 1.  , 1.04, 2.96, 3.  , 3.  ], dtype=float32)
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        source: str | os.PathLike[str] | Volume,
        sampling: GridPatches,
        n_channels: int = 1,
        weights: Weighting = "gaussian",
        argmax: bool = False,
        dtype: DTypeLike | None = None,
        subject: str | None = None,
        mode: Literal["w-", "w"] = "w-",
        codec: str | Codec | CodecChoice = "auto",
        memory_limit: int | str = "512 MiB",
    ) -> None:
        self._volume = source if isinstance(source, Volume) else Volume(os.fspath(source))
        self._subject = self._volume.address if subject is None else subject
        self._grid = sampling.plan_windows(self._volume.space)
        self._n_channels = whole_number(n_channels, "n_channels", least=1)
        self._weights, self._argmax = weights, argmax
        asked = None if dtype is None else np.dtype(dtype)
        self._dtype = result_type(asked, n_channels=n_channels, argmax=argmax)
        self._target = file_name(target)
        self._writing: dict[str, Any] = {"mode": mode, "codec": codec, "memory_limit": memory_limit}
        self._n_added = 0
        self._mean: OverlapMean | None = None
        self._writer: PredictionWriter | None = None
        self.report: WriteReport | None = None
        """What was written; there when the block has ended well."""

    @property
    def nbytes(self) -> int:
        """Bytes of the sums that are held while the block runs."""
        return 0 if self._mean is None else self._mean.nbytes

    def __enter__(self) -> Self:
        """Claim the target.

        Raises
        ------
        FileExistsError, TargetBusy, ConversionError, LayoutError
            As `mlarray_xr.create`.
        ValueError
            When there are no such weights.
        """
        self._session = self._filled()
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Publish the file if every patch was added, else leave nothing.

        Raises
        ------
        ConversionError
            When patches are missing.
        """
        return self._session.__exit__(kind, error, trace)

    def add(self, box: ArrayLike, prediction: ArrayLike) -> None:
        """Add the prediction for one patch, or for the patches of a batch.

        Parameters
        ----------
        box
            Where the patch lies, (n, 2) start and stop of each axis, as samples have it in
            ``"box"``; of a batch (B, n, 2).
        prediction
            (C, *patch) numbers; of a batch (B, C, *patch). Tensors must be in the memory of the
            CPU. Of padding nothing is kept.

        Raises
        ------
        ConversionError
            When it is not the prediction for the next patch: twice, too early, of another grid or
            shape; or when the type of the result cannot hold the means.
        ValueError
            Outside the ``with`` block, and after means that the type could not hold.
        """
        boxes, predictions = np.asarray(box), np.asarray(prediction)
        if boxes.ndim == 2:
            boxes, predictions = boxes[None], predictions[None]
        n_axes = len(self._grid.shape)
        if predictions.ndim == 0 or boxes.shape != (len(predictions), n_axes, 2):
            msg = (
                f"{self._subject}: boxes of shape {np.shape(box)} for predictions of shape "
                f"{np.shape(prediction)}. To fix: ({n_axes}, 2) for one patch, (B, {n_axes}, 2) "
                "for a batch"
            )
            raise ConversionError(msg)
        for one, values in zip(boxes.tolist(), predictions, strict=True):
            self._add_patch(tuple((start, stop) for start, stop in one), values)

    @contextlib.contextmanager
    def _filled(self) -> Iterator[None]:
        """Make the file while the block runs."""
        volume = self._volume
        # Labels, and one channel alone, need no axis for it.
        channels = () if self._argmax or self._n_channels == 1 else (self._n_channels,)
        metadata = prediction_metadata(
            volume, n_channels=self._n_channels if channels else None, is_seg=self._argmax
        )
        with create(
            self._target,
            shape=(*channels, *volume.space.extents),
            dtype=self._dtype,
            patch=_patch_of(volume),
            metadata=metadata,
            **self._writing,
        ) as out:
            sums = "float32" if self._argmax or self._dtype.name in _FLOAT32_HOLDS else "float64"
            self._mean = OverlapMean(
                self._grid, self._weights, n_channels=self._n_channels, dtype=sums
            )
            self._writer = PredictionWriter(out, argmax=self._argmax, subject=self._subject)
            try:
                yield
                self._check_complete()
            finally:
                self._mean = self._writer = None
        self.report = out.report

    def _add_patch(self, box: Box, values: NDArray[Any]) -> None:
        """Add the prediction for one patch."""
        if self._mean is None or self._writer is None:
            msg = (
                f"{self._target}: not begun, or ended, well or not: it takes no patch. To fix: "
                "with Aggregator(...) as aggregator: ..."
            )
            raise ValueError(msg)
        self._check_turn(box)
        wanted = (self._n_channels, *self._grid.shape)
        if values.shape != wanted or values.dtype.kind not in "biuf":
            msg = (
                f"{self._name(self._n_added)}: a prediction of shape {values.shape} and type "
                f"{values.dtype}, where real numbers of shape {wanted}, channels first, are "
                "needed. To fix: n_channels= as the model has, which must keep extents"
            )
            raise ConversionError(msg)
        try:
            for part, means in self._mean.add(self._n_added, values):
                self._writer.write(part, means)
        except BaseException:
            self._mean = None  # the sums are not what they should be: here it ends
            raise
        self._n_added += 1

    def _check_turn(self, box: Box) -> None:
        """Refuse a patch that is not the next one."""
        due, n_patches = self._n_added, len(self._grid)
        if due < n_patches and box == self._grid[due].box:
            return
        number = self._grid.find(box)
        expected = f"{self._name(due)} is due" if due < n_patches else "all patches were there"
        if number is None:
            found = f"{self._subject}: box {box} is no patch of this grid"
        elif number < due:
            found = f"{self._name(number)} came twice"
        else:
            found = f"{self._name(number)} came too early"
        msg = (
            f"{found}; {expected}. To fix: the patches of one subject, all of them, in the order "
            "of the grid: no shuffle, no filter, the same patch and overlap"
        )
        raise ConversionError(msg)

    def _check_complete(self) -> None:
        """Refuse to publish a file with holes."""
        if self._n_added < len(self._grid):
            msg = (
                f"{self._target} was not written: {self._name(self._n_added)} and those after it "
                "are missing. To fix: add the predictions for all patches of the subject"
            )
            raise ConversionError(msg)

    def _name(self, number: int) -> str:
        """Return what a patch is called in errors."""
        return f"{self._subject}: patch {number} of {len(self._grid)}, box {self._grid[number].box}"


def _patch_of(volume: Volume) -> Sizes | Literal["default"]:
    """Return the patch that a file was written for: its prediction will be read alike."""
    patch = volume.array.metadata.blosc2.patch_size
    if patch is None or len(patch) != len(volume.space.spatial) or 0 in patch:
        return "default"
    return patch
