"""The two objectives of `entanglement`: what stage 1 ascends, what stage 2 descends and holds.

    1.  -gamma mean_F C(l_i) + lambda h + mu/2 h^2,    h = L_rem(theta) - c_0
    2.  L_adj, with the gradients q_f, q_r of what its steps are to leave alone

q_f and q_r are sums over sub-batches, at the parameters before the step, handed to the optimiser by
`Objective.extras`. Cheng et al. (2026), arXiv:2603.26569.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.constraints import augmented_lagrangian
from jaxunlearn.losses import saturated, weighted_mean
from jaxunlearn.methods.descent.entangled_data import BEFORE, sub_batches
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind, mean_loss, stateless
from jaxunlearn.transport import wasserstein2
from jaxunlearn.typing import Array, Batch, Key, Params


def forgetting(
    model: Model,
    level: Array,
    *,
    mu: float = 10.0,
    gamma: float = 1.0,
    clip: float = 10.0,
    small_punish: float = 0.0,
) -> Objective:
    """L = -gamma mean C(l_f) + lambda h + mu/2 h^2, h = L_rem - level: stage 1, an Objective.

    Args:
      model: in evaluation mode.
      level: c_0 [], mean remote loss of the original, nats; travels as state.
      mu, gamma, clip, small_punish: as for `entanglement`.

    Returns:
      An Objective over the streams "forget" and "remote", with a `constraints.LagrangianState`.
    """
    push = stateless(bind(_push, model, gamma, clip, small_punish))
    excess = Objective(lambda params: level, bind(_excess, model))
    return augmented_lagrangian(push, excess, mu)


def recovery(
    model: Model, alpha: float = 0.5, forget_sign: int = -1, *, forget: int, remote: int
) -> Objective:
    """L = L_adj, with extras basis = (q_f, q_r): stage 2, an Objective for `project_out_gradients`.

    Args:
      model: in evaluation mode.
      alpha, forget_sign: as for `entanglement`.
      forget, remote: rows of the sub-batches over which q_f and q_r are summed.

    Returns:
      An Objective over the streams "adjacent", "forget" (with the column "loss_before") and
      "remote".
    """
    basis = bind(_basis, model, alpha, forget_sign, forget, remote)
    return mean_loss(model, "adjacent")._replace(extras=basis)


def _push(
    model: Model, gamma: Any, clip: Any, punish: Any, params: Params, batches: Batches, key: Key
) -> Array:
    del key
    losses = model.loss(params, batches["forget"])
    raised = saturated(losses, clip) - punish / (losses + 1e-3)
    return -gamma * weighted_mean(raised, batches["forget"])


def _excess(
    model: Model, params: Params, batches: Batches, level: Array, key: Key
) -> tuple[Array, Array]:
    del key
    losses = model.loss(params, batches["remote"]) - level
    return weighted_mean(losses, batches["remote"]), level


def _basis(
    model: Model,
    alpha: Any,
    sign: int,
    forget: int,
    remote: int,
    params: Params,
    batches: Batches,
    state: Any,
    key: Key,
) -> dict[str, Any]:
    del state, key

    def shifted(p: Params, batch: Batch) -> Array:
        losses, weight = model.loss(p, batch), batch["weight"]
        moved = wasserstein2(losses, batch[BEFORE], weight, weight)
        return (1 - alpha) * sign * weighted_mean(losses, batch) + alpha * moved

    def mean(p: Params, batch: Batch) -> Array:
        return weighted_mean(model.loss(p, batch), batch)

    q_f = _summed(shifted, params, sub_batches(batches["forget"], forget))
    return {"basis": (q_f, _summed(mean, params, sub_batches(batches["remote"], remote)))}


def _summed(value: Callable[[Params, Batch], Array], params: Params, batches: Batch) -> Params:
    """sum_k grad value(params, batch_k), in float32 or better."""

    def add(total: Params, batch: Batch) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, jax.grad(value)(params, batch)), None

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, "float32")), params)
    return jax.lax.scan(add, zero, batches)[0]
