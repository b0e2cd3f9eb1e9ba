"""convert: from one file format to another, by the names of the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError, MlaError
from mlarray_xr.foreign.case import Case
from mlarray_xr.foreign.comparison import Comparison, check_equal
from mlarray_xr.foreign.formats import FORMATS, MLA, source_format, target_format
from mlarray_xr.foreign.origin import origin_of, plan_step, recorded_origin, with_origin
from mlarray_xr.foreign.scratch import scratch_folder
from mlarray_xr.planning.write_plan import parse_bytes
from mlarray_xr.storage.publication import check_target
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from mlarray_xr.foreign.image import ForeignImage, LazyArray
    from mlarray_xr.foreign.origin import Origin, Step
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.layout import Sizes
    from mlarray_xr.report import WriteReport
    from mlarray_xr.storage.job import Progress

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How images become `.mla` files, the same for every file of a folder; picklable."""

    patch: Sizes | Literal["default"] | None = "default"
    """Window that will be read most, as in `to_mla`."""
    chunks: Sizes | None = None
    """Extents of a chunk, instead of `patch`."""
    blocks: Sizes | None = None
    """Extents of a block, instead of `patch`."""
    codec: str | Codec | None = None
    """Compression; None is that of `to_mla`."""
    dataset: str | None = None
    """Which array, in formats that hold several."""
    verify: bool = False
    """Whether every target is compared with its source."""
    memory_limit: int | None = None
    """Bytes that the parts under way in one process may take."""

    @property
    def request(self) -> str:
        """What decides the bytes of a target besides its source, as text."""
        sizes = (self.patch, self.chunks, self.blocks)
        plain = [sorted(s.items()) if hasattr(s, "items") else s for s in sizes]
        return repr((plain, str(self.codec), self.dataset))

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
            why = f", and is no conversion of {case.source}" if resume else ""
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
        options: dict[str, Any] = {} if self.codec is None else {"codec": self.codec}
        with scratch_folder(case.target, origin, keeps=keeps, restarts=restarts) as scratch:
            image = _opened(case, scratch_dir=scratch, dataset=self.dataset)
            metadata = image.metadata if origin is None else with_origin(image.metadata, origin)
            report: WriteReport = to_mla(
                image.values,
                case.target,
                patch=self.patch,
                chunks=self.chunks,
                blocks=self.blocks,
                mode="w" if overwrite else "w-",
                metadata=metadata,
                resume=keeps,
                memory_limit=self.memory_limit,
                progress=_first_half(progress) if self.verify else progress,
                **options,
            )
            if self.verify:
                self._check_written(image.values, case, _second_half(progress, report.n_chunks))
        return report

    def check(self, case: Case) -> None:
        """Compare a target that was complete already with its source.

        Raises
        ------
        ConversionError
            When they differ.
        """
        with scratch_folder(case.target, None, keeps=False) as scratch:
            image = _opened(case, scratch_dir=scratch, dataset=self.dataset)
            self._compare(image.values, case, progress=None)

    def _check_written(self, source: LazyArray, case: Case, progress: Progress | None) -> None:
        """Compare the target just written with its source; remove it when they differ."""
        try:
            self._compare(source, case, progress=progress)
        except ConversionError as error:
            os.unlink(case.target)
            raise ConversionError(f"{error}. It was removed. To fix: convert again") from error

    def _compare(self, source: LazyArray, case: Case, *, progress: Progress | None) -> None:
        """Compare the target with its source."""
        target = MlaArray(case.target)
        try:
            check_equal(
                Comparison(source=source, target=target, order=tuple(range(target.ndim))),
                chunks=target.chunks,
                memory_limit=self.memory_limit,
                progress=progress,
            )
        except ConversionError as error:
            raise ConversionError(f"{case.target} is not {case.source}: {error}") from error


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    codec: str | Codec | None = None,
    mode: Literal["w-", "w"] = "w-",
    source_format: str | None = None,
    dataset: str | None = None,
    resume: bool = False,
    verify: bool = False,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
) -> WriteReport | None:
    """Convert one image to the format that the name of the target asks for.
    """
