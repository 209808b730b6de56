"""What `als` is given, checked: constants, values, numbers of ratings, users and items."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.factorisation.alternating import ALSState
from jaxunlearn.factorisation.feedback import Feedback
from jaxunlearn.factorisation.row_solves import SOLVERS
from jaxunlearn.naming import did_you_mean


def check_constants(
    rank: Any, solver: str, steps: int, block: int, scale: float, dtype: Any
) -> Any:
    """The dtype, once everything is in order.

    Raises:
      ValueError: something is not; the message says what.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"als: expected rank to be an integer >= 1, got {rank!r}.")
    if solver not in SOLVERS:
        raise ValueError(f"als: no solver is called {solver!r}. {did_you_mean(solver, SOLVERS)}")
    if steps < 1 or block < 1:
        raise ValueError(f"als: expected steps >= 1 and block >= 1, got {steps} and {block}.")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"als: expected scale to be a finite number > 0, got {scale}.")
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if dtype not in (jnp.float32, jnp.float64) or jnp.zeros((), dtype).dtype != dtype:
        raise ValueError(
            f"als: expected dtype float32, or float64 with jax_enable_x64 on, got {dtype}."
        )
    return dtype


def check_values(ratings: Any, feedback: Feedback) -> None:
    """Raises unless these are ratings that the feedback can be.

    Raises:
      TypeError: not `Ratings`.
      ValueError: counts of 0 or below for implicit feedback; the message names the row.
    """
    if not isinstance(ratings, Ratings):
        raise TypeError(
            f"als: expected Ratings, got {type(ratings).__name__}; see jaxunlearn.data.ratings."
        )
    if feedback.kind != "explicit" and (bad := np.flatnonzero(ratings.value <= 0)).size:
        raise ValueError(
            f"als: {feedback.kind} feedback counts what was done, so values must be > 0; row "
            f"{bad[0]} has {ratings.value[bad[0]]}. Leave such rows out, or use explicit feedback."
        )


def numbers(what: str, given: Any, count: int) -> np.ndarray:
    """Integers in [0, count).

    Raises:
      TypeError: not integers (a mask, floats, names).
      ValueError: out of range; the message names the first.
    """
    found = np.atleast_1d(np.asarray(given))
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise TypeError(
            f"als: expected {what} numbers, integers in one dimension, got {found.dtype} "
            f"{found.shape}. A mask becomes numbers by numpy.flatnonzero."
        )
    if (bad := np.flatnonzero((found < 0) | (found >= count))).size:
        raise ValueError(f"als: {what} {found[bad[0]]} is not in [0, {count}).")
    return found.astype(np.int64)


def entry_numbers(state: ALSState, entries: Any, users: Any, items: Any) -> np.ndarray:
    """Sorted numbers of the ratings that a request takes out and that are still there.

    Raises:
      ValueError: nothing was named at all, or numbers are out of range.
      TypeError: not integers.
    """
    if entries is None and users is None and items is None:
        raise ValueError("als: say what to forget: entries=, users= or items=.")
    pair = np.asarray(state.pair)
    chosen = np.zeros(pair.shape[1], bool)
    if entries is not None:
        chosen[numbers("entry", entries, len(chosen))] = True
    for what, given, end, factors in (
        ("user", users, pair[0], state.user),
        ("item", items, pair[1], state.item),
    ):
        if given is not None:
            wanted = np.zeros(len(factors), bool)
            wanted[numbers(what, given, len(factors))] = True
            chosen |= wanted[end]
    return np.flatnonzero(chosen & (np.asarray(state.entries.weight)[:-1] > 0))
