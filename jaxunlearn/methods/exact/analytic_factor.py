"""The Cholesky state of a ridge head: a factor that is rotated when rows come and go.

    A + gamma I = L L^T,    L' L'^T = L L^T + X^T X   (learn),    L L^T - X^T X   (forget)

Column by column, a Givens rotation brings a row of X into L, a hyperbolic one takes it out again:
c = sqrt(1 +- (x_k / L_kk)^2), l' = (l +- s x) / c, x' = c x - s l' with s = x_k / L_kk, in the
mixed form that is backward stable (Chambers 1971, doi:10.1080/01621459.1971.10482335). A removal
whose c is not real would take more than there is; nothing is changed then. Many rows at once are
cheaper through a new factor of L L^T +- X^T X.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solution, Solved
from jaxunlearn.methods.exact.analytic_gram import solve
from jaxunlearn.methods.exact.pairs import Pair, add, dot, pair, product, scale, value
from jaxunlearn.typing import Array

_MANY = 10  # a new factor where there are more than d / 10 rows
_FOREIGN = 0.1


class FactorState(NamedTuple):
    """A Cholesky factor and the sums that it does not hold; a pytree."""

    factor: Array  # (d, d) lower, of A + gamma I
    cross: Pair  # (d, C)
    count: Array  # (C,) float, weight of the rows with a target that is not 0
    rows: Array  # [] float, weight of all rows
    status: Array  # [] int32, a `Solved`


def empty(features: int, classes: int, gamma: float, dtype: jnp.dtype) -> FactorState:
    """The state before the first example: L = sqrt(gamma) I."""
    return FactorState(
        jnp.sqrt(jnp.asarray(gamma, dtype)) * jnp.eye(features, dtype=dtype),
        pair(jnp.zeros((features, classes), dtype)),
        jnp.zeros(classes, dtype),
        jnp.zeros((), dtype),
        jnp.int32(Solved.CONVERGED),
    )


def rotate(lower: Array, x: Array, sign: int) -> Array:
    """The lower factor of L L^T + sign X^T X; NaN where there is none.

    Args:
      lower: (d, d).
      x: (n, d) rows.
      sign: +1 or -1.

    Cost: 4 n d^2 operations, in d steps.
    """

    def column(x: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        k, first = item

        def row(current: Array, one: Array) -> tuple[Array, Array]:
            s = one[k] / current[k]
            c = jnp.sqrt(1 + sign * s * s)  # NaN where a removal takes more than there is
            new = (current + sign * s * one) / c
            return new, c * one - s * new

        last, rest = jax.lax.scan(row, first, x)
        return rest, last

    places = jnp.arange(len(lower))
    _, columns = jax.lax.scan(column, x, (places, lower.T))
    return jnp.tril(columns.T)


def change(
    state: FactorState,
    x: Array,
    targets: Array,
    weight: Array,
    *,
    sign: int,
    gamma: float,
    compensated: bool = True,
) -> FactorState:
    """The state with the rows added (sign 1) or taken away (-1); a status where that cannot be."""
    root = jnp.sqrt(weight)[:, None]
    rows, marks = root * x, root * targets
    d, lower = len(state.factor), state.factor
    if len(rows) * _MANY > d:
        changed = dot(lower, lower.T) + sign * dot(rows.T, rows)
        factor = one_by_one(jnp.linalg.cholesky)(changed)
    else:
        factor = rotate(lower, rows, sign)
    factor = jnp.where((weight > 0).any(), factor, lower)
    cross = product(rows, marks, compensated=compensated)
    new = FactorState(
        factor,
        add(state.cross, scale(cross, sign)),
        state.count + sign * (weight[:, None] * (targets != 0)).sum(axis=0),
        state.rows + sign * weight.sum(),
        state.status,
    )
    start = empty(d, state.count.size, gamma, lower.dtype)
    gone, nothing = new.count == 0, new.rows == 0
    good = jnp.isfinite(factor).all() & (new.count >= 0).all() & (new.rows >= 0)
    if sign < 0:
        left, removed = (jnp.abs(c.high).max(axis=0) for c in (new.cross, cross))
        good &= (~gone | (left <= _FOREIGN * removed)).all()
        # A is the identity times gamma again, or what was taken away is not what was there
        own = jnp.abs(jnp.diagonal(lower)).max()
        good &= ~nothing | (jnp.abs(jnp.diagonal(factor) ** 2 - gamma) <= _FOREIGN * own**2).all()
    given = jnp.isfinite(rows).all() & jnp.isfinite(marks).all()
    status = jnp.where(good, Solved.CONVERGED, Solved.INDEFINITE)
    status = jnp.where(given, status, Solved.NONFINITE)
    status = jnp.where(state.status == Solved.CONVERGED, status, state.status).astype(jnp.int32)
    cleared = new._replace(
        factor=jnp.where(nothing, start.factor, factor),
        cross=jax.tree.map(lambda a: jnp.where(gone[None], 0, a), new.cross),
    )
    kept = jax.tree.map(lambda n, o: jnp.where(status == Solved.CONVERGED, n, o), cleared, state)
    return kept._replace(status=status)


def head(state: FactorState, *, tolerance: float) -> Solution:
    """W = L^-T L^-1 C, refined once; the residual is that of L L^T, there is no other A."""
    lower, b = state.factor, value(state.cross)

    def missing(w: Array) -> Array:
        return b - dot(lower, dot(lower.T, w))

    w = solve(lower, b)
    w = w + solve(lower, missing(w))
    size = jnp.linalg.norm(b)
    residual = jnp.linalg.norm(missing(w)) / jnp.where(size > 0, size, 1)
    status = jnp.where(residual <= tolerance, Solved.CONVERGED, Solved.STALLED)
    status = jnp.where(jnp.isfinite(residual), status, Solved.NONFINITE).astype(jnp.int32)
    return Solution(jnp.where(jnp.isfinite(w), w, 0), status, residual, jnp.int32(1))
