"""Trying again: what is worth it, how often, and how long to wait in between."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

from mlarray_xr.errors import SourceError, SourceTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryLater", "plan_delay_s", "with_retries"]

T = TypeVar("T")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
# A server may ask for any time; a reader that sleeps for an hour looks like one that hangs.
LONGEST_RETRY_AFTER_S = 30.0


class RetryLater(SourceError):
    """Raised by a transport when the same request may well succeed a moment later."""

    def __init__(
        self, message: str, *, timed_out: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        """Whether no answer came in time."""
        self.retry_after_s = retry_after_s
        """What the server asked for (the header ``Retry-After``), or None."""


def with_retries(
    attempt: Callable[[], T],
    *,
    retries: int,
    on_retry: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
    rng: random.Random | None = None,
) -> T:
    """Return what `attempt` returns, trying again after each `RetryLater`.

    Parameters
    ----------
    attempt
        Makes one request.
    retries
        How often to try again after the first time; 0 tries once.
    on_retry
        Called before each further try.
    sleep
        Waits for a number of seconds.
    rng
        Draws the delays; None draws them from the generator that Python seeds.

    Raises
    ------
    SourceTimeout
        When the last try ended without an answer in time.
    SourceError
        When the last try failed otherwise; it names the number of tries.

    Examples
    --------
    >>> answers = iter([RetryLater("server busy"), "data"])
    >>> def attempt():
    ...     answer = next(answers)
    ...     if isinstance(answer, RetryLater):
    ...         raise answer
    ...     return answer
    >>> with_retries(attempt, retries=3, on_retry=lambda: print("again"), sleep=lambda _: None)
    again
    'data'
    """
    tried = 0
    while True:
        try:
            return attempt()
        except RetryLater as later:
            tried += 1
            if tried > retries:
                raise _final(later, tried=tried) from None
            delay_s = plan_delay_s(tried, retry_after_s=later.retry_after_s, rng=rng)
        on_retry()
        sleep(delay_s)


def plan_delay_s(
    tried: int, *, retry_after_s: float | None = None, rng: random.Random | None = None
) -> float:
    """Return how long to wait after the failure number `tried`, counted from 1.

    Exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015): many readers that failed together do not come back together.
    """
    ceiling_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(tried - 1, 16))
    delay_s = (rng or random).uniform(0, ceiling_s)
    return max(delay_s, min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S))


def _final(later: RetryLater, *, tried: int) -> SourceError:
    """Turn the last failure into one that nobody retries."""
    times = "once" if tried == 1 else f"{tried} times"
    text = f"{later} (tried {times})"
    if later.timed_out:
        return SourceTimeout(
            f"{text}. To fix: check the network, or allow more time with "
            "mlarray_xr.configure(timeout_s=...)"
        )
    return SourceError(
        f"{text}. To fix: try again later, or raise mlarray_xr.configure(retries=...)"
    )
