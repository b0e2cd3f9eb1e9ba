"""The files of the levels beside a file: what they are called, and which are there."""

from __future__ import annotations

import errno
import math
import os
import re
import warnings
from typing import TYPE_CHECKING, Any

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import (
    FormatError,
    MlaError,
    MlaWarning,
    SourceChanged,
    SourceDenied,
    SourceError,
)
from mlarray_xr.overview_record import OverviewRecord, content_identity
from mlarray_xr.planning.overview_levels import level_shape
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.source import LocalSource

if TYPE_CHECKING:
    from mlarray_xr.storage.remote_source import Source

__all__ = ["MOST_LEVELS", "find_levels", "is_level_file", "level_path", "names_level"]

MOST_LEVELS = 62
"""No array is so long that it can be halved more often."""

_MOST_BLOCK_VOXELS = 1 << 20
"""A level is read to look at it: what is made here has far smaller blocks."""

_SUFFIX = ".mla"
_CHAIN = "::"
_LEVEL_NAME = re.compile(r".*\.level[1-9][0-9]?\.mla", re.DOTALL)
_STACKLEVEL = 3


def level_path(path: str | os.PathLike[str], level: int) -> str:
    """Return the name of the file of a level beside a file: a path, or a URL with its query.

    Parameters
    ----------
    path
        Of the file itself.
    level
        0 is the file itself.

    Examples
    --------
    >>> level_path("scans/ct.mla", 1)
    'scans/ct.level1.mla'
    >>> level_path("https://host/ct.mla?key=3", 2)
    'https://host/ct.level2.mla?key=3'
    """
    name = os.fsdecode(path)
    if level == 0:
        return name
    if not is_url(name) and _CHAIN not in name:
        return _beside(name, level)
    # Of a chain such as "zip://ct.mla::s3://bucket/all.zip" the file is the first that is an .mla.
    links = name.split(_CHAIN)
    parts = [link.partition("?") for link in links]
    at = next((i for i, part in enumerate(parts) if part[0].lower().endswith(_SUFFIX)), 0)
    plain, mark, query = parts[at]
    links[at] = _beside(plain, level) + mark + query
    return _CHAIN.join(links)


def names_level(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is the name of a level of some file.

    Examples
    --------
    >>> names_level("ct.level1.mla"), names_level("ct.mla")
    (True, False)
    """
    return _LEVEL_NAME.fullmatch(os.path.basename(os.fsdecode(path))) is not None


def is_level_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a local file is the level of another one: its name and the file both say so.

    Examples
    --------
    >>> is_level_file("absent.level1.mla")
    False
    """
    if not names_level(path):
        return False
    try:
        return OverviewRecord.found_in(MlaArray(path).metadata) is not None
    except (MlaError, OSError):
        return False


def find_levels(file: MlaArray) -> tuple[MlaArray, ...]:
    """Return a file and its overviews: entry k is level k.

    Looks for ``<stem>.level1.mla``, ``<stem>.level2.mla`` and so on beside it, up to the first that
    is not there, or that was not made from this very content. Reads no voxel.

    Parameters
    ----------
    file
        The file itself; of one in memory nothing lies beside.

    Raises
    ------
    SourceError
        When what is beside a file cannot be looked at.
    SourceChanged
        When the file changed since it was opened.

    Warns
    -----
    MlaWarning
        Once, when a level belongs to other content, or is none or damaged, and is left out.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "lonely.mla")
    >>> len(find_levels(mlarray_xr.MlaArray("lonely.mla")))
    1
    """
    found = [file]
    source = file._source  # noqa: SLF001 - what lies beside has the same server and credentials
    identity: str | None = None
    for level in range(1, MOST_LEVELS + 1):
        try:
            sibling = _sibling(file, source, level)
        except SourceChanged:
            raise
        except (FormatError, PermissionError, SourceError) as error:
            if isinstance(source, RemoteSource) and not isinstance(error, FormatError):
                raise
            _warn(source, level, f"it is damaged or no .mla file that can be read: {error}")
            break
        if sibling is None:
            break
        identity = identity or content_identity(source)
        obstacle = _obstacle(sibling, file, level=level, identity=identity)
        if obstacle is not None:
            _warn(source, level, obstacle)
            break
        found.append(sibling)
    return tuple(found)


def _beside(path: str, level: int) -> str:
    """Return the path of a level of a plain path."""
    return f"{os.path.splitext(path)[0]}.level{level}{_SUFFIX}"


def _sibling(file: MlaArray, source: Source, level: int) -> MlaArray | None:
    """Open the file that has the name of a level; None when there is none."""
    options: dict[str, Any] = {
        "threads": file.threads,
        "checksums": file._checksums,  # noqa: SLF001 - levels are read as the file is
    }
    try:
        if isinstance(source, LocalSource):
            return MlaArray(level_path(source.path, level), **options)
        if isinstance(source, RemoteSource):
            address = source.address
            return MlaArray(
                level_path(address.url, level),
                storage_options=dict(address.options),
                store=address.store,
                **options,
            )
    except (FileNotFoundError, SourceDenied):
        # Stores deny what is not there to those who may not list, and signed URLs are of one file.
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    return None


def _obstacle(sibling: MlaArray, file: MlaArray, *, level: int, identity: str) -> str | None:
    """Say why a file is not a level of another; None when it is."""
    record = OverviewRecord.found_in(sibling.metadata)
    if record is None or record.level != level:
        return "it does not say that it is this level of anything"
    if record.of != identity:
        return "it was made from other content: the file was replaced or edited since"
    fits = len(record.factors) == file.ndim
    if not fits or level_shape(file.shape, record.factors) != sibling.shape:
        return f"its shape {sibling.shape} is not that of a level of {file.shape}"
    if any(f < 1 or f & (f - 1) for f in record.factors) or max(record.factors) == 1:
        return f"its factors {record.factors} are none of a level"
    if math.prod(sibling.blocks) > max(math.prod(file.chunks), _MOST_BLOCK_VOXELS):
        return f"its blocks {sibling.blocks} are larger than any that is made"
    if sibling.dtype != file.dtype:
        return f"its type {sibling.dtype} is not that of the file, {file.dtype}"
    return None


def _warn(source: Source, level: int, obstacle: str) -> None:
    """Say once that a level and those after it are left out."""
    msg = (
        f"{source.name}: level {level} beside it is left out, and coarser ones: {obstacle}. To "
        "fix: (1) mlarray_xr.build_overviews(path, mode='w') makes the levels anew; (2) "
        f"remove {os.path.basename(level_path(source.name, level))}"
    )
    warnings.warn(msg, MlaWarning, stacklevel=_STACKLEVEL)
