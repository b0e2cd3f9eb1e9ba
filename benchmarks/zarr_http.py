"""zarr-python over HTTP, in this process or in one of another Python that has another version.

Run as a program it reads commands from standard input, one JSON value a line; it then needs zarr,
obstore and nothing of this project: the newest zarr-python needs a newer Python than we do.
"""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr

__all__ = ["ZarrArray"]


class ZarrArray:
    """One array behind a URL, read through obstore.

    Parameters
    ----------
    url
        Of the store.
    """

    def __init__(self, url: str) -> None:
        from obstore.store import HTTPStore
        from zarr.storage import ObjectStore

        client: Any = {"allow_http": True, "timeout": "600s"}
        self._store = ObjectStore(HTTPStore(url, client_options=client), read_only=True)
        self._array: Any = None

    def open(self) -> None:
        """Open the array anew; the client stays."""
        self._array = zarr.open_array(self._store, mode="r", zarr_format=3)

    def read(self, box: Any) -> Any:
        """Return the values of a box."""
        return self._array[tuple(slice(start, stop) for start, stop in box)]

    def pick(self, points: Any) -> Any:
        """Return the values at points, one array per axis."""
        return self._array.vindex[tuple(np.asarray(p) for p in points)]

    def read_all(self, boxes: Any, threads: int) -> None:
        """Read boxes in threads."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.read, boxes))


def _obey() -> None:
    """Carry out commands until standard input ends."""
    zarr.config.set({"async.concurrency": int(sys.argv[1])})
    print(json.dumps(zarr.__version__), flush=True)
    arrays: dict[str, ZarrArray] = {}
    for line in sys.stdin:
        url, command, arguments = json.loads(line)
        if url not in arrays:
            arrays[url] = ZarrArray(url)
        values = getattr(arrays[url], command)(*arguments)
        digest = None
        if isinstance(values, np.ndarray):
            digest = hashlib.blake2b(np.ascontiguousarray(values)).hexdigest()
        print(json.dumps(digest), flush=True)


if __name__ == "__main__":
    _obey()
