"""Ratings: who rated what, how, and when, as triplets on the host.

    entry n = (user_n, item_n, value_n, time_n),      at most one entry for each (user, item)

Users and items are rows and columns of a matrix, numbered from 0; `user_ids` and `item_ids` say
what they were called before. An entry is named by its row number. Taking entries away keeps
`users`, `items` and both lists of names, so that no factor changes its shape when somebody is
forgotten.

`low_rank_ratings` makes such data from a seed, of any size; `time_split` cuts them in time.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from jaxunlearn.data.sources import _read_only
from jaxunlearn.naming import did_you_mean

_EXPECTED = {"value": ("iufb", "numbers"), "time": ("iu", "integers")}
_DUPLICATES = ("raise", "sum", "mean", "last")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Ratings:
    """Entries (user, item, value[, time]) of a users x items matrix.

    `ratings` makes one from raw ids.

    Attributes:
      user, item: int32 (N,), in [0, users) and [0, items); no pair occurs twice.
      value: float32 (N,), finite: a rating, or how often.
      users, items: shape of the matrix, >= 1. Rows and columns without an entry are allowed.
      time: int64 (N,), seconds, or None.
      user_ids, item_ids: (users,), (items,) original names, integers or text, distinct; None: the
        row numbers themselves.

    All arrays are made read-only views. N may be 0 (the test part of a small split, a retain set of
    which everything was forgotten).

    Raises:
      TypeError, ValueError: a rule above is broken; the message names the row.

    Example:
      >>> r = ratings(["eve", "bob", "bob"], [10, 10, 7], [4.0, 5.0, 1.0])
      >>> r.user.tolist(), r.user_ids.tolist(), r.item.tolist(), r.item_ids.tolist()
      ([1, 0, 0], ['bob', 'eve'], [1, 1, 0], [7, 10])
    """

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    users: int
    items: int
    time: np.ndarray | None = None
    user_ids: np.ndarray = None  # pyright: ignore[reportAssignmentType]  # filled in below
    item_ids: np.ndarray = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        for side, count in (("user", self.users), ("item", self.items)):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"ratings: expected {side}s to be an integer >= 1, got {count!r}.")
            if getattr(self, f"{side}_ids") is None:
                object.__setattr__(self, f"{side}_ids", np.arange(count))
        for name in ("user", "item", "value", "time", "user_ids", "item_ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _read_only(getattr(self, name)))
        for name, dtype in (
            ("user", "int32"),
            ("item", "int32"),
            ("value", "float32"),
            ("time", "int64"),
        ):
            column = getattr(self, name)
            if column is not None and (column.dtype != dtype or column.shape != self.user.shape):
                raise TypeError(
                    f"ratings: expected {name} {dtype} ({len(self.user)},), got {column.dtype} "
                    f"{column.shape}. `ratings(...)` converts."
                )
        if self.user.ndim != 1:
            raise TypeError(f"ratings: expected user int32 (N,), got {self.user.shape}.")
        for side, count in (("user", self.users), ("item", self.items)):
            _refuse(
                (getattr(self, side) < 0) | (getattr(self, side) >= count),
                f"{side} must lie in [0, {count})",
                getattr(self, side),
            )
            ids = getattr(self, f"{side}_ids")
            if ids.shape != (count,) or ids.dtype.kind not in "iuU" or len(np.unique(ids)) < count:
                raise ValueError(
                    f"ratings: expected {side}_ids ({count},), distinct integers or text, got "
                    f"{ids.dtype} {ids.shape}."
                )
        _refuse(~np.isfinite(self.value), "value must be finite", self.value)
        first, second = _first_duplicate(self.user.astype(np.int64) * self.items + self.item)
        if second >= 0:
            raise ValueError(
                f"ratings: rows {first} and {second} are both of user "
                f"{self.user_ids[self.user[first]]} and item {self.item_ids[self.item[first]]}. "
                "Say what they mean together: ratings(..., duplicates='sum', 'mean' or 'last')."
            )

    def __len__(self) -> int:
        return len(self.user)

    @functools.cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of the shape, the names and all entries, in their order."""
        state = hashlib.sha256(repr((int(self.users), int(self.items))).encode())
        for name in ("user", "item", "value", "time", "user_ids", "item_ids"):
            column = getattr(self, name)
            if column is not None:
                state.update(repr((name, column.dtype.str, column.shape)).encode())
                state.update(np.ascontiguousarray(column).data)
        return state.hexdigest()

    def take(self, rows: Any) -> "Ratings":
        """The entries of some row numbers, or of a mask (N,), in the order given.

        Raises:
          TypeError, ValueError: no integers, out of range, or a row twice.
        """
        rows = entry_rows(rows, len(self))
        return dataclasses.replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            value=self.value[rows],
            time=None if self.time is None else self.time[rows],
        )

    def without(self, rows: Any) -> "Ratings":
        """All other entries, in their order; shape and names stay. A row named twice is one row."""
        kept = np.ones(len(self), bool)
        kept[entry_rows(rows, len(self))] = False
        return self.take(kept)

    def matrix(self) -> Any:
        """The values as a `scipy.sparse.csr_array` float32 (users, items); zeros are stored."""
        from scipy import sparse

        return sparse.csr_array((self.value, (self.user, self.item)), (self.users, self.items))


def entry_rows(rows: Any, count: int) -> np.ndarray:
    """Row numbers as int64, from integers in [0, count) or a bool mask (count,)."""
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (count,):
            raise ValueError(f"ratings: expected a mask ({count},), got one of {rows.shape}.")
        return np.flatnonzero(rows)
    if rows.size == 0:
        return np.zeros(0, np.int64)
    if rows.dtype.kind not in "iu" or rows.ndim != 1:
        raise TypeError(
            f"ratings: expected integer row numbers (k,) or a mask, got {rows.dtype} {rows.shape}."
        )
    bad = (rows < 0) | (rows >= count)
    if bad.any():
        raise ValueError(f"ratings: row {rows[bad][0]} is outside the {count} entries.")
    return rows.astype(np.int64)


def ratings(
    user: Any,
    item: Any,
    value: Any = None,
    time: Any = None,
    *,
    users: int | None = None,
    items: int | None = None,
    duplicates: str = "raise",
) -> Ratings:
    """`Ratings` from raw columns.

    Args:
      user, item: (N,), N >= 1, what each side is called: integers or text. They are numbered in
        sorted order, unless `users` (`items`) is given: then they are row numbers already.
      value: (N,) finite numbers; None: 1 for every entry.
      time: (N,) integers, seconds; None: unknown.
      users, items: number of rows, of columns.
      duplicates: what entries of the same user and item mean, see the table.

    Raises:
      TypeError, ValueError: no entries, columns of different lengths, ids that are neither integers
        nor text, out of range, or a value that is not finite; the message names the row.

    | duplicates | the entry, in the place of the first                  | time            |
    |------------|-------------------------------------------------------|-----------------|
    | `"raise"`  | refused, naming both rows                             |                 |
    | `"sum"`    | the sum, as for counts                                | the latest      |
    | `"mean"`   | the mean                                              | the latest      |
    | `"last"`   | the value of the latest time; of equal ones, last row | the latest      |

    Example:
      >>> r = ratings([0, 0, 1], [2, 2, 0], [1, 2, 5], users=2, items=3, duplicates="sum")
      >>> print(r.matrix().toarray())
      [[0. 0. 3.]
       [5. 0. 0.]]
    """
    if duplicates not in _DUPLICATES:
        raise ValueError(
            f"ratings: duplicates='{duplicates}' is unknown. "
            f"{did_you_mean(str(duplicates), _DUPLICATES)}"
        )
    columns = {"user": np.asarray(user), "item": np.asarray(item)}
    rows = columns["user"].shape
    columns["value"] = np.ones(rows) if value is None else np.asarray(value)
    if time is not None:
        columns["time"] = np.asarray(time)
    for name, column in columns.items():
        if column.ndim != 1 or column.shape != rows:
            raise ValueError(f"ratings: expected {name} (N,) like user {rows}, got {column.shape}.")
        kinds, noun = _EXPECTED.get(name, ("iuU", "integers or text"))
        if len(column) and column.dtype.kind not in kinds:
            raise TypeError(f"ratings: expected {name} of {noun}, got {column.dtype}.")
    if rows == (0,):
        raise ValueError("ratings: no entries at all; at least one is needed.")
    with np.errstate(over="ignore"):  # 1e300 is no float32: refused as the Inf that it becomes
        columns["value"] = columns["value"].astype(np.float32)
    _refuse(~np.isfinite(columns["value"]), "value must be finite", columns["value"])
    shape, ids = {}, {}
    for side, count in (("user", users), ("item", items)):
        raw = columns[side]
        if count is None:
            ids[f"{side}_ids"], raw = np.unique(raw, return_inverse=True)
            count = len(ids[f"{side}_ids"])
        elif raw.dtype.kind == "U":
            raise TypeError(f"ratings: {side}s={count} says that {side} is row numbers, got text.")
        else:
            _refuse((raw < 0) | (raw >= count), f"{side} must lie in [0, {count})", raw)
        columns[side], shape[f"{side}s"] = raw.astype(np.int32), count
    if "time" in columns:
        columns["time"] = columns["time"].astype(np.int64)
    if duplicates != "raise":
        columns = _merged(columns, shape["items"], duplicates)
    return Ratings(**columns, **shape, **ids)


def _merged(columns: dict[str, np.ndarray], items: int, how: str) -> dict[str, np.ndarray]:
    """One entry for each pair, in the place of its first."""
    key = columns["user"].astype(np.int64) * items + columns["item"]
    _, first, place, counts = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    value, time = columns["value"].astype(np.float64), columns.get("time")
    row = np.arange(len(key))
    in_time = np.lexsort((row, row if time is None else time, place))
    last = in_time[np.cumsum(counts) - 1]  # the latest entry of each pair
    if how == "last":
        merged = value[last]
    else:
        merged = np.bincount(place, value) / (counts if how == "mean" else 1)
    order = np.argsort(first)
    out = {side: columns[side][first][order] for side in ("user", "item")}
    out["value"] = merged[order].astype(np.float32)
    return out if time is None else out | {"time": time[last][order]}


def _refuse(bad: np.ndarray, rule: str, column: np.ndarray) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"ratings: {rule}, but row {row} has {column[row]} ({int(bad.sum())} rows in all)."
        )


def _first_duplicate(key: np.ndarray) -> tuple[int, int]:
    """Two rows of the same key, or (-1, -1)."""
    if (np.diff(key) > 0).all():  # the usual case: sorted already
        return -1, -1
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(np.diff(key[order]) == 0)
    return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else (-1, -1)
