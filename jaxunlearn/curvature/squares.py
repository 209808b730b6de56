r"""The inner kernel of the exact Fisher diagonal: products summed over positions, then squared.

    F[i, o] = sum_n phi(P_n[i, o]),         P_n = x_n^T d_n = sum_t x[n, t, i] d[n, t, o]

x are the inputs of a layer and d the cotangents of its outputs, so P_n is the weight gradient of
example n and F, with phi the square, its contribution to the diagonal. The positions t (tokens,
pixels) share the weight and must be summed before phi: with T = 2, x_1 = -x_2 and d_1 = d_2 the
gradient is 0, while (x^2)^T (d^2) over flattened positions says 2 x^2 d^2.

The multiplications are those of the ordinary weight gradient; the art is to keep the n x I x O
numbers of the P_n out of memory. A batched einsum of all examples writes them all, and XLA's CPU
backend runs large batched products on a slow path besides. So examples are taken a few at a time:

    for a chunk of examples:            P = x_chunk^T d_chunk       (batched over the chunk)
                                        F = F + sum over the chunk of phi(P)
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn.typing import Array

POWERS: dict[str, Callable[[Array], Array]] = {"square": jnp.square, "abs": jnp.abs}
_IMPLEMENTATIONS = (None, "scan", "einsum", "pallas")

# Measured on 2 cores. Above this many weights a batched product is slow on a CPU (up to 9 times at
# 32768), and the examples are taken one by one; four in one step of the loop spare three quarters
# of the reads and writes of F, and eight are no quicker but compile for twice as long.
_LARGE_ON_CPU = 2**14
_UNROLL = 4
# Numbers in the temporary of one chunk: 1 MiB of float32 on a CPU, within its cache; 64 MiB
# elsewhere, enough to keep every core of an accelerator busy.
_CHUNK_ON_CPU = 2**18
_CHUNK = 2**24


def sum_of_squared_products(
    x: Array,
    d: Array,
    *,
    power: str = "square",
    implementation: Literal["scan", "einsum", "pallas"] | None = None,
) -> Array:
    r"""F = sum_n phi(x_n^T d_n), elementwise, without the n x I x O numbers in between.

        F[i, o] = sum_n phi(sum_t x[n, t, i] d[n, t, o]),       phi(p) = p^2  or  |p|

    Args:
        x: (n, T, I) float: n examples, T positions. With groups, as in a grouped convolution or a
            product with one weight per head, (n, G, T, I).
        d: (n, T, O) or (n, G, T, O) float. Example weights w are the caller's: sqrt(w_n) d_n for
            squares, w_n d_n for absolute values.
        power: `"square"`, or `"abs"` for phi(p) = |p|.
        implementation: None chooses by `jax.default_backend()` while tracing (for the reason given
            at `jaxunlearn.convolution.convolve`); the others are in the table.

    Returns:
        (I, O) or (G, I, O), in float32, or in float64 if x or d has it.

    Raises:
        ValueError: shapes that do not belong together, an unknown `power` or `implementation`, or
            `"pallas"` where the default backend is neither a GPU nor the CPU.
        TypeError: x or d is not real floating point.

    | `implementation` | how                                                                      |
    |------------------|--------------------------------------------------------------------------|
    | None, CPU        | `"einsum"` where I O <= 2^14, else `"scan"`, group by group               |
    | None, others     | `"einsum"`                                                               |
    | `"scan"`         | one example after another, four in a step of the loop                    |
    | `"einsum"`       | chunks of examples; a temporary of at most 2^18 (CPU) or 2^24 numbers, or |
    |                  | that of one example where it alone has more                              |
    | `"pallas"`       | a GPU kernel without temporaries, **not measured on a GPU**, see          |
    |                  | `jaxunlearn.curvature.pallas_squares`; interpreted, so slow, on a CPU    |

    | case                   | result                                                             |
    |------------------------|--------------------------------------------------------------------|
    | T = 1                  | phi(x)^T phi(d), one matmul whatever `implementation` says; in full |
    |                        | precision, since x^2 and d^2 span twice the exponents              |
    | n = 0 or T = 0         | zeros                                                              |
    | rows of zeros in d     | contribute 0 if x is finite there                                  |
    | bfloat16 or float16    | products and sums in float32, nothing is squared in fewer bits     |
    | `jax.vmap`             | over stacked models: the same chunks, with one more batch axis     |
    | matmul precision, T > 1 | that of `jax.default_matmul_precision`, as in the gradient itself  |

    Cost: n T I O multiplications, those of the weight gradient, and n I O for phi. On 2 cores, 64
    examples of 65 positions and a weight 192 x 768: 5.3 ms, the weight gradient alone 4.6 ms, the
    einsum over all examples at once 55 ms.

    Source: the second-moment trick of BackPACK (Dangel, Kunstner and Hennig 2020,
    arXiv:1912.10985) for T = 1. Departure: 1. with positions, products are formed per example and
    accumulated; the expansion over pairs of positions costs T times as much.

    Example:
        >>> x = jnp.array([[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 0.0], [2.0, 1.0]]])  # n, T, I = 2
        >>> d = jnp.array([[[3.0], [3.0]], [[1.0], [1.0]]])
        >>> print(sum_of_squared_products(x, d))  # the first example's positions cancel
        [[9.]
         [1.]]
    """
    _check(x, d, power, implementation)
    phi = POWERS[power]
    dtype = jnp.promote_types(jnp.result_type(x, d), jnp.float32)
    operands = jnp.result_type(x, d)
    x, d = x.astype(operands), d.astype(operands)
    examples, length = x.shape[0], x.shape[-2]
    group, weight = x.shape[1:-2], (x.shape[-1], d.shape[-1])

    if math.prod((examples, length, *group, *weight)) == 0:
        return jnp.zeros((*group, *weight), dtype)
    if length == 1:
        # ([G,] n, I): the examples take the place of the positions.
        x, d = (jnp.moveaxis(phi(a[..., 0, :].astype(dtype)), 0, -2) for a in (x, d))
        return _products(x, d, dtype, lax.Precision.HIGHEST)
    if implementation == "pallas":
        return _pallas(x, d, phi)

    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and implementation is None and math.prod(weight) > _LARGE_ON_CPU:
        implementation = "scan"
        if group:
            by_group = (x.swapaxes(0, 1), d.swapaxes(0, 1))
            return lax.map(lambda g: _fold(g[0], g[1], phi, dtype, 1), by_group)
    if implementation == "scan":
        return _fold(x, d, phi, dtype, 1)
    most = (_CHUNK_ON_CPU if on_cpu else _CHUNK) // math.prod((*group, *weight))
    return _fold(x, d, phi, dtype, max(1, most))


def _fold(x: Array, d: Array, phi: Callable[[Array], Array], dtype: Any, most: int) -> Array:
    """Sum over examples, at most `most` of them at once, in steps of equal size and a remainder."""
    examples = x.shape[0]
    size = -(-examples // -(-examples // most))

    def part(x: Array, d: Array) -> Array:
        if x.shape[0] == 1:
            return phi(_products(x[0], d[0], dtype))
        return phi(_products(x, d, dtype)).sum(axis=0)

    def step(total: Array, start: Array) -> tuple[Array, None]:
        chunk_x, chunk_d = (lax.dynamic_slice_in_dim(a, start, size) for a in (x, d))
        return total + part(chunk_x, chunk_d), None

    if size == examples:
        return part(x, d)
    rest = examples % size
    total = jnp.zeros((*x.shape[1:-2], x.shape[-1], d.shape[-1]), dtype)
    starts = jnp.arange(0, examples - rest, size)
    total, _ = lax.scan(step, total, starts, unroll=_UNROLL if size == 1 else 1)
    return total + part(x[-rest:], d[-rest:]) if rest else total


def _products(x: Array, d: Array, dtype: Any, precision: Any = None) -> Array:
    """x^T d over the last two axes, (..., I, O): batched over the others."""
    if jax.default_backend() == "cpu":  # which is slow at products of bfloat16, 17 ms against 13
        x, d = x.astype(dtype), d.astype(dtype)
    batch, position = tuple(range(x.ndim - 2)), (x.ndim - 2,)
    dimensions = ((position, position), (batch, batch))
    return lax.dot_general(x, d, dimensions, precision=precision, preferred_element_type=dtype)


def _pallas(x: Array, d: Array, phi: Callable[[Array], Array]) -> Array:
    from jaxunlearn.curvature.pallas_squares import squared_products_kernel

    backend = jax.default_backend()
    if backend not in ("cpu", "gpu", "cuda", "rocm"):
        raise ValueError(
            "sum_of_squared_products: implementation='pallas' is a GPU kernel (interpreted on a "
            f"CPU), but the default backend is {backend!r}. Leave implementation=None there."
        )
    if x.ndim == 4:
        return squared_products_kernel(x, d, phi, interpret=backend == "cpu")
    return squared_products_kernel(x[:, None], d[:, None], phi, interpret=backend == "cpu")[0]


def _check(x: Array, d: Array, power: str, implementation: str | None) -> None:
    if power not in POWERS:
        raise ValueError(
            f"sum_of_squared_products: expected power 'square' or 'abs', got {power!r}."
        )
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            "sum_of_squared_products: expected implementation None, 'scan', 'einsum' or 'pallas', "
            f"got {implementation!r}."
        )
    if x.ndim not in (3, 4) or x.ndim != d.ndim or x.shape[:-1] != d.shape[:-1]:
        raise ValueError(
            "sum_of_squared_products: expected x (n, T, I) and d (n, T, O), or with groups "
            f"(n, G, T, I) and (n, G, T, O), got {x.shape} and {d.shape}. Reshape all positions "
            "into one axis."
        )
    for name, a in (("x", x), ("d", d)):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"sum_of_squared_products: expected floats, but {name} is {a.dtype}. Cast it, or "
                "take the real and the imaginary part apart."
            )
