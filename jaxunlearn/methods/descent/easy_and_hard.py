"""Easy and hard rows of the forget set in one training stream, and noise that hides the easy ones.

    L = mean_i w_i l_i(theta; x_i + s xi_i [flag_i easy], y~_i),      y~_i wrong if flag_i is hard
    s:  mean_{F easy} l_i(theta_0; x_i + s xi_i) = mean_{H easy} l_i(theta_0; x_i)

A model has seen the easy forget rows and not the held-out ones, so its losses on the former are
lower and tell members from others. With noise on their inputs while they are trained on they end
where examples that were never seen are. Sun et al. (2024), arXiv:2408.11433, perturbs the loss of
flagged rows by a rule that was not published: *reconstruction*.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory, Stream, as_data
from jaxunlearn.losses import weighted_mean
from jaxunlearn.methods.descent.hardness import each_row, row_weights
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Batch, Data, Key, Params

RETAINED, EASY, HARD = 0, 1, 2
_HALVINGS = 16


def easy_and_hard(model: Model, noise: Array | None) -> Objective:
    """L of the module over the stream "data", whose column "flag" is RETAINED, EASY or HARD.

    Args:
      model: its outputs are logits (n, C), C >= 2.
      noise: s [], the objective's state; None: no noise, and x may be of any kind.

    Wrong labels and noise are drawn anew every time a row is seen.

    Raises:
      ValueError: (while tracing) a single class, where no label is wrong.
      TypeError: (while tracing) noise on inputs that are not float.
    """
    state = () if noise is None else noise
    return Objective(lambda params: state, bind(_loss, model))


def _loss(
    model: Model, params: Params, batches: Batches, state: Any, key: Key
) -> tuple[Array, Any]:
    batch = dict(batches["data"])
    flag = batch.pop("flag")
    if not isinstance(state, tuple):
        x = _float_inputs(batch)
        noise = state.astype(x.dtype) * jax.random.normal(
            jax.random.fold_in(key, 1), x.shape, x.dtype
        )
        batch["x"] = jnp.where((flag == EASY).reshape(-1, *[1] * (x.ndim - 1)), x + noise, x)
    wrong = objectives.random_labels(model, wrong_only=True)
    return wrong.loss(params, {"data": batch | {"forget": flag == HARD}}, (), key)[0], state


def matching_noise(
    model: Model,
    params: Params,
    forget: InMemory,
    easy: Array,
    held: InMemory,
    known: Array,
    key: Key,
) -> Array:
    """s with mean_{easy F} l(x + s xi) = mean_{easy H} l(x) at these params, by bisection.

    Args:
      model, params: in evaluation mode.
      forget, held: F and H, with float x and labels.
      easy, known: bool (n_F,) and (n_H,), which of their rows are easy.
      key: of xi, the same for every s.

    Returns:
      [] float32, between 0 and the root mean square deviation of the inputs of F, and at an end if
      there is no such s between them; 0 if F or H has no easy row.

    Cost: 16 forward passes over F.
    """
    x, weight = _float_inputs(forget.arrays), row_weights(forget) * easy
    xi = jax.random.normal(key, x.shape, x.dtype)
    target = weighted_mean(
        each_row(model.loss, params, held), {"weight": row_weights(held) * known}
    )

    def loss(s: Array) -> Array:
        noisy = InMemory(forget.arrays | {"x": x + s.astype(x.dtype) * xi}, forget.batch_size)
        return weighted_mean(each_row(model.loss, params, noisy), {"weight": weight})

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = loss(middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    all_rows = (row_weights(forget) > 0).reshape(-1, *[1] * (x.ndim - 1))
    widest = jnp.std(x, axis=0, where=jnp.broadcast_to(all_rows, x.shape)).astype(jnp.float32)
    top = jnp.sqrt(jnp.square(widest).mean())
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(top), top))
    some = (weight.sum() > 0) & ((row_weights(held) * known).sum() > 0)
    return jnp.where(some, low, 0)


def _float_inputs(batch: Batch) -> Array:
    if not jnp.issubdtype(batch["x"].dtype, jnp.floating):
        raise TypeError(
            f"tmu: noise on the inputs needs float x, got {batch['x'].dtype}. Set noise=0."
        )
    return batch["x"]


def collected(data: Data) -> InMemory:
    """In-memory Data as they are; a stream as one array per column, without its padding."""
    if isinstance(data, InMemory):
        return data
    stream = as_data(data)
    parts = [{k: v[batch["weight"] > 0] for k, v in batch.items()} for batch in stream]
    columns = {k: jnp.concatenate([part[k] for part in parts]) for k in parts[0]}
    return InMemory(columns, stream.batch_size)


def flagged(data: Data, value: Any) -> InMemory | Stream:
    """The same Data with the column "flag": one value, or in memory one for each row."""
    data = as_data(data)
    if isinstance(data, InMemory):
        flag = jnp.broadcast_to(jnp.asarray(value, jnp.int32), (data.num_examples,))
        return InMemory(data.arrays | {"flag": flag}, data.batch_size)
    before = data.transform

    def add(batch: Batch) -> Batch:
        return dict(before(batch)) | {"flag": jnp.full(batch["weight"].shape, value, jnp.int32)}

    return dataclasses.replace(data, transform=add)
