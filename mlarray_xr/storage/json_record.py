"""JSON records: small files that other processes see whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import TYPE_CHECKING, Any

from mlarray_xr.storage.publication import naming

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["create_record", "read_record", "remove_file", "replace_record"]

_MAX_BYTES = 64 << 20


def read_record(path: str) -> dict[str, Any] | None:
    """Return a record; None when it is not there or not whole."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                return None
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def replace_record(path: str, record: Mapping[str, Any]) -> None:
    """Write a record in place of any that is there.

    Raises
    ------
    OSError
        When the disk is full, or the folder is gone; what was there stays.
    """
    with _temporary(path, record) as temporary:
        os.replace(temporary, path)


def create_record(path: str, record: Mapping[str, Any]) -> bool:
    """Write a record unless there is one, and tell whether there was none; one process succeeds.

    Raises
    ------
    FileNotFoundError
        When the folder is gone.
    OSError
        When the disk is full; nothing is left then.
    """
    with _temporary(path, record) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError:
            # File systems without hard links: exclusive, though not whole at once.
            return _copy_exclusively(temporary, path)
        return True


@contextlib.contextmanager
def _temporary(path: str, record: Mapping[str, Any]) -> Iterator[str]:
    """Write a record under another name, which is gone when the block ends."""
    name = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with naming(path), open(name, "x", encoding="utf-8") as file:
            json.dump(record, file)
        yield name
    finally:
        remove_file(name)


def _copy_exclusively(source: str, path: str) -> bool:
    """Copy a small file to a name unless that is taken; tell whether it was free."""
    with open(source, "rb") as file:
        content = file.read()
    try:
        with open(path, "xb", buffering=0) as copy:
            try:
                copy.write(content)
            except BaseException:
                remove_file(path)
                raise
    except FileExistsError:
        return False
    return True


def remove_file(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
