"""The scratch folder of a conversion: where packed sources are unpacked for all that read them.

``<name>.mla.unpacked.parts/`` stands beside the target while it is made. Like the folder of the
write itself it belongs to one process, is taken over when that is dead, and records what for.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError
from mlarray_xr.storage.staging import claim, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.foreign.origin import Origin
    from mlarray_xr.storage.staging import Staging

__all__ = ["scratch_folder"]

_SUFFIX = ".unpacked"
_UNPACKED = ".raw"


@contextlib.contextmanager
def scratch_folder(
    target: str, origin: Origin | None, *, keeps: bool, restarts: bool = False
) -> Iterator[str]:
    """Own the scratch folder of a target while the block runs.

    Parameters
    ----------
    target
        Absolute path of the file that is made.
    origin
        What from; needed when `keeps`.
    keeps
        Whether what was done outlives a failure, and what an earlier conversion left is used.
    restarts
        Whether what is left of another conversion is thrown away; otherwise it is refused.

    Raises
    ------
    TargetBusy
        When another conversion to that target is under way.
    ConversionError
        When another conversion was begun there that kept what it did, and this one does not
        restart.
    """
    # A conversion that keeps nothing records nothing: none goes on where it ended.
    record = {"fingerprint": origin.to_dict() if keeps and origin is not None else {}}
    try:
        staging, _ = claim(target + _SUFFIX, record, resume=keeps)
    except ConversionError:
        if not restarts and not _kept_nothing(target):
            raise
        staging, _ = claim(target + _SUFFIX, record, resume=False)
        claim(target, record, resume=False)[0].remove()
    try:
        yield staging.folder
    except BaseException:
        if keeps and _is_begun(staging, target):
            staging.release()
        else:
            staging.remove()
        raise
    staging.remove()


def _kept_nothing(target: str) -> bool:
    """Tell whether the scratch folder is of a conversion that kept nothing; if so, remove it."""
    try:
        staging, _ = claim(target + _SUFFIX, {"fingerprint": {}}, resume=True)
    except ConversionError:
        return False
    staging.remove()
    return True


def _is_begun(staging: Staging, target: str) -> bool:
    """Tell whether anything was unpacked, or the write begun: damaged sources get no further."""
    names = os.listdir(staging.folder)
    return os.path.exists(staging_folder(target)) or any(n.endswith(_UNPACKED) for n in names)
