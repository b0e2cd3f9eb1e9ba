"""The threads of requests: no more than allowed, and a queue that can be asked."""

from __future__ import annotations

import threading

from mlarray_xr.storage.request_pool import are_requests_waiting, submit_request
from tests.remote_kit import settings


def test_requests_wait_when_another_round_of_them_is_there() -> None:
    with settings(max_concurrency=2):
        assert not are_requests_waiting()
        begun, gate = threading.Semaphore(0), threading.Event()

        def request() -> int:
            begun.release()
            gate.wait()
            return 7

        answers = [submit_request(request) for _ in range(2)]
        for _ in range(2):
            begun.acquire()
        assert not are_requests_waiting()
        answers.append(submit_request(request))
        assert not are_requests_waiting()
        answers.append(submit_request(request))
        assert are_requests_waiting()
        gate.set()
        assert [answer.result() for answer in answers] == [7, 7, 7, 7]
        assert not are_requests_waiting()


def test_what_was_submitted_before_the_limit_changed_still_runs() -> None:
    with settings(max_concurrency=1):
        gate = threading.Event()
        first, second = submit_request(gate.wait), submit_request(lambda: 8)
        with settings(max_concurrency=3):
            assert submit_request(lambda: 9).result() == 9
            gate.set()
            assert (first.result(), second.result()) == (True, 8)
