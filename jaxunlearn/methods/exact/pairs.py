"""Sums that forget: pairs of floats, and products of matrices that rounding hardly touches.

    x = high + low,  |low| <= eps |high| / 2            a number of twice the digits
    X^T Y = sum_{i + j < 4} 2^-(14 + 8 (i + j)) s_x s_y (X_i^T Y_j),    X_i, Y_j integers <= 128

What was added can be taken away again only if neither was rounded much. Sums of pairs round at the
square of the machine epsilon (Knuth's two-sum; Dekker 1971, doi:10.1007/BF01397083). A float32
product of matrices rounds at every addition; cut into slices of eight bits, every partial sum is an
integer below 2^24, and so each product of slices is exact in any order of summation, also where a
unit multiplies in bfloat16 or TF32 (Ozaki et al. 2012, doi:10.1007/s11075-011-9478-1). Four slices
leave about 2^-30 of the largest product of a row. A matrix that is multiplied several times is cut
once (`cut`, `times`). A float64 product is taken as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array

_BITS, _SLICES, _ROWS = 8, 4, 256  # 4 * 128 * 128 * 256 = 2^24: such sums are exact
_COLUMNS = 4 * _ROWS  # and so are those of one slice times one slice


class Pair(NamedTuple):
    """The number high + low; a pytree. `low` is zero where nothing was rounded."""

    high: Array  # (...) float, the nearest float
    low: Array  # (...) float, what is missing


class Cut(NamedTuple):
    """A matrix in slices, for `times`; a pytree."""

    slices: tuple[Array, ...]  # four (p, n) of integers, or the matrix itself where it is not cut
    scale: Array  # (p,) powers of two


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
    first, rest = (jax.tree.map(part, p) for part in (lambda a: a[0], lambda a: a[1:]))
    if not len(rest.high):
        return first
    return jax.lax.scan(lambda s, each: (add(s, each), None), first, rest)[0]


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

    def chunked(a: Array) -> Array:
        return jnp.pad(a, ((0, chunks * _ROWS - n), (0, 0))).reshape(chunks, _ROWS, -1)

    def body(sums: Pair, part: tuple[Array, Array | None]) -> tuple[Pair, None]:
        return add(sums, _exact(*part)), None

    zero = pair(jnp.zeros((x.shape[1], (x if y is None else y).shape[1]), x.dtype))
    return jax.lax.scan(body, zero, (chunked(x), None if y is None else chunked(y)))[0]


def cut(a: Array, *, compensated: bool = True) -> Cut:
    """A, ready for `times`.

    Args:
      a: (p, n) float.
      compensated: see `product`.

    Cost: memory of four matrices, where it is cut.
    """
    if not compensated or a.dtype != jnp.float32:
        return Cut((a,), jnp.ones(len(a), a.dtype))
    slices, scales = _slices(a, axis=1)
    return Cut(tuple(slices), scales)


def times(a: Cut, w: Array) -> Pair:
    """A W as a pair, of the digits of `product`.

    Args:
      a: (p, n) from `cut`.
      w: (n, q) float.

    Cost: 2 p n q operations, plain; ten times as much in slices.

    Example:
      >>> a = jnp.array([[1.0, 2.0**-24]])
      >>> print(value(times(cut(a), jnp.array([[2.0**-24], [-1.0]]))))
      [[0.]]
    """
    if len(a.slices) == 1:
        return pair(dot(a.slices[0], w))
    (n, q), (right, columns) = w.shape, _slices(w)
    sums = pair(jnp.zeros((len(a.scale), q), w.dtype))
    for start in range(0, n, _COLUMNS):
        some = slice(start, start + _COLUMNS)
        low = jnp.zeros_like(sums.low)
        for i, left in enumerate(a.slices):
            beside = jnp.concatenate([each[some] for each in right[: _SLICES - i]], axis=1)
            found = dot(left[:, some], beside) * 2.0 ** -(2 * (_BITS - 1) + _BITS * i)
            for j in range(_SLICES - i):
                term = found[:, j * q : (j + 1) * q] * 2.0 ** -(_BITS * j)
                if i + j < 2:
                    sums = add(sums, pair(term))
                else:
                    low = low + term
        sums = add(sums, pair(low))
    return scale(scale(sums, a.scale[:, None]), columns[None])


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


def _slices(x: Array, axis: int = 0) -> tuple[list[Array], Array]:
    """Integers X_k with X = s sum_k 2^-(7 + 8 k) X_k, to 2^-32 s; s powers of two >= |X|.

    Args:
      axis: along which all share one s: that of the sum in the product.
    """
    _, exponent = jnp.frexp(jnp.abs(x).max(axis=axis, initial=0))
    s = jnp.ldexp(jnp.ones((), x.dtype), exponent)
    rest, found = x / jnp.expand_dims(s, axis), []
    for k in range(_SLICES):
        unit = 2.0 ** (_BITS - 1 + _BITS * k)
        found.append(jnp.round(rest * unit))
        rest = rest - found[-1] / unit
    return found, s
