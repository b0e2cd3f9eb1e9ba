"""Files that a user names one by one, in lists, dicts or tables, as records of subjects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.collection_table import listed, plain_cells, subject_keys
from mlarray_xr.ml.subject_record import SUBJECT, SubjectRecord, absolute_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

__all__ = ["records_of", "table_records"]


def records_of(
    files: Mapping[str, str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]]
    | Iterable[str | os.PathLike[str]],
    *,
    modality: str,
) -> tuple[SubjectRecord, ...]:
    """Return a record for each subject; see `Collection.from_files`.

    Examples
    --------
    >>> [
    ...     record.subject
    ...     for record in records_of(["x/sub-2.mla", "s3://b/sub-1.mla"], modality="ct")
    ... ]
    ['sub-2', 'sub-1']
    """
    if isinstance(files, str | os.PathLike):
        msg = f"from_files({files!r}): a list or dict is needed; from_folder takes folders"
        raise TypeError(msg)
    pairs: Iterable[tuple[str, Any]] = (
        files.items() if isinstance(files, Mapping) else ((_stem(file), file) for file in files)
    )
    return tuple(
        SubjectRecord(
            subject=subject,
            files={
                name: absolute_address(file)
                for name, file in (
                    found if isinstance(found, Mapping) else {modality: found}
                ).items()
            },
        )
        for subject, found in pairs
    )


def table_records(
    table: pd.DataFrame, *, subject: str | None, files: Mapping[str, str], folder: str | None
) -> tuple[SubjectRecord, ...]:
    """Return a record for each row; see `Collection.from_table`.

    Parameters
    ----------
    table
        One row per subject.
    subject
        Column of the identifiers; the index when None, or when it has this name.
    files
        Column of the paths of each modality.
    folder
        Where relative paths begin.

    Raises
    ------
    ConversionError
        When a column is not there, or a subject has two rows or no file.
    """
    on = None if subject is None or subject == table.index.name else subject
    keys, columns = subject_keys(table, on)
    unknown = [column for column in files.values() if column not in columns]
    if unknown or not files:
        msg = f"files: columns {listed(unknown)} of the table's {listed(columns)}"
        raise ConversionError(msg)
    cells = {column: plain_cells(table[column]) for column in columns}
    taken = {*files.values()}
    records = []
    for row, key in enumerate(keys):
        found = {m: cells[column][row] for m, column in files.items()}
        name = _subject(key)
        if all(file is None for file in found.values()):
            msg = f"{SUBJECT} {name!r} has no file in columns {listed(taken)}. To fix: drop the row"
            raise ConversionError(msg)
        records.append(
            SubjectRecord(
                subject=name,
                files={
                    modality: absolute_address(file, folder=folder)
                    for modality, file in found.items()
                    if file is not None
                },
                labels={c: cells[c][row] for c in columns if c not in taken},
            )
        )
    return tuple(records)


def _subject(key: Any) -> str:
    """Return an identifier as text; whole numbers are spelled in digits."""
    if isinstance(key, bool) or not isinstance(key, str | int):
        msg = (
            f"{SUBJECT} {key!r} of the table is a {type(key).__name__}: text or whole numbers are "
            "needed. To fix: table['subject'].astype(str), which may have been read as numbers"
        )
        raise ConversionError(msg)
    return str(key)


def _stem(file: str | os.PathLike[str]) -> str:
    """Return the name of a file or URL without folder and suffix."""
    name = os.fspath(file).replace(os.sep, "/").partition("?")[0].rpartition("/")[2]
    return os.path.splitext(name)[0]
