"""The cell of the page on remote files reads the same from a path, a server and stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from tests.package_source import ROOT
from tests.range_server import RangeServer
from tests.remote_kit import settings
from tests.s3_server import s3_server
from tests.test_docs import check_output, fences, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = ROOT / "docs" / "how-to" / "remote.md"
(CELL,) = [fence for fence in fences(PAGE) if "xr.open_dataset(path, engine" in fence.text][:1]

Addresses = dict[str, tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """The same file in every place, and the options that lead there."""
    path: Path = tmp_path_factory.mktemp("cell") / "brain.mla"
    ramp = np.add.outer(np.add.outer(np.arange(100), np.arange(120)), np.arange(120))
    positions = {dim: 1.0 * np.arange(n) for dim, n in zip("xyz", ramp.shape, strict=True)}
    volume = xr.DataArray(ramp.astype(np.int16), dims=tuple("xyz"), coords=positions)
    mlarray_xr.to_mla(volume, path, patch=64)
    data = path.read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe("/cell/brain.mla", data)
    with RangeServer({"brain.mla": data}) as server, s3_server({"brain.mla": data}) as s3:
        yield {
            "path": (str(path), {}),
            "file URL": (path.as_uri(), {}),
            "http": (server.url("brain.mla"), {}),
            "s3": (s3.url("brain.mla"), s3.storage_options),
            "presigned": (s3.signed_url("brain.mla"), {}),
            "memory": ("memory://cell/brain.mla", {}),
        }
    memory.rm("/cell", recursive=True)


@pytest.mark.parametrize("place", ["path", "file URL", "http", "s3", "presigned", "memory"])
def test_the_cell_prints_the_same_wherever_the_file_is(place: str, addresses: Addresses) -> None:
    path, options = addresses[place]
    with settings():
        printed = run_python(CELL, {"path": path, "options": options})
    assert CELL.shown is not None
    check_output(CELL, printed=printed, shown=CELL.shown)


def test_the_picture_counts_what_a_server_counts(tmp_path: Path) -> None:
    pytest.importorskip("mlarray")
    pytest.importorskip("matplotlib")
    from benchmarks.remote_picture import WAYS, count_fetched, draw_fetched, table

    file_bytes, fetched = count_fetched((96, 112, 96), patch=32)
    operations = list(dict.fromkeys(one.operation for one in fetched))
    assert len(fetched) == len(WAYS) * len(operations) == 18
    nbytes = {(one.operation, one.way): one.nbytes for one in fetched}
    requests = {(one.operation, one.way): one.requests for one in fetched}
    by_index, by_chunk, whole = WAYS
    assert {requests["open", way] for way in WAYS} == {2}
    for operation in operations[1:]:
        counts = [nbytes[operation, way] for way in (by_index, by_chunk, whole)]
        assert counts[0] <= counts[1]
        assert counts[0] <= counts[2] <= file_bytes
        assert requests[operation, by_index] <= requests[operation, by_chunk]
    assert requests["one voxel", by_index] == 1
    draw_fetched(file_bytes, fetched, tmp_path / "picture.svg")
    assert "100 points" in (tmp_path / "picture.svg").read_text()
    assert table(file_bytes, fetched).count("\n") == len(operations) + 3
