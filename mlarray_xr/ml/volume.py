"""Volume: one file as patches are read from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError, GeometryError, LayoutError
from mlarray_xr.geometry import Geometry, names_patient_axes
from mlarray_xr.ml.foreground_index import ForegroundIndex
from mlarray_xr.planning.sample_space import SampleSpace
from mlarray_xr.record import stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlarray_xr.axes import Axes
    from mlarray_xr.planning.foreground import Foreground
    from mlarray_xr.planning.padding import Padding
    from mlarray_xr.planning.patch_place import PatchPlace

__all__ = ["Channel", "Volume", "may_hold"]

Channel: TypeAlias = "str | int | None"
"""The axis of the channels: its name or number, None for none, ``"auto"`` by the usual names."""

_CHANNEL_DIMS = ("channel", "component")
# float32 and float64.
_COMPUTED_BYTES = 4


class Volume:
    """The address of one file, with what training needs to know of it; opened on first use.

    It pickles like the address it is. Reading is safe in any number of threads.

    Parameters
    ----------
    address
        A path or URL.
    channel
        The axis that becomes the first one of every patch: its name or number, None when there is
        none. ``"auto"`` takes the dimension named ``channel`` or ``component``.
    threads
        Threads of one read, see `mlarray_xr.MlaArray`.
    storage_options
        How to get at a URL, see `mlarray_xr.MlaArray`.
    index_folder
        Where to keep what was found out about the foreground of files without statistics.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.planning.padding import Padding
    >>> from mlarray_xr.planning.patch_place import place_from
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(2, 3, 4), "volume.mla")
    >>> volume = Volume("volume.mla")
    >>> volume.space.dims, volume.n_channels
    (('z', 'y', 'x'), 1)
    >>> patch = np.empty((1, 2, 2, 2), volume.dtype)
    >>> place = place_from((0, 1, 1), shape=(2, 2, 2), extents=volume.space.extents)
    >>> volume.read(place, patch, padding=Padding(), value=0)
    >>> patch[0, 0].tolist()
    [[5, 6], [9, 10]]
    """

    def __init__(
        self,
        address: str,
        *,
        channel: Channel = "auto",
        threads: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        index_folder: str | None = None,
    ) -> None:
        self.address, self.channel = address, channel
        self._threads, self._storage_options = threads, storage_options
        self._index_folder = index_folder
        self._forget()

    def _forget(self) -> None:
        """Start without anything opened."""
        self._array: MlaArray | None = None
        self._space: SampleSpace | None = None
        self._channel_axis: int | None = None
        self._geometry: Geometry | None = None
        self._indices: dict[Foreground, ForegroundIndex] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the address and how to read it."""
        opened = {"_array", "_space", "_channel_axis", "_geometry", "_indices"}
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the address; nothing is opened before the first use."""
        vars(self).update(state)
        self._forget()

    @property
    def array(self) -> MlaArray:
        """The array in the file."""
        if self._array is None:
            self._array = MlaArray(
                self.address, threads=self._threads, storage_options=self._storage_options
            )
        return self._array

    @property
    def space(self) -> SampleSpace:
        """The axes that patches are cut from.

        Raises
        ------
        LayoutError
            When the array is empty, or has no such channel axis.
        """
        if self._space is None:
            axes = self._axes()
            self._channel_axis = channel = self._find_channel(axes)
            kept = [axis for axis in range(self.array.ndim) if axis != channel]
            self._space = SampleSpace(
                dims=tuple(axes.dims[axis] for axis in kept),
                extents=tuple(self.array.shape[axis] for axis in kept),
                spatial=tuple(i for i, axis in enumerate(kept) if axis in axes.spatial),
            )
        return self._space

    @property
    def channel_axis(self) -> int | None:
        """The array axis of the channels; None when there is none."""
        _ = self.space
        return self._channel_axis

    @property
    def n_channels(self) -> int:
        """Channels of a patch; 1 of a file without."""
        return 1 if self.channel_axis is None else self.array.shape[self.channel_axis]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, in the byte order of this machine."""
        return self.array.dtype.newbyteorder("=")

    @property
    def geometry(self) -> Geometry:
        """Affine of the spatial axes, in RAS where the file says RAS or LPS.

        Raises
        ------
        GeometryError
            When the stored numbers do not fit the axes.
        """
        if self._geometry is None:
            geometry = self._stored_geometry()
            if len(geometry.dims) == 3 and names_patient_axes(geometry.coord_system):
                geometry = geometry.in_system("RAS")
            self._geometry = geometry
        return self._geometry

    @property
    def coord_system(self) -> str:
        """The world axes of `geometry`: ``"RAS"``, the file's own name, or ``"unknown"``."""
        found = self.geometry.coord_system
        return "RAS" if found == "RAS+" else found or "unknown"

    def affine_at(self, place: PatchPlace) -> NDArray[np.float64]:
        """Return the affine of a patch: patch index to world, (s + 1, s + 1), spatial axes."""
        starts = dict(zip(self.space.dims, place.start, strict=True))
        affine = np.array(self.geometry.affine)
        affine[:-1, -1] += affine[:-1, :-1] @ [starts.get(dim, 0) for dim in self.geometry.dims]
        return affine

    def read(self, place: PatchPlace, out: NDArray[Any], *, padding: Padding, value: float) -> None:
        """Read a patch, channels first, straight into the caller's memory where that can be.

        Parameters
        ----------
        place
            Where the patch lies, in the axes of `space`.
        out
            (n_channels, *place.shape), of a type that holds every value of the file's: float32 and
            float64 count as such.
        padding, value
            What surrounds a volume that is smaller.

        Raises
        ------
        IndexError, SourceChanged, ChunkError
            As `mlarray_xr.MlaArray.read`.
        ConversionError
            When the type of `out` cannot hold what is stored.
        ValueError
            When `out` has another shape.
        """
        expected = (self.n_channels, *place.shape)
        if out.shape != expected:
            msg = f"a buffer of shape {out.shape} for a patch of {expected}"
            raise ValueError(msg)
        array, channel = self.array, self._channel_axis
        box = list(place.inside)
        if channel is not None:
            box.insert(channel, (0, self.n_channels))
        is_direct = place.is_inside and out.dtype == array.dtype and out.flags.c_contiguous
        if is_direct and not channel:  # none, or the first axis
            array.read(box, out=out[0] if channel is None else out)
            return
        if not may_hold(out.dtype, array.dtype):
            wider = np.promote_types(array.dtype, out.dtype).name
            msg = (
                f"{out.dtype} was asked for, the file has {array.dtype}, whose values it cannot "
                f"hold. To fix: dtype={wider!r}, or convert in a transform"
            )
            raise ConversionError(msg)
        values = array.read(box)
        values = values[None] if channel is None else np.moveaxis(values, channel, 0)
        inside = tuple(slice(a, b) for a, b in place.valid)
        np.copyto(out[:, *inside], values, casting="unsafe")
        padding.fill(out, valid=place.valid, value=value)

    def find(self, foreground: Foreground, rng: np.random.Generator) -> tuple[int, ...] | None:
        """Draw an element of the foreground, by its index in the axes of `space`."""
        if foreground not in self._indices:
            axes = tuple(a for a in range(self.array.ndim) if a != self.channel_axis)
            index = ForegroundIndex(self.array, foreground, axes=axes, folder=self._index_folder)
            self._indices.setdefault(foreground, index)
        return self._indices[foreground].find(rng)

    def __repr__(self) -> str:
        """Describe the address."""
        return f"<Volume {self.address!r}>"

    def _axes(self) -> Axes:
        """Return names and roles of all axes."""
        return stored_axes(self.array.metadata, self.array.ndim)

    def _find_channel(self, axes: Axes) -> int | None:
        """Return the array axis of the channels."""
        found = self.channel
        if found == "auto":
            return next((i for i, dim in enumerate(axes.dims) if dim in _CHANNEL_DIMS), None)
        if isinstance(found, str) and found in axes.dims:
            return axes.dims.index(found)
        if isinstance(found, int) and -len(axes.dims) <= found < len(axes.dims):
            return found % len(axes.dims)
        if found is None:
            return None
        msg = (
            f"{self.address}: channel={found!r} is no axis of {axes.dims}. To fix: give one of "
            "them, its number, or None when there are no channels"
        )
        raise LayoutError(msg)

    def _stored_geometry(self) -> Geometry:
        """Return the geometry of the spatial axes of `space` as the file has it."""
        axes, space = self._axes(), self.space
        geometry = stored_geometry(self.array.metadata, axes)
        dims = tuple(space.dims[axis] for axis in space.spatial)
        others = [dim for dim in axes.spatial_dims if dim not in dims]
        if not others:
            return geometry
        if geometry.is_stored:
            kept = geometry.without(others)
            if kept is None:
                msg = f"{self.address}: the geometry without {others} has no affine"
                raise GeometryError(msg)
            return kept
        identity = np.eye(len(dims) + 1).tolist()
        return replace(
            geometry,
            dims=dims,
            affine=tuple(map(tuple, identity)),
            units=(None,) * len(dims),
        )


def may_hold(wanted: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    """Tell whether a type holds all values of another, or is what models compute with.

    Examples
    --------
    >>> [may_hold(np.dtype(wanted), np.dtype("uint16")) for wanted in ("i2", "i4", "f4")]
    [False, True, True]
    """
    is_float = wanted.kind == "f" and wanted.itemsize >= _COMPUTED_BYTES and stored.kind in "biuf"
    return is_float or np.can_cast(stored, wanted, "safe")
