"""Dual coordinate ascent for kernel machines, with a certificate of how far the optimum can be.

    alpha_i <- argmax over the weight of row i, the others held      row after row
    (rho/2) |f - f*|^2  <=  P(f) - P(f*)  <=  gap

so that  |f(x) - f*(x)| <= sqrt(2 gap k(x, x) / rho)  at any x, whatever found f. For the hinge the
rows that end strictly between their bounds are then solved for at once, K_MM alpha_M = y_M - K_ME
alpha_E, which takes the last digits that ascent is slow to find.

Hsieh et al. (2008), "A Dual Coordinate Descent Method for Large-scale Linear SVM"; Shalev-Shwartz
and Zhang (2013), arXiv:1209.1873. Departure: rows are visited in their order, so that the result
needs no key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.kernels.losses import KernelLoss
from jaxunlearn.linalg import principal
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array


class Dual(NamedTuple):
    """A solution of the dual; a pytree."""

    alpha: Array  # (n,) float, exactly 0 outside the problem
    gap: Array  # [] float >= 0, (P - D) / P(0)
    epochs: Array  # [] int32, passes over the rows
    status: Array  # [] int32, a `Solved`: CONVERGED, EXHAUSTED or NONFINITE


def relative_gap(
    gram: Array, y: Array, alpha: Array, kept: Array, *, loss: KernelLoss, rho: float | Array
) -> Array:
    """(P - D) / P(0) of feasible weights, with P(0) = sum_i l(y_i, 0); 0 if no row is kept.

    Args:
      gram: (n, n) K.
      y, alpha: (n,) float; alpha 0 outside `kept`.
      kept: (n,) bool, the rows of the problem.

    Cost: one product with K.
    """
    f, beta = _dot(gram, alpha), rho * alpha
    terms = loss.value(y, f) + loss.conjugate(y, beta) + beta * f
    size = jnp.where(kept, loss.value(y, jnp.zeros_like(y)), 0).sum()
    gap = jnp.maximum(jnp.where(kept, terms, 0).sum(), 0)
    return gap / jnp.where(size > 0, size, 1)


def ascend(
    gram: Array,
    y: Array,
    kept: Array,
    start: Array,
    *,
    loss: KernelLoss,
    rho: float | Array,
    tolerance: float | Array,
    epochs: int,
) -> Dual:
    """argmin (rho/2) alpha^T K alpha + sum of l(y_i, (K alpha)_i) over the kept rows.

    Args:
      gram: (n, n) float K, positive semi-definite.
      y: (n,) float.
      kept: (n,) bool, the rows of the problem.
      start: (n,) float, feasible: zeros, or the weights of a problem nearby.
      loss, rho: the problem, rho > 0.
      tolerance: relative gap that counts as solved, > 0.
      epochs: passes at most, >= 0; the polish of the hinge comes between two halves of them.

    Returns:
      `Dual`; the weights that came in, if they solve the problem already, bit for bit.

    Cost of an epoch: n^2, one row of K after another.
    """
    options = {"loss": loss, "rho": rho}

    def passes(state: tuple, enough: float | Array, most: int) -> tuple:
        def going(s: tuple) -> Array:
            return (s[1] > enough) & (s[2] < most)

        def epoch(s: tuple) -> tuple:
            alpha = _epoch(gram, y, s[0], kept, loss, rho)
            return alpha, relative_gap(gram, y, alpha, kept, **options), s[2] + 1

        return jax.lax.while_loop(going, epoch, state)

    alpha = jnp.where(kept, start, 0)
    state = (alpha, relative_gap(gram, y, alpha, kept, **options), jnp.int32(0))
    if loss.name == "hinge":

        def polished(s: tuple) -> tuple:
            better = _polish(gram, y, s[0], rho)
            gap = relative_gap(gram, y, better, kept, **options)
            good = gap < s[1]
            return jnp.where(good, better, s[0]), jnp.where(good, gap, s[1]), s[2]

        def more(s: tuple) -> tuple:
            s = passes(s, tolerance**0.5, epochs // 2)
            return polished(passes(polished(s), tolerance, epochs))

        state = jax.lax.cond(state[1] > tolerance, more, lambda s: s, state)
    else:
        state = passes(state, tolerance, epochs)
    alpha, gap, count = state
    status = jnp.where(gap <= tolerance, Solved.CONVERGED, Solved.EXHAUSTED)
    status = jnp.where(jnp.isfinite(gap), status, Solved.NONFINITE).astype(jnp.int32)
    return Dual(alpha, gap, count, status)


def _epoch(
    gram: Array, y: Array, alpha: Array, kept: Array, loss: KernelLoss, rho: float | Array
) -> Array:
    def coordinate(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        alpha, f = state
        k = gram[i, i]
        new = loss.coordinate(y[i], f[i] - k * alpha[i], k, jnp.asarray(rho, gram.dtype))
        new = jnp.where(kept[i], new, 0)
        return alpha.at[i].set(new), f + gram[i] * (new - alpha[i])

    return jax.lax.fori_loop(0, len(y), coordinate, (alpha, _dot(gram, alpha)))[0]


def _polish(gram: Array, y: Array, alpha: Array, rho: float | Array) -> Array:
    """alpha with its margin rows solved for at once; as it is, if that leaves the bounds."""
    bound = 1 / jnp.asarray(rho, gram.dtype)
    a = y * alpha
    margin = (a > 0) & (a < bound)
    inverse, definite = principal.invert(gram, margin)
    others = jnp.where(margin, 0, alpha)
    solved = _dot(inverse, jnp.where(margin, y - _dot(gram, others), 0))
    solved = solved + _dot(inverse, jnp.where(margin, y - _dot(gram, others + solved), 0))
    inside = ~margin | ((y * solved >= 0) & (y * solved <= bound))
    return jnp.where(definite & inside.all(), others + solved, alpha)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
