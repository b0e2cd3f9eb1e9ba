"""Which files are shown, under which names: nothing else can be asked for."""

from __future__ import annotations

import itertools
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import SourceChanged, SourceError
from mlarray_xr.overview_siblings import MOST_LEVELS, is_level_file, level_path, names_level
from mlarray_xr.serving.url_path import is_servable_name
from mlarray_xr.storage.address import is_url, local_path
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Catalogue", "ServedFile"]

_SUFFIX = ".mla"
_RESCAN_AFTER_S = 1.0
_NAMELESS = "files"
_HIDDEN = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFile:
    """A file that is shown."""

    name: str
    """In URLs before they are encoded: segments separated by slashes."""
    path: str
    """Absolute."""
    folder: str
    """The folder that it must not lead out of, without symbolic links in its path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Root:
    """A path that was given."""

    path: str
    """Absolute; of folders without symbolic links."""
    label: str
    """Name of the file, or how the names of what is in the folder begin; may be empty then."""
    is_folder: bool
    """Whether what is below it is shown."""


class Catalogue:
    """The files that some paths stand for, looked up by name.

    Of folders every ``.mla`` file below them is shown, those that come later too; hidden ones are
    not, nor what symbolic links lead to outside of the folder. Names are paths inside the folder;
    where several paths are given they begin with the folder's name. Overviews belong to their file:
    they can be asked for, but are not listed. Beside a file that was given they have to be where it
    is as well, and those with the name of another file that was given are only in its Zarr view.

    Parameters
    ----------
    paths
        Local files and folders.
    rescan_after_s
        How old the last look into the folders may be, seconds.

    Raises
    ------
    FileNotFoundError
        When nothing is at a path.
    FormatError
        When a file that was given is no `.mla` file.
    SourceError
        When a path is a URL, or cannot be named in one.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5)), "shown.mla")
    >>> catalogue = Catalogue(["shown.mla"])
    >>> [file.name for file in catalogue.listed()], catalogue.find(["hidden.mla"])
    (['shown.mla'], None)
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], *, rescan_after_s: float = _RESCAN_AFTER_S
    ) -> None:
        self._roots = _roots(paths)
        self._given = {root.path for root in self._roots}
        self._rescan_after_s = rescan_after_s
        self._scanning = threading.Lock()
        self._is_level: dict[LocalSource, bool] = {}
        self._unnamed: tuple[str, ...] = ()
        self._files = self._scan()
        self._scanned_at = time.monotonic()

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Paths of files that are not shown, since no URL or page can hold their names."""
        return self._unnamed

    def listed(self) -> list[ServedFile]:
        """Return the files by name, without the overviews of others; looks into the folders."""
        files = self._current().values()
        stems = {os.path.splitext(file.path)[0] for file in files}
        levels = self._levels([f for f in files if _stem_of_level(f.path) in stems])
        return sorted((f for f in files if f.path not in levels), key=lambda file: file.name)

    def find(self, segments: Sequence[str]) -> tuple[ServedFile, str] | None:
        """Return the file that the first segments of a path name, and the rest of the path.

        No name begins with another one and a slash: nothing is both a file and a folder.

        Parameters
        ----------
        segments
            Of a path, decoded.

        Returns
        -------
        tuple or None
            None when they name no file that is shown.
        """
        names = ["/".join(segments[:n]) for n in range(1, len(segments) + 1)]
        for files in (self._files, self._current()):
            for name in names:
                file = files.get(name)
                if file is not None:
                    rest = "/".join(segments)[len(name) + 1 :]
                    return (file, rest) if self._may_be_shown(file) else None
        return None

    def pinned(self, file: ServedFile) -> LocalSource:
        """Return a file as it is now, which no symbolic link leads out of the folder to.

        What is opened later is compared with what was pinned: who puts a link in its place
        meanwhile shows nothing else.

        Raises
        ------
        FileNotFoundError
            When it is gone, or is not to be seen by now.
        SourceChanged
            When it was replaced just now.
        SourceError
            When it is no regular file.
        """
        return self._pinned(file.path, file.folder)

    def pinned_levels(self, file: ServedFile) -> tuple[LocalSource, ...]:
        """Return a file and what has the names of its levels, up to the first not to be seen."""
        found = [self.pinned(file)]
        for level in range(1, MOST_LEVELS + 1):
            try:
                found.append(self._pinned(level_path(file.path, level), file.folder))
            except SourceChanged:
                raise
            except OSError:
                break
        return tuple(found)

    def _pinned(self, path: str, folder: str) -> LocalSource:
        """Pin a file, and then look where it is."""
        source = source_of(path)
        assert isinstance(source, LocalSource)
        if path in self._given:
            return source
        # After pinning: a link that is put there between the two leads to another file.
        real = os.path.realpath(path)
        if not _is_visible(real, folder):
            raise FileNotFoundError(f"{path}: it leads to what is not shown")
        source.check_stat(os.stat(real))
        return source

    def _current(self) -> dict[str, ServedFile]:
        """Return the files, after another look into the folders where the last one is too old.

        One thread looks; what others find meanwhile is what was there before.
        """
        if self._scanning.acquire(blocking=False):
            try:
                if time.monotonic() - self._scanned_at >= self._rescan_after_s:
                    self._files = self._scan()
                    self._scanned_at = time.monotonic()
            finally:
                self._scanning.release()
        return self._files

    def _scan(self) -> dict[str, ServedFile]:
        """Look what is there: what was given comes before the levels beside it."""
        found: dict[str, ServedFile] = {}
        unnamed: list[str] = []
        for root in self._roots:
            for file in _files_below(root) if root.is_folder else (_given_file(root),):
                if is_servable_name(file.name):
                    found[file.name] = file
                else:
                    unnamed.append(file.path)
        labels = {root.label for root in self._roots}
        for root in self._roots:
            for file in () if root.is_folder else _levels_beside(root):
                if file.name not in labels:
                    found.setdefault(file.name, file)
        self._unnamed = tuple(unnamed)
        return found

    def _may_be_shown(self, file: ServedFile) -> bool:
        """Tell whether no symbolic link leads out of the folder, or to what is hidden, by now."""
        return file.path in self._given or _is_visible(os.path.realpath(file.path), file.folder)

    def _levels(self, candidates: Sequence[ServedFile]) -> set[str]:
        """Return the paths of overviews among files with such names; opens each state once."""
        known: dict[LocalSource, bool] = {}
        paths = set()
        for file in candidates:
            if file.path in self._given:
                continue
            try:
                source = self.pinned(file)
            except OSError:
                continue
            is_level = self._is_level.get(source)
            known[source] = is_level_file(file.path) if is_level is None else is_level
            if known[source]:
                paths.add(file.path)
        self._is_level = known
        return paths


def _roots(paths: Sequence[str | os.PathLike[str]]) -> tuple[_Root, ...]:
    """Return the paths with labels of their own."""
    plain = list(dict.fromkeys(_checked(os.fsdecode(path)) for path in paths))
    roots: list[_Root] = []
    for path in plain:
        is_folder = os.path.isdir(path)
        label = os.path.basename(path)
        if is_folder and len(plain) == 1:
            label = ""
        elif is_folder and not is_servable_name(label):
            label = _NAMELESS
        taken = {root.label for root in roots}
        roots.append(_Root(path=path, label=_free(label, taken), is_folder=is_folder))
    return tuple(roots)


def _checked(path: str) -> str:
    """Return the absolute path of a folder, or of a file that is an `.mla` file."""
    if is_url(path):
        raise SourceError(f"{path}: files of this machine are served, no URLs. To fix: give a path")
    full = os.path.abspath(os.path.expanduser(local_path(path)))
    if os.path.isdir(full):
        return os.path.realpath(full)
    MlaArray(full)  # what cannot be shown is told now, rather than to those who ask for it
    if not is_servable_name(os.path.basename(full)):
        raise SourceError(f"{path!a}: such a name cannot be served. To fix: rename the file")
    return full


def _free(label: str, taken: Iterable[str]) -> str:
    """Return a label that is not taken: ``ct.mla``, ``ct~2.mla`` and so on."""
    stem, suffix = os.path.splitext(label)
    labels = (label if n == 1 else f"{stem}~{n}{suffix}" for n in itertools.count(1))
    return next(each for each in labels if each not in taken)


def _given_file(root: _Root) -> ServedFile:
    """Return a file that was given."""
    folder = os.path.realpath(os.path.dirname(root.path))
    return ServedFile(name=root.label, path=root.path, folder=folder)


def _levels_beside(root: _Root) -> Iterator[ServedFile]:
    """Yield the overviews beside a file."""
    folder = os.path.realpath(os.path.dirname(root.path))
    for level in range(1, MOST_LEVELS + 1):
        path = level_path(root.path, level)
        if not _is_visible(os.path.realpath(path), folder) or not is_level_file(path):
            break
        yield ServedFile(name=level_path(root.label, level), path=path, folder=folder)


def _stem_of_level(path: str) -> str | None:
    """Return the path, less its suffix, of the file that one is named as a level of."""
    return os.path.splitext(os.path.splitext(path)[0])[0] if names_level(path) else None


def _files_below(root: _Root) -> Iterator[ServedFile]:
    """Yield what is below a folder, sorted, nothing hidden; links to folders are not followed."""
    for folder, folders, names in os.walk(root.path):
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        for name in sorted(names):
            path = os.path.join(folder, name)
            is_hidden = name.startswith(_HIDDEN) or not name.lower().endswith(_SUFFIX)
            if not is_hidden and _is_visible(os.path.realpath(path), root.path):
                inside = os.path.relpath(path, root.path).replace(os.sep, "/")
                full = f"{root.label}/{inside}" if root.label else inside
                yield ServedFile(name=full, path=path, folder=root.path)


def _is_visible(real: str, folder: str) -> bool:
    """Tell whether a path without links is a regular file in or below a folder, not hidden."""
    prefix = os.path.join(folder, "")
    if not real.startswith(prefix) or not os.path.isfile(real):
        return False
    parts = real.removeprefix(prefix).split(os.sep)
    return not any(part.startswith(_HIDDEN) for part in parts)
