"""How the stages of a sharded training are run: each once, and many shards as one program.

    state_{s,r} = train(state_{s,r-1}, rows of slices 1 .. r of shard s, key_{s,r})

Bits belong to programs: the same rows give other bits under `vmap` than alone. So the first
training and every later one go through the same program: `together` lanes side by side, shard s
always in lane s mod `together`, idle lanes filled with a copy. Stages share a call where they are
of one slice, one group of shards and one padded length, which each has by its own rows alone. The
key of a stage is folded from the seed, s and r; r = 0 draws the initial state.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory
from jaxunlearn.methods.exact import shard_ledger as ledger
from jaxunlearn.methods.exact.shard_plan import Columns, Stage, name_of, padded, seed_of, stages
from jaxunlearn.methods.exact.shard_rows import pad
from jaxunlearn.methods.exact.shard_trainer import Trainer, environment, fingerprint
from jaxunlearn.typing import Key


class StageRuns(NamedTuple):
    """Functions of (columns, key); see `stage_runs`."""

    start: Callable[[Key, int], Any]  # (key, shard) -> its state before any stage
    plan: Callable[[Columns, Key], list[dict[str, Stage]]]  # of each shard, name -> stage, in order
    train: Callable[..., tuple[list[Any], list[Stage]]]  # (columns, key, held), see inside


def stage_runs(
    trainer: Trainer,
    root: Path,
    num_shards: int,
    num_slices: int,
    batch_size: int,
    together: int,
) -> StageRuns:
    """The programs of a sharded training, each compiled once for each length; see `shards`."""
    fresh, run, diverged, prints = _programs(trainer)

    def recipe(columns: Columns, key: Key) -> dict[str, Any]:
        """All that decides a state besides its rows and its place."""
        kinds = tuple((k, str(c.dtype), c.shape[1:]) for k, c in columns.items() if k != "id")
        asked = kinds, together, batch_size, environment()
        if asked not in prints:
            rows = (together, 2 * batch_size)
            abstract: Any = {k: jax.ShapeDtypeStruct((*rows, *s), d) for k, d, s in kinds}
            prints[asked] = fingerprint(fresh, run, InMemory(abstract, batch_size), together)
        sizes = {"num_shards": num_shards, "num_slices": num_slices, "batch_size": batch_size}
        return {"program": prints[asked], "seed": seed_of(key), "together": together, **sizes}

    def plan(columns: Columns, key: Key) -> list[dict[str, Stage]]:
        if not columns:
            return [{} for _ in range(num_shards)]
        made = recipe(columns, key)
        planned = stages(columns, seed_of(key), num_shards, num_slices)
        return [{name_of(stage, made): stage for stage in own} for own in planned]

    def start(key: Key, shard: int) -> Any:
        return fresh(_purpose(key, shard, 0))

    def reached(own: Mapping[str, Stage], state: Any, held: Mapping[str, Any]) -> tuple[Any, int]:
        """The last state of a shard that was kept, and how many stages it has behind it."""
        for count, (name, stage) in reversed(list(enumerate(own.items(), 1))):
            if name in held:
                return held[name], count
            found = ledger.load_stage(ledger.stage_path(root, stage.shard, name), state)
            if found is not None:
                return found, count
        return state, 0

    def train(columns: Columns, key: Key, held: Mapping[str, Any]) -> tuple[list[Any], list[Stage]]:
        """The state of every shard after its stages, and the stages that had to be run.

        `held`: states in memory, by name; others are looked for on disk. What is run is published
        stage by stage.
        """
        states, groups = [], {}
        for shard, own in enumerate(plan(columns, key)):
            state, done = reached(own, start(key, shard), held)
            states.append(state)
            for name, stage in list(own.items())[done:]:
                place = stage.slice, shard // together, padded(len(stage.rows), batch_size)
                groups.setdefault(place, {})[name] = stage
        for (_, _, rows), group in sorted(groups.items(), key=lambda item: item[0]):
            lanes = _lanes(list(group.values()), together)
            arrays: Any = {
                name: np.stack([pad(column[stage.rows], rows) for stage in lanes])
                for name, column in columns.items()
                if name != "id"
            }
            keys = jnp.stack([_purpose(key, stage.shard, stage.slice) for stage in lanes])
            before = jax.tree.map(lambda *x: jnp.stack(x), *(states[s.shard] for s in lanes))
            after = run(before, InMemory(arrays, batch_size), keys)
            lost = np.asarray(diverged(after))
            for name, stage in group.items():
                lane = stage.shard % together
                if lost[lane]:
                    raise FloatingPointError(
                        f"shards: the training of shard {stage.shard} diverged in slice "
                        f"{stage.slice}; its state was not stored. Lower the learning rate, or "
                        "look for what is unusual in its rows; requests to forget stay written "
                        "down."
                    )
                state = jax.tree.map(lambda leaf, lane=lane: leaf[lane], after)
                states[stage.shard] = state
                path = ledger.stage_path(root, stage.shard, name)
                ledger.save_stage(path, state, columns["id"][stage.rows], recipe(columns, key))
        return states, [stage for group in groups.values() for stage in group.values()]

    return StageRuns(start, plan, train)


@functools.lru_cache(maxsize=16)
def _programs(trainer: Trainer) -> tuple[Any, Any, Any, dict]:
    """Jitted init, train and diverged, and their fingerprints: shared by learners of a trainer."""
    run, diverged = jax.jit(jax.vmap(trainer.train)), jax.jit(jax.vmap(trainer.diverged))
    return jax.jit(trainer.init), run, diverged, {}


def _purpose(key: Key, shard: int, slice_: int) -> Key:
    """One key per stage; slice 0 draws the initial state."""
    return jax.random.fold_in(jax.random.fold_in(key, shard), slice_)


def _lanes(group: Sequence[Stage], together: int) -> list[Stage]:
    """Shard s always in lane s mod `together`; an idle lane repeats the first of the group."""
    own = {stage.shard % together: stage for stage in group}
    return [own.get(lane, group[0]) for lane in range(together)]
