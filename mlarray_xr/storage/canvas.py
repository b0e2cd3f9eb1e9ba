"""Canvas: an array that is filled in any order, in bounded memory, and then becomes one file.

Chunks that were written last are kept decoded. The others are encoded and wait in a scratch file
until the end, or until somebody writes to them again. A chunk that nobody wrote is zeros.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
import uuid
import warnings
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mlarray_xr.errors import LayoutError, MlaWarning
from mlarray_xr.planning.assignment import fit_values, outer_only, plan_chunk_selections
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.selection import is_scalar_key, plan_selection
from mlarray_xr.planning.shaped import Shaped
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.chunks import decode_values
from mlarray_xr.storage.encode import NANS, ZEROS, EncodedChunk, encode_part
from mlarray_xr.storage.gather import allocate
from mlarray_xr.storage.job import Finished
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.publication import published
from mlarray_xr.storage.random_access import RandomAccessFile
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.planning.assignment import ChunkSelection
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.job import WriteJob

__all__ = ["Canvas"]

# Of a chunk that is being encoded: its elements block by block, and the result.
_COPIES = 3
_PER_THREAD = 2
_OFTEN = 2
_ELSEWHERE = (
    "an array that is being filled belongs to the process that made it. To fix: "
    "mlarray_xr.to_mla(array, path) writes a Dask array from many processes"
)


class Canvas(Shaped):
    """The array of one write, for `array[key] = values` from any thread of this process.

    Parameters
    ----------
    job
        What is written where; owned by this process.
    memory_bytes
        Memory that decoded and encoded chunks may take.

    Raises
    ------
    LayoutError
        When not even one chunk fits the memory.
    """

    def __init__(self, job: WriteJob, *, memory_bytes: int) -> None:
        self._job, self._plan = job, job.plan
        chunk = (min(c, n) for c, n in zip(self.chunks, self.shape, strict=True))
        chunk_bytes = math.prod(chunk) * self.dtype.itemsize
        threads = available_threads()
        self._cache_bytes = memory_bytes - (threads + 1) * _COPIES * chunk_bytes
        if self._cache_bytes < chunk_bytes:
            least = ((threads + 1) * _COPIES + 1) * chunk_bytes
            msg = (
                f"memory_limit={memory_bytes}: {threads} threads that encode chunks of "
                f"{chunk_bytes} bytes need {least} bytes. To fix: (1) raise it; (2) smaller chunks"
            )
            raise LayoutError(msg)
        self._batch = _PER_THREAD * threads
        self._lock = threading.Lock()
        # By number, the one written last at the end. Of these nothing else counts.
        self._decoded: OrderedDict[int, tuple[Box, NDArray[Any]]] = OrderedDict()
        self._decoded_bytes = 0
        self._encoded: dict[int, NDArray[Any]] = {}
        self._room: dict[int, tuple[int, int]] = {}
        self._scratch_path = job.staging.path(f"{uuid.uuid4().hex}.raw")
        self._scratch: RandomAccessFile | None = None
        self._scratch_end = self._n_evicted = 0
        self._is_open = True
        self._process = os.getpid()

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, array order."""
        return self._plan.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._plan.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents of a chunk of the file, array order."""
        return self._plan.layout.chunks

    @property
    def blocks(self) -> tuple[int, ...]:
        """Extents of a block, array order."""
        return self._plan.layout.blocks

    def __setitem__(self, key: Any, values: Any) -> None:
        """Assign as NumPy does, but for single points and for values that would not be kept.

        Raises
        ------
        ConversionError
            When the type cannot hold the values.
        IndexError, ValueError
            When the key reaches outside the array or means single points; when the values do not
            broadcast to it, or the file is finished.
        """
        self._check_process()
        selection = outer_only(plan_selection(key, self.shape))
        fitted = fit_values(values, selection, self.dtype)
        with self._lock:
            self._check_open()
            for piece in plan_chunk_selections(selection, shape=self.shape, chunks=self.chunks):
                self._chunk(piece)[piece.chunk_key] = fitted[piece.values_key]
                while self._decoded_bytes > self._cache_bytes:
                    self._evict()

    def __getitem__(self, key: Any) -> Any:
        """Return what was written so far, zeros elsewhere; a lossy codec may yet change it.

        Raises
        ------
        IndexError
            When the key reaches outside the array or means single points.
        ValueError
            When the file is finished.
        """
        self._check_process()
        selection = outer_only(plan_selection(key, self.shape))
        out = allocate(tuple(map(len, selection.axes)), self.dtype)
        with self._lock:
            self._check_open()
            for piece in plan_chunk_selections(selection, shape=self.shape, chunks=self.chunks):
                number = self._number(piece)
                if number in self._decoded:
                    chunk = self._decoded[number][1]
                else:
                    chunk = self._load(number, np.zeros(box_shape(piece.box), self.dtype))
                out[piece.values_key] = chunk[piece.chunk_key]
        out = out.reshape(selection.shape)
        return out if out.shape or not is_scalar_key(key) else out[()]

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to another process."""
        raise TypeError(_ELSEWHERE)

    def publish(self) -> Finished:
        """Make the file of all chunks, publish it, and remove the staging folder.

        Raises
        ------
        RuntimeError
            In a forked child.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            self._is_open = False
            staging, boxes = self._job.staging, self._job.parts.boxes()
            with published(
                staging.target, overwrite=self._job.overwrite, temporary_folder=staging.folder
            ) as file:
                writer = FrameWriter(
                    file, plan=self._plan, metadata=self._job.metadata, n_parts=len(boxes)
                )
                with contextlib.closing(run_ordered(self._final_tasks())) as encoded:
                    for box in boxes:
                        writer.append(itertools.islice(encoded, len(self._plan.numbers_in(box))))
                begin = time.perf_counter()
                writer.finish()
            self._close_scratch()
            staging.remove()
        return Finished(
            file_bytes=os.path.getsize(staging.target),
            seconds=time.perf_counter() - begin,
            workers=1,
        )

    def discard(self) -> None:
        """Forget everything; the canvas takes no values any more."""
        if os.getpid() != self._process:
            return  # its lock may be held by a thread of the parent
        with self._lock:
            self._is_open = False
            self._decoded.clear()
            self._close_scratch()

    def _check_process(self) -> None:
        """Refuse use in a forked child: what it assigned would be missing from the file."""
        if os.getpid() != self._process:
            raise RuntimeError(_ELSEWHERE)

    def _check_open(self) -> None:
        """Refuse use after the end."""
        if not self._is_open:
            msg = (
                f"{self._job.staging.target}: ended, well or not: it takes and gives "
                "no values. To fix: mlarray_xr.MlaArray(path, mode='r+') edits a finished file"
            )
            raise ValueError(msg)

    def _number(self, piece: ChunkSelection) -> int:
        """Return the number of a chunk."""
        return int(self._plan.numbers_in(piece.box)[0])

    def _chunk(self, piece: ChunkSelection) -> NDArray[Any]:
        """Return the decoded elements of a chunk, to be changed."""
        number = self._number(piece)
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number][1]
        chunk = np.zeros(box_shape(piece.box), self.dtype)
        if not piece.is_whole:
            self._load(number, chunk)
        self._decoded[number] = piece.box, chunk
        self._decoded_bytes += chunk.nbytes
        return chunk

    def _load(self, number: int, out: NDArray[Any]) -> NDArray[Any]:
        """Fill zeros with the elements of a chunk that was encoded, if it was."""
        entry = self._encoded.get(number)
        if entry is None or entry["special"] == ZEROS:
            return out
        if entry["special"] == NANS:
            out[...] = np.nan
            return out
        name = f"{self._job.staging.target}: chunk {number}"
        decode_values(self._stored(entry), out, chunks=self.chunks, blocks=self.blocks, name=name)
        return out

    def _stored(self, entry: NDArray[Any]) -> bytes:
        """Return the bytes of an encoded chunk."""
        if self._scratch is None or entry["special"]:
            return b""
        start = int(entry["offset"])
        return self._scratch.read(start, start + int(entry["length"]))

    def _evict(self) -> None:
        """Encode the chunks that were not written to for longest, in several threads."""
        # Until all are stored they are in neither place: an error here is the end of the canvas.
        self._is_open = False
        # No more than half: the newer ones may be of a layer that is being filled.
        count = min(self._batch, (len(self._decoded) + 1) // 2)
        oldest = [self._decoded.popitem(last=False) for _ in range(count)]
        self._decoded_bytes -= sum(chunk.nbytes for _, (_, chunk) in oldest)
        tasks = [partial(self._encode, box, chunk) for _, (box, chunk) in oldest]
        for chunk in run_ordered(tasks):
            self._keep(chunk)
        self._is_open = True
        self._n_evicted += count
        if self._n_evicted - count <= _OFTEN * self._plan.n_chunks < self._n_evicted:
            msg = (
                f"chunks {self.chunks} of {self._job.staging.target} are encoded again and again: "
                f"the memory limit leaves {self._cache_bytes} bytes for those that are written. "
                "To fix: (1) raise memory_limit; (2) write in the order of chunks"
            )
            warnings.warn(msg, MlaWarning, stacklevel=3)

    def _encode(self, box: Box, chunk: NDArray[Any]) -> EncodedChunk:
        """Encode one chunk."""
        (encoded,) = encode_part(chunk, box, self._plan)
        return encoded

    def _keep(self, chunk: EncodedChunk) -> None:
        """Put an encoded chunk into the scratch file: over its older version where it fits."""
        number, entry = int(chunk.entry["number"]), chunk.entry.copy()
        if chunk.data:
            at, room = self._room.get(number, (0, -1))
            if len(chunk.data) > room:
                at, self._scratch_end = self._scratch_end, self._scratch_end + len(chunk.data)
                self._room[number] = at, len(chunk.data)
            if self._scratch is None:
                self._scratch = RandomAccessFile(self._scratch_path, mode="x+")
            self._scratch.write(chunk.data, at=at)
            entry["offset"] = at
        self._encoded[number] = entry

    def _final_tasks(self) -> Iterator[partial[EncodedChunk]]:
        """Yield what gives each chunk as it goes into the file, part after part."""
        for box in self._job.parts.boxes():
            for number in self._plan.numbers_in(box).tolist():
                if number in self._decoded:
                    yield partial(self._encode, *self._decoded.pop(number))
                else:
                    yield partial(self._finished, number)

    def _finished(self, number: int) -> EncodedChunk:
        """Return a chunk that was encoded before, or one of zeros that nobody wrote."""
        entry = self._encoded.get(number)
        if entry is None:
            entry = np.zeros((), self._plan.entry_dtype)
            entry["number"], entry["special"] = number, ZEROS
        return EncodedChunk(entry=entry, data=self._stored(entry))

    def _close_scratch(self) -> None:
        """Close the scratch file; it is removed with the folder that it is in."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
