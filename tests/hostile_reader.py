"""Reads files that may be hostile, each in a process of its own, and says how it ended.

Run as a script: one JSON job per line on the standard input, one JSON answer per line on the
standard output. Libraries are imported once, then every job runs in a forked child with its own
empty working directory, memory limit and alarm. A child that dies answers with its signal.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import MlaError
from mlarray_xr.storage.libblosc2 import native_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADDRESS_SPACE_BYTES = 2 << 30
SECONDS_PER_JOB = 20
HEADER_INTEGERS = ((11, 4), (16, 8), (30, 8), (39, 8), (48, 4), (53, 4), (58, 4), (63, 2), (66, 2))
EXTREMES = (0, -1, 1, 2**15 - 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


def run_jobs(jobs: list[dict[str, Any]], *, marker: Path, native: bool) -> list[dict[str, Any]]:
    """Run jobs in a subprocess of the caller and return their answers, in order."""
    environment = {
        **os.environ,
        "MLA_MARKER": os.fspath(marker),
        "MLARRAY_XR_NATIVE": str(int(native)),
        "PYTHONPATH": os.fspath(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, os.fspath(Path(__file__))],
        input="\n".join(map(json.dumps, jobs)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_PER_JOB * 20,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_array(path: str) -> Any:
    """Do everything a careful user does before and with a first read; return the values."""
    array = MlaArray(path)
    described = repr(array), array.info(), array.layout, array.nbytes, array.metadata.to_dict()
    assert len(described) == 5
    values = array[(slice(0, 2),) * array.ndim]
    return np.asarray(values).tolist() if values.dtype.kind in "biuf" else None


def open_dataset(path: str) -> Any:
    """Open as xarray does, and show it."""
    with xr.open_dataset(path, engine="mlarray") as dataset:
        return len(repr(dataset)) + len(dataset._repr_html_())


def read_mutations(path: str, *, seed: int, count: int, region: str) -> Any:
    """Read many damaged copies of a file; count what became of them."""
    outcomes = {"read": 0, "refused": 0}
    copy = Path(f"copy{Path(path).suffix}")
    for data in mutations(Path(path).read_bytes(), seed=seed, count=count, region=region):
        copy.write_bytes(data)
        try:
            array = MlaArray(copy)
            array.info()
            shape = array.shape
            box = tuple((0, min(n, 64)) for n in shape)
            array.read(box)
            if array.nbytes < 1 << 20:
                array[...]
        except MlaError:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}; file {data.hex()}") from error
        else:
            outcomes["read"] += 1
    return outcomes


def mutations(data: bytes, *, seed: int, count: int, region: str) -> Iterator[bytes]:
    """Yield damaged copies of a file."""
    if region == "truncations":
        yield from (data[:length] for length in range(seed, len(data), count))
    elif region == "integers":
        for at, n_bytes in HEADER_INTEGERS:
            for value in EXTREMES:
                yield _replaced(data, at, (value % 256**n_bytes).to_bytes(n_bytes, "big"))
    elif region == "fields":
        yield from _damaged_chunk_fields(data)
    else:
        random = np.random.default_rng(seed)
        start, stop = _sections(data)[region]
        for _ in range(count):
            damaged = bytearray(data)
            for at in random.integers(start, stop, random.integers(1, 4)):
                damaged[at] ^= 1 << int(random.integers(0, 8))
            yield bytes(damaged)


def _damaged_chunk_fields(data: bytes) -> Iterator[bytes]:
    """Set every field of every chunk header, the index's and the metadata's included."""
    sections = _sections(data)
    starts = [sections["index"][0]]
    start, stop = sections["payload"]
    while start + 32 <= stop:
        starts.append(start)
        start += max(32, int.from_bytes(data[start + 12 : start + 16], "little"))
    trailer = data[sections["trailer"][0] :]
    starts += [
        sections["trailer"][0] + i + 5
        for i in range(len(trailer) - 40)
        if trailer[i] == 0xC6 and trailer[i + 5] == 5
    ]
    for chunk in starts:
        for at in (4, 8, 12, 32, 36):
            for value in (*EXTREMES[:6], 31, 32, 33, 40):
                raw = (value % 256**4).to_bytes(4, "little")
                if chunk + at + 4 <= len(data):
                    yield _replaced(data, chunk + at, raw)
        for at in (0, 1, 2, 3, *range(16, 32)):
            for byte in (0, 1, 2, 3, 6, 0x10, 0x20, 0x30, 0x40, 0x70, 0xFF):
                yield _replaced(data, chunk + at, bytes([byte]))


def _sections(data: bytes) -> dict[str, tuple[int, int]]:
    """Return first and last byte of each section of a good frame."""
    header_len = int.from_bytes(data[11:15], "big")
    index = header_len + int.from_bytes(data[39:47], "big")
    trailer = len(data) - int.from_bytes(data[-22:-18], "big")
    return {
        "header": (0, header_len),
        "payload": (header_len, index),
        "index": (index, trailer),
        "trailer": (trailer, len(data)),
        "anywhere": (0, len(data)),
    }


def _replaced(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


ACTIONS: dict[str, Callable[..., Any]] = {
    "array": read_array,
    "dataset": open_dataset,
    "mutations": read_mutations,
}


def import_engine() -> None:
    """Import what opening and showing a dataset needs."""
    dataset = xr.Dataset({"image": (("y", "x"), np.zeros((2, 2)))})
    assert repr(dataset)
    assert dataset._repr_html_()


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job and say how it ended."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        value = ACTIONS[job["action"]](job["path"], **job.get("options", {}))
        ended = {"outcome": "done", "value": value}
    except (MlaError, FileNotFoundError) as error:
        ended = {"outcome": "error", "kinds": [c.__name__ for c in type(error).__mro__]}
        ended["text"] = str(error)
    except BaseException as error:
        ended = {"outcome": "unexpected", "text": f"{type(error).__name__}: {str(error)[:4000]}"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    left = sorted(name for name in os.listdir() if not name.startswith("copy"))
    return {**ended, "left": left, "grown_bytes": grown << 10}


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in a forked child with limits."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as channel:
        child = os.fork()
        if not child:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(SECONDS_PER_JOB)
            channel.write(json.dumps(answer(job), default=repr).encode())
            channel.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return {"outcome": "died", "text": signal.Signals(os.WTERMSIG(status)).name}
        channel.seek(0)
        found: dict[str, Any] = json.loads(channel.read())
        return found


def main() -> None:
    """Answer every job of the standard input."""
    warnings.simplefilter("ignore")
    wanted = os.environ["MLARRAY_XR_NATIVE"] == "1"
    assert wanted or native_library() is None
    # What every child would import anew; nothing is opened here, no thread is started.
    importlib.import_module("blosc2")
    xr.backends.list_engines()
    import_engine()
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
