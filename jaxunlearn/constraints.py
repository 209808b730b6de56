"""Constraints in an objective: the augmented Lagrangian, its dual variable carried as state.

    min_theta f(theta)  subject to  h(theta) = 0  (or h(theta) <= 0)

    L = f + lambda h + mu/2 h^2,            lambda <- lambda + mu h              equality
    L = f + (s^2 - lambda^2) / (2 mu),      lambda <- s = max(0, lambda + mu h)  inequality

A penalty alone, mu/2 h^2, meets its constraint only as mu grows without bound; the multiplier adds
up what is still violated, so that a moderate mu will do. Primal and dual steps alternate: the loss
of a step has the old multiplier, and the new one is made of h *before* the step, at the same
parameters. On minibatches h is the batch's, and lambda averages over them; it is then the number of
steps, not of epochs, that decides how far lambda goes.

Hestenes (1969), "Multiplier and gradient methods", and Powell (1969) for equalities; Rockafellar
(1974), "Augmented Lagrange multiplier functions and duality in nonconvex programming", for the
second line. Its gradient is max(0, lambda + mu h) grad h: a hinge, which lets go of a constraint
that holds with room to spare.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Key, Params, check_between

_KINDS = ("equality", "inequality")


class LagrangianState(NamedTuple):
    """What the next step needs."""

    multiplier: Array  # [] float, lambda; in units of f per unit of h
    objective: Any  # state of f
    constraint: Any  # state of h


def augmented_lagrangian(
    objective: Objective,
    constraint: Objective,
    mu: float = 10.0,
    *,
    kind: str = "equality",
    multiplier: float = 0.0,
) -> Objective:
    """L = f + lambda h + mu/2 h^2 with lambda <- lambda + mu h, h before the step.

    Args:
      objective: f, an Objective.
      constraint: h, an Objective whose value is to be 0, or at most 0; signed, not a hinge.
      mu: > 0, in units of f per squared unit of h; the rate of the dual steps too.
      kind: "equality" or "inequality" (h <= 0).
      multiplier: lambda before the first step; >= 0 for an inequality.

    Returns:
      An Objective with a `LagrangianState`; its outcome is that of f, its extras those of f. After
      a run, `fitted.state.objective.multiplier` is lambda. f and h get keys of their own.

    Raises:
      ValueError: an unknown kind, mu not above 0, a negative multiplier of an inequality.

    | edge case                          | result                                               |
    |------------------------------------|------------------------------------------------------|
    | h = 0 throughout                   | f alone, lambda stays                                |
    | equality, h < 0                    | lambda falls, below 0 too: a surplus is spent        |
    | inequality, lambda + mu h <= 0     | gradient of f alone, lambda = 0                      |
    | h is NaN or Inf                    | so is L, and `fit` ends with DIVERGED before the step |

    Cost: f and h, forward and backward; one number of state.

    Source: Hestenes (1969), Powell (1969), Rockafellar (1974); see the module.

    Example:
      >>> from jaxunlearn.objectives import stateless
      >>> f = stateless(lambda p, batches, key: jnp.sum(p**2))
      >>> h = stateless(lambda p, batches, key: jnp.sum(p) - 1)
      >>> whole = augmented_lagrangian(f, h, mu=4.0)
      >>> value, state = whole.loss(jnp.ones(2), {}, whole.init(jnp.ones(2)), jax.random.key(0))
      >>> print(value, state.multiplier)
      4.0 4.0
    """
    if kind not in _KINDS:
        raise ValueError(f"augmented_lagrangian: kind must be one of {_KINDS}, got {kind!r}.")
    check_between("augmented_lagrangian", "mu", mu, above=0)
    lowest = 0 if kind == "inequality" else None
    check_between("augmented_lagrangian", "multiplier", multiplier, at_least=lowest)
    return Objective(
        bind(_init, multiplier, objective, constraint),
        bind(_loss, mu, kind, objective, constraint),
        bind(_outcome, objective),
        None if objective.extras is None else bind(_extras, objective),
    )


def _init(
    multiplier: Any, objective: Objective, constraint: Objective, params: Params
) -> LagrangianState:
    start = jnp.asarray(multiplier, jnp.result_type(float))
    return LagrangianState(start, objective.init(params), constraint.init(params))


def _loss(
    mu: Any,
    kind: str,
    objective: Objective,
    constraint: Objective,
    params: Params,
    batches: Batches,
    state: LagrangianState,
    key: Key,
) -> tuple[Array, LagrangianState]:
    keys = [jax.random.fold_in(key, k) for k in range(2)]
    f, inner = objective.loss(params, batches, state.objective, keys[0])
    h, outer = constraint.loss(params, batches, state.constraint, keys[1])
    multiplier = state.multiplier
    raised = multiplier + mu * h
    penalty = multiplier * h + mu / 2 * h**2
    if kind == "inequality":
        raised = jnp.maximum(raised, 0)
        penalty = (raised**2 - multiplier**2) / (2 * mu)
    after = jax.lax.stop_gradient(raised).astype(multiplier.dtype)
    return f + penalty, LagrangianState(after, inner, outer)


def _outcome(objective: Objective, params: Params, state: LagrangianState) -> Params:
    return objective.outcome(params, state.objective)


def _extras(
    objective: Objective, params: Params, batches: Batches, state: LagrangianState, key: Key
) -> dict[str, Any]:
    assert objective.extras is not None
    return objective.extras(params, batches, state.objective, jax.random.fold_in(key, 0))
