"""Inverses of many small symmetric positive definite matrices, by products of their blocks.

    [A   B]^-1     [A^-1 + X S^-1 X^T   -X S^-1]
    [B^T C]     =  [   -S^-1 X^T           S^-1],      X = A^-1 B,    S = C - B^T X

A call of LAPACK for each matrix of 64 x 64 costs more than its arithmetic, and waits for threads.
Halving down to blocks of 16, which Gauss and Jordan eliminate, leaves nothing but products of whole
batches. No pivots are needed: every S of a positive definite matrix is positive definite. The
errors are those of an explicit inverse, cond(A) eps, so it suits preconditioners and inner solves
whose residual is checked, and not a final answer.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array

_LEAF = 16


def small_inverses(a: Array) -> Array:
    """A^-1 of each matrix of a batch.

    Args:
      a: (c, n, n) float, symmetric positive definite each; n up to some hundreds.

    Returns:
      (c, n, n). What is not positive definite gives numbers without meaning, or NaN, in its own
      matrix only.

    Raises:
      ValueError: not (c, n, n).

    Cost: about 3 n^3 multiplications for each matrix, memory of a few batches.

    Example:
      >>> print(small_inverses(jnp.array([[[2.0, 1.0], [1.0, 1.0]]])))
      [[[ 1. -1.]
        [-1.  2.]]]
    """
    if a.ndim != 3 or a.shape[1] != a.shape[2]:
        raise ValueError(f"small_inverses: expected matrices (c, n, n), got {a.shape}.")
    n = a.shape[1]
    if n <= _LEAF:
        return _gauss_jordan(a)
    half = n // 2
    b = a[:, :half, half:]
    first = small_inverses(a[:, :half, :half])
    x = _product(first, b)
    last = small_inverses(a[:, half:, half:] - _product(b.mT, x))
    side = -_product(x, last)
    top = first - _product(side, x.mT)
    return jnp.concatenate(
        [jnp.concatenate([top, side], axis=2), jnp.concatenate([side.mT, last], axis=2)], axis=1
    )


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _gauss_jordan(a: Array) -> Array:
    """Column by column: the pivot's row is scaled, and subtracted from the others."""

    def eliminate(k: Array, a: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(a, k, axis=1, keepdims=True)  # (c, 1, n)
        column = jax.lax.dynamic_index_in_dim(a, k, axis=2, keepdims=True)  # (c, n, 1)
        pivot = jax.lax.dynamic_index_in_dim(row, k, axis=2, keepdims=True)  # (c, 1, 1)
        is_row = (jnp.arange(a.shape[1]) == k)[None, :, None]
        is_column = (jnp.arange(a.shape[2]) == k)[None, None, :]
        outside = a - column * row / pivot
        inside_row = jnp.where(is_column, 1, row) / pivot
        inside_column = -column / pivot
        return jnp.where(is_row, inside_row, jnp.where(is_column, inside_column, outside))

    return jax.lax.fori_loop(0, a.shape[1], eliminate, a)
