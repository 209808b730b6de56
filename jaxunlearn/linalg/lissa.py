"""LiSSA: the Neumann series of an inverse, one product a term.

    u_{k+1} = b + (1 - d) u_k - A u_k / s,   u_0 = b;      x = u / s  ->  (A + d s I)^{-1} b

Agarwal, Bullins and Hazan (2017), "Second-Order Stochastic Optimization for Machine Learning in
Linear Time", arXiv:1602.03943; damping d and scale s as in the code of Koh and Liang (2017),
arXiv:1703.04730. It converges exactly if 0 < eig(A)/s + d < 2.

Departures: 1. damping is given in the units of A: `damping` = d s, so that the system solved does
not change with s. 2. The product is always the same one, no random batch: the step u_{k+1} - u_k is
then the residual of x_k, and grows only if some |1 - eig/s - d| > 1, which is how divergence is
seen at the first sign and not hidden by an early stop. 3. It stops at a tolerance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.linalg.conjugate_gradients import _check
from jaxunlearn.linalg.solution import Solution, Solved, norm, unit, while_loop
from jaxunlearn.typing import Array, Params


class _State(NamedTuple):
    u: Params
    residual: Array  # [] |b - (A + damping I) u/s| / |b|
    r: Params  # that residual as a vector
    iteration: Array  # [] int32
    diverged: Array  # [] bool


def lissa(
    matvec: Callable[[Params], Params],
    b: Params,
    *,
    scale: float | Array,
    damping: float | Array = 0.0,
    tolerance: float = 1e-4,
    iterations: int = 1000,
    on_host: bool = False,
) -> Solution:
    """Solves (A + damping I) x = b by u <- b + (1 - damping/s) u - A u/s, x = u/s.

    Args:
      matvec: v -> A v on trees like b, symmetric.
      b: tree of float arrays.
      scale: s, above half the largest eigenvalue of A + damping I. [] > 0.
      damping: [] >= 0, in the units of A (the papers' d is damping / s).
      tolerance, iterations, on_host: as for `conjugate_gradients`.

    Returns:
      `Solution`, of b's tree and dtypes.

    Raises:
      ValueError: a constant out of range.

    | situation                                | status, x                                  |
    |------------------------------------------|--------------------------------------------|
    | b = 0                                    | CONVERGED, zeros                           |
    | an eigenvalue outside (0, 2 s), seen by b | DIVERGED, the iterate before it grew       |
    | iterations ran out                       | EXHAUSTED, the last iterate                |
    | NaN or Inf                               | NONFINITE, the last finite iterate         |

    Cost: one product an iteration; about s / (smallest eigenvalue + damping) log(1/tolerance) of
    them, the square of what conjugate gradients need.

    Example:
      >>> A = jnp.diag(jnp.array([1.0, 3.0]))
      >>> out = lissa(lambda v: A @ v, jnp.array([2.0, 4.0]), scale=4.0, damping=1.0)
      >>> print(out.x.round(3))
      [1. 1.]
    """
    _check("lissa", tolerance, iterations)
    numbers = [n for n in (scale, damping) if isinstance(n, int | float)]
    if (isinstance(scale, int | float) and not scale > 0) or not all(n >= 0 for n in numbers):
        raise ValueError(
            f"lissa: expected scale > 0 and damping >= 0, got {scale=}, {damping=}. Scale must "
            "exceed half the largest eigenvalue."
        )
    scaled, size = unit(b)
    length = norm(scaled)
    dtype = length.dtype
    s, shift = jnp.asarray(scale, dtype), jnp.asarray(damping, dtype)
    rounding = jnp.sqrt(jnp.finfo(dtype).eps)  # a residual below it may grow by rounding alone

    def remainder(u: Params) -> Params:
        return jax.tree.map(
            lambda f, a, h: (f - (h + shift * a) / s).astype(f.dtype), scaled, u, matvec(u)
        )

    def relative(r: Params) -> Array:
        return norm(r) / jnp.where(length > 0, length, 1)

    def going(st: _State) -> Array:
        return ~st.diverged & (st.iteration < iterations) & (st.residual > tolerance)

    def step(st: _State) -> _State:
        u = optax.tree.add(st.u, st.r)
        r = remainder(u)
        residual = relative(r)
        grew = (residual > 1.001 * st.residual) & (residual > rounding)
        bad = grew | ~jnp.isfinite(residual)
        u, r, kept = optax.tree.where(bad, (st.u, st.r, st.residual), (u, r, residual))
        return _State(u, kept, r, st.iteration + 1, bad)

    # u_0 = b and not 0: the series begins with its first term
    first = remainder(scaled)
    start = _State(scaled, relative(first), first, jnp.int32(1), jnp.array(False))
    outside = start.residual > 1.001  # |I - M| > 1 already on b itself
    end = while_loop(going, step, start._replace(diverged=outside), on_host=on_host)
    status = jnp.where(end.residual <= tolerance, Solved.CONVERGED, Solved.EXHAUSTED)
    status = jnp.where(end.diverged, Solved.DIVERGED, status)
    finite = jnp.isfinite(length) & jnp.isfinite(end.residual)
    status = jnp.where(finite, status, Solved.NONFINITE)
    x = jax.tree.map(lambda a: jnp.where(finite, a * (size / s), 0).astype(a.dtype), end.u)
    return Solution(x, status.astype(jnp.int32), end.residual, end.iteration)
