"""The files in a folder as subjects: whose file each is, by a pattern of its name."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError, MlaWarning, SourceError
from mlarray_xr.ml.collection_table import listed
from mlarray_xr.ml.subject_record import SUBJECT, SubjectRecord, natural_order
from mlarray_xr.overview_siblings import is_level_file
from mlarray_xr.storage.address import is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEFAULT_MODALITY",
    "FilePattern",
    "entries_of",
    "file_inside",
    "folder_path",
    "records_in",
]

DEFAULT_MODALITY = "image"
"""What the only modality is called when nobody names it."""

_MODALITY = "modality"
_STAGING_SUFFIX = ".parts"
_TOKENS = re.compile(r"\{(\w*)\}|(\*\*/)|(\*)|([^{}*]+)|([{}])")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePattern:
    """What the names of files say, relative to their folder, with ``/`` between its parts.

    Examples
    --------
    >>> pattern = FilePattern.of("{site}/{subject}_{modality}.mla", modalities=None)
    >>> pattern.match("b/sub_7_ct.mla")
    {'site': 'b', 'subject': 'sub_7', 'modality': 'ct'}
    """

    text: str
    """As it was given."""
    expression: re.Pattern[str]
    """Matches whole relative paths, with a group for each field."""
    depth: int | None
    """Most parts of a path that fits; None for any number."""

    @classmethod
    def of(cls, text: str, *, modalities: Sequence[str] | None) -> FilePattern:
        """Read a pattern.

        Parameters
        ----------
        text
            Fields in braces, ``*`` for any text without ``/``, ``**/`` for any folders. From the
            left each field takes as much as fits.
        modalities
            What the field ``{modality}`` may be; anything unless given. The longest that fits is
            taken, other fields then take as little as they can.

        Raises
        ------
        ValueError
            When there is no ``{subject}``, or it is unclear where a field ends.
        """
        named: list[str] = []
        parts: list[str] = []
        open_ended = False
        for field, folders, star, plain, stray in _TOKENS.findall(text):
            unclear = open_ended and not plain
            nameless = not (field.isidentifier() or folders or star or plain)
            if unclear or stray or nameless or field in named:
                msg = (
                    f"pattern {text!r} cannot be read. To fix: name every field once, with text "
                    "between two of them, such as '{subject}/{modality}.mla'"
                )
                raise ValueError(msg)
            open_ended = bool(field or star)
            if field:
                named.append(field)
            parts.append(_expression(field, folders, star, plain, modalities))
        if SUBJECT not in named:
            raise ValueError(f"pattern {text!r} has no field {{subject}}")
        return cls(
            text=text,
            expression=re.compile("".join(parts)),
            depth=None if "**/" in text else text.count("/") + 1,
        )

    @property
    def has_modality(self) -> bool:
        """Whether names say which modality a file is."""
        return _MODALITY in self.expression.groupindex

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of a relative path; None when it does not fit."""
        found = self.expression.fullmatch(path)
        return None if found is None else found.groupdict()


def records_in(
    folder: str | os.PathLike[str], *, pattern: str, modalities: Sequence[str] | None
) -> tuple[SubjectRecord, ...]:
    """Return the subjects whose files are in a folder, in natural order.

    Names that start with a dot are passed over, linked folders are not entered.

    Parameters
    ----------
    folder
        A local folder.
    pattern
        See `FilePattern.of`. Fields other than ``{subject}`` and ``{modality}`` become labels.
    modalities
        Those to take, in this order. Without a field ``{modality}``: what to call the one.

    Raises
    ------
    ConversionError
        When nothing fits, or two files are the same modality of a subject.
    SourceError
        When a file that fits is a link out of the folder, or to nothing.
    NotADirectoryError, FileNotFoundError
        When there is no such folder.
    """
    root = folder_path(folder)
    rule = FilePattern.of(pattern, modalities=modalities)
    if not rule.has_modality and modalities is not None and len(modalities) != 1:
        msg = f"pattern {pattern!r} finds one modality, {list(modalities)} were asked for"
        raise ValueError(msg)
    only = DEFAULT_MODALITY if modalities is None else modalities[0]
    files: dict[str, dict[str, str]] = defaultdict(dict)
    labels: dict[str, dict[str, str]] = {}
    for path in entries_of(root, depth=rule.depth):
        fields = rule.match(path)
        if fields is None:
            continue
        subject, modality = fields.pop(SUBJECT), fields.pop(_MODALITY, only)
        if modality in files[subject]:
            msg = (
                f"{files[subject][modality]} and {path} are both {modality!r} of {subject!r}. "
                "To fix: a pattern that tells subjects apart, or Collection.from_files"
            )
            raise ConversionError(msg)
        if labels.setdefault(subject, fields) != fields:
            msg = f"{path}: {fields}, other files of {subject!r} say {labels[subject]}"
            raise ConversionError(msg)
        files[subject][modality] = file_inside(root, path)
    if not files:
        msg = f"{root}: no file fits {pattern!r}. To fix: another pattern or folder"
        raise ConversionError(msg)
    order = modalities or sorted({m for found in files.values() for m in found}, key=natural_order)
    return tuple(
        SubjectRecord(
            subject=subject,
            files={m: files[subject][m] for m in order if m in files[subject]},
            labels=labels[subject],
        )
        for subject in sorted(files, key=natural_order)
    )


def folder_path(folder: str | os.PathLike[str]) -> str:
    """Return the absolute path of a local folder."""
    path = os.fspath(folder)
    if is_url(path):
        msg = f"{path}: remote folders are not listed. To fix: Collection.from_files with the URLs"
        raise SourceError(msg)
    return os.path.abspath(os.path.expanduser(path))


def entries_of(root: str, *, depth: int | None) -> list[str]:
    """Return the files in a folder and below, relative to it, sorted; links to files included.

    Levels of other files are left out.

    Parameters
    ----------
    root
        Absolute path.
    depth
        Most parts of a path; None for any number.

    Raises
    ------
    NotADirectoryError, FileNotFoundError
        When there is no such folder.
    """
    found, linked = [], []
    waiting = [("", 1)]
    while waiting:
        prefix, level = waiting.pop()
        with os.scandir(os.path.join(root, prefix)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = prefix + entry.name
                if not entry.is_dir():
                    if not is_level_file(entry.path):
                        found.append(path)
                elif depth is not None and level >= depth:
                    continue
                elif entry.is_symlink():
                    linked.append(path)
                elif not entry.name.endswith(_STAGING_SUFFIX):
                    waiting.append((f"{path}/", level + 1))
    if linked:
        msg = (
            f"{root}: {len(linked)} linked folders are not entered: {listed(sorted(linked))}. To "
            "fix: move them here, or name their files with Collection.from_files"
        )
        warnings.warn(msg, MlaWarning, stacklevel=4)
    return sorted(found)


def file_inside(root: str, path: str) -> str:
    """Return the absolute path of a file in a folder.

    Raises
    ------
    SourceError
        When it is a link out of the folder, or to nothing.
    """
    full = os.path.join(root, path)
    if not os.path.islink(full):
        return full
    real, folder = os.path.realpath(full), os.path.realpath(root)
    if os.path.isfile(real) and os.path.commonpath([real, folder]) == folder:
        return full
    where = f"to {real}, outside {folder}" if os.path.exists(real) else "to no file"
    msg = f"{full}: a link that leads {where}. To fix: Collection.from_files takes any path"
    raise SourceError(msg)


def _expression(
    field: str, folders: str, star: str, plain: str, modalities: Sequence[str] | None
) -> str:
    """Return the regular expression of one token of a pattern."""
    if field == _MODALITY and modalities is not None:
        names = sorted(modalities, key=len, reverse=True)
        return f"(?P<{field}>{'|'.join(map(re.escape, names))})"
    if field:
        # "7_t1_seg" is not "seg" of "7_t1" where "t1_seg" is a modality.
        return f"(?P<{field}>[^/]+)" if modalities is None else f"(?P<{field}>[^/]+?)"
    if folders:
        return "(?:[^/]+/)*"
    return "[^/]*" if star else re.escape(plain)
