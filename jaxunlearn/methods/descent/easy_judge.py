"""A small judge: easy or hard, learnt from a few features of rows whose answer is known.

    P(easy) = sigmoid(v . relu(s W + b) + c),    min mean_i w_i cross-entropy(P(easy_i), easy_i)

The perceptron 3-16-1 of Sun et al. (2024), arXiv:2408.11433, with its constants: Adam at 0.01, 200
epochs, batches of 128, threshold 1/2. Departure: beside the judge two more are trained that have
seen half of the rows, one of them with shuffled labels, and are compared on the other half. A judge
that knows nothing is thus noticed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.streams import InMemory
from jaxunlearn.losses import weighted_mean
from jaxunlearn.objectives import Batches, stateless
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Key, Params

_WIDTH = 16  # hidden units


class Judge(NamedTuple):
    """What tells easy rows from hard ones, and whether it can."""

    params: Params  # of the judge trained on all rows
    accuracy: Array  # [] of one trained on half of the rows, on the other half
    shuffled: Array  # [] the same with its training labels shuffled: knows only the majority
    majority: Array  # [] of always saying what is more frequent, on the other half


def train_judge(
    table: Array,
    easy: Array,
    weight: Array,
    key: Key,
    *,
    epochs: int = 200,
    learning_rate: float | Array = 0.01,
) -> Judge:
    """A perceptron with one hidden layer of 16 units, Adam, batches of 128, cross-entropy.

    Args:
      table: (n, m) scaled features.
      easy: (n,) bool, what is to be told from them.
      weight: (n,) >= 0.
      key: typed key.
      epochs: passes over the n rows, >= 0.
      learning_rate: of Adam.

    Returns:
      A `Judge`. Three are trained side by side: on all rows, on a random half, and on that half
      with shuffled labels; the last two are compared on the other half (0 if it has no rows). If
      the labels can be told from the features at all, `accuracy` is above `shuffled`.
    """
    return _train_judge(table, easy, weight, key, learning_rate, epochs=epochs)


@partial(jax.jit, static_argnames="epochs")
def _train_judge(table, easy, weight, key, learning_rate, *, epochs) -> Judge:
    halves, shuffle, init, run = jax.random.split(key, 4)
    counts = weight > 0
    inside = jnp.argsort(~counts)  # the rows that count, then the others

    def drawn(key: Key) -> Array:
        """The rows that count in random order, then the others."""
        return jnp.argsort(jnp.where(counts, jax.random.uniform(key, counts.shape), 2.0))

    half = jnp.zeros_like(counts).at[drawn(halves)[::2]].set(True)
    mixed = easy.at[inside].set(easy[drawn(shuffle)])
    labels = jnp.stack([easy, easy, mixed])
    weights = jnp.stack([weight, weight * half, weight * half])
    start = _judge_init(init, table.shape[1])

    def one(easy: Array, weight: Array) -> Params:
        data = InMemory({"x": table, "y": easy, "weight": weight}, 128)
        tx = optax.adam(learning_rate)
        return fit(stateless(_judge_loss), tx, start, data, key=run, epochs=epochs).params

    params = jax.vmap(one)(labels, weights)
    other = {"weight": weight * ~half}
    right = [judged(jax.tree.map(lambda p: p[i], params), table) == easy for i in (1, 2)]  # noqa: B023
    rate = weighted_mean(easy.astype(jnp.float32), other)
    accuracy, shuffled = (weighted_mean(r.astype(jnp.float32), other) for r in right)
    first = jax.tree.map(lambda p: p[0], params)
    return Judge(first, accuracy, shuffled, jnp.maximum(rate, 1 - rate))


def judged(params: Params, table: Array) -> Array:
    """(n,) bool: P(easy) > 1/2."""
    return _judge_logits(params, table) > 0


def _judge_init(key: Key, inputs: int) -> Params:
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (inputs, _WIDTH)) * (2 / inputs) ** 0.5,
        "b": jnp.zeros(_WIDTH),
        "v": jax.random.normal(second, (_WIDTH,)) / _WIDTH**0.5,
        "c": jnp.zeros(()),
    }


def _judge_logits(params: Params, table: Array) -> Array:
    hidden = jax.nn.relu(table @ params["w"] + params["b"][None])
    return hidden @ params["v"] + params["c"]


def _judge_loss(params: Params, batches: Batches, key: Key) -> Array:
    del key
    batch = batches["data"]
    target = batch["y"].astype(jnp.float32)
    logits = _judge_logits(params, batch["x"])
    return weighted_mean(optax.losses.sigmoid_binary_cross_entropy(logits, target), batch)
