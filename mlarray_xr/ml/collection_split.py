"""Which subjects a split or a sample takes: by identifier and seed, whatever the order."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_shares", "plan_split", "seeded_order"]

_DIGEST_BYTES = 16
_ROUNDING = Fraction(1, 10**6)


def seeded_order(seed: int, name: str) -> bytes:
    """Return a key that sorts names at random: the same for the same seed, on any machine.

    Examples
    --------
    >>> order = [sorted("abcde", key=lambda name: seeded_order(seed, name)) for seed in (0, 0, 1)]
    >>> order[0] == order[1], order[0] == order[2]
    (True, False)
    """
    text = f"{seed}\0{name}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


def check_shares(shares: Mapping[str, float]) -> dict[str, Fraction]:
    """Return the shares of a split as exact numbers that add up to one.

    Raises
    ------
    ValueError
        When there are none, one is not positive, or they do not add up to 1.

    Examples
    --------
    >>> check_shares({"train": 0.7, "test": 0.3})
    {'train': Fraction(7, 10), 'test': Fraction(3, 10)}
    """
    wrong = [name for name, share in shares.items() if not 0 < share < math.inf]
    if wrong or not shares:
        raise ValueError(f"shares {dict(shares)}: a positive number for each part is needed")
    # By their text: 0.7 is meant to be 7/10.
    exact = {name: Fraction(str(float(share))) for name, share in shares.items()}
    total = sum(exact.values(), start=Fraction())
    if abs(total - 1) > _ROUNDING:
        raise ValueError(f"shares {dict(shares)} add up to {float(total):g}. To fix: make that 1")
    return {name: share / total for name, share in exact.items()}


def plan_split(
    strata: Mapping[str, str],
    *,
    shares: Mapping[str, Fraction],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Decide the part of every subject.

    Strata, and in them groups, are put in an order that only seed and names decide. Each group
    goes whole to the part that lacks most at its turn, so that every stretch of the order, hence
    every stratum, is divided by the shares as nearly as whole groups allow.

    Parameters
    ----------
    strata
        The stratum of each subject.
    shares
        Share of each part; they add up to one.
    seed
        Another seed, another split.
    groups
        The group of each subject; each one for itself unless given. A group counts as of the
        stratum that most of its subjects have.

    Returns
    -------
    dict
        Name of the part by subject. Without groups every part has its share of all subjects to
        within one subject, when there are up to three parts.

    Examples
    --------
    >>> shares = check_shares({"train": 0.75, "test": 0.25})
    >>> plan_split({name: "" for name in "abcd"}, shares=shares, seed=0)
    {'d': 'train', 'a': 'train', 'b': 'test', 'c': 'train'}
    """
    members: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(strata):
        members[subject if groups is None else groups[subject]].append(subject)
    stratum_of = {
        group: _most_common([strata[s] for s in found]) for group, found in members.items()
    }
    order = sorted(
        members,
        key=lambda group: (
            seeded_order(seed, f"stratum {stratum_of[group]}"),
            -len(members[group]),
            seeded_order(seed, group),
        ),
    )
    counts = dict.fromkeys(shares, 0)
    parts: dict[str, str] = {}
    for group in order:
        n = sum(counts.values()) + len(members[group])
        part = max(shares, key=lambda name: shares[name] * n - counts[name])
        counts[part] += len(members[group])
        parts.update(dict.fromkeys(members[group], part))
    return parts


def _most_common(names: Sequence[str]) -> str:
    """Return the name that occurs most often, the first in the alphabet of several."""
    return min(Counter(names).items(), key=lambda item: (-item[1], item[0]))[0]
