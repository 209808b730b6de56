"""SISA: an ensemble whose members have seen little each, so that forgetting retrains little.

    p(y | x) = mean over shards of softmax(f_s(x))        (or the share of the shards' votes)

The examples are spread over S shards, those of a shard over R slices. Stage (s, r) trains shard s
on its slices 1 .. r, from the state after stage r - 1, and publishes its state. To forget x in
slice r of shard s is to drop what stages r .. R of shard s have left and to run them again without
x. Bourtoule et al. (2021), "Machine Unlearning", arXiv:1912.03817, sections IV and V.

"Exact" here means: the bits of the states are those of a run that was never given the forgotten
rows, and knew nothing of them: neither their number, nor a slot that they leave empty. That holds
because a stage is a function of (the rows present in its slices, the seed, the program) and of
nothing else; see `shard_plan` (where a row goes), `shard_trainer` (how a program is known),
`shard_runs` (why there is one) and `shard_ledger` (what is on disk, and what a kill leaves).

Not in the guarantee: what was chosen with the forgotten rows in view (architecture, learning rate,
S and R, a normaliser, an id map that numbers rows by rank: ids must be the examples' own); a
person who picks what to forget after having seen the models (Gupta et al. 2021, arXiv:2106.04378:
the retained rows then depend on the seed); another processor, number of threads or version, where
bits differ and everything is trained anew. The ids that were forgotten stay on disk as numbers.

Departures: 1. Shard and slice are hashes of the id, where the paper draws a partition; sizes are
binomial. 2. A slice without rows trains nothing. 3. Every stage takes the same number of epochs, of
its own, growing data. 4. A shard without rows does not vote. 5. The optimiser's state goes on from
stage to stage. *Reconstruction* from the paper; the published code differs in ways that the tests
name.
"""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.columns import is_traced
from jaxunlearn.manifest import absolute
from jaxunlearn.methods.exact import shard_ledger as ledger
from jaxunlearn.methods.exact.shard_plan import expected_cost
from jaxunlearn.methods.exact.shard_rows import check_fits, rows, without
from jaxunlearn.methods.exact.shard_rows import ids as ids_of
from jaxunlearn.methods.exact.shard_runs import stage_runs
from jaxunlearn.methods.exact.shard_trainer import Trainer
from jaxunlearn.typing import Array, Batch, Key, check_key


class ShardsState(NamedTuple):
    """The ensemble and the rows that it stands for."""

    columns: dict[str, np.ndarray]  # name -> (n, ...) on the host, "id" (n,) int64 among them
    key: Key  # [] the seed of everything
    states: Any  # of the Trainer after the last stage, a leading axis of S
    voting: Array  # (S,) bool, shards that have rows


class ShardsInfo(NamedTuple):
    """What a call cost, and what it removed."""

    examples: int  # examples x epochs that were trained in this call
    full: int  # examples x epochs of training all that is present from nothing
    expected: float  # (1/S)(2/3 + 1/(3R)), of `full`, for one deletion at random
    stages: tuple[tuple[int, int], ...]  # (shard, slice) trained in this call
    forgotten: int  # rows that left the state in this call
    left_out: int  # rows given to `learn` that were forgotten before and stay out
    removed: int  # checkpoints taken from disk because they knew forgotten rows

    @property
    def cost(self) -> float:
        """examples / full; 0 where nothing is present."""
        return self.examples / self.full if self.full else 0.0


class Shards(NamedTuple):
    """The four functions of the learner; see `shards`."""

    init: Callable[[Key], ShardsState]
    learn: Callable[[ShardsState, Any], tuple[ShardsState, ShardsInfo]]
    forget: Callable[[ShardsState, Iterable[int]], tuple[ShardsState, ShardsInfo]]
    predict: Callable[[ShardsState, Batch], Array]


def vote(outputs: Array, voting: Array, aggregate: str) -> Array:
    """Logits (S, n, C) of the shards -> (n, C), rows sum to 1: mean softmax, or shares of votes."""
    classes = outputs.shape[-1]
    if aggregate == "mean":
        votes = jax.nn.softmax(outputs, axis=-1)
    else:
        votes = jax.nn.one_hot(outputs.argmax(axis=-1), classes, dtype=outputs.dtype)
    total = jnp.where(voting[:, None, None], votes, 0).sum(axis=0)
    count = voting.sum()
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1 / classes)


def shards(
    trainer: Trainer,
    directory: str | PathLike[str],
    *,
    num_shards: int,
    num_slices: int,
    batch_size: int = 64,
    together: int = 1,
    aggregate: str = "mean",
) -> Shards:
    """theta_{s,r} = train(theta_{s,r-1}, slices 1 .. r of shard s);   p = mean_s softmax(f_s).

    Args:
      trainer: see `gradient_trainer`, or three pure functions of one's own.
      directory: where states are kept; made when needed. One for each combination of everything
        else is not needed: a checkpoint's name is a hash of the rows, the seed and the program.
      num_shards, num_slices: S and R, >= 1. Forgetting costs (1/S)(2/3 + 1/(3R)) of a training;
        accuracy falls with S, disk grows with S R.
      batch_size: rows per batch, >= 1; the rows of a stage are padded to a multiple of it.
      together: shards that one program trains side by side (`vmap`), in [1, S], where their padded
        rows are equally many. It belongs to the program: forgetting runs the same one with idle
        lanes, so with S lanes a deletion costs S lanes' work. 1 on a CPU; more where a small
        training leaves an accelerator idle.
      aggregate: "mean" (of softmax) or "majority" (shares of votes; a tie is shared).

    Returns:
      `Shards(init, learn, forget, predict)`:

      * `init(key)` -> state without rows; reads and writes nothing.
      * `learn(state, data)` -> (state, info): adds rows with new ids and runs the stages that they
        enter, or reads them where they were run before. This is also how a killed program goes on:
        the same calls again. Requests to forget that were written down are finished first.
      * `forget(state, ids)` -> (state, info): writes the request down, then retrains. `ids` may be
        empty: that only catches up with what other processes forgot.
      * `predict(state, batch)` -> (n, C); traceable.

    Raises:
      ValueError: a constant outside its range; data without an `"id"`, with an id twice, one that
        is present already, or other columns than before; an id to forget that was never learnt.
      TypeError: data that are no columns in memory, ids that are not integers, a traced state.
      FloatingPointError: a stage diverged. The request stays written down, the states that
        knew the rows are gone from disk.
      CheckpointError: disk full or read-only; what is on disk stays sound, call again.

    Warns:
      DamagedStageWarning: a checkpoint could not be believed and its stage is trained again.

    | situation                                | result                                            |
    |------------------------------------------|---------------------------------------------------|
    | forget, then compare with a run without  | the same bits (same processor and versions)       |
    | learn in parts, in any order             | the bits of learning all at once                  |
    | killed at any moment, same calls again   | the bits of the uninterrupted run                 |
    | several ids                              | each shard is retrained once, from the first slice|
    | forgotten twice, or no id                | no-op                                             |
    | learn a forgotten id                     | it stays out, `info.left_out`                     |
    | a row of weight 0                        | is padding, not learnt                            |
    | a slice without rows                     | trains nothing                                    |
    | a shard without rows                     | does not vote; with no shard left all is uniform  |
    | two processes, one directory             | no request is lost; see `shard_ledger`            |
    | after `forget`                           | no checkpoint knows the ids; nor, after a kill,   |
    |                                          | once `learn` or `forget` was called again         |

    A state in memory is not reached by another process: call `forget(state, ())` there.

    Cost: a training costs S (R + 1) / (2 S) = (R + 1) / 2 passes for each epoch of a stage. A call
    hashes all rows twice and reads every manifest once. Memory: the rows on the host, S states.

    Source: Bourtoule et al. (2021), arXiv:1912.03817; departures in the module.

    Example:
      >>> import tempfile, optax
      >>> from jaxunlearn import Model
      >>> from jaxunlearn.methods.exact.shard_trainer import gradient_trainer
      >>> model = Model(
      ...     outputs=lambda p, b: b["x"] @ p,
      ...     loss=lambda p, b: -jax.nn.log_softmax(b["x"] @ p)[jnp.arange(len(b["y"])), b["y"]],
      ...     init=lambda key: jnp.zeros((2, 2)))
      >>> trainer = gradient_trainer(model, optax.sgd(1.0), epochs=3)
      >>> data = {"x": np.tile(np.eye(2, dtype=np.float32), (4, 1)), "y": np.tile([0, 1], 4),
      ...         "id": np.arange(8)}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     learner = shards(trainer, directory, num_shards=2, num_slices=2, batch_size=4)
      ...     state, _ = learner.learn(learner.init(jax.random.key(0)), data)
      ...     state, info = learner.forget(state, [3, 5])
      >>> print(info.forgotten, learner.predict(state, data).argmax(axis=1)[:2])
      2 [0 1]
    """
    _check(num_shards, num_slices, batch_size, together, aggregate)
    root = absolute(directory)
    runs = stage_runs(trainer, root, num_shards, num_slices, batch_size, together)

    def settle(
        columns: dict[str, np.ndarray], state: ShardsState, left_out: int = 0
    ) -> tuple[ShardsState, ShardsInfo]:
        """Brings states and disk in line with `columns` less what is forgotten."""
        key, ran, removed, given = state.key, [], 0, len(columns.get("id", ()))
        old = runs.plan(state.columns, key)
        held = {
            list(own)[-1]: jax.tree.map(lambda leaf, shard=shard: leaf[shard], state.states)
            for shard, own in enumerate(old)
            if own
        }
        while True:
            gone = ledger.forgotten(root)
            columns = without(columns, gone)
            removed += ledger.remove_forgotten(root, gone)
            states, stages = runs.train(columns, key, held)
            ran += stages
            if ledger.forgotten(root) == gone:  # Else another process was faster: look again.
                break
        plan = runs.plan(columns, key)
        for shard, own in enumerate(old):  # What `learn` has overtaken is of no more use.
            for name in own.keys() - plan[shard].keys():
                ledger.discard(ledger.stage_path(root, shard, name))
        ledger.join(root)
        info = ShardsInfo(
            examples=trainer.epochs * sum(len(s.rows) for s in ran),
            full=trainer.epochs * sum(len(s.rows) for own in plan for s in own.values()),
            expected=expected_cost(num_shards, num_slices),
            stages=tuple((s.shard, s.slice) for s in ran),
            forgotten=given - len(columns.get("id", ())),
            left_out=left_out,
            removed=removed,
        )
        return assembled(columns, key, states, plan), info

    def assembled(columns: dict, key: Key, states: list, plan: list) -> ShardsState:
        voting = jnp.array([bool(own) for own in plan])
        return ShardsState(columns, key, jax.tree.map(lambda *x: jnp.stack(x), *states), voting)

    def init(key: Key) -> ShardsState:
        check_key("shards.init", key)
        states = [runs.start(key, shard) for shard in range(num_shards)]
        return assembled({}, key, states, [{}] * num_shards)

    def learn(state: ShardsState, data: Any) -> tuple[ShardsState, ShardsInfo]:
        _check_concrete("learn", state)
        given, before = rows(data), state.columns
        added = without(given, ledger.forgotten(root))
        left_out = len(given["id"]) - len(added["id"])
        if before:
            check_fits(added, before)
            added = {k: np.concatenate([before[k], added[k]]) for k in before}
        return settle(added, state, left_out)

    def forget(state: ShardsState, ids: Iterable[int]) -> tuple[ShardsState, ShardsInfo]:
        _check_concrete("forget", state)
        asked = ids_of(ids)
        unknown = asked - set(state.columns.get("id", np.zeros(0, np.int64)).tolist())
        gone = ledger.forgotten(root)
        if unknown := sorted(unknown - gone):
            raise ValueError(
                f"shards.forget: {len(unknown)} of {len(asked)} ids were never learnt, the first "
                f"is {unknown[0]}. Nothing was done. Are these the ids of the rows given to learn?"
            )
        if asked - gone:
            ledger.ask_to_forget(root, asked - gone)
        return settle(state.columns, state)

    def predict(state: ShardsState, batch: Batch) -> Array:
        outputs = jax.vmap(trainer.outputs, in_axes=(0, None))(state.states, batch)
        return vote(outputs, state.voting, aggregate)

    return Shards(init, learn, forget, predict)


def _check_concrete(verb: str, state: ShardsState) -> None:
    if is_traced((state, jnp.zeros(()))):
        raise TypeError(
            f"shards.{verb} reads and writes files, so it cannot run inside jit or vmap; "
            "predict can."
        )


def _check(num_shards: int, num_slices: int, batch_size: int, together: int, how: str) -> None:
    sizes = {"num_shards": num_shards, "num_slices": num_slices, "batch_size": batch_size}
    for name, value in {**sizes, "together": together}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"shards: {name} must be an integer >= 1, got {value!r}.")
    if together > num_shards:
        raise ValueError(f"shards: together must be at most {num_shards} shards, got {together}.")
    if how not in ("mean", "majority"):
        raise ValueError(f"shards: aggregate must be 'mean' or 'majority', got {how!r}.")
