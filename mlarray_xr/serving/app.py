"""The server's application: which request is answered by what."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, FormatError, SourceChanged
from mlarray_xr.serving.answer import busy_answer, send_answer, text_answer, unreadable_answer
from mlarray_xr.serving.index_page import answer_group, answer_index
from mlarray_xr.serving.raw_file import answer_raw
from mlarray_xr.serving.request import Request
from mlarray_xr.serving.zarr_file import ZarrFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.serving.admission import Admission
    from mlarray_xr.serving.answer import Answer, Receive, Send
    from mlarray_xr.serving.catalogue import Catalogue, ServedFile
    from mlarray_xr.serving.served_chunks import Encoding

__all__ = ["ServingApp"]

_FEWEST_THREADS, _MOST_THREADS = 4, 16
_MOST_REQUESTS = 256
_ZARR = "zarr"
_NO_FILE = "there is no such file"

_log = logging.getLogger(__name__)


class ServingApp:
    """An ASGI application that shows the files of a catalogue, and changes nothing.

    ``/`` lists them, ``/raw/NAME`` is a file byte by byte, ``/zarr/NAME/`` is it as Zarr 3. Reading
    and packing happen in a few threads, each with one chunk or one piece of a file at a time.

    Parameters
    ----------
    catalogue
        The files.
    admission
        Who is answered.
    encoding
        How the chunks of Zarr are packed.
    overviews
        Whether overviews are levels of the Zarr hierarchy of their file.
    n_requests
        How many are answered at one time; 503 beyond.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        admission: Admission,
        encoding: Encoding = "blosc",
        overviews: bool = True,
        n_requests: int = _MOST_REQUESTS,
    ) -> None:
        self._catalogue, self._admission = catalogue, admission
        self._overviews = overviews
        self._zarr_files = ZarrFiles(encoding=encoding)
        self._n_requests, self._n_answering = n_requests, 0
        n_threads = min(max(os.cpu_count() or 1, _FEWEST_THREADS), _MOST_THREADS)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="mla-serve")

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request of an ASGI server."""
        request = Request.of_scope(scope)
        self._n_answering += 1
        try:
            answer = self._admission.refusal(request)
            if answer is None and self._n_answering > self._n_requests:
                answer = busy_answer()
            if answer is None:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(self._threads, self.answer, request)
            await send_answer(
                answer,
                method=request.method,
                headers=self._admission.headers(request),
                receive=receive,
                send=send,
                threads=self._threads,
            )
        finally:
            self._n_answering -= 1

    def answer(self, request: Request) -> Answer:
        """Answer an admitted request; what goes wrong becomes a status and a line in the log."""
        try:
            try:
                return self._answer(request)
            except SourceChanged:
                # It was replaced between looking at it and reading it: once more.
                return self._answer(request)
        except FileNotFoundError:
            return text_answer(404, _NO_FILE)
        except ConversionError as error:
            _log.warning("%s: %s", request.raw_path, error)
            return text_answer(404, "this file cannot be shown as Zarr")
        except FormatError as error:
            _log.warning("%s: %s", request.raw_path, error)
            return text_answer(500, "the file is damaged, or is no .mla file")
        except OSError as error:
            _log.warning("%s: %s", request.raw_path, error)
            return unreadable_answer(error)
        except Exception:
            _log.exception("%s", request.raw_path)
            return text_answer(500, "the server failed")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _answer(self, request: Request) -> Answer:
        """Answer an admitted request."""
        if request.raw_path == "/":
            return answer_index(request, self._catalogue.listed())
        kind, *segments = request.segments or ("",)
        found = self._catalogue.find(segments)
        if found is None:
            return text_answer(404, _NO_FILE)
        file, rest = found
        if kind == "raw" and not rest:
            return answer_raw(request, self._catalogue.pinned(file))
        if kind != _ZARR:
            return text_answer(404, _NO_FILE)
        if not rest:
            self._catalogue.pinned(file)
            return answer_group(request, file)
        return self._answer_zarr(request, file, rest)

    def _answer_zarr(self, request: Request, file: ServedFile, key: str) -> Answer:
        """Answer a request for a key of a file as Zarr."""
        if self._overviews:
            sources = self._catalogue.pinned_levels(file)
        else:
            sources = (self._catalogue.pinned(file),)
        try:
            return self._zarr_files.file(sources).answer(request, key)
        except FormatError:
            for source in sources:
                source.check()  # what was read of two versions says nothing about either
            raise
