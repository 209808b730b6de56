"""Conjugate gradients on pytrees, for a symmetric positive definite A known by its products.

    a_k = r_k^T z_k / p_k^T A p_k,     x_{k+1} = x_k + a_k p_k,     r_{k+1} = r_k - a_k A p_k
    z_{k+1} = M^-1 r_{k+1},            p_{k+1} = z_{k+1} + (r_{k+1}^T z_{k+1} / r_k^T z_k) p_k

Hestenes and Stiefel (1952), doi:10.6028/jres.049.044. `jax.scipy.sparse.linalg.cg` is the same
recursion; this one says how it ended. Departures: 1. it stops at a direction with p^T A p <= 0
instead of following it; 2. the residual reported is recomputed from x, because the recursive one
keeps falling in finite precision after the true one has stopped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.linalg.solution import Solution, Solved, dot, norm, unit, while_loop
from jaxunlearn.typing import Array, Params

_RUNNING = -1


class _State(NamedTuple):
    x: Params
    r: Params  # recursive residual
    p: Params  # direction
    rr: Array  # [] |r|^2
    rz: Array  # [] r^T M^-1 r
    iteration: Array  # [] int32
    status: Array  # [] int32


def conjugate_gradients(
    matvec: Callable[[Params], Params],
    b: Params,
    *,
    tolerance: float | Array = 1e-4,
    iterations: int = 100,
    precondition: Callable[[Params], Params] | None = None,
    on_host: bool = False,
) -> Solution:
    """Solves A x = b for a symmetric positive definite A.

    Args:
      matvec: v -> A v on trees like b.
      b: tree of float arrays.
      tolerance: relative residual |b - A x| / |b| that counts as solved, > 0. float32 reaches about
        1e-7 times the condition number.
      iterations: at most, >= 1. In exact arithmetic p suffice, for p unknowns.
      precondition: v -> M^-1 v for a symmetric positive definite M that resembles A; None: v.
      on_host: True if `matvec` reads streaming data and cannot be traced.

    Returns:
      `Solution`, of b's tree and dtypes.

    Raises:
      ValueError: a tolerance or a number of iterations out of range.

    | situation                     | status, x                                                    |
    |-------------------------------|--------------------------------------------------------------|
    | b = 0                         | CONVERGED, zeros                                             |
    | iterations ran out            | EXHAUSTED, the last iterate                                  |
    | recursion done, x not         | STALLED, the last iterate: damp more or use float64          |
    | a direction with p^T A p <= 0 | INDEFINITE, the iterate before it                            |
    | NaN or Inf                    | NONFINITE, the last finite iterate                           |

    Cost: one product an iteration and one for the check; memory of four vectors.

    Example:
      >>> A = jnp.array([[2.0, 1.0], [1.0, 3.0]])
      >>> out = conjugate_gradients(lambda v: A @ v, jnp.array([3.0, 4.0]))
      >>> print(out.x.round(4), Solved(int(out.status)).name, out.iterations)
      [1. 1.] CONVERGED 2
    """
    _check("conjugate_gradients", tolerance, iterations)
    scaled, scale = unit(b)
    bb = dot(scaled, scaled)
    enough = (tolerance / 2) ** 2 * bb  # stricter than asked, so that rounding does not decide

    def going(s: _State) -> Array:
        return (s.status == _RUNNING) & (s.iteration < iterations) & (s.rr > enough)

    def step(s: _State) -> _State:
        Ap = matvec(s.p)
        pAp = dot(s.p, Ap)
        positive = pAp > 0
        a = s.rz / jnp.where(positive, pAp, 1)
        x, r = optax.tree.add_scale(s.x, a, s.p), optax.tree.add_scale(s.r, -a, Ap)
        z = r if precondition is None else precondition(r)
        rr, rz = dot(r, r), dot(r, z)
        finite = jnp.isfinite(pAp) & jnp.isfinite(rr) & jnp.isfinite(rz)
        good = positive & finite
        status = jnp.where(good, _RUNNING, jnp.where(finite, Solved.INDEFINITE, Solved.NONFINITE))
        p = optax.tree.add_scale(z, rz / s.rz, s.p)
        x, r, p, rr, rz = optax.tree.where(good, (x, r, p, rr, rz), (s.x, s.r, s.p, s.rr, s.rz))
        return _State(x, r, p, rr, rz, s.iteration + 1, status.astype(jnp.int32))

    z = scaled if precondition is None else precondition(scaled)
    x = optax.tree.zeros_like(scaled)
    running = jnp.int32(_RUNNING)
    start = _State(x, scaled, z, bb, dot(scaled, z), jnp.int32(0), running)
    end = while_loop(going, step, start, on_host=on_host)
    residual = norm(optax.tree.sub(scaled, matvec(end.x))) / jnp.sqrt(jnp.where(bb > 0, bb, 1))
    ran_out = jnp.where(end.rr > enough, Solved.EXHAUSTED, Solved.STALLED)
    judged = jnp.where(residual <= tolerance, Solved.CONVERGED, ran_out)
    status = jnp.where(end.status == _RUNNING, judged, end.status)
    status = jnp.where(jnp.isfinite(bb) & jnp.isfinite(residual), status, Solved.NONFINITE)
    x = jax.tree.map(lambda a: jnp.where(jnp.isfinite(scale), a * scale, 0).astype(a.dtype), end.x)
    return Solution(x, status.astype(jnp.int32), residual, end.iteration)


def _check(name: str, tolerance: Any, iterations: int) -> None:
    known = isinstance(tolerance, int | float)
    if (known and not tolerance > 0) or iterations < 1:
        raise ValueError(
            f"{name}: expected tolerance > 0 and iterations >= 1, got {tolerance=}, {iterations=}."
        )
