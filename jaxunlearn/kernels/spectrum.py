"""Leaving rows out of kernel ridge when the ridge is rho = n lambda, a mean of losses.

    alpha' = (K_SS + (n - |F|) lambda I)^-1 y_S

The diagonal of M moves with the number of rows, so that the inverse that was held is of no use. An
eigendecomposition K = U diag(s) U^T gives G(rho) = U diag(1 / (s + rho)) U^T for any rho without a
factorisation; at the new rho the block inverse of `linalg.principal` leaves F out as usual.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxunlearn.kernels.slots import Slot, requested
from jaxunlearn.kernels.system import dot
from jaxunlearn.linalg import principal
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.typing import Array


class Spectrum(NamedTuple):
    """K = U diag(s) U^T, for ridges that change with the number of rows."""

    vectors: Array  # (n, n) U
    values: Array  # (n,) s


def spectrum(gram: Array) -> Spectrum:
    """The eigendecomposition of K (n, n). Cost: about 9 n^3."""
    return Spectrum(*one_by_one(_eigh)(gram))


def leave_out_per_row(of: Spectrum, y: Array, rows: Array, decay: float | Array) -> Array:
    """alpha' = (K_SS + (n - |F|) lambda I)^-1 y_S, the ridge that shrinks with the rows.

    Args:
      of: K = U diag(s) U^T of all n rows.
      y: (n, k) float.
      rows: (m,) int, distinct ids F in [0, n); padding is any negative number.
      decay: lambda > 0, the ridge per row.

    Returns:
      (n, k), 0 on F; equal to a refit on S. Traceable; `vmap` over `rows` is many requests.

    Cost: 2 n^2 (m + 2 k) + m^3 / 3, no factorisation of n x n.

    Example:
      >>> out = leave_out_per_row(spectrum(jnp.eye(3)), jnp.ones((3, 1)), jnp.array([1]), 0.5)
      >>> print(out[:, 0])
      [0.5 0.  0.5]
    """
    n = len(y)
    places, valid = requested(rows, jnp.full(n, Slot.LEARNT), Slot.LEARNT)
    scale = 1 / (of.values + (n - valid.sum()) * decay)
    everything = dot(of.vectors, scale[:, None] * dot(of.vectors.T, y))
    across = dot(of.vectors[places] * scale[None], of.vectors.T)
    return principal.downdate(across, everything, places, valid)[0]


def _eigh(gram: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(gram)
    return vectors, values
