"""Every genuine file of every generation reads as what was given to its writer."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlarray_xr.array import MlaArray
from tests.stored_metadata import DATA, GENUINE, name_of, record_of, same

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PLAIN = sorted((DATA / "mla").glob("*/*.b2nd"))
EVERY = [*GENUINE, *PLAIN]


def expected_values(path: Path) -> NDArray[Any] | None:
    values = path.with_suffix(".npy")
    return np.load(values) if values.exists() else None


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (found.shape, found.dtype.str) == (expected.shape, expected.dtype.str)
    assert found.tobytes() == expected.tobytes() or np.array_equal(found, expected, equal_nan=True)


def test_the_corpus_is_complete() -> None:
    folders = {path.parent.name for path in EVERY}
    assert len(folders) == 17
    assert sum(expected_values(path) is not None for path in EVERY) >= 110
    assert len(EVERY) >= 130
    suffixes = {suffix: sum(p.suffix == suffix for p in EVERY) for suffix in (".mb2nd", ".b2nd")}
    assert suffixes == {".mb2nd": 4, ".b2nd": 2}
    generations = {record_of(path)["generation"] for path in GENUINE}
    assert generations == {"M1", "M2", "J1", "J2", "J3", "J4", "J5", "J6", "P1/P2", "P3"}


@pytest.mark.parametrize("path", EVERY, ids=name_of)
def test_values(path: Path) -> None:
    expected = expected_values(path)
    array = MlaArray(path)
    if expected is None:
        assert (array.shape, array.size, array[...].shape) == ((0,), 0, (0,))
        assert array.metadata.has_array is not True
        return
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert_same(array[...], expected)
    assert_same(np.asarray(array), expected)
    assert array.metadata.has_array


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_digest_of_the_maker(path: Path) -> None:
    record = record_of(path)["array"]
    if record:
        values = np.ascontiguousarray(MlaArray(path)[...])
        assert hashlib.sha256(values.tobytes()).hexdigest() == record["sha256_c_order"]


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_metadata(path: Path) -> None:
    normalized = record_of(path)["normalized"]
    normalized["spatial"].pop("shape", None)
    found = MlaArray(path).metadata.to_dict()
    found["spatial"].pop("shape", None)
    assert set(found) == set(normalized)
    for key, value in normalized.items():
        assert same_in_any_order(found[key], value), key


def same_in_any_order(left: Any, right: Any) -> bool:
    """Compare plain trees with their types; the order of keys is the writer's business."""
    return same(_sorted(left), _sorted(right))


def _sorted(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _sorted(tree[key]) for key in sorted(tree, key=str)}
    return [_sorted(item) for item in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("path", [p for p in GENUINE if p.suffix == ".mla"], ids=name_of)
def test_chunks_and_blocks(path: Path) -> None:
    b2nd, array = record_of(path)["b2nd"], MlaArray(path)
    assert (list(array.chunks), list(array.blocks)) == (b2nd["chunks"], b2nd["blocks"])
    assert (list(array.shape), array.dtype) == (b2nd["shape"], np.dtype(b2nd["dtype"]))
    info = array.info()
    assert info["file_bytes"] == path.stat().st_size == record_of(path)["frame"]["frame_len"]
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_plain_arrays_have_empty_metadata(path: Path) -> None:
    metadata = MlaArray(path).metadata
    assert metadata.has_array
    assert metadata.source == metadata.extra == {}
    assert metadata.spatial.spacing is None


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_bytes_and_streams_read_like_the_file(path: Path) -> None:
    data = path.read_bytes()
    local = MlaArray(path)
    with path.open("rb") as stream:
        for address in (data, bytearray(data), memoryview(data), io.BytesIO(data), stream):
            array = MlaArray(address)
            assert array.path is None
            assert same(array.metadata.to_dict(), local.metadata.to_dict())
            assert_same(array[...], local[...])


def test_the_pickled_properties_beside_an_array_are_not_read() -> None:
    (properties,) = (DATA / "mla" / "nnunetv2").glob("*.pkl")
    with pytest.raises(ValueError, match=r"not an \.mla file"):
        MlaArray(properties)
