"""CollectionViews: what a collection holds, and the views of it that are made on first use."""

from __future__ import annotations

import html
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.collection_pending import PendingRecords
from mlarray_xr.ml.collection_split import check_shares
from mlarray_xr.ml.collection_steps import (
    Filter,
    Head,
    Join,
    Missing,
    MissingLabels,
    Part,
    Sample,
    Select,
    Tail,
    Take,
    check_choice,
    checked_condition,
)
from mlarray_xr.ml.collection_table import labels_of, listed, table_of
from mlarray_xr.planning.draw import check_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from mlarray_xr.ml.collection_steps import Records, Step
    from mlarray_xr.ml.subject_record import SubjectRecord

__all__ = ["CollectionViews"]


class CollectionViews:
    """What a `Collection` holds and how views of it are made; see there.

    Parameters
    ----------
    records
        One for each subject, or what will make them.

    Raises
    ------
    ConversionError
        When two records are of the same subject.
    """

    def __init__(self, records: Iterable[SubjectRecord] | PendingRecords) -> None:
        if not isinstance(records, PendingRecords):
            records = PendingRecords(made=_distinct(records))
        self._pending = records
        self._by_subject: dict[str, SubjectRecord] | None = None

    def _after(self, step: Step) -> Self:
        """Return what a step will make of these records."""
        return type(self)(PendingRecords(before=self._pending, step=step))

    def __getstate__(self) -> Records:
        """Return the records: neither functions nor what they were taken from."""
        return self.records

    def __setstate__(self, records: Records) -> None:
        """Restore the records."""
        self._pending = PendingRecords(made=records)
        self._by_subject = None

    # What is in it

    @property
    def records(self) -> tuple[SubjectRecord, ...]:
        """The records, in order; evaluates what is pending."""
        return self._pending.records()

    @property
    def subjects(self) -> tuple[str, ...]:
        """The identifiers, in order."""
        return tuple(record.subject for record in self.records)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that any subject has."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.files))

    @property
    def table(self) -> pd.DataFrame:
        """The labels: a row per record, indexed by subject, and a column per label."""
        return table_of(self.records)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __iter__(self) -> Iterator[SubjectRecord]:
        """Iterate over the records."""
        return iter(self.records)

    def __contains__(self, subject: object) -> bool:
        """Tell whether a subject is there."""
        return subject in self._index()

    def __getitem__(self, subject: str) -> SubjectRecord:
        """Return the record of a subject; positions are for `take`."""
        found = self._index().get(subject)
        if found is None:
            msg = f"no subject {subject!r} among {len(self)}. By position: .take([...])"
            raise KeyError(msg)
        return found

    def _index(self) -> dict[str, SubjectRecord]:
        """Return the records by subject."""
        if self._by_subject is None:
            self._by_subject = {record.subject: record for record in self.records}
        return self._by_subject

    # Views

    def filter(self, condition: str | Callable[[SubjectRecord], bool]) -> Self:
        """Keep the subjects that fulfil a condition.

        Parameters
        ----------
        condition
            A query on the labels as `pandas.DataFrame.query` takes it, which is code: ask none
            that others wrote. Or a function of the record, called once for each.

        Examples
        --------
        >>> from mlarray_xr.ml.collection import Collection
        >>> study = Collection.from_files(["a.mla", "b.mla"]).join({"a": 30, "b": 60}, name="age")
        >>> study.filter("age > 40").subjects
        ('b',)
        """
        return self._after(Filter(condition=checked_condition(condition)))

    def select(
        self,
        *,
        subjects: Sequence[str] | None = None,
        modalities: str | Sequence[str] | None = None,
        missing: Missing = "raise",
    ) -> Self:
        """Keep some subjects, or some modalities of every subject, in the order named.

        Parameters
        ----------
        subjects
            All unless given.
        modalities
            All unless given.
        missing : {"raise", "drop", "keep"}
            What becomes of subjects that lack one of the modalities.
        """
        check_choice("missing", missing, Missing)
        return self._after(
            Select(
                subjects=None if subjects is None else _names("subjects", subjects),
                modalities=None if modalities is None else _one_or_more("modalities", modalities),
                missing=missing,
            )
        )

    def take(self, positions: Iterable[int]) -> Self:
        """Keep what is at some positions, in their order, as often as they name it."""
        found = list(positions)
        if any(isinstance(p, bool) or not hasattr(p, "__index__") for p in found):
            msg = "take: whole numbers are needed. To fix: numpy.flatnonzero(mask) for a mask"
            raise TypeError(msg)
        return self._after(Take(positions=tuple(p.__index__() for p in found)))

    def head(self, n: int = 5) -> Self:
        """Keep the first n, or as many as there are."""
        return self._after(Head(n=_count("head", n)))

    def tail(self, n: int = 5) -> Self:
        """Keep the last n, or as many as there are."""
        return self._after(Tail(n=_count("tail", n)))

    def sample(self, n: int, *, seed: int = 0) -> Self:
        """Keep n subjects drawn without replacement, in the order they are in.

        Seed and identifiers alone decide which; the order of the records does not matter.
        """
        return self._after(Sample(n=_count("sample", n), seed=check_seed(seed)))

    def split(
        self,
        shares: Mapping[str, float],
        *,
        seed: int = 0,
        stratify: str | None = None,
        group: str | None = None,
    ) -> dict[str, Self]:
        """Divide the subjects: every one is in exactly one part.

        Seed and identifiers alone decide; the order of the records does not matter. Each part has
        its share to within one subject, unless groups or more than three parts prevent it.

        Parameters
        ----------
        shares
            Share of each part, such as ``{"train": 0.7, "val": 0.15, "test": 0.15}``; they add up
            to 1.
        seed
            Another seed, another split.
        stratify
            Label of which every part gets each value by its share.
        group
            Label of what stays together, such as the patient of several scans.
        """
        exact, checked = check_shares(shares), check_seed(seed)
        return {
            part: self._after(
                Part(part=part, shares=exact, seed=checked, stratify=stratify, group=group)
            )
            for part in exact
        }

    def join(
        self,
        labels: pd.DataFrame | pd.Series[Any] | Mapping[str, Any],
        *,
        on: str | None = None,
        name: str = "label",
        missing: MissingLabels = "raise",
        fill_value: Any = None,
    ) -> Self:
        """Add labels by subject; rows of other subjects are passed over.

        Parameters
        ----------
        labels
            Columns of a table, a series, or a value by subject. Later changes do not count.
        on
            Column of the table that holds the subjects; its index unless given.
        name
            Column of what has no name itself.
        missing : {"raise", "fill", "drop"}
            What becomes of subjects without a row, or with an empty cell (None, NaN, NaT): an
            error that names them, `fill_value` in such cells, or they are left out.
        fill_value
            See `missing`.

        Raises
        ------
        ConversionError
            When a subject has two rows or the keys are no text; on evaluation when labels are
            missing, or a column is there already.
        """
        check_choice("missing", missing, MissingLabels)
        found = labels_of(labels, on=on, name=name)
        return self._after(
            Join(
                labels=found.by_subject,
                columns=found.columns,
                missing=missing,
                fill_value=fill_value,
            )
        )

    def __repr__(self) -> str:
        """Describe counts, modalities and columns; neither subjects nor labels."""
        steps = self._pending.names()
        if steps:
            return f"<{type(self).__name__} not evaluated yet: {', '.join(steps)}>"
        return f"<{type(self).__name__} of {'; '.join(self._facts())}>"

    def _repr_html_(self) -> str:
        """Return the description for notebooks, with the count of each modality."""
        described = f"<p>{html.escape(repr(self))}</p>"
        if self._pending.names():
            return described
        counts = Counter(name for record in self for name in record.files)
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{n}</td></tr>" for name, n in counts.items()
        )
        return f"{described}<table><tr><th>modality</th><th>files</th></tr>{rows}</table>"

    def _facts(self) -> list[str]:
        """Return what may be shown of evaluated records."""
        facts = [f"{len(self)} subjects", f"modalities {', '.join(self.modalities) or 'none'}"]
        columns = list(dict.fromkeys(name for record in self for name in record.labels))
        return [*facts, f"labels {', '.join(columns)}"] if columns else facts


def _distinct(records: Iterable[SubjectRecord]) -> Records:
    """Return records of which no two are of the same subject."""
    found = tuple(records)
    counts = Counter(record.subject for record in found)
    repeated = [subject for subject, n in counts.items() if n > 1]
    if repeated:
        msg = f"{len(repeated)} subjects occur twice: {listed(repeated)}. To fix: rename them"
        raise ConversionError(msg)
    return found


def _names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple; a text is refused where several are meant."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what}={names!r}: a list of names is needed")
    return tuple(names)


def _one_or_more(what: str, names: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name or several, at least one and none twice, as a tuple."""
    found = (names,) if isinstance(names, str) else _names(what, names)
    if not found or len({*found}) < len(found):
        raise ValueError(f"{what}={found}: one name or more are needed, each once")
    return found


def _count(what: str, n: int) -> int:
    """Return a number of subjects."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 0:
        raise ValueError(f"{what}({n!r}): a whole number from 0 is needed")
    return n.__index__()
