"""The Gauss-Newton matrix of a few examples as a product of its columns.

    sum_i w_i J_i^T Lambda_i J_i = U U^T,      U = [sqrt(w_i) J_i^T S_i],      S_i S_i^T = Lambda_i

J_i is the Jacobian of the outputs z_i in the parameters and Lambda_i the Hessian of the loss in
z_i. The factor S never needs the inverse of Lambda, which is singular for softmax.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxunlearn import losses
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.typing import Array, Batch, Key


class OutputLoss(Protocol):
    """A loss as a function of the outputs, such as `losses.cross_entropy`."""

    def __call__(self, outputs: Array, labels: Array, /) -> Array:
        """(n,) from outputs (n, ...) and labels (n, ...)."""
        ...


def _eigh(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def output_factor(
    output_loss: OutputLoss, z: Array, y: Array, samples: int | None = None, key: Key | None = None
) -> Array:
    """S with S S^T = Lambda, the Hessian in z of one example's loss; or its Monte-Carlo columns.

        softmax, exact   S = diag(r)(I - r r^T) R,  r = sqrt(p),  R a basis orthogonal to r
        softmax, MC      s = (onehot(y') - p) / sqrt(k),  y' ~ p
        otherwise        S = Q max(L, 0)^1/2 of Lambda = Q L Q^T;  MC: S e / sqrt(k), e ~ N(0, I)

    Args:
      output_loss: (outputs (n, ...), labels (n, ...)) -> (n,).
      z, y: outputs and label of one example; for softmax (..., C), at each position for itself.
      samples: k >= 1 columns, or None for the exact factor.
      key: for the samples.

    Returns:
      (*z.shape, m); m = samples, or (positions x (C - 1)) for softmax, or z.size.

    Example:
      >>> s = output_factor(losses.cross_entropy, jnp.zeros(2), jnp.array(0))
      >>> print((s @ s.T).round(2))
      [[ 0.25 -0.25]
       [-0.25  0.25]]
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    softmax = output_loss is losses.cross_entropy
    if softmax and samples is not None:
        assert key is not None
        p = jax.nn.softmax(z)
        drawn = jax.random.categorical(key, z, shape=(samples, *z.shape[:-1]))
        onehot = jax.nn.one_hot(drawn, z.shape[-1], dtype=z.dtype)
        return jnp.moveaxis(onehot - p[None], 0, -1) / samples**0.5
    if softmax:
        classes = z.shape[-1]
        r = jnp.exp(0.5 * jax.nn.log_softmax(z)).reshape(-1, classes)  # (positions, C)
        # the reflection that takes r to the last axis; its other columns are orthogonal to r
        v = r.at[:, -1].add(1)
        identity = jnp.eye(classes, dtype=z.dtype)[None, :, :-1]
        others = identity - v[:, :, None] * v[:, None, :-1] / v[:, -1][:, None, None]
        each = r[:, :, None] * others  # (positions, C, C - 1)
        blocks = jnp.eye(len(r), dtype=z.dtype)[:, None, :, None] * each[:, :, None, :]
        return blocks.reshape(*z.shape, -1)

    def value(flat: Array) -> Array:
        return output_loss(flat.reshape(1, *z.shape), y[None])[0]

    eigenvalues, vectors = one_by_one(_eigh)(jax.hessian(value)(z.ravel()))
    s = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None]
    if samples is not None:
        assert key is not None
        s = s @ jax.random.normal(key, (z.size, samples), z.dtype) / samples**0.5
    return s.reshape(*z.shape, -1)


def ggn_columns(
    outputs: Callable[[Array, Batch], Array],
    output_loss: OutputLoss,
    theta: Array,
    batch: Batch,
    *,
    samples: int | None = None,
    key: Key | None = None,
) -> Array:
    """U (p, n m) with U U^T = sum_i w_i J_i^T Lambda_i J_i (in expectation, with samples).

    Args:
      outputs: (theta, batch) -> (n, ...), each row of its own example alone.
      output_loss, samples, key: see `output_factor`.
      theta: (p,) float.
      batch: n rows with `"y"` and `"weight"`.

    Raises:
      Whatever `output_loss` raises for labels that it does not take.

    Rows of weight 0 give columns of zeros, whatever they hold.

    Cost: m backward passes per example; memory n m p.
    """
    jax.eval_shape(lambda: output_loss(outputs(theta, batch), batch["y"]))

    def single(row: Batch, own: Key | None) -> Array:
        alone = {name: column[None] for name, column in row.items()}
        z, pull = jax.vjp(lambda t: outputs(t, alone)[0], theta)
        s = output_factor(output_loss, z, row["y"], samples, own).astype(z.dtype)
        columns = jax.vmap(lambda c: pull(c)[0], in_axes=-1, out_axes=-1)(s)
        weight = row["weight"].astype(theta.dtype)
        return jnp.where(weight > 0, jnp.sqrt(weight) * columns, 0)

    keys = None
    if samples is not None:
        assert key is not None
        keys = jax.random.split(key, len(batch["weight"]))
    u = jax.vmap(single, in_axes=(0, None if keys is None else 0), out_axes=1)(dict(batch), keys)
    return u.reshape(len(theta), -1)


def weighted_gradient(loss: Callable[[Array, Batch], Array], theta: Array, batch: Batch) -> Array:
    """g = sum_i w_i grad l_i (p,); rows of weight 0 give exactly 0, whatever they hold.

    Cost: one backward pass per example; memory n p.
    """

    def single(row: Batch) -> Array:
        alone = {name: column[None] for name, column in row.items()}
        gradient = jax.grad(lambda t: loss(t, alone)[0])(theta)
        weight = row["weight"].astype(theta.dtype)
        return jnp.where(weight > 0, weight * gradient, 0)

    return jax.vmap(single)(dict(batch)).sum(axis=0)
