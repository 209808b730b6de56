"""Per-example second moments of the gradient: the empirical Fisher diagonal.

    F = sum_i w_i g_i^2 / sum_i w_i          g = sum_i w_i g_i / sum_i w_i,      g_i = grad loss_i

The square is taken per example, never per batch: the square of a batch-mean gradient is another quantity,
which depends on how the batches were made. Both follow from (F, g) without any batching:

    E over random batches of B from n of (batch mean)^2 = g^2 + (F - g^2)/B (n - B)/(n - 1)

Reference route of every importance: micro-batches of `vmap(grad)` inside a scan, float32 accumulation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.streams import InMemory
from jaxunlearn.typing import Array, Batch, Data, Params

LossFn = Callable[[Params, Batch], Array]


class SecondMoment(NamedTuple):
    """Moments of the per-example gradient over a set."""

    square: Params  # like params, float32 or wider: mean of squares F
    mean: Params  # like params: mean gradient g
    count: Array  # [] total weight of the examples


def _accumulator(params: Params) -> Params:
    return jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
    )


def per_example_gradients(loss_fn: LossFn, params: Params, batch: Batch) -> Params:
    """g_i = grad_theta loss_i for every row; leaves (n, *leaf.shape). Memory n x params."""

    def single(p: Params, row: Batch) -> Array:
        return loss_fn(p, {name: column[None] for name, column in row.items()})[0]

    return jax.vmap(jax.grad(single), in_axes=(None, 0))(params, dict(batch))


def _add(loss_fn: LossFn, params: Params, sums: SecondMoment, batch: Batch) -> SecondMoment:
    weight = batch.get("weight", jnp.ones(next(iter(batch.values())).shape[0]))
    gradients = per_example_gradients(loss_fn, params, batch)

    def total(square: bool) -> Callable[[Array, Array], Array]:
        def add(acc: Array, g: Array) -> Array:
            w = weight.astype(acc.dtype).reshape(-1, *([1] * (g.ndim - 1)))
            g = jnp.where(w > 0, g.astype(acc.dtype), 0)
            return acc + jnp.sum(w * (g * g if square else g), axis=0)

        return add

    return SecondMoment(
        jax.tree.map(total(True), sums.square, gradients),
        jax.tree.map(total(False), sums.mean, gradients),
        sums.count + weight.sum(),
    )


_add_jit = jax.jit(_add, static_argnums=0)


def second_moment(
    loss_fn: LossFn, params: Params, data: Data, *, micro_batch: int = 32
) -> SecondMoment:
    """F = mean_i g_i^2 and g = mean_i g_i over `data`.

    Args:
      loss_fn: (params, batch) -> (n,), evaluation mode, no averaging inside.
      params: tree of float arrays.
      data: in-memory (traceable) or streaming; weights are example weights, 0 contributes exactly 0.
      micro_batch: examples whose gradients are held at once for in-memory data; changes rounding only.

    Returns:
      SecondMoment; leaves in at least float32 whatever the dtype of the params.

    | edge case          | result                              |
    |--------------------|-------------------------------------|
    | all weights 0      | zeros, count 0                      |
    | one example        | F = g^2                             |
    | data repeated twice | the same F and g                   |

    Cost: one forward and backward pass per example; memory (micro_batch + 2) x params.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[1.0], [3.0]]), "y": jnp.zeros(2)})
      >>> loss = lambda p, b: 0.5 * (b["x"] @ p - b["y"]) ** 2
      >>> print(second_moment(loss, jnp.ones(1), data).square)
      [41.]
    """
    sums = SecondMoment(_accumulator(params), _accumulator(params), jnp.zeros(()))
    if isinstance(data, InMemory):
        sums = _over_chunks(data, micro_batch, sums, lambda s, b: _add(loss_fn, params, s, b))
    else:
        for batch in data:
            sums = _add_jit(loss_fn, params, sums, dict(batch))
    scale = jnp.where(sums.count > 0, sums.count, 1)
    mean = jax.tree.map(lambda s: s / scale.astype(s.dtype), (sums.square, sums.mean))
    return SecondMoment(*mean, sums.count)


def _over_chunks(data: InMemory, size: int, carry, add: Callable):
    """Folds `add(carry, batch)` over chunks of `size` rows, the last padded with weight 0, in one scan."""
    if data.num_examples == 0:
        return carry
    size = min(size, data.num_examples)
    starts = jnp.arange(0, data.num_examples, size)

    def body(carry, start):
        padding = jnp.maximum(start + size - data.num_examples, 0)
        return add(carry, data.gather(start + jnp.arange(size), padding)), None

    return jax.lax.scan(body, carry, starts)[0]


def class_means(
    loss_fn: LossFn, params: Params, data: Data, classes: int, *, micro_batch: int = 32
) -> tuple[Params, Array]:
    """Mean gradient of each class: g_c = sum_{i: y_i = c} w_i g_i / n_c, and n_c = sum_{i: y_i = c} w_i.

    Args:
      classes: C; labels `"y"` (n,) in [0, C).

    Returns:
      (tree with leaves (C, *leaf.shape), counts (C,)); a class without examples has mean 0 and count 0.

    Cost: one forward and backward pass per example; memory (micro_batch + C) x params.
    """
    sums = jax.tree.map(lambda a: jnp.zeros((classes, *a.shape), a.dtype), _accumulator(params))

    def add(carry: tuple, batch: Batch) -> tuple:
        sums, counts = carry
        weight = batch.get("weight", jnp.ones(batch["y"].shape[0]))
        member = jax.nn.one_hot(batch["y"], classes, axis=0) * weight  # (C, n)
        gradients = per_example_gradients(loss_fn, params, batch)

        def total(acc: Array, g: Array) -> Array:
            keep = (weight > 0).reshape(-1, *([1] * (g.ndim - 1)))
            g = jnp.where(keep, g.astype(acc.dtype), 0)
            return acc + jnp.tensordot(member.astype(acc.dtype), g, axes=1)

        return jax.tree.map(total, sums, gradients), counts + member.sum(axis=1)

    carry = (sums, jnp.zeros(classes))
    if isinstance(data, InMemory):
        carry = _over_chunks(data, micro_batch, carry, add)
    else:
        step = jax.jit(add)
        for batch in data:
            carry = step(carry, dict(batch))
    sums, counts = carry
    scale = jnp.where(counts > 0, counts, 1)
    means = jax.tree.map(
        lambda s: s / scale.astype(s.dtype).reshape(-1, *([1] * (s.ndim - 1))), sums
    )
    return means, counts
