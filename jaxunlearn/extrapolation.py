"""Extrapolation in weight space: how far beyond a model, away from another.

    theta(alpha) = theta_ref + alpha (theta_ref - theta_mem)

alpha = -1 is the memorised model, 0 the reference, and alpha > 0 lies on the far side: what was
learnt between the two is taken back alpha times. With theta_mem a copy that was trained further on
some task this is the negation of a task vector (Ilharco et al., 2023, arXiv:2212.04089); for
unlearning see `jaxunlearn.methods.descent.mox` (arXiv:2602.06441).

The map is affine in both models, so that it commutes with averages over time: an exponential
average of extrapolated models is the extrapolation of the averaged one, `averaged` below, and
alpha can be chosen after training in either case.

Running statistics are not weights: a variance extrapolated by a large alpha would be negative.
Those of the reference are kept.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.penalties import check_like
from jaxunlearn.typing import Array, Key, Params, check_between


def _moves(leaf: Any) -> bool:
    """Whether a leaf holds weights: not counters, and not random keys."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _wide(leaf: Any) -> Array:
    return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def extrapolate(reference: Params, memorised: Params, alpha: float | Array) -> Params:
    """theta = theta_ref + alpha (theta_ref - theta_mem), every leaf in at least float32.

    Args:
      reference: theta_ref, any tree.
      memorised: theta_mem of the same shapes. It may be wider: float32 beside bfloat16.
      alpha: [] any finite number, traced or not; > 0 leads away from `memorised`.

    Returns:
      A tree like `reference`, in its dtypes.

    Raises:
      ValueError: alpha is not finite or has a shape; the trees or shapes differ.

    | case                                        | result                            |
    |---------------------------------------------|-----------------------------------|
    | alpha = 0, or theta_mem = theta_ref         | theta_ref, bit for bit            |
    | alpha = -1                                  | theta_mem, bit for bit            |
    | an entry that did not move                  | that of theta_ref, bit for bit    |
    | integer, boolean and key leaves             | those of theta_ref                |
    | {"params": ..., "batch_stats": ...}         | the statistics are theta_ref's    |
    | alpha so large that a weight overflows      | inf                               |

    Cost: one pass over the weights, no communication.

    Source: Huang et al. (2026), arXiv:2602.06441.

    Example:
      >>> print(extrapolate(jnp.array([1.0, 2.0]), jnp.array([1.5, 2.0]), 4.0))
      [-1.  2.]
    """
    check_like("extrapolate", "memorised", memorised, reference)
    if jnp.shape(alpha) != ():
        raise ValueError(
            f"extrapolate: alpha must be one number, got shape {jnp.shape(alpha)}. "
            "For several see extrapolations."
        )
    check_between("extrapolate", "alpha", alpha)

    def reflect(r: Any, m: Any) -> Any:
        if not _moves(r):
            return r
        wide, target = _wide(r), _wide(m)
        step = alpha * (wide - target)
        far = jnp.where(step == 0, wide, wide + step)
        return jnp.where(alpha == -1, target, far).astype(jnp.result_type(r))

    if isinstance(reference, Mapping) and set(reference) == {"params", "batch_stats"}:
        weights = jax.tree.map(reflect, reference["params"], memorised["params"])
        return {"params": weights, "batch_stats": reference["batch_stats"]}
    return jax.tree.map(reflect, reference, memorised)


def extrapolations(reference: Params, memorised: Params, alphas: Array) -> Params:
    """`extrapolate` for every alpha: a sweep without retraining.

    Args:
      reference, memorised: as for `extrapolate`.
      alphas: (k,) float.

    Returns:
      A tree like `reference` with a leading axis k, for `jax.vmap` over models.

    Raises:
      ValueError: alphas is not one-dimensional; otherwise as for `extrapolate`.

    Cost: k copies of the weights.

    Example:
      >>> print(extrapolations(jnp.ones(2), jnp.zeros(2), jnp.array([0.0, 1.0, 4.0]))[:, 0])
      [1. 2. 5.]
    """
    alphas = jnp.asarray(alphas)
    if alphas.ndim != 1:
        raise ValueError(f"extrapolations: alphas must have shape (k,), got {alphas.shape}.")
    return jax.vmap(lambda alpha: extrapolate(reference, memorised, alpha))(alphas)


def distance(one: Params, other: Params) -> Array:
    """|theta - theta'| over the weights, [] at least float32; what `extrapolate` multiplies.

    Example:
      >>> print(distance({"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 4.0])}))
      5.0
    """
    check_like("distance", "other", other, one)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    squares = [jnp.square(jnp.abs(_wide(a) - _wide(b))).sum() for a, b in pairs if _moves(a)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


class AveragedState(NamedTuple):
    """Of `averaged`."""

    inner: Any  # the averaged objective's own state
    average: Params  # like params, at least float32
    count: Array  # [] int32, steps so far


def averaged(objective: Objective, rate: float | Array, interval: int = 1) -> Objective:
    """The same objective, whose outcome is a running average of the params.

        theta_bar <- theta_bar + eta (theta - theta_bar)    after every `interval` steps

    Args:
      objective: whose outcome is its params.
      rate: eta in [0, 1], traced or not; 1 keeps the last params, 0 those of the start.
      interval: steps between updates, >= 1.

    Returns:
      An Objective with the outcome theta_bar (at least float32), theta_0 at the start: a convex
      combination of the params it has seen. What never moved is bit-identical.

    Raises:
      ValueError: a rate outside [0, 1], an interval below 1.

    Example:
      >>> from jaxunlearn import objectives
      >>> falling = averaged(objectives.stateless(lambda p, batches, key: p), 0.5)
      >>> print(falling.outcome(jnp.float32(0.0), falling.init(jnp.float32(4.0))))
      4.0
    """
    check_between("averaged", "rate", rate, at_least=0, at_most=1)
    if not interval >= 1:
        raise ValueError(f"averaged: interval must be >= 1 steps, got {interval}.")
    return objective._replace(
        init=bind(_start, objective.init),
        loss=bind(_next, objective.loss, rate, interval),
        outcome=bind(_last, rate, interval),
        extras=objective.extras and bind(_extras, objective.extras),
    )


def _extras(extras: Callable, params: Params, batches: Batches, state: Any, key: Key) -> dict:
    return extras(params, batches, state.inner, key)


def _start(init: Callable, params: Params) -> AveragedState:
    return AveragedState(init(params), jax.tree.map(_wide, params), jnp.int32(0))


def _last(rate: Any, interval: int, params: Params, state: AveragedState) -> Params:
    """The average with `params` taken in, if it is their turn after `count` steps."""
    due = (state.count > 0) & (state.count % interval == 0)

    def mix(new: Array, mean: Array) -> Array:
        mixed = jnp.where(new == mean, mean, rate * new + (1 - rate) * mean)
        return jnp.where(due, mixed.astype(mean.dtype), mean)

    return jax.tree.map(lambda new, mean: mix(_wide(new), mean), params, state.average)


def _next(
    loss: Callable,
    rate: Any,
    interval: int,
    params: Params,
    batches: Batches,
    state: AveragedState,
    key: Key,
) -> tuple[Array, AveragedState]:
    """A loss is asked for at theta_t before step t + 1: theta_t is taken in then."""
    average = _last(rate, interval, params, state)
    value, inner = loss(params, batches, state.inner, key)
    return value, AveragedState(inner, jax.lax.stop_gradient(average), state.count + 1)
