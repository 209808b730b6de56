"""Subgradient descent of a kernel machine: what an infinitely wide network does, step by step.

    L(f) = (lambda/2) |f|^2 + (1/n) sum_i l(y_i, f(x_i)),     f = sum_i alpha_i k(., x_i)

    alpha   <- (1 - eta lambda) alpha                      all weights shrink, not the batch's alone
    alpha_B <- alpha_B - (eta / |B|) l'(y_B, f_B)

is gradient descent on the parameters theta = theta_0 + J^T alpha of the linear model whose kernel k
is, exactly; a network of finite width in tangent-kernel parameterisation, centred (f - f_0) and
trained by the same steps on (lambda/2) |theta - theta_0|^2 + ..., differs by O(1 / sqrt(width)).
Chen, Huang, Nguyen and Weng (2021), arXiv:2111.06063, Theorem 3.

Departure: the published code shrinks the weights of the batch alone, which is not descent on L, nor
on any function of alpha unless batches are the whole data; `shrink="batch"` does as it does.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.kernels.losses import KernelLoss
from jaxunlearn.naming import did_you_mean
from jaxunlearn.typing import Array

SHRINK = ("all", "batch")


def subgradient_descent(
    gram: Array,
    y: Array,
    batches: Array,
    *,
    loss: KernelLoss,
    decay: float | Array,
    learning_rate: float | Array,
    start: Array | None = None,
    kept: Array | None = None,
    shrink: str = "all",
) -> tuple[Array, Array]:
    """alpha after one step for each batch.

    Args:
      gram: (n, n) float K.
      y: (n,) float.
      batches: (steps, b) int, rows of each step, distinct within one.
      loss: from `kernels.losses`.
      decay: lambda >= 0.
      learning_rate: eta > 0; stable for the squared loss below 2 / (s_max / n + lambda).
      start: (n,) float; None: zeros, the network at its start.
      kept: (n,) bool, the rows of the problem; others are left out of batches, and |B| counts what
        remains. None: all.
      shrink: "all", descent on L; "batch", the published update.

    Returns:
      (alpha (n,), L before each step (steps,)).

    Raises:
      ValueError: an unknown `shrink`, a negative decay, a learning rate that is not positive.

    | edge case                       | result                                |
    |---------------------------------|---------------------------------------|
    | a batch without kept rows       | all weights shrink, no gradient       |
    | eta too large                   | alpha grows; L says so                |
    | every batch the whole data      | "batch" is "all"                      |

    Cost of a step: n^2 for L and f.

    Example:
      >>> from jaxunlearn.kernels.losses import hinge
      >>> K, y, steps = jnp.eye(2), jnp.array([1.0, -1.0]), jnp.array([[0, 1]] * 2)
      >>> print(subgradient_descent(K, y, steps, loss=hinge(), decay=0.5, learning_rate=1.0)[0])
      [ 0.75 -0.75]
    """
    if shrink not in SHRINK:
        raise ValueError(f"subgradient_descent: shrink={shrink!r}. {did_you_mean(shrink, SHRINK)}")
    if _is_number(decay) and decay < 0 or _is_number(learning_rate) and not learning_rate > 0:
        raise ValueError(
            "subgradient_descent: expected decay >= 0 and learning_rate > 0, got "
            f"{decay=}, {learning_rate=}."
        )
    counts = jnp.ones(len(y), bool) if kept is None else kept
    alpha = jnp.zeros_like(gram[0]) if start is None else start
    keep = 1 - learning_rate * decay

    def step(alpha: Array, batch: Array) -> tuple[Array, Array]:
        f = jnp.matmul(gram, alpha, precision=jax.lax.Precision.HIGHEST)
        losses = jnp.where(counts, loss.value(y, f), 0).sum() / jnp.maximum(counts.sum(), 1)
        mine = counts[batch]
        slope = jnp.where(mine, loss.slope(y[batch], f[batch]), 0) / jnp.maximum(mine.sum(), 1)
        shrunk = keep * alpha if shrink == "all" else alpha.at[batch].multiply(keep)
        return shrunk.at[batch].add(-learning_rate * slope), decay / 2 * alpha @ f + losses

    return jax.lax.scan(step, alpha, batches)


def _is_number(value: object) -> bool:
    """Numbers are checked; traced values are the caller's."""
    return isinstance(value, int | float)
