"""Labels of subjects as tables: read from pandas, made into one, and asked with its queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.subject_record import SUBJECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from mlarray_xr.ml.subject_record import SubjectRecord

__all__ = [
    "Labels",
    "Rows",
    "labels_of",
    "listed",
    "matching",
    "plain_cells",
    "subject_keys",
    "table_of",
]

Rows: TypeAlias = dict[str, dict[str, Any]]
"""Labels by subject and column."""

_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """A table of labels as plain values."""

    columns: tuple[str, ...]
    """Names of the labels."""
    by_subject: Rows = field(repr=False)
    """A row for each subject that the table knows; None where it has no value."""


def table_of(records: Sequence[SubjectRecord]) -> pd.DataFrame:
    """Return the labels as a table: a row per record in their order, indexed by subject."""
    import pandas as pd

    columns = list(dict.fromkeys(name for record in records for name in record.labels))
    index = pd.Index([record.subject for record in records], name=SUBJECT)
    cells = {
        column: pd.Series([record.labels.get(column) for record in records], index=index)
        for column in columns
    }
    return pd.DataFrame(cells, index=index)


def matching(records: Sequence[SubjectRecord], query: str) -> list[bool]:
    """Tell for each record whether its labels fulfil a pandas query; a missing answer is no.

    Raises
    ------
    ConversionError
        When pandas cannot evaluate it, or it does not give a truth value for each subject.
    """
    if not records:
        return []
    import pandas as pd

    table = table_of(records)
    try:
        # Without numexpr, which knows fewer types, and without the variables of this function.
        found = table.eval(query, engine="python", local_dict={}, global_dict={})
        values = found.array if isinstance(found, pd.Series) else found
        answers = pd.Series(values, index=table.index, dtype=object).tolist()
    except Exception as error:
        # pandas lets through whatever its parser and the operators raise.
        msg = (
            f"filter({query!r}): {type(error).__name__}: {error}. The columns are "
            f"{listed([SUBJECT, *table.columns])}. To fix: (1) spell the query as "
            "pandas.DataFrame.query takes it, values in place of @variables; (2) filter with a "
            "function of the record"
        )
        raise ConversionError(msg) from error
    if not all(isinstance(answer, bool) or pd.isna(answer) is True for answer in answers):
        msg = f"filter({query!r}) does not give true or false for each subject"
        raise ConversionError(msg)
    return [answer is True for answer in answers]


def labels_of(table: Any, *, on: str | None, name: str) -> Labels:
    """Return a table that a user gives as plain values; None where it has none.

    Parameters
    ----------
    table
        A DataFrame, a Series or a mapping, by subject.
    on
        Column of a DataFrame that holds the subjects; its index unless given.
    name
        Column of a mapping, or of a Series without a name.

    Raises
    ------
    ConversionError
        When a subject has two rows, or the keys are not text.
    """
    import pandas as pd

    if isinstance(table, Mapping):
        table = pd.Series(
            list(table.values()), index=pd.Index(list(table), dtype=object), name=name
        )
    if isinstance(table, pd.Series):
        table = table.to_frame(name if table.name is None else table.name)
    if not isinstance(table, pd.DataFrame):
        msg = f"labels: a DataFrame, a Series or a dict is needed, got {type(table).__name__}"
        raise TypeError(msg)
    keys, columns = subject_keys(table, on)
    if not all(isinstance(key, str) for key in keys):
        key = next(key for key in keys if not isinstance(key, str))
        where = "index" if on is None else f"column {on!r}"
        msg = (
            f"the subjects of a collection are text, the {where} of the table holds "
            f"{type(key).__name__}, such as {key!r}. To fix: convert it with .astype(str), and "
            "compare the spelling: '7' is not '007'"
        )
        raise ConversionError(msg)
    cells = {column: plain_cells(table[column]) for column in columns}
    return Labels(
        columns=tuple(columns),
        by_subject={key: {c: cells[c][row] for c in columns} for row, key in enumerate(keys)},
    )


def subject_keys(table: pd.DataFrame, on: str | None) -> tuple[list[Any], list[str]]:
    """Return the keys of the rows of a table, and the names of its other columns.

    Raises
    ------
    ConversionError
        When a key or a column occurs twice, or a column has no name.
    """
    columns = [column for column in table.columns if column != on]
    if on is not None and on not in table.columns:
        msg = f"there is no column {on!r}; the table has {listed(table.columns)}"
        raise ConversionError(msg)
    if not all(isinstance(column, str) for column in columns):
        msg = "columns of a table of labels need names. To fix: table.columns = [...]"
        raise ConversionError(msg)
    if table.columns.has_duplicates:
        msg = f"columns {listed(_repeated(table.columns))} occur twice. To fix: rename one"
        raise ConversionError(msg)
    keys = plain_cells(table.index.to_series() if on is None else table[on])
    if any(key is None for key in keys):
        raise ConversionError(f"{keys.count(None)} rows of the table name no subject")
    if repeated := _repeated(keys):
        msg = (
            f"the table has several rows for {len(repeated)} subjects: {listed(repeated)}. "
            "To fix: keep one of each, with table.groupby or table.drop_duplicates"
        )
        raise ConversionError(msg)
    return keys, columns


def plain_cells(column: pd.Series[Any]) -> list[Any]:
    """Return the values of a column as Python spells them; None for missing ones."""
    values = [v.item() if isinstance(v, np.generic) else v for v in column.tolist()]
    missing = column.isna().tolist()
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


def listed(names: Iterable[object]) -> str:
    """Return names for an error, the first few of many.

    Examples
    --------
    >>> listed(range(13))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more'
    """
    texts = [str(name) for name in names]
    more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return ", ".join(texts[:_MOST_SHOWN]) + more


def _repeated(names: Iterable[Any]) -> list[Any]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
