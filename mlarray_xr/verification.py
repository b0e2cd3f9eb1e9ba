"""verify: every chunk of a file is read and compared with the checksum its writer recorded."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.address import is_url, open_address
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.frame_file import open_frame, read_index
from mlarray_xr.storage.handles import reader_of
from mlarray_xr.storage.inspection import Inspection
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Future

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.progress import Shown
    from mlarray_xr.storage.remote_source import Source

__all__ = ["DamagedChunk", "VerifyReport", "verify", "verify_files", "verify_folder"]

State = Literal["ok", "unknown", "damaged", "unreadable"]

_SUFFIX = ".mla"
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedChunk:
    """A chunk that is not what was written, or cannot be read."""

    number: int
    """C-order number in the chunk grid."""
    position: tuple[int, ...]
    """Position in the chunk grid, array order."""
    box: tuple[tuple[int, int], ...]
    """Which elements are lost: start and stop per axis, array order."""
    reason: str
    """What was found, and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What is known of a file after every byte that matters was read.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(64), "sound.mla", chunks=16, blocks=16)
    >>> report = verify("sound.mla")
    >>> report.state, report.n_matching, report.passes(require_checksums=True)
    ('ok', 4, True)
    """

    path: str
    """Absolute path, or what stands for bytes in memory."""
    state: State
    """`ok`: complete, and every chunk matches its checksum. `unknown`: nothing is wrong, and it
    cannot be proved that all is right. `damaged`: some of the file is not what was written.
    `unreadable`: the file could not be had (of `verify_files` only)."""
    reasons: tuple[str, ...] = ()
    """What is wrong or unknown about the file as a whole."""
    damaged: tuple[DamagedChunk, ...] = ()
    """The damaged chunks, the first 1000 of them."""
    n_damaged: int = 0
    """Number of damaged chunks."""
    n_chunks: int = 0
    """Number of chunks; 0 when not even that can be told."""
    n_matching: int = 0
    """Chunks that match their checksum."""
    n_changed: int = 0
    """Chunks that differ from their checksum, in a file that was edited since, and decode."""
    n_unchecked: int = 0
    """Chunks without a checksum that decode."""
    writer: str | None = None
    """Program that recorded the checksums; None without any."""
    file_bytes: int = 0
    """Bytes of the file."""
    seconds: float = 0.0
    """Wall time."""

    def passes(self, *, require_checksums: bool = False) -> bool:
        """Tell whether nothing is damaged; with `require_checksums`, whether all is proved."""
        return self.state == "ok" or (self.state == "unknown" and not require_checksums)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON."""
        facts = asdict(self)
        damaged = [
            {**asdict(d), "position": list(d.position), "box": [list(pair) for pair in d.box]}
            for d in self.damaged
        ]
        return {**facts, "reasons": list(self.reasons), "damaged": damaged}

    def __str__(self) -> str:
        """Return the report as a few lines, with the first 20 damaged chunks."""
        counts = {
            "match their checksum": self.n_matching,
            "changed since they were written": self.n_changed,
            "decode, nothing to compare with": self.n_unchecked,
            "damaged": self.n_damaged,
        }
        found = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        rate = f"{self.file_bytes / 1e6:.1f} MB in {self.seconds:.2f} s"
        lines = [f"{self.path}: {self.state}", *(f"  {reason}" for reason in self.reasons)]
        if self.n_chunks:
            lines.append(f"  of {self.n_chunks} chunks: {found}; {rate}")
        lines += [
            f"  chunk {d.number} at {d.position}, box {d.box}: {d.reason}"
            for d in self.damaged[:_MOST_SHOWN]
        ]
        if self.n_damaged > _MOST_SHOWN:
            lines.append(f"  and {self.n_damaged - _MOST_SHOWN} more")
        return "\n".join(lines)


def verify(
    path: object,
    *,
    threads: int | None = None,
    decode: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> VerifyReport:
    """Check a whole file: frame, metadata, chunk table, and every chunk.

    Chunks that match their checksum are not decoded; others are, where the file was edited since
    or has no checksums. At most 1 GiB is held in memory, or one chunk where that is larger.

    Parameters
    ----------
    path
        A local path, a URL, a file's bytes, or a binary file object.
    threads
        Threads to use; None shares the CPUs with reads under way.
    decode
        Whether to decode chunks that match their checksum, too.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Returns
    -------
    VerifyReport
        Damage is reported, never raised.

    Raises
    ------
    FileNotFoundError
        When there is no file.
    SourceError
        When the path is a directory, or the file cannot be had or changed meanwhile.

    Examples
    --------
    >>> import pathlib, numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(64), "flipped.mla", chunks=16, blocks=16)
    >>> data = bytearray(pathlib.Path("flipped.mla").read_bytes())
    >>> data[200] ^= 1
    >>> report = verify(bytes(data))
    >>> report.state, report.damaged[0].box
    ('damaged', ((0, 16),))
    """
    if threads is not None and threads < 1:
        msg = f"threads={threads}: at least 1 is needed, or None to share the CPUs"
        raise ValueError(msg)
    begin = time.perf_counter()
    source = open_address(path, storage_options=storage_options, store=store)
    report = _inspected(source, threads=threads, decode=decode)
    file_bytes = len(source.data) if isinstance(source, BytesSource) else source.size
    return replace(report, file_bytes=file_bytes, seconds=time.perf_counter() - begin)


def verify_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    jobs: int | None = None,
    decode: bool = False,
    progress: Shown = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[VerifyReport]:
    """Check many files, several at a time, and go on after damage.

    Threads are used, not processes: reading, checksums and decoding release the GIL.

    Parameters
    ----------
    paths
        Files of any name, URLs, and folders, of which the `.mla` files are taken; see
        `verify_folder`.
    jobs
        Files at a time; None takes one per CPU.
    decode
        See `verify`.
    progress
        Called with the number of files done and of all files, before each report; True, False and
        None as in `mlarray_xr.to_mla`.
    storage_options
        How to get at URLs; see `verify`.

    Yields
    ------
    VerifyReport
        One for each file, in the order of the paths; of files that cannot be had with the state
        ``"unreadable"``.

    Examples
    --------
    >>> [report.state for report in verify_files(["absent.mla"])]
    ['unreadable']
    """
    found = list(itertools.chain.from_iterable(map(_files_of, paths)))
    check = partial(_verified, decode=decode, storage_options=storage_options)
    waiting: deque[Future[VerifyReport]] = deque()
    remaining, jobs = iter(found), jobs or available_threads()
    with shown_progress(progress, unit="file") as tell, ThreadPoolExecutor(jobs) as pool:
        try:
            for done in range(1, len(found) + 1):
                # One more than run, so that no thread idles while a report is looked at.
                for path in itertools.islice(remaining, jobs + 1 - len(waiting)):
                    waiting.append(pool.submit(check, path))
                report = waiting.popleft().result()
                if tell is not None:
                    tell(done, len(found))
                yield report
        finally:
            for future in waiting:
                future.cancel()


def verify_folder(
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    decode: bool = False,
    progress: Shown = None,
) -> Iterator[VerifyReport]:
    """Check every `.mla` file in a folder and in the folders below it, sorted by name.

    Links are not followed: what they lead to may be anywhere. Parameters and reports are those of
    `verify_files`.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        At once, when there is no such folder.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(8), "only.mla")
    >>> [report.passes() for report in verify_folder(".")]
    [True]
    """
    with os.scandir(folder):
        return verify_files([folder], jobs=jobs, decode=decode, progress=progress)


def _files_of(path: str | os.PathLike[str]) -> list[str | OSError]:
    """Return a path itself, or of a folder its `.mla` files and the errors of walking there."""
    root = os.fsdecode(path)
    if not os.path.isdir(root):
        return [root]
    found: list[str | OSError] = []
    for folder, folders, names in os.walk(root, onerror=found.append):
        folders.sort()
        files = (os.path.join(folder, name) for name in sorted(names) if name.endswith(_SUFFIX))
        found += [file for file in files if not os.path.islink(file)]
    return found


def _verified(
    path: str | OSError, *, decode: bool, storage_options: Mapping[str, Any] | None
) -> VerifyReport:
    """Return the report of one file; what cannot be had is a report, too."""
    if isinstance(path, OSError):
        return _unreadable(os.fsdecode(path.filename), path)
    try:
        return verify(path, decode=decode, storage_options=storage_options)
    except (OSError, MemoryError) as error:
        return _unreadable(path, error)


def _unreadable(path: str, error: Exception) -> VerifyReport:
    """Return the report of a file or folder that could not be had."""
    reason = str(error) or type(error).__name__
    shown = remote_address(path).name if is_url(path) else os.path.abspath(path)
    return VerifyReport(path=shown, state="unreadable", reasons=(reason,))


def _inspected(source: Source, *, threads: int | None, decode: bool) -> VerifyReport:
    """Check everything, from the outside to the chunks."""
    damage: list[str] = []
    has_metadata, integrity = True, None
    try:
        has_metadata = open_frame(source).has_metadata
    except FormatError as error:
        damage.append(_reason(source, error))
    try:
        header, offsets = read_index(source)
    except FormatError as error:
        reasons = dict.fromkeys([*damage, _reason(source, error)])
        return VerifyReport(path=source.name, state="damaged", reasons=tuple(reasons))
    try:
        integrity = read_integrity(source)
    except FormatError as error:
        damage.append(_reason(source, error))
    inspection = Inspection(source, header, offsets, integrity, decode=decode)
    inspection.run(threads=threads)
    if integrity is not None:
        damage += () if inspection.is_edited else integrity.differences(header)
        damage += () if has_metadata else ["the metadata entry is gone"]
    if not damage and not inspection.counts["damaged"]:
        damage += _refusals(source, header)
    counts = inspection.counts
    doubts = () if damage else tuple(_doubts(header, integrity, inspection))
    is_damaged = bool(damage or counts["damaged"])
    return VerifyReport(
        path=source.name,
        state="damaged" if is_damaged else "unknown" if doubts else "ok",
        reasons=(*damage, *doubts),
        damaged=tuple(_damaged_chunk(fault, header) for fault in inspection.faults),
        n_damaged=counts["damaged"],
        n_chunks=header.n_chunks,
        n_matching=counts["matching"],
        n_changed=counts["changed"],
        n_unchecked=counts["unchecked"],
        writer=None if integrity is None else integrity.writer,
    )


def _reason(source: Source, error: FormatError) -> str:
    """Return what an error says, without the path that the report shows anyway."""
    return str(error).removeprefix(f"{source.name}: ")


def _refusals(source: Source, header: FrameHeader) -> Iterator[str]:
    """Say why the reader refuses a file in which no damage was found; nothing where it does not.

    C-Blosc2 looks at fields that nothing depends on, such as the codec of chunks to come.
    """
    if not header.n_chunks:
        return
    box = tuple((0, 1) for _ in header.shape)
    try:
        reader_of(source).read(box, np.empty((1,) * len(box), header.dtype), threads=1)
    except FormatError as error:
        yield _reason(source, error)


def _doubts(
    header: FrameHeader, integrity: Integrity | None, inspection: Inspection
) -> Iterator[str]:
    """Say why a file cannot be proved to be what was written; nothing where it can."""
    if integrity is None:
        yield "no checksums of these chunks: written by another program, or changed since"
        return
    differences = integrity.differences(header) if inspection.is_edited else ()
    if differences or inspection.counts["changed"]:
        yield (
            f"edited by another program since {integrity.writer} wrote it: the chunks take "
            f"{header.payload_len} bytes, {integrity.payload_len} were written"
        )
    yield from differences


def _damaged_chunk(fault: tuple[int, str], header: FrameHeader) -> DamagedChunk:
    """Return a fault with its place in the array."""
    number, reason = fault
    position, box = chunk_place(number, header)
    return DamagedChunk(number=number, position=position, box=box, reason=reason)
