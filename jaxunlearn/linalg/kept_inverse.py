"""A dense inverse that is kept beside its matrix, and held against it after every change.

    P = (G + lambda I)^-1,      G' = G + s U U^T,      P' = P - s V K^-1 V^T
    V = P U,      K = I + s U^T V = L L^T,      residual = max_z |(G' + lambda I) P' z - z| / |z|

Where `woodbury` collects one more low-rank term for each change, this one folds it in: memory does
not grow, however many changes there are, and a product with P costs p^2. What rounding adds up is
seen by the residual on probes z of signs. P is made anew from G (Cholesky) when that is too large,
when K has no factor (as far as P can tell, more is taken away than there is), or when so many
columns change that it is cheaper. Without rounding nothing of all this is needed.

Taking variables S out of the matrix (G gets zeros there) needs no data:

    P' = P - P_S P_SS^-1 P_S^T,      and 1 / lambda on the diagonal at S.

That is the block inverse of `principal`, where variables come and go and the matrix stays; here
the variables stay, and the matrix changes by terms of low rank.

Woodbury (1950), Memorandum Report 42, Princeton; Golub and Van Loan (2013), section 2.1.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg import principal
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array

_ROOM = 10.0  # times the residual of a fresh inverse that is always tolerated
_USELESS = 0.1  # a residual of which no digit is left


class KeptInverse(NamedTuple):
    """(G + lambda I)^-1 and G; a pytree whose shapes never change."""

    gram: Array  # (p, p) G, positive semidefinite
    inverse: Array  # (p, p) P
    residual: Array  # [] float, of P against G, relative, over the probes
    fresh: Array  # [] float, the residual when P was last made from G
    renewals: Array  # [] int32, how often it was
    status: Array  # [] int32, a `Solved`: of the last change


def empty(size: int, regularisation: float, dtype: jnp.dtype) -> KeptInverse:
    """G = 0, P = I / lambda.

    Example:
      >>> print(empty(2, 0.5, jnp.float32).inverse)
      [[2. 0.]
       [0. 2.]]
    """
    zero = jnp.zeros((), dtype)
    inverse = jnp.eye(size, dtype=dtype) / regularisation
    counts = jnp.int32(0), jnp.int32(Solved.CONVERGED)
    return KeptInverse(jnp.zeros((size, size), dtype), inverse, zero, zero, *counts)


def change(
    kept: KeptInverse,
    columns: Array,
    *,
    sign: int,
    regularisation: float | Array,
    tolerance: float | Array | None = None,
) -> KeptInverse:
    """P and G with s U U^T added to G.

    Args:
      kept: of p variables.
      columns: U, (p, m); columns of zeros change nothing, so they may pad.
      sign: s, +1 to add and -1 to take away.
      regularisation: lambda > 0, the same always.
      tolerance: residual above which P is made anew; None: eps^(3/4) (float64 2e-12, float32
        6e-6). Ten times the residual of a fresh P is always tolerated.

    Returns:
      `KeptInverse`; its status speaks of this change.

    | situation                                     | status, result                               |
    |-----------------------------------------------|----------------------------------------------|
    | columns of zeros, or none                     | CONVERGED, nothing changes                   |
    | more taken away than there is (leverage >= 1) | INDEFINITE, nothing changes                  |
    | NaN or Inf in the columns                     | NONFINITE, nothing changes                   |
    | a fresh P has no right digit either           | STALLED: more regularisation, or float64     |

    Cost: 2 p^2 (3 m + 3) operations, or 2 p^3 where P is made anew; always if m > p / 4.

    Example:
      >>> kept = change(empty(2, 1.0, jnp.float32), jnp.ones((2, 1)), sign=1, regularisation=1.0)
      >>> print((3 * kept.inverse).round())
      [[ 2. -1.]
       [-1.  2.]]
    """
    p, m = columns.shape
    finite = jnp.isfinite(columns).all()
    u = jnp.where(finite, columns, 0).astype(kept.gram.dtype)
    if m == 0:
        return kept._replace(status=jnp.int32(Solved.CONVERGED))

    def anew(_: None) -> tuple[Array, Array, Array, Array]:
        gram = kept.gram + sign * _outer(u)
        inverse, definite = _inverted(gram, regularisation)
        gram = jnp.where(definite, gram, kept.gram)
        return gram, jnp.where(definite, inverse, kept.inverse), definite, definite

    if 4 * m > p:
        gram, inverse, definite, made = anew(None)
    else:
        v = _dot(kept.inverse, u)
        k = jnp.eye(m, dtype=u.dtype) + sign * _dot(u.T, v)
        lower = one_by_one(jnp.linalg.cholesky)((k + k.T) / 2)
        solvable = jnp.isfinite(lower).all()
        lower = jnp.where(solvable, lower, jnp.eye(m, dtype=u.dtype))
        w = one_by_one(_forward)(lower, v.T).T

        def folded(_: None) -> tuple[Array, Array, Array, Array]:
            true = jnp.asarray(True)
            gram, inverse = kept.gram + sign * _outer(u), kept.inverse - sign * _outer(w)
            return gram, inverse, true, ~true

        gram, inverse, definite, made = jax.lax.cond(solvable, folded, anew, None)
    status = jnp.where(definite, Solved.CONVERGED, Solved.INDEFINITE)
    status = jnp.where(finite, status, Solved.NONFINITE).astype(jnp.int32)
    changed = kept._replace(gram=gram, inverse=inverse, status=status)
    return _settled(changed, made, regularisation, tolerance)


def without(
    kept: KeptInverse,
    places: Array,
    valid: Array,
    *,
    regularisation: float | Array,
    tolerance: float | Array | None = None,
) -> KeptInverse:
    """P and G with variables taken out: rows and columns of zeros in G, 1 / lambda in P.

    Args:
      kept: of p variables.
      places: (k,) int in [0, p), distinct where valid.
      valid: (k,) bool; the others are padding.
      regularisation, tolerance: as for `change`.

    Cost: 2 p^2 (k + 5) operations.

    Example:
      >>> kept = change(empty(2, 1.0, jnp.float32), jnp.ones((2, 1)), sign=1, regularisation=1.0)
      >>> out = without(kept, jnp.array([1]), jnp.array([True]), regularisation=1.0)
      >>> print((2 * out.inverse).round())
      [[1. 0.]
       [0. 2.]]
    """
    p = len(kept.gram)
    gone = jnp.zeros(p, bool).at[places].max(valid)
    stays = (~gone).astype(kept.gram.dtype)
    inverse, _ = principal.remove(kept.inverse, places, valid)  # no factor: the residual will tell
    inverse = inverse + jnp.diag((1 - stays) / regularisation)
    gram = kept.gram * stays[:, None] * stays[None]
    changed = kept._replace(gram=gram, inverse=inverse, status=jnp.int32(Solved.CONVERGED))
    return _settled(changed, jnp.asarray(False), regularisation, tolerance)


def renewed(kept: KeptInverse, *, regularisation: float | Array) -> KeptInverse:
    """P made from G. Cost: 2 p^3."""
    inverse, definite = _inverted(kept.gram, regularisation)
    inverse = jnp.where(definite, inverse, kept.inverse)
    status = jnp.where(definite, Solved.CONVERGED, Solved.INDEFINITE).astype(jnp.int32)
    fresh = _residual(kept.gram, inverse, regularisation)
    status = jnp.where(definite & ~(fresh <= _USELESS), Solved.STALLED, status).astype(jnp.int32)
    return KeptInverse(kept.gram, inverse, fresh, fresh, kept.renewals + 1, status)


def _settled(
    kept: KeptInverse, made: Array, regularisation: float | Array, tolerance: float | Array | None
) -> KeptInverse:
    """With its residual, and made anew where that is too large; `made`: it has just been."""
    residual = _residual(kept.gram, kept.inverse, regularisation)
    least = float(jnp.finfo(kept.gram.dtype).eps) ** 0.75 if tolerance is None else tolerance
    enough = jnp.maximum(least, _ROOM * kept.fresh)
    kept = kept._replace(
        residual=residual,
        fresh=jnp.where(made, residual, kept.fresh),
        renewals=kept.renewals + made,
    )
    stale = ~(residual <= enough) & ~made & (kept.status == Solved.CONVERGED)

    def anew(_: None) -> KeptInverse:
        return renewed(kept, regularisation=regularisation)

    kept = jax.lax.cond(stale, anew, lambda _: kept, None)
    useless = (kept.status == Solved.CONVERGED) & ~(kept.residual <= _USELESS)
    return kept._replace(status=jnp.where(useless, Solved.STALLED, kept.status).astype(jnp.int32))


def _inverted(gram: Array, regularisation: float | Array) -> tuple[Array, Array]:
    """((G + lambda I)^-1, whether it is positive definite)."""
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    lower = one_by_one(jnp.linalg.cholesky)(gram + regularisation * eye)
    definite = jnp.isfinite(lower).all()
    half = one_by_one(_forward)(jnp.where(definite, lower, eye), eye)
    return _dot(half.T, half), definite


def _residual(gram: Array, inverse: Array, regularisation: float | Array) -> Array:
    """[] the largest |(G + lambda I) P z - z| / |z| over two vectors of signs."""
    p = len(gram)
    bits = jnp.arange(p, dtype=jnp.uint32)[:, None] * jnp.uint32(2654435761)
    z = 1 - 2 * ((bits >> jnp.array([[13, 17]], jnp.uint32)) & 1).astype(gram.dtype)
    through = _dot(inverse, z)
    error = _dot(gram, through) + regularisation * through - z
    return jnp.sqrt(jnp.square(error).sum(axis=0) / p).max()


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _outer(w: Array) -> Array:
    """W W^T; of one column as a product of entries, which fuses with what it is added to."""
    return w * w.T if w.shape[1] == 1 else _dot(w, w.T)


def _forward(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)
