"""Random labels: teach the forget set something else, and rehearse the rest.

    min_theta  mean_{i in F and R} l_i(theta; y~_i),    y~_i uniform if i in F, else the true label

Golatkar et al. (2020), "Eternal Sunshine of the Spotless Net", arXiv:1911.04933, and the scripts of
Fan et al. (2024), "SalUn", arXiv:2310.12508, whose constants these are (learning rate 0.013, 10
epochs, SGD 0.9, weight decay 5e-4).

Departures: 1. The union of streaming Data is read first F, then R, in the same batches, since there
is no shuffling across two streams. 2. Batches of the union have the retained data's size.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.method import Method, Request
from jaxunlearn.methods.descent.descent import descent, sgd
from jaxunlearn.methods.descent.union import union
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective
from jaxunlearn.typing import Array, Data, Key, Params


def random_labels(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 10,
    order: str = "union",
    wrong_only: bool = False,
) -> Method:
    """min_theta of the mean loss over F with fresh random labels and R with its own, from theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 0.013, momentum 0.9, weight decay
        5e-4.
      epochs: passes over F and R together, >= 0.
      order: "union" (shuffled together; CIFAR-100 and TinyImageNet in the source) or "sequential"
        (each epoch first F, then R, each shuffled and in its own batches; CIFAR-10 and SVHN in the
        source).
      wrong_only: draw from the C - 1 wrong labels instead of all C.

    Returns:
      A Method that needs forget, retain, labels and the key.

    Raises:
      ValueError: an unknown order, or fewer than 0 epochs.

    Edge cases: epochs = 0 gives params bit-identical. A new label is drawn each time a row is seen.
    Cost: `epochs` passes over all data.

    Source: Golatkar et al. (2020), arXiv:1911.04933; Fan et al. (2024), arXiv:2310.12508;
    departures in the module.

    Example:
      >>> sorted(random_labels(epochs=1).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if order not in ("union", "sequential"):
        raise ValueError(f"random_labels: order must be 'union' or 'sequential', got {order!r}.")

    if epochs < 0:
        raise ValueError(f"random_labels: epochs must be >= 0, got {epochs}.")
    common: dict[str, Any] = {
        "tx": sgd(0.013) if tx is None else tx,
        "on": ("forget", "retain"),
        "name": "random_labels",
    }
    if order == "sequential":
        objective = partial(_in_turns, wrong_only=wrong_only)
        return descent(objective, turns=(("forget", "retain"),) * epochs, **common)
    objective = partial(objectives.random_labels, wrong_only=wrong_only)
    return descent(objective, epochs=epochs, streams=_both, **common)


def _in_turns(model: Model, wrong_only: bool) -> Objective:
    """The objective of one stream at a time: the forget set relabelled, the retained data not."""
    relabelled = objectives.random_labels(model, wrong_only)
    plain = objectives.mean_loss(model, "retain")
    return objectives.stateless(objectives.bind(_of_the_turn, relabelled, plain))


def _of_the_turn(
    relabelled: Objective, plain: Objective, params: Params, batches: Batches, key: Key
) -> Array:
    if "forget" not in batches:
        return plain.loss(params, batches, (), key)[0]
    batch = dict(batches["forget"])
    batch["forget"] = jnp.ones(batch["y"].shape[:1], bool)
    return relabelled.loss(params, {"data": batch}, (), key)[0]


def _both(request: Request) -> dict[str, Data]:
    assert request.retain is not None
    return {"data": union(request.forget, request.retain)}
