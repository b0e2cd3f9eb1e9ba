"""The threads of requests: as many as allowed, also when that changes."""

from __future__ import annotations

import threading

from mlarray_xr.storage.request_pool import submit_request
from tests.remote_kit import settings


def test_what_was_submitted_before_the_limit_changed_still_runs() -> None:
    with settings(max_concurrency=1):
        gate = threading.Event()
        first, second = submit_request(gate.wait), submit_request(lambda: 8)
        with settings(max_concurrency=3):
            assert submit_request(lambda: 9).result() == 9
            gate.set()
            assert (first.result(), second.result()) == (True, 8)
