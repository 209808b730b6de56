"""The least work that a gradient and a Fisher diagonal can be, and how fast this machine can be.

    floor(gradient) = max(FLOPs of its matrix products / rate, (12 P + batch) bytes / bandwidth)
    floor(Fisher)   = floor(gradient) + max(2 n P / rate, 4 P bytes / bandwidth)

For n examples and P parameters of 4 bytes. 2 n P is what the squares need at least, whatever the
layer: without shared positions a second product of the size of the weight gradient (2 n I O), with
shared positions one square and one addition for every example and weight. The gradient reads the
parameters in each direction and writes as many numbers; F is P numbers more. Activations, attention
weights and everything elementwise are left out, so both are bounds from below.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.floor import matmul_rate


def matmul_flops(function: Callable, *args: Any) -> int:
    """FLOPs of all matrix products and convolutions in a traced function, loops counted in full.

    Args:
      function: anything that JAX can trace; nothing is computed. The longest branch of a `cond`
        counts; the body of a `while_loop` counts once, since its length is not known.
      *args: what to trace it with.

    Example:
      >>> matmul_flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      60
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "dot_general":
            left = equation.invars[0].aval.shape
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out.shape) * math.prod(kernel) // features
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in equation.params["branches"])
        else:
            inner = sum(_flops(getattr(p, "jaxpr", p)) for p in _programs(equation.params))
            total += inner * (equation.params["length"] if name == "scan" else 1)
    return total


def _programs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        several = value if isinstance(value, (tuple, list)) else (value,)
        found += [v for v in several if hasattr(getattr(v, "jaxpr", v), "eqns")]
    return found


def floor(network: Any) -> dict[str, float]:
    """Counts and bounds of one network, with the rates they rest on, as plain data.

    Returns:
      {"flops", "square_flops", "bytes", "square_bytes", "rate" FLOP/s, "bandwidth" bytes/s,
      "gradient" seconds, "fisher" seconds}
    """
    loss_fn, params, batch = network
    n = len(jax.tree.leaves(batch)[0])
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    flops = matmul_flops(jax.grad(lambda p: loss_fn(p, batch).sum()), params)
    read = 3 * size + sum(column.nbytes for column in batch.values())
    rate = max(matmul_rate(1, 1024, 1024, 1024), matmul_rate(1, 256, 1024, 1024))
    speed = bandwidth()
    gradient = max(flops / rate, read / speed)
    squares = 2 * n * size // 4
    return {
        "flops": flops,
        "square_flops": squares,
        "bytes": read,
        "square_bytes": size,
        "rate": rate,
        "bandwidth": speed,
        "gradient": gradient,
        "fisher": gradient + max(squares / rate, size / speed),
    }


def bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second, read and written, of adding 1 to a long array: the best."""
    a = jnp.zeros(megabytes * 2**18)
    add = jax.jit(lambda a: a + 1).lower(a).compile()
    seconds = []
    for _ in range(repeats + 1):  # the first call warms up, and is never the best
        begin = time.perf_counter()
        jax.block_until_ready(add(a))
        seconds.append(time.perf_counter() - begin)
    return 2 * a.nbytes / min(seconds)
