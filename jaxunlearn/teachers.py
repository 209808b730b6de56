"""Distillation with several teachers: each example learns from the one that its row names.

    R = sum_i w_i T^2 KL(softmax(z^{c_i}_i / T) || softmax(z_i / T)) / sum_i w_i

z are the student's logits, z^k those of teacher k, c_i a column of the batch. A teacher that is to
be obeyed on some examples and another one on the rest is a whole family of unlearning methods: a
competent and an incompetent teacher, the model as it was and an oracle, an old head and a new one.

| a teacher may be | what it says                                                                |
|------------------|-----------------------------------------------------------------------------|
| None             | what the model said where the run starts: theta_0, kept by the objective     |
| params           | what the model says with these                                              |
| a string         | logits that stand in the batch under this name; no second forward pass       |

`distillation.with_old_outputs` writes such a column. Params of teachers are the objective's state,
so other teachers are other arguments and not another program.

The divergence is `distillation.prediction_divergence`: Hinton et al. (2015), arXiv:1503.02531, with
the factor T^2. The choice by row is that of Chundawat et al. (2023), arXiv:2205.08096.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.losses import weighted_mean
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Batch, Key, Params, check_between


def as_found(params: Params) -> Params:
    """`init` of an objective whose reference is the model as the run finds it, theta_0."""
    return params


def multi_teacher(
    model: Model,
    teachers: Sequence[Params | str | None] = (None,),
    *,
    choice: str = "teacher",
    temperature: float = 1.0,
    on: str = "data",
) -> Objective:
    """R = mean_i w_i T^2 KL(softmax(z^{c_i}_i / T) || softmax(z_i / T)) over the stream `on`.

    Args:
      model: in evaluation mode, without running statistics of its own.
      teachers: K >= 1 of them, each None, params or the name of a column; see the module.
      choice: the column c, (n,) integers in [0, K) or bools (False is teacher 0). Not read if there
        is one teacher.
      temperature: T > 0.
      on: the stream whose rows are compared.

    Returns:
      An Objective whose state is the tuple of the teachers' params.

    Raises:
      ValueError: no teacher, T <= 0, running statistics, a missing column (while tracing), or
        logits of different shapes.

    | edge case                      | result                                       |
    |--------------------------------|----------------------------------------------|
    | student = teacher              | 0, with a gradient of rounding size           |
    | a choice outside [0, K)        | NaN, which ends a run as DIVERGED             |
    | rows of weight 0               | count nothing                                |

    Cost: a forward pass of every teacher that is params, over all rows of a step.

    Example:
      >>> linear = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"][:, 0])
      >>> taught = multi_teacher(linear, (None, "said"))
      >>> batch = {"x": jnp.eye(2), "teacher": jnp.array([0, 1]), "said": jnp.zeros((2, 2))}
      >>> print(taught.loss(jnp.eye(2), {"data": batch}, taught.init(jnp.eye(2)), None)[0] > 0)
      True
    """
    check_between("multi_teacher", "temperature", temperature, above=0)
    if not teachers:
        raise ValueError("multi_teacher: expected at least one teacher, got none.")
    if model.statistics:
        raise ValueError(
            "multi_teacher: this model keeps running statistics, which would drift. Give it "
            "jaxunlearn.model.freeze_statistics(model, statistics) and the weights alone."
        )
    columns = tuple(each if isinstance(each, str) else None for each in teachers)

    def init(params: Params) -> tuple:
        kept = (None if isinstance(each, str) else each for each in teachers)
        pairs = zip(kept, columns, strict=True)
        return tuple(params if k is None and c is None else k for k, c in pairs)

    return Objective(init, bind(_taught, model, columns, choice, temperature, on))


def _taught(
    model: Model,
    columns: tuple[str | None, ...],
    choice: str,
    temperature: Any,
    on: str,
    params: Params,
    batches: Batches,
    state: tuple,
    key: Key,
) -> tuple[Array, tuple]:
    del key
    batch = batches[on]
    said = [
        model.outputs(teacher, batch) if name is None else _column(batch, name)
        for teacher, name in zip(jax.lax.stop_gradient(state), columns, strict=True)
    ]
    heard = said[0] if len(said) == 1 else chosen(said, _column(batch, choice))
    each = prediction_divergence(model.outputs(params, batch), heard, temperature=temperature)
    return weighted_mean(each, batch), state


def _column(batch: Batch, name: str) -> Array:
    if name not in batch:
        raise ValueError(
            f"multi_teacher reads the column '{name}', but the batch has {sorted(batch)}."
        )
    return batch[name]


def chosen(said: Sequence[Array], choice: Array) -> Array:
    """Row i of said[choice_i].

    Args:
      said: K arrays (n, ...) of one shape.
      choice: (n,) integers or bools.

    Returns:
      (n, ...); NaN in a row whose choice is outside [0, K).

    Raises:
      ValueError: shapes differ, or the choice is not (n,).

    Example:
      >>> print(chosen([jnp.zeros((2, 1)), jnp.ones((2, 1))], jnp.array([True, False])))
      [[1.]
       [0.]]
    """
    shapes = sorted({each.shape for each in said})
    if len(shapes) > 1:
        raise ValueError(
            f"multi_teacher: teachers must agree in shape, their outputs have {shapes}."
        )
    if choice.shape != shapes[0][:1]:
        raise ValueError(
            f"multi_teacher: the choice must have shape {shapes[0][:1]}, one entry a row, "
            f"got {choice.shape}."
        )
    places = choice.astype(jnp.int32).reshape(-1, *[1] * (said[0].ndim - 1))
    heard = jnp.full_like(said[0], jnp.nan)
    for place, each in enumerate(said):
        heard = jnp.where(places == place, each, heard)
    return heard
