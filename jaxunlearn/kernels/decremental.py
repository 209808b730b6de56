"""Support vectors whose weights are led to 0 along a path on which the rest stays optimal.

    min_a  (1/2) a^T Q a - sum a,    0 <= a <= C = 1 / rho,    Q_ij = y_i y_j K_ij,    alpha = y a

    alpha_F(t) = (1 - t) alpha_F(0)         the rows to forget, t from 0 to 1
    d alpha_M  = - (K_MM)^-1 K_MF d alpha_F           margin rows keep y f = 1
    error rows (a = C, y f < 1) and rest rows (a = 0, y f > 1) do not move

The path is straight until a margin row reaches 0 or C and leaves M, or an error or rest row reaches
its margin and enters M; then its direction is computed anew, from (K_MM)^-1 with one row less or
more (`linalg.principal`). At t = 1 the rest is optimal for the problem that never had F, exactly.

Cauwenberghs and Poggio (2000), "Incremental and Decremental Support Vector Machine Learning".
Departures: 1. no intercept (the machine of arXiv:2111.06063 has none), hence no equality constraint
in the system of the margin rows; 2. all of F goes at once, along one path, instead of one row after
another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.linalg import principal
from jaxunlearn.typing import Array

_REST, _MARGIN, _ERROR, _GONE = range(4)


class Path(NamedTuple):
    """Where the path ended; a pytree."""

    alpha: Array  # (n,) float; 0 on F if it arrived
    arrived: Array  # [] bool; False if rows depend on each other or the events ran out
    events: Array  # [] int32, rows that entered or left the margin


class _Walk(NamedTuple):
    alpha: Array  # (n,)
    f: Array  # (n,) K alpha
    side: Array  # (n,) int32
    inverse: Array  # (n, n), (K_MM)^-1 and zeros
    t: Array  # []
    events: Array  # [] int32
    sound: Array  # [] bool


def decrement(
    gram: Array, y: Array, alpha: Array, kept: Array, gone: Array, rho: float | Array
) -> Path:
    """The optimal weights without F, from the optimal ones with it.

    Args:
      gram: (n, n) float K, positive definite among margin rows.
      y: (n,) float, -1 or 1.
      alpha: (n,) float, optimal for the rows kept; y alpha in [0, 1 / rho], exactly so at the ends.
      kept: (n,) bool, the rows of the problem, F among them.
      gone: (n,) bool, F.
      rho: > 0.

    | situation                          | result                                              |
    |------------------------------------|-----------------------------------------------------|
    | F has no support vector            | alpha bit-identical, no event                       |
    | margin rows depend on each other   | arrived False, the weights where the path stopped   |
    | more than 10 n + 10 events         | arrived False: a cycle of ties                      |

    Cost: n^3 for (K_MM)^-1 at the start, then about 6 n^2 for each event; memory 3 n^2.
    """
    bound = 1 / jnp.asarray(rho, gram.dtype)
    n = len(y)
    tie = 8 * jnp.finfo(gram.dtype).eps
    a = y * alpha
    side = jnp.where(a <= 0, _REST, jnp.where(a >= bound, _ERROR, _MARGIN))
    side = jnp.where(kept & ~gone, side, _GONE).astype(jnp.int32)
    toward = jnp.where(gone & kept, -alpha, 0)
    pull = _dot(gram, toward)
    inverse, definite = principal.invert(gram, side == _MARGIN)

    def going(w: _Walk) -> Array:
        return (w.t < 1) & w.sound & (w.events <= 10 * n + 10)

    def step(w: _Walk) -> _Walk:
        margin = w.side == _MARGIN
        d = jnp.where(margin, -_dot(w.inverse, pull), toward)
        df = _dot(gram, jnp.where(margin, d, 0)) + pull
        a, da, g, dg = y * w.alpha, y * d, y * w.f - 1, y * df
        to_end = jnp.where(da < 0, 0, bound)
        leaves = _time(margin & (da != 0), to_end - a, da)
        enters = _time((w.side == _REST) & (dg < 0), -g, dg)
        enters = jnp.minimum(enters, _time((w.side == _ERROR) & (dg > 0), -g, dg))
        times = jnp.minimum(leaves, enters)
        i = jnp.argmin(times)
        dt = jnp.minimum(times[i], 1 - w.t)
        last = times[i] >= 1 - w.t

        alpha = w.alpha + dt * d
        at_end = jnp.where(da[i] < 0, 0, y[i] * bound)
        alpha = alpha.at[i].set(jnp.where(~last & margin[i], at_end, alpha[i]))
        place, valid = i[None], (~last)[None]
        fewer, fine = principal.remove(w.inverse, place, valid & margin[i])
        more, whole, pivot = principal.add(fewer, gram, margin, place, valid & ~margin[i])
        away = jnp.where(da[i] < 0, _REST, _ERROR)
        new = jnp.where(margin[i], away, _MARGIN).astype(jnp.int32)
        side = w.side.at[i].set(jnp.where(last, w.side[i], new))
        sound = w.sound & fine & whole & (pivot > tie * n) & jnp.isfinite(alpha).all()
        t = jnp.where(last, 1, w.t + dt)
        count = w.events + jnp.where(last, 0, 1)
        return _Walk(alpha, w.f + dt * df, side, more, t, count, sound)

    zero = jnp.zeros((), gram.dtype)
    start = _Walk(alpha, _dot(gram, alpha), side, inverse, zero, jnp.int32(0), definite)
    idle = ~jnp.any(toward != 0)  # nothing to lead to 0: not one bit may move
    end = jax.lax.while_loop(going, step, start._replace(t=jnp.where(idle, 1, zero)))
    arrived = end.t >= 1
    final = jnp.where(gone, 0, end.alpha)
    margin = (end.side == _MARGIN) & ~idle
    off = jnp.where(margin, y - _dot(gram, final), 0)  # rounding along the path, taken back
    better = jnp.clip(y * (final + _dot(end.inverse, off)), 0, bound) * y
    final = jnp.where(margin & jnp.isfinite(better), better, final)
    return Path(final, arrived | idle, end.events)


def _time(who: Array, distance: Array, speed: Array) -> Array:
    """How long until each of those has gone its distance; infinite for others, never negative."""
    safe = jnp.where(who, speed, 1)
    return jnp.where(who, jnp.maximum(distance / safe, 0), jnp.inf)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
