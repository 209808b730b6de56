"""Objectives that make a copy of a model memorise, for methods that then go the other way.

    memorising    ce    mean_i l_i(theta)
                  npo   2/beta mean_i log sigmoid(-beta (l_i(theta_ref) - l_i(theta)))
    preferring    mean_i min(l(x_i, y~_i; theta), clip)

theta_ref is where the run starts. "npo" is minus the loss of negative preference optimisation
(Zhang et al., 2024, arXiv:2404.05868), with l_i = -log h_theta(y_i | x_i): its gradient weighs
that of "ce" by 2 sigmoid(beta (l_ref - l)), which is 1 at the start, grows to at most 2 on what is
learnt, and tends to 1 as beta -> 0. Each term is at least 2/beta log sigmoid(-beta l_ref), since
no probability is above 1.

Used by `jaxunlearn.methods.descent.mox` (arXiv:2602.06441), a *reconstruction* in these parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import objectives
from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import InMemory
from jaxunlearn.distillation import OLD_OUTPUTS, prediction_divergence
from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Request
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Batch, Data, Key, Params

REPLACEMENT = "replacement"


def memorising(model: Model, kind: str = "ce", beta: float | Array = 0.1) -> Objective:
    """mean_i l_i(theta) on the stream "forget", or the NPO form of the module.

    Args:
      model: whose losses are nats.
      kind: "ce" or "npo".
      beta: of "npo", > 0; traced or not.

    Raises:
      ValueError: an unknown kind.

    Cost: "npo" keeps a copy of the weights and makes a second forward pass.
    """
    if kind not in ("ce", "npo"):
        raise ValueError(f"memorising: kind must be 'ce' or 'npo', got {kind!r}.")
    if kind == "ce":
        return objectives.mean_loss(model, "forget")
    return Objective(_start, bind(_npo, model, beta))


def _start(params: Params) -> Params:
    return params


def _npo(
    model: Model, beta: Any, params: Params, batches: Batches, reference: Params, key: Key
) -> tuple[Array, Params]:
    del key
    batch = batches["forget"]
    log_ratio = model.loss(reference, batch) - model.loss(params, batch)
    each = 2 / beta * jax.nn.log_sigmoid(-beta * log_ratio)
    return weighted_mean(each, batch), reference


def preferring(model: Model, clip: float | Array) -> Objective:
    """mean_i min(l(x_i, y~_i), clip) on the stream "forget", y~ its column "replacement".

    An example whose loss has passed `clip` nats stops pushing, in whichever direction.
    """
    return objectives.stateless(bind(_preferring, model, clip))


def _preferring(model: Model, clip: Any, params: Params, batches: Batches, key: Key) -> Array:
    del key
    batch = batches["forget"]
    losses = model.loss(params, dict(batch) | {"y": batch[REPLACEMENT]})
    return weighted_mean(jnp.minimum(losses, clip), batch)


def check_replacements(request: Request) -> None:
    """Raises `ValueError` unless the forget data hold answers that could be preferred."""
    forget = request.forget
    for batch in [forget.arrays] if isinstance(forget, InMemory) else forget:
        if REPLACEMENT not in batch:
            raise ValueError(
                f"the targeted term reads the column '{REPLACEMENT}' of the forget data, the "
                f"answers that are to be preferred, but it has {sorted(batch)}. Add it with "
                f"data.replace({REPLACEMENT}=...)."
            )
        answers = batch[REPLACEMENT]
        integer = jnp.issubdtype(answers.dtype, jnp.integer)
        if integer and not is_traced(answers) and (np.asarray(answers) < 0).any():
            raise ValueError(f"the column '{REPLACEMENT}' of the forget data has negative classes.")


def mean_divergence(model: Model, reference: Params | None, params: Params, data: Data) -> Array:
    """mean_i KL(h_ref(x_i) || h_theta(x_i)) over `data`, weighted.

    Args:
      model: in evaluation mode.
      reference: theta_ref; None: its logits are the column "old_outputs"
        (`distillation.with_old_outputs`).
      params: theta.
      data: in memory (traceable) or streaming.

    Returns:
      [] float32, nats; 0 where no row counts.

    Cost: one forward pass of each.

    Example:
      >>> linear = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"][:, 0])
      >>> rows = {"x": jnp.ones((3, 2))}
      >>> print(mean_divergence(linear, jnp.eye(2), jnp.eye(2), InMemory(rows, 2)))
      0.0
    """
    zero = jnp.float32(0)
    total, weight = fold_over(bind(_add, model), (reference, params), data, (zero, zero))
    return total / jnp.where(weight > 0, weight, 1)


def _add(model: Model, both: tuple, sums: tuple, batch: Batch, keys: Any) -> tuple:
    del keys
    reference, params = both
    old = batch[OLD_OUTPUTS] if reference is None else model.outputs(reference, batch)
    divergence = prediction_divergence(model.outputs(params, batch), old, temperature=1.0)
    weight = batch["weight"].astype(jnp.float32).sum()
    return sums[0] + weight * weighted_mean(divergence, batch).astype(jnp.float32), sums[1] + weight
