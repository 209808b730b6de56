"""Where every example of a sharded training goes: a function of its own id and the seed alone.

    h = hash(seed, id),    shard = high(h) mod S,    slice = 1 + low(h) mod R

A *stage* (s, r) trains shard s on its slices 1 .. r. Its rows, their order, and all else that
decides its result are functions of the rows that are present in those slices: no count, capacity
or order is shared between shards, or taken from a later slice. So a stage of a data set from which
rows were deleted IS the stage of a data set that never had them. Sizes of shards and slices are
binomial, not equal, which is the price.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), twice, with the seed mixed in
before each. It spreads ids, it is not cryptographic: who knows the seed and may choose ids can
choose shards.

This is the host's half of `jaxunlearn.methods.exact.shards`: NumPy, nothing is traced.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.manifest import array_sha256, canonical_json
from jaxunlearn.typing import Key

Columns = Mapping[str, np.ndarray]


class Stage(NamedTuple):
    """Training of a shard on its slices 1 .. `slice`, from where the stage before ended."""

    shard: int  # 0 .. S - 1
    slice: int  # 1 .. R
    rows: np.ndarray  # (n,) int, places of the rows in the columns, slice by slice, by hash within
    content: tuple[str, ...]  # of each slice with rows: its number, and a hash of ids and values


def seed_of(key: Key) -> str:
    """The seed in words, hexadecimal: kind and bits of a typed key."""
    bits = np.asarray(jax.random.key_data(key)).tobytes()
    return f"{jax.random.key_impl(key)}:{bits.hex()}"


def hashes(ids: np.ndarray, seed: str) -> np.ndarray:
    """(n,) uint64: of each id on its own; another seed, other hashes.

    Example:
      >>> together = hashes(np.array([3, 7, 8]), "a")
      >>> bool(together[1] == hashes(np.array([7]), "a")[0])
      True
    """
    words = np.frombuffer(hashlib.sha256(seed.encode()).digest()[:16], np.uint64)
    value = ids.astype(np.int64).view(np.uint64)
    for word in words:
        value = _mix(value + word)
    return value


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stages(columns: Columns, seed: str, num_shards: int, num_slices: int) -> list[list[Stage]]:
    """The stages of every shard, in order; a slice that has no rows has no stage.

    Args:
      columns: name -> (n, ...), with distinct `"id"` (n,).
      seed: see `seed_of`.
      num_shards, num_slices: S and R, >= 1.

    Cost: one pass over the columns, to hash them.

    Example:
      >>> plan = stages({"id": np.arange(9), "x": np.ones((9, 2))}, "seed", 1, 3)
      >>> [(stage.slice, len(stage.rows)) for stage in plan[0]]
      [(1, 4), (2, 8), (3, 9)]
    """
    h = hashes(columns["id"], seed)
    order = np.lexsort((columns["id"], h))
    shard = (h >> np.uint64(32)) % np.uint64(num_shards)
    part = (h & np.uint64(2**32 - 1)) % np.uint64(num_slices)
    plan = []
    for s in range(num_shards):
        mine = order[shard[order] == s]
        seen, content, found = np.zeros(0, np.int64), (), []
        for r in range(num_slices):
            if len(new := mine[part[mine] == r]):
                seen = np.concatenate([seen, new])
                content = (*content, f"{r + 1}:{_digest(columns, new)}")
                found.append(Stage(s, r + 1, seen, content))
        plan.append(found)
    return plan


def _digest(columns: Columns, rows: np.ndarray) -> str:
    """Hash of some rows: names, dtypes, shapes and bytes of their columns, in this order."""
    described = {
        name: [str(c.dtype), list(c.shape[1:]), array_sha256(c[rows])]
        for name, c in columns.items()
    }
    return hashlib.sha256(canonical_json(described).encode()).hexdigest()


def name_of(stage: Stage, recipe: Mapping[str, Any]) -> str:
    """The name of a stage's checkpoint: a hash of its rows and of the recipe.

    Args:
      recipe: JSON data, everything else that the result depends on.
    """
    facts = {"recipe": recipe, "shard": stage.shard, "slice": stage.slice, "rows": stage.content}
    digest = hashlib.sha256(canonical_json(facts, "recipe").encode()).hexdigest()
    return f"slice-{stage.slice:03d}-{digest}"


def padded(rows: int, batch_size: int) -> int:
    """Rows of a stage with its padding: the next multiple of the batch size."""
    return -(-rows // batch_size) * batch_size


def expected_cost(num_shards: int, num_slices: int) -> float:
    """(1/S)(2/3 + 1/(3R)): examples retrained for one random deletion, over those of a training.

    For slices of equal size: deleting from slice r retrains r + (r+1) + .. + R slices' worth of
    examples out of S (1 + .. + R), and r is uniform.

    Example:
      >>> expected_cost(4, 1), round(expected_cost(1, 10), 3)
      (0.25, 0.7)
    """
    return (2 / 3 + 1 / (3 * num_slices)) / num_shards
