"""The cache sizes that layouts are planned for: given by hand or detected, never more than likely.

Detection is not believed beyond what cores have in practice: a virtual machine of two CPUs said to
have 300 MiB of third level, and chunks planned for half of it are fifty times too large elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.byte_amount import in_words, parse_bytes
from mlarray_xr.planning.cache_probes import (
    CACHES_VARIABLE,
    CacheShare,
    MachineCaches,
    configured_caches,
    read_machine,
)

__all__ = ["CacheSizes", "caches_from", "detect_caches", "smallest_caches"]

_KIB, _MIB = 1 << 10, 1 << 20
# Per core, what is believed. Below the first number a machine does not know its caches; beyond the
# second it has better ones than those that will read the file, or tells those of its host.
_BELIEVED = {
    # The data caches of 64-bit processors; 128 KiB are Apple's.
    1: (16 * _KIB, 128 * _KIB),
    # From Intel's clients of 2015 to its servers of 2023.
    2: (256 * _KIB, 2 * _MIB),
    # Most servers have 1 to 4 MiB, AMD's of few cores 8. Smaller chunks do not pay their handling.
    3: (1 * _MIB, 8 * _MIB),
}
# Where a machine tells nothing. The third level is that for which the reference package plans.
_UNKNOWN = {1: 32 * _KIB, 2: 512 * _KIB, 3: 1_441_792}
_LEVELS = {"l1": 1, "l2": 2, "l3": 3}

_LARGEST_BYTES = 1 << 40
_LONGEST_PROVENANCE = 1000
_FIX = "To fix: such as 'l1=32KiB,l2=1MiB,l3=2MiB'; levels that are left out are detected"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """Effective cache sizes of one core, bytes.

    Raises
    ------
    LayoutError
        If sizes are not integers from 1 to 2**40 that ascend from level to level, or the
        provenance is not one printable line of at most 1000 characters.

    Examples
    --------
    >>> sizes = CacheSizes(l1_bytes=32768, l2_bytes=1048576, l3_bytes=1441792)
    >>> print(sizes)
    L1 32 KiB, L2 1 MiB, L3 1.375 MiB (given)
    >>> CacheSizes.from_plain(sizes.to_plain()) == sizes
    True
    """

    l1_bytes: int
    """Data cache of a core."""
    l2_bytes: int
    """A core's share of the second level."""
    l3_bytes: int
    """A core's share of the third level; where there is none, equal to `l2_bytes`."""
    provenance: str = field(default="given", compare=False)
    """Where the numbers come from, one line for people; not compared."""

    def __post_init__(self) -> None:
        """Refuse what cannot be the caches of a core."""
        sizes = {"l1_bytes": self.l1_bytes, "l2_bytes": self.l2_bytes, "l3_bytes": self.l3_bytes}
        for name, size in sizes.items():
            if not _is_integer(size) or not 1 <= size <= _LARGEST_BYTES:
                raise LayoutError(
                    f"{name} is {_shown(size)}. To fix: an integer from 1 to {_LARGEST_BYTES}"
                )
        if not self.l1_bytes <= self.l2_bytes <= self.l3_bytes:
            raise LayoutError(
                f"cache sizes descend: {sizes}. To fix: l1_bytes <= l2_bytes <= l3_bytes; a level "
                "that is not there has the size of the one below"
            )
        line: Any = self.provenance
        if not isinstance(line, str) or len(line) > _LONGEST_PROVENANCE or not line.isprintable():
            raise LayoutError(
                f"provenance is {_shown(line)}. To fix: one printable line of at most "
                f"{_LONGEST_PROVENANCE} characters"
            )

    def __str__(self) -> str:
        sizes = (self.l1_bytes, self.l2_bytes, self.l3_bytes)
        levels = (f"L{i} {in_words(n)}" for i, n in enumerate(sizes, start=1))
        return f"{', '.join(levels)} ({self.provenance})"

    def to_plain(self) -> dict[str, int | str]:
        """Return the fields as a mapping for JSON.

        Examples
        --------
        >>> CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3).to_plain()
        {'l1_bytes': 1, 'l2_bytes': 2, 'l3_bytes': 3, 'provenance': 'given'}
        """
        return {
            "l1_bytes": self.l1_bytes,
            "l2_bytes": self.l2_bytes,
            "l3_bytes": self.l3_bytes,
            "provenance": self.provenance,
        }

    @classmethod
    def from_plain(cls, mapping: Any) -> CacheSizes:
        """Return what :meth:`to_plain` told, from a file that may be hostile.

        Unknown keys are ignored. A provenance is cut to 1000 characters, those that would not
        print become question marks, and without one it is "given".

        Raises
        ------
        LayoutError
            If it is no mapping, sizes are missing, or a value is refused at birth.

        Examples
        --------
        >>> CacheSizes.from_plain({"l1_bytes": 1, "l2_bytes": 2, "l3_bytes": 3, "x": None})
        CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3, provenance='given')
        """
        if not isinstance(mapping, Mapping):
            raise LayoutError(
                f"cache sizes were asked of a value that is {_shown(mapping)}. "
                "To fix: a mapping as to_plain() returns it"
            )
        provenance = mapping.get("provenance", "given")
        if isinstance(provenance, str):
            provenance = _one_line(provenance)
        return cls(
            l1_bytes=mapping.get("l1_bytes"),  # type: ignore[arg-type]
            l2_bytes=mapping.get("l2_bytes"),  # type: ignore[arg-type]
            l3_bytes=mapping.get("l3_bytes"),  # type: ignore[arg-type]
            provenance=provenance,
        )


def detect_caches() -> CacheSizes:
    """Return the effective cache sizes of the weakest core that this process may use.

    The environment variable ``MLARRAY_XR_CACHES``, such as ``l1=32KiB,l2=1MiB,l3=2MiB``, goes
    first; levels that it leaves out are detected, and moved between the given ones.

    What the operating system tells is a core's share: the size of a cache over the cores that share
    it on the hardware, whoever uses them; of different cores it is the smallest. A CPU set or a CPU
    quota does not make it larger. Sizes are then held within 16 to 128 KiB for the first level,
    256 KiB to 2 MiB for the second and 1 to 8 MiB for the third, which is at least the second.
    Without a third level it is the second; levels of which nothing is known are 32 KiB, 512 KiB and
    1.375 MiB. The provenance says what was found and what was changed. On Windows this takes about
    a second: keep the value.

    Raises
    ------
    LayoutError
        If the environment variable is malformed; never because of the machine.

    Examples
    --------
    >>> sizes = detect_caches()
    >>> sizes.l1_bytes <= sizes.l2_bytes <= sizes.l3_bytes
    True
    """
    text = configured_caches()
    if text is None:
        return _machine_caches()
    return _completed(_parsed(text, CACHES_VARIABLE), CACHES_VARIABLE, others=_machine_caches)


def caches_from(value: CacheSizes | Mapping[str, int | str] | str | None) -> CacheSizes:
    """Return the cache sizes that an argument ``caches=`` stands for.

    Parameters
    ----------
    value
        Cache sizes; a mapping such as ``{"l1": 32768, "l3": "2MiB"}`` or the same as a text,
        ``"l1=32KiB,l3=2MiB"``, where missing levels are detected and moved between the given
        ones; ``"local"`` or None for what :func:`detect_caches` finds. Amounts are bytes, or have
        a unit.

    Raises
    ------
    LayoutError
        If the value is none of these, names other levels, or sizes descend.

    Examples
    --------
    >>> print(caches_from({"l1": 32768, "l2": "1MiB", "l3": "2 MiB"}))
    L1 32 KiB, L2 1 MiB, L3 2 MiB (caches=)
    >>> caches_from("l1=32KiB,l2=1MiB,l3=2MiB").l3_bytes
    2097152
    """
    if isinstance(value, CacheSizes):
        return value
    if value is None or (isinstance(value, str) and value.strip().lower() == "local"):
        return detect_caches()
    if isinstance(value, str):
        return _completed(_parsed(value, "caches="), "caches=", others=detect_caches)
    if isinstance(value, Mapping):
        return _completed(_amounts(value, "caches="), "caches=", others=detect_caches)
    raise LayoutError(f"caches= is {_shown(value)}. {_FIX}; 'local' detects all")


def smallest_caches(sizes: Iterable[CacheSizes]) -> CacheSizes:
    """Return the minimum of every level: what suits all machines of a cluster.

    Where all are equal it is the first of them with its provenance, so that many machines of a kind
    count as one.

    Raises
    ------
    LayoutError
        If there are none.

    Examples
    --------
    >>> laptop = CacheSizes(l1_bytes=49152, l2_bytes=1048576, l3_bytes=1572864)
    >>> server = CacheSizes(l1_bytes=32768, l2_bytes=524288, l3_bytes=4194304)
    >>> print(smallest_caches([laptop, server, server]))
    L1 32 KiB, L2 512 KiB, L3 1.5 MiB (smallest of 3, 2 distinct: given)
    """
    every = list(sizes)
    if not every:
        raise LayoutError("the smallest of no cache sizes was asked for. To fix: give at least one")
    distinct = len(set(every))
    if distinct == 1:
        return every[0]
    origins = " | ".join(dict.fromkeys(one.provenance for one in every))
    return CacheSizes(
        l1_bytes=min(one.l1_bytes for one in every),
        l2_bytes=min(one.l2_bytes for one in every),
        l3_bytes=min(one.l3_bytes for one in every),
        provenance=_one_line(f"smallest of {len(every)}, {distinct} distinct: {origins}"),
    )


def effective_caches(machine: MachineCaches) -> CacheSizes:
    """Decide the effective cache sizes of the weakest core by what a machine says.

    Examples
    --------
    >>> core = {1: CacheShare(size_bytes=49152), 2: CacheShare(size_bytes=2097152)}
    >>> core[3] = CacheShare(size_bytes=272629760, cores=2)
    >>> print(effective_caches(MachineCaches(origin="Linux sysfs, 2 of 2 CPUs", cores=(core,))))
    L1 48 KiB, L2 2 MiB, L3 8 MiB
    (Linux sysfs, 2 of 2 CPUs: L1 48 KiB; L2 2 MiB; L3 260 MiB shared by 2 cores, clamped to 8 MiB)
    """
    shares = {level: _smallest_share(machine, level) for level in _BELIEVED}
    sizes = {level: _believed(level, share) for level, share in shares.items()}
    notes = {level: _note(level, share, sizes[level]) for level, share in shares.items()}
    if shares[3] is None and shares[2] is not None:
        sizes[3], notes[3] = sizes[2], "no L3"
    elif sizes[3] < sizes[2]:
        # A core with less of the third level than of the second still has the second.
        sizes[3], notes[3] = sizes[2], f"{notes[3]}, raised to that of L2"
    return CacheSizes(
        l1_bytes=sizes[1],
        l2_bytes=sizes[2],
        l3_bytes=sizes[3],
        provenance=f"{machine.origin}: {'; '.join(notes.values())}",
    )


def _machine_caches() -> CacheSizes:
    """Detect the caches whatever the environment variable says."""
    return effective_caches(read_machine())


def _smallest_share(machine: MachineCaches, level: int) -> CacheShare | None:
    """Return the share of the core that has least of a level; None if no core tells of it."""
    shares = [core[level] for core in machine.cores if level in core]
    return min(shares, key=lambda share: share.per_core_bytes, default=None)


def _believed(level: int, share: CacheShare | None) -> int:
    """Return the size of a level in bytes, held within what is believed."""
    if share is None:
        return _UNKNOWN[level]
    smallest, largest = _BELIEVED[level]
    return min(max(share.per_core_bytes, smallest), largest)


def _note(level: int, share: CacheShare | None, believed: int) -> str:
    """Say what was found of a level and what was made of it."""
    if share is None:
        return f"L{level} unknown, taken as {in_words(believed)}"
    note = f"L{level} {in_words(share.size_bytes)}"
    if share.cores > 1:
        note += f" shared by {share.cores} cores"
    if share.per_core_bytes != believed:
        note += f", clamped to {in_words(believed)}"
    return note


def _parsed(text: str, source: str) -> dict[int, int]:
    """Return the bytes of the levels in a text such as ``l1=32KiB,l3=2MiB``."""
    pairs = [piece.partition("=") for piece in text.split(",")]
    names = [name.strip().lower() for name, _, _ in pairs]
    if len(set(names)) < len(names) or not all(sign for _, sign, _ in pairs):
        raise LayoutError(f"{source} is {_shown(text)}. {_FIX}")
    return _amounts({name: amount for name, _, amount in pairs}, source)


def _amounts(mapping: Mapping[str, int | str], source: str) -> dict[int, int]:
    """Return the bytes of the levels that a mapping names."""
    sizes = {}
    for name, amount in mapping.items():
        level = _LEVELS.get(name.strip().lower()) if isinstance(name, str) else None
        if level is None or level in sizes:
            raise LayoutError(f"{source} names the level {_shown(name)}. {_FIX}")
        try:
            n_bytes = parse_bytes(amount) if _is_integer(amount) or isinstance(amount, str) else 0
        except ValueError:
            n_bytes = 0
        if not 1 <= n_bytes <= _LARGEST_BYTES:
            raise LayoutError(f"{source} says that L{level} is {_shown(amount)}. {_FIX}")
        sizes[level] = n_bytes
    given = sorted(sizes.items())
    if not given:
        raise LayoutError(f"{source} names no level. {_FIX}")
    if given != list(zip(sorted(sizes), sorted(sizes.values()), strict=True)):
        levels = ", ".join(f"L{level} {in_words(size)}" for level, size in given)
        raise LayoutError(f"{source} gives {levels}, but sizes must ascend. {_FIX}")
    return sizes


def _completed(
    given: Mapping[int, int], source: str, *, others: Callable[[], CacheSizes]
) -> CacheSizes:
    """Return the given levels, with the others between them as near as possible to detected."""
    sizes, provenance = dict(given), source
    if len(given) < len(_LEVELS):
        rest = others()
        detected = {1: rest.l1_bytes, 2: rest.l2_bytes, 3: rest.l3_bytes}
        for level in detected.keys() - given.keys():
            at_most = min((given[i] for i in given if i > level), default=_LARGEST_BYTES)
            at_least = max((given[i] for i in given if i < level), default=1)
            sizes[level] = min(max(detected[level], at_least), at_most)
        names = ", ".join(f"L{level}" for level in sorted(given))
        provenance = _one_line(f"{names} by {source}; others to fit, from {rest.provenance}")
    return CacheSizes(
        l1_bytes=sizes[1], l2_bytes=sizes[2], l3_bytes=sizes[3], provenance=provenance
    )


def _is_integer(value: object) -> bool:
    """Tell whether a value is a true integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _one_line(text: str) -> str:
    """Return a text as one printable line that a provenance may be."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST_PROVENANCE])


def _shown(value: object) -> str:
    """Return a value for an error, in few characters however large it is."""
    if isinstance(value, int) and abs(value) > _LARGEST_BYTES:
        return "an integer beyond 2**40"
    if value is None or isinstance(value, int | float | str):
        return repr(value[:100] if isinstance(value, str) else value)
    return f"of type {type(value).__name__}"
