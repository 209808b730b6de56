"""What a batch must look like, checked at the boundary.

Checks of `check_columns` on concrete arrays (inside a trace only shapes are checked):

| input                                            | what happens                                |
|--------------------------------------------------|---------------------------------------------|
| columns of different lengths, or a scalar column | `ValueError` naming both columns            |
| a column that is no array, or not of numbers     | `TypeError` naming the column               |
| NaN or Inf in a float column                     | `ValueError` naming the column and a row    |
| integers that JAX would truncate to 32 bits      | `ValueError` naming the column and a row    |
| negative or non-finite `"weight"`                | `ValueError` naming a row                   |
| no rows at all                                   | allowed: an empty forget set is a no-op     |
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(tree: Any) -> bool:
    """True if any leaf of `tree` is a tracer: then values cannot be looked at, only shapes."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_columns(columns: Mapping[str, Any], where: str) -> int:
    """The common leading length of `columns`, after all checks of this module's table."""
    if not isinstance(columns, Mapping) or not columns:
        raise TypeError(
            f"{where}: expected a non-empty mapping of arrays such as {{'x': x, 'y': y}}, "
            f"got {type(columns).__name__}."
        )
    lengths: dict[str, int] = {}
    for name, column in columns.items():
        if not hasattr(column, "shape") or not hasattr(column, "dtype"):
            raise TypeError(
                f"{where}['{name}']: expected an array, got {type(column).__name__}. "
                "np.asarray makes one."
            )
        if getattr(column.dtype, "kind", "") in "OSUMm":
            raise TypeError(
                f"{where}['{name}']: expected numbers, got dtype {column.dtype}. "
                "Objects, strings and dates are refused; encode them as integers."
            )
        if len(column.shape) == 0:
            raise ValueError(
                f"{where}['{name}'] is a scalar; every column needs a leading example axis."
            )
        lengths[name] = column.shape[0]
    first = next(iter(lengths))
    for name, length in lengths.items():
        if length != lengths[first]:
            raise ValueError(
                f"{where}: columns must share their leading axis, but '{first}' has "
                f"{lengths[first]} rows and '{name}' has {length}."
            )
    for name, column in columns.items():
        if not is_traced(column):
            _check_values(column, f"{where}['{name}']")
    _check_weight(columns.get("weight"), lengths[first], where)
    return lengths[first]


def _first_row(bad: np.ndarray) -> int:
    return int(np.argwhere(bad)[0][0])


def _check_values(column: Any, where: str) -> None:
    dtype = jax.dtypes.canonicalize_dtype(column.dtype) if _is_number(column.dtype) else None
    if dtype is None:
        return
    if jnp.issubdtype(dtype, jnp.inexact):
        with np.errstate(over="ignore"):  # 1e300 is no float32: caught as the Inf that it becomes
            bad = ~np.isfinite(np.asarray(column).astype(dtype))
        if bad.any():
            rows = int(bad.reshape(len(bad), -1).any(axis=1).sum())
            raise ValueError(
                f"{where} holds NaN or Inf in {rows} of {len(bad)} rows, "
                f"first at row {_first_row(bad)}. Clean the data or drop those rows."
            )
    elif dtype != column.dtype:
        values = np.asarray(column)
        bad = values.astype(dtype) != values
        if bad.any():
            raise ValueError(
                f"{where}: row {_first_row(bad)} holds {values[bad].flat[0]}, which does not fit "
                f"{dtype}. Renumber, or turn on jax_enable_x64."
            )


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(dtype, jnp.integer)


def _check_weight(weight: Any, rows: int, where: str) -> None:
    if weight is None:
        return
    if weight.shape != (rows,):
        raise ValueError(f"{where}['weight']: expected shape ({rows},), got {weight.shape}.")
    if not is_traced(weight) and (np.asarray(weight) < 0).any():
        row = _first_row(np.asarray(weight) < 0)
        raise ValueError(
            f"{where}['weight'] must be >= 0 (0 marks padding), but row {row} has "
            f"{np.asarray(weight)[row]}."
        )
