"""Positive definite systems, solved by a Cholesky factor and checked.

    A = L L^T,     x = L^-T L^-1 b,     residual = |b - A x| / |b|

Golub and Van Loan (2013), "Matrix Computations", section 4.2.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solution, Solved
from jaxunlearn.typing import Array


def psd_solve(matrix: Array, b: Array, *, tolerance: float = 1e-4) -> Solution:
    """Solves A x = b for a symmetric positive definite A.

    Args:
      matrix: (p, p) float; the mean of it and its transpose is what is factored.
      b: (p,) float.
      tolerance: relative residual |b - A x| / |b| that counts as solved, > 0.

    Returns:
      `Solution` with 0 iterations; x is zeros where there is no factor.

    Raises:
      ValueError: shapes do not fit, or a tolerance that is not positive.

    | situation                 | status                                               |
    |---------------------------|------------------------------------------------------|
    | b = 0                     | CONVERGED                                            |
    | no Cholesky factor        | INDEFINITE: add damping                              |
    | residual above tolerance  | STALLED: ill-conditioned; add damping or use float64 |
    | NaN or Inf in A or b      | NONFINITE                                            |

    Cost: p^3/3 + 3 p^2 operations, memory 2 p^2.

    Example:
      >>> out = psd_solve(jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 4.0]))
      >>> print(out.x.round(4))
      [1. 1.]
    """
    if not tolerance > 0:
        raise ValueError(f"psd_solve: expected tolerance > 0, got {tolerance=}.")
    if matrix.ndim != 2 or matrix.shape != 2 * b.shape:
        raise ValueError(
            "psd_solve: expected a matrix (p, p) and a vector (p,), "
            f"got {matrix.shape} and {b.shape}."
        )
    given = jnp.isfinite(matrix).all() & jnp.isfinite(b).all()
    factor = one_by_one(jnp.linalg.cholesky)(matrix)  # NaN where there is none
    definite = jnp.isfinite(factor).all()
    safe = jnp.where(definite, factor, jnp.eye(b.size, dtype=factor.dtype))

    x = one_by_one(_solve)(safe, b)
    x = jnp.where(definite & jnp.isfinite(x).all(), x, 0)
    length = jnp.linalg.norm(b)
    residual = jnp.linalg.norm(b - matrix @ x) / jnp.where(length > 0, length, 1)
    status = jnp.where(residual <= tolerance, Solved.CONVERGED, Solved.STALLED)
    status = jnp.where(definite, status, Solved.INDEFINITE)
    status = jnp.where(given & jnp.isfinite(residual), status, Solved.NONFINITE)
    return Solution(x, status.astype(jnp.int32), residual, jnp.int32(0))


def _solve(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve((lower, True), b)
