"""Progress of long calls: who is told, and the bar that appears where somebody looks."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlarray_xr.errors import MissingDependencyError
from mlarray_xr.storage.job import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Shown", "is_notebook", "shown_progress"]

Shown: TypeAlias = Progress | bool | None
"""A callback, True for a bar, False for nothing, None for a bar where somebody looks."""

_DELAY_SECONDS = 1.0
"""Calls that are over before then show nothing."""


@contextlib.contextmanager
def shown_progress(
    progress: Shown, *, unit: Literal["chunk", "file", "patch", "B"]
) -> Iterator[Progress | None]:
    """Give what a long call tells its progress to, and show the bar meanwhile.

    A bar nobody asked for appears after a second, in a notebook or on the terminal that standard
    error is, and only for calls of the main thread: workers of Dask and of loaders show none.

    Parameters
    ----------
    progress
        What the caller was given.
    unit
        Of the numbers; ``"B"`` is shown as kB, MB and so on.

    Yields
    ------
    Progress or None
        To be called with what is done and of how much; None when nobody wants to know.

    Raises
    ------
    MissingDependencyError
        When a bar is asked for, and tqdm is not installed.

    Examples
    --------
    >>> with shown_progress(print, unit="chunk") as tell:
    ...     tell(1, 2)
    1 2
    >>> with shown_progress(False, unit="chunk") as tell:
    ...     print(tell)
    None
    """
    if progress is False or (progress is None and not _is_watched()):
        yield None
    elif progress is None or progress is True:
        with _bar(unit, delay_seconds=0.0 if progress else _DELAY_SECONDS) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield advance
    else:
        yield progress


def is_notebook() -> bool:
    """Tell whether this is the kernel of a notebook."""
    interactive: Any = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _is_watched() -> bool:
    """Tell whether somebody sees what the main thread of this process shows."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if multiprocessing.parent_process() is not None or _has_own_bar():
        return False
    return _has("tqdm") and (is_notebook() or _is_terminal(sys.stderr))


def _is_terminal(stream: Any) -> bool:
    """Tell whether a stream is a terminal: there may be none, or a logger, or a closed one."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _has_own_bar() -> bool:
    """Tell whether the user watches with a bar of Dask's, which shows the same."""
    callbacks: Any = sys.modules.get("dask.callbacks")
    return callbacks is not None and bool(callbacks.Callback.active)


@contextlib.contextmanager
def _bar(unit: str, *, delay_seconds: float) -> Iterator[Any]:
    """Show a bar of tqdm: as a widget in notebooks that have widgets, as text on standard error."""
    if not _has("tqdm"):
        raise MissingDependencyError(
            "progress=True shows a bar of tqdm, which is not installed. "
            'To fix: pip install "mlarray-xr[progress]"'
        )
    if is_notebook() and _has("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    with tqdm(
        total=None,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr,
        leave=False,
        delay=delay_seconds,
    ) as bar:
        yield bar


def _has(name: str) -> bool:
    """Tell whether a package is installed; does not import it."""
    return importlib.util.find_spec(name) is not None
