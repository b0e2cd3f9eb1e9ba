"""Hypothesis profiles, the test cluster, and the choice between the native and portable reader."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Layouts are those of one machine, whichever runs the tests.
os.environ["MLARRAY_XR_CACHES"] = "l1=32KiB,l2=1MiB,l3=2MiB"

NATIVE = os.environ.get("MLARRAY_XR_NATIVE", "1") != "0"


def pytest_configure(config: pytest.Config) -> None:
    for name in ("flaky", "network", "skip_if_param", "skip_with_dask_array"):
        config.addinivalue_line("markers", f"{name}: used by xarray's own tests, which we inherit")


def pytest_report_header() -> str:
    return f"mlarray_xr: {'native' if NATIVE else 'portable'} reader"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if NATIVE:
        return
    skip = pytest.mark.skip(reason="MLARRAY_XR_NATIVE=0 forces the portable reader")
    for item in items:
        if item.get_closest_marker("native"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def native() -> bool:
    """Whether this run reads local files through the C library."""
    return NATIVE


@pytest.fixture(scope="session")
def _client() -> Iterator[Client]:
    """Connect to two worker processes on this machine, started once per run."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            # None would take the default port and warn when it is taken.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def cluster(_client: Client) -> Iterator[Client]:
    """Compute on the test cluster during one test; other tests keep the local scheduler."""
    with _client.as_current():
        yield _client
