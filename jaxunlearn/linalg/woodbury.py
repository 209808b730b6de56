"""An inverse that follows its matrix when rows of data are added or removed (Woodbury).

    (H + s U U^T)^-1 = H^-1 - s V K^-1 V^T,      V = H^-1 U,      K = I + s U^T V,      s = +-1

Every change is one more low-rank term of the inverse, so that a sequence of them needs no new
factorisation of H:

    H^-1 = B^-1 + G diag(t) G^T,      G gains V K^-1/2,      t gains -s

A removal (s = -1) is possible where K is positive definite: the eigenvalues of I - K are leverages,
the share of the curvature along a direction that the removed rows own, and at 1 nothing would
remain. K is taken apart by its eigenvalues and not by a Cholesky factor: they are what is reported,
and raising the smallest is the fallback. Woodbury (1950), Memorandum Report 42, Princeton; for the
accuracy of downdates, Stewart (1979), J. Inst. Maths Applics 23, 203-213.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.typing import Array


class Status(enum.IntEnum):
    """How a change of the inverse went."""

    SOLVED = 0
    CLIPPED = 1  # K had eigenvalues below epsilon, which were raised to it
    NOT_FINITE = 2  # NaN or Inf came in, or the system is beyond the dtype


class Inverse(NamedTuple):
    """H^-1 = B^-1 + G diag(t) G^T of a symmetric positive definite H; a pytree."""

    base: Array  # (p,) the diagonal of a diagonal B > 0, or (p, p) its lower Cholesky factor
    factor: Array  # (p, r) G, one column for each change of rank one
    sign: Array  # (r,) t, +1 for what was removed, -1 for what was added


class Capacitance(NamedTuple):
    """What is known of K, over all groups of columns."""

    status: Array  # [] int32, a `Status`
    smallest: Array  # [] float, smallest eigenvalue of K before clipping; 1 if nothing changed
    clipped: Array  # [] int32, eigenvalues that were raised to epsilon


def inverse(matrix: Array) -> Inverse:
    """H^-1 for a diagonal H given by its diagonal (p,), or a full symmetric H (p, p).

    Args:
      matrix: float, positive (definite).

    Returns:
      An `Inverse` without terms. An H that is not positive definite gives NaN, which every later
      change reports as `Status.NOT_FINITE`.

    Raises:
      ValueError: neither (p,) nor (p, p).

    Cost: p^3 / 3 for a full H, none for a diagonal one.

    Example:
      >>> print(apply(inverse(jnp.array([2.0, 4.0])), jnp.ones(2)))
      [0.5  0.25]
    """
    if matrix.ndim not in (1, 2) or matrix.shape[0] != matrix.shape[-1]:
        raise ValueError(
            f"inverse: expected a diagonal (p,) or a square matrix (p, p), got {matrix.shape}."
        )
    diagonal = jnp.where(matrix > 0, matrix, jnp.nan) if matrix.ndim == 1 else matrix
    base = diagonal if matrix.ndim == 1 else one_by_one(jnp.linalg.cholesky)(matrix)
    return Inverse(base, jnp.zeros((len(matrix), 0), matrix.dtype), jnp.zeros(0, matrix.dtype))


def apply(inv: Inverse, x: Array) -> Array:
    """H^-1 x for a vector (p,) or columns (p, m).

    Cost: p (1 + r) for each column over a diagonal base, p (p + r) over a full one.
    """
    columns = x if x.ndim == 2 else x[:, None]
    terms = _dot(inv.factor, inv.sign[:, None] * _dot(inv.factor.T, columns))
    return (_unwhiten(inv, _whiten(inv, columns)) + terms).reshape(x.shape)


def rank_change(
    inv: Inverse, columns: Array, *, sign: int = -1, epsilon: float | None = None
) -> tuple[Inverse, Capacitance]:
    """(H + s U U^T)^-1, with the columns of U taken group by group.

    Args:
      inv: H^-1, p x p.
      columns: U, (p, m), or (k, p, m) for k groups one after another; the result is the same up to
        rounding as long as nothing is clipped (clipping compounds over groups), and no system
        larger than min(m, p) is solved.
      sign: s, -1 to remove and +1 to add.
      epsilon: eigenvalues of K below it are raised to it, in (0, 1]; None: the square root of the
        machine epsilon, under which half the digits of an eigenvalue are rounding.

    Returns:
      The new inverse, with k min(m, p) more columns, and what K was like.

    Raises:
      ValueError: shapes that do not fit, a sign that is not +-1, an epsilon outside (0, 1].

    | situation                                | result                                           |
    |------------------------------------------|--------------------------------------------------|
    | columns of zeros, or no column           | H^-1                                             |
    | more columns than p                      | the same change by p columns                     |
    | removed what was added (any order)       | H^-1 again, to rounding                          |
    | removed more than H holds                | CLIPPED; the result is positive definite still   |
    | NaN or Inf in H or U                     | NOT_FINITE; the inverse that came in (terms 0)   |

    Cost: for each group m applications of H^-1, p m^2 and about 9 m^3 for the eigenvalues.

    Example:
      >>> inv, k = rank_change(inverse(jnp.array([2.0, 4.0])), jnp.array([[1.0], [0.0]]))
      >>> print(apply(inv, jnp.ones(2)), k.smallest)
      [1.   0.25] 0.5
    """
    p = len(inv.base)
    if columns.ndim not in (2, 3) or columns.shape[-2] != p:
        raise ValueError(
            f"rank_change: expected columns ({p}, m) or (k, {p}, m) for this inverse of {p} "
            f"variables, got {columns.shape}."
        )
    if sign not in (-1, 1):
        raise ValueError(f"rank_change: sign must be -1 (remove) or +1 (add), got {sign}.")
    dtype = inv.base.dtype
    least = float(jnp.finfo(dtype).eps) ** 0.5 if epsilon is None else epsilon
    if not 0 < least <= 1:
        raise ValueError(f"rank_change: epsilon must lie in (0, 1], got {least}.")
    groups = (columns if columns.ndim == 3 else columns[None]).astype(dtype)
    wide = groups.shape[2] > p
    if wide:  # U U^T = R^T R of U^T = Q R: p columns do, and K loses eigenvalues of 1 only
        groups = jax.vmap(one_by_one(_triangle))(groups)
    count, _, width = groups.shape
    if count * width == 0:
        return inv, Capacitance(jnp.int32(Status.SOLVED), jnp.ones((), dtype), jnp.int32(0))
    rank = inv.factor.shape[1]
    room = jnp.zeros((p, count * width), dtype)
    grown = Inverse(
        inv.base,
        jnp.concatenate([inv.factor, room], axis=1),
        jnp.concatenate([inv.sign, jnp.full(count * width, -sign, dtype)]),
    )

    def change(carry: Inverse, group: tuple[Array, Array]) -> tuple[Inverse, tuple[Array, Array]]:
        place, u = group
        half, inside = _whiten(carry, u), _dot(carry.factor.T, u)
        # U^T H^-1 U as a sum of products of a matrix with its own transpose: symmetric by birth
        leverage = _dot(half.T, half) + _dot(inside.T, carry.sign[:, None] * inside)
        values, vectors = one_by_one(_eigh)(jnp.eye(width, dtype=dtype) + sign * leverage)
        v = _unwhiten(carry, half) + _dot(carry.factor, carry.sign[:, None] * inside)
        new = _dot(v, vectors / jnp.sqrt(jnp.maximum(values, least))[None])
        factor = jax.lax.dynamic_update_slice(carry.factor, new, (0, rank + place * width))
        return carry._replace(factor=factor), (values.min(), (values < least).sum())

    changed, (smallest, clipped) = jax.lax.scan(change, grown, (jnp.arange(count), groups))
    lowest = jnp.minimum(smallest.min(), 1) if wide else smallest.min()
    clipped = clipped.sum().astype(jnp.int32)
    finite = jnp.isfinite(changed.factor).all() & jnp.isfinite(inv.base).all()
    kept = jnp.concatenate([inv.factor, jnp.where(finite, changed.factor[:, rank:], 0)], axis=1)
    status = jnp.where(clipped > 0, Status.CLIPPED, Status.SOLVED)
    status = jnp.where(finite, status, Status.NOT_FINITE).astype(jnp.int32)
    return changed._replace(factor=kept), Capacitance(status, lowest, clipped)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def _triangle(columns: Array) -> Array:
    return jnp.linalg.qr(columns.T, mode="r").T


def _solve(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)


def _solve_transposed(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True, trans=1)


def _whiten(inv: Inverse, columns: Array) -> Array:
    """B^-1/2 x: L^-1 x, or x / sqrt(B) for a diagonal."""
    if inv.base.ndim == 1:
        return columns / jnp.sqrt(inv.base)[:, None]
    return one_by_one(_solve)(inv.base, columns)


def _unwhiten(inv: Inverse, columns: Array) -> Array:
    """The transpose of `_whiten`."""
    if inv.base.ndim == 1:
        return columns / jnp.sqrt(inv.base)[:, None]
    return one_by_one(_solve_transposed)(inv.base, columns)
