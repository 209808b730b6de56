"""The Gram state of a ridge head: sums over the examples, from which the head is solved.

    A = sum_i w_i x_i x_i^T,     C = sum_i w_i x_i y_i^T,     W = (A + gamma I)^-1 C

Learning adds to the sums and forgetting subtracts, so that order and batches do not matter and the
states of two data sets add up to that of their union. With a Gram for each class, A_c, the classes
can be weighted anew (AIR, Fang et al. 2024, arXiv:2408.10349) or taken out whole:

    W = (sum_c omega_c A_c + gamma I)^-1 C diag(omega),     omega_c ~ 1 / n_c, of mean 1

The sums are pairs of floats (`pairs`), the system is solved by a Cholesky factor of single floats,
and refined with residuals of pairs.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solution, Solved
from jaxunlearn.methods.exact.pairs import (
    Pair,
    add,
    cut,
    dot,
    pair,
    product,
    scale,
    times,
    total,
    value,
)
from jaxunlearn.typing import Array

_REFINEMENTS = 4  # at most
_FOREIGN = 0.1  # of what was removed last: more than this left of nothing was never all of it


class GramState(NamedTuple):
    """Sums over what was learnt and not forgotten; a pytree."""

    gram: Pair  # (1, d, d), or (C, d, d) for a Gram of each class
    cross: Pair  # (d, C)
    count: Array  # (C,) float, weight of the rows with a target that is not 0
    rows: Array  # [] float, weight of all rows
    status: Array  # [] int32, a `Solved`: CONVERGED, or why the state no longer changes


class _Refined(NamedTuple):
    """Where the refinement of W is."""

    w: Array  # (d, C)
    missing: Array  # (d, C) B - (A + gamma I) W
    more: Array  # [] bool, whether another step can help
    steps: Array  # [] int32


def empty(features: int, classes: int, grams: int, dtype: jnp.dtype) -> GramState:
    """The state before the first example."""
    zeros = jnp.zeros((grams, features, features), dtype), jnp.zeros((features, classes), dtype)
    count = jnp.zeros(classes, dtype), jnp.zeros((), dtype)
    return GramState(pair(zeros[0]), pair(zeros[1]), *count, jnp.int32(Solved.CONVERGED))


def targets_of(y: Array, classes: int, dtype: jnp.dtype) -> Array:
    """(n, C): one-hot rows of integer labels (n,), or the targets as they are."""
    return jax.nn.one_hot(y, classes, dtype=dtype) if y.ndim == 1 else y.astype(dtype)


def change(
    state: GramState,
    x: Array,
    targets: Array,
    weight: Array,
    *,
    sign: int,
    gamma: float,
    compensated: bool = True,
    verify: bool = True,
) -> GramState:
    """The state with the rows added (sign 1) or taken away (-1).

    Args:
      x, targets, weight: (n, d), (n, C), (n,) in the dtype of the state.
      verify: whether a removal must leave a Cholesky factor of A.

    Returns:
      The new state. What cannot be is a status, and the sums stay as they were: INDEFINITE where
      more would be removed than there is, NONFINITE for NaN or Inf.
    """
    root = jnp.sqrt(weight)[:, None]
    rows, marks = root * x, root * targets
    if len(state.gram.high) == 1:
        gram = jax.tree.map(lambda a: a[None], product(rows, compensated=compensated))
    else:
        gram = jax.lax.map(
            lambda mine: product(rows * mine[:, None], compensated=compensated), targets.T
        )
    cross = product(rows, marks, compensated=compensated)
    seen = (weight[:, None] * (targets != 0)).sum(axis=0)
    new = GramState(
        add(state.gram, scale(gram, sign)) if compensated else _plain(state.gram, gram, sign),
        add(state.cross, scale(cross, sign)) if compensated else _plain(state.cross, cross, sign),
        state.count + sign * seen,
        state.rows + sign * weight.sum(),
        state.status,
    )
    good = jnp.asarray(True)
    if sign < 0:
        new, good = emptied(new, jnp.abs(cross.high).max(axis=0))
        if verify:
            good &= definite(new, gamma)
    return settle(state, new, good)


def settle(state: GramState, new: GramState, good: Array) -> GramState:
    """`new` if it is `good` and finite and `state` was; else `state` with the status that says."""
    finite = jnp.isfinite(new.gram.high).all() & jnp.isfinite(new.cross.high).all()
    status = jnp.where(good & (new.count >= 0).all() & (new.rows >= 0), 0, Solved.INDEFINITE)
    status = jnp.where(finite, status, Solved.NONFINITE).astype(jnp.int32)
    status = jnp.where(state.status == Solved.CONVERGED, status, state.status)
    kept = jax.tree.map(lambda n, o: jnp.where(status == Solved.CONVERGED, n, o), new, state)
    return kept._replace(status=status)


def emptied(state: GramState, removed: Array) -> tuple[GramState, Array]:
    """Exact zeros where a count has come down to 0, and whether what was there was rounding.

    Args:
      removed: (C,) the largest entry of each column of C that was taken away.
    """
    gone, nothing = state.count == 0, state.rows == 0
    left = jnp.abs(state.cross.high).max(axis=0)
    good = (~gone | (left <= _FOREIGN * removed)).all()
    cross = jax.tree.map(lambda a: jnp.where(gone[None], 0, a), state.cross)
    alone = len(state.gram.high) > 1
    which = gone[:, None, None] if alone else nothing[None, None, None]
    which = which if alone else jnp.broadcast_to(which, (1, 1, 1))
    gram = jax.tree.map(lambda a: jnp.where(which, 0, a), state.gram)
    return state._replace(gram=gram, cross=cross), good


@partial(jax.jit, static_argnames="gamma")
def definite(state: GramState, gamma: float) -> Array:
    """Whether every Gram is positive semidefinite, up to the rounding of its Cholesky factor."""
    dtype, d = state.rows.dtype, state.gram.high.shape[-1]
    slack = 8 * d * float(jnp.finfo(dtype).eps)

    def one(gram: Array) -> Array:
        little = jnp.minimum(slack * jnp.abs(jnp.diagonal(gram)).max(), gamma)
        little = jnp.where(little > 0, little, gamma)
        return found(cholesky(gram + little * jnp.eye(d, dtype=dtype)))

    every = value(state.gram)
    return one(every[0]) if len(every) == 1 else jax.lax.map(one, every).all()


def system(state: GramState, balanced: bool) -> tuple[Pair, Pair]:
    """(A, C) of the head, with the weights omega if balanced."""
    if not balanced:
        return total(state.gram), state.cross
    seen = state.count > 0
    inverse = jnp.where(seen, 1 / jnp.where(seen, state.count, 1), 0)
    mean = inverse.sum() / jnp.maximum(seen.sum(), 1)
    omega = inverse / jnp.where(mean > 0, mean, 1)
    return total(scale(state.gram, omega[:, None, None])), scale(state.cross, omega[None])


def head(
    state: GramState, *, gamma: float, balanced: bool, tolerance: float, compensated: bool
) -> Solution:
    """W of the state, in the form of `ridge`."""
    return ridge(*system(state, balanced), gamma, tolerance=tolerance, compensated=compensated)


@partial(jax.jit, static_argnames=("gamma", "tolerance", "compensated"))
def ridge(
    a: Pair, b: Pair, gamma: float, *, tolerance: float, compensated: bool = True
) -> Solution:
    """(A + gamma I) W = B by Cholesky and iterative refinement.

    Returns:
      `Solution`: x (d, C), zeros where there is no factor; the residual |B - (A + gamma I) W| / |B|
      in the arithmetic of pairs; how often it was refined. W is refined while that makes the
      residual smaller, and until the next step would be lost in rounding.

    Cost: d^3/3, and 22 C d^2 for each residual (in slices; 2 C d^2 in float64).
    """
    size, eps = jnp.linalg.norm(b.high), jnp.finfo(a.high.dtype).eps
    given = jnp.isfinite(a.high).all() & jnp.isfinite(b.high).all()
    factor = cholesky(value(a) + gamma * jnp.eye(len(a.high), dtype=a.high.dtype))
    slices = cut(a.high, compensated=compensated)

    def missing(w: Array) -> Array:
        back = add(pair(dot(a.low, w)), times(slices, w))
        return value(add(add(b, scale(back, -1)), pair(-gamma * w)))

    def refine(state: _Refined) -> _Refined:
        step = solve(factor, state.missing)
        w = state.w + step
        rest = missing(w)
        better = jnp.linalg.norm(rest) < jnp.linalg.norm(state.missing)
        length = jnp.linalg.norm(w, axis=0)
        share = jnp.linalg.norm(step, axis=0) / jnp.where(length > 0, length, 1)
        more = better & (jnp.square(share).max() > eps)  # the next step has about that share
        w, rest = (jnp.where(better, *each) for each in ((w, state.w), (rest, state.missing)))
        return _Refined(w, rest, more, state.steps + 1)

    def going(state: _Refined) -> Array:
        return state.more & (state.steps < _REFINEMENTS)

    first = solve(factor, value(b))
    start = _Refined(first, missing(first), jnp.asarray(True), jnp.int32(0))
    end = jax.lax.while_loop(going, refine, start)
    good, finite = found(factor), jnp.isfinite(end.w).all()
    residual = jnp.linalg.norm(end.missing) / jnp.where(size > 0, size, 1)
    residual = jnp.where(good & finite, residual, size > 0)  # that of W = 0
    status = jnp.where(residual <= tolerance, Solved.CONVERGED, Solved.STALLED)
    status = jnp.where(given & finite, status, Solved.NONFINITE)
    status = jnp.where(given & ~good, Solved.INDEFINITE, status).astype(jnp.int32)
    return Solution(jnp.where(good & finite, end.w, 0), status, residual, end.steps)


def cholesky(a: Array) -> Array:
    """The lower factor of a symmetric a; all NaN where there is none.

    Of its transpose: LAPACK reads columns, so the rows of a are taken as they lie, without a copy.
    """
    return one_by_one(partial(jnp.linalg.cholesky, symmetrize_input=False))(a.T)


def found(factor: Array) -> Array:
    """[] bool: whether it is a factor; what is not finite in a row shows on its diagonal."""
    return jnp.isfinite(jnp.diagonal(factor)).all()


def solve(lower: Array, b: Array) -> Array:
    """(L L^T)^-1 b for columns (d, m)."""
    return one_by_one(_cho_solve)(lower, b)


def merge(a: GramState, b: GramState) -> GramState:
    """The state of the union of two data sets."""
    status = jnp.maximum(a.status, b.status)
    return GramState(
        add(a.gram, b.gram), add(a.cross, b.cross), a.count + b.count, a.rows + b.rows, status
    )


def reduce(state: GramState, axis_name: str) -> GramState:
    """The sum of the states of a mapped axis, on every one of them: a `psum` of pairs."""
    every = jax.lax.all_gather(state, axis_name)
    first, rest = (jax.tree.map(cut, every) for cut in (lambda a: a[0], lambda a: a[1:]))
    return jax.lax.scan(lambda s, one: (merge(s, one), None), first, rest)[0]


def _plain(p: Pair, q: Pair, sign: int) -> Pair:
    """The sum in single floats: what compensation is compared with."""
    return Pair(p.high + sign * q.high, p.low)


def _cho_solve(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve((lower, True), b)
