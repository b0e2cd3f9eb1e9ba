"""The stored files of the corpus, and their metadata bytes cut out without opening them.

Damaged files are never shown to a library: their trailer is walked here, and the one chunk that
holds the value is decompressed only after its stated size was checked.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import blosc2

DATA = Path(__file__).parent / "data"
GENUINE = sorted(path for path in (DATA / "mla").glob("*/*") if path.suffix in {".mla", ".mb2nd"})
HOSTILE: dict[str, dict[str, Any]] = json.loads((DATA / "hostile" / "MANIFEST.json").read_text())[
    "files"
]
MOST_VALUE_BYTES = 64 * 2**20


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def record_of(path: Path) -> dict[str, Any]:
    """Return what the maker of the corpus noted down."""
    record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text("utf-8"))
    return record


def shape_of(path: Path) -> tuple[int, ...]:
    array = record_of(path)["array"]
    return tuple(array["shape"]) if array else (0,)


def fixed_value(path: Path) -> bytes:
    """Return the content of the fixed metalayer `med_blosc2`."""
    frame = path.read_bytes()
    return _entry(frame, b"med_blosc2", table=87, origin=0)


def variable_value(path: Path) -> bytes:
    """Return the decompressed value of the entry `mlarray`."""
    frame = path.read_bytes()
    start = len(frame) - int.from_bytes(frame[-22:-18], "big")
    chunk = _entry(frame, b"mlarray", table=start + 2, origin=start)
    assert int.from_bytes(chunk[4:8], "little") <= MOST_VALUE_BYTES
    assert int.from_bytes(chunk[12:16], "little") == len(chunk)
    value: bytes = blosc2.decompress2(chunk)
    return value


def wrap(gzipped: bytes) -> bytes:
    """Put gzipped bytes into the msgpack container of the variable-length entry."""
    return b"\xc6" + len(gzipped).to_bytes(4, "big") + gzipped


def wrap_pickle(pickled: bytes) -> bytes:
    return wrap(gzip.compress(pickled, 1, mtime=0))


def same(left: object, right: object) -> bool:
    """Compare plain trees with their types; NaN equals NaN and -0.0 differs from 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return list(map(_typed, left)) == list(map(_typed, right)) and all(
            same(left[key], right[key]) for key in left
        )
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return _typed(left) == _typed(right)


def _typed(leaf: object) -> tuple[type, object]:
    if isinstance(leaf, float):
        return float, "nan" if math.isnan(leaf) else leaf.hex()
    return type(leaf), leaf


def _entry(frame: bytes, name: bytes, *, table: int, origin: int) -> bytes:
    """Walk a table of metalayers and return the bytes of one."""
    assert frame[table] == 0x93
    assert frame[table + 4] == 0xDE
    at = table + 7
    for _ in range(int.from_bytes(frame[table + 5 : table + 7], "big")):
        length = frame[at] & 0x1F
        found, at = frame[at + 1 : at + 1 + length], at + 1 + length
        offset, at = int.from_bytes(frame[at + 1 : at + 5], "big"), at + 5
        if found == name:
            place = origin + offset
            size = int.from_bytes(frame[place + 1 : place + 5], "big")
            return frame[place + 5 : place + 5 + size]
    raise KeyError(name)
