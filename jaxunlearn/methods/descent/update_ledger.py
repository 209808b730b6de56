"""The bookkeeping of amnesiac unlearning: which batches held whom, and what they did to theta.

    theta_{t+1} = theta_t + d_t,    ledger = {(t, who of the watched was in batch t, d_t)}
    theta' = theta_T - sum_{t : batch t held somebody of `ids`} d_t

What it means, and when it is exact, is said in `jaxunlearn.methods.descent.amnesiac`. The ledger
is state of the optimiser: a transformation around `tx` writes the change that it just made, and an
`Objective.extras` tells it who is in the batch. So a recorded training is `fit` and gives the same
bits; it can be jitted and vmapped over params and keys.

Graves et al. (2021), arXiv:2010.10981. Departure: changes are kept per batch with the members of
each, so that any subset of the watched examples can be asked for later, and a batch is undone once.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.streams import InMemory, Stream, as_data, is_traced
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import FitInfo, fit
from jaxunlearn.typing import Array, Data, Key, Params


class Ledger(NamedTuple):
    """What the batches with watched examples did; M slots, as many as there can be such batches."""

    changes: Params  # like params with a leading axis M, float32 or wider: d_t, 0 in an empty slot
    members: Array  # (M, k) bool: which of the watched ids batch t held with positive weight
    steps: Array  # (M,) int32: t, -1 in an empty slot
    ids: Array  # (k,) integers, the watched ones, ascending
    step: Array  # [] int32, steps seen


class Recorded(NamedTuple):
    """What `record_updates` returns."""

    params: Params  # of the trained model: the outcome of the objective
    ledger: Ledger
    info: FitInfo


def record_updates(
    objective: Objective,
    tx: optax.GradientTransformation,
    params: Params,
    data: Data,
    *,
    ids: Iterable[int],
    key: Key,
    epochs: int,
    **options: Any,
) -> Recorded:
    """`fit(objective, tx, params, data, ...)` that keeps the changes of batches with watched rows.

    Args:
      objective: of the stream "data"; `objectives.training(model)` is ordinary training.
      tx, params, key, epochs: as for `fit`.
      data: one Data with a column "id".
      ids: what may be asked for later, distinct integers; at least one of them in the data.
      options: `shuffle` and `progress`, as for `fit`.

    Returns:
      `Recorded`. params and info are those of the same `fit` without a ledger, bit for bit.

    Raises:
      ValueError: no "id" column, no ids, or none of them in the data.

    | edge case                        | result                                        |
    |----------------------------------|-----------------------------------------------|
    | epochs = 0                       | an empty ledger                               |
    | a watched row of weight 0        | it is padding, and no reason to record        |
    | the run diverges                 | the ledger of its finite steps                |
    | running statistics               | not in the ledger; subtract from the weights  |

    Cost: of `fit`; memory of M times the params in float32, M = epochs times the batches that can
    hold watched rows (all of them if there are more such rows than batches). Every step passes over
    that memory once.

    Source: Graves et al. (2021), arXiv:2010.10981.

    Example:
      >>> from jaxunlearn.objectives import stateless
      >>> data = {"id": np.arange(4), "x": np.arange(4.0, dtype=np.float32)}
      >>> linear = stateless(lambda p, batches, key: p * batches["data"]["x"].sum())
      >>> recorded = record_updates(
      ...     linear, optax.sgd(0.1), jnp.zeros(()), data, ids=[3], key=jax.random.key(0), epochs=2
      ... )
      >>> print(recorded.ledger.changes)
      [-0.6 -0.6]
    """
    data = as_data(data)
    watched = tuple(sorted({int(i) for i in ids}))
    slots = epochs * _sensitive_batches(data, watched)
    out = fit(
        objective._replace(extras=bind(_extras, watched, objective.extras)),
        _recording(tx, watched, slots),
        params,
        {"data": data},
        key=key,
        epochs=epochs,
        **options,
    )
    return Recorded(out.params, out.state.opt_state[1], out.info)


def subtract_updates(
    params: Params, ledger: Ledger, ids: Iterable[int] | None = None
) -> tuple[Params, Ledger]:
    """theta - sum of the changes of all batches that held somebody of `ids`; what is left of both.

    Args:
      params: theta, the tree that was trained; with running statistics `params["params"]`.
      ledger: of `record_updates`, or of an earlier call.
      ids: among the watched ones; None: all of them.

    Returns:
      (params, ledger). The batches that were undone are erased from the ledger, so that the next
      request cannot undo them again and nothing of them is kept.

    Raises:
      ValueError: ids that were not watched, or params of another tree or shape.

    | edge case                          | result                          |
    |------------------------------------|---------------------------------|
    | no batch held any of them          | params bit-identical            |
    | all batches are undone             | theta_0, up to rounding         |
    | a batch held two of them           | undone once                     |

    Cost: one pass over the ledger.
    """
    _check_tree(params, ledger)
    wanted = ledger.ids if ids is None else jnp.asarray(sorted({int(i) for i in ids}), jnp.int32)
    if not is_traced((ledger.ids, wanted)):
        absent = np.setdiff1d(wanted, ledger.ids)
        if absent.size:
            raise ValueError(
                f"subtract_updates: id {absent[0]} was not watched, so what it changed is not in "
                "the ledger. record_updates(..., ids=...) names those that may be asked for."
            )
    asked = (ledger.ids[:, None] == wanted[None, :]).any(axis=1)
    undone = (ledger.members & asked[None, :]).any(axis=1)

    def without(p: Array, change: Array) -> Array:
        some = jnp.where(_along(undone, change), change, 0).sum(axis=0)
        return (p.astype(change.dtype) - some).astype(p.dtype)

    left = ledger._replace(
        changes=jax.tree.map(lambda c: jnp.where(_along(undone, c), 0, c), ledger.changes),
        members=ledger.members & ~undone[:, None],
        steps=jnp.where(undone, -1, ledger.steps),
    )
    return jax.tree.map(without, params, ledger.changes), left


def _along(slots: Array, change: Array) -> Array:
    return slots.reshape(-1, *[1] * (change.ndim - 1))


def _check_tree(params: Params, ledger: Ledger) -> None:
    same = jax.tree.structure(params) == jax.tree.structure(ledger.changes)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(ledger.changes), strict=False)
    if not same or any(jnp.shape(p) != c.shape[1:] for p, c in pairs):
        raise ValueError(
            "subtract_updates: params and the ledger are of different trees or shapes. It is the "
            "weights that were trained: with running statistics give params['params']."
        )


def _sensitive_batches(data: InMemory | Stream, watched: tuple[int, ...]) -> int:
    """At most so many batches of one pass hold watched rows."""
    batches = [data.arrays] if isinstance(data, InMemory) else data
    rows, held = 0, 0
    for batch in batches:
        if "id" not in batch:
            raise ValueError(
                f"record_updates: expected data with a column 'id', got {sorted(batch)}."
            )
        if is_traced((batch["id"], batch.get("weight"))):
            rows += batch["id"].shape[0]
            continue
        counts = np.asarray(batch.get("weight", np.ones(batch["id"].shape[0]))) > 0
        here = int((np.isin(batch["id"], watched) & counts).sum())
        rows, held = rows + here, held + (here > 0)
    if rows == 0:
        raise ValueError(f"record_updates: none of the {len(watched)} ids is in the data.")
    return min(rows, data.num_batches) if isinstance(data, InMemory) else held


def _extras(
    watched: tuple[int, ...],
    others: Callable | None,
    params: Params,
    batches: Batches,
    state: Any,
    key: Key,
) -> dict[str, Any]:
    batch = batches["data"]
    counts = batch["weight"] > 0
    held = (batch["id"][:, None] == jnp.asarray(watched, batch["id"].dtype)[None, :]).T
    extras = {} if others is None else others(params, batches, state, key)
    return extras | {"members": (held & counts[None, :]).any(axis=1)}


def _recording(
    tx: optax.GradientTransformation, watched: tuple[int, ...], slots: int
) -> optax.GradientTransformationExtraArgs:
    """`tx`, with the ledger beside its state."""
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> tuple[Any, Ledger]:
        def empty(p: Array) -> Array:
            return jnp.zeros((slots, *p.shape), jnp.promote_types(p.dtype, jnp.float32))

        return inner.init(params), Ledger(
            changes=jax.tree.map(empty, params),
            members=jnp.zeros((slots, len(watched)), bool),
            steps=jnp.full(slots, -1, jnp.int32),
            ids=jnp.asarray(watched, jnp.int32),
            step=jnp.int32(0),
        )

    def update(
        updates: Params, state: Any, params: Any = None, **extras: Any
    ) -> tuple[Params, tuple[Any, Ledger]]:
        updates, mine = inner.update(updates, state[0], params, **extras)
        ledger, members = state[1], extras["members"]
        after = optax.apply_updates(params, updates)
        place = (ledger.steps >= 0).sum()

        def write(ledger: Ledger) -> Ledger:
            def put(changes: Array, new: Array, old: Array) -> Array:
                return changes.at[place].set(new.astype(changes.dtype) - old.astype(changes.dtype))

            return ledger._replace(
                changes=jax.tree.map(put, ledger.changes, after, params),
                members=ledger.members.at[place].set(members),
                steps=ledger.steps.at[place].set(ledger.step),
            )

        ledger = jax.lax.cond(members.any(), write, lambda same: same, ledger)
        return updates, (mine, ledger._replace(step=ledger.step + 1))

    return optax.GradientTransformationExtraArgs(init, update)
