"""Rewinding: of the params after each epoch, those that err on F as a model errs on unseen data.

    e* = argmin_e |err(theta_e; F) - err(theta_E; H)|,    e = 1 .. E

H are examples of F's kind that were never trained on. A run that pushes F away overshoots: its
error on F ends above that on H, which is the mark of an example that was treated. Going back to the
epoch where both agree hides it. Kurmanji et al. (2023), "Towards Unbounded Machine Unlearning",
arXiv:2302.09880, the "+R" of SCRUB+R; a *reconstruction* from the paper's description.

The target is the error on H where the run *ends*, so that no epoch can be judged before it: the
params after each epoch are kept as state of the objective. Departure: among epochs that are equally
near the last is taken, since later epochs have repaired more.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import Fitted
from jaxunlearn.typing import Array, Batch, Data, Key, Params


class Remembered(NamedTuple):
    """State of a remembering objective."""

    objective: Any  # state of the objective inside
    step: Array  # [] int32, steps done
    epochs: Params  # like params with a leading axis E - 1: after each epoch but the last


class RewindInfo(NamedTuple):
    """What a person wants to see of a run that was rewound."""

    losses: Array  # (steps,) float32, as in `training.FitInfo`
    status: Array  # [] int32, a `Status`
    steps: Array  # [] int32, of the whole run
    epoch: Array  # [] int32, e*, in 1 .. E
    forget_errors: Array  # (E,) float32 in [0, 1], on F after each epoch; NaN if it was not reached
    target: Array  # [] float32, the error on H at the end


def remembering(objective: Objective, starts: Sequence[int]) -> Objective:
    """`objective`, which also keeps the params with which each later epoch starts.

    Args:
      objective: any.
      starts: (E,) steps at which the epochs start, ascending, the first one 0.

    Cost: memory of E - 1 models, and one pass over it a step.
    """

    def init(params: Params) -> Remembered:
        def slots(p: Array) -> Array:
            return jnp.zeros((len(starts) - 1, *p.shape), p.dtype)

        return Remembered(objective.init(params), jnp.int32(0), jax.tree.map(slots, params))

    return Objective(init, bind(_remembered, objective.loss, tuple(starts[1:])), objective.outcome)


def _remembered(
    loss: Any,
    starts: tuple[int, ...],
    params: Params,
    batches: Batches,
    state: Remembered,
    key: Key,
) -> tuple[Array, Remembered]:
    value, inner = loss(params, batches, state.objective, key)
    begins = jnp.asarray(starts, jnp.int32) == state.step  # at most one of them

    def keep(kept: Array, p: Array) -> Array:
        return jnp.where(begins.reshape(-1, *[1] * p.ndim), p[None], kept)

    epochs = jax.lax.cond(
        begins.any(), lambda: jax.tree.map(keep, state.epochs, params), lambda: state.epochs
    )
    return value, Remembered(inner, state.step + 1, epochs)


def rewound(
    model: Model, fitted: Fitted, starts: Sequence[int], forget: Data, held_out: Data
) -> tuple[Params, RewindInfo]:
    """theta_{e*} of a fitted `remembering` objective.

    Args:
      model: its outputs' last axis are classes.
      fitted: of `fit`, with the objective that `remembering` made and its outcome the params.
      starts: as given there.
      forget, held_out: F and H, with labels.

    Edge cases: an epoch that a stopped or diverged run did not finish is no candidate, but the
    params where it ended are, as the last.

    Cost: E forward passes over F and one over H.
    """
    after = jax.tree.map(
        lambda kept, p: jnp.concatenate([kept, p[None]]),
        fitted.state.objective.epochs,
        fitted.params,
    )
    last = jax.tree.map(lambda p: p[None], fitted.params)
    target = error_rates(model, last, held_out)[0]
    reached = fitted.info.steps > jnp.asarray([*starts[1:], -1])
    errors = jnp.where(reached, error_rates(model, after, forget), jnp.nan)
    away = jnp.where(reached, jnp.abs(errors - target), jnp.inf)
    place = len(starts) - 1 - jnp.argmin(away[::-1])
    info = RewindInfo(
        losses=fitted.info.losses,
        status=fitted.info.status,
        steps=fitted.info.steps,
        epoch=(place + 1).astype(jnp.int32),
        forget_errors=errors,
        target=target,
    )
    return jax.tree.map(lambda p: p[place], after), info


def error_rates(model: Model, params: Params, data: Data) -> Array:
    """sum_i w_i [argmax f_e(x_i) != y_i] / sum_i w_i for each of E models.

    Args:
      params: with a leading axis E.
      data: with integer labels; several positions of an example are averaged.

    Returns:
      (E,) float32.
    """
    count = jax.tree.leaves(params)[0].shape[0]
    start = (jnp.zeros(count, jnp.float32), jnp.float32(0))
    wrong, total = fold_over(bind(_count_errors, model), params, data, start)
    return wrong / total


def _count_errors(
    model: Model, params: Params, carry: tuple[Array, Array], batch: Batch, keys: Any
) -> tuple[Array, Array]:
    del keys

    def wrong(p: Params) -> Array:
        missed = jnp.argmax(model.outputs(p, batch), axis=-1) != batch["y"]
        each = missed.reshape(missed.shape[0], -1).mean(axis=1, dtype=jnp.float32)
        return (each * batch["weight"]).sum(dtype=jnp.float32)

    return carry[0] + jax.vmap(wrong)(params), carry[1] + batch["weight"].sum(dtype=jnp.float32)
