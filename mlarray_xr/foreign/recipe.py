"""Recipe: how images of any format become `.mla` files, and how that is verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlarray_xr.array import MlaArray
from mlarray_xr.dask import has_client
from mlarray_xr.errors import ConversionError, MlaError
from mlarray_xr.foreign.comparison import (
    Comparison,
    find_difference,
    find_streamed_difference,
)
from mlarray_xr.foreign.image import companion_path
from mlarray_xr.foreign.origin import origin_of, plan_step, recorded_origin, with_origin
from mlarray_xr.foreign.packed import PackedArray
from mlarray_xr.foreign.scratch import scratch_folder
from mlarray_xr.foreign.streamed import StreamedArray
from mlarray_xr.planning.write_plan import plan_streamed_parts
from mlarray_xr.prepared import parts_in_flight
from mlarray_xr.storage.publication import check_target
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.foreign.case import Case
    from mlarray_xr.foreign.image import ForeignImage, LazyArray
    from mlarray_xr.foreign.origin import Origin, Step
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.report import WriteReport
    from mlarray_xr.storage.job import Progress

__all__ = ["Recipe", "opened", "share_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How images become `.mla` files, the same for every file of a folder; picklable."""

    patch: Sizes | Literal["default"] | None = "default"
    """Window that will be read most, as in `to_mla`."""
    chunks: Sizes | None = None
    """Extents of a chunk, instead of `patch`."""
    blocks: Sizes | None = None
    """Extents of a block, instead of `patch`."""
    layout: Preset | None = None
    """A pattern of reading series, instead of `patch`."""
    caches: CacheSizes | None = None
    """Of the cores that will read; None are those of the machine that writes."""
    codec: str | Codec = "auto"
    """Compression."""
    dataset: str | None = None
    """Which array, in formats that hold several."""
    verify: bool = False
    """Whether every target is compared with its source."""
    memory_limit: int | None = None
    """Bytes that the parts under way in one process may take."""

    def __post_init__(self) -> None:
        """Refuse to compare what is meant to differ.

        Raises
        ------
        ConversionError
            When the codec is lossy and every bit is to be compared.
        """
        if self.verify and "-trunc" in str(self.codec):
            raise ConversionError(
                f"verify=True compares every bit, and codec {str(self.codec)!r} drops some. "
                "To fix: (1) another codec; (2) verify=False"
            )

    @property
    def request(self) -> str:
        """What was asked of a target besides its source, as text; not the caches it goes by."""
        sizes = [
            sorted(size.items()) if isinstance(size, Mapping) else size
            for size in (self.patch, self.chunks, self.blocks)
        ]
        asked = (sizes, str(self.codec), self.dataset)
        return repr(asked if self.layout is None else (*asked, self.layout))

    def plan(self, case: Case, *, overwrite: bool, resume: bool) -> tuple[Step, Origin]:
        """Decide what happens to a target; returns what it would record, too.

        Raises
        ------
        FileExistsError
            When it exists and may neither be replaced nor left as it is.
        """
        origin = origin_of(case, request=self.request)
        exists = os.path.lexists(case.target)
        found = recorded_origin(case.target) if exists and resume else None
        step = plan_step(origin, found, exists=exists, overwrite=overwrite, resume=resume)
        if step == "refuse":
            why = f", and does not say that it was made of {case.source}" if resume else ""
            raise FileExistsError(
                f"{case.target}: the file exists{why}. To fix: (1) mode='w' (mla convert "
                "--overwrite) replaces it; (2) choose another name"
            )
        return step, origin

    def run(
        self,
        case: Case,
        *,
        overwrite: bool,
        origin: Origin | None = None,
        keeps: bool = False,
        restarts: bool = False,
        progress: Progress | None = None,
    ) -> WriteReport:
        """Convert one image.

        Parameters
        ----------
        case
            What is converted, and to which file.
        overwrite
            Whether an existing target is replaced.
        origin
            Recorded in the target; needed when `keeps`.
        keeps
            Whether what is done outlives a failure, and what an earlier conversion left is used.
        restarts
            Whether what is left of another conversion is thrown away; otherwise it is refused.
        progress
            As in `convert`.
        """
        check_target(case.target, overwrite=overwrite)
        if self.verify and os.path.exists(case.target):
            _check_apart(case)
        with scratch_folder(case.target, origin, keeps=keeps, restarts=restarts) as scratch:
            image = opened(case, scratch_dir=None, dataset=self.dataset)
            metadata = image.metadata if origin is None else with_origin(image.metadata, origin)
            with (
                self._companions(image, case, overwrite=overwrite, origin=origin),
                _taken(image.values, scratch_dir=scratch) as values,
            ):
                report: WriteReport = to_mla(
                    values,
                    case.target,
                    patch=self.patch,
                    chunks=self.chunks,
                    blocks=self.blocks,
                    layout=self.layout,
                    caches=self.caches,
                    codec=self.codec,
                    mode="w" if overwrite else "w-",
                    metadata=metadata,
                    resume=keeps,
                    memory_limit=self.memory_limit,
                    progress=(_first_half(progress) if self.verify else progress) or False,
                )
                if self.verify:
                    n = report.n_chunks
                    compared = share_of(progress, begin=n, length=n, overall=2 * n)
                    self._check_written(values, case, compared)
        return report

    def check(self, case: Case) -> None:
        """Compare a target that was complete already with its source.

        Raises
        ------
        ConversionError
            When they differ.
        """
        with scratch_folder(case.target, None, keeps=False) as scratch:
            image = opened(case, scratch_dir=None, dataset=self.dataset)
            with _taken(image.values, scratch_dir=scratch) as values:
                box = self._difference(values, case, progress=None)
        if box is not None:
            raise ConversionError(
                f"{case.target}: box {box} is not that of {case.source}. To fix: convert it again "
                "with mode='w' (mla convert --overwrite)"
            )

    @contextlib.contextmanager
    def _companions(
        self, image: ForeignImage, case: Case, *, overwrite: bool, origin: Origin | None
    ) -> Iterator[None]:
        """Convert the images that belong to one before it, which tells that all is complete.

        Where the block fails and the target records no source, those that are new are removed.
        """
        made: list[str] = []
        try:
            for name, companion in image.companions.items():
                target = companion_path(case.target, name)
                exists = os.path.lexists(target)
                self._run_companion(companion, target, overwrite=overwrite, origin=origin)
                made += [] if exists else [target]
            yield
        except BaseException:
            for target in made if origin is None else ():
                os.unlink(target)
            raise

    def _run_companion(
        self, image: ForeignImage, target: str, *, overwrite: bool, origin: Origin | None
    ) -> None:
        """Convert an image that belongs to another, in the default layout for its own axes."""
        metadata = image.metadata
        if origin is not None:
            exists = os.path.lexists(target)
            found = recorded_origin(target) if exists else None
            # What a conversion that failed later left is used or replaced, a stranger's refused.
            step = plan_step(origin, found, exists=exists, overwrite=overwrite, resume=True)
            if step == "skip":
                return
            overwrite = overwrite or step == "replace"
            metadata = with_origin(metadata, origin)
        to_mla(
            image.values,
            target,
            caches=self.caches,
            mode="w" if overwrite else "w-",
            metadata=metadata,
            memory_limit=self.memory_limit,
            progress=False,
        )

    def _check_written(
        self, source: LazyArray | StreamedArray, case: Case, progress: Progress | None
    ) -> None:
        """Compare the target just written with its source; remove it when they differ."""
        box = self._difference(source, case, progress=progress)
        if box is not None:
            # Left there it would be taken for complete.
            os.unlink(case.target)
            raise ConversionError(
                f"{case.target}: box {box} is not that of {case.source}, and the file was removed. "
                "To fix: check disk and memory of this machine, and convert again"
            )

    def _difference(
        self, source: LazyArray | StreamedArray, case: Case, *, progress: Progress | None
    ) -> Box | None:
        """Return a box in which the target differs from its source."""
        target = MlaArray(case.target)
        if isinstance(source, StreamedArray):
            slabs = self._slabs(source, target)
            if slabs is not None:
                return find_streamed_difference(source, target, slabs=slabs, progress=progress)
            source = source.unpacked()
        return find_difference(
            Comparison(source=source, target=target, order=tuple(range(target.ndim))),
            chunks=target.chunks,
            memory_limit=self.memory_limit,
            progress=progress,
        )

    def _slabs(self, source: StreamedArray, target: MlaArray) -> Parts | None:
        """Return the slabs in which a packed array is compared; None where boxes do better."""
        if source.is_whole or has_client() or source.shape != target.shape:
            return None
        return plan_streamed_parts(
            source.shape,
            target.chunks,
            itemsize=source.dtype.itemsize,
            in_flight=parts_in_flight(uses_tasks=False),
            axis=source.axis,
            memory_limit=self.memory_limit,
        )


def opened(case: Case, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a source."""
    try:
        return case.format.open_image(case.source, scratch_dir=scratch_dir, dataset=dataset)
    except (MlaError, OSError, MemoryError):
        raise
    except Exception as error:
        # The libraries of the formats raise anything when a file is damaged.
        raise ConversionError(
            f"{case.source}: cannot be read as {case.format.name}: {type(error).__name__}: {error}"
        ) from error


def share_of(
    progress: Progress | None, *, begin: int, length: int, overall: int
) -> Progress | None:
    """Return what tells a callback of the progress of one step among several.

    Parameters
    ----------
    progress
        Called with what is done and the overall count; None is told nothing.
    begin
        What was done before the step.
    length
        What the step adds.
    overall
        What all steps add.

    Examples
    --------
    >>> tell = share_of(print, begin=100, length=50, overall=200)
    >>> tell(1, 2)
    125 200
    """
    if progress is None:
        return None
    tell = progress

    def share(done: int, total: int) -> None:
        tell(begin + length * done // max(1, total), overall)

    return share


@contextlib.contextmanager
def _taken(values: LazyArray, *, scratch_dir: str) -> Iterator[LazyArray | StreamedArray]:
    """Take what is packed in one piece slab after slab, or by way of the scratch folder."""
    if not isinstance(values, PackedArray):
        yield values
        return
    with contextlib.closing(StreamedArray(values.stream, scratch_dir=scratch_dir)) as streamed:
        yield streamed


def _check_apart(case: Case) -> None:
    """Refuse to compare a file with what is no longer there."""
    if os.path.samefile(case.source, case.target):
        raise ConversionError(
            f"{case.target}: it replaces its own source, and verify=True needs that afterwards. "
            "To fix: convert to another name"
        )


def _first_half(progress: Progress | None) -> Progress | None:
    """Return what tells a callback of the chunks written, when each counts again as compared."""
    if progress is None:
        return None
    tell = progress

    def written(done: int, total: int) -> None:
        tell(done, 2 * total)

    return written
