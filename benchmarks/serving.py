"""A range server in a process of its own, so that client and server do not share one interpreter.

Run as a program it serves a folder until its standard input ends, and answers each line of it with
what it has counted so far.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.range_server import Faults, RangeServer

__all__ = ["BYTES_PER_SECOND", "ServedFolder", "Traffic"]

BYTES_PER_SECOND = 80e6
"""Of one connection."""
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a server counted."""

    requests: int
    """Requests that arrived."""
    bytes_sent: int
    """Bytes of the bodies of its answers."""

    def __sub__(self, earlier: Traffic) -> Traffic:
        """Return what was counted since."""
        return Traffic(
            requests=self.requests - earlier.requests,
            bytes_sent=self.bytes_sent - earlier.bytes_sent,
        )


class ServedFolder:
    """The files below a folder, over HTTP from another process, with the delays of a network.

    Parameters
    ----------
    folder
        What is served; files that come later are not.
    latency_s
        Seconds before every answer, and again before the first one on every new connection.
    """

    def __init__(self, folder: Path, *, latency_s: float) -> None:
        command = [sys.executable, "-m", "benchmarks.serving", str(folder), str(latency_s)]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._address = str(self._answer()["address"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def url(self, name: str) -> str:
        """Return the address of a file or folder, by its path below the folder."""
        return f"{self._address}{name}"

    def traffic(self) -> Traffic:
        """Return what was counted so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("traffic\n")
        self._process.stdin.flush()
        return Traffic(**self._answer())

    def _answer(self) -> dict[str, int]:
        """Return the next line that the process writes."""
        assert self._process.stdout is not None
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer


def _serve(folder: Path, latency_s: float) -> None:
    """Serve a folder until standard input ends."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    objects = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    faults = Faults(
        latency_s=latency_s, connection_latency_s=latency_s, bytes_per_second=BYTES_PER_SECOND
    )
    with RangeServer(objects, faults=faults) as server:
        print(json.dumps({"address": server.url("")}), flush=True)
        for _ in sys.stdin:
            counts = server.counts()
            traffic = Traffic(requests=counts.requests, bytes_sent=counts.bytes_sent)
            print(json.dumps(asdict(traffic)), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
