"""A progress bar, where somebody sees it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.storage.job import Progress

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(unit: Literal["chunk", "file", "B"]) -> Iterator[Progress | None]:
    """Show a bar on stderr while the block runs; None unless it is a terminal and tqdm is there.

    Parameters
    ----------
    unit
        Of the numbers that the callback is called with; ``"B"`` is shown as kB, MB and so on.
    """
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=None, unit=unit, unit_scale=unit == "B", file=sys.stderr, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
