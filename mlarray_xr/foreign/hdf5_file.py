"""HDF5 files opened without trusting them: no link, storage or virtual dataset leads elsewhere."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "attributes",
    "check_self_contained",
    "check_storage",
    "explained",
    "is_hdf5",
    "links",
    "opened",
    "resolved",
]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIRST_USER_BLOCK = 512
_MOST_LINKS = 100_000
_MOST_HOPS = 16
"""Soft links that may follow one another."""

_INTERNAL_ATTRS = {
    "CLASS",
    "DIMENSION_LABELS",
    "DIMENSION_LIST",
    "NAME",
    "REFERENCE_LIST",
    "_NCProperties",
    "_Netcdf4Coordinates",
    "_Netcdf4Dimid",
    "_nc3_strict",
}


def is_hdf5(path: str) -> bool:
    """Tell whether a file starts as HDF5 does, at its beginning or after a user block."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        doubled = (_FIRST_USER_BLOCK << n for n in itertools.count())
        starts = itertools.takewhile(lambda at: at < size, itertools.chain([0], doubled))
        return any(file.seek(at) == at and file.read(8) == _SIGNATURE for at in starts)


def check_self_contained(path: str) -> None:
    """Refuse an HDF5 file of which any part may lead elsewhere, or in circles.

    For libraries that follow every link by themselves: netCDF-C does not return from a group that
    contains itself.

    Raises
    ------
    ConversionError
        When there are links to other files or outer groups, or datasets stored in other files.
    """
    with explained(path), opened(path) as file:
        for name, item in links(file):
            target = item if item is not None else file[resolved(file, name.split("/")[1:])]
            if hasattr(target, "shape"):
                check_storage(target)
            elif item is None:
                raise ConversionError(
                    f"{name!r} is a second name of a group. To fix: copy the file without it"
                )


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Name the file in errors, whoever raises them."""
    try:
        yield
    except (ConversionError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from error


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a file for reading, without the locks that network file systems lack.

    Raises
    ------
    MissingDependencyError
        When h5py is not installed.
    OSError
        When it is no HDF5 file, or a truncated one.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            'HDF5 files need h5py, which is not installed. To fix: pip install "mlarray-xr[hdf5]"'
        ) from error
    with h5py.File(path, "r", locking=False) as file:
        yield file


def links(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and object of everything in a file; None for names that are not followed.

    Followed are hard links, to each group once.

    Raises
    ------
    ConversionError
        When there are more than 100 000.
    """
    import h5py

    seen = {_address(file["/"])}
    pending = [("", file["/"])]
    n_links = 0
    while pending:
        path, group = pending.pop()
        for name in group:
            n_links += 1
            if n_links > _MOST_LINKS:
                raise ConversionError(f"the file holds more than {_MOST_LINKS} names")
            item = None
            # Asking a group for its member would open the file that an external link names.
            if group.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD:
                item = group[name]
            if isinstance(item, h5py.Group):
                address = _address(item)
                if address in seen:
                    item = None
                else:
                    seen.add(address)
                    pending.append((f"{path}/{name}", item))
            yield f"{path}/{name}", item


def resolved(file: Any, parts: Sequence[str]) -> str:
    """Return the path of an object by hard links alone; soft links are followed inside the file.

    Parameters
    ----------
    file
        An open `h5py.File`.
    parts
        Names from the root; none is the root itself.

    Raises
    ------
    ConversionError
        When there is no such object, or it lies in another file.
    """
    import h5py

    pending, at, n_hops = list(parts), "", 0
    while pending:
        name, parent = pending.pop(0), file[at or "/"]
        if not isinstance(parent, h5py.Group) or not parent.id.links.exists(name.encode()):
            raise ConversionError(f"the file holds no {at}/{name}")
        members = parent.id.links
        kind = members.get_info(name.encode()).type
        if kind == h5py.h5l.TYPE_SOFT and n_hops < _MOST_HOPS:
            target, n_hops = members.get_val(name.encode()).decode(), n_hops + 1
            at = "" if target.startswith("/") else at
            pending = [part for part in target.split("/") if part not in ("", ".")] + pending
        elif kind == h5py.h5l.TYPE_HARD:
            at = f"{at}/{name}"
        else:
            raise ConversionError(
                f"{at}/{name} is a link to another file, or one of a chain without end: links "
                "are followed inside the file only. To fix: convert the file it leads to"
            )
    return at or "/"


def check_storage(found: Any) -> None:
    """Refuse a dataset whose elements lie in other files.

    Raises
    ------
    ConversionError
        When it is virtual or has external storage.
    """
    if found.is_virtual or found.external:
        raise ConversionError(
            f"the elements of {found.name!r} lie in other files, which are not followed. To fix: "
            "copy it into one file, h5repack"
        )


def attributes(item: Any) -> dict[str, Any]:
    """Return the attributes that belong to the user; those h5py cannot express are left out."""
    attrs = {}
    for name in item.attrs:
        if name not in _INTERNAL_ATTRS:
            with contextlib.suppress(OSError, TypeError):
                attrs[name] = item.attrs[name]
    return attrs


def _address(item: Any) -> tuple[int, int]:
    """Return what is the same for all names of an object."""
    import h5py

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr
