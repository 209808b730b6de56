"""What a sharded training needs to know of a training: three pure functions of a state.

    state_0 = init(key),    state_r = train(state_{r-1}, data_r, key_r),    outputs(state, batch)

The state holds everything that the next stage needs: parameters, running statistics, the state of
the optimiser. `gradient_trainer` makes a Trainer of a Model and an optax transformation; any other
three traceable functions will do, a closed form as well.

A stage's data are padded with rows of weight 0 to a multiple of the batch size, at their end.
`gradient_trainer` orders every epoch so that rows that count come first: all batches but the last
are full, none is without a row that counts, and the number of steps is that of the rows alone.

What a Trainer computes is known by its *fingerprint*: a hash of its programs as JAX lowers them, in
which the learning rate, the schedule, the architecture, the loss, the number of epochs and every
array that the functions close over are constants. Whoever changes any of them gets another
fingerprint without having to declare it, as do other versions of JAX.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.cache import code_version
from jaxunlearn.data.streams import InMemory
from jaxunlearn.loop import FitState, Plan, Status, scan_steps, start
from jaxunlearn.model import Model, split_statistics
from jaxunlearn.objectives import training
from jaxunlearn.typing import Array, Batch, Key, Params


class Trainer(NamedTuple):
    """A training in stages; all functions are pure and traceable, and call nothing on the host.

    Attributes:
      init: key -> state, a pytree of arrays.
      train: (state, data, key) -> state of the same structure. Data are `InMemory` without ids;
        rows of weight 0, at the end, must not count.
      outputs: (state, batch) -> (n, C) logits.
      diverged: state -> bool []; such a state is never stored, and an error says so.
      epochs: passes of `train` over its data, for reports of cost.
    """

    init: Callable[[Key], Any]
    train: Callable[[Any, InMemory, Key], Any]
    outputs: Callable[[Any, Batch], Array]
    diverged: Callable[[Any], Array]
    epochs: int = 1


class TrainerState(NamedTuple):
    """State of `gradient_trainer`."""

    fit: FitState  # params, optimiser state, running statistics; `step` counts within a stage
    statistics: Params  # running statistics of the initialisation, None without any


def gradient_trainer(model: Model, tx: optax.GradientTransformation, *, epochs: int) -> Trainer:
    """theta <- theta + tx(grad of the mean training loss), `epochs` passes a stage.

    Args:
      model: with `init`.
      tx: an optax transformation; its state (moments, the count of a schedule) goes on from stage
        to stage, as in one long run whose data grow.
      epochs: >= 0, passes over slices 1 .. r in stage r.

    Raises:
      ValueError: the model has no `init`, or epochs < 0.

    | situation                            | result                                               |
    |--------------------------------------|------------------------------------------------------|
    | n rows, batches of b                 | epochs x ceil(n / b) steps, padding or not           |
    | loss or params become non-finite     | `diverged`                                           |
    | batch normalisation                  | padding rows take part, as copies of rows that count |

    Cost: that of `jaxunlearn.fit`.

    Example:
      >>> model = Model(
      ...     outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: (b["x"] @ p - b["y"]) ** 2,
      ...     init=lambda key: jnp.zeros(2))
      >>> data = InMemory({"x": jnp.eye(2), "y": jnp.ones(2), "weight": jnp.ones(2)}, 2)
      >>> trainer = gradient_trainer(model, optax.sgd(0.5), epochs=9)
      >>> state = trainer.train(trainer.init(jax.random.key(0)), data, jax.random.key(1))
      >>> print(trainer.outputs(state, data.arrays).round(2))
      [1. 1.]
    """
    if model.init is None:
        raise ValueError(
            "gradient_trainer: this model has no `init`, so its shards cannot be trained from "
            "scratch. Give from_nnx a factory `rngs -> module`, or Model(..., init=...)."
        )
    if epochs < 0:
        raise ValueError(f"gradient_trainer: epochs must be >= 0, got {epochs}.")
    fresh = model.init

    def plan(statistics: Params, shuffle: Callable | None, epoch: int) -> tuple[Plan, Any]:
        objective = training(model, statistics=statistics)
        made = Plan(
            loss=objective.loss,
            outcome=objective.outcome,
            extras=objective.extras,
            tx=tx,
            names=("data",),
            batches=(epoch,),
            turns=(),
            total=epochs * epoch,
            shuffle=shuffle,
            stop=None,
            score=None,
            watch=None,
        )
        return made, objective

    def init(key: Key) -> TrainerState:
        weights, statistics = split_statistics(model, fresh(key))
        return TrainerState(start(*plan(statistics, None, 1), weights), statistics)

    def train(state: TrainerState, data: InMemory, key: Key) -> TrainerState:
        def rows_that_count_first(key: Key, n: int) -> Array:
            order = jax.random.permutation(key, n)
            return order[jnp.argsort(data["weight"][order] == 0, stable=True)]

        made, _ = plan(state.statistics, rows_that_count_first, data.num_batches)
        begun = state.fit._replace(step=jnp.int32(0))
        fit, _ = scan_steps(made, made.total, begun, {"data": data}, key, jnp.int32(0))
        return state._replace(fit=fit)

    def outputs(state: TrainerState, batch: Batch) -> Array:
        outcome = training(model, statistics=state.statistics).outcome
        return model.outputs(outcome(state.fit.params, state.fit.objective), batch)

    def diverged(state: TrainerState) -> Array:
        return state.fit.status != Status.COMPLETED

    return Trainer(init, train, outputs, diverged, epochs)


def environment() -> str:
    """What else decides bits: versions, kind of device, numeric settings, flags of the compiler.

    The number of threads is not in it.
    """
    quick = jax.config.read("jax_disable_most_optimizations")
    return f"{code_version()} {quick} {os.environ.get('XLA_FLAGS', '')}"


def fingerprint(init: Any, train: Any, data: InMemory, lanes: int) -> str:
    """64 hex digits of all that decides what a training computes, its data and keys apart.

    Args:
      init, train: jitted, as they will be called: of one key; of `lanes` states, data and keys.
      data: abstract, (lanes, rows, ...).
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key)

    def repeated(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype)

    states, keys = jax.tree.map(repeated, (state, key))
    texts = [init.lower(key).as_text(), train.lower(states, data, keys).as_text()]
    return hashlib.sha256("\0".join([*texts, environment()]).encode()).hexdigest()
