"""What becomes of a model's knowledge when it is trained on, pruned or quantised.

    knowledge(theta, S) = mean_{(x, y) in S} p_theta(y | x)          in [0, 1]

Each attack is a function of one model's params, traceable, and gives a curve of that number.

| attack          | what is done                                        | watched                  |
|-----------------|-----------------------------------------------------|--------------------------|
| relearning      | training on the shown half of the forget rows       | the half held back       |
| few_examples    | the same on 1, 2, 4, ... of the shown rows          | the half held back       |
| fresh_head      | a new last layer, trained with the rest on shown    | the half held back       |
|                 | and retained rows                                   |                          |
| other_training  | training on retained rows                           | all forget rows          |
| pruning         | the smallest weights set to zero                    | all forget rows          |
| quantisation    | weights rounded                                     | all forget rows          |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit
from jaxunlearn.audit.knowledge import as_watched, knowledge
from jaxunlearn.auditing.blocks import Rows
from jaxunlearn.data.streams import InMemory, in_memory
from jaxunlearn.model import Model
from jaxunlearn.presets import Recipe
from jaxunlearn.typing import Array, Key, Params

COUNTS = (1, 2, 4, 8, 16, 32)  # of forget rows from which the rest is relearned
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)  # of weights pruned
QUANTISED: dict[str, dict[str, Any]] = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "NF4": {"bits": 4, "group": 64, "levels": "nf4"},
    "3 bits": {"bits": 3},
}


class Exposed(NamedTuple):
    """The rows that attacks show to a model, and those on which it is watched."""

    forget: Rows  # watched
    shown: Rows  # half of the forget rows, relearned; may be empty
    held: Rows  # the other half, watched
    taught: Rows  # retained rows that train a fresh last layer beside the shown ones
    others: Rows  # retained rows on which training goes on


def attacks(
    network: Model, rows: Exposed, recipe: Recipe, *, steps: int, every: int, key: Key
) -> dict[str, Callable[[Params], Array]]:
    """name -> params of one model -> curve (T,).

    Args:
      network: of the comparison.
      rows: see `Exposed`. Without shown rows nothing is relearned.
      recipe: its optimiser and batch size train.
      steps: minibatches, a multiple of `every`, the steps between two records.
      key: the same for all models: the order of the rows, the fresh last layer.
    """
    tx = recipe.tx
    held, forget = {"held": rows.held.batch}, rows.forget
    shown, others = (_data(each, recipe) for each in (rows.shown, rows.others))
    counts = counts_of(rows.shown.size)
    fresh = None if network.init is None else network.init(key)

    def relearning(params: Params) -> Array:
        curve = audit.relearning_curve(
            network, params, shown, held, tx=tx, steps=steps, every=every, key=key
        )
        return _confidence(curve, "held")

    def few_examples(params: Params) -> Array:
        curve = audit.relearning_by_examples(
            network, params, shown, held, counts=counts, tx=tx,
            steps=max(1, steps // 2), key=key,
        )  # fmt: skip
        return _confidence(curve, "held")[:, -1]

    def fresh_head(params: Params) -> Array:
        mixed = Rows(*(np.concatenate(both) for both in zip(rows.shown, rows.taught, strict=True)))
        curve = audit.relearning_curve(
            network, audit.with_fresh_layer(params, fresh), _data(mixed, recipe), held,
            tx=tx, steps=steps, every=every, key=key,
        )  # fmt: skip
        return _confidence(curve, "held")

    def other_training(params: Params) -> Array:
        curve = audit.relearning_curve(
            network, params, others, {"forget": forget.batch},
            tx=tx, steps=steps, every=every, key=key,
        )  # fmt: skip
        return _confidence(curve, "forget")

    def pruning(params: Params) -> Array:
        def at(share: Array) -> Array:
            return knowledge_of(network, audit.prune(params, share), forget)

        return jax.vmap(at)(jnp.asarray(SHARES, jnp.float32))

    def quantisation(params: Params) -> Array:
        kinds = [params, *(audit.quantise(params, **how) for how in QUANTISED.values())]
        return jnp.stack([knowledge_of(network, each, forget) for each in kinds])

    found = {
        "other_training": other_training,
        "pruning": pruning,
        "quantisation": quantisation,
    }
    if rows.shown.size:
        found |= {"relearning": relearning, "few_examples": few_examples}
        if has_head(network, fresh):
            found["fresh_head"] = fresh_head
    return found


def axes(steps: int, every: int, shown: int) -> dict[str, list]:
    """attack -> where the numbers of its curve stand: minibatches, rows, shares, names."""
    moments = audit.recorded_steps(steps, every).tolist()
    return {
        "relearning": moments,
        "few_examples": list(counts_of(shown)),
        "fresh_head": moments,
        "other_training": moments,
        "pruning": list(SHARES),
        "quantisation": ["32 bits", *QUANTISED],
    }


def counts_of(shown: int) -> tuple[int, ...]:
    """The numbers of rows to relearn from that so many shown rows allow."""
    return tuple(count for count in COUNTS if count <= shown)


def knowledge_of(network: Model, params: Params, rows: Rows) -> Array:
    """[] mean probability of the true label."""
    watched = as_watched("knowledge_of", "rows", network, params, rows.batch)
    return jnp.asarray(knowledge(network, params, watched).confidence)


def has_head(network: Model, fresh: Params | None) -> bool:
    """Whether the last layer can be replaced: it is called `head`, and there are fresh params."""
    if fresh is None:
        return False
    try:
        jax.eval_shape(audit.with_fresh_layer, fresh, fresh)
    except ValueError:
        return False
    return True


def _confidence(curve: Any, name: str) -> Array:
    return curve.watched[name].confidence


def _data(rows: Rows, recipe: Recipe) -> InMemory:
    return in_memory(rows.batch, recipe.batch_size)
