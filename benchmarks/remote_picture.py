"""The picture of what remote reads fetch: ``python -m benchmarks.remote_picture PICTURE.svg``.

Bytes and requests are those that a server on loopback counted, so they are the same on every
machine with the same libraries; no time is taken.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mlarray_xr
from benchmarks.data import make_values, random_boxes
from benchmarks.size import FULL
from tests.range_server import RangeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.storage.read_settings import BlockReads

__all__ = ["Fetched", "count_fetched", "draw_fetched", "table"]

WAYS: dict[str, tuple[bool, BlockReads]] = {
    "blocks, found in the block index": (True, "auto"),
    "blocks, found in each chunk": (False, "blocks"),
    "whole chunks, without a block index": (False, "auto"),
}
"""What a bar stands for: whether the file has a block index, and the setting."""

_PATCH = 128
_CODEC = "lz4hc-8"
_CACHES = "l1=32KiB,l2=1MiB,l3=2MiB"
_POINTS = 100
_SEED = 20_240_229
_COLOURS = ("#3f51b5", "#9fa8da", "#ffb74d")
_LINE = "#e65100"
_BAR = 0.26


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What one operation fetched in one way, from a file that was opened before."""

    operation: str
    """Such as ``one voxel``."""
    way: str
    """A key of `WAYS`."""
    requests: int
    """As the server counted them."""
    nbytes: int
    """Bytes of the bodies that the server sent."""


def count_fetched(shape: tuple[int, ...], *, patch: int = _PATCH) -> tuple[int, list[Fetched]]:
    """Serve a file, read from it in every way, and return its size and what was fetched.

    Every value is compared with the array, every count of the reader with that of the server.
    """
    values = make_values(shape, "int16")
    plain, indexed = _frames(values, patch)
    operations = dict(_operations(shape, patch))
    found = []
    before = mlarray_xr.configure()
    try:
        with RangeServer() as server:
            for way, (has_index, block_reads) in WAYS.items():
                mlarray_xr.configure(block_reads=block_reads)
                for operation, read in operations.items():
                    # A name of its own: nothing of it is in the block cache.
                    name = f"{way} {operation}.mla"
                    server.put(name, indexed if has_index else plain)
                    found.append(_counted(server, name, operation, way, read, values))
    finally:
        mlarray_xr.configure(block_reads=before.block_reads)
    return len(indexed), found


def draw_fetched(file_bytes: int, fetched: list[Fetched], path: Path) -> None:
    """Draw the bytes of every operation as bars, and write them as SVG (or what `path` ends in)."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    operations = list(dict.fromkeys(one.operation for one in fetched))
    with mpl.rc_context({"svg.hashsalt": "remote", "font.size": 9, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(8.5, 0.95 * len(operations) + 1))
        for number, (way, colour) in enumerate(zip(WAYS, _COLOURS, strict=True)):
            bars = [one for one in fetched if one.way == way]
            at = [operations.index(one.operation) + (number - 1) * _BAR for one in bars]
            axes.barh(at, [one.nbytes for one in bars], _BAR, color=colour, label=way)
            for y, one in zip(at, bars, strict=True):
                shown = axes.text(one.nbytes * 1.08, y, _words(one), va="center", fontsize=7.5)
                shown.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axes.axvline(file_bytes, color=_LINE)
        whole = f"the whole file, {_size(file_bytes)} "
        axes.text(file_bytes, -0.62, whole, color=_LINE, ha="right", va="center")
        axes.set_xscale("log")
        axes.set_xlim(min(one.nbytes for one in fetched) / 2, file_bytes * 1.3)
        axes.set_xticks([1e4, 1e5, 1e6, 1e7, 1e8], ["10 kB", "100 kB", "1 MB", "10 MB", "100 MB"])
        axes.set_yticks(range(len(operations)), operations)
        axes.set_ylim(len(operations) - 0.45, -0.85)
        axes.set_xlabel("bytes fetched, logarithmic")
        axes.legend(loc="upper center", bbox_to_anchor=(0.42, -0.1), ncols=3, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path.parent.mkdir(exist_ok=True)
        # Without a date the same numbers give the same file.
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def table(file_bytes: int, fetched: list[Fetched]) -> str:
    """Return the numbers as a Markdown table, a row for each operation."""
    rows = [f"| bytes fetched, requests | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    for operation in dict.fromkeys(one.operation for one in fetched):
        cells = [_words(one) for one in fetched if one.operation == operation]
        rows.append(f"| {operation} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"The whole file: {_size(file_bytes)}."])


def _operations(
    shape: tuple[int, ...], patch: int
) -> Iterator[tuple[str, Callable[[Any], NDArray[Any]] | None]]:
    """Yield each operation: what it selects of an array; None is opening alone."""
    yield "open", None
    rng = np.random.default_rng(_SEED)
    yield "one voxel", _selecting(tuple(slice(n // 3, n // 3 + 1) for n in shape))
    for edge in (patch // 2, patch):
        (box,) = random_boxes(shape, edge=edge, count=1, seed=1)
        yield f"patch of {edge} cubed", _selecting(tuple(slice(*pair) for pair in box))
    yield "slice of the first axis", _selecting((shape[0] // 3,))
    points = tuple(rng.integers(0, n, _POINTS) for n in shape)
    yield f"{_POINTS} points", _selecting(points)


def _selecting(key: tuple[Any, ...]) -> Callable[[Any], NDArray[Any]]:
    """Return what takes a key from an array."""
    return lambda array: np.asarray(array[key])


def _counted(
    server: RangeServer,
    name: str,
    operation: str,
    way: str,
    read: Callable[[Any], NDArray[Any]] | None,
    values: NDArray[Any],
) -> Fetched:
    """Open a file, then read from it, and return what the second needed (or the first alone)."""
    server.reset_counts()
    with mlarray_xr.measure() as measured:
        array = mlarray_xr.MlaArray(server.url(name))
    if read is not None:
        server.reset_counts()
        with mlarray_xr.measure() as measured:
            found = read(array)
        np.testing.assert_array_equal(found, read(values))
    counts = server.counts()
    counted = (counts.requests, counts.bytes_sent)
    assert counted == (measured.stats.requests, measured.stats.bytes_fetched)
    return Fetched(operation=operation, way=way, requests=counted[0], nbytes=counted[1])


def _frames(values: NDArray[Any], patch: int) -> tuple[bytes, bytes]:
    """Return the same file without and with a block index."""
    with tempfile.TemporaryDirectory(prefix="mlarray-xr-picture-") as folder:
        frames = []
        for has_index in (False, True):
            path = Path(folder) / f"{has_index}.mla"
            mlarray_xr.to_mla(
                values, path, patch=patch, codec=_CODEC, caches=_CACHES, block_index=has_index
            )
            frames.append(path.read_bytes())
    plain, indexed = frames
    return plain, indexed


def _words(one: Fetched) -> str:
    """Return bytes and requests in words."""
    return f"{_size(one.nbytes)}, {one.requests} request{'s' * (one.requests > 1)}"


def _size(nbytes: int) -> str:
    """Return bytes with two digits, at least."""
    unit, divisor = ("kB", 1e3) if nbytes < 1e6 else ("MB", 1e6)
    size = nbytes / divisor
    return f"{size:.2f} {unit}" if size < 10 else f"{size:.0f} {unit}"


def main() -> None:
    """Draw the picture, and print its numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote_picture")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="SVG file to write")
    options = parser.parse_args()
    file_bytes, fetched = count_fetched(FULL.shape)
    draw_fetched(file_bytes, fetched, options.picture)
    print(table(file_bytes, fetched))


if __name__ == "__main__":
    main()
