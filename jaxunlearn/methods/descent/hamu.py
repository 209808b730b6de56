"""HAMU: every step raises the forget loss by a stated amount, at the least cost for the rest.

    min_d  grad L_R . d    subject to    grad L_F . d >= B,    |d| <= R            variant "Q"
    min_d -grad L_F . d    subject to   -grad L_R . d >= B,    |d| <= R            variant "U"

    theta <- theta + d,    R = eta |grad L_R|,    B = rho eta,    one problem for every array

The step is `transforms.two_objective_step`, and there is no optimiser behind it: what it promises
holds for theta itself. B is in nats per step, so T steps ask for about T B nats of forget loss.
Where both gradients are small B cannot be had within R: the run stops there, or (`fallback`)
takes the shortest step that has it.

Chen et al. (2026), "How Hard Can It Be? Hardness-Aware Multi-Objective Unlearning",
arXiv:2606.02119, and its code, whose constants these are (image classification, batches of 5000).

Departures: 1. Those of the transformation. 2. The forget set is cycled beside the retained data, an
epoch is one pass over the latter. 3. A run that stops says `Status.STOPPED`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import objectives
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective
from jaxunlearn.training import Status, fit
from jaxunlearn.transforms.two_objectives import two_objective_step
from jaxunlearn.typing import Array, Key, Params, check_between


class HamuInfo(NamedTuple):
    """What a person wants to see: the run, and how hard it was."""

    losses: Array  # (steps,) float32, retain loss before each step; NaN from where the run ended
    status: Array  # [] int32, a `training.Status`
    steps: Array  # [] int32, steps that changed the params
    best_score: Array  # [] float32, -inf unless a score is given
    branches: Array  # (5,) int32, blocks by `transforms.Branch`, of all steps
    cosine: Array  # [] float32, of the two gradients at the last step; 1 is hard
    slack: Array  # [] float32, nats at the last step; negative: B cost retain loss


def retain_beside_forget(model: Model) -> Objective:
    """L = mean loss on the retained data; `extras` has the gradient of that on the forget set."""
    return objectives.mean_loss(model, "retain")._replace(
        extras=objectives.bind(_forget_gradient, model)
    )


def _forget_gradient(
    model: Model, params: Params, batches: Batches, state: Any, key: Key
) -> dict[str, Params]:
    forget = objectives.mean_loss(model, "forget")
    return {"forget_grads": jax.grad(lambda p: forget.loss(p, batches, state, key)[0])(params)}


def hamu(
    *,
    learning_rate: float = 1e-4,
    ratio: float = 0.5,
    radius: float | None = None,
    variant: str = "Q",
    blocks: str = "leaf",
    distribute: str = "norms",
    infeasible: str = "stop",
    stop_when_hard: bool = False,
    clip: float | None = 1.0,
    epochs: int = 25,
) -> Method:
    """theta + argmin_d grad L_R . d  subject to  grad L_F . d >= rho eta, |d| <= eta |grad L_R|.

    Args:
      learning_rate: eta >= 0. R is eta times the length of the (clipped) retain gradient of a
        block; in variant "U", of the forget gradient.
      ratio: rho >= 0; B = rho eta nats of forget loss per step ("U": of retain loss, downwards).
        Published: 0.5, swept over 0 ... 0.9.
      radius: a fixed R > 0 for every block in the place of eta |grad L_R|.
      variant, blocks, distribute, infeasible, stop_when_hard: as for
        `transforms.two_objective_step`.
      clip: norm to which each of the two gradients is clipped first, > 0; None: not at all. B is
        then the gain against clipped gradients: less than the loss really gains.
      epochs: passes over the retained data, >= 0.

    Returns:
      A Method that needs forget, retain, labels and the key; info is a `HamuInfo`.

    Raises:
      ValueError: a constant outside its range, or an unknown choice.

    | edge case                         | result                                                |
    |-----------------------------------|-------------------------------------------------------|
    | epochs = 0, or learning rate 0    | params bit-identical                                  |
    | ratio = 0, gradients opposed      | normalised descent on the retained data               |
    | B out of reach, "stop"            | params before that step, `info.status == STOPPED`     |
    | B out of reach, "fallback"        | B is gained, by a step longer than R                  |
    | divergence                        | last finite params, `info.status == DIVERGED`         |
    | fixed radius 0.1, small gradients | a step of 0.1 all the same                            |

    Cost: `epochs` passes over the retained data and as many forget batches; memory of two
    gradients.

    Source: Chen et al. (2026), arXiv:2606.02119; departures in the module.

    Example:
      >>> sorted(hamu(epochs=1).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    check_between("hamu", "learning_rate", learning_rate, at_least=0)
    check_between("hamu", "ratio", ratio, at_least=0)
    if radius is not None:
        check_between("hamu", "radius", radius, above=0)
    if epochs < 0:
        raise ValueError(f"hamu: epochs must be >= 0, got {epochs}.")
    tx = two_objective_step(
        learning_rate if radius is None else radius,
        ratio * learning_rate,
        variant=variant,
        blocks=blocks,
        distribute=distribute,
        infeasible=infeasible,
        relative=radius is None,
        clip=clip,
        stop_when_hard=stop_when_hard,
    )

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        assert request.retain is not None
        out = fit(
            retain_beside_forget(model),
            tx,
            params,
            {"retain": request.retain, "forget": request.forget},
            key=key,
            epochs=epochs,
            score=score,
        )
        end = out.state.opt_state
        made = jnp.arange(out.info.losses.size) < end.count
        stopped = end.stopped & (out.info.status == Status.COMPLETED)
        info = HamuInfo(
            losses=jnp.where(made, out.info.losses, jnp.nan),
            status=jnp.where(stopped, jnp.int32(Status.STOPPED), out.info.status),
            steps=jnp.minimum(end.count, out.info.steps),
            best_score=out.info.best_score,
            branches=end.branches,
            cosine=end.cosine,
            slack=end.slack,
        )
        return Unlearned(model, out.params, info)

    return method(
        unlearn,
        needs={"forget", "retain", "labels", "key"},
        name="hamu",
        guarantee=EMPIRICAL,
        scored=True,
    )
