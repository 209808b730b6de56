"""The rows of a sharded training: columns on the host, with an id of its own for every example."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.data.columns import check_columns
from jaxunlearn.data.streams import InMemory
from jaxunlearn.methods.exact.shard_plan import Columns


def without(columns: Columns, ids: Iterable[int]) -> dict[str, np.ndarray]:
    """The columns less the rows of some ids.

    Example:
      >>> without({"id": np.array([3, 4, 5])}, {4, 9})["id"].tolist()
      [3, 5]
    """
    if not columns:
        return {}
    keep = ~np.isin(columns["id"], np.array(sorted(ids), np.int64))
    return {name: column[keep] for name, column in columns.items()}


def pad(rows: np.ndarray, length: int) -> np.ndarray:
    """(length, ...): zeros after the rows."""
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])


def rows(data: Any) -> dict[str, np.ndarray]:
    """Checked columns on the host, ordered by name, as the device will have them; ids as int64.

    Rows of weight 0 are padding and left out; without a `"weight"` every row counts 1.

    Raises:
      TypeError, ValueError: as `data.in_memory`; no id, not integers, or one twice.
    """
    given = data.arrays if isinstance(data, InMemory) else data
    if not isinstance(given, Mapping):
        raise TypeError(
            f"shards.learn: expected columns in memory, got {type(data).__name__}. Give a mapping "
            "of arrays, or jaxunlearn.data.in_memory."
        )
    rest = {name: column for name, column in given.items() if name != "id"}
    n = check_columns(rest, "shards.learn")
    ids = np.asarray(given.get("id", ()))
    if ids.shape != (n,) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"shards.learn: expected a column 'id' of {n} integers, the examples' own, got "
            f"{ids.dtype} of shape {ids.shape}."
        )
    columns: dict[str, np.ndarray] = {"weight": np.ones(n, np.float32)}
    for name, column in rest.items():
        columns[name] = np.asarray(column).astype(jax.dtypes.canonicalize_dtype(column.dtype))
    columns = dict(sorted((columns | {"id": ids.astype(np.int64)}).items()))
    columns = {name: column[columns["weight"] > 0] for name, column in columns.items()}
    _check_distinct(columns["id"])
    return columns


def _check_distinct(ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"shards.learn: the id {values[counts > 1][0]} comes more than once, or was learnt "
            "before. An example has one id of its own; to change it, forget it and give it a new "
            "one."
        )


def check_fits(added: Columns, before: Columns) -> None:
    """Raises `ValueError` unless `added` has the columns of `before`, and other ids."""
    came, expected = (
        {name: f"{column.dtype}{list(column.shape[1:])}" for name, column in some.items()}
        for some in (added, before)
    )
    if came != expected:
        raise ValueError(
            f"shards.learn: expected the columns learnt before, {expected}, got {came}."
        )
    _check_distinct(np.concatenate([before["id"], added["id"]]))


def ids(given: Any) -> set[int]:
    """Ids to forget as a set; `TypeError` unless they are integers (k,)."""
    array = np.asarray(given if hasattr(given, "dtype") else list(given))
    if array.size and (array.dtype.kind not in "iu" or array.ndim != 1):
        raise TypeError(
            f"shards.forget: expected integers (k,), the ids to forget, got {array.dtype} of "
            f"shape {array.shape}. For a mask give data['id'][mask]."
        )
    return {int(i) for i in array}
