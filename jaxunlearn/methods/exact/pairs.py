"""Sums that forget: pairs of floats, and products of matrices that rounding hardly touches.

    x = high + low,  |low| <= eps |high| / 2            a number of twice the digits
    X^T Y = sum_{i + j < 4} 2^-(14 + 8 (i + j)) s_x s_y (X_i^T Y_j),    X_i, Y_j integers <= 128

What was added can be taken away again only if neither was rounded much. Sums of pairs round at the
square of the machine epsilon (Knuth's two-sum; Dekker 1971, doi:10.1007/BF01397083). A float32
product of matrices rounds at every addition; cut into slices of eight bits, every partial sum is an
integer below 2^24, and so each product of slices is exact in any order of summation, also where a
unit multiplies in bfloat16 or TF32 (Ozaki et al. 2012, doi:10.1007/s11075-011-9478-1). Four slices
leave about 2^-30 of the largest product of a row. A float64 product is taken as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array

_BITS, _SLICES, _ROWS = 8, 4, 256  # 4 * 128 * 128 * 256 = 2^24: such sums are exact


class Pair(NamedTuple):
    """The number high + low; a pytree. `low` is zero where nothing was rounded."""

    high: Array  # (...) float, the nearest float
    low: Array  # (...) float, what is missing


def pair(x: Array) -> Pair:
    """x as a pair."""
    return Pair(x, jnp.zeros_like(x))


def value(p: Pair) -> Array:
    """The nearest float."""
    return p.high + p.low


def two_sum(a: Array, b: Array) -> Pair:
    """a + b without error (Knuth): the rounded sum, and what rounding left out."""
    s = a + b
    t = s - a
    return Pair(s, (a - (s - t)) + (b - t))


def add(p: Pair, q: Pair) -> Pair:
    """p + q, rounded at eps^2 of the larger one.

    Example:
      >>> big, small = pair(jnp.float32(1e8)), pair(jnp.float32(1.0))
      >>> print(value(add(add(big, small), pair(jnp.float32(-1e8)))))
      1.0
    """
    high, low = two_sum(p.high, q.high), two_sum(p.low, q.low)
    first = two_sum(high.high, high.low + low.high)
    return two_sum(first.high, first.low + low.low)


def scale(p: Pair, factor: Array | float) -> Pair:
    """factor p, exact where the factor is 0, 1, -1 or another power of two."""
    return Pair(p.high * factor, p.low * factor)


def total(p: Pair) -> Pair:
    """The sum over the leading axis."""
    zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), p)
    return jax.lax.scan(lambda s, each: (add(s, each), None), zero, p)[0]


def dot(a: Array, b: Array) -> Array:
    """a @ b in the precision of the dtype on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def product(x: Array, y: Array | None = None, *, compensated: bool = True) -> Pair:
    """X^T Y as a pair.

    Args:
      x: (n, p) float.
      y: (n, q) of the same dtype; None: X itself.
      compensated: False takes the plain product of the dtype. float64 is always plain.

    Returns:
      (p, q). Rows of zeros change not one bit; NaN or Inf comes out as NaN or Inf.

    Cost: 2 n p q operations, plain; ten times as much in slices.
    """
    if not compensated or x.dtype != jnp.float32:
        return pair(dot(x.T, x if y is None else y))
    n = len(x)
    if n <= _ROWS:
        return _exact(x, y)
    chunks = -(-n // _ROWS)

    def cut(a: Array) -> Array:
        return jnp.pad(a, ((0, chunks * _ROWS - n), (0, 0))).reshape(chunks, _ROWS, -1)

    def body(sums: Pair, part: tuple[Array, Array | None]) -> tuple[Pair, None]:
        return add(sums, _exact(*part)), None

    zero = pair(jnp.zeros((x.shape[1], (x if y is None else y).shape[1]), x.dtype))
    return jax.lax.scan(body, zero, (cut(x), None if y is None else cut(y)))[0]


def _exact(x: Array, y: Array | None) -> Pair:
    """X^T Y of at most 256 rows: one product for each level i + j, all of its sums exact."""
    left, rows = _slices(x)
    right, columns = (left, rows) if y is None else _slices(y)
    levels = [
        dot(jnp.concatenate(left[: k + 1]).T, jnp.concatenate(right[k::-1]))
        * 2.0 ** -(2 * (_BITS - 1) + _BITS * k)
        for k in range(_SLICES)
    ]
    high = two_sum(levels[0], levels[1])
    sums = two_sum(high.high, high.low + (levels[2] + levels[3]))
    return scale(scale(sums, rows[:, None]), columns[None])


def _slices(x: Array) -> tuple[list[Array], Array]:
    """Integers X_k with X = s sum_k 2^-(7 + 8 k) X_k, to 2^-32 s; s (p,) powers of two >= |X|."""
    _, exponent = jnp.frexp(jnp.abs(x).max(axis=0, initial=0))
    s = jnp.ldexp(jnp.ones((), x.dtype), exponent)
    rest, found = x / s[None], []
    for k in range(_SLICES):
        unit = 2.0 ** (_BITS - 1 + _BITS * k)
        found.append(jnp.round(rest * unit))
        rest = rest - found[-1] / unit
    return found, s
