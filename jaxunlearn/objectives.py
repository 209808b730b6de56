"""What a descent minimises: pure functions with explicit state, like optax's transformations.

    Objective.init(params) -> state
    Objective.loss(params, batches, state, key) -> (value (), state)
    Objective.outcome(params, state) -> what the run hands out; the params themselves unless said
    Objective.extras(params, batches, state, key) -> further arguments of `tx.update`, if any

`batches` maps stream names ("retain", "forget", "adjacent", or "data") to one Batch each, all of
the same global step (in a run with `turns`, the one stream whose turn it is). State holds what a
plain loss cannot: running statistics, dual variables, adaptive weights. Builders take a `Model` and
return an Objective, so that `descent(builder, tx)` can be written before the model is known;
`functools.partial` binds their hyper-parameters.

Objectives built twice from equal arguments compare equal, so that a repeated run compiles nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.losses import weighted_mean
from jaxunlearn.model import Model, freeze_statistics, join_statistics, split_statistics
from jaxunlearn.typing import Array, Batch, Key, Params

Batches = Mapping[str, Batch]


def _no_state(params: Params) -> tuple:
    del params
    return ()


def params_alone(params: Params, state: Any) -> Params:
    """The outcome of an objective whose state is bookkeeping only."""
    del state
    return params


class Objective(NamedTuple):
    """A scalar to be minimised, with explicit state; see the module."""

    init: Callable[[Params], Any]  # params -> state, any pytree (() if there is none)
    loss: Callable[[Params, Batches, Any, Key], tuple[Array, Any]]  # -> value [] float, new state
    outcome: Callable[[Params, Any], Params] = params_alone  # (params, state) -> result of a run
    extras: Callable[[Params, Batches, Any, Key], dict[str, Any]] | None = None  # for `tx.update`


@dataclasses.dataclass(frozen=True)
class _Bound:
    function: Callable
    constants: tuple

    def __call__(self, *args: Any) -> Any:
        return self.function(*self.constants, *args)


def bind(function: Callable, *constants: Any) -> Callable:
    """function(*constants, ...), equal to any other of equal parts where these can be compared."""
    try:
        hash(constants)
    except TypeError:  # arrays and tracers
        return partial(function, *constants)
    return _Bound(function, constants)


def stateless(value: Callable[[Params, Batches, Key], Array]) -> Objective:
    """The Objective of a plain function (params, batches, key) -> ()."""
    return Objective(_no_state, bind(_stateless, value))


def _stateless(
    value: Callable, params: Params, batches: Batches, state: Any, key: Key
) -> tuple[Array, Any]:
    return value(params, batches, key), state


def mean_loss(model: Model, on: str = "data", clip: float | None = None) -> Objective:
    """L = sum_i w_i l_i / sum_i w_i over the stream `on`, in evaluation mode.

    Args:
      model: whose per-example loss is averaged.
      on: the stream it is averaged over.
      clip: if given, l_i is replaced by min(l_i, clip), in nats: an example that has passed it
        stops pushing.
    """
    return stateless(bind(_mean_loss, model, on, clip))


def _mean_loss(
    model: Model, on: str, clip: float | None, params: Params, batches: Batches, key: Key
) -> Array:
    del key
    losses = model.loss(params, batches[on])
    return weighted_mean(losses if clip is None else jnp.minimum(losses, clip), batches[on])


def weighted_sum(*terms: tuple[float, Objective]) -> Objective:
    """L = sum_k c_k L_k; each term keeps its own state and gets its own key, `fold_in(key, k)`.

    Raises:
      ValueError: there are no terms.
    """
    if not terms:
        raise ValueError("weighted_sum: expected at least one (coefficient, objective) pair.")
    objectives = tuple(objective for _, objective in terms)
    return Objective(bind(_init_each, objectives), bind(_weighted_sum, terms))


def _init_each(objectives: tuple[Objective, ...], params: Params) -> tuple:
    return tuple(objective.init(params) for objective in objectives)


def _weighted_sum(
    terms: tuple, params: Params, batches: Batches, state: tuple, key: Key
) -> tuple[Array, tuple]:
    values, states = [], []
    for index, ((coefficient, objective), inner) in enumerate(zip(terms, state, strict=True)):
        value, inner = objective.loss(params, batches, inner, jax.random.fold_in(key, index))
        values.append(coefficient * value)
        states.append(inner)
    return sum(values[1:], values[0]), tuple(states)


def training(model: Model, on: str = "data", statistics: Params = None) -> Objective:
    """L = mean training-mode loss over the stream `on`: what a model is trained from scratch with.

    For a model without normalisation statistics this is the `mean_loss` of training mode. Otherwise
    `params` are the weights alone, the running statistics (`statistics` at the start) are the
    state, every step updates them, and the outcome is both together, `{"params": ...,
    "batch_stats": ...}`.

    A normalisation layer in training mode mixes the rows of a batch. Padding rows then take part in
    the batch's mean and variance; they are copies of real rows of the same data, never of others.
    """
    if model.train is None and not model.statistics:
        return mean_loss(model, on)
    if model.train is None:
        frozen = mean_loss(freeze_statistics(model, statistics), on)
        return frozen._replace(outcome=lambda w, _: join_statistics(model, w, statistics))
    return Objective(
        lambda params: statistics,
        bind(_training_loss, model, on),
        bind(join_statistics, model),
    )


def _training_loss(
    model: Model, on: str, weights: Params, batches: Batches, state: Params, key: Key
) -> tuple[Array, Params]:
    assert model.train is not None
    losses, after = model.train(join_statistics(model, weights, state), batches[on], key)
    return weighted_mean(losses, batches[on]), split_statistics(model, after)[1]


def ascent(model: Model, clip: float | None = None) -> Objective:
    """L = -mean loss on the forget set, each example's loss clipped at `clip` nats if given."""
    return weighted_sum((-1.0, mean_loss(model, "forget", clip)))


def neggrad_plus(model: Model, alpha: float = 0.95, together: bool = False) -> Objective:
    """L = alpha L_retain - (1 - alpha) L_forget, alpha in [0, 1].

    `together` sends both batches through the model as one: of a small network a second pass costs
    as much as the first, however few rows it has. Only the columns that both have are then read.
    """
    if together:
        return stateless(bind(_neggrad_plus, model, alpha))
    return weighted_sum(
        (alpha, mean_loss(model, "retain")), (alpha - 1.0, mean_loss(model, "forget"))
    )


def _neggrad_plus(model: Model, alpha: Any, params: Params, batches: Batches, key: Key) -> Array:
    del key
    retain, forget = batches["retain"], batches["forget"]
    both = {c: jnp.concatenate([retain[c], forget[c]]) for c in retain if c in forget}
    losses, rows = model.loss(params, both), len(next(iter(retain.values())))
    kept, gone = weighted_mean(losses[:rows], retain), weighted_mean(losses[rows:], forget)
    return alpha * kept + (alpha - 1.0) * gone


def random_labels(model: Model, wrong_only: bool = False) -> Objective:
    """L = mean loss on "data", where rows with a true `"forget"` get a fresh random label.

    Labels are uniform over all C classes, the true one included, or over the C - 1 others with
    `wrong_only`. A new label is drawn every time a row is seen. C is the last axis of the model's
    outputs; with several positions per example each gets a label of its own.

    Raises:
      ValueError: (while tracing) `wrong_only` with a single class, where no label is wrong.
    """
    return stateless(bind(_random_labels, model, wrong_only))


def _random_labels(
    model: Model, wrong_only: bool, params: Params, batches: Batches, key: Key
) -> Array:
    batch = batches["data"]
    classes = jax.eval_shape(model.outputs, params, batch).shape[-1]
    if wrong_only and classes < 2:
        raise ValueError(
            f"random_labels: wrong_only needs at least 2 classes, this model has {classes}."
        )
    labels = batch["y"]
    true = labels.astype(jnp.int32)  # uint8 would wrap in the sum below
    drawn = jax.random.randint(key, labels.shape, 1 if wrong_only else 0, classes, jnp.int32)
    drawn = (true + drawn) % classes if wrong_only else drawn
    chosen = batch["forget"].astype(bool).reshape(-1, *[1] * (labels.ndim - 1))
    relabelled = dict(batch) | {"y": jnp.where(chosen, drawn, true).astype(labels.dtype)}
    return weighted_mean(model.loss(params, relabelled), batch)
