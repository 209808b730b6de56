"""Ending a run by accuracies: what is looked at after every epoch, and which model is kept.

    a_S(e) = accuracy on the set S after e epochs, e = 0 (before the first step) ... E

    "gap"          ends where a_held_out(e) > a_forget(e); keeps epoch e or e - 1, whichever of the
                   two gaps a_held_out - a_forget is nearer to 0
    another name   ends where a_S(0) - a_S(e) > drop; keeps epoch e - 1

An evaluation is a pass over each watched set as further streams of `training.fit`, so that it works
inside a compiled program and on streaming data. What it has to remember is a `Watch`, part of the
objective's state.

Hoang et al. (2024), arXiv:2312.04095: "gap" for instances, a drop on retained data for classes.
Departure: 1. after a drop the model before it is kept; what the source keeps is not stated.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array, Batch, Params

WATCHED: dict[str | None, tuple[str, ...]] = {
    None: (),
    "gap": ("forget", "held_out"),
    "retain": ("retain",),
    "held_out": ("held_out",),
}  # rule -> the fields of the request that it looks at, in this order


class Ending(enum.IntEnum):
    """Why a run ended; a value, because an error cannot leave a compiled program."""

    COMPLETED = 0  # all epochs, or divergence: see `status`
    STOPPED = 1  # by the rule
    TOO_FAST = 2  # by the rule after the first epoch: take a smaller learning rate
    AT_ONCE = 3  # by the rule before the first step: nothing had to be forgotten
    INDEFINITE = 4  # the Grams do not fit together; params as they came


class Rule(NamedTuple):
    """When to stop."""

    name: str | None
    batches: int  # of one evaluation, all fields together
    drop: float | Array  # fall of accuracy that is allowed; not read by "gap"


class Watch(NamedTuple):
    """What the next batch of an evaluation needs. F fields are watched."""

    previous: Params  # the params one evaluation ago; () if nothing is watched
    sums: Array  # (2, F) float32, weights of the rows that are right, and of all rows
    seen: Array  # [] int32, batches of this evaluation so far
    evaluated: Array  # [] int32, evaluations so far
    accuracies: Array  # (E + 1, F) float32, -1 where there is none yet
    fired: Array  # [] bool, the rule
    back: Array  # [] bool, `previous` is what is handed out


def watching(params: Params, epochs: int, fields: int) -> Watch:
    """The state before the first batch."""
    return Watch(
        previous=params if fields else (),
        sums=jnp.zeros((2, fields)),
        seen=jnp.int32(0),
        evaluated=jnp.int32(0),
        accuracies=jnp.full((epochs + 1, fields), -1.0),
        fired=jnp.array(False),
        back=jnp.array(False),
    )


def watched(
    rule: Rule, params: Params, watch: Watch, field: str, right: Array, batch: Batch
) -> Watch:
    """The state after one more batch; after the last one of an evaluation, with the rule's word.

    Args:
      rule: when to stop.
      params: that are being evaluated.
      watch: the state before.
      field: whose batch it is.
      right: (n, ...) bool, predictions that are right, at every position of an example.
      batch: for its weights; rows of weight 0 count nothing.
    """
    right = right.reshape(right.shape[0], -1).mean(axis=1)
    weight = batch.get("weight", jnp.ones(right.shape))
    both = jnp.stack([jnp.where(weight > 0, weight * right, 0).sum(), weight.sum()])
    place = WATCHED[rule.name].index(field)
    sums = watch.sums.at[:, place].add(both.astype(watch.sums.dtype))
    watch = watch._replace(sums=sums, seen=watch.seen + 1)
    done = watch.seen == rule.batches
    after = _evaluated(rule, params, watch)
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), after, watch)


def _evaluated(rule: Rule, params: Params, watch: Watch) -> Watch:
    now = watch.evaluated
    right, rows = watch.sums
    accuracies = watch.accuracies.at[now].set(right / jnp.where(rows > 0, rows, 1))
    if rule.name == "gap":
        gap = accuracies[:, 1] - accuracies[:, 0]
        fired = gap[now] > 0
        nearer_before = jnp.abs(gap[now - 1]) < jnp.abs(gap[now])
    else:
        fired = accuracies[0, 0] - accuracies[now, 0] > rule.drop + 1e-6  # of rounding
        nearer_before = jnp.array(True)
    kept = jax.tree.map(lambda new, old: jnp.where(fired, old, new), params, watch.previous)
    return watch._replace(
        previous=kept,
        sums=jnp.zeros_like(watch.sums),
        seen=jnp.int32(0),
        evaluated=now + 1,
        accuracies=accuracies,
        fired=fired,
        back=fired & nearer_before & (now > 0),
    )


def handed_out(params: Params, watch: Watch) -> Params:
    """The params at the end, or those of the evaluation before the rule fired."""
    if not jax.tree.leaves(watch.previous):
        return params
    return jax.tree.map(lambda old, new: jnp.where(watch.back, old, new), watch.previous, params)


def ending(watch: Watch) -> Array:
    """[] int32, an `Ending` but INDEFINITE."""
    last = watch.evaluated - 1
    fired = jnp.where(last == 0, Ending.AT_ONCE, Ending.STOPPED)
    fired = jnp.where(last == 1, Ending.TOO_FAST, fired)
    return jnp.where(watch.fired, fired, Ending.COMPLETED).astype(jnp.int32)
