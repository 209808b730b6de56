"""Feature maps for an analytic head: a random projection, or kernels around centres.

    relu:      phi(h) = max(h P, 0),     P (p, d) drawn once from a key, no bias
    gaussian:  phi_j(h) = exp(-|h - mu_j|^2 / (2 sigma^2))

A random projection knows no data, so nothing has to be forgotten of it: the key, or P, must be kept
bit for bit with the state. **Kernel centres are data.** A centre that is an example of the training
set stays in every feature after the example is forgotten: draw them from public data, or from
retained data and learn anew. ACIL (arXiv:2205.14922) and GKEAL (CVPR 2023) use the two.
Departures: 1. P is Gaussian of variance 1/p. 2. Centres are drawn from all rows; the published code
permutes the first rows only, and so takes those.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array, Key, check_key


def draw_projection(key: Key, inputs: int, features: int) -> Array:
    """P (inputs, features), normal of variance 1 / inputs.

    Raises:
      TypeError: not one typed key. ValueError: a count < 1.
    """
    check_key("draw_projection", key)
    if inputs < 1 or features < 1:
        raise ValueError(f"draw_projection: expected counts >= 1, got {inputs=}, {features=}.")
    return jax.random.normal(key, (inputs, features)) / jnp.sqrt(inputs)


def relu_features(h: Array, projection: Array) -> Array:
    """max(h P, 0): (n, p) -> (n, d).

    Example:
      >>> print(relu_features(jnp.ones((1, 2)), jnp.array([[1.0, -1.0], [1.0, -1.0]])))
      [[2. 0.]]
    """
    return jax.nn.relu(jnp.matmul(h, projection, precision=jax.lax.Precision.HIGHEST))


def draw_centres(key: Key, h: Array, count: int) -> Array:
    """`count` distinct rows of h, each set of rows as likely: (count, p).

    They are examples, and remain in every feature; see the module. Give public or retained rows.

    Raises:
      TypeError: not one typed key. ValueError: more centres than rows, or none.
    """
    check_key("draw_centres", key)
    if not 1 <= count <= len(h):
        raise ValueError(f"draw_centres: expected 1 <= count <= {len(h)} rows, got {count}.")
    return h[jax.random.choice(key, len(h), (count,), replace=False)]


def gaussian_features(h: Array, centres: Array, *, width: float) -> Array:
    """exp(-|h_i - mu_j|^2 / (2 width^2)): (n, p), (d, p) -> (n, d). Published widths: 5 to 15.

    Raises:
      ValueError: a width that is not positive.

    Example:
      >>> print(gaussian_features(jnp.zeros((1, 2)), jnp.zeros((1, 2)), width=5.0))
      [[1.]]
    """
    if not width > 0:
        raise ValueError(f"gaussian_features: expected width > 0, got {width}.")
    cross = jnp.matmul(h, centres.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(h).sum(axis=1)[:, None] + jnp.square(centres).sum(axis=1)[None]
    return jnp.exp(-jnp.maximum(squares - 2 * cross, 0) / (2 * width**2))
