"""WriteReport: what a write did, and how it is told."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.html_table import facts_table
from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.planning.grid import box_shape

if TYPE_CHECKING:
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout

__all__ = ["WriteReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What a write did.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> report = mlarray_xr.to_mla(np.zeros((64, 64), "uint8"), "report.mla", mode="w")
    >>> report.nbytes, report.n_chunks
    (4096, 1)
    """

    path: str
    """Absolute path of the file."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: str
    """Type of the elements."""
    nbytes: int
    """Bytes of the decoded array: all of it, also when a region was written."""
    file_bytes: int
    """Bytes of the file."""
    n_chunks: int
    """Number of chunks that were written."""
    n_resumed_chunks: int
    """How many of them an earlier write had left."""
    seconds: float
    """Wall time."""
    assembly_seconds: float
    """How much of it joining, checking and publishing took."""
    workers: int
    """Processes that encoded."""
    layout: Layout
    """Chunks and blocks."""
    codec: Codec
    """Compression."""
    choice: CodecChoice | None = None
    """Why this codec, when it was chosen by a trial."""
    region: Box | None = None
    """What of an existing file was replaced; None when a file was made."""

    @property
    def written_bytes(self) -> int:
        """Decoded bytes of what was written."""
        if self.region is None:
            return self.nbytes
        return math.prod(box_shape(self.region)) * np.dtype(self.dtype).itemsize

    @property
    def ratio(self) -> float:
        """Decoded bytes over stored bytes."""
        return self.nbytes / self.file_bytes

    def __str__(self) -> str:
        """Return the report as a few lines."""
        rate = self.written_bytes / max(self.seconds, 1e-9) / 1e6
        resumed = f", {self.n_resumed_chunks} of them resumed" if self.n_resumed_chunks else ""
        region = ""
        if self.region is not None:
            region = f"  region {', '.join(f'{a}:{b}' for a, b in self.region)}\n"
        processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
        return (
            f"{self.path}\n"
            f"  {self.dtype} {self.shape}: {self.nbytes / 1e6:.1f} MB in "
            f"{self.file_bytes / 1e6:.1f} MB, ratio {self.ratio:.2f}\n"
            f"{region}"
            f"  {self.n_chunks} chunks {self.layout.chunks} of blocks {self.layout.blocks}, "
            f"{self.choice or self.codec}{resumed}\n"
            f"  {self.seconds:.2f} s, {rate:.0f} MB/s, {processes}"
        )

    def _repr_html_(self) -> str:
        """Return the report as a table, for notebooks; the file without its folder."""
        rate = self.written_bytes / max(self.seconds, 1e-9) / 1e6
        resumed = f", {self.n_resumed_chunks} of them resumed" if self.n_resumed_chunks else ""
        region = self.region and ", ".join(f"{start}:{stop}" for start, stop in self.region)
        facts = (
            ("file", os.path.basename(self.path)),
            ("array", f"{self.dtype} {self.shape}, {in_words(self.nbytes)}"),
            ("stored", f"{in_words(self.file_bytes)}, ratio {self.ratio:.2f}"),
            ("region", region or ""),
            ("written", f"{self.n_chunks} chunks{resumed}"),
            ("layout", f"chunks {self.layout.chunks} of blocks {self.layout.blocks}"),
            ("codec", str(self.choice or self.codec)),
            ("time", f"{self.seconds:.2f} s, {rate:.0f} MB/s"),
            ("processes", str(self.workers)),
        )
        return facts_table(facts, title="written")
