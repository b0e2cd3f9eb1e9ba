"""The nodes of a cluster: what every one of them has, and what suits them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.planning.caches import CacheSizes, smallest_caches
from mlarray_xr.planning.explanation import Explanation

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ClusterCaches", "NodeCaches", "least_memory"]

_LONGEST_NAME = 255
_LARGEST_COUNT = 1 << 60
_HEADINGS = ("node", "workers", "threads", "memory per thread", "L1", "L2", "L3")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCaches:
    """The cache sizes of one node: the machine or container that some of the workers see.

    Raises
    ------
    LayoutError
        If a name is not one printable line of at most 255 characters, or a number is no integer
        that counts something.

    Examples
    --------
    >>> sizes = CacheSizes(l1_bytes=32768, l2_bytes=1048576, l3_bytes=2097152)
    >>> NodeCaches(host="gpu01", boot="", workers=2, threads=8, memory_bytes=None, caches=sizes)
    NodeCaches(host='gpu01', workers=2, threads=8, memory_bytes=None, caches=CacheSizes(...))
    """

    host: str
    """Its name."""
    boot: str = field(repr=False)
    """What tells apart nodes of the same name: the boot id on Linux, nothing elsewhere."""
    workers: int
    """Workers that answered; 0 where this process was asked instead."""
    threads: int
    """Threads of all its workers; without workers, those that this process may use."""
    memory_bytes: int | None
    """Smallest memory limit of its workers for each of their threads; None is unlimited."""
    caches: CacheSizes
    """Smallest among its workers, which may be confined to different cores."""

    def __post_init__(self) -> None:
        """Refuse what cannot be a node."""
        for name in (self.host, self.boot):
            line: Any = name
            if not isinstance(line, str) or len(line) > _LONGEST_NAME or not line.isprintable():
                raise LayoutError(
                    "host or boot of a node is no name. To fix: one printable line of at most "
                    f"{_LONGEST_NAME} characters"
                )
        counts = {"workers": self.workers, "threads": self.threads}
        if self.memory_bytes is not None:
            counts["memory_bytes"] = self.memory_bytes
        for name, count in counts.items():
            least = 0 if name == "workers" else 1
            if type(count) is not int or not least <= count <= _LARGEST_COUNT:
                raise LayoutError(
                    f"{name} of a node, of type {type(count).__name__}, does not count it. "
                    f"To fix: an integer from {least} to {_LARGEST_COUNT}"
                )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClusterCaches:
    """The cache sizes of every node of a cluster; shows itself as a table.

    Raises
    ------
    LayoutError
        If there is no node.

    Examples
    --------
    >>> old = CacheSizes(l1_bytes=32768, l2_bytes=262144, l3_bytes=2097152)
    >>> new = CacheSizes(l1_bytes=49152, l2_bytes=2097152, l3_bytes=2097152)
    >>> a = NodeCaches(host="a", boot="", workers=2, threads=8, memory_bytes=4 << 30, caches=new)
    >>> b = NodeCaches(host="b", boot="", workers=1, threads=4, memory_bytes=None, caches=old)
    >>> ClusterCaches(nodes=(a, b))
    2 nodes, 3 workers, 12 threads
    node  workers  threads  memory per thread      L1       L2     L3
    a           2        8              4 GiB  48 KiB    2 MiB  2 MiB
    b           1        4          unlimited  32 KiB  256 KiB  2 MiB
    smallest: L1 32 KiB, L2 256 KiB, L3 2 MiB (smallest of 2, 2 distinct: given)
    """

    nodes: tuple[NodeCaches, ...]
    """In the order of host and boot."""

    def __post_init__(self) -> None:
        """Refuse a cluster of nothing."""
        if not self.nodes:
            raise LayoutError("the caches of no node were asked for. To fix: give at least one")

    @property
    def smallest(self) -> CacheSizes:
        """The minimum of every level over all nodes: what a layout should be planned for."""
        return smallest_caches(node.caches for node in self.nodes)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        """Return the table as HTML."""
        return self._table()._repr_html_()

    def _table(self) -> Explanation:
        """Return one row per node."""
        n_workers = sum(node.workers for node in self.nodes)
        n_threads = sum(node.threads for node in self.nodes)
        counts = {"node": len(self.nodes), "worker": n_workers, "thread": n_threads}
        return Explanation(
            head=(", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items()),),
            rows=tuple(map(_row, self.nodes)),
            foot=(f"smallest: {self.smallest}",),
            headings=_HEADINGS,
        )


def least_memory(nodes: Iterable[NodeCaches]) -> int | None:
    """Return the smallest memory of a thread, None if none is limited."""
    return min((n.memory_bytes for n in nodes if n.memory_bytes is not None), default=None)


def _row(node: NodeCaches) -> tuple[str, ...]:
    """Return one row of the table."""
    sizes = (node.caches.l1_bytes, node.caches.l2_bytes, node.caches.l3_bytes)
    memory = "unlimited" if node.memory_bytes is None else in_words(node.memory_bytes)
    return (node.host, str(node.workers), str(node.threads), memory, *map(in_words, sizes))
