"""Gradient tables of diffusion series as FSL writes them: text of b-values and of b-vectors.

FSL's b-vectors are along the axes of the stored image, with the first one reversed where the
determinant of the affine is positive (FSL wiki, FDT/FAQ, "What conventions do the bvecs use?").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["axis_turn", "gradient_text", "parse_bvals", "parse_bvecs", "turned_bvecs"]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ALIKE = 1e-3
"""How far two axes of length one may lie apart and be the same: NIfTI keeps float32."""


def parse_bvals(text: str, *, n: int) -> NDArray[np.float64]:
    """Read n b-values, s/mm2, in one row or one column.

    Raises
    ------
    ConversionError
        When there is another count, or anything but finite numbers.

    Examples
    --------
    >>> parse_bvals("0 1000 1e3", n=3)
    array([   0., 1000., 1000.])
    """
    rows = _rows(text, most=max(n, 3))
    is_row = len(rows) == 1 or all(row.size == 1 for row in rows)
    values = np.concatenate(rows) if rows else np.zeros(0)
    if not is_row or values.size != n:
        raise ConversionError(_mismatch("b-values", rows, f"{n} in one row"))
    return values


def parse_bvecs(text: str, *, n: int) -> NDArray[np.float64]:
    r"""Read n b-vectors, as three rows of n (FSL) or n rows of three; returns shape (3, n).

    Raises
    ------
    ConversionError
        When there is another count, or anything but finite numbers.

    Examples
    --------
    >>> parse_bvecs("0 1\n0 0\n0 0", n=2)
    array([[0., 1.],
           [0., 0.],
           [0., 0.]])
    """
    rows = _rows(text, most=max(n, 3))
    lengths = [row.size for row in rows]
    if lengths == [n] * 3:
        return np.stack(rows)
    if lengths == [3] * n and rows:
        return np.stack(rows, axis=1)
    raise ConversionError(_mismatch("components of b-vectors", rows, f"3 rows of {n}"))


def gradient_text(rows: Iterable[NDArray[np.float64]]) -> str:
    r"""Return numbers as text, a line for each row, that reads back to the same bits.

    Raises
    ------
    ConversionError
        When there is NaN or infinity among them: such a file is not read again.

    Examples
    --------
    >>> gradient_text([np.array([0.0, 1000.0, 0.1 + 0.2])])
    '0 1000 0.30000000000000004\n'
    """
    rows = list(rows)
    if not all(np.isfinite(row).all() for row in rows):
        raise ConversionError(
            "the b-values or b-vectors hold NaN or infinities, and gradient files finite numbers. "
            "To fix: assign such to bval, bvec_x, bvec_y and bvec_z"
        )
    lines = (" ".join(repr(v).removesuffix(".0") for v in row.tolist()) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def axis_turn(
    before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return how the axes of an image were permuted and flipped: axes after = turn @ axes before.

    Parameters
    ----------
    before, after
        Affines, 4x4, into the same world.

    Returns
    -------
    array or None
        3x3, one entry of 1 or -1 in each row and column; None when the axes were turned otherwise.
    """
    with np.errstate(all="ignore"):
        axes = [
            affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (before, after)
        ]
        # Columns of the identity are exact also where axes are sheared.
        if np.allclose(axes[0], axes[1], atol=_ALIKE):
            return np.eye(3)
        try:
            turn = np.linalg.solve(axes[1], axes[0])
        except np.linalg.LinAlgError:
            return None
        whole = np.rint(turn)
        is_turn = np.allclose(turn, whole, atol=_ALIKE) and np.array_equal(
            whole @ whole.T, np.eye(3)
        )
    return whole if is_turn else None


def turned_bvecs(
    bvecs: NDArray[np.float64],
    turn: NDArray[np.float64],
    *,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return b-vectors along the axes that an image has after they were permuted or flipped.

    Parameters
    ----------
    bvecs
        Shape (3, n), FSL's convention.
    turn
        As `axis_turn` returns it.
    before, after
        Affines, 4x4: the signs of their determinants decide FSL's.

    Examples
    --------
    >>> affine, flipped = np.eye(4), np.diag([1.0, -1, 1, 1])
    >>> turn = axis_turn(affine, flipped)
    >>> turned_bvecs(np.array([[1.0], [2], [3]]), turn, before=affine, after=flipped).ravel()
    array([-1., -2.,  3.])
    """
    signs = [-1.0 if np.linalg.det(affine[:3, :3]) > 0 else 1.0 for affine in (before, after)]
    axes = np.abs(turn).argmax(axis=1)
    flips = turn[np.arange(3), axes] * np.where(axes == 0, signs[0], 1) * [signs[1], 1, 1]
    # Picked and multiplied by one, not added up: every number keeps its bits.
    turned: NDArray[np.float64] = bvecs[axes] * flips[:, None]
    return turned


def _rows(text: str, *, most: int) -> list[NDArray[np.float64]]:
    """Return the numbers of every line that has any, of which there are not more than `most`."""
    rows: list[NDArray[np.float64]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        wrong = next((word for word in words if not _NUMBER.fullmatch(word)), None)
        row = np.array(words if wrong is None else (), np.float64)
        if wrong is not None or not np.isfinite(row).all():
            shown = "a number beyond float64" if wrong is None else repr(wrong[:32])
            raise ConversionError(
                f"line {number} holds {shown} where finite numbers are needed. To fix: correct it"
            )
        if len(rows) == most:
            raise ConversionError(
                f"more than {most} lines of numbers, which no series of this image has. To fix: "
                "correct the file"
            )
        rows.append(row)
    return rows


def _mismatch(what: str, rows: list[NDArray[np.float64]], wanted: str) -> str:
    """Say how many numbers are in a file, and how many the image needs."""
    lengths = sorted({row.size for row in rows})
    found = f"{len(rows)} rows of {', '.join(map(str, lengths[:4]))}" if rows else "nothing"
    return (
        f"{wanted} {what} are needed, one for each volume, and {found} was found. To fix: (1) "
        "correct the file; (2) rename it, and it is not read"
    )
