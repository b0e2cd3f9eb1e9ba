"""Commands that go on until somebody ends them."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ends_cleanly"]


@contextlib.contextmanager
def ends_cleanly() -> Iterator[None]:
    """Take Ctrl-C and the usual signals as the wish to end: what was begun is taken back.

    Examples
    --------
    >>> with ends_cleanly():
    ...     raise KeyboardInterrupt
    """

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    names = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    is_main = threading.current_thread() is threading.main_thread()
    before = {name: signal.signal(name, stop) for name in names} if is_main else {}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
