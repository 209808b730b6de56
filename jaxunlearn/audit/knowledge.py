"""What does a model know of a set of rows? Confidence, accuracy and loss, inside a compiled run.

    confidence = mean_i p_i[y_i],   accuracy = mean_i 1[argmax z_i = y_i],   loss = mean_i l_i

Traceable numbers of one model, for audits that train or change it: `accuracy` has those of finished
outputs, in float64 on the host. Rows are read batch by batch, which bounds memory; the values of
all rows are then averaged at once, so that the size of the batches changes nothing but the rounding
of the model itself.

| input                                     | result                                       |
|-------------------------------------------|----------------------------------------------|
| no rows, or all of weight 0               | NaN: undefined, not 0                        |
| rows of weight 0                          | left out, whatever they hold                 |
| a NaN, +Inf or all -Inf output            | NaN, whatever argmax says                    |
| a logit of -Inf at the label              | confidence 0, loss Inf                       |
| several labelled positions in an example  | its mean over positions; the loss is its sum |
| targets that are no classes               | confidence and accuracy None                 |
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.columns import check_columns, is_traced
from jaxunlearn.data.streams import InMemory, Stream, as_data, in_memory
from jaxunlearn.losses import check_labels, check_per_example, num_classes, weighted_mean
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Batch, Params


class Knowledge(NamedTuple):
    """What a model knows of one set of rows; NaN where that is undefined."""

    confidence: Array | None  # [] float in [0, 1], mean p_y; None if the targets are no classes
    accuracy: Array | None  # [] float in [0, 1]; None likewise
    loss: Array  # [] float, mean of the model's loss: nats, or squared error


class Watched(NamedTuple):
    """Rows that have been checked against a model."""

    rows: InMemory
    classes: int | None  # of the model's outputs; None if the targets are no classes


def as_watched(where: str, name: str, model: Model, params: Params, rows: Any) -> Watched:
    """`rows` as in-memory Data that the model can be asked about.

    Args:
      where, name: whose rows these are, for errors.
      model, params: looked at for shapes only.
      rows: in-memory Data, to be read in its batches, or a mapping of arrays, to be read at once.

    Raises:
      TypeError: rows that stream from the host, or whatever `in_memory` refuses.
      ValueError: a loss that is not per example; concrete labels outside the classes.
    """
    place = f"{where}: {name}"
    if isinstance(rows, Mapping):
        rows = in_memory(rows, max(1, check_columns(rows, place)))
    rows = as_data(rows)
    if isinstance(rows, Stream):
        raise TypeError(
            f"{place} streams from the host, and a curve is one compiled run. Use data.in_memory."
        )
    check_per_example(model.loss, params, rows.arrays)
    classes = num_classes(model.outputs, params, rows.arrays) if "y" in rows else None
    if classes is not None and rows.num_examples and not is_traced(rows):
        check_labels(place, rows.arrays, classes)
    return Watched(rows, classes)


def knowledge(model: Model, params: Params, watched: Watched) -> Knowledge:
    """Confidence, accuracy and loss of one model on a set of rows; the equations of the module.

    Args:
      model, params: one model, statistics included; evaluation mode.
      watched: from `as_watched`.

    Returns:
      `Knowledge`; see the table of the module for what is undefined.

    Cost: one pass over the rows; memory of one batch of activations and of three numbers a row.

    Example:
      >>> model = Model(
      ...     outputs=lambda p, batch: batch["x"] @ p,
      ...     loss=lambda p, batch: jnp.square(batch["x"] @ p - batch["y"]),
      ... )
      >>> rows = {"x": jnp.ones((3, 1)), "y": jnp.array([0.0, 1.0, 4.0])}
      >>> seen = as_watched("example", "rows", model, jnp.ones(1), rows)
      >>> print(f"{knowledge(model, jnp.ones(1), seen).loss:.3f}")
      3.333
    """
    data, classes = watched
    count = data.num_examples
    if count == 0:
        undefined = jnp.float32(jnp.nan)
        of_classes = None if classes is None else undefined
        return Knowledge(of_classes, of_classes, undefined)

    def read(index: int | Array) -> tuple[Knowledge, Array]:
        batch = data.batch(index)
        return _per_example(model, params, classes, batch), batch["weight"]

    whole = data.num_batches == 1
    each, weight = read(0) if whole else jax.lax.map(read, jnp.arange(data.num_batches))
    weights = {"weight": weight.reshape(-1)[:count]}

    def mean(values: Array) -> Array:
        average = weighted_mean(values.reshape(-1)[:count], weights)
        return jnp.where(weights["weight"].sum() > 0, average, jnp.nan)

    return jax.tree.map(mean, each)


def _per_example(model: Model, params: Params, classes: int | None, batch: Batch) -> Knowledge:
    """Each field (n,) instead of []; at least float32."""
    loss = model.loss(params, batch)
    loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
    if classes is None:
        return Knowledge(None, None, loss)
    logits, labels = model.outputs(params, batch), batch["y"]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    defined = jnp.isfinite(logits.max(axis=-1))
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = (logits.argmax(axis=-1) == labels).astype(logits.dtype)

    def of_example(values: Array) -> Array:
        return jnp.where(defined, values, jnp.nan).reshape(loss.shape[0], -1).mean(axis=1)

    return Knowledge(of_example(jnp.exp(-nats)), of_example(hits), loss)
