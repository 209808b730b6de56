"""One loop for every sum over a data set: carry <- job(args, carry, rows, keys), chunk by chunk.

In-memory data are one scan inside one program, compiled once for each job and never again for the
same shapes; streaming data are driven from the host through the same program. Rows that pad the
last chunk have weight 0, and rows of weight 0 are copies of one that counts, so that 0 times what
they give is 0 and never NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.typing import Array, Batch, Data, Key


def fold_over(
    job: Callable[[Any, Any, Batch, Any], Any],
    args: Any,
    data: Data,
    carry: Any,
    *,
    micro_batch: int | None = None,
    key: Key | None = None,
) -> Any:
    """`carry` after all rows of `data`.

    Args:
      job: (args, carry, batch with "weight", keys (n,) or None) -> carry. Hashable: jobs that
        compare equal share a compiled loop.
      args: tree of arrays that stays the same.
      data: in-memory (traceable) or streaming.
      carry: tree of arrays.
      micro_batch: rows taken at once; None: a batch of the data.
      key: if given, row i of the data gets `fold_in(key, i)`, however it is batched.

    Raises:
      ValueError: micro_batch < 1.

    | edge case                 | result          |
    |---------------------------|-----------------|
    | no rows, or all weights 0 | the same carry  |
    """
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch must be >= 1 or None, got {micro_batch}.")
    parts = [data] if isinstance(data, InMemory) else map(_whole, data)
    seen = 0
    for part in parts:
        if part.num_examples:
            fold = _fold if is_traced((args, part, key)) else _fold_jit
            carry = fold(job, micro_batch or part.batch_size, args, carry, part, key, seen)
            seen += part.num_examples
    return carry


def in_chunks(total: Callable[..., Any], rows: Any, most: int) -> Any:
    """sum of `total(*rows of a chunk)` over chunks of at most `most` rows, all of one size.

    Args:
      total: (*rows) -> tree of sums.
      rows: tuple of trees with leading axis n.
      most: >= 1. The largest divisor of n up to it is taken; if that is less than a quarter of it,
        n has no good divisor, and all rows are taken at once.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    size = max((d for d in range(1, min(most, n) + 1) if n % d == 0), default=n)
    if size == n or size < most / 4:
        return total(*rows)
    chunks = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), rows)

    def body(sums: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, total(*chunk)), None

    like = jax.eval_shape(total, *jax.tree.map(lambda a: a[0], chunks))
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return jax.lax.scan(body, start, chunks)[0]


def _whole(batch: Batch) -> InMemory:
    return InMemory(dict(batch), max(1, next(iter(batch.values())).shape[0]))


def _fold(
    job: Callable,
    size: int,
    args: Any,
    carry: Any,
    data: InMemory,
    key: Key | None,
    seen: int | Array,
) -> Any:
    """One scan over chunks of `size` rows, the last one padded; no scan for a single chunk."""
    size = min(size, data.num_examples)
    data, any_counts = _counting(data)

    def add(carry: Any, indices: Array, batch: Batch) -> Any:
        keys = key if key is None else jax.vmap(partial(jax.random.fold_in, key))(seen + indices)
        return job(args, carry, batch, keys)

    def body(carry: Any, start: Array) -> tuple[Any, None]:
        indices = start + jnp.arange(size)
        padding = jnp.maximum(start + size - data.num_examples, 0)
        return add(carry, indices, data.gather(indices, padding)), None

    if size == data.num_examples:
        after = add(carry, jnp.arange(size), {"weight": jnp.ones(size)} | data.arrays)
    else:
        after = jax.lax.scan(body, carry, jnp.arange(0, data.num_examples, size))[0]
    return jax.tree.map(lambda new, old: jnp.where(any_counts, new, old), after, carry)


_fold_jit = jax.jit(_fold, static_argnums=(0, 1))


def _counting(data: InMemory) -> tuple[InMemory, Array]:
    """Rows of weight 0 as copies of one that counts, and whether there is one that counts."""
    if "weight" not in data:
        return data, jnp.array(True)
    counts = data["weight"] > 0
    rows = jnp.where(counts, jnp.arange(counts.size), jnp.argmax(counts))
    columns = {k: v if k == "weight" else v[rows] for k, v in data.arrays.items()}
    return InMemory(columns, data.batch_size), counts.any()
