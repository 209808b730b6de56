"""The one training loop, and many seeds of it in one program.

    theta_{t+1} = theta_t + tx(grad L(theta_t; batches_t)),    batches_t and key_t functions of (key, t) alone

`fit` pretrains, retrains and drives every gradient-trained method. With in-memory Data it is a `lax.scan` that
can be jitted and vmapped over (params, key); called eagerly it is a host loop over jitted chunks of that scan (one
chunk, unless `progress` asks for one per epoch); with streaming Data the host feeds batches to the same step. Chunks,
resuming and the number of devices never change what is computed, because the order of the examples comes from
`fold_in(key, epoch)` and every other random number from `fold_in(key, global step)`.

`ensemble` turns a function of one model into a function of a leading axis of models.
"""

import dataclasses
import enum
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.streams import InMemory, as_data, is_traced
from jaxunlearn.losses import check_per_example
from jaxunlearn.model import Model, join_statistics, split_statistics
from jaxunlearn.objectives import Objective, training
from jaxunlearn.typing import Array, Batch, Data, Key, Params


class Status(enum.IntEnum):
    """How a run ended; a value in `FitInfo`, because an error cannot leave a compiled program."""

    COMPLETED = 0
    STOPPED = 1  # `stop` said so
    DIVERGED = 2  # loss or params became non-finite; the last finite state was kept


class Step(NamedTuple):
    """What `stop` and `progress` see."""

    step: Array  # [] int32, steps done so far
    total: Array  # [] int32, steps in the whole run
    loss: Array  # [] float32, objective at this step
    objective: Any  # the objective's state after this step


class FitState(NamedTuple):
    """What the next step needs; `fit(..., resume=state)` goes on from it bit-exactly."""

    step: Array  # [] int32
    params: Params
    opt_state: Any
    objective: Any
    status: Array  # [] int32, a `Status`
    best_params: Params  # () unless a score is given
    best_score: Array  # [] float32, -inf unless a score is given


class FitInfo(NamedTuple):
    """What a person wants to see."""

    losses: Array  # (steps,) float32, NaN after an early stop
    status: Array  # [] int32, a `Status`
    steps: Array  # [] int32, steps that changed the params
    best_score: Array  # [] float32


class Fitted(NamedTuple):
    params: Params  # the last finite ones, or the best-scored ones
    info: FitInfo
    state: FitState


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static about a run; hashable, so that a repeated run compiles nothing."""

    objective: Objective
    tx: optax.GradientTransformation
    names: tuple[str, ...]
    epoch: int  # steps per epoch of the first stream
    total: int
    shuffle: Callable[[Key, int], Array] | None
    stop: Callable[[Step], Array] | None
    score: Callable[[Params], Array] | None
    watch: Callable[[Step], None] | None  # a progress callback inside a trace


def _stream_key(key: Key, name: str) -> Key:
    """One key per stream, by name: adding a stream does not reorder the others."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _order(plan: _Plan, key: Key, name: str, epoch: Array, n: int) -> Array:
    if plan.shuffle is None:
        return jnp.arange(n)
    return plan.shuffle(jax.random.fold_in(_stream_key(key, name), epoch), n)


def _slice(data: InMemory, order: Array, step: Array) -> Batch:
    rows = min(data.batch_size, data.num_examples)
    start = (step % data.num_batches) * rows
    places = start + jnp.arange(rows)
    padding = jnp.maximum(start + rows - data.num_examples, 0)
    return data.gather(order[places % data.num_examples], padding)


def _all_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return (
        jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats])) if floats else jnp.array(True)
    )


def _select(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _update(
    plan: _Plan, state: FitState, batches: Mapping[str, Batch], key: Key, step: Array
) -> tuple:
    """One step of the run: gradient, transformation, finiteness, stop, score."""
    key = jax.random.fold_in(_stream_key(key, "step"), step)
    (loss, objective), grads = jax.value_and_grad(plan.objective.loss, has_aux=True)(
        state.params, batches, state.objective, key
    )
    updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(loss) & _all_finite(params)
    running = state.status == Status.COMPLETED
    seen = Step(step + 1, jnp.int32(plan.total), loss, objective)
    stopped = jnp.array(False) if plan.stop is None else jnp.asarray(plan.stop(seen))
    ended = jnp.where(
        ~finite,
        int(Status.DIVERGED),
        jnp.where(stopped, int(Status.STOPPED), int(Status.COMPLETED)),
    )
    new = FitState(
        step=step + 1,
        params=params,
        opt_state=opt_state,
        objective=objective,
        status=ended.astype(jnp.int32),
        best_params=state.best_params,
        best_score=state.best_score,
    )
    moved = running & finite
    kept = _select(moved, new, state)
    kept = kept._replace(status=jnp.where(running, new.status, state.status))
    boundary = ((step + 1) % plan.epoch == 0) | (step + 1 == plan.total)
    if plan.score is not None:
        kept = jax.lax.cond(boundary, partial(_keep_best, plan.score), lambda s: s, kept)
    if plan.watch is not None:
        watch = plan.watch
        jax.lax.cond(boundary, lambda: jax.debug.callback(watch, seen), lambda: None)
    return kept, jnp.where(moved, loss, jnp.nan).astype(jnp.float32)


def _keep_best(score: Callable[[Params], Array], state: FitState) -> FitState:
    value = jnp.asarray(score(state.params), jnp.float32)
    better = value > state.best_score
    return state._replace(
        best_params=_select(better, state.params, state.best_params),
        best_score=jnp.where(better, value, state.best_score),
    )


def _scan(
    plan: _Plan, start: int, length: int, state: FitState, data: Mapping[str, InMemory], key: Key
) -> tuple:
    """Steps start .. start + length - 1 over in-memory data, as one program."""

    def epoch_of(name: str, step: Any) -> Any:
        return step // data[name].num_batches

    def body(carry: tuple, step: Array) -> tuple:
        state, orders = carry
        fresh = {}
        for name, order in orders.items():
            n = data[name].num_examples
            fresh[name] = jax.lax.cond(
                step % data[name].num_batches == 0,
                lambda name=name, n=n: _order(plan, key, name, epoch_of(name, step), n),
                lambda order=order: order,
            )
        batches = {name: _slice(data[name], fresh[name], step) for name in plan.names}
        state, loss = _update(plan, state, batches, key, step)
        return (state, fresh), loss

    orders = {
        name: _order(plan, key, name, jnp.int32(epoch_of(name, start)), data[name].num_examples)
        for name in plan.names
    }
    (state, _), losses = jax.lax.scan(
        body, (state, orders), start + jnp.arange(length, dtype=jnp.int32)
    )
    return state, losses


_scan_jit = jax.jit(_scan, static_argnums=(0, 1, 2))
_update_jit = jax.jit(_update, static_argnums=0)


def _forever(data: Data) -> Iterator[Batch]:
    while True:
        yield from data


def fit(
    objective: Objective,
    tx: optax.GradientTransformation,
    params: Params,
    data: Data | Mapping[str, Data],
    *,
    key: Key,
    epochs: int | None = None,
    steps: int | None = None,
    shuffle: bool | Callable[[Key, int], Array] = True,
    stop: Callable[[Step], Array] | None = None,
    score: Callable[[Params], Array] | None = None,
    progress: Callable[[Step], None] | None = None,
    resume: FitState | None = None,
) -> Fitted:
    """theta_T of theta_{t+1} = theta_t + tx(grad L(theta_t; batches_t)).

    Args:
      objective: what is minimised; see `jaxunlearn.objectives`.
      tx: an optax transformation; schedules live in it.
      params: start, any pytree of float arrays.
      data: one Data (the stream "data"), or several by name. An epoch is one pass over the FIRST; the others cycle.
        Every row of an epoch is seen once; a short last batch is padded with weight 0, never dropped.
      key: typed key; orders the examples and feeds the objective.
      epochs, steps: length of the run; exactly one of them, >= 0.
      shuffle: True (a fresh permutation each epoch), False (stored order), or a function (key, n) -> permutation.
        Streaming Data keep their own order.
      stop: Step -> bool []; the run freezes after the first step for which it is true.
      score: params -> [] ; evaluated at the start and after each epoch, the best params are returned.
      progress: called with a `Step` after each epoch, on the host.
      resume: the `state` of an earlier, shorter `fit` with the same other arguments (not under a trace).

    Returns:
      `Fitted(params, info, state)`.

    Raises:
      ValueError: neither or both of epochs and steps; no stream, or an empty one; loss not scalar.
      TypeError: a stream that can be read only once.

    | situation                          | result                                                          |
    |------------------------------------|-----------------------------------------------------------------|
    | epochs = 0 or steps = 0            | params come back bit-identical                                  |
    | loss or params become non-finite   | last finite params, status DIVERGED, later losses NaN            |
    | `stop` fires                       | params after that step, status STOPPED, later losses NaN         |
    | under `jit` / `vmap`               | same values; needs in-memory Data                                |
    | resumed, or chunked by `progress`  | bit-identical to the uninterrupted run on the same device        |

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
    streams = (
        {name: as_data(d) for name, d in data.items()}
        if _is_named(data)
        else {"data": as_data(data)}
    )
    if not streams:
        raise ValueError("fit: expected at least one stream of data, got an empty mapping.")
    for name, stream in streams.items():
        if stream.num_examples == 0:
            raise ValueError(f"fit: the stream '{name}' has no examples.")
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"fit: give exactly one of epochs and steps, got epochs={epochs}, steps={steps}."
        )
    epoch = next(iter(streams.values())).num_batches
    total = int(steps if steps is not None else epochs * epoch)  # type: ignore[operator]
    if total < 0:
        raise ValueError(
            f"fit: the length of a run must be >= 0, got epochs={epochs}, steps={steps}."
        )
    in_device = all(isinstance(stream, InMemory) for stream in streams.values())
    traced = is_traced((params, streams, key) if in_device else (params, key))
    permute = jax.random.permutation if shuffle is True else (shuffle or None)
    plan = _Plan(
        objective,
        tx,
        tuple(streams),
        epoch,
        total,
        permute,
        stop,
        score,
        progress if traced else None,
    )
    state, start = resume, 0
    if state is None:
        state = _start(plan, params)
    else:
        start = int(state.step) if state.status == Status.COMPLETED else total
    if traced and not in_device:
        raise TypeError(
            "fit: streaming data cannot be read inside jit or vmap; use data.in_memory."
        )
    if traced:
        state, losses = _scan(plan, start, total - start, state, streams, key)
    elif in_device:
        state, losses = _chunks(plan, start, state, streams, key, progress)
    else:
        state, losses = _feed(plan, start, state, streams, key, progress)
    params = state.params if score is None else state.best_params
    return Fitted(params, FitInfo(losses, state.status, state.step, state.best_score), state)


def _is_named(data: Any) -> bool:
    return isinstance(data, Mapping) and not any(
        hasattr(column, "dtype") for column in data.values()
    )


def _start(plan: _Plan, params: Params) -> FitState:
    params = jax.tree.map(jnp.asarray, params)
    state = FitState(
        step=jnp.int32(0),
        params=params,
        opt_state=plan.tx.init(params),
        objective=plan.objective.init(params),
        status=jnp.int32(Status.COMPLETED),
        best_params=() if plan.score is None else params,
        best_score=jnp.float32(-jnp.inf),
    )
    return state if plan.score is None else _keep_best(plan.score, state)


def _chunks(plan, start, state, data, key, progress) -> tuple[FitState, Array]:
    size = plan.total if progress is None else plan.epoch
    losses = []
    while start < plan.total:
        length = min(size, plan.total - start)
        state, chunk = _scan_jit(plan, start, length, state, data, key)
        losses.append(chunk)
        start += length
        if progress is not None:
            progress(Step(jnp.int32(start), jnp.int32(plan.total), chunk[-1], state.objective))
    return state, jnp.concatenate(losses) if losses else jnp.zeros(0, jnp.float32)


def _feed(plan, start, state, data, key, progress) -> tuple[FitState, Array]:
    feeds = {name: _forever(stream) for name, stream in data.items()}
    losses = []
    for step in range(plan.total):
        batches = {name: dict(next(feed)) for name, feed in feeds.items()}
        if step < start:  # a resumed run reads past what it has seen
            continue
        state, loss = _update_jit(plan, state, batches, key, jnp.int32(step))
        losses.append(loss)
        if progress is not None and ((step + 1) % plan.epoch == 0 or step + 1 == plan.total):
            progress(Step(jnp.int32(step + 1), jnp.int32(plan.total), loss, state.objective))
    return state, jnp.stack(losses) if losses else jnp.zeros(0, jnp.float32)


def train(
    model: Model,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    key: Key,
    epochs: int,
    **options: Any,
) -> Fitted:
    """A model trained from scratch: params = model.init(key_0), then `fit` of the mean training loss.

    This is the one pipeline for originals, oracles and `retrain`, so that "the same recipe" is the same code.
    Everything is re-initialised, running statistics included.

    Args:
      model: with `init`.
      tx, epochs, options: as for `fit`.
      data: what to train on.
      key: split into the key of the initialisation and the key of the run.

    Raises:
      ValueError: the model has no `init`, or its loss is not per-example.
    """
    if model.init is None:
        raise ValueError(
            "train: this model has no `init`, so it cannot be trained from scratch. "
            "Give from_nnx a factory `rngs -> module`, or Model(..., init=...)."
        )
    init_key, fit_key = jax.random.split(key)
    weights, statistics = split_statistics(model, model.init(init_key))
    batch = _example(as_data(data))
    if batch is not None:
        check_per_example(model.loss, join_statistics(model, weights, statistics), batch)
    out = fit(
        training(model, statistics=statistics),
        tx,
        weights,
        data,
        key=fit_key,
        epochs=epochs,
        **options,
    )
    after = out.state.objective if model.train is not None else statistics
    return out._replace(params=join_statistics(model, out.params, after))


def _example(data: Data) -> Batch | None:
    return data.gather(jnp.arange(1)) if isinstance(data, InMemory) and data.num_examples else None


def ensemble(
    function: Callable,
    *,
    how: str = "auto",
    chunk: int | None = None,
    devices: Any = None,
) -> Callable:
    """out[i] = function(*(a[i] for a in args)): many models as one program.

    Args:
      function: arrays (a key, params, ...) -> any pytree of arrays.
      how: "vmap" (all at once), "map" (`lax.map`, one after another in one program), "shard" (an equal share per
        device, vmapped within it), or "auto": "shard" if there are several devices, else "vmap".
      chunk: at most so many models at once on a device (bounds memory); None for all.
      devices: for "shard"; default all of `jax.devices()`.

    Returns:
      A function of the same arguments with a leading axis each (all of one length N), traceable; wrap it in
      `jax.jit`. N need not be a multiple of the number of devices.

    Raises:
      ValueError: an unknown `how`, arguments without a common leading axis, or N = 0.

    The result does not depend on `how` beyond rounding: each model sees its own key only.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> jax.jit(ensemble(lambda key: jax.random.normal(key, (2,))))(keys).shape
      (3, 2)
    """
    if how not in ("auto", "vmap", "map", "shard"):
        raise ValueError(f"ensemble: how must be 'auto', 'vmap', 'map' or 'shard', got {how!r}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"ensemble: chunk must be >= 1 or None, got {chunk}.")

    def many(*args: Any) -> Any:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(args)}
        if len(sizes) != 1 or sizes & {(), (0,)}:
            raise ValueError(
                f"ensemble: every argument needs the same leading axis of length >= 1, got {sorted(sizes)}."
            )
        (size,) = sizes.pop()
        places = np.array(jax.devices() if devices is None else devices)
        chosen = ("shard" if places.size > 1 else "vmap") if how == "auto" else how
        if chosen == "map":
            return jax.lax.map(lambda a: function(*a), args, batch_size=chunk)
        if chosen == "vmap" or places.size == 1:
            return local(*args)
        return _sharded(local, places[: min(size, places.size)], size)(*args)

    def local(*args: Any) -> Any:
        size = jax.tree.leaves(args)[0].shape[0]
        if chunk is None or chunk >= size:
            return jax.vmap(function)(*args)
        return jax.lax.map(lambda a: function(*a), args, batch_size=chunk)

    return many


def _sharded(function: Callable, devices: np.ndarray, size: int) -> Callable:
    mesh = jax.sharding.Mesh(devices, ("models",))
    spec = jax.sharding.PartitionSpec("models")
    padding = -size % devices.size

    def extend(leaf: Array) -> Array:
        return jnp.concatenate([leaf, leaf[:padding]]) if padding else leaf

    spread = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return lambda *args: jax.tree.map(lambda leaf: leaf[:size], spread(*jax.tree.map(extend, args)))
