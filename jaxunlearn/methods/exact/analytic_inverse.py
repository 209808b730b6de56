"""The inverse state of a ridge head: R and W that follow every request by Woodbury's identity.

    S = I - X R X^T,     R' = R + R X^T S^-1 X R,     W' = W + R X^T S^-1 (X W - Y)      (forget)
    K = I + X R X^T,     R' = R - R X^T K^-1 X R,     W' = W - R X^T K^-1 (X W - Y)      (learn)

with R = (A + gamma I)^-1. This is the published recursion (ACIL), and the cheapest for a few rows:
no system larger than n x n. Rounding is amplified by 1 / lambda_min(S) <= 1 + sigma^2 / gamma, with
sigma the largest singular value of X, and adds up. So the Gram travels along, R is held against
it on probe vectors after every request, |(A + gamma I) R v - v| / |v|, and made anew from it when
that is too large, when S has no Cholesky factor, when n >= d, and every so many requests.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solution, Solved
from jaxunlearn.methods.exact import analytic_gram as grams
from jaxunlearn.methods.exact.analytic_gram import GramState
from jaxunlearn.methods.exact.pairs import dot, value
from jaxunlearn.typing import Array

_PROBES = 4


class InverseState(NamedTuple):
    """R and W, and the sums that they are held against; a pytree."""

    inverse: Array  # (d, d) R = (A + gamma I)^-1
    weights: Array  # (d, C) W
    residual: Array  # [] float, the largest |(A + gamma I) R v - v| / |v| over the probes
    age: Array  # [] int32, requests since R was made from the Gram
    renewals: Array  # [] int32, how often it was
    gram: GramState


def empty(features: int, classes: int, gamma: float, dtype: jnp.dtype) -> InverseState:
    """The state before the first example: R = I / gamma, W = 0."""
    return InverseState(
        jnp.eye(features, dtype=dtype) / gamma,
        jnp.zeros((features, classes), dtype),
        jnp.zeros((), dtype),
        jnp.int32(0),
        jnp.int32(0),
        grams.empty(features, classes, 1, dtype),
    )


def change(
    state: InverseState,
    x: Array,
    targets: Array,
    weight: Array,
    *,
    sign: int,
    gamma: float,
    compensated: bool = True,
    tolerance: float = 1e-4,
    refresh: int = 100,
) -> InverseState:
    """The state with the rows added (sign 1) or taken away (-1); a status where that cannot be."""
    options = {"gamma": gamma, "compensated": compensated, "verify": False}
    gram = grams.change(state.gram, x, targets, weight, sign=sign, **options)
    root = jnp.sqrt(weight)[:, None]
    n, d = x.shape
    inverse, weights, definite = state.inverse, state.weights, jnp.asarray(False)
    if n < d:
        inverse, weights, definite = woodbury(inverse, weights, root * x, root * targets, sign)
    residual = probe(gram, inverse, gamma)
    stale = ~definite | ~(residual <= tolerance) | (state.age + 1 >= refresh) | (gram.rows == 0)
    good = gram.status == Solved.CONVERGED

    def renew(_: None) -> tuple[Array, Array, Array]:
        return made_anew(gram, gamma, compensated)

    def keep(_: None) -> tuple[Array, Array, Array]:
        return inverse, weights, jnp.asarray(True)

    inverse, weights, solved = jax.lax.cond(stale & good, renew, keep, None)
    status = jnp.where(good & ~solved, Solved.INDEFINITE, gram.status).astype(jnp.int32)
    new = InverseState(
        inverse,
        weights,
        jnp.where(stale, probe(gram, inverse, gamma), residual),
        jnp.where(stale, 0, state.age + 1),
        state.renewals + stale,
        gram,
    )
    kept = jax.tree.map(lambda n, o: jnp.where(status == Solved.CONVERGED, n, o), new, state)
    return kept._replace(gram=kept.gram._replace(status=status))


def woodbury(
    inverse: Array, weights: Array, x: Array, targets: Array, sign: int
) -> tuple[Array, Array, Array]:
    """(R', W', whether S or K had a Cholesky factor) for rows (n, d), n < d.

    Cost: 4 n d^2 + 2 n^2 d operations.
    """
    g = dot(inverse, x.T)
    small = jnp.eye(len(x), dtype=x.dtype) + sign * dot(x, g)
    factor = one_by_one(jnp.linalg.cholesky)((small + small.T) / 2)
    definite = jnp.isfinite(factor).all()
    factor = jnp.where(definite, factor, jnp.eye(len(x), dtype=x.dtype))
    half = one_by_one(_forward)(factor, g.T)
    step = dot(g, grams.solve(factor, targets - dot(x, weights)))
    return inverse - sign * dot(half.T, half), weights + sign * step, definite


def made_anew(gram: GramState, gamma: float, compensated: bool) -> tuple[Array, Array, Array]:
    """(R, W, whether A + gamma I has a Cholesky factor) from the Gram; d^3 operations."""
    a, b = grams.system(gram, balanced=False)
    eye = jnp.eye(len(a.high), dtype=a.high.dtype)
    factor = one_by_one(jnp.linalg.cholesky)(value(a) + gamma * eye)
    definite = jnp.isfinite(factor).all()
    factor = jnp.where(definite, factor, eye)
    inverse = grams.solve(factor, eye)
    weights = grams.ridge(a, b, gamma, tolerance=1.0, compensated=compensated).x
    return (inverse + inverse.T) / 2, weights, definite


def probe(gram: GramState, inverse: Array, gamma: float) -> Array:
    """[] the largest |(A + gamma I) R v - v| / |v| over four vectors of signs."""
    d = len(inverse)
    bits = (jnp.arange(d, dtype=jnp.uint32) * jnp.uint32(2654435761))[:, None]
    signs = (bits >> jnp.arange(11, 11 + _PROBES, dtype=jnp.uint32)[None]) & 1
    v = 1 - 2 * signs.astype(inverse.dtype)
    through = dot(inverse, v)
    error = dot(value(gram.gram)[0], through) + gamma * through - v
    return jnp.sqrt(jnp.square(error).sum(axis=0) / d).max()


def head(state: InverseState, *, tolerance: float) -> Solution:
    """W as it is kept, with the residual of the probes."""
    status = jnp.where(state.residual <= tolerance, Solved.CONVERGED, Solved.STALLED)
    return Solution(state.weights, status.astype(jnp.int32), state.residual, jnp.int32(0))


def _forward(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)
