"""Foreground: which elements of a mask patches are drawn around."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_LABELS", "Classes", "Foreground", "check_labels"]

Classes: TypeAlias = Mapping[float, float] | tuple[tuple[float, float], ...] | Literal["balanced"]
Predicate: TypeAlias = "Callable[[NDArray[Any]], NDArray[np.bool_]]"

MAX_LABELS = 4096
"""Most labels of one mask: atlases of the brain have hundreds."""
_LABELS = range(-(2**63), 2**64)
# Larger labels are sorted to be counted: a table of all below them would be larger than a chunk.
_TABLE_LABELS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreground:
    """What counts as foreground: values above 0, unless one of the parameters says otherwise.

    Raises
    ------
    ValueError
        When more than one parameter is given, or one makes no sense.

    Examples
    --------
    >>> Foreground(threshold=1.5).mask(np.array([0, 1, 2, 3]))
    array([False, False,  True,  True])
    >>> both = Foreground(classes={1: 1, 2: 3})
    >>> both.mask(np.array([0, 1, 2, 3]), label=2), both.weights_of(np.array([1, 2]))
    (array([False, False,  True, False]), array([0.25, 0.75]))
    """

    threshold: float | None = None
    """Values above it."""
    classes: Classes | None = None
    """Labels with weights: those that a volume holds share the probability by weight. Kept as
    pairs, sorted by label. ``"balanced"``: every label above 0, all equally likely."""
    predicate: Predicate | None = None
    """A function from an array of values to a bool array of the same shape, element by element.
    Loader processes need one that pickles, as functions of modules do."""

    def __post_init__(self) -> None:
        """Check the parameters, and make them hashable."""
        names = ("threshold", "classes", "predicate")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            msg = f"foreground by {' and by '.join(given)}. To fix: give one of them"
            raise ValueError(msg)
        if self.threshold is not None and math.isnan(self.threshold):
            msg = "threshold=nan: no value is above it. To fix: give a number"
            raise ValueError(msg)
        predicate: object = self.predicate
        if predicate is not None and not callable(predicate):
            msg = f"predicate={predicate!r}: a function of an array is needed"
            raise ValueError(msg)
        if self.classes is not None and self.classes != "balanced":
            object.__setattr__(self, "classes", _checked_pairs(self.classes))

    def limit_of(self, dtype: np.dtype[Any]) -> float | None:
        """Return what values of a type have to exceed; None where that does not decide.

        Of whole numbers it is a whole number, so that they are compared exactly.
        """
        if self.classes is not None or self.predicate is not None:
            return None
        return _limit(self.threshold, dtype)

    def labels_of(self, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return what tells classes apart among values of a type.

        Returns
        -------
        numpy.ndarray or None
            The given labels that the type can hold, sorted, of that type in native byte order.
            True alone where there are no classes. None where the values decide.
        """
        if self.classes is None:
            return np.ones(1, np.bool_)
        if not isinstance(self.classes, tuple):
            return None
        return np.array(list(self._held(dtype)), dtype.newbyteorder("="))

    def weights_of(self, labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of each of the labels of a volume; all 0 where none is wanted."""
        weights = np.ones(len(labels))
        if isinstance(self.classes, tuple):
            held = self._held(labels.dtype)
            weights = np.array([held.get(label, 0.0) for label in labels.tolist()], float)
        total = weights.sum()
        return weights / total if total else weights

    def mask(self, values: NDArray[Any], *, label: Any = True) -> NDArray[np.bool_]:
        """Tell which values are foreground, with classes: have a label.

        Raises
        ------
        ValueError
            When the predicate returns anything but a bool array of the shape of the values.
        """
        if self.classes is not None:
            return np.asarray(values == label)
        if self.predicate is None:
            with np.errstate(over="ignore"):  # of a float16 that cannot hold the limit
                return np.asarray(values > _limit(self.threshold, values.dtype))
        found: NDArray[Any] = np.asarray(self.predicate(values))
        if found.shape != values.shape or found.dtype != np.bool_:
            msg = (
                f"the predicate made {found.dtype} of shape {found.shape} from values of shape "
                f"{values.shape}. To fix: return a bool array of the same shape"
            )
            raise ValueError(msg)
        return found

    def count(
        self, values: NDArray[Any], *, reduced: tuple[int, ...] = ()
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Count the foreground of an array, class by class.

        Parameters
        ----------
        values
            The elements.
        reduced
            Axes along which elements are one: they have every label that one of them has.

        Returns
        -------
        labels, counts : numpy.ndarray
            The classes of which there is something, sorted, and how many elements they have.

        Raises
        ------
        ValueError
            When there are more than `MAX_LABELS` labels.
        """
        labels = self.labels_of(values.dtype)
        if labels is None:
            labels, counts = _positive_labels(values)
            check_labels(len(labels))
        if self.classes != "balanced" or any(values.shape[axis] > 1 for axis in reduced):
            masks = (self.mask(values, label=label) for label in labels)
            counts = np.array(
                [np.count_nonzero(mask.any(axis=reduced) if reduced else mask) for mask in masks],
                np.int64,
            )
        return labels[counts > 0], counts[counts > 0]

    def _held(self, dtype: np.dtype[Any]) -> dict[Any, float]:
        """Return the weights of the labels that a type can hold, by label as the type has it."""
        held = {}
        pairs = self.classes if isinstance(self.classes, tuple) else ()
        with np.errstate(all="ignore"):
            for label, weight in pairs:
                cast = np.asarray(label).astype(dtype)
                if cast == label:
                    held[cast.item()] = weight
        return held


def _limit(threshold: float | None, dtype: np.dtype[Any]) -> float:
    """Return what values of a type have to exceed."""
    limit = 0 if threshold is None else threshold
    return limit if dtype.kind == "f" or math.isinf(limit) else math.floor(limit)


def check_labels(count: int) -> None:
    """Refuse masks of too many labels to keep counts of each.

    Raises
    ------
    ValueError
        When there are more than `MAX_LABELS`.
    """
    if count > MAX_LABELS:
        msg = (
            f"{count} labels found, at most {MAX_LABELS} are balanced: this is an image rather "
            "than a mask. To fix: (1) threshold=; (2) classes= with the labels that matter"
        )
        raise ValueError(msg)


def _checked_pairs(classes: object) -> tuple[tuple[float, float], ...]:
    """Return labels and weights as pairs, sorted by label."""
    pairs = classes.items() if isinstance(classes, Mapping) else classes
    try:
        found = {_plain(label): float(weight) for label, weight in pairs}  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        msg = f"classes={classes!r}: 'balanced' or labels with weights are needed: {error}"
        raise ValueError(msg) from error
    weights = found.values()
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        msg = f"classes={classes!r}: weights are numbers from 0, not all of them 0"
        raise ValueError(msg)
    check_labels(len(found))
    return tuple(sorted(found.items()))


def _plain(label: Any) -> float:
    """Return a label as a plain number that some type can hold."""
    number: float = label.item() if isinstance(label, np.generic) else label
    if isinstance(number, float):
        number = int(number) if number.is_integer() else number
    if not isinstance(number, int | float) or not math.isfinite(number):
        msg = f"the label {label!r} is no number"
        raise TypeError(msg)
    if not _LABELS[0] <= number <= _LABELS[-1]:
        msg = f"no type holds the label {label!r}"
        raise ValueError(msg)
    return int(number) if isinstance(number, bool) else number


def _positive_labels(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the values above 0 that occur, sorted, in native byte order, and how often."""
    native = values.dtype.newbyteorder("=")
    flat = values.reshape(-1)
    if values.dtype.kind not in "bu":
        flat = flat[flat > 0]
    if flat.max(initial=0).item() < _TABLE_LABELS:  # as a float16 it would overflow
        numbers = flat.astype(np.intp)
        if values.dtype.kind != "f" or np.array_equal(numbers, flat):
            table = np.bincount(numbers)
            table[:1] = 0
            labels = np.flatnonzero(table)
            return labels.astype(native), table[labels]
    labels, counts = np.unique(flat[flat > 0], return_counts=True)
    return labels.astype(native), counts
