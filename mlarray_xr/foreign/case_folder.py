"""The cases in a folder: every image below it, and the `.mla` file that each becomes."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError, MlaError
from mlarray_xr.foreign.case import Case, is_slice_name
from mlarray_xr.foreign.formats import (
    Format,
    format_named,
    is_dicom_file,
    is_zarr_folder,
    split_name,
)
from mlarray_xr.foreign.tiff_file import read_image
from mlarray_xr.overview_siblings import is_level_file
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CaseFolder", "Obstacle", "find_cases"]

_TARGET = ".mla"
_STAGING_SUFFIX = ".parts"
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Something that was not converted, and why."""

    source: str
    """Absolute path."""
    reason: str
    """What was found, and how to fix it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFolder:
    """What is in a folder."""

    cases: tuple[Case, ...]
    """Images to convert, measured, sorted by path."""
    left_out: tuple[Obstacle, ...] = ()
    """What is not followed."""
    failed: tuple[Obstacle, ...] = ()
    """What cannot be looked at."""


def find_cases(src: str, dst: str, *, source_format: str | None = None) -> CaseFolder:
    """Find every image below a folder, by names and where those do not tell by first bytes.

    A file of a known suffix is a case. So is a Zarr folder; a folder with DICOM slices, all of
    them together; and a folder with several TIFF files of one plane each. Names that start with a
    dot are passed over, and so is what links lead to outside the folder, or to other folders.

    Parameters
    ----------
    src
        Absolute path of the folder.
    dst
        Absolute path of the folder of the targets, which keep the names of their sources; not
        searched when it is inside.
    source_format
        Take images of this format only.

    Raises
    ------
    ConversionError
        When two images would become the same file.
    NotADirectoryError, FileNotFoundError
        When there is no such folder.

    Examples
    --------
    >>> os.makedirs("raw/sub-01")
    >>> for name in ("raw/sub-01/t1.nii.gz", "raw/notes.txt", "raw/sub-01/t2.nrrd"):
    ...     open(name, "wb").close()
    >>> found = find_cases(os.path.abspath("raw"), os.path.abspath("mla"))
    >>> [os.path.relpath(case.target) for case in found.cases]
    ['mla/sub-01/t1.mla', 'mla/sub-01/t2.mla']
    """
    search = _Search(root=src, target=dst)
    search.enter(src)
    wanted = None if source_format is None else format_named(source_format)
    found = [case for case in search.cases if wanted in (None, case.format)]
    # What is there already, in a folder that is converted into itself.
    cases = sorted((c for c in found if c.source != c.target), key=lambda case: case.source)
    _check_names(cases)
    measured = []
    for case in cases:
        try:
            measured.append(case.measured())
        except OSError as error:
            search.failed.append(Obstacle(source=case.source, reason=_reason(error)))
    return CaseFolder(
        cases=tuple(measured), left_out=tuple(search.left_out), failed=tuple(search.failed)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """A walk through a folder, and what it has found."""

    root: str
    """Where it begins."""
    target: str
    """Where the targets go."""
    cases: list[Case] = field(default_factory=list)
    left_out: list[Obstacle] = field(default_factory=list)
    failed: list[Obstacle] = field(default_factory=list)

    def enter(self, folder: str) -> None:
        """Find the cases in a folder and below it."""
        if is_zarr_folder(folder):
            self._add(folder, format_named("zarr"))
            return
        try:
            files, folders = self._entries(folder)
        except OSError as error:
            if folder == self.root:
                raise
            self.failed.append(Obstacle(source=folder, reason=_reason(error)))
            return
        self._sort(folder, files)
        for inner in folders:
            if os.path.realpath(inner) != os.path.realpath(self.target):
                self.enter(inner)

    def _entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the files in a folder, and the paths of the folders to enter.

        Levels of other files are no images of their own.
        """
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink() and not self._follows(entry):
                    continue
                if entry.is_file():
                    if not is_level_file(entry.path):
                        files.append(entry.name)
                elif entry.is_dir() and not entry.name.endswith(_TARGET + _STAGING_SUFFIX):
                    folders.append(entry.path)
        return files, folders

    def _follows(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether a link leads to a file inside the folder; note it when it does not."""
        real, root = os.path.realpath(entry.path), os.path.realpath(self.root)
        if os.path.isfile(real) and os.path.commonpath([real, root]) == root:
            return True
        where = "outside the folder" if os.path.isfile(real) else "to no file"
        reason = f"a link that leads {where} is not followed"
        self.left_out.append(Obstacle(source=entry.path, reason=reason))
        return False

    def _sort(self, folder: str, names: Sequence[str]) -> None:
        """Tell which files of a folder are a case each, and which are one together."""
        alone = set(names)
        for each in (format_named("dicom"), format_named("tiff")):
            slices = [name for name in names if is_slice_name(name, each)]
            if _are_slices(folder, slices, each):
                self._add(folder, each)
                alone -= {*slices}
        for name in sorted(alone):
            stem, found = split_name(name)
            # Of a pair the header stands for both.
            if found is not None and not (name.lower().endswith(".img") and _has(alone, stem)):
                self._add(os.path.join(folder, name), found)

    def _add(self, source: str, file_format: Format) -> None:
        """Note a case."""
        relative = os.path.relpath(source, self.root)
        if relative == os.curdir:
            relative = os.path.basename(source)
        folder, name = os.path.split(relative)
        is_named = not os.path.isdir(source) or file_format.name == "zarr"
        stem = split_name(name)[0] if is_named else name
        target = os.path.join(self.target, folder, stem + _TARGET)
        self.cases.append(Case(source=source, target=target, format=file_format))


def _has(names: set[str], stem: str) -> bool:
    """Tell whether the header of a pair is there."""
    return any(f"{stem}{suffix}" in names for suffix in (".hdr", ".HDR"))


def _are_slices(folder: str, names: Sequence[str], file_format: Format) -> bool:
    """Tell whether files of one format are one image together."""
    paths = [os.path.join(folder, name) for name in names]
    if file_format.name == "dicom":
        return any(map(is_dicom_file, paths))
    return len(paths) > 1 and _is_plane(paths[0])


def _is_plane(path: str) -> bool:
    """Tell a TIFF file of one plane; one that cannot be opened is none."""
    try:
        source = source_of(path)
        return isinstance(source, LocalSource) and not read_image(source, None).table.n_leading
    except (MlaError, OSError):
        return False


def _check_names(cases: Sequence[Case]) -> None:
    """Refuse images that would become the same file."""
    sources = defaultdict(list)
    for case in cases:
        sources[case.target].append(case.source)
    clashes = [(target, found) for target, found in sources.items() if len(found) > 1]
    if clashes:
        listed = "; ".join(f"{target}: {', '.join(f)}" for target, f in clashes[:_MOST_SHOWN])
        more = f"; and {len(clashes) - _MOST_SHOWN} more" if len(clashes) > _MOST_SHOWN else ""
        raise ConversionError(
            f"{len(clashes)} targets have several sources each: {listed}{more}. To fix: (1) rename "
            "or move the sources; (2) source_format= (mla convert --from) takes one format only"
        )


def _reason(error: OSError) -> str:
    """Return what went wrong without the path."""
    return error.strerror or str(error)
