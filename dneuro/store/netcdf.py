"""A dataset as a netCDF file that any program of the field opens: the classic format, written by SciPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dneuro.errors import StoreError
from dneuro.quantities import GiB, format_bytes

LIMIT = 2 * GiB
"""Of one variable, in the classic format with 64-bit offsets."""
_WIDER = {"float16": "float32", "uint8": "int16", "uint16": "int32", "uint32": "float64"}


def write_netcdf(data: xr.Dataset, path: Path) -> None:
    """Write a dataset, labelled, as netCDF 3 with 64-bit offsets.

    Numbers that the format does not have become wider ones: float16 float32, int64 int32 where it fits and else float64
    (exact up to 2⁵³), bool int8. Attributes that are no numbers or text become JSON.

    Raises
    ------
    StoreError
        If a variable is larger than the format holds, 2 GiB.
    """
    for name, variable in data.variables.items():
        if variable.nbytes >= LIMIT:
            raise StoreError(
                f"{name} has {format_bytes(variable.nbytes)}, netCDF 3 takes less than {format_bytes(LIMIT)}",
                hint="read it from the store: it is Zarr, which xarray opens",
            )
    plain = data.load().copy()
    for name in plain.variables:
        plain[name] = _fitting(plain[name])
        plain[name].attrs = {key: _attribute(value) for key, value in plain[name].attrs.items()}
        plain[name].encoding = {}
    plain.attrs = {key: _attribute(value) for key, value in data.attrs.items()}
    plain.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")


def _fitting(array: xr.DataArray) -> xr.DataArray:
    kind = str(array.dtype)
    if kind in _WIDER:
        return array.astype(_WIDER[kind])
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        values = np.asarray(array.values)
        small = values.size == 0 or (values.min() >= -(2**31) and values.max() < 2**31)
        return array.astype("int32" if small else "float64")
    if array.dtype.kind in "OT":
        texts = np.array([str(value) for value in array.values.ravel()], dtype=str)
        return array.copy(data=texts.reshape(array.shape))
    return array


def _attribute(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return float(value)
    return value
