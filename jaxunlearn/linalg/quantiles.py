"""Quantiles over all entries of a pytree, without sorting, concatenating or gathering anything.

    x_(k) = max {t : #{x < t} <= k}         the k-th smallest entry, k = 0, 1, ..., n - 1

The threshold t is found bit by bit: floats in order are unsigned integers in order once the sign
bit is turned (negative numbers: all bits), so 32 comparisons of every entry with one scalar decide
the 32 bits of a float32. What leaves a device is one count per leaf and bit, so leaves may be
sharded in any way and stay where they are; the result is the order statistic itself, not an
approximation to a tolerance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array

_MOST = 2**31 - 1  # what an int32 counts


def tree_quantile(tree: Any, q: float | Array) -> Array:
    """The q-quantile of all finite entries of all leaves, linear between order statistics.

        (1 - f) x_(k) + f x_(k+1),      k + f = q (n - 1),      n finite entries

    Args:
      tree: pytree of float arrays, any shapes, dtypes and shardings.
      q: in [0, 1]; a Python number or a traced scalar, which is clipped.

    Returns:
      [] in the widest dtype of the leaves, float32 at least; what `numpy.quantile` gives for the
      finite entries in one array.

    Raises:
      ValueError: a Python q outside [0, 1], or more than 2^31 - 1 entries.

    | situation               | result                                          |
    |-------------------------|-------------------------------------------------|
    | NaN, inf, -inf          | not counted                                     |
    | no finite entry         | NaN                                             |
    | q = 0, q = 1            | the smallest, the largest finite entry          |
    | ties                    | each counted                                    |
    | k + f = q (n - 1)       | rounded in the dtype: to 1e-7 n ranks in float32 |

    Cost: one read of the leaves per bit (32, or 64 in float64) and three more; no copy.

    Example:
      >>> print(tree_quantile({"a": jnp.arange(4.0), "b": jnp.array([jnp.nan, 4.0])}, 0.25))
      1.0
    """
    if isinstance(q, int | float) and not 0 <= q <= 1:
        raise ValueError(f"tree_quantile: q must lie in [0, 1], got {q}. Is it a percentage?")
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if (entries := sum(x.size for x in leaves)) > _MOST:
        raise ValueError(
            f"tree_quantile: counts are int32, up to {_MOST} entries, got {entries}. "
            "Take the quantile of a part of the tree."
        )
    dtype = jnp.result_type(jnp.float32, *leaves)
    leaves = [x.astype(dtype) for x in leaves]

    def count(where: Callable[[Array], Array]) -> Array:
        each = [jnp.sum(where(x) & jnp.isfinite(x), dtype=jnp.int32) for x in leaves]
        return sum(each, jnp.int32(0))

    n = count(jnp.isfinite)
    last = jnp.maximum(n - 1, 0)
    position = jnp.clip(jnp.asarray(q, dtype), 0, 1) * last.astype(dtype)
    k = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, last)
    fraction = jnp.clip(position - k.astype(dtype), 0, 1)
    threshold = _threshold(count, k, dtype)
    # entries themselves from here on: no bit of the result rests on the search
    lower = _extreme(jnp.max, leaves, lambda x: x <= threshold, -jnp.inf)
    following = _extreme(jnp.min, leaves, lambda x: x > lower, jnp.inf)
    repeated = (count(lambda x: x <= lower) > k + 1) | (fraction == 0)
    upper = jnp.where(repeated, lower, following)
    return jnp.where(n > 0, (1 - fraction) * lower + fraction * upper, jnp.nan)


def _threshold(count: Callable, k: Array, dtype: Any) -> Array:
    """The largest t with #{x < t} <= k, most significant bit first."""
    bits = jnp.finfo(dtype).bits
    unsigned = jnp.dtype(f"uint{bits}")
    sign = jnp.array(1, unsigned) << (bits - 1)

    def as_float(rank: Array) -> Array:
        pattern = jnp.where(rank >= sign, rank ^ sign, ~rank)
        return jax.lax.bitcast_convert_type(pattern, dtype)

    def decide(place: Array, rank: Array) -> Array:
        candidate = rank | (sign >> place.astype(unsigned))
        t = as_float(candidate)
        # inf is refused, all n > k entries being below it, and so no NaN beyond it is tried
        return jnp.where(count(lambda x: x < t) <= k, candidate, rank)

    return as_float(jax.lax.fori_loop(0, bits, decide, jnp.array(0, unsigned)))


def _extreme(reduce: Callable, leaves: list[Array], where: Callable, start: float) -> Array:
    """reduce over the finite entries for which `where` holds; `start` if there are none."""
    kept = [jnp.where(where(x) & jnp.isfinite(x), x, start) for x in leaves]
    return reduce(jnp.array([reduce(x, initial=start) for x in kept], kept[0].dtype))
