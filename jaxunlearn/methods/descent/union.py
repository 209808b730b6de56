"""What is forgotten and what is retained as one stream, told apart by a column.

    data = F and R,    batch["forget"]_i = 1 if row i is of F

The stream of methods that give forgotten and retained rows different targets in the same batch.
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn.data.streams import InMemory, Stream, as_data, concatenate
from jaxunlearn.typing import Batch, Data


def union(forget: Data, retain: Data) -> InMemory | Stream:
    """All rows of both, with a bool column "forget" (n,).

    Args:
      forget, retain: Data with the same columns.

    Returns:
      In-memory Data with the retained data's batch size, which `fit` shuffles as a whole. If either
      streams, a stream of the forget batches and then the retained ones: there is no shuffling
      across two streams.

    Example:
      >>> both = union({"x": jnp.zeros(1)}, {"x": jnp.ones(2)})
      >>> both["forget"].tolist()
      [True, False, False]
    """
    forget, retain = as_data(forget), as_data(retain)
    both = concatenate(_flagged(forget, True), _flagged(retain, False))
    if isinstance(both, InMemory) and isinstance(retain, InMemory):
        return dataclasses.replace(both, batch_size=retain.batch_size)
    return both


def _flagged(data: InMemory | Stream, value: bool) -> InMemory | Stream:
    if isinstance(data, InMemory):
        flag = jnp.full(data.num_examples, value)
        return InMemory(data.arrays | {"forget": flag}, data.batch_size)
    before = data.transform

    def flag_batch(batch: Batch) -> Batch:
        flag = jnp.full(batch["weight"].shape, value)
        return dict(before(batch)) | {"forget": flag}

    return dataclasses.replace(data, transform=flag_batch)
