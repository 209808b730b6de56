"""Losses of kernel machines: each with its conjugate, and the exact step of one dual coordinate.

    P(alpha) = (rho/2) alpha^T K alpha + sum_i l(y_i, f_i),     f = K alpha,     beta = rho alpha
    P - D    = sum_i [ l(y_i, f_i) + l*(y_i, -beta_i) + beta_i f_i ]     >= 0, term by term

At the optimum beta_i is minus a subgradient of l at f_i and every term is 0 (Fenchel and Young), so
the gap certifies a solution whoever found it. `coordinate` solves  rho a in -dl(y, q + k a)  for
one weight a, the others held (q is what they predict, k = K_ii): the dual's exact maximiser.

| loss                | l(y, f)                  | y       | beta                              |
|---------------------|--------------------------|---------|-----------------------------------|
| squared             | (y - f)^2 / 2            | real    | any                               |
| hinge               | max(0, 1 - y f)          | -1, 1   | 0 <= y beta <= 1                  |
| squared_hinge       | max(0, 1 - y f)^2 / 2    | -1, 1   | 0 <= y beta                       |
| logistic            | log(1 + exp(-y f))       | -1, 1   | 0 < y beta < 1                    |
| epsilon_insensitive | max(0, |y - f| - e)      | real    | |beta| <= 1                       |

The machines of Chen et al. (2021), arXiv:2111.06063, Table 1; Shalev-Shwartz and Zhang (2013),
"Stochastic Dual Coordinate Ascent Methods", arXiv:1209.1873, for the steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxunlearn.typing import Array

_ROOT_STEPS = 60  # bisections alone would reach the last bit of a bracket of any float64


class KernelLoss(NamedTuple):
    """A convex loss of one prediction; all functions are elementwise."""

    value: Callable[[Array, Array], Array]  # (y, f) -> l
    slope: Callable[[Array, Array], Array]  # (y, f) -> a subgradient of l in f
    conjugate: Callable[[Array, Array], Array]  # (y, beta) -> l*(y, -beta), beta feasible
    coordinate: Callable[[Array, Array, Array, Array], Array]  # (y, q, k, rho) -> a
    name: str
    labels: bool  # whether y must be -1 or 1


@functools.cache
def squared() -> KernelLoss:
    """(y - f)^2 / 2: kernel ridge regression, as `kernel_ridge` solves it in closed form."""
    return KernelLoss(
        value=lambda y, f: (y - f) ** 2 / 2,
        slope=lambda y, f: f - y,
        conjugate=lambda y, beta: beta**2 / 2 - beta * y,
        coordinate=lambda y, q, k, rho: (y - q) / (rho + k),
        name="squared",
        labels=False,
    )


@functools.cache
def hinge() -> KernelLoss:
    """max(0, 1 - y f): the soft-margin support vector machine without intercept."""

    def coordinate(y: Array, q: Array, k: Array, rho: Array) -> Array:
        room = jnp.where(k > 0, (1 - y * q) / jnp.where(k > 0, k, 1), jnp.inf * (1 - y * q))
        return y * jnp.clip(jnp.nan_to_num(room), 0, 1 / rho)

    return KernelLoss(
        value=lambda y, f: jnp.maximum(0, 1 - y * f),
        slope=lambda y, f: jnp.where(y * f < 1, -y, 0),
        conjugate=lambda y, beta: -y * beta,
        coordinate=coordinate,
        name="hinge",
        labels=True,
    )


@functools.cache
def squared_hinge() -> KernelLoss:
    """max(0, 1 - y f)^2 / 2: the 2-norm soft margin."""
    return KernelLoss(
        value=lambda y, f: jnp.maximum(0, 1 - y * f) ** 2 / 2,
        slope=lambda y, f: -y * jnp.maximum(0, 1 - y * f),
        conjugate=lambda y, beta: beta**2 / 2 - y * beta,
        coordinate=lambda y, q, k, rho: y * jnp.maximum(0, 1 - y * q) / (rho + k),
        name="squared_hinge",
        labels=True,
    )


@functools.cache
def logistic() -> KernelLoss:
    """log(1 + exp(-y f)): kernel logistic regression."""

    def coordinate(y: Array, q: Array, k: Array, rho: Array) -> Array:
        """With b = y beta = sigmoid(z):  z + y q + (k / rho) sigmoid(z) = 0, one root."""
        margin, steep = y * q, k / rho

        def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            low, high, z = state
            b = jax.nn.sigmoid(z)
            off = z + margin + steep * b
            low, high = jnp.where(off < 0, z, low), jnp.where(off > 0, z, high)
            newton = z - off / (1 + steep * b * (1 - b))
            inside = (newton > low) & (newton < high)
            return low, high, jnp.where(inside | (off == 0), newton, (low + high) / 2)

        start = (-margin - steep, -margin, -margin - steep / 2)
        return y * jax.nn.sigmoid(jax.lax.fori_loop(0, _ROOT_STEPS, step, start)[2]) / rho

    def conjugate(y: Array, beta: Array) -> Array:
        b = jnp.clip(y * beta, 0, 1)
        return xlogy(b, b) + xlogy(1 - b, 1 - b)

    return KernelLoss(
        value=lambda y, f: jnp.logaddexp(0, -y * f),
        slope=lambda y, f: -y * jax.nn.sigmoid(-y * f),
        conjugate=conjugate,
        coordinate=coordinate,
        name="logistic",
        labels=True,
    )


@functools.cache
def epsilon_insensitive(epsilon: float) -> KernelLoss:
    """max(0, |y - f| - epsilon): support vector regression.

    Args:
      epsilon: half the width of the tube, >= 0.

    Raises:
      ValueError: epsilon < 0.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon_insensitive: expected epsilon >= 0, got {epsilon}.")

    def coordinate(y: Array, q: Array, k: Array, rho: Array) -> Array:
        off = y - q
        beyond = jnp.sign(off) * jnp.maximum(0, jnp.abs(off) - epsilon)
        room = jnp.where(k > 0, beyond / jnp.where(k > 0, k, 1), jnp.inf * beyond)
        return jnp.clip(jnp.nan_to_num(room), -1 / rho, 1 / rho)

    return KernelLoss(
        value=lambda y, f: jnp.maximum(0, jnp.abs(y - f) - epsilon),
        slope=lambda y, f: jnp.where(jnp.abs(y - f) > epsilon, -jnp.sign(y - f), 0),
        conjugate=lambda y, beta: epsilon * jnp.abs(beta) - beta * y,
        coordinate=coordinate,
        name="epsilon_insensitive",
        labels=False,
    )
