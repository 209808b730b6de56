"""Rows of a fixed-shape state: a slot each, that is empty, learnt or forgotten.

The number of a slot is the id of the row in it. Deleting changes what a slot says of itself, never
a shape, so that one compiled program serves every request of the same number of rows, padded with
-1 to a power of two.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import is_traced
from jaxunlearn.typing import Array


class Slot(enum.IntEnum):
    """What a slot holds."""

    EMPTY = 0  # never learnt
    LEARNT = 1
    FORGOTTEN = 2  # learnt once, overwritten with zeros


class IllConditionedError(ArithmeticError):
    """A system that the dtype cannot solve to the tolerance asked for."""


def length(rows: Any) -> int:
    """The common leading axis of a tree of arrays."""
    return jax.tree.leaves(rows)[0].shape[0]


def requested(rows: Array, slots: Array, wanted: int) -> tuple[Array, Array]:
    """(places (m,) in [0, n), valid (m,) bool): each slot that is `wanted`, once.

    Padding, numbers outside [0, n), repeats and slots in another condition are not valid.

    Args:
      rows: (m,) int.
      slots: (n,) int32, each a `Slot`.
      wanted: a `Slot`.
    """
    n, m = len(slots), len(rows)
    inside = (rows >= 0) & (rows < n)
    places = jnp.where(inside, rows, 0)
    same = (places[:, None] == places[None]) & inside[:, None] & inside[None]
    first = ~jnp.any(same & (jnp.arange(m)[None] < jnp.arange(m)[:, None]), axis=1)
    return places, inside & first & (slots[places] == wanted)


def marked(places: Array, valid: Array, n: int) -> Array:
    """(n,) bool, True at the valid places."""
    return jnp.zeros(n, bool).at[places].max(valid)


def padded(rows: Any, name: str, slots: Array) -> Array:
    """`rows` as int32, filled up with -1 to a power of two; checked unless traced.

    Raises:
      TypeError: not integers.
      ValueError: an id outside [0, n).
    """
    if is_traced((rows, slots)):
        return jnp.asarray(rows)
    given = np.asarray(rows)
    given = given.astype(np.int32) if given.size == 0 else given
    if given.dtype == bool or not np.issubdtype(given.dtype, np.integer) or given.ndim != 1:
        raise TypeError(
            f"{name}: expected row ids, integers (m,), got {given.dtype} of shape {given.shape}."
        )
    n = len(slots)
    if (outside := given[(given < 0) | (given >= n)]).size:
        raise ValueError(f"{name}: row {outside[0]} is unknown; ids are in [0, {n}).")
    room = 1 << int(max(given.size - 1, 0)).bit_length()
    return jnp.asarray(np.pad(given, (0, room - given.size), constant_values=-1), jnp.int32)


def check_learnt(name: str, rows: Any, slots: Array) -> None:
    """Raises ValueError if a row was never learnt; one that is forgotten already is no error."""
    if is_traced((rows, slots)):
        return
    given, held = np.asarray(rows), np.asarray(slots)
    never = given[(given >= 0) & (held[given] == Slot.EMPTY)]
    if never.size:
        raise ValueError(
            f"{name}: row {never[0]} was never learnt, so there is nothing to forget; "
            f"{int((held == Slot.LEARNT).sum())} rows are learnt."
        )


def check_free(name: str, rows: Any, slots: Array) -> None:
    """Raises ValueError if a row is learnt already, or asked for twice."""
    if is_traced((rows, slots)):
        return
    given, held = np.asarray(rows), np.asarray(slots)
    given = given[given >= 0]
    taken = given[held[given] == Slot.LEARNT]
    if taken.size:
        raise ValueError(f"{name}: row {taken[0]} is learnt already; forget it first.")
    if len(np.unique(given)) < len(given):
        raise ValueError(f"{name}: a row is given twice, {given.tolist()}.")


def check_examples(name: str, x: Any, y: Any, m: int | None = None) -> None:
    """Raises ValueError unless x and y have one row count (m) and finite numbers."""
    lengths = sorted({leaf.shape[0] for leaf in jax.tree.leaves((x, y))})
    if len(lengths) != 1 or (m is not None and lengths != [m]):
        asked = "one number of rows" if m is None else f"{m} rows, one for each id"
        raise ValueError(f"{name}: x and y must have {asked}, they have {lengths}.")
    if is_traced((x, y)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path({"x": x, "y": y}):
        where = jnp if isinstance(leaf, jax.Array) else np
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not where.isfinite(leaf).all():
            finite = np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
            bad = int(np.flatnonzero(~finite)[0])
            raise ValueError(
                f"{name}: NaN or Inf in row {bad} of {jax.tree_util.keystr(path)}; drop the row."
            )


def wiped(tree: Any, gone: Array) -> Any:
    """`tree` with zeros in the rows that are `gone` (n,)."""

    def wipe(leaf: Array) -> Array:
        return jnp.where(gone.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf).astype(leaf.dtype)

    return jax.tree.map(wipe, tree)


def written(tree: Any, places: Array, valid: Array, new: Any) -> Any:
    """`tree` with rows `new` (m, ...) at the valid places."""

    def write(leaf: Array, rows: Array) -> Array:
        outside = jnp.where(valid, places, leaf.shape[0])
        return leaf.at[outside].set(rows.astype(leaf.dtype), mode="drop")

    return jax.tree.map(write, tree, new)


def lengthened(tree: Any, m: int) -> Any:
    """Rows filled up to m with copies of the first: padding, never written anywhere."""

    def fill(leaf: Any) -> Array:
        given = jnp.asarray(leaf)
        return jnp.concatenate([given, jnp.repeat(given[:1], m - len(given), axis=0)])

    return jax.tree.map(fill, tree)
