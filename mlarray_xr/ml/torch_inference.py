"""predict_volume: a model over a whole volume, patch by patch, into a new file."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import torch

from mlarray_xr.errors import ConversionError
from mlarray_xr.file_write import file_name
from mlarray_xr.ml.aggregator import Aggregator
from mlarray_xr.ml.inference_source import inference_source
from mlarray_xr.planning.grid_patches import GridPatches
from mlarray_xr.planning.padding import Padding
from mlarray_xr.planning.sizes import whole_number
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.publication import check_target

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.ml.inference_source import InferenceSource
    from mlarray_xr.ml.subject_record import SubjectRecord
    from mlarray_xr.ml.volume import Channel, Volume
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.grid_patches import Overlap, PatchGrid
    from mlarray_xr.planning.patch_place import PatchPlace
    from mlarray_xr.planning.patch_weights import Weighting
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.progress import Shown
    from mlarray_xr.report import WriteReport

__all__ = ["predict_volume"]

Model: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""(B, C, *patch) to (B, C_out, *patch)."""


def predict_volume(
    model: Model,
    volume: str | os.PathLike[str] | Volume | SubjectRecord,
    target: str | os.PathLike[str],
    *,
    patch: Sizes,
    overlap: Overlap = 0.5,
    weights: Weighting = "gaussian",
    batch_size: int = 4,
    image: str | Sequence[str] | None = None,
    channel: Channel = "auto",
    padding: Padding | None = None,
    input_dtype: DTypeLike = "float32",
    device: str | torch.device | None = None,
    activation: Model | None = None,
    argmax: bool = False,
    dtype: DTypeLike | None = None,
    mode: Literal["w-", "w"] = "w-",
    codec: str | Codec = "auto",
    memory_limit: int | str = "512 MiB",
    progress: Shown = None,
    storage_options: Mapping[str, Any] | None = None,
) -> WriteReport:
    """Predict a volume with a sliding window, and write the weighted mean to a new file.

    While the model works on a batch, a thread reads the next one. Neither the volume nor the
    result is ever in memory as a whole: see `mlarray_xr.ml.aggregator.Aggregator`.

    Parameters
    ----------
    model
        A module, or any function of tensors: (B, C, *patch) to (B, C_out, *patch). It runs in
        ``torch.inference_mode``, a module in evaluation mode. Batches are memory that is used
        again: what is kept of them must be copied.
    volume
        A path or URL, a `Volume`, or a subject of a `Collection`.
    target
        The file to make, ending in ``.mla``.
    patch, overlap
        As of `GridPatches`.
    weights
        As of `Aggregator`.
    batch_size
        Patches per call of the model.
    image
        Modalities of a subject whose channels, one after another, are the input; the only one
        unless given.
    channel
        The axis of channels, see `Volume`; of a `Volume` its own.
    padding
        What surrounds a volume that is smaller than the patch.
    input_dtype
        Type of the batches.
    device
        Where the model is; that of its first parameter unless given, else the CPU.
    activation
        What is done with the output before means are taken, such as ``torch.sigmoid``.
    argmax, dtype, mode, codec, memory_limit
        As of `Aggregator`.
    progress
        Called with the number of patches done and of all patches after each batch; True, False and
        None as in `mlarray_xr.to_mla`.
    storage_options
        How to get at a URL; of a `Volume` its own.

    Returns
    -------
    WriteReport
        What was written.

    Raises
    ------
    ConversionError
        When the model returns something else than one tensor of the same extents per patch, or
        the type of the result cannot hold it.
    LayoutError
        When patch, overlap or modalities do not fit the volume.
    FileExistsError
        When the target exists and `mode` is ``"w-"``.
    MlaError, OSError
        When the volume cannot be read, or the target not be written.

    Examples
    --------
    >>> import numpy as np, mlarray_xr, torch
    >>> _ = mlarray_xr.to_mla(np.full((20, 30, 30), 7, "int16"), "whole.mla", mode="w")
    >>> model = torch.nn.Conv3d(1, 3, kernel_size=3, padding=1)
    >>> report = predict_volume(model, "whole.mla", "labels.mla", patch=16, argmax=True)
    >>> report.shape, report.dtype
    ((20, 30, 30), 'uint8')
    """
    # Before the model works in vain.
    check_target(file_name(target), overwrite=mode == "w")
    source = inference_source(
        volume,
        image=image,
        channel=channel,
        padding=Padding() if padding is None else padding,
        storage_options=storage_options,
    )
    sampling = GridPatches(patch, overlap=overlap)
    predictions = _predictions(
        model,
        source,
        sampling.plan_windows(source.volumes.space),
        batch_size=whole_number(batch_size, "batch_size", least=1),
        dtype=np.dtype(input_dtype),
        device=_device(model) if device is None else torch.device(device),
        activation=activation,
    )
    aggregator = partial(
        Aggregator,
        target,
        source=source.first,
        sampling=sampling,
        weights=weights,
        argmax=argmax,
        dtype=dtype,
        subject=source.volumes.subject,
        mode=mode,
        codec=codec,
        memory_limit=memory_limit,
    )
    with _evaluating(model), contextlib.closing(predictions):
        return _put_together(predictions, aggregator, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    """What a model says of one batch."""

    places: Sequence[PatchPlace]
    """Where the patches lie."""
    values: NDArray[Any]
    """(B, C_out, *patch)."""
    done: int
    """Patches done with these."""
    total: int
    """All patches."""


def _put_together(
    predictions: Iterator[_Prediction],
    make: Callable[..., Aggregator],
    progress: Shown,
) -> WriteReport:
    """Write the mean of predictions, the first of which tells how many channels there are."""
    first = next(predictions)
    with (
        shown_progress(progress, unit="patch") as tell,
        make(n_channels=first.values.shape[1]) as aggregator,
    ):
        for each in itertools.chain([first], predictions):
            aggregator.add([place.box for place in each.places], each.values)
            if tell is not None:
                tell(each.done, each.total)
    return cast("WriteReport", aggregator.report)


def _predictions(
    model: Model,
    source: InferenceSource,
    grid: PatchGrid,
    *,
    batch_size: int,
    dtype: np.dtype[Any],
    device: torch.device,
    activation: Model | None,
) -> Generator[_Prediction]:
    """Yield predictions batch by batch; the memory is used again after each."""
    shape = (min(batch_size, len(grid)), source.n_channels, *grid.shape)
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    # Copies to a GPU are fast from pinned memory only.
    buffers = [torch.empty(shape, dtype=kind, pin_memory=device.type == "cuda") for _ in range(2)]
    done = 0
    with contextlib.closing(_read_ahead(source, grid, buffers)) as batches:
        for places, batch in batches:
            with torch.inference_mode():
                output = model(batch.to(device, non_blocking=True))
                if activation is not None:
                    output = activation(output)
            done += len(places)
            values = _as_numpy(output, places)
            yield _Prediction(places=places, values=values, done=done, total=len(grid))


def _read_ahead(
    source: InferenceSource, grid: PatchGrid, buffers: Sequence[torch.Tensor]
) -> Generator[tuple[list[PatchPlace], torch.Tensor]]:
    """Yield batches; while one is used a thread reads the next into the other buffer."""
    batch_size = len(buffers[0])
    with ThreadPoolExecutor(1, thread_name_prefix="mlarray_xr-read-ahead") as reader:
        waiting: tuple[list[PatchPlace], Future[torch.Tensor]] | None = None
        for turn, first in enumerate(range(0, len(grid), batch_size)):
            numbers = range(first, min(first + batch_size, len(grid)))
            places = [grid[number] for number in numbers]
            reading = reader.submit(_read, source, places, buffers[turn % 2])
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = places, reading
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _read(
    source: InferenceSource, places: Sequence[PatchPlace], buffer: torch.Tensor
) -> torch.Tensor:
    """Read patches into a buffer, and return the part of it that they fill."""
    batch = buffer[: len(places)]
    source.read(places, batch.numpy())
    return batch


def _as_numpy(output: object, places: Sequence[PatchPlace]) -> NDArray[Any]:
    """Return the output of a model as an array in memory."""
    patch = places[0].shape
    if not isinstance(output, torch.Tensor) or output.ndim != 2 + len(patch):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        msg = (
            f"the model returned {found} for a batch of {len(places)} patches {patch}; a tensor "
            f"(B, C, *patch) is needed. To fix: a function that takes it out of the output"
        )
        raise ConversionError(msg)
    # NumPy has no bfloat16.
    values: NDArray[Any] = (
        (output.float() if output.dtype == torch.bfloat16 else output).cpu().numpy()
    )
    return values


def _device(model: Model) -> torch.device:
    """Return where a model is."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Put a module into evaluation mode while the block runs."""
    training = []
    if isinstance(model, torch.nn.Module):
        training = [part for part in model.modules() if part.training]
        model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
