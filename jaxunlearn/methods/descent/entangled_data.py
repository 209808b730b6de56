"""The data of `entanglement`: remote rows, several batches at once, a loss that never changes.

    remote = retain less the rows whose "id" is among the adjacent ones

Everything works on in-memory Data inside a trace, where shapes are static and ids are not known:
rows are taken away by weight 0. Streaming Data are changed as they are read.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory, Stream
from jaxunlearn.losses import weighted_mean
from jaxunlearn.typing import Array, Batch

BEFORE = "loss_before"  # the column of `with_losses`


def has_ids(data: InMemory | Stream) -> bool:
    """Whether rows have an `"id"`."""
    return "id" in (data.arrays if isinstance(data, InMemory) else next(iter(data)))


def ids_of(data: InMemory | Stream) -> Array:
    """(m,) the ids of all rows; one pass over a stream."""
    if isinstance(data, InMemory):
        return data["id"]
    return jnp.asarray(np.concatenate([np.asarray(batch["id"]) for batch in data]))


def without_rows(data: InMemory | Stream, ids: Array) -> InMemory | Stream:
    """The same rows, those whose id is among `ids` (m,) with weight 0."""

    def drop(columns: Batch) -> dict[str, Array]:
        weight = columns.get("weight", jnp.ones(columns["id"].shape, jnp.float32))
        others = ~jnp.isin(columns["id"], ids)
        return dict(columns) | {"weight": jnp.where(others, weight, 0)}

    if isinstance(data, InMemory):
        return InMemory(drop(data.arrays), data.batch_size)
    before = data.transform
    return dataclasses.replace(data, transform=lambda batch: drop(before(batch)))


def wide(data: InMemory | Stream, count: int) -> InMemory | Stream:
    """The same rows in batches of `count` old ones."""
    if isinstance(data, InMemory):
        return InMemory(data.arrays, data.batch_size * count)

    def open() -> Iterator[Batch]:
        batches = iter(data)
        while group := list(itertools.islice(batches, count)):
            names = set(group[0]) if "weight" in group[0] else {*group[0], "weight"}
            yield {n: np.concatenate([np.asarray(batch[n]) for batch in group]) for n in names}

    batches = -(-data.num_batches // count)
    return Stream(open, data.num_examples, batches, data.batch_size * count)


def sub_batches(batch: Batch, rows: int) -> Batch:
    """Columns (k, rows, ...) of a Batch, filled up with copies of its first row, of weight 0."""
    total = batch["weight"].shape[0]
    rows = min(rows, total)
    padding = -total % rows

    def cut(name: str, column: Array) -> Array:
        if padding:
            copies = jnp.broadcast_to(column[:1], (padding, *column.shape[1:]))
            copies = jnp.zeros_like(copies) if name == "weight" else copies
            column = jnp.concatenate([column, copies])
        return column.reshape(-1, rows, *column.shape[1:])

    return {name: cut(name, column) for name, column in batch.items()}


def with_losses(loss: Callable[[Batch], Array], data: InMemory | Stream) -> InMemory | Stream:
    """`data` with the column "loss_before": loss(batch) -> (n,), computed once per row.

    A stream is read once for it, and must yield the same batches in every pass; n numbers are kept.
    """
    if isinstance(data, InMemory):
        of = lambda index: loss(data.batch(index))  # noqa: E731
        rows = jax.lax.map(of, jnp.arange(data.num_batches)).reshape(-1)[: data.num_examples]
        # A row of weight 0 was seen as a copy of another one, and is never read again as itself.
        return InMemory(data.arrays | {BEFORE: rows.astype(_wide(rows))}, data.batch_size)
    compiled = jax.jit(loss)
    kept = [np.asarray(compiled(batch)) for batch in data]

    def open() -> Iterator[Batch]:
        for batch, rows in zip(data, kept, strict=True):
            yield {k: np.asarray(v) for k, v in batch.items()} | {BEFORE: rows.astype(_wide(rows))}

    return Stream(open, data.num_examples, data.num_batches, data.batch_size)


def mean_before(data: InMemory | Stream) -> Array:
    """[] the weighted mean of "loss_before"; 0 if no row counts."""
    if isinstance(data, InMemory):
        return weighted_mean(data[BEFORE], data.arrays)
    totals = [(b[BEFORE], b["weight"]) for b in data]
    losses, weights = (jnp.concatenate(parts) for parts in zip(*totals, strict=True))
    return weighted_mean(losses, {"weight": weights})


def _wide(losses: Any) -> Any:
    return jnp.promote_types(losses.dtype, jnp.float32)
