"""What a model says of examples that it was not trained on, and how to tell them from those it was.

    q_c = mean of softmax(z_i) over held-out rows of class c
    t*  = argmax_t  Pr(member loss <= t) - Pr(non-member loss <= t)

Pieces for methods that aim at the behaviour on non-members (`jaxunlearn.methods.descent.forsaken`,
arXiv:2003.10933). The threshold is that of the simplest membership attack, inside JAX and under a
trace; attacks that are evidence are in `jaxunlearn.audit.membership`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import InMemory
from jaxunlearn.losses import cross_entropy
from jaxunlearn.method import Request
from jaxunlearn.model import Model
from jaxunlearn.objectives import bind
from jaxunlearn.typing import Array, Batch, Data, Params


def posteriors(model: Model, params: Params, data: Data) -> Array:
    """q_c = mean of softmax(z_i) over the rows (and positions) of class c, (C, C) float32.

    Args:
      model: a classifier with logits (n, ..., C).
      data: labelled; in memory (traceable) or streaming.

    Returns:
      Row c is a distribution; that of a class without rows is the mean over all rows.

    Cost: one forward pass.
    """
    example = data.gather(jnp.arange(1)) if isinstance(data, InMemory) else next(iter(data))
    classes = jax.eval_shape(model.outputs, params, example).shape[-1]
    zeros = jnp.zeros((classes, classes)), jnp.zeros(classes)
    sums, counts = fold_over(bind(_add_posteriors, model), params, data, zeros)
    pooled = sums.sum(axis=0) / jnp.maximum(counts.sum(), jnp.finfo(jnp.float32).tiny)
    each = sums / jnp.where(counts > 0, counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, each, pooled[None]).astype(jnp.float32)


def _add_posteriors(model: Model, params: Params, sums: tuple, batch: Batch, keys: Any) -> tuple:
    del keys
    logits = model.outputs(params, batch)
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    is_class = jax.nn.one_hot(batch["y"], p.shape[-1], dtype=p.dtype)
    weight = batch["weight"].astype(p.dtype).reshape(-1, *[1] * (p.ndim - 1))
    is_class = weight * is_class
    total, counts = sums
    return (
        total + jnp.einsum("...c,...k->ck", is_class, p).astype(total.dtype),
        counts + is_class.reshape(-1, p.shape[-1]).sum(axis=0).astype(counts.dtype),
    )


def loss_threshold(
    known: Array, known_weights: Array, unknown: Array, unknown_weights: Array
) -> Array:
    """argmax_t Pr(known loss <= t) - Pr(unknown loss <= t), one of the losses, [] nats.

    Args:
      known, unknown: (m,) and (k,) losses of members and of non-members.
      known_weights, unknown_weights: of the same shapes, >= 0; rows of weight 0 are left out.

    Cost: a sort.

    Example:
      >>> one = jnp.ones(3)
      >>> print(loss_threshold(jnp.array([0.0, 1.0, 4.0]), one, jnp.array([2.0, 3.0, 5.0]), one))
      1.0
    """
    losses = jnp.concatenate([known, unknown])
    gain = jnp.concatenate(
        [known_weights / known_weights.sum(), -unknown_weights / unknown_weights.sum()]
    )
    order = jnp.argsort(losses)
    rising, advantage = losses[order], jnp.cumsum(gain[order])
    last = jnp.append(rising[1:] > rising[:-1], True)  # equal losses are on one side together
    return rising[jnp.argmax(jnp.where(last, advantage, -jnp.inf))]


def losses_and_weights(model: Model, params: Params, data: Data) -> tuple[Array, Array]:
    """Cross-entropies and weights of all rows, padding included: (rows,) float32 each."""

    def of(batch: Batch) -> tuple[Array, Array]:
        return nats(model.outputs(params, batch), batch["y"]), batch["weight"]

    if isinstance(data, InMemory):
        parts = jax.lax.map(lambda i: of(data.batch(i)), jnp.arange(data.num_batches))
    else:
        parts = jax.tree.map(lambda *each: jnp.stack(each), *(of(batch) for batch in data))
    return parts[0].reshape(-1), parts[1].reshape(-1)


def nats(logits: Array, labels: Array) -> Array:
    """-log p_y of every example in float32, (n,), summed over positions."""
    return cross_entropy(logits.astype(jnp.float32), labels)


def check_classes(request: Request) -> None:
    """Raises `ValueError` where a forgotten class has no held-out example."""
    assert request.held_out is not None
    if is_traced((request.forget, request.held_out)):
        return
    for data in (request.forget, request.held_out):
        for batch in data if not isinstance(data, InMemory) else [data.arrays]:
            if not jnp.issubdtype(batch["y"].dtype, jnp.integer):
                raise ValueError(
                    "posteriors are those of classes, so labels must be integers, got "
                    f"{batch['y'].dtype}."
                )
    forgotten, known = (_classes(data) for data in (request.forget, request.held_out))
    if missing := sorted(forgotten - known):
        raise ValueError(
            f"no held-out example of the forgotten classes {missing}. q_c is what the "
            "model says of examples of class c that it never saw: give some of each."
        )


def _classes(data: Data) -> set[int]:
    found: set[int] = set()
    for batch in [data.arrays] if isinstance(data, InMemory) else data:
        labels = np.asarray(batch["y"])
        counts = np.asarray(batch.get("weight", np.ones(len(labels)))) > 0
        found |= set(np.unique(labels[counts]).tolist())
    return found
