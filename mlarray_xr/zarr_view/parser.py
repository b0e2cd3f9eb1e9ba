"""MlaParser: how VirtualiZarr reads `.mla` files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlarray_xr.errors import MissingDependencyError

if TYPE_CHECKING:
    from mlarray_xr.zarr_view.virtual_store import VirtualStore

__all__ = ["MlaParser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaParser:
    """Tells VirtualiZarr where the chunks of an `.mla` file lie; copies nothing.

    ``virtualizarr.open_virtual_dataset(url, registry=registry, parser=MlaParser())`` gives the
    dataset of ``xarray.open_dataset(path, engine="mlarray")``: the image is a table of byte ranges,
    its coordinates are in memory, since a file holds how to compute them and not their numbers.
    ``vds.vz.to_icechunk(store)`` and ``vds.vz.to_kerchunk(...)`` write both. Header, metadata and
    the table of chunks are read, checked as on every opening, and no voxel.

    Whoever reads what was written needs this package installed, for its codec, and imports it not.

    Parameters
    ----------
    reads : {"chunks", "blocks"}
        The least that readers decode. ``"chunks"``: bytes to bytes, for icechunk and kerchunk.
        ``"blocks"``: arrays to bytes, of a selection only the blocks that it touches; for icechunk,
        since kerchunk references have no place for such a codec.
    fill_value
        What chunks without bytes hold: 0 or NaN. One for all files, because VirtualiZarr joins
        arrays without comparing theirs.
    variable
        Name of the array instead of the stored one, ``"image"`` or ``"labels"``.

    Raises
    ------
    ValueError
        By the constructor, when a parameter is none of these.

    Notes
    -----
    Arrays can be joined when type, chunks and blocks are the same; the compression need not be.
    Along a new dimension: ``xr.concat(datasets, dim="case", join="override",
    combine_attrs="drop_conflicts")``, or after ``drop_vars`` of coordinates that differ.

    Coordinates without an index, such as b-values, are left out, as the engine leaves them out.

    Kerchunk references cannot hold arrays without axes, nor scalar coordinates, and local paths
    with ``#``, ``?`` or ``%`` are not found by what reads them; icechunk has a place for all. They
    are Zarr 2, whose fill value xarray takes for "missing": open them with
    ``mask_and_scale=False``, or voxels of 0 become NaN.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from obspec_utils.registry import ObjectStoreRegistry
    >>> from obstore.store import LocalStore
    >>> from virtualizarr import open_virtual_dataset
    >>> _ = mlarray_xr.to_mla(np.ones((4, 6), "int16"), "ones.mla")
    >>> registry = ObjectStoreRegistry({"file://": LocalStore()})
    >>> virtual = open_virtual_dataset("ones.mla", registry=registry, parser=MlaParser())
    >>> virtual.image.data
    ManifestArray<shape=(4, 6), dtype=int16, chunks=(4, 6)>
    """

    reads: Literal["chunks", "blocks"] = "chunks"
    """The least that readers decode."""
    fill_value: float = 0
    """What chunks without bytes hold, 0 or NaN."""
    variable: str | None = None
    """Name of the array, or None for that of the file."""

    def __post_init__(self) -> None:
        """Check that every parameter is one of those that there are."""
        if self.reads not in ("chunks", "blocks"):
            raise ValueError(f"reads={self.reads!r} is neither 'chunks' nor 'blocks'")
        is_number = isinstance(self.fill_value, int | float)
        if not is_number or (self.fill_value != 0 and not math.isnan(self.fill_value)):
            raise ValueError(
                f"fill_value={self.fill_value!r}: chunks without bytes hold 0 or NaN, no others"
            )

    def __call__(self, url: str, registry: Any) -> VirtualStore:
        """Describe one file.

        Parameters
        ----------
        url
            Where the file is, as references to it will say: ``file:///...``, ``s3://bucket/...``,
            ``https://...``. An absolute path is a ``file://`` URL.
        registry
            The ``obspec_utils.registry.ObjectStoreRegistry`` that knows its store, one of obstore.

        Raises
        ------
        FileNotFoundError
            When nothing is there.
        FormatError
            When the file is damaged, hostile or not an `.mla` file.
        ConversionError
            When Zarr has no such type or names, or the file has chunks without bytes that the fill
            value is not right for.
        MissingDependencyError
            When virtualizarr is not installed.
        SourceError
            When the store cannot be read, or is none of obstore.
        ValueError
            When the registry knows no store for the URL, or `variable` is the name of a dimension.
        """
        try:
            import virtualizarr  # noqa: F401 - what follows needs it, and says it less well
        except ImportError as error:
            raise MissingDependencyError(
                "MlaParser is for VirtualiZarr, which is not installed. To fix: "
                'pip install "mlarray-xr[virtual]"'
            ) from error
        from mlarray_xr.zarr_view.virtual_store import open_virtual_store

        return open_virtual_store(
            url,
            registry,
            reads=self.reads,
            fill_value=self.fill_value,
            variable=self.variable,
        )
