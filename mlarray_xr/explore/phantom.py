"""A head-like int16 volume that any number of workers can make piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.grid import box_shape, check_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box

__all__ = ["PHANTOM_DTYPE", "phantom_part"]

PHANTOM_DTYPE = np.dtype(np.int16)
"""Type of the voxels; they stay between 0 and 2047."""

_BRIGHTEST = 2047
_SHADING = 0.2
_N_WAVES = 4
_FOLDS = 0.07
_NOISE = 2.0**-10.5
_MIXERS = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ellipsoid:
    """A region that adds brightness; the volume spans -1 to 1 along z, y and x."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    brightness: float
    sharpness: float


_OUTLINE = _Ellipsoid(center=(0, 0, 0), radii=(0.92, 0.94, 0.86), brightness=800, sharpness=9)
# Scalp, skull, brain, two ventricles, two deep nuclei and a lesion.
_HEAD = (
    _OUTLINE,
    _Ellipsoid(center=(0, 0, 0), radii=(0.86, 0.88, 0.80), brightness=-600, sharpness=12),
    _Ellipsoid(center=(0, 0, 0), radii=(0.80, 0.82, 0.74), brightness=480, sharpness=12),
    _Ellipsoid(center=(0.12, 0.02, 0.14), radii=(0.2, 0.34, 0.1), brightness=-480, sharpness=4),
    _Ellipsoid(center=(0.12, 0.02, -0.14), radii=(0.2, 0.34, 0.1), brightness=-480, sharpness=4),
    _Ellipsoid(center=(-0.02, 0.1, 0.26), radii=(0.16, 0.2, 0.1), brightness=160, sharpness=3),
    _Ellipsoid(center=(-0.02, 0.1, -0.26), radii=(0.16, 0.2, 0.1), brightness=160, sharpness=3),
    _Ellipsoid(center=(0.34, -0.4, 0.26), radii=(0.1, 0.12, 0.09), brightness=380, sharpness=3),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Profiles:
    """Everything about the phantom that depends on one axis alone, for each axis in full.

    Only additions and multiplications remain for the voxels. Sines are taken along whole axes:
    NumPy's vector code rounds the last elements of an array differently, which would show where
    parts meet.
    """

    distances: tuple[tuple[NDArray[np.float32], ...], ...]
    shading: tuple[NDArray[np.float32], ...]
    waves: tuple[tuple[NDArray[np.complex64], ...], ...]
    hashes: tuple[NDArray[np.uint32], ...]


def phantom_part(box: Box, *, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.int16]:
    """Make one box of the phantom: the same voxels whatever the boxes it is made in.

    Tissues with soft borders, folds, shading and noise on an empty background, about as
    compressible as a T1-weighted head. Memory beyond the result is a few planes.

    Parameters
    ----------
    box
        Start and stop per axis, voxels, inside `shape`; axes are z, y, x.
    shape
        Extents of the whole phantom; all features scale with it.
    seed
        Chooses folds and noise; not negative.

    Returns
    -------
    numpy.ndarray
        int16, of the box's shape.

    Raises
    ------
    IndexError
        When the box reaches outside the phantom.

    Examples
    --------
    >>> whole = phantom_part(((0, 8), (0, 9), (0, 7)), shape=(8, 9, 7))
    >>> part = phantom_part(((2, 5), (3, 9), (1, 4)), shape=(8, 9, 7))
    >>> bool((part == whole[2:5, 3:9, 1:4]).all())
    True
    """
    checked = check_box(box, shape)
    (first, last), (top, bottom), (left, right) = checked
    out = np.zeros(box_shape(checked), PHANTOM_DTYPE)
    profiles = _plan_profiles(shape, seed)
    for plane, z in zip(out, range(first, last), strict=True):
        outline = profiles.distances[0]
        rows = _reach(outline[1], 1 - outline[0][z], top, bottom)
        columns = _reach(outline[2], 1 - outline[0][z], left, right)
        if rows.start < rows.stop and columns.start < columns.stop:
            inside = _draw(profiles, z, rows, columns)
            plane[_shifted(rows, -top), _shifted(columns, -left)] = inside
    return out


def _plan_profiles(shape: tuple[int, int, int], seed: int) -> _Profiles:
    """Evaluate everything that depends on one axis."""
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    rng = np.random.default_rng(seed)
    frequencies = rng.uniform(8, 24, (_N_WAVES, 3)) * rng.choice([-1, 1], (_N_WAVES, 3))
    return _Profiles(
        distances=tuple(
            tuple(
                (((u - c) / r) ** 2).astype(np.float32)
                for u, c, r in zip(axes, ellipsoid.center, ellipsoid.radii, strict=True)
            )
            for ellipsoid in _HEAD
        ),
        shading=tuple((1 + _SHADING * np.cos(2 * u + 0.5)).astype(np.float32) for u in axes),
        waves=tuple(
            tuple(
                # Bent, so that folds do not look like a grating.
                np.exp(1j * (f * u + 3 * np.sin(3 * u + f))).astype(np.complex64)
                for f, u in zip(frequency, axes, strict=True)
            )
            for frequency in frequencies
        ),
        hashes=tuple(rng.integers(0, 2**32, n, np.uint32) for n in shape),
    )


def _draw(profiles: _Profiles, z: int, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Return the voxels of a rectangle of one plane."""
    signal = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for ellipsoid, distance in zip(_HEAD, profiles.distances, strict=True):
        _add_ellipsoid(signal, ellipsoid, distance, (z, rows, columns))
    for wave in profiles.waves:
        along_y = (wave[0][z] * wave[1][rows] * np.complex64(_FOLDS))[:, None]
        along_x = wave[2][columns]
        fold = along_y.real * along_x.real
        fold -= along_y.imag * along_x.imag
        fold += 1
        signal *= fold
    shade_z, shade_y, shade_x = profiles.shading
    signal *= shade_y[rows, None] * (shade_z[z] * shade_x[columns])
    _add_noise(signal, profiles.hashes, (z, rows, columns))
    np.clip(signal, 0, _BRIGHTEST, out=signal)
    from_y, from_x = profiles.distances[0][1][rows, None], profiles.distances[0][2][columns]
    signal *= from_y + (profiles.distances[0][0][z] + from_x) < 1
    return signal


def _add_ellipsoid(
    signal: NDArray[np.float32],
    ellipsoid: _Ellipsoid,
    distance: tuple[NDArray[np.float32], ...],
    where: tuple[int, slice, slice],
) -> None:
    """Add an ellipsoid's brightness where it reaches, fading out at its border."""
    z, rows, columns = where
    room = 1 - distance[0][z]
    reached_y = _reach(distance[1], room, rows.start, rows.stop)
    reached_x = _reach(distance[2], room, columns.start, columns.stop)
    if reached_y.start >= reached_y.stop or reached_x.start >= reached_x.stop:
        return
    depth = (room - distance[1][reached_y])[:, None] - distance[2][reached_x]
    depth *= np.float32(ellipsoid.sharpness)
    np.clip(depth, 0, 1, out=depth)
    depth *= np.float32(ellipsoid.brightness)
    signal[_shifted(reached_y, -rows.start), _shifted(reached_x, -columns.start)] += depth


def _add_noise(
    signal: NDArray[np.float32],
    hashes: tuple[NDArray[np.uint32], ...],
    where: tuple[int, slice, slice],
) -> None:
    """Add noise of triangular distribution, a hash of the voxel's position."""
    z, rows, columns = where
    mixed: Any = hashes[1][rows, None] + (hashes[0][z] ^ hashes[2][columns])
    for mixer in _MIXERS:
        mixed ^= mixed >> np.uint32(15)
        mixed *= mixer
    mixed ^= mixed >> np.uint32(16)
    halves = mixed.view(np.uint16).reshape(*mixed.shape, 2)
    noise = halves[..., 0].astype(np.float32)
    noise -= halves[..., 1]
    noise *= np.float32(_NOISE)
    signal += noise


def _reach(distance: NDArray[np.float32], room: float, start: int, stop: int) -> slice:
    """Return the positions between start and stop that are within an ellipsoid along one axis."""
    near = np.flatnonzero(distance[start:stop] < room)
    return slice(start + int(near[0]), start + int(near[-1]) + 1) if near.size else slice(0, 0)


def _shifted(positions: slice, offset: int) -> slice:
    """Return positions counted from elsewhere."""
    return slice(positions.start + offset, positions.stop + offset)
