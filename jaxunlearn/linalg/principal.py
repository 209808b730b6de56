"""The inverse of a principal submatrix whose rows come and go; no shape ever changes.

    G_SS = (M_SS)^-1,   zero elsewhere

    S loses F     G' = G - G_:F (G_FF)^-1 G_F:
    S gains F     G' = G + [G M_SF; -I] C^-1 [G M_SF; -I]^T,     C = M_FF - M_FS G M_SF

Both are the block inverse, read in one direction and in the other, so that what was lost and is
gained again gives G back. M is symmetric and positive definite on S; C and G_FF are then too, and a
Cholesky factor W W^T of either makes the change V V^T of one thin triangular solve. Banachiewicz
(1937); Golub and Van Loan (2013), "Matrix Computations", section 2.1.4.

The matrix stays and its variables come and go. Where the variables stay and the matrix changes by
terms of low rank, see `kept_inverse`, which drops variables by `remove`, and `woodbury`.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.typing import Array


def invert(matrix: Array, kept: Array) -> tuple[Array, Array]:
    """(M_SS)^-1 where `kept`, zero elsewhere.

    Args:
      matrix: (n, n) float, symmetric.
      kept: (n,) bool, S.

    Returns:
      (G (n, n), definite [] bool); G is zero if M_SS has no Cholesky factor.

    Cost: n^3 operations, whatever the size of S; memory 3 n^2.

    Example:
      >>> print(invert(jnp.diag(jnp.array([4.0, 16.0])), jnp.array([True, False]))[0])
      [[0.25 0.  ]
       [0.   0.  ]]
    """
    both = kept[:, None] & kept[None]
    eye = jnp.eye(len(kept), dtype=matrix.dtype)
    lower = one_by_one(jnp.linalg.cholesky)(jnp.where(both, matrix, eye))
    inverse = one_by_one(_solve)(lower, eye)
    definite = jnp.isfinite(inverse).all()
    return jnp.where(both & definite, inverse, 0), definite


def remove(inverse: Array, rows: Array, valid: Array) -> tuple[Array, Array]:
    """G for S without F.

    Args:
      inverse: (n, n) G for S.
      rows: (m,) int, distinct members of S where `valid`, anything in [0, n) elsewhere.
      valid: (m,) bool; what is not is padding.

    Returns:
      (G' (n, n), definite [] bool); rows and columns of F are exactly 0. If G_FF is not positive
      definite, G has lost its digits and G' = G.

    Cost: 2 m n^2 + m^3 / 3; memory n^2 + 2 m n.
    """
    across = jnp.where(valid[:, None], inverse[rows], 0)
    lower = _cholesky(inverse[rows][:, rows], valid)
    half = one_by_one(_half)(lower, across)
    definite = jnp.isfinite(half).all()
    gone = jnp.zeros(len(inverse), bool).at[rows].max(valid)
    changed = jnp.where(gone[:, None] | gone[None], 0, inverse - _gram(half))
    return jnp.where(definite, changed, inverse), definite


def add(
    inverse: Array, matrix: Array, kept: Array, rows: Array, valid: Array
) -> tuple[Array, Array, Array]:
    """G for S with F.

    Args:
      inverse: (n, n) G for S.
      matrix: (n, n) M, symmetric; only entries of S and F are read.
      kept: (n,) bool, S.
      rows: (m,) int, distinct and outside S where `valid`, anything in [0, n) elsewhere.
      valid: (m,) bool.

    Returns:
      (G' (n, n), definite [] bool, smallest [] float): the smallest squared pivot of C relative to
      M's diagonal, 1 if nothing is added: near the machine epsilon the new rows depend on the old.
      If C is not positive definite, G' = G.

    Cost: 4 m n^2 + m^3 / 3; memory n^2 + 3 m n.
    """
    n = len(inverse)
    across = jnp.where(valid[:, None] & kept[None], matrix[rows], 0)
    ahead = jnp.matmul(across, inverse, precision=jax.lax.Precision.HIGHEST)
    own = matrix[rows][:, rows]
    schur = own - jnp.matmul(ahead, across.T, precision=jax.lax.Precision.HIGHEST)
    eye = jnp.eye(len(rows), dtype=matrix.dtype)
    schur = jnp.where(valid[:, None] & valid[None], (schur + schur.T) / 2, eye)
    lower = one_by_one(jnp.linalg.cholesky)(schur)
    unit = jnp.where(valid[:, None], jax.nn.one_hot(rows, n, dtype=matrix.dtype), 0)
    half = one_by_one(_half)(lower, ahead - unit)
    definite = jnp.isfinite(half).all()
    changed = inverse + _gram(jnp.where(definite, half, 0))
    pivots = jnp.diag(lower) ** 2 / jnp.where(valid, jnp.diag(own), 1)
    return changed, definite, jnp.where(definite, pivots.min(initial=1), 0)


def downdate(across: Array, values: Array, rows: Array, valid: Array) -> tuple[Array, Array]:
    """What the solution v = G b for S becomes for S without F: v - G_:F (G_FF)^-1 v_F.

    Args:
      across: (m, n) G_F:, the rows of G that go.
      values: (n, k) v.
      rows, valid: as for `remove`.

    Returns:
      (v' (n, k), exactly 0 on F, definite [] bool); v' = v if G_FF is not positive definite.

    Cost: m^3 / 3 + m n k.
    """
    across = jnp.where(valid[:, None], across, 0)
    own = jnp.where(valid[:, None], values[rows], 0)
    step = one_by_one(_solve)(_cholesky(across[:, rows], valid), own)
    definite = jnp.isfinite(step).all()
    gone = jnp.zeros(len(values), bool).at[rows].max(valid)
    changed = values - jnp.matmul(across.T, step, precision=jax.lax.Precision.HIGHEST)
    changed = jnp.where(gone[:, None], 0, changed)
    return jnp.where(definite, changed, values), definite


def _cholesky(own: Array, valid: Array) -> Array:
    eye = jnp.eye(len(own), dtype=own.dtype)
    own = jnp.where(valid[:, None] & valid[None], (own + own.T) / 2, eye)
    return one_by_one(jnp.linalg.cholesky)(own)


def _gram(half: Array) -> Array:
    return jnp.matmul(half.T, half, precision=jax.lax.Precision.HIGHEST)


def _solve(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve((lower, True), b)


def _half(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)
