"""Would a model that never saw this example get it right? Three numbers a row say how hard it is.

    d1 = mean_{j in N(i)} |h_i / |h_i| - h_j / |h_j||      N(i): nearest retained rows of the class
    d2 = -sum_c softmax(z(x_i))_c log softmax(z(x_i'))_c   x': x after a few steps of sign ascent
    d3 = l_i(theta_s)                                      theta_s: trained for a short while
    s  = (v - min v) / (max v - min v),                    v = clip(d, Q1 - 1.5 IQR, Q3 + 1.5 IQR)

A row far from its class, near the boundary, and slow to be learnt is one that generalisation alone
would get wrong. What `jaxunlearn.methods.descent.easy_judge` tells easy from hard by.

Sun et al. (2024), arXiv:2408.11433 and its published scripts. Departures: 1. Probabilities are the
soft targets of d2, not logits. 2. The ascent starts at x itself, stays within epsilon of it and
knows no bounds such as [0, 1], since inputs may be standardised. 3. A row of weight w counts as w
rows, among the neighbours and in the quartiles; one of weight 0 nowhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.data.streams import InMemory
from jaxunlearn.model import Model
from jaxunlearn.objectives import bind
from jaxunlearn.typing import Array, Batch, Data, Params

FEATURES = ("d1", "d2", "d3")
_APART = 2.0  # the largest distance of two directions: that of a row without any neighbour


# ------------------------------------------------------------------------------ the three features


def each_row(function: Callable[[Params, Batch], Array], params: Params, data: InMemory) -> Array:
    """(n, ...) `function(params, batch)` of all rows, batch by batch."""
    parts = jax.lax.map(
        lambda index: function(params, data.batch(index)), jnp.arange(data.num_batches)
    )
    return parts.reshape(-1, *parts.shape[2:])[: data.num_examples]


def row_weights(data: InMemory) -> Array:
    """(n,) float; 1 where the data have no weights."""
    return data.arrays.get("weight", jnp.ones(data.num_examples, jnp.float32))


def nearest_distance(
    model: Model,
    params: Params,
    rows: InMemory,
    bank: Data,
    *,
    bank_params: Params | None = None,
    neighbours: int = 5,
) -> Array:
    """d1: mean distance of the direction of a row's features to those of its nearest neighbours.

    Args:
      model: with `features`, (n, d).
      params: of the model in evaluation mode.
      rows: n rows with labels (n,).
      bank: labelled Data, streaming or not; neighbours are its rows of the same label.
      bank_params: what the bank's features are taken at; None: `params`.
      neighbours: k >= 1. Fewer rows of that label, or weights below 1, give the mean over those.

    Returns:
      (n,) float32 in [0, 2]; 2 for a row of whose label the bank has none.

    Cost: a forward pass over both; one batch of the bank by 16 rows by d at a time.
    """
    query = each_row(bind(_directions, model), params, rows)
    start = jnp.full((rows.num_examples, neighbours), jnp.inf, query.dtype)
    at = params if bank_params is None else bank_params
    near, weights = fold_over(
        bind(_nearer, model), (at, query, rows["y"]), bank, (start, jnp.zeros_like(start))
    )
    before = jnp.cumsum(weights, axis=1) - weights
    taken = jnp.clip(neighbours - before, 0, weights)
    total = taken.sum(axis=1)
    mean = (jnp.where(taken > 0, near, 0) * taken).sum(axis=1) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, _APART)


def _directions(model: Model, params: Params, batch: Batch) -> Array:
    assert model.features is not None
    h = model.features(params, batch)
    h = h.astype(jnp.promote_types(h.dtype, jnp.float32)).reshape(h.shape[0], -1)
    size = jnp.linalg.norm(h, axis=1, keepdims=True)
    return h / jnp.where(size > 0, size, 1)


def _nearer(model: Model, args: tuple, carry: tuple, batch: Batch, keys: Any) -> tuple:
    """The nearest rows so far and their weights, (n, k) each, after one batch of the bank."""
    del keys
    params, query, labels = args
    h = _directions(model, params, batch)
    k = carry[0].shape[1]

    def merge(row: tuple) -> tuple:
        q, label, near, weights = row
        counts = (batch["y"] == label) & (batch["weight"] > 0)
        found = jnp.where(counts, jnp.linalg.norm(h - q[None], axis=1), jnp.inf)
        all_weights = jnp.concatenate([weights, jnp.where(counts, batch["weight"], 0)])
        smallest, places = jax.lax.top_k(-jnp.concatenate([near, found]), k)
        return -smallest, all_weights[places].astype(near.dtype)

    return jax.lax.map(merge, (query, labels, *carry), batch_size=16)


def attack_sensitivity(
    model: Model, params: Params, batch: Batch, *, epsilon: float | Array = 4 / 255, steps: int = 5
) -> Array:
    """d2: cross-entropy between what the model says at x and at x' = x + the worst small change.

        x' <- clip(x' + epsilon/3 sign(grad_x' l), x - epsilon, x + epsilon),   `steps` times

    Args:
      model: outputs are logits (n, ..., C).
      params: of the model in evaluation mode.
      batch: with "x" (n, ...) float, and what the loss reads.
      epsilon: >= 0, in the unit of x; at 0 the result is the entropy of the prediction.
      steps: of the ascent, >= 0.

    Returns:
      (n,) float, nats, summed over positions.

    Raises:
      TypeError: x is not float.

    Cost: `steps` gradients in x and two forward passes.
    """
    x = batch["x"]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"attack_sensitivity: x must be float, got {x.dtype}: a token has no small change. "
            "Leave 'd2' out of the features."
        )

    def total(moved: Array) -> Array:
        return model.loss(params, {**batch, "x": moved}).sum()

    def ascend(_: Array, moved: Array) -> Array:
        up = moved + epsilon / 3 * jnp.sign(jax.grad(total)(moved))
        return jnp.clip(up, x - epsilon, x + epsilon).astype(x.dtype)

    moved = jax.lax.fori_loop(0, steps, ascend, x)
    clean = jax.nn.softmax(model.outputs(params, batch))
    terms = -clean * jax.nn.log_softmax(model.outputs(params, {**batch, "x": moved}))
    return terms.sum(axis=tuple(range(1, terms.ndim)))


# ---------------------------------------------------------------------------------------- scaling


def weighted_quantile(values: Array, weight: Array, q: float) -> Array:
    """[] the quantile of values (n,) each repeated `weight` times, linear between order statistics.

    For integer weights that is `numpy.quantile(numpy.repeat(values, weight), q)`.
    """
    order = jnp.argsort(jnp.where(weight > 0, values, jnp.inf))
    reached = jnp.cumsum(weight[order])
    last = jnp.argmax(reached)  # the first place at which all of the weight is reached
    position = q * jnp.maximum(reached[-1] - 1, 0)
    lower = jnp.floor(position)

    def at(rank: Array) -> Array:
        return values[order][jnp.minimum(jnp.searchsorted(reached, rank, side="right"), last)]

    fraction = (position - lower).astype(values.dtype)
    return (1 - fraction) * at(lower) + fraction * at(lower + 1)


def winsorised(values: Array, weight: Array) -> Array:
    """(v - min v) / (max v - min v), v the values clipped 1.5 IQR beyond their quartiles.

    Args:
      values: (n,) float; what is not finite counts as the largest that is.
      weight: (n,) >= 0.

    Returns:
      (n,) in [0, 1]; all 0 where they are constant.

    Example:
      >>> print(winsorised(jnp.array([1.0, 2.0, 3.0, 100.0]), jnp.ones(4)))
      [0.         0.01550388 0.03100775 1.        ]
    """
    finite = jnp.isfinite(values)
    top = jnp.max(values, where=finite & (weight > 0), initial=-jnp.inf)
    values = jnp.where(finite, values, jnp.where(jnp.isfinite(top), top, 0))
    low, high = (weighted_quantile(values, weight, q) for q in (0.25, 0.75))
    reach = 1.5 * (high - low)
    v = jnp.clip(values, low - reach, high + reach)
    low = jnp.min(v, where=weight > 0, initial=jnp.inf)
    high = jnp.max(v, where=weight > 0, initial=-jnp.inf)
    spread = high > low
    scaled = jnp.clip((v - low) / jnp.where(spread, high - low, 1), 0, 1)
    return jnp.where(spread, scaled, 0)


# --------------------------------------------------------------------------------------- the table


def hardness_table(
    model: Model,
    params: Params,
    rows: InMemory,
    bank: Data,
    *,
    short_params: Params,
    bank_params: Params | None = None,
    features: tuple[str, ...] = FEATURES,
    neighbours: int = 5,
    epsilon: float | Array = 4 / 255,
    steps: int = 5,
) -> Array:
    """(n, m) float32 in [0, 1]: the scaled features, in the order of `features`.

    Args:
      model, params, rows, bank, bank_params, neighbours: as for `nearest_distance` (d1).
      short_params: of the model that was trained for a short while (d3).
      features: some of "d1", "d2", "d3"; the others are not computed.
      epsilon, steps: as for `attack_sensitivity` (d2).
    """

    def d1() -> Array:
        return nearest_distance(
            model, params, rows, bank, bank_params=bank_params, neighbours=neighbours
        )

    def d2() -> Array:
        return each_row(
            partial(attack_sensitivity, model, epsilon=epsilon, steps=steps), params, rows
        )

    def d3() -> Array:
        return each_row(model.loss, short_params, rows)

    made = {"d1": d1, "d2": d2, "d3": d3}
    columns = [winsorised(made[name](), row_weights(rows)) for name in features]
    return jnp.stack(columns, axis=1).astype(jnp.float32)
