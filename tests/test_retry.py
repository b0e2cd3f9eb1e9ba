"""Trying again: how often, how long in between, and what is raised in the end."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import SourceDenied, SourceError, SourceTimeout
from mlarray_xr.storage.retry import RetryLater, plan_delay_s, with_retries


class Script:
    """An attempt that fails as it is told; it remembers what was done around it."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.events: list[object] = []

    def attempt(self) -> str:
        self.events.append("try")
        if self.failures:
            raise self.failures.pop(0)
        return "data"

    def run(self, *, retries: int) -> str:
        return with_retries(
            self.attempt,
            retries=retries,
            on_retry=lambda: self.events.append("retry"),
            sleep=self.events.append,
            rng=random.Random(0),
        )


def test_returns_at_once_without_failure() -> None:
    script = Script()
    assert script.run(retries=3) == "data"
    assert script.events == ["try"]


def test_waits_between_attempts() -> None:
    script = Script(RetryLater("busy"), RetryLater("busy"))
    assert script.run(retries=2) == "data"
    kinds = [event if isinstance(event, str) else "sleep" for event in script.events]
    assert kinds == ["try", "retry", "sleep", "try", "retry", "sleep", "try"]


def test_gives_up_with_a_plain_error_that_counts_attempts() -> None:
    script = Script(*[RetryLater("x.mla: the server answered 503")] * 4)
    with pytest.raises(SourceError, match=r"answered 503 \(tried 4 times\).*To fix") as caught:
        script.run(retries=3)
    assert type(caught.value) is SourceError
    assert script.events.count("try") == 4
    assert script.events.count("retry") == 3


def test_zero_retries_try_once() -> None:
    script = Script(RetryLater("busy"))
    with pytest.raises(SourceError, match="tried once"):
        script.run(retries=0)
    assert script.events == ["try"]


def test_timeouts_end_as_timeout() -> None:
    script = Script(RetryLater("503"), RetryLater("no answer", timed_out=True))
    with pytest.raises(SourceTimeout, match="tried 2 times") as caught:
        script.run(retries=1)
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), SourceDenied("no"), ValueError("x")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    script = Script(error)
    with pytest.raises(type(error)):
        script.run(retries=3)
    assert script.events == ["try"]


def test_retry_after_is_honoured_within_reason() -> None:
    assert plan_delay_s(1, retry_after_s=7.0) == 7.0
    assert plan_delay_s(1, retry_after_s=86_400.0) == 30.0


@given(tried=st.integers(1, 10_000), seed=st.integers(0, 1000))
def test_delay_grows_to_a_ceiling(tried: int, seed: int) -> None:
    delay_s = plan_delay_s(tried, rng=random.Random(seed))
    assert 0 <= delay_s <= min(5.0, 0.1 * 2 ** min(tried - 1, 10))


def test_delays_use_the_whole_range() -> None:
    rng = random.Random(0)
    delays = [plan_delay_s(4, rng=rng) for _ in range(2000)]
    assert min(delays) < 0.02
    assert max(delays) > 0.78


@pytest.mark.parametrize(
    "error", [SourceDenied("a"), SourceTimeout("b"), RetryLater("c", timed_out=True)]
)
def test_errors_survive_pickling(error: Exception) -> None:
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is type(error)
    assert (str(restored), vars(restored)) == (str(error), vars(error))
