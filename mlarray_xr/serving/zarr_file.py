"""Files as Zarr: chunks are decoded and packed again when they are asked for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import SourceChanged
from mlarray_xr.serving.answer import checked_answer, ranged_answer, text_answer
from mlarray_xr.serving.conditions import Version
from mlarray_xr.serving.served_chunks import encode_chunk, read_chunk, served_form
from mlarray_xr.zarr_view.hierarchy import hierarchy_of
from mlarray_xr.zarr_view.stored_chunks import StoredChunks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlarray_xr.serving.answer import Answer
    from mlarray_xr.serving.request import Request
    from mlarray_xr.serving.served_chunks import Encoding
    from mlarray_xr.storage.source import LocalSource
    from mlarray_xr.zarr_view.hierarchy import Hierarchy, ImageNode

__all__ = ["ZarrFile", "ZarrFiles"]

_MOST_FILES = 64
"""Files whose documents are kept."""
_CHUNK = re.compile(r"(?P<path>.+)/c(?P<index>(?:/(?:0|[1-9][0-9]{0,17}))*)")
# A file and its levels.
_State: TypeAlias = "tuple[LocalSource, ...]"
_DOCUMENT = "application/json"
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZarrFile:
    """A file as a Zarr 3 hierarchy with codecs that every viewer has."""

    hierarchy: Hierarchy
    """Documents, and where the chunks come from."""
    stored: Mapping[str, StoredChunks]
    """The chunks of the images, as the files have them, by the paths of the images."""
    encoding: Encoding
    """How chunks are packed."""

    @classmethod
    def opened(cls, sources: Sequence[LocalSource], *, encoding: Encoding) -> ZarrFile:
        """Describe a file.

        Parameters
        ----------
        sources
            The file, pinned, and the levels beside it that may be shown: others are left out.
        encoding
            How chunks are packed.

        Raises
        ------
        ConversionError
            When Zarr has no such array, or chunks of it would take too much memory.
        FormatError
            When it is no `.mla` file.
        SourceChanged
            When one of the files is another one by now.
        """
        file = MlaArray(sources[0].path)
        tokens = {source.token for source in sources}

        def is_pinned(found: MlaArray) -> bool:
            return StoredChunks(found).source.token in tokens

        if not is_pinned(file):
            raise SourceChanged(f"{sources[0].path}: replaced since it was looked up")
        hierarchy = hierarchy_of(
            file,
            form=partial(served_form, encoding=encoding),
            overviews=len(sources) > 1,
            shows=is_pinned,
        )
        for source in sources:
            source.check()  # what was read of two versions is no description of either
        stored = {path: StoredChunks(node.file) for path, node in hierarchy.images.items()}
        return cls(hierarchy=hierarchy, stored=stored, encoding=encoding)

    def answer(self, request: Request, key: str) -> Answer:
        """Answer a GET or HEAD request for a key of the hierarchy.

        Raises
        ------
        ChunkError
            When the chunk is damaged.
        SourceChanged
            When the file is another one by now.
        """
        document = self.hierarchy.documents.get(key)
        if document is not None:
            version = Version(etag=_tag(document))
            return checked_answer(request, version) or ranged_answer(
                request,
                version,
                document,
                content_type=_DOCUMENT if key.endswith(".json") else _BINARY,
            )
        found = self._chunk(key)
        if found is None:
            return text_answer(404, "there is no such key")
        path, index = found
        node = self.hierarchy.images[path]
        version = Version(etag=self._chunk_tag(node, index))
        decided = checked_answer(request, version)
        if decided is not None:
            return decided
        values = read_chunk(self.stored[path], index, chunks=node.form.chunks)
        body = encode_chunk(values, encoding=self.encoding)
        return ranged_answer(request, version, body, content_type=_BINARY)

    def _chunk(self, key: str) -> tuple[str, tuple[int, ...]] | None:
        """Return the image's path and the place in its grid that a key means; None without one."""
        found = _CHUNK.fullmatch(key)
        node = self.hierarchy.images.get(found["path"]) if found else None
        if found is None or node is None:
            return None
        index = tuple(map(int, found["index"].split("/")[1:]))
        grid = node.grid
        is_inside = len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True))
        return (found["path"], index) if is_inside else None

    def _chunk_tag(self, node: ImageNode, index: tuple[int, ...]) -> str:
        """Return the entity tag of a chunk: its content follows from what is named here."""
        identity = (node.file.__dask_tokenize__(), node.form.chunks, self.encoding, index)
        return _tag(repr(identity).encode())


class ZarrFiles:
    """The files that were asked for as Zarr lately, described once for each state of a file.

    Parameters
    ----------
    encoding
        How chunks are packed.
    """

    def __init__(self, *, encoding: Encoding) -> None:
        self._encoding = encoding
        self._lock = threading.Lock()
        # Describing sets filters of warnings for a while, which all threads of a process share.
        self._describing = threading.Lock()
        self._files: OrderedDict[_State, Future[ZarrFile]] = OrderedDict()

    def file(self, sources: Sequence[LocalSource]) -> ZarrFile:
        """Return a file as it was pinned; one thread describes it, others wait for that.

        Raises
        ------
        ConversionError, FormatError, SourceChanged
            See `ZarrFile.opened`.
        """
        state = tuple(sources)
        with self._lock:
            future = self._files.get(state)
            is_mine = future is None
            if future is None:
                future = self._files[state] = Future()
            self._files.move_to_end(state)
            while len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
        if is_mine:
            try:
                with self._describing:
                    future.set_result(ZarrFile.opened(sources, encoding=self._encoding))
            except BaseException as error:
                with self._lock:
                    self._files.pop(state, None)
                future.set_exception(error)
                raise
        return future.result()


def _tag(content: bytes) -> str:
    """Return an entity tag."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
