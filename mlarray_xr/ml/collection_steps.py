"""The steps of a collection: each makes records of records, when somebody looks at them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.collection_split import plan_split, seeded_order
from mlarray_xr.ml.collection_table import listed, matching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from fractions import Fraction

    from mlarray_xr.ml.collection_table import Rows
    from mlarray_xr.ml.subject_record import SubjectRecord

__all__ = [
    "Filter",
    "Head",
    "Join",
    "Missing",
    "MissingLabels",
    "Part",
    "Records",
    "Sample",
    "Select",
    "Step",
    "Tail",
    "Take",
    "check_choice",
    "checked_condition",
    "complete",
]

Records: TypeAlias = "tuple[SubjectRecord, ...]"
Missing: TypeAlias = Literal["raise", "drop", "keep"]
"""What becomes of subjects that lack a modality."""
MissingLabels: TypeAlias = Literal["raise", "fill", "drop"]
"""What becomes of subjects that a table says nothing of."""


class Step(Protocol):
    """One operation on a collection; a value."""

    def apply(self, records: Records) -> Records:
        """Return the records after the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Keep what fulfils a condition."""

    condition: str | Callable[[SubjectRecord], bool]
    """A pandas query on the labels, or a function of the record."""

    def apply(self, records: Records) -> Records:
        """Ask for every record, once."""
        if isinstance(self.condition, str):
            kept = matching(records, self.condition)
        else:
            kept = [bool(self.condition(record)) for record in records]
        return tuple(record for record, keep in zip(records, kept, strict=True) if keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Keep the first ones."""

    n: int

    def apply(self, records: Records) -> Records:
        """Keep them, or what there is of them."""
        return records[: self.n]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Keep the last ones."""

    n: int

    def apply(self, records: Records) -> Records:
        """Keep them, or what there is of them."""
        return records[max(0, len(records) - self.n) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Keep what is at some positions, in their order, as often as they name it."""

    positions: tuple[int, ...]

    def apply(self, records: Records) -> Records:
        """Look the positions up."""
        n = len(records)
        outside = [position for position in self.positions if not -n <= position < n]
        if outside:
            raise IndexError(f"take: positions {listed(outside)} of {n} subjects")
        return tuple(records[position] for position in self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Keep some at random, in the order they are in."""

    n: int
    seed: int

    def apply(self, records: Records) -> Records:
        """Draw by identifier, so that the order of the records does not matter."""
        if self.n > len(records):
            msg = f"sample({self.n}) of {len(records)} subjects. To fix: ask for fewer"
            raise ValueError(msg)
        order = sorted(
            range(len(records)),
            key=lambda row: (seeded_order(self.seed, records[row].subject), row),
        )
        return tuple(records[row] for row in sorted(order[: self.n]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Keep some subjects, or some modalities of every subject."""

    subjects: tuple[str, ...] | None
    modalities: tuple[str, ...] | None
    missing: Missing

    def apply(self, records: Records) -> Records:
        """Keep them, in the order in which they were named."""
        if self.subjects is not None:
            by_subject = {record.subject: record for record in records}
            unknown = [name for name in self.subjects if name not in by_subject]
            if unknown:
                msg = f"select: {len(unknown)} subjects are not there: {listed(unknown)}"
                raise ConversionError(msg)
            records = tuple(by_subject[name] for name in self.subjects)
        if self.modalities is None:
            return records
        wanted = self.modalities
        kept = complete(records, modalities=wanted, missing=self.missing)
        return tuple(
            replace(record, files={m: record.files[m] for m in wanted if m in record.files})
            for record in kept
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Keep one part of a split."""

    part: str
    shares: Mapping[str, Fraction]
    seed: int
    stratify: str | None
    group: str | None

    def apply(self, records: Records) -> Records:
        """Split, and keep the part."""
        strata = dict.fromkeys((record.subject for record in records), "")
        if self.stratify is not None:
            strata = _column(records, self.stratify)
        groups = None if self.group is None else _column(records, self.group)
        parts = plan_split(strata, shares=self.shares, seed=self.seed, groups=groups)
        return tuple(record for record in records if parts[record.subject] == self.part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Add the labels of a table."""

    labels: Rows
    columns: tuple[str, ...]
    missing: MissingLabels
    fill_value: Any

    def apply(self, records: Records) -> Records:
        """Add them by subject."""
        taken = {name for record in records for name in record.labels} & {*self.columns}
        if taken:
            msg = f"join: columns {listed(sorted(taken))} are there already. To fix: rename them"
            raise ConversionError(msg)
        rows = [self.labels.get(record.subject, {}) for record in records]
        gaps = [[c for c in self.columns if row.get(c) is None] for row in rows]
        if self.missing == "raise":
            self._check(records, gaps)
        return tuple(
            replace(
                record,
                labels={
                    **record.labels,
                    **{c: self.fill_value if c in gap else row[c] for c in self.columns},
                },
            )
            for record, row, gap in zip(records, rows, gaps, strict=True)
            if not gap or self.missing != "drop"
        )

    def _check(self, records: Records, gaps: Sequence[Sequence[str]]) -> None:
        """Refuse subjects without a label, and name them."""
        without = [r.subject for r, gap in zip(records, gaps, strict=True) if gap]
        if not without:
            return
        columns = [c for c in self.columns if any(c in gap for gap in gaps)]
        known = sum(subject in self.labels for subject in {r.subject for r in records})
        msg = (
            f"join: labels {listed(columns)} are missing of {len(without)} of {len(records)} "
            f"subjects: {listed(without)}; the table has rows for {known} of them. To fix: "
            "missing='drop' leaves these subjects out, missing='fill' gives them fill_value"
        )
        raise ConversionError(msg)


def complete(records: Records, *, modalities: Sequence[str] | None, missing: Missing) -> Records:
    """Deal with subjects that lack a modality.

    Parameters
    ----------
    records
        Subjects, each of them once or more.
    modalities
        What each must have; every modality of any of them unless given.
    missing
        Refuse such subjects, leave them out, or keep them while they have one of the modalities.

    Raises
    ------
    ConversionError
        When subjects lack a modality, or no subject has it.
    """
    known = dict.fromkeys(name for record in records for name in record.files)
    wanted = tuple(known if modalities is None else modalities)
    unknown = [name for name in wanted if name not in known]
    if unknown and records:
        msg = f"modalities {listed(unknown)} were asked for; there are {listed(known)}"
        raise ConversionError(msg)
    gaps = {r.subject: [m for m in wanted if m not in r.files] for r in records}
    lacking = {
        subject: gap
        for subject, gap in gaps.items()
        if gap and (missing != "keep" or len(gap) == len(wanted))
    }
    if lacking and missing != "drop":
        counts = Counter(name for gap in lacking.values() for name in gap)
        what = ", ".join(f"{name} of {n}" for name, n in counts.items())
        msg = (
            f"{len(lacking)} of {len(gaps)} subjects lack a modality ({what}): {listed(lacking)}. "
            "To fix: (1) add the files; (2) missing='drop' leaves these subjects out; (3) "
            "missing='keep' keeps those that have another"
        )
        raise ConversionError(msg)
    return tuple(record for record in records if record.subject not in lacking)


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse what is none of the choices of a Literal."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is none of {get_args(choices)}")


def checked_condition(condition: Any) -> str | Callable[[SubjectRecord], bool]:
    """Return a condition of `Filter`; anything but a query or a function is refused."""
    checked: str | Callable[[SubjectRecord], bool] = condition
    if isinstance(condition, str) or callable(condition):
        return checked
    raise TypeError(f"filter({condition!r}): a query or a function of the record is needed")


def _column(records: Records, name: str) -> dict[str, str]:
    """Return a label of every subject as text.

    Raises
    ------
    ConversionError
        When a subject has none.
    """
    without = [record.subject for record in records if record.labels.get(name) is None]
    if without:
        known = dict.fromkeys(label for record in records for label in record.labels)
        msg = (
            f"split: label {name!r} is missing of {len(without)} of {len(records)} subjects: "
            f"{listed(without)}. The columns are {listed(known)}. To fix: fill it with "
            "Collection.join(..., missing='fill'), or filter these subjects out"
        )
        raise ConversionError(msg)
    return {record.subject: str(record.labels[name]) for record in records}
