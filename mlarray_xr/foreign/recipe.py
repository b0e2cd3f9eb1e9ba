"""Recipe: how images of any format become `.mla` files, and how that is verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError, MlaError
from mlarray_xr.foreign.comparison import Comparison, find_difference
from mlarray_xr.foreign.origin import origin_of, plan_step, recorded_origin, with_origin
from mlarray_xr.foreign.scratch import scratch_folder
from mlarray_xr.storage.publication import check_target
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from mlarray_xr.foreign.case import Case
    from mlarray_xr.foreign.image import ForeignImage, LazyArray
    from mlarray_xr.foreign.origin import Origin, Step
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.sizes import Sizes
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
            image = opened(case, scratch_dir=scratch, dataset=self.dataset)
            metadata = image.metadata if origin is None else with_origin(image.metadata, origin)
            report: WriteReport = to_mla(
                image.values,
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
                progress=_first_half(progress) if self.verify else progress,
            )
            if self.verify:
                n = report.n_chunks
                compared = share_of(progress, begin=n, length=n, overall=2 * n)
                self._check_written(image.values, case, compared)
        return report

    def check(self, case: Case) -> None:
        """Compare a target that was complete already with its source.

        Raises
        ------
        ConversionError
            When they differ.
        """
        with scratch_folder(case.target, None, keeps=False) as scratch:
            image = opened(case, scratch_dir=scratch, dataset=self.dataset)
            box = self._difference(image.values, case, progress=None)
        if box is not None:
            raise ConversionError(
                f"{case.target}: box {box} is not that of {case.source}. To fix: convert it again "
                "with mode='w' (mla convert --overwrite)"
            )

    def _check_written(self, source: LazyArray, case: Case, progress: Progress | None) -> None:
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
        self, source: LazyArray, case: Case, *, progress: Progress | None
    ) -> Box | None:
        """Return a box in which the target differs from its source."""
        target = MlaArray(case.target)
        return find_difference(
            Comparison(source=source, target=target, order=tuple(range(target.ndim))),
            chunks=target.chunks,
            memory_limit=self.memory_limit,
            progress=progress,
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
