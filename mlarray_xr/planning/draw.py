"""Draw: which sample of which epoch is taken; all chance in a sample follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Draw", "check_seed"]

_SEEDS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The place of a sample in a run, whoever reads it, in whatever order.

    Examples
    --------
    >>> one, same = (Draw(seed=7, epoch=2, index=30).generator() for _ in range(2))
    >>> one.random() == same.random()
    True
    """

    seed: int
    """Of the run, 0 to 2**64 - 1."""
    epoch: int
    """Number of the epoch, from 0."""
    index: int
    """Number of the sample in the epoch, from 0."""

    def __post_init__(self) -> None:
        """Check that the numbers can be keys of a generator."""
        for name in ("seed", "epoch", "index"):
            check_seed(getattr(self, name), name=name)

    def generator(self, *, stream: int = 0) -> np.random.Generator:
        """Return a generator that is the same for equal draws and independent for others.

        Seed and epoch are the key of Philox 4x64, index and stream its counter's highest words:
        streams are 2**128 numbers apart (Salmon et al., SC11,
        https://doi.org/10.1145/2063384.2063405).

        Parameters
        ----------
        stream
            Of several independent generators of one sample.
        """
        # Arrays: of a list that holds large numbers NumPy makes floats.
        key = np.array([self.seed, self.epoch], np.uint64)
        counter = np.array([0, 0, stream, self.index], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def check_seed(value: object, *, name: str = "seed") -> int:
    """Return a number that may be a key of a generator.

    Raises
    ------
    ValueError
        When it is no whole number, or not from 0 to 2**64 - 1.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < _SEEDS:
        return int(value)
    msg = f"{name}={value!r}: a whole number from 0 to 2**64 - 1 is needed"
    raise ValueError(msg)
