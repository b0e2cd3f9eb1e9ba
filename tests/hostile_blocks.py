"""Damages chunks and decodes blocks of them; run as a script, since a crash would end the caller.

Arguments: a folder with chunks, see `save_victim`; how many random copies of each; a seed. Prints
what became of them as JSON. The file ``last`` tells which copy was decoded last.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import MlaError
from mlarray_xr.format.block_layout import head_bytes, mini_chunk, parse_block_layout
from mlarray_xr.storage.chunks import (
    decode_checked_chunk,
    decode_mini_chunk,
    decode_whole_chunk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.format.frame import FrameHeader

ADDRESS_SPACE_BYTES = 4 << 30
SECONDS = 60
EXTREMES = (0, -1, 1, 31, 32, 33, 100, 2**15 - 1, 2**31 - 1, -(2**31))
BYTES = (0, 1, 2, 3, 6, 0x23, 0x30, 0x40, 0x80, 0xFF)


def save_victim(folder: Path, name: str, chunk: bytes, header: FrameHeader) -> None:
    (folder / f"{name}.victim").write_bytes(pickle.dumps((chunk, header)))


def mutations(chunk: bytes, header: FrameHeader, *, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged copies of a chunk: every field of its head, then random bits."""
    table = min(head_bytes(header), len(chunk))
    for at in (4, 8, 12, *range(32, min(table, 32 + 4 * 6), 4)):
        for value in EXTREMES:
            yield chunk[:at] + (value % 2**32).to_bytes(4, "little") + chunk[at + 4 :]
    for at in (0, 1, 2, 3, *range(16, 32)):
        for value in BYTES:
            yield chunk[:at] + bytes([value]) + chunk[at + 1 :]
    first = chunk[32:36]
    yield chunk[:32] + first * ((table - 32) // 4) + chunk[table:]
    yield from (chunk[:length] for length in range(0, len(chunk), max(1, len(chunk) // 40)))
    random = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(chunk)
        stop = table if random.random() < 0.3 else len(chunk)
        for at in random.integers(0, stop, random.integers(1, 6)):
            damaged[at] ^= 1 << int(random.integers(0, 8))
        yield bytes(damaged)


def decode(chunk: bytes, header: FrameHeader) -> str:
    """Decode some blocks as the readers do; return of which kind the chunk was."""
    layout = parse_block_layout(
        chunk[: head_bytes(header)], header, number=0, room=len(chunk), name="victim"
    )
    n_blocks = header.chunksize // header.blocksize
    if layout.kind == "whole":
        whole = decode_whole_chunk(chunk[: layout.cbytes], header, name="victim")
        assert whole.shape == (n_blocks, *header.blocks)
    if not layout.is_divisible:
        return layout.kind
    numbers = np.arange(n_blocks)[::-1]
    starts, stops = layout.spans(numbers)
    assert (starts >= 32).all()
    assert (starts < stops).all()
    assert (stops <= layout.cbytes).all()
    assert (stops - starts <= header.blocksize + 4 * 255).all()
    payloads = [chunk[start:stop] for start, stop in zip(starts, stops, strict=True)]
    if layout.kind == "streams":
        mini = mini_chunk(layout, payloads)
        with contextlib.suppress(MlaError):  # the other way is tried in any case
            decode_checked_chunk(mini, nbytes=header.chunksize, name="victim")
        decoded = decode_mini_chunk(mini, header, name="victim")
        assert decoded.shape == (n_blocks, *header.blocks)
    return layout.kind


def main() -> None:
    """Try all victims of a folder."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    note = os.open(folder / "last", os.O_WRONLY | os.O_CREAT)
    outcomes = {}
    for victim in sorted(folder.glob("*.victim")):
        chunk, header = pickle.loads(victim.read_bytes())
        decode(chunk, header)
        outcome = {"decoded": 0, "refused": 0}
        for number, damaged in enumerate(mutations(chunk, header, count=count, seed=seed)):
            os.pwrite(note, f"{number} of {victim.stem}\n".encode(), 0)
            try:
                decode(damaged, header)
            except MlaError:
                outcome["refused"] += 1
            else:
                outcome["decoded"] += 1
        outcomes[victim.stem] = outcome
    # Not ru_maxrss, which a process that was forked from a large one starts with.
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    grown = int(status.partition("VmHWM:")[2].split()[0]) << 10
    print(json.dumps({"outcomes": outcomes, "peak_bytes": grown}))


if __name__ == "__main__":
    main()
