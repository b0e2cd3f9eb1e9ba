"""The scratch folder of a conversion: where packed sources are unpacked for all that read them.

``<name>.mla.unpacked.parts/`` stands beside the target while it is made. Like the folder of the
write itself it belongs to one process, is taken over when that is dead, and records what for.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError
from mlarray_xr.storage.staging import claim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.foreign.origin import Origin

__all__ = ["scratch_folder"]

_SUFFIX = ".unpacked"


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
        What from.
    keeps
        Whether the folder outlives a failure, and what an earlier conversion left is used.
    restarts
        Whether what is left of another conversion is thrown away; otherwise it is refused.

    Raises
    ------
    TargetBusy
        When another conversion to that target is under way.
    ConversionError
        When another conversion was begun there, and this one neither restarts nor starts over.
    """
    record = {"fingerprint": {} if origin is None else origin.to_dict()}
    try:
        staging, _ = claim(target + _SUFFIX, record, resume=keeps)
    except ConversionError:
        if not restarts:
            raise
        staging, _ = claim(target + _SUFFIX, record, resume=False)
        claim(target, record, resume=False)[0].remove()
    try:
        yield staging.folder
    except BaseException:
        if keeps:
            staging.release()
        else:
            staging.remove()
        raise
    staging.remove()
