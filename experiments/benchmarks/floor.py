"""The least time a training can take: its matrix products at a rate this machine was seen to reach.

    floor = FLOPs of the matrix products / the best measured rate

Per row and weight: 2 FLOPs forward, 2 backward for the weights, 2 for the layer's input (not for
the first layer, whose input needs no gradient). The optimiser and everything elementwise is left
out, so the floor is a bound from below.
"""

import itertools
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxunlearn import ensemble


def training_flops(rows: int, layers: Sequence[int]) -> int:
    """FLOPs of the matrix products that forward and backward passes over so many rows need.

    Example:
        >>> training_flops(1, (3, 5, 2))                # 25 weights forward and back, 10 between
        120
    """
    weights = [a * b for a, b in itertools.pairwise(layers)]
    return rows * (4 * sum(weights) + 2 * sum(weights[1:]))


def matmul_rate(batch: int, n: int, k: int, m: int, repeats: int = 7) -> float:
    """FLOP per second of batched (n, k) @ (k, m) in float32, `batch` on each device: the best."""
    size = (jax.device_count(), batch)
    a, b = jnp.ones((*size, n, k)), jnp.ones((*size, k, m))
    product = jax.jit(ensemble(jnp.matmul)).lower(a, b).compile()
    seconds = []
    for _ in range(repeats + 1):  # the first call warms up, and is never the best
        begin = time.perf_counter()
        jax.block_until_ready(product(a, b))
        seconds.append(time.perf_counter() - begin)
    return 2 * math.prod(size) * n * k * m / min(seconds)
