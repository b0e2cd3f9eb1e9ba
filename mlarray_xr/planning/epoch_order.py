"""The order of an epoch: shuffled, shared among ranks, grouped by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlarray_xr.planning.draw import Draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["grouped_order", "plan_epoch_order", "plan_share"]

_Key = TypeVar("_Key")
# No sample has this number: the order is drawn from a stream of its own.
_ORDER = 2**64 - 1


def plan_epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool) -> Sequence[int]:
    """Return the samples of an epoch in the order in which they are taken.

    Examples
    --------
    >>> sorted(plan_epoch_order(5, seed=1, epoch=2, shuffle=True))
    [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return range(n)
    rng = Draw(seed=seed, epoch=epoch, index=_ORDER).generator()
    order: list[int] = rng.permutation(n).tolist()
    return order


def plan_share(order: Sequence[int], *, rank: int, world_size: int, even: bool) -> Sequence[int]:
    """Return what one rank takes of an order: every `world_size`-th sample, none twice.

    Parameters
    ----------
    order
        The samples of all ranks.
    rank, world_size
        Which rank, of how many.
    even
        Whether all take equally many, the last samples being left out where they are too few.

    Examples
    --------
    >>> [list(plan_share(range(5), rank=r, world_size=2, even=False)) for r in (0, 1)]
    [[0, 2, 4], [1, 3]]
    """
    stop = len(order) // world_size * world_size if even else len(order)
    return order[rank:stop:world_size]


def grouped_order(
    order: Sequence[int], *, window: int, key: Callable[[int], _Key]
) -> Iterator[int]:
    """Bring samples of equal key together, inside windows of the order, one window at a time.

    Groups come in the order of their first samples, so the order of groups stays drawn.

    Examples
    --------
    >>> list(grouped_order([3, 0, 2, 1, 5, 4], window=4, key=lambda index: index % 2))
    [3, 1, 0, 2, 5, 4]
    """
    for begin in range(0, len(order), window):
        groups: dict[_Key, list[int]] = {}
        for index in order[begin : begin + window]:
            groups.setdefault(key(index), []).append(index)
        for members in groups.values():
            yield from members
