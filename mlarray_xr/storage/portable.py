"""The door to python-blosc2's public slicing: right everywhere, but one reader at a time.

Used where the shared C library cannot be found. It holds the GIL while it decodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlarray_xr.errors import ChunkError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PortableHandle"]


class PortableHandle:
    """One python-blosc2 array over a mapped frame, used by one thread at a time.

    Parameters
    ----------
    frame
        The checked frame, uint8, exactly its length.
    ndim
        Number of axes.
    name
        What to call the file in errors.
    """

    __slots__ = ("_array", "_frame", "_name")

    def __init__(self, frame: NDArray[np.uint8], *, ndim: int, name: str) -> None:
        import blosc2

        self._frame, self._name = frame, name
        try:
            self._array = blosc2.ndarray_from_cframe(frame.data, copy=False)
        except (RuntimeError, ValueError) as error:
            msg = f"{name}: python-blosc2 refuses the frame of {ndim} axes: {error}"
            raise ChunkError(msg) from error
        # More than one thread hangs in a forked child once the parent has used its pool.
        self._array.schunk.dparams = blosc2.DParams(nthreads=1)

    def read_slab(
        self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[np.generic]
    ) -> None:
        """Decode the box from `start` to `stop` into `out`; the caller has checked the box."""
        try:
            out[...] = self._array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        except (RuntimeError, ValueError) as error:
            msg = (
                f"{self._name}: reading from {start} to {stop} failed: {error}. "
                "A chunk in this box is damaged; other boxes can still be read"
            )
            raise ChunkError(msg) from error
