"""A folder of numbered TIFF files, one plane each, as one stack."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, SourceChanged
from mlarray_xr.foreign.raw import local_source
from mlarray_xr.foreign.reopened import Reopened, digest_of
from mlarray_xr.foreign.tiff_file import TiffArray, TiffImage, read_image
from mlarray_xr.foreign.tiff_metadata import Calibration, describe
from mlarray_xr.planning.grid import check_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.storage.source import LocalSource

__all__ = ["TIFF_SUFFIXES", "TiffFolder", "find_stacks", "read_stack"]

TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffFolder:
    """The planes in the files of a folder, read box by box; an address, no open file."""

    path: str
    """Absolute path of the folder."""
    pattern: str
    """Name of the files, with a star for the number that orders them."""
    digest: str
    """Of the identities of all files."""
    shape: tuple[int, ...]
    """Extents, array order; the first axis counts the files."""
    dtype: np.dtype[Any]
    """Type of the elements, native byte order."""
    chunks: tuple[int, ...]
    """Shape of what is decoded at once."""
    sources: Reopened[tuple[LocalSource, ...]] = field(repr=False)
    """The files in order; each process lists the folder for itself."""

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box: one slice with start and stop per axis, no step.

        Raises
        ------
        IndexError
            When the box reaches outside the stack.
        SourceChanged
            When a file changed since the folder was opened.
        ConversionError
            When a file is damaged.
        """
        box = check_box([(along.start, along.stop) for along in key], self.shape)
        out = np.empty([stop - start for start, stop in box], self.dtype)
        (first, last), inner = box[0], tuple(slice(*pair) for pair in box[1:])
        for plane, source in zip(out, self.sources.get()[first:last], strict=True):
            plane[...] = TiffArray.of(_plane(source), source)[inner]
        return out

    def __dask_tokenize__(self) -> tuple[str, ...]:
        """Return an identity that is the same in every process and changes when a file does."""
        return ("mlarray_xr.TiffFolder", self.path, self.pattern, self.digest)


def find_stacks(names: Sequence[str]) -> dict[str, list[str]]:
    """Group the names of files into stacks, each in the order of its numbers.

    Names that differ in one number belong together. Where several numbers differ, the last of them
    orders a stack, and the others tell stacks apart.

    Raises
    ------
    ConversionError
        When a number is missing or there twice.

    Examples
    --------
    >>> find_stacks(["s10.tif", "s9.tif", "s8.tif"])
    {'s*.tif': ['s8.tif', 's9.tif', 's10.tif']}
    >>> sorted(find_stacks(["c1_z1.tif", "c1_z2.tif", "c2_z1.tif", "c2_z2.tif"]))
    ['c1_z*.tif', 'c2_z*.tif']
    """
    alike = defaultdict(list)
    for name in names:
        pieces = re.split("([0-9]+)", name)
        alike[tuple(pieces[::2])].append(pieces)
    stacks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for group in alike.values():
        numbered = range(1, len(group[0]), 2)
        varying = [at for at in numbered if len({int(pieces[at]) for pieces in group}) > 1]
        for pieces in group:
            at = varying[-1] if varying else None
            number = 0 if at is None else int(pieces[at])
            pattern = "".join("*" if i == at else piece for i, piece in enumerate(pieces))
            stacks[pattern].append((number, "".join(pieces)))
    return {pattern: _in_order(stacks[pattern]) for pattern in sorted(stacks)}


def read_stack(path: str, dataset: str | None) -> tuple[TiffFolder, Metadata]:
    """Open the stack in a folder.

    Raises
    ------
    ConversionError
        When there is none, or several and `dataset` names none of them, or the files differ.
    """
    stacks = _stacks(path)
    if dataset is None and len(stacks) == 1:
        dataset = next(iter(stacks))
    if dataset not in stacks:
        listed = "".join(f"\n  dataset={each!r}: {len(stacks[each])} files" for each in stacks)
        raise ConversionError(
            f"{path}: the folder holds {len(stacks)} stacks of TIFF files, and "
            f"{'one must be chosen' if dataset is None else f'there is no {dataset!r}'}. To fix: "
            f"pass one of{listed or ' another folder'}"
        )
    sources = _sources(path, stacks[dataset])
    first = _plane(sources[0])
    for source in sources[1:]:
        _check_alike(_plane(source), source, first, sources[0])
    digest, shape = digest_of(sources), (len(sources), *first.table.shape)
    values = TiffFolder(
        path=path,
        pattern=dataset,
        digest=digest,
        shape=shape,
        dtype=first.table.dtype,
        chunks=(1, *first.table.chunks),
        sources=Reopened(partial(_listed_again, path, dataset, digest), value=sources),
    )
    metadata = describe(
        f"I{first.axes}",
        shape,
        calibration=Calibration(),
        base_shape=shape,
        source={"files": len(sources), "plane": first.metadata.source["tiff"]},
    )
    return values, metadata


def _stacks(path: str) -> dict[str, list[str]]:
    """Find the stacks in a folder."""
    with os.scandir(path) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(TIFF_SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        ]
    try:
        return find_stacks(sorted(names))
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def _in_order(numbered: list[tuple[int, str]]) -> list[str]:
    """Return names in the order of their numbers, which must be evenly spaced."""
    numbered.sort()
    steps = [after[0] - before[0] for before, after in pairwise(numbered)]
    for (before, after), step in zip(pairwise(numbered), steps, strict=True):
        if step == 0:
            raise ConversionError(f"{before[1]!r} and {after[1]!r} have the same number")
        if step != min(steps):
            raise ConversionError(
                f"files are missing between {before[1]!r} and {after[1]!r}: the numbers of the "
                f"others are {min(steps)} apart. To fix: add or renumber them"
            )
    return [name for _, name in numbered]


def _sources(path: str, names: Sequence[str]) -> tuple[LocalSource, ...]:
    """Pin files of a folder."""
    return tuple(local_source(os.path.join(path, name)) for name in names)


def _listed_again(path: str, pattern: str, digest: str) -> tuple[LocalSource, ...]:
    """List a folder in another process; the files must be the same."""
    sources = _sources(path, _stacks(path).get(pattern, ()))
    if digest_of(sources) != digest:
        raise SourceChanged(f"{path}: the files {pattern} changed since they were opened")
    return sources


def _plane(source: LocalSource) -> TiffImage:
    """Return the one plane of a file."""
    image = read_image(source, None)
    if image.table.n_leading:
        raise ConversionError(
            f"{source.path}: the file holds a stack, {image.axes} of {image.table.shape}, and each "
            "file of a folder must hold one plane. To fix: open this file by its own name"
        )
    return image


def _check_alike(
    plane: TiffImage, source: LocalSource, first: TiffImage, first_source: LocalSource
) -> None:
    """Refuse a file that differs from the first."""
    found, wanted = (
        (image.table.shape, str(image.table.dtype), image.axes) for image in (plane, first)
    )
    if found != wanted:
        raise ConversionError(
            f"{source.path} holds {found}, and {os.path.basename(first_source.path)} holds "
            f"{wanted}: all files of a folder must agree. To fix: remove or convert the odd ones"
        )
