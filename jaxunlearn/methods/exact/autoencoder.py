"""A linear autoencoder for recommendations (EASE), from which a person is deleted in one step.

    B = argmin |X - X B|^2 + lambda |B|^2   with  diag B = 0
      = I - P diag(1 / diag P),     P = (X^T X + lambda I)^-1

X is users x items. A person is one row x of X, so that forgetting is a change of P of rank one,

    P' = P + P x x^T P / (1 - x^T P x),

adding one the same with other signs, changing entries of a row one of rank two, and m people one of
rank m. A deleted item is a row and a column of P that leave. No iteration, no approximation: what
comes out is the model that would have been fitted without them.

Steck (2019), "Embarrassingly Shallow Autoencoders for Sparse Data", arXiv:1905.03375, equation 8
for the closed form; the downdate of P is Woodbury's identity, see `jaxunlearn.linalg.kept_inverse`.
Departures: 1. ratings other than 0 and 1 are taken as they are. 2. The Gram X^T X is kept beside P,
to hold P against it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.data.streams import is_traced
from jaxunlearn.kernels import slots
from jaxunlearn.kernels.slots import Slot
from jaxunlearn.linalg import kept_inverse
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact.autoencoder_state import (
    EaseState,
    added,
    best,
    gathered,
    narrowed,
    removed,
    replaced,
    scores,
    weights,
)
from jaxunlearn.methods.exact.row_prints import list_prints, row_prints
from jaxunlearn.typing import Array

_CHUNK = 1024  # people of a Ratings that are learnt at once

# Compiled once for all learners of a shape: regularisation and tolerance are arguments.
_STEPS = {
    "learn": jax.jit(added),
    "forget": jax.jit(removed),
    "change": jax.jit(replaced),
    "forget_items": jax.jit(narrowed),
}
_gather, _renew = jax.jit(gathered), jax.jit(kept_inverse.renewed)
_weights, _scores, _best = jax.jit(weights), jax.jit(scores), jax.jit(best, static_argnums=2)
_list_prints = jax.jit(list_prints, static_argnums=3)


class Ease(NamedTuple):
    """The functions of a linear autoencoder; see `ease`."""

    init: Callable[[], EaseState]
    learn: Callable[..., EaseState]  # (state, users, rows) -> state
    forget: Callable[..., EaseState]  # (state, users, rows) -> state
    change: Callable[..., EaseState]  # (state, users, rows, new_rows) -> state
    forget_items: Callable[..., EaseState]  # (state, items, rows) -> state
    predict: Callable[..., Array]  # (state, rows) -> (m, items)
    recommend: Callable[..., tuple[Array, Array]]  # (state, rows, k) -> items, scores (m, k)
    weights: Callable[[EaseState], Array]  # state -> (items, items)


def ease(
    *,
    users: int,
    items: int,
    regularisation: float,
    dtype: Any = None,
    tolerance: float | None = None,
) -> Ease:
    """B = I - P diag(1 / diag P), P = (X^T X + lambda I)^-1, with exact learning and forgetting.

    Args:
      users, items: shape of X, >= 1; ids are row and column numbers.
      regularisation: lambda > 0, in squared ratings; published: 200 to 1000 for 0/1 data.
      dtype: of P, float32 or float64; None: JAX's default.
      tolerance: residual of P above which it is made anew, see `kept_inverse.change`.

    Returns:
      Functions. `rows` are (m, items) numbers, the row of X of each of m users, or a `Ratings` in
      which theirs are found:

      `init()`: nobody learnt, P = I / lambda.
      `learn(state, users, rows)`: with these people.
      `forget(state, users, rows)`: without them; their rows as they were learnt.
      `change(state, users, rows, new_rows)`: new rows in the place of theirs.
      `forget_items(state, items, rows)`: without these columns. P needs no data for it; the prints
        do: `rows` (users, items) or a `Ratings`, all that is learnt. From then on deleted items
        count as 0 in every row.
      `predict(state, rows)`: scores X B.
      `recommend(state, rows, k)`: (items int32, scores), (m, k) each, best first, without what a
        row has and what is deleted; where fewer than k are left, scores are -inf.
      `weights(state)`: B. Its diagonal, and rows and columns of deleted items, are 0.

    Raises:
      TypeError, ValueError: a constant or an id out of range; a person learnt already (learn) or
        never (forget, change); rows of another shape, not finite, or not those that were learnt.
      IllConditionedError: P has no right digit left, or more was taken away than there was.

    Guarantee: exact. B equals the refit on the rows that stay, to 1e-10 in float64 and 1e-4 in
    float32, also after a thousand deletions. Outside of it: how users and items are numbered, and
    that somebody was there once (`users` says "forgotten", so that forgetting twice is harmless).

    | situation                            | result                                              |
    |--------------------------------------|-----------------------------------------------------|
    | forgotten already, or no id at all   | nothing changes                                     |
    | everybody is forgotten               | X^T X = 0, B = 0 up to rounding                     |
    | a row without entries                | learnt and forgotten; P unchanged                   |
    | a thousand deletions in a row        | memory and time as for the first; P renewed by need |
    | learn, then forget                   | back, to rounding                                   |
    | a wrong row inside `jit` or `vmap`   | nothing changes, `state.kept.status` is FOREIGN     |

    Cost: for m people 6 m items^2 operations and some eight passes over P, whose memory, with the
    Gram, is 2 items^2; for m > items / 4, or to renew P, 2 items^3. A request is padded to a power
    of two; there is one compilation for each.

    Source: Steck (2019), arXiv:1905.03375, equation 8; departures in the module.

    Example:
      >>> x = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], np.float32)
      >>> learner = ease(users=3, items=3, regularisation=1.0)
      >>> state = learner.learn(learner.init(), [0, 1, 2], x)
      >>> state = learner.forget(state, [1], x[1:2])
      >>> print(np.asarray(learner.weights(state)).round(2))
      [[ 0.   0.5 -0.2]
       [ 0.4  0.   0.4]
       [-0.2  0.5  0. ]]
    """
    _check_constants(users, items, regularisation, tolerance)
    options: dict[str, Any] = {"regularisation": regularisation, "tolerance": tolerance}

    def init() -> EaseState:
        kept = kept_inverse.empty(items, regularisation, jnp.zeros((), dtype or float).dtype)
        none = jnp.zeros(users, jnp.int32)
        return EaseState(kept, none, none.astype(jnp.uint32), jnp.ones(items, bool))

    def run(verb: str, state: EaseState, who: Any, *rows: Any) -> EaseState:
        where = f"ease.{verb}"
        ids = slots.padded(who, where, state.users)
        given = [_dense(where, each, who, users, items, state.kept.gram.dtype) for each in rows]
        if not is_traced((state, ids, given)):
            if not len(given[0]):
                return state
            if verb == "learn":
                slots.check_free(where, ids, state.users)
            else:
                slots.check_learnt(where, ids, state.users)
            room = ((0, len(ids) - len(given[0])), (0, 0))
            given = [jnp.asarray(np.pad(each, room)) for each in given]
            if verb != "learn":
                own = np.asarray(_live_prints(state.items, given[0]))
                at = np.maximum(ids, 0)
                learnt = (np.asarray(ids) >= 0) & (np.asarray(state.users)[at] == Slot.LEARNT)
                _refuse_foreign(where, learnt & (np.asarray(state.prints)[at] != own), at)
        return _checked(where, _STEPS[verb](state, ids, *given, **options))

    def learn(state: EaseState, who: Any, rows: Any) -> EaseState:
        if not isinstance(rows, Ratings) or np.size(who) <= max(_CHUNK, items // 4):
            return run("learn", state, who, rows)
        ids = np.asarray(slots.padded(who, "ease.learn", state.users))
        slots.check_free("ease.learn", ids, state.users)
        for start in range(0, len(ids), _CHUNK):  # sums over chunks, and one inverse
            some = ids[start : start + _CHUNK]
            real = some[some >= 0]
            x = _dense("ease.learn", rows, real, users, items, state.kept.gram.dtype)
            room = ((0, len(some) - len(real)), (0, 0))
            state = _gather(state, jnp.asarray(some), jnp.pad(x, room))
        kept = _renew(state.kept, regularisation=regularisation)
        return _checked("ease.learn", state._replace(kept=kept))

    def forget_items(state: EaseState, which: Any, rows: Any) -> EaseState:
        where = "ease.forget_items"
        ids = slots.padded(which, where, state.items)
        asked = slots.marked(jnp.maximum(ids, 0), ids >= 0, items)
        prints, theirs = _prints(where, rows, state.items, asked, users, items)
        if not is_traced((state, ids, prints)):
            learnt = np.asarray(state.users) == Slot.LEARNT
            wrong = learnt & (np.asarray(prints) != np.asarray(state.prints))
            _refuse_foreign(where, wrong, np.arange(users))
        return _checked(where, _STEPS["forget_items"](state, ids, prints, theirs, **options))

    def predict(state: EaseState, rows: Any) -> Array:
        given = np.arange(users) if isinstance(rows, Ratings) else np.zeros(len(rows))
        x = _dense("ease.predict", rows, given, users, items, state.kept.gram.dtype)
        return _scores(state, x)

    def recommend(state: EaseState, rows: Any, k: int) -> tuple[Array, Array]:
        if not 1 <= k <= items:
            raise ValueError(f"ease.recommend: expected k in [1, {items}], got {k}.")
        given = np.arange(users) if isinstance(rows, Ratings) else np.zeros(len(rows))
        x = _dense("ease.recommend", rows, given, users, items, state.kept.gram.dtype)
        return _best(state, x, k)

    return Ease(
        init,
        learn,
        partial(run, "forget"),
        partial(run, "change"),
        forget_items,
        predict,
        recommend,
        _weights,
    )


def _dense(where: str, rows: Any, who: Any, users: int, items: int, dtype: Any) -> Array:
    """Rows of X (m, items), checked unless traced."""
    if isinstance(rows, Ratings):
        if (rows.users, rows.items) != (users, items):
            raise ValueError(
                f"{where}: expected ratings of {users} users x {items} items, got {rows.users} x "
                f"{rows.items}."
            )
        ids = np.asarray(who, np.int64)
        place = np.full(users, -1)
        place[ids] = np.arange(len(ids))
        own = place[rows.user] >= 0
        x = np.zeros((len(ids), items), dtype)
        x[place[rows.user[own]], rows.item[own]] = rows.value[own]
        return jnp.asarray(x[place[ids]] if len(ids) else x)
    x = jnp.asarray(rows, dtype)
    if x.shape != (len(who), items):
        raise ValueError(
            f"{where}: expected rows ({len(who)}, {items}), one for each id, or a Ratings; got "
            f"{x.shape}."
        )
    if not is_traced(x) and not (finite := np.isfinite(np.asarray(x)).all(axis=1)).all():
        raise ValueError(f"{where}: NaN or Inf in row {int(np.argmin(finite))}; drop it.")
    return x


def _prints(
    where: str, rows: Any, live: Array, asked: Array, users: int, items: int
) -> tuple[Array, Array]:
    """(users,) prints of all rows, and of the columns that are asked for; deleted ones count 0."""
    if isinstance(rows, Ratings) and (rows.users, rows.items) == (users, items):
        entries = rows.user, rows.item, rows.value
        return _list_prints(*entries, users, live), _list_prints(*entries, users, live & asked)
    x = _dense(where, rows, np.arange(users), users, items, jnp.float32)
    return _live_prints(live, x), _live_prints(live & asked, x)


@jax.jit
def _live_prints(live: Array, x: Array) -> Array:
    return row_prints(x, live)


def _refuse_foreign(where: str, wrong: np.ndarray, ids: np.ndarray) -> None:
    if wrong.any():
        raise ValueError(
            f"{where}: the row given for user {ids[np.argmax(wrong)]} is not the one that was "
            "learnt, and what is left would be no model of anything. Give it as it was learnt, or "
            "as `change` left it."
        )


def _checked(where: str, state: EaseState) -> EaseState:
    if is_traced(state) or int(state.kept.status) == Solved.CONVERGED:
        return state
    raise slots.IllConditionedError(
        f"{where}: {Solved(int(state.kept.status)).name}, the residual of P is "
        f"{float(state.kept.residual):.1e} in {state.kept.gram.dtype}. Use float64, or a larger "
        "regularisation."
    )


def _check_constants(
    users: int, items: int, regularisation: float, tolerance: float | None
) -> None:
    for name, count in (("users", users), ("items", items)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"ease: expected {name} to be an integer >= 1, got {count!r}.")
    if not 0 < regularisation < float("inf"):
        raise ValueError(
            f"ease: expected regularisation > 0 and finite, got {regularisation!r}. Without it, "
            "items that nobody has make X^T X singular."
        )
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"ease: expected tolerance > 0, got {tolerance!r}.")
