"""The state of a linear autoencoder, and what a request does to it; traceable.

    learn   P of X^T X + x x^T       forget   P of X^T X - x x^T       items   P without columns

Each function takes a state and padded arrays and returns a state of the same shapes, with a status
in the place of an error; `autoencoder.ease` checks and raises. `options` are `regularisation` and
`tolerance`, as for `jaxunlearn.linalg.kept_inverse.change`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.kernels import slots
from jaxunlearn.kernels.slots import Slot
from jaxunlearn.linalg import kept_inverse
from jaxunlearn.linalg.kept_inverse import KeptInverse
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact.row_prints import row_prints
from jaxunlearn.typing import Array


class EaseState(NamedTuple):
    """P, what it is held against, and who and what is in it; a pytree whose shapes never change."""

    kept: KeptInverse  # X^T X and P, (items, items) each, residual and status
    users: Array  # (users,) int32, each a `Slot`: empty, learnt or forgotten
    prints: Array  # (users,) uint32, the print of the row that was learnt; 0 where none is
    items: Array  # (items,) bool, False: deleted


def added(state: EaseState, who: Array, x: Array, **options: Any) -> EaseState:
    """With the rows x (m, items) of people who are not learnt; others, and ids < 0, are padding."""
    x = jnp.where(state.items[None], x, 0)
    places, new = slots.requested(who, state.users, Slot.EMPTY)
    valid = new | slots.requested(who, state.users, Slot.FORGOTTEN)[1]
    kept = kept_inverse.change(state.kept, jnp.where(valid[None], x.T, 0), sign=1, **options)
    return _marked(state, kept, places, valid, Slot.LEARNT, row_prints(x))


def removed(state: EaseState, who: Array, x: Array, **options: Any) -> EaseState:
    """Without people who are learnt. If one row has another print, nothing changes: FOREIGN."""
    x = jnp.where(state.items[None], x, 0)
    places, valid = slots.requested(who, state.users, Slot.LEARNT)
    foreign = (valid & (state.prints[places] != row_prints(x))).any()
    valid = valid & ~foreign
    kept = kept_inverse.change(state.kept, jnp.where(valid[None], x.T, 0), sign=-1, **options)
    status = jnp.where(foreign, Solved.FOREIGN, kept.status).astype(jnp.int32)
    kept = kept._replace(status=status)
    return _marked(state, kept, places, valid, Slot.FORGOTTEN, jnp.zeros_like(state.prints[places]))


def replaced(state: EaseState, who: Array, x: Array, new: Array, **options: Any) -> EaseState:
    """With rows `new` in the place of x, for people who are learnt."""
    places, valid = slots.requested(who, state.users, Slot.LEARNT)
    without = removed(state, who, x, **options)
    final = added(without, jnp.where(valid, places, -1), new, **options)
    fine = (without.kept.status == Solved.CONVERGED) & (final.kept.status == Solved.CONVERGED)
    status = jnp.where(fine, 0, jnp.maximum(without.kept.status, final.kept.status))
    out = jax.tree.map(lambda a, b: jnp.where(fine, b, a), state, final)
    return out._replace(kept=out.kept._replace(status=status.astype(jnp.int32)))


def narrowed(
    state: EaseState, which: Array, prints: Array, theirs: Array, **options: Any
) -> EaseState:
    """Without some items.

    Args:
      which: (k,) int32, -1 is padding.
      prints, theirs: (users,) uint32 prints of all rows, and of these items in them; if those of
        people who are learnt are others than were learnt, nothing changes: FOREIGN.
    """
    places, valid = slots.requested(which, state.items.astype(jnp.int32), 1)
    learnt = state.users == Slot.LEARNT
    foreign = (learnt & (prints != state.prints)).any()
    valid = valid & ~foreign
    kept = kept_inverse.without(state.kept, places, valid, **options)
    status = jnp.where(foreign, Solved.FOREIGN, kept.status).astype(jnp.int32)
    left = jnp.where(learnt & ~foreign, state.prints - theirs, state.prints)
    items = state.items & ~slots.marked(places, valid, len(state.items))
    return EaseState(kept._replace(status=status), state.users, left, items)


def _marked(
    state: EaseState, kept: KeptInverse, places: Array, valid: Array, slot: int, prints: Array
) -> EaseState:
    done = valid & (kept.status == Solved.CONVERGED)
    marks = jnp.full(len(places), slot, jnp.int32)
    users, prints = slots.written((state.users, state.prints), places, done, (marks, prints))
    return EaseState(kept, users, prints, state.items)


def gathered(state: EaseState, who: Array, x: Array) -> EaseState:
    """X^T X, marks and prints with new people, and P as it was: for `kept_inverse.renewed`."""
    x = jnp.where(state.items[None] & (who >= 0)[:, None], x, 0)
    product = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    kept = state.kept._replace(gram=state.kept.gram + product, status=jnp.int32(Solved.CONVERGED))
    return _marked(state, kept, jnp.maximum(who, 0), who >= 0, Slot.LEARNT, row_prints(x))


# --------------------------------------------------------------------------------- what it predicts


def weights(state: EaseState) -> Array:
    """B = I - P diag(1 / diag P), (items, items); the diagonal is exactly 0."""
    p = state.kept.inverse
    return jnp.where(jnp.eye(len(p), dtype=bool), 0, -p / jnp.diagonal(p)[None])


def scores(state: EaseState, x: Array) -> Array:
    """X B of rows (m, items); of a deleted item the row of B and the score are 0 by themselves."""
    p = state.kept.inverse
    return x - jnp.matmul(x, p, precision=jax.lax.Precision.HIGHEST) / jnp.diagonal(p)[None]


def best(state: EaseState, x: Array, k: int) -> tuple[Array, Array]:
    """(items, scores), (m, k) each, of what a row has not and what is not deleted; best first."""
    free = (x == 0) & state.items[None]
    found, items = jax.lax.top_k(jnp.where(free, scores(state, x), -jnp.inf), k)
    return items, found
