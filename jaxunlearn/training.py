"""The one training loop.

    theta_{t+1} = theta_t + tx(grad L(theta_t; batches_t)),    t = 0 .. T - 1

`fit` pretrains, retrains and drives every gradient-trained method; `train` is `fit` from fresh
parameters. With in-memory Data a run is a `lax.scan` that can be jitted and vmapped over (params,
key); called eagerly it is a host loop over jitted chunks of that scan (one chunk, or one per epoch
where `progress` or `stop` want to know); with streaming Data the host feeds batches to the same
step. See `jaxunlearn.loop` for why none of this changes what is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import InMemory, as_data
from jaxunlearn.loop import FitState as FitState
from jaxunlearn.loop import Plan, feed_steps, scan_chunks, scan_steps, start
from jaxunlearn.loop import Status as Status
from jaxunlearn.loop import Step as Step
from jaxunlearn.losses import check_labels, check_per_example, num_classes
from jaxunlearn.model import Model, split_statistics
from jaxunlearn.objectives import Objective, training
from jaxunlearn.typing import Array, Data, Key, Params, check_key

Turns: TypeAlias = Sequence[Sequence[str]]  # epochs, each of passes over one stream after another


class FitInfo(NamedTuple):
    """What a person wants to see."""

    losses: Array  # (steps of this call,) float32, NaN from where the run ended
    status: Array  # [] int32, a `Status`
    steps: Array  # [] int32, steps that changed the params
    best_score: Array  # [] float32, -inf unless a score is given


class Fitted(NamedTuple):
    """What `fit` returns."""

    params: Params  # the last finite ones, or the best-scored ones
    info: FitInfo
    state: FitState  # for `resume`


def fit(
    objective: Objective,
    tx: optax.GradientTransformation,
    params: Params,
    data: Data | Mapping[str, Data],
    *,
    key: Key,
    epochs: int | None = None,
    steps: int | None = None,
    turns: Turns | None = None,
    shuffle: bool | Callable[[Key, int], Array] = True,
    stop: Callable[[Step], Array] | None = None,
    score: Callable[[Params], Array] | None = None,
    progress: Callable[[Step], None] | None = None,
    resume: FitState | None = None,
) -> Fitted:
    """theta_T of theta_{t+1} = theta_t + tx(grad L(theta_t; batches_t)).

    Args:
      objective: what is minimised; see `jaxunlearn.objectives`.
      tx: an optax transformation; schedules live in it. Those that ask for the loss (`value`, as
        `optax.contrib.reduce_on_plateau` does) or for a line search get it.
      params: start, any pytree of float arrays.
      data: one Data (the stream "data"), or several by name. An epoch is one pass over the FIRST;
        the others cycle, unless there are `turns`. Every row of an epoch is seen once; a short last
        batch is padded with weight 0, never dropped.
      key: typed key; orders the examples and feeds the objective.
      epochs, steps: length of the run, an integer >= 0; exactly one of epochs, steps and turns.
      turns: epochs of passes over one stream at a time, as in (("forget", "retain"), ("retain",)):
        each name is a whole pass over that stream, in its own batches, and a step's `batches` then
        holds that stream alone.
      shuffle: True (a fresh permutation each epoch), False (stored order), or a function
        (key, n) -> permutation (n,). Streaming Data keep their own order.
      stop: Step -> bool []; the run freezes after the first step for which it is true.
      score: params -> []; evaluated at the start and after each epoch, the best params are
        returned.
      progress: called with a `Step` after each epoch, on the host. A compiled program calls it to
        the last epoch, even if the run ended before.
      resume: the `state` of an earlier, shorter `fit` with the same other arguments (not under a
        trace); `params` is then not read. With a score, resume where an epoch ends.

    Returns:
      `Fitted(params, info, state)`.

    Raises:
      ValueError: not exactly one of epochs, steps and turns; a turn of an unknown stream; no
        stream, or an empty one; a loss, score or stop that is not scalar; a permutation of the
        wrong shape; a state beyond the end of the run.
      TypeError: a stream that can be read only once; a key that is not a single typed key;
        streaming data or `resume` inside `jit` or `vmap`.

    | situation                          | result                                                 |
    |------------------------------------|--------------------------------------------------------|
    | epochs = 0 or steps = 0            | params come back bit-identical                         |
    | loss or params become non-finite   | last finite params, status DIVERGED, later losses NaN  |
    | `stop` fires                       | params after that step, status STOPPED, later NaN      |
    | under `jit` / `vmap`               | same values; needs in-memory Data                      |
    | chunked by `progress`, or resumed  | bit-identical to the whole run on the same device      |
    | resumed from an ended run          | that run's result, no losses                           |

    Cost: `steps` gradient evaluations; memory of params, optimiser state and one batch.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> from jaxunlearn.objectives import stateless
      >>> data = in_memory({"x": np.array([1.0, 2.0, 3.0], np.float32)}, batch_size=3)
      >>> mean = stateless(lambda p, batches, key: jnp.mean((p - batches["data"]["x"]) ** 2))
      >>> out = fit(mean, optax.sgd(0.5), jnp.zeros(()), data, key=jax.random.key(0), epochs=5)
      >>> print(out.params)
      2.0
    """
    check_key("fit", key)
    streams = _streams(data)
    sizes = {name: stream.num_batches for name, stream in streams.items()}
    total = _length(epochs, steps, turns, sizes)
    arrays = {name: s for name, s in streams.items() if isinstance(s, InMemory)}
    in_device = len(arrays) == len(streams)
    # Inside `jit` even a constant is traced, so the last one tells where nothing else does.
    traced = is_traced((params, arrays, key, resume, jnp.zeros(())))
    if traced and not in_device:
        raise TypeError(
            "fit: streaming data cannot be read inside jit or vmap; use data.in_memory."
        )
    if traced and resume is not None:
        raise TypeError("fit: resume works outside jit and vmap only, where its step can be read.")
    plan = Plan(
        loss=objective.loss,
        outcome=objective.outcome,
        extras=objective.extras,
        tx=tx,
        names=tuple(sizes),
        batches=tuple(sizes.values()),
        turns=tuple(tuple(epoch) for epoch in turns or ()),
        total=total,
        shuffle=jax.random.permutation if shuffle is True else (shuffle or None),
        stop=stop,
        score=score,
        watch=progress if traced else None,
    )
    state = start(plan, objective, params) if resume is None else resume
    first = 0 if resume is None else _first_step(resume, total)
    if traced:
        state, losses = scan_steps(plan, total, state, arrays, key, jnp.int32(0))
    elif in_device:
        state, losses = scan_chunks(plan, first, state, arrays, key, progress)
    else:
        state, losses = feed_steps(plan, first, state, streams, key, progress)
    outcome = objective.outcome(state.params, state.objective)
    return Fitted(
        outcome if score is None else state.best_params,
        FitInfo(losses, state.status, state.step, state.best_score),
        state,
    )


def _streams(data: Any) -> dict[str, Any]:
    named = isinstance(data, Mapping) and not any(hasattr(c, "dtype") for c in data.values())
    streams = {name: as_data(d) for name, d in (data if named else {"data": data}).items()}
    if not streams:
        raise ValueError("fit: expected at least one stream of data, got an empty mapping.")
    for name, stream in streams.items():
        if stream.num_examples == 0:
            raise ValueError(
                f"fit: the stream '{name}' has no examples. Leave it out, or give it some."
            )
    return streams


def _length(epochs: Any, steps: Any, turns: Turns | None, sizes: Mapping[str, int]) -> int:
    """Steps of the whole run."""
    if sum(length is not None for length in (epochs, steps, turns)) != 1:
        raise ValueError(
            f"fit: give exactly one of epochs, steps and turns, got epochs={epochs}, "
            f"steps={steps}, turns={turns}."
        )
    if turns is not None:
        unknown = [name for epoch in turns for name in epoch if name not in sizes]
        if unknown or not all(turns):
            raise ValueError(
                f"fit: every turn must be a tuple of names among {sorted(sizes)}, got {turns}."
            )
        return sum(sizes[name] for epoch in turns for name in epoch)
    length = epochs if steps is None else steps
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 0:
        raise ValueError(
            "fit: the length of a run must be an integer >= 0, "
            f"got epochs={epochs!r}, steps={steps!r}."
        )
    return int(length) * (next(iter(sizes.values())) if steps is None else 1)


def _first_step(resume: FitState, total: int) -> int:
    if int(resume.status) != Status.COMPLETED:
        return total
    if int(resume.step) > total:
        raise ValueError(
            f"fit: cannot resume at step {int(resume.step)}, the run has {total} steps in all. "
            "epochs and steps count from the start of the run, not from the resumed state."
        )
    return int(resume.step)


def train(
    model: Model,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    key: Key,
    epochs: int,
    **options: Any,
) -> Fitted:
    """A model trained from scratch.

        params_0 = model.init(key_0),  then `fit` of the mean training loss with key_1

    This is the one pipeline for originals, oracles and `retrain`, so that "the same recipe" is the
    same code. Everything is re-initialised, running statistics included.

    Args:
      model: with `init`.
      tx, epochs, options: as for `fit`. A `score` is given the model's params, statistics included.
      data: what to train on.
      key: split into key_0 of the initialisation and key_1 of the run.

    Returns:
      `Fitted`; its `params` are the model's, statistics included.

    Raises:
      ValueError: the model has no `init`, its loss is not per-example, or (on concrete in-memory
        data) an integer label lies outside the classes of its outputs.

    Example:
      >>> from flax import nnx
      >>> from jaxunlearn import from_nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(2, 2, rngs=rngs))
      >>> data = {"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])}
      >>> out = train(model, optax.adam(0.1), data, key=jax.random.key(0), epochs=20)
      >>> print(model.outputs(out.params, data).argmax(axis=1))
      [0 1]
    """
    if model.init is None:
        raise ValueError(
            "train: this model has no `init`, so it cannot be trained from scratch. "
            "Give from_nnx a factory `rngs -> module`, or Model(..., init=...)."
        )
    check_key("train", key)
    init_key, fit_key = jax.random.split(key)
    data = as_data(data)
    params = model.init(init_key)
    weights, statistics = split_statistics(model, params)
    if data.num_examples:
        batch = data.arrays if isinstance(data, InMemory) else next(iter(data))
        check_per_example(model.loss, params, batch)
        if "y" in batch and not is_traced(batch):
            classes = num_classes(model.outputs, params, batch)
            if classes is not None:
                check_labels("train", batch, classes)
    objective = training(model, statistics=statistics)
    return fit(objective, tx, weights, data, key=fit_key, epochs=epochs, **options)
