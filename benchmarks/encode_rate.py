"""Encoding: CPU time of the whole encode path against bare compression of the same chunks."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import blosc2
import numpy as np

from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.grid import chunk_boxes
from mlarray_xr.storage.encode import FramePlan, encode_part
from mlarray_xr.storage.tiles import tile

if TYPE_CHECKING:
    from benchmarks.data import Volume, Workplace
    from benchmarks.size import Size

__all__ = ["run"]

_MOST_REPEATS = 5
_SLABS = 3
_GOAL = 85.0
_CODECS = ("lz4hc-8", "zstd-1", "lz4-5-bitshuffle")


def run(workplace: Workplace) -> list[Table]:
    """Return one table of shares."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    volume = workplace.volume("int16")
    return [
        Table(
            name="encode-rate",
            title="CPU time of encoding against bare compress2",
            about=(
                "Share of the CPU time of reordering, padding, checksums, value ranges and "
                "compression that blosc2.compress2 alone takes for the same chunks, already in "
                f"block order, one thread, int16, {_SLABS} rows of chunks."
            ),
            rows=tuple(_row(volume, codec, size) for codec in _CODECS),
        )
    ]


def _row(volume: Volume, codec: str, size: Size) -> Row:
    """Return the share of one codec."""
    layout = MlaArray(volume.path).layout
    rows = layout.chunks[0] * _SLABS
    values = volume.values[:rows]
    plan = FramePlan(
        shape=values.shape, dtype_str=values.dtype.str, layout=layout, codec=Codec.parse(codec)
    )
    box = tuple((0, n) for n in values.shape)
    params, ordered = plan.cparams(), []
    for _, piece in chunk_boxes(box, chunks=layout.chunks):
        tiles = np.empty(layout.chunk_bytes(1), values.dtype)
        part = values[tuple(slice(start, stop) for start, stop in piece)]
        tile(part, tiles, chunks=layout.chunks, blocks=layout.blocks)
        ordered.append(tiles.view(np.uint8))
    jobs = {
        "ours": lambda _: [len(chunk.data) for chunk in encode_part(values, box, plan)],
        "bare": lambda _: [len(blosc2.compress2(tiles, cparams=params)) for tiles in ordered],
    }
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    pairs = zip(found["bare"].cpu, found["ours"].cpu, strict=True)
    shares = [100 * bare / ours for bare, ours in pairs]
    return Row(
        case=codec,
        contender="encode_part",
        unit="%",
        median=statistics.median(shares),
        best=max(shares),
        goal=Goal(of="median", relation=">=", bound=_GOAL),
        others=found["ours"].others,
    )
