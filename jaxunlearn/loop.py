"""One step of training, and the two ways of stringing steps together.

    theta_{t+1} = theta_t + tx(grad L(theta_t; batches_t)),  batches_t, key_t functions of (key, t)

`scan_steps` runs over in-memory Data as one `lax.scan`; `feed_steps` hands batches from the host to
the same step, compiled once. The order of the examples comes from `fold_in(stream's key, epoch)`
and every other random number from `fold_in(key, global step)`, so neither chunks, nor resuming, nor
devices can change what is computed. This is the inside of `jaxunlearn.training`, which has the
doors.
"""

import dataclasses
import enum
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.streams import InMemory
from jaxunlearn.objectives import Objective
from jaxunlearn.typing import Array, Batch, Data, Key, Params


class Status(enum.IntEnum):
    """How a run ended; a value in `FitInfo`, because an error cannot leave a compiled program."""

    COMPLETED = 0
    STOPPED = 1  # `stop` said so
    DIVERGED = 2  # loss, params or the objective's state became non-finite; the step was undone


class Step(NamedTuple):
    """What `stop` and `progress` see."""

    step: Array  # [] int32, steps done so far
    total: Array  # [] int32, steps in the whole run
    loss: Array  # [] float32, objective at this step; NaN for `progress` if the run had ended
    objective: Any  # the objective's state after this step


class FitState(NamedTuple):
    """What the next step needs; `fit(..., resume=state)` goes on from it bit-exactly."""

    step: Array  # [] int32
    params: Params
    opt_state: Any
    objective: Any
    status: Array  # [] int32, a `Status`
    best_params: Params  # the objective's outcome at the best score; () unless a score is given
    best_score: Array  # [] float32, -inf unless a score is given


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about a run; hashable, so that a repeated run compiles nothing."""

    loss: Callable  # of the Objective
    outcome: Callable  # of the Objective
    extras: Callable | None  # of the Objective
    tx: optax.GradientTransformation
    names: tuple[str, ...]
    batches: tuple[int, ...]  # of one pass over each stream
    turns: tuple[tuple[str, ...], ...]  # passes over one stream at a time; () if all go together
    total: int
    shuffle: Callable[[Key, int], Array] | None
    stop: Callable[[Step], Array] | None
    score: Callable[[Params], Array] | None
    watch: Callable[[Step], None] | None  # a progress callback inside a trace

    def ends_epoch(self, step: Any) -> Any:
        if self.turns:
            return jnp.asarray(self.timetable.ends)[step]
        return ((step + 1) % self.batches[0] == 0) | (step + 1 == self.total)

    def epoch_end(self, step: int) -> int:
        """The first end of an epoch after `step` steps, in steps."""
        if self.turns:
            return step + 1 + int(np.argmax(self.timetable.ends[step:]))
        return min((step // self.batches[0] + 1) * self.batches[0], self.total)

    @property
    def timetable(self) -> "Timetable":
        return _timetable(self.turns, self.names, self.batches)


class Timetable(NamedTuple):
    """Whose turn it is in each step of a run with turns; NumPy arrays (total,)."""

    stream: np.ndarray  # int32, place in `names`
    batch: np.ndarray  # int32, of that stream
    passes: np.ndarray  # int32, over that stream, made before this one
    ends: np.ndarray  # bool, the step is the last of an epoch


@lru_cache
def _timetable(
    turns: tuple[tuple[str, ...], ...], names: tuple[str, ...], batches: tuple[int, ...]
) -> Timetable:
    rows, made = [], dict.fromkeys(names, 0)
    for epoch in turns:
        for name in epoch:
            place = names.index(name)
            rows += [(place, batch, made[name], False) for batch in range(batches[place])]
            made[name] += 1
        rows[-1] = (*rows[-1][:3], True)
    stream, batch, passes, ends = np.array(rows, np.int32).reshape(-1, 4).T
    return Timetable(stream, batch, passes, ends.astype(bool))


def start(plan: Plan, objective: Objective, params: Params) -> FitState:
    """The state before step 0."""
    params = jax.tree.map(jnp.asarray, params)
    state = FitState(
        step=jnp.int32(0),
        params=params,
        opt_state=plan.tx.init(params),
        objective=jax.tree.map(jnp.asarray, objective.init(params)),
        status=jnp.int32(Status.COMPLETED),
        best_params=(),
        best_score=jnp.float32(-jnp.inf),
    )
    if plan.score is None:
        return state
    return _keep_best(plan, state._replace(best_params=plan.outcome(params, state.objective)))


def _tagged(key: Key, tag: str) -> Key:
    """One key per purpose, by name: adding a stream does not reorder the others."""
    return jax.random.fold_in(key, zlib.crc32(tag.encode()))


def _order(plan: Plan, key: Key, name: str, epoch: Any, n: int) -> Array:
    """The order of the rows of stream `name` in this epoch: (n,) int."""
    if plan.shuffle is None:
        return jnp.arange(n)
    order = plan.shuffle(jax.random.fold_in(_tagged(key, f"stream {name}"), epoch), n)
    if jnp.shape(order) != (n,):
        raise ValueError(
            f"fit: shuffle(key, n) must return a permutation of shape ({n},), "
            f"got {jnp.shape(order)} for the stream '{name}'."
        )
    return order


def _all_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([True, *(jnp.isfinite(x).all() for x in floats)]).all()


def _select(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _scalar(value: Any, what: str) -> Array:
    if jnp.shape(value) != ():
        raise ValueError(f"fit: {what} must return a scalar, got shape {jnp.shape(value)}.")
    return jnp.asarray(value)


def _update(
    plan: Plan, state: FitState, batches: Mapping[str, Batch], key: Key, step: Array
) -> tuple[FitState, Array]:
    """One step of the run: gradient, transformation, finiteness, stop, score."""
    key = jax.random.fold_in(_tagged(key, "steps"), step)

    def value(params: Params) -> tuple[Array, Any]:
        loss, objective = plan.loss(params, batches, state.objective, key)
        return _scalar(loss, "the objective's loss"), objective

    (loss, objective), grads = jax.value_and_grad(value, has_aux=True)(state.params)
    extras = {}
    if plan.extras is not None:
        extras = plan.extras(state.params, batches, state.objective, key)
    updates, opt_state = optax.with_extra_args_support(plan.tx).update(
        grads,
        state.opt_state,
        state.params,
        value=loss,
        grad=grads,
        value_fn=lambda p: value(p)[0],
        **extras,
    )
    params = optax.apply_updates(state.params, updates)

    running = state.status == Status.COMPLETED
    finite = jnp.isfinite(loss) & _all_finite((params, objective))
    seen = Step(step + 1, jnp.int32(plan.total), loss.astype(jnp.float32), objective)
    stopped = jnp.array(False) if plan.stop is None else _scalar(plan.stop(seen), "stop")
    ended = jnp.where(stopped, int(Status.STOPPED), int(Status.COMPLETED))
    ended = jnp.where(finite, ended, int(Status.DIVERGED)).astype(jnp.int32)

    new = state._replace(step=step + 1, params=params, opt_state=opt_state, objective=objective)
    moved = running & finite
    kept = _select(moved, new, state)._replace(status=jnp.where(running, ended, state.status))
    recorded = jnp.where(moved, seen.loss, jnp.nan)
    if plan.score is not None:
        kept = jax.lax.cond(plan.ends_epoch(step), partial(_keep_best, plan), lambda s: s, kept)
    if plan.watch is not None:
        watch, shown = plan.watch, seen._replace(loss=recorded, objective=kept.objective)
        jax.lax.cond(plan.ends_epoch(step), lambda: jax.debug.callback(watch, shown), lambda: None)
    return kept, recorded


def _keep_best(plan: Plan, state: FitState) -> FitState:
    assert plan.score is not None
    outcome = plan.outcome(state.params, state.objective)
    value = _scalar(plan.score(outcome), "score").astype(jnp.float32)
    better = value > state.best_score
    return state._replace(
        best_params=_select(better, outcome, state.best_params),
        best_score=jnp.where(better, value, state.best_score),
    )


def scan_steps(
    plan: Plan, length: int, state: FitState, data: Mapping[str, InMemory], key: Key, first: Any
) -> tuple[FitState, Array]:
    """Steps first .. first + length - 1 over in-memory data: (state, losses (length,) float32)."""
    if length == 0:  # nothing is traced either: which streams come together may be undecided
        return state, jnp.zeros(0, jnp.float32)

    def order_at(name: str, passes: Any) -> Array:
        return _order(plan, key, name, passes, data[name].num_examples)

    def read(name: str, order: Array, batch: Any, passes: Any, step: Any) -> tuple[Batch, Array]:
        """Batch number `batch` of a pass, and the order of that pass."""
        fresh = (batch == 0) | (step == first)
        order = jax.lax.cond(fresh, partial(order_at, name, passes), lambda: order)
        return data[name].batch(batch, order), order

    def together(state: FitState, orders: dict, step: Array) -> tuple:
        batches = {}
        for name, order in orders.items():
            count = data[name].num_batches
            batches[name], orders[name] = read(name, order, step % count, step // count, step)
        batches = {name: batches[name] for name in plan.names}
        state, loss = _update(plan, state, batches, key, step)
        return (state, orders), loss

    def alone(name: str, state: FitState, orders: dict, step: Array) -> tuple:
        table = plan.timetable
        batch, passes = jnp.asarray(table.batch)[step], jnp.asarray(table.passes)[step]
        batch, order = read(name, orders[name], batch, passes, step)
        state, loss = _update(plan, state, {name: batch}, key, step)
        return (state, orders | {name: order}), loss

    def body(carry: tuple, step: Array) -> tuple:
        state, orders = carry
        if not plan.turns:
            return together(state, dict(orders), step)
        turn = jnp.asarray(plan.timetable.stream)[step]
        return jax.lax.switch(
            turn, [partial(alone, name) for name in plan.names], state, dict(orders), step
        )

    kinds = {name: jax.eval_shape(partial(order_at, name), first) for name in plan.names}
    orders = {name: jnp.zeros(kind.shape, kind.dtype) for name, kind in kinds.items()}
    steps = first + jnp.arange(length, dtype=jnp.int32)
    (state, _), losses = jax.lax.scan(body, (state, orders), steps)
    return state, losses


_scan_jit = jax.jit(scan_steps, static_argnums=(0, 1))
_update_jit = jax.jit(_update, static_argnums=0)


def scan_chunks(
    plan: Plan,
    first: int,
    state: FitState,
    data: Mapping[str, InMemory],
    key: Key,
    progress: Callable[[Step], None] | None,
) -> tuple[FitState, Array]:
    """`scan_steps` from the host: an epoch at a time if somebody watches or may stop it."""
    whole = progress is None and plan.stop is None
    losses, done = [], first
    while done < plan.total:
        length = (plan.total if whole else plan.epoch_end(done)) - done
        state, chunk = _scan_jit(plan, length, state, data, key, jnp.int32(done))
        losses, done = [*losses, chunk], done + length
        if progress is not None:
            progress(Step(jnp.int32(done), jnp.int32(plan.total), chunk[-1], state.objective))
        if done < plan.total and state.status != Status.COMPLETED:
            losses, done = [*losses, jnp.full(plan.total - done, jnp.nan)], plan.total
    return state, jnp.concatenate(losses) if losses else jnp.zeros(0, jnp.float32)


def feed_steps(
    plan: Plan,
    first: int,
    state: FitState,
    data: Mapping[str, Data],
    key: Key,
    progress: Callable[[Step], None] | None,
) -> tuple[FitState, Array]:
    """The same steps where some Data stream; in-memory Data beside them are ordered as ever."""
    feeds = {name: _passes(plan, name, stream, key) for name, stream in data.items()}
    losses = []
    for step in range(plan.total):
        names = [plan.names[plan.timetable.stream[step]]] if plan.turns else plan.names
        batches = {name: next(feeds[name]) for name in names}
        if step < first:  # a resumed run reads past what it has seen
            continue
        state, loss = _update_jit(plan, state, batches, key, jnp.int32(step))
        losses.append(loss)
        if plan.ends_epoch(step):
            if progress is not None:
                progress(Step(jnp.int32(step + 1), jnp.int32(plan.total), loss, state.objective))
            if state.status != Status.COMPLETED:
                losses += [jnp.float32(jnp.nan)] * (plan.total - step - 1)
                break
    return state, jnp.stack(losses) if losses else jnp.zeros(0, jnp.float32)


def _passes(plan: Plan, name: str, data: Data, key: Key) -> Iterator[Batch]:
    """Batches of one stream, pass after pass."""
    for epoch in itertools.count():
        if isinstance(data, InMemory):
            order = _order(plan, key, name, epoch, data.num_examples)
            yield from (data.batch(index, order) for index in range(data.num_batches))
            continue
        empty = True
        for batch in data:
            empty = False
            yield dict(batch)
        if empty:
            raise ValueError(
                f"fit: the stream '{name}' yields no batch in pass {epoch + 1}, though it says it "
                f"has {data.num_examples} examples. Can it be read more than once?"
            )
