"""Kernels for kernel machines: functions of two sets of rows.

    kernel(left, right)[i, j] = <phi(left_i), phi(right_j)>

(n, m) for one number a row, or (n, C, m, C) where the C outputs of a row have a kernel among them.
The infinitely wide limit of f(x) = s / sqrt(width) sum_r v_r relu(w_r . x), all v and w of variance
1 and trained, has the tangent kernel

    s^2 [ |x| |z| k1(u) + x.z k0(u) ],     u = x.z / (|x| |z|)
    k0 = E[step(w.x) step(w.z)] = (pi - arccos u) / 2 pi
    k1 = E[relu(w.x) relu(w.z)] / |x| |z| = (sqrt(1 - u^2) + u (pi - arccos u)) / 2 pi

Cho and Saul (2009), "Kernel Methods for Deep Learning", for k0 and k1 (their arc-cosine kernels
halved, since theirs are of 2 step and 2 relu^2 means); Jacot et al. (2018), arXiv:1806.07572, and
Chen et al. (2021), arXiv:2111.06063, for their sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.tangent_kernel import tangent_kernel
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Params

Kernel = Callable[[Any, Any], Array]


def linear(left: Array, right: Array) -> Array:
    """x . z, (n, m) of (n, d) and (m, d).

    Example:
      >>> print(linear(jnp.eye(2), jnp.array([[3.0, 4.0]])))
      [[3.]
       [4.]]
    """
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def rbf(*, gamma: float) -> Kernel:
    """exp(-gamma |x - z|^2) on rows (n, d).

    Args:
      gamma: inverse squared length, > 0.

    Raises:
      ValueError: gamma is not positive.

    Example:
      >>> print(rbf(gamma=1.0)(jnp.zeros((1, 2)), jnp.zeros((1, 2))))
      [[1.]]
    """
    if not gamma > 0:
        raise ValueError(f"rbf: expected gamma > 0, got {gamma}.")

    def kernel(left: Array, right: Array) -> Array:
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None]
        return jnp.exp(-gamma * jnp.maximum(squares - 2 * linear(left, right), 0))

    return kernel


def relu_tangent(*, scale: float = 1.0) -> Kernel:
    """The tangent kernel of the infinitely wide two-layer ReLU network of the module, on (n, d).

    Args:
      scale: s > 0 in f(x) = s / sqrt(width) sum_r v_r relu(w_r . x); 2**0.5 keeps the variance of
        what goes forward.

    Raises:
      ValueError: scale is not positive.

    | edge case     | result                                                                  |
    |---------------|-------------------------------------------------------------------------|
    | x = z         | s^2 |x|^2: half from either layer                                       |
    | a row of 0    | 0                                                                       |
    | nearly equal  | angles below sqrt(eps), 3e-4 in float32, are not told from 0            |

    Example:
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> print(relu_tangent()(x, x))
      [[1. 0.]
       [0. 1.]]
    """
    if not scale > 0:
        raise ValueError(f"relu_tangent: expected scale > 0, got {scale}.")

    def kernel(left: Array, right: Array) -> Array:
        product = linear(left, right)
        norms = jnp.linalg.norm(left, axis=1)[:, None] * jnp.linalg.norm(right, axis=1)[None]
        u = jnp.clip(product / jnp.where(norms > 0, norms, 1), -1, 1)
        open_angle = jnp.pi - jnp.arccos(u)
        k1 = (jnp.sqrt(1 - u**2) + u * open_angle) / (2 * jnp.pi)
        return scale**2 * (norms * k1 + product * open_angle / (2 * jnp.pi))

    return kernel


def tangent(
    model: Model, params: Params, *, outputs: str = "full", block: int | None = 32
) -> Kernel:
    """The empirical tangent kernel of a model at its params, on Batches such as {"x": ...}.

    Args:
      model, params, block: see `curvature.tangent_kernel`.
      outputs: "full", the exact kernel of all C outputs together, (n, C, m, C); "trace", (n, m),
        one kernel for every output; for a model with one output they are the same numbers.

    A machine over it predicts f_lin - f: subtract the outputs at `params` from the targets, and add
    them to the predictions. `curvature.displaced` turns its weights into parameters.

    Example:
      >>> model = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"] @ p)
      >>> kernel = tangent(model, jnp.ones(2), outputs="trace")
      >>> print(kernel({"x": jnp.eye(2)}, {"x": jnp.ones((1, 2))}))
      [[1.]
       [1.]]
    """
    if outputs not in ("full", "trace"):
        raise ValueError(f"tangent: outputs must be 'full' or 'trace', got {outputs!r}.")

    def kernel(left: Any, right: Any) -> Array:
        return tangent_kernel(model, params, left, right, outputs=outputs, block=block)

    return kernel
