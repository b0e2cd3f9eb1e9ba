"""SubjectRecord: one subject, its files and its labels, bound together."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, MlaError, SourceError
from mlarray_xr.storage.address import is_url, local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SUBJECT", "SubjectRecord", "absolute_address", "named_errors", "natural_order"]

SUBJECT = "subject"
"""Name of the index of every table of labels."""

_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectRecord:
    """One subject: where its files are, and what is known of it.

    Examples
    --------
    >>> record = SubjectRecord(subject="sub-01", files={"ct": "/data/sub-01/ct.mla"})
    >>> record.file("ct")
    '/data/sub-01/ct.mla'
    """

    subject: str
    """Identifier, unlike that of any other subject."""
    files: Mapping[str, str]
    """Path or URL of each modality."""
    labels: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What a table says of the subject, by column; None where it says nothing."""

    def __post_init__(self) -> None:
        """Check the names, and keep mappings that nobody else changes."""
        if not isinstance(self.subject, str) or not self.subject:
            raise ValueError(f"subject={self.subject!r}: a text is needed. To fix: str(subject)")
        for what, names in (("modality", self.files), ("label", self.labels)):
            wrong = [name for name in names if not isinstance(name, str) or not name]
            if wrong:
                raise ValueError(f"{what} {wrong[0]!r} of {self.subject!r}: a name is needed")
        if SUBJECT in self.labels:
            msg = f"a label may not be named {SUBJECT!r}: that is the index. To fix: rename it"
            raise ValueError(msg)
        if not self.files or not all(type(f) is str and f for f in self.files.values()):
            msg = f"subject {self.subject!r}: a path or URL of each modality is needed, as text"
            raise ValueError(msg)
        object.__setattr__(self, "files", dict(self.files))
        object.__setattr__(self, "labels", dict(self.labels))

    def file(self, modality: str) -> str:
        """Return the path or URL of a modality.

        Raises
        ------
        ConversionError
            When the subject has none.
        """
        found = self.files.get(modality)
        if found is None:
            msg = (
                f"subject {self.subject!r} has no {modality!r}, only {', '.join(self.files)}. "
                "To fix: (1) add the file; (2) Collection.select(modalities=..., missing='drop')"
            )
            raise ConversionError(msg)
        return found


def absolute_address(file: str | os.PathLike[str], *, folder: str | None = None) -> str:
    """Return a URL as it is, a path as it is found from anywhere.

    Parameters
    ----------
    file
        A URL or a path; ``~`` and ``file://`` allowed.
    folder
        Where relative paths begin; the working directory unless given.
    """
    address = os.fspath(file)
    if is_url(address):
        return address
    path = os.path.expanduser(local_path(address))
    return os.path.abspath(path if folder is None else os.path.join(folder, path))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers in names by their value.

    Examples
    --------
    >>> sorted(["sub-10", "sub-9", "sub-09"], key=natural_order)
    ['sub-09', 'sub-9', 'sub-10']
    """
    # Texts and digits alternate, so that a number is compared with a number.
    parts = _DIGITS.split(name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


@contextlib.contextmanager
def named_errors(subject: str, modality: str, file: str, *, box: object = None) -> Iterator[None]:
    """Say in errors of a file whose it is, and which box of it was wanted.

    Raises
    ------
    MlaError, FileNotFoundError
        Of the class that was raised; other errors of the operating system become `SourceError`.
    """
    where = f"subject {subject!r}, modality {modality!r}, {file}"
    if box is not None:
        where = f"{where}, box {box}"
    try:
        yield
    except MlaError as error:
        raise type(error)(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: there is no such file") from error
    except OSError as error:
        raise SourceError(f"{where}: {error.strerror or error}") from error
