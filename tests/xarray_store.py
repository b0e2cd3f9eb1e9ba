"""A whole Dataset as a folder of `.mla` files, so that xarray's own backend tests can run on them.

One file holds one array, those tests write datasets of many: this adapter puts every variable in
its own file, reads each through `MlaBackendArray`, and leaves CF encoding to xarray.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray import conventions
from xarray.backends import BackendEntrypoint
from xarray.core.indexing import LazilyIndexedArray

from mlarray_xr import MlaArray, to_mla
from mlarray_xr.backend import MlaBackendArray

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["StoreEntrypoint", "save"]


def save(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    encoding: Mapping[str, Any] | None = None,
) -> None:
    """Write one file per CF-encoded variable, and an index of names, dimensions and attributes."""
    folder = Path(path)
    folder.mkdir()
    dataset = dataset.copy()
    for name, options in (encoding or {}).items():
        dataset[name].encoding = dict(options)
    variables, attrs = conventions.encode_dataset_coordinates(dataset)
    index: dict[str, Any] = {"attrs": _plain(attrs), "variables": []}
    for number, (name, variable) in enumerate(variables.items()):
        encoded = conventions.encode_cf_variable(variable, name=name)
        to_mla(encoded.values, folder / f"{number}.mla", chunks=3)
        entry = {"name": name, "dims": encoded.dims, "attrs": _plain(encoded.attrs)}
        index["variables"].append(entry)
    (folder / "index.json").write_text(json.dumps(index))


class StoreEntrypoint(BackendEntrypoint):
    """Opens what `save` wrote."""

    open_dataset_parameters = (
        "filename_or_obj",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "drop_variables",
        "use_cftime",
        "decode_timedelta",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: Any = True,
        drop_variables: Any = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
    ) -> xr.Dataset:
        folder = Path(filename_or_obj)
        index = json.loads((folder / "index.json").read_text())
        arrays, variables = [], {}
        for number, entry in enumerate(index["variables"]):
            array = MlaArray(folder / f"{number}.mla")
            arrays.append(array)
            lazy = LazilyIndexedArray(MlaBackendArray(array))
            variables[entry["name"]] = xr.Variable(entry["dims"], lazy, _restored(entry["attrs"]))
        decoded, attrs, coord_names = conventions.decode_cf_variables(
            variables,
            _restored(index["attrs"]),
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
        )
        dataset = xr.Dataset(decoded, attrs=attrs)
        dataset = dataset.set_coords(coord_names.intersection(decoded))
        dataset.set_close(partial(_close_all, arrays))
        return dataset


def _close_all(arrays: list[MlaArray]) -> None:
    for array in arrays:
        array.close()


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes for JSON, with the type of NumPy values."""
    return {
        name: {"dtype": value.dtype.str, "value": value.tolist()}
        if isinstance(value, np.generic | np.ndarray)
        else {"value": value}
        for name, value in attrs.items()
    }


def _restored(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_plain`."""
    return {
        name: np.array(entry["value"], entry["dtype"])[()] if "dtype" in entry else entry["value"]
        for name, entry in attrs.items()
    }
