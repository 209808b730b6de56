"""Optimal transport between two samples on a line: sorting solves it.

    W_p^p(a, b) = integral_0^1 |A(u) - B(u)|^p du,    A, B the quantile functions of the samples
                = mean_k |sort(a)_k - sort(b)_k|^p    for equally many rows of equal weight

Two losses, or margins, of a group of examples are compared as distributions: which example has
which value is forgotten, how the values lie is not. W_2^2 is differentiable in both samples where
no two values tie, and its gradient moves each value towards the one of its own rank.

The *global* batch is needed: ranks within a shard are not ranks. Inside `jit` on sharded arrays
that is so by itself (XLA gathers one number per row); inside `shard_map` gather the values first,
or speak of a distance per shard, which is never smaller.

Villani (2003), "Topics in Optimal Transportation", theorem 2.18, for the first line.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array


def wasserstein2(
    a: Array, b: Array, a_weight: Array | None = None, b_weight: Array | None = None
) -> Array:
    """W_2^2(a, b) = integral_0^1 (A(u) - B(u))^2 du, the SQUARED distance.

    Args:
      a: (n,) float.
      b: (m,) float; m = n and no weights is mean_k (sort(a)_k - sort(b)_k)^2.
      a_weight, b_weight: (n,) and (m,) >= 0, None for equal ones; a row of weight 0 is padding and
        counts exactly nothing, even where it is NaN.

    Returns:
      [] float, at least float32, >= 0, in the squared unit of the samples; differentiable in a and
      b, the weights are constants.

    Raises:
      ValueError: samples that are not vectors, or weights of another shape.

    | edge case                     | result                                                |
    |-------------------------------|-------------------------------------------------------|
    | a, or b, in another order     | the same                                              |
    | a = b + constant              | the square of the constant                            |
    | a = b, with the same weights  | exactly 0, with gradient exactly 0                    |
    | all weights of one side are 0 | 0, with gradient 0                                    |

    Cost: three sorts; memory of n + m numbers.

    Example:
      >>> print(wasserstein2(jnp.array([0.0, 2.0]), jnp.array([3.0, 1.0])))
      1.0
    """
    gaps, lengths = _quantile_gaps(a, b, a_weight, b_weight)
    return (lengths * jnp.square(gaps)).sum()


def wasserstein1(
    a: Array, b: Array, a_weight: Array | None = None, b_weight: Array | None = None
) -> Array:
    """W_1(a, b) = integral_0^1 |A(u) - B(u)| du, in the unit of the samples: for reports.

    Args, edge cases and cost: those of `wasserstein2`; a = b + constant gives its absolute value.

    Example:
      >>> print(wasserstein1(jnp.array([0.0, 2.0]), jnp.array([3.0, 1.0])))
      1.0
    """
    gaps, lengths = _quantile_gaps(a, b, a_weight, b_weight)
    return (lengths * jnp.abs(gaps)).sum()


def _quantile_gaps(
    a: Array, b: Array, a_weight: Array | None, b_weight: Array | None
) -> tuple[Array, Array]:
    """A(u) - B(u) on the intervals (n + m,) on which both are constant, and their lengths."""
    a, a_ends = _quantiles("a", a, a_weight)
    b, b_ends = _quantiles("b", b, b_weight)
    ends = jnp.sort(jnp.concatenate([a_ends, b_ends]))
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    both = (a_ends[-1] > 0) & (b_ends[-1] > 0)
    middle = (starts + ends) / 2
    return a[_place(a_ends, middle)] - b[_place(b_ends, middle)], (ends - starts) * both


def _place(ends: Array, middle: Array) -> Array:
    return jnp.minimum(jnp.searchsorted(ends, middle, side="right"), ends.size - 1)


def _quantiles(what: str, values: Array, weight: Array | None) -> tuple[Array, Array]:
    """The values in order, those of weight 0 last, and where in (0, 1] each one's share ends."""
    if jnp.ndim(values) != 1 or (weight is not None and weight.shape != values.shape):
        came = jnp.shape(values), None if weight is None else jnp.shape(weight)
        raise ValueError(
            f"wasserstein: {what} and its weights must be vectors of one length, got {came}."
        )
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    values = values.astype(dtype)
    weight = jnp.ones(values.shape, dtype) if weight is None else weight.astype(dtype)
    values = jnp.where(weight > 0, values, 0)
    order = jnp.argsort(jnp.where(weight > 0, jax.lax.stop_gradient(values), jnp.inf))
    reached = jnp.cumsum(weight[order])
    return values[order], reached / jnp.where(reached[-1] > 0, reached[-1], 1)
