"""Damages chunks and decodes parts of them; run as a script, since a crash would end the caller.

Arguments: a folder of chunks that `hostile_blocks.save_victim` made, how many random copies of
each, a seed. Prints what became of them as JSON.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

from mlarray_xr.errors import MlaError
from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.storage.chunk_box import decode_picked
from mlarray_xr.storage.chunk_pick import plan_pick
from tests.hostile_blocks import ADDRESS_SPACE_BYTES, SECONDS, mutations


def decode(chunk: bytes, form: ChunkForm) -> None:
    """Decode a chunk whole, and parts of it."""
    stored = np.frombuffer(chunk, np.uint8)
    last = tuple(np.array([0, n - 1]) for n in form.chunks)
    for key in ((), (slice(1, 2),), np.ix_(*last), last):
        expected = np.broadcast_to(np.zeros(()), form.chunks)[key]
        values = decode_picked(stored, form, plan_pick(key, form), dtype=form.dtype, name="victim")
        assert values.shape == expected.shape


def main() -> None:
    """Try all victims of a folder."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    outcomes = {}
    for victim in sorted(folder.glob("*.victim")):
        chunk, header = pickle.loads(victim.read_bytes())
        form = ChunkForm(typesize=header.typesize, chunks=header.chunks, blocks=header.blocks)
        decode(chunk, form)
        outcome = {"decoded": 0, "refused": 0}
        for damaged in mutations(chunk, header, count=count, seed=seed):
            try:
                decode(damaged, form)
            except MlaError:
                outcome["refused"] += 1
            else:
                outcome["decoded"] += 1
        outcomes[victim.stem] = outcome
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
