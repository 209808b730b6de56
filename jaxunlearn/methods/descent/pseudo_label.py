"""Pseudo-labels: on what is to be forgotten, say what the model would have said next.

    min_theta  mean_i l'_i(theta)
    i in F     l'_i = CE(f_theta(x_i), argmax_{c not in K_i} f_0(x_i)_c)              "hard"
               l'_i = KL(softmax(f_0(x_i)[not K_i]) || softmax(f_theta(x_i)))         "soft"
    i in R     l'_i = l_i(theta), or KL(softmax(f_0(x_i)) || softmax(f_theta(x_i)))   optional

K_i are the classes to be unlearnt: the row's own label, and any others that are named. f_0, the
trained model, knows which class an example would be taken for without its own: a 7 for a 1, hardly
for an 8. A retrained network makes those mistakes, which a uniformly random label is not.

Hard labels on F alone are the baseline "PL" of the released code of UUEF (yongwookim1/UUEF), where
K is the set of forgotten classes; its family is that of Chen et al. (2023), "Boundary Unlearning",
arXiv:2303.11570. No optimiser is published with it: the constants are those of `random_labels`.
"Soft" and the two ways of rehearsing R are ours.

Departures: 1. Evaluation mode. 2. K_i has the row's own label, so that requests which are not
classes have pseudo-labels too. 3. Of streaming Data the order is F, then R.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.losses import class_mask, weighted_mean
from jaxunlearn.method import Method, Request
from jaxunlearn.methods.descent.descent import descent, sgd
from jaxunlearn.methods.descent.union import union
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.teachers import as_found
from jaxunlearn.typing import Array, Data, Key, Params


def pseudo_label(
    tx: optax.GradientTransformation | None = None,
    *,
    target: str = "hard",
    rehearse: str | None = None,
    classes: Sequence[int] = (),
    epochs: int = 10,
) -> Method:
    """min_theta of CE towards f_0's best class outside K_i on F, and of R's own loss; from theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 0.013, momentum 0.9, weight decay
        5e-4.
      target: "hard" (the best other class) or "soft" (f_0's probabilities of the other classes).
      rehearse: what R is trained with, together with F: "labels" (its own), "outputs" (what f_0
        says) or None (F alone, as published).
      classes: forgotten classes beside each row's own label: when several classes go, an example of
        one must not become another of them.
      epochs: passes over F, or over F and R together, >= 0.

    Returns:
      A Method that needs forget, labels and the key, and retain if it rehearses. Batches then have
      the retained data's size; info is a `training.FitInfo`.

    Raises:
      ValueError: an unknown target or way to rehearse; (when called) no class is left.

    | edge case                | result                                                         |
    |--------------------------|----------------------------------------------------------------|
    | epochs = 0               | params bit-identical                                           |
    | f_0 was wrong about a row | hard: what it said, unless that is in K_i                      |
    | two classes              | the other one: hard and soft agree                             |
    | divergence               | last finite params, `info.status == Status.DIVERGED`           |

    Cost: `epochs` passes over F (and R), each with one more forward pass; memory of two models.

    Source: Chen et al. (2023), arXiv:2303.11570, and the code named in the module.

    Example:
      >>> sorted(pseudo_label(rehearse="outputs").needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if target not in ("hard", "soft"):
        raise ValueError(f"pseudo_label: target must be 'hard' or 'soft', got {target!r}.")
    if rehearse not in (None, "labels", "outputs"):
        raise ValueError(
            f"pseudo_label: rehearse must be 'labels', 'outputs' or None, got {rehearse!r}."
        )
    return descent(
        partial(pseudo_labelled, target=target, rehearse=rehearse, classes=tuple(classes)),
        sgd(0.013) if tx is None else tx,
        epochs=epochs,
        on=("forget",) if rehearse is None else ("forget", "retain"),
        streams=_alone if rehearse is None else _together,
        name="pseudo_label",
    )


def _alone(request: Request) -> dict[str, Data]:
    return {"data": request.forget}


def _together(request: Request) -> dict[str, Data]:
    assert request.retain is not None
    return {"data": union(request.forget, request.retain)}


def pseudo_labelled(
    model: Model, target: str = "hard", rehearse: str | None = None, classes: tuple[int, ...] = ()
) -> Objective:
    """L = weighted mean of l'_i over the stream "data"; its bool column "forget" says who is F.

    Without rehearsing all rows are of F, and the column is not read. The state is f_0's parameters,
    those that the run starts from. Arguments as for `pseudo_label`.
    """
    return Objective(as_found, bind(_loss, model, target, rehearse, classes))


def _loss(
    model: Model,
    target: str,
    rehearse: str | None,
    classes: tuple[int, ...],
    params: Params,
    batches: Batches,
    start: Params,
    key: Key,
) -> tuple[Array, Params]:
    del key
    batch = batches["data"]
    said = model.outputs(jax.lax.stop_gradient(start), batch)
    others = without(said, batch["y"], classes)
    forgotten = jnp.ones(said.shape[:1], bool) if rehearse is None else batch["forget"]
    if target == "hard":
        where = forgotten.reshape(-1, *[1] * (batch["y"].ndim - 1))
        best = jnp.argmax(others, axis=-1).astype(batch["y"].dtype)
        each = model.loss(params, dict(batch) | {"y": jnp.where(where, best, batch["y"])})
        if rehearse != "outputs":
            return weighted_mean(each, batch), start
        kept = prediction_divergence(model.outputs(params, batch), said, temperature=1.0)
    else:
        divergence = partial(prediction_divergence, model.outputs(params, batch), temperature=1.0)
        each = divergence(others)
        kept = divergence(said) if rehearse == "outputs" else model.loss(params, batch)
    return weighted_mean(jnp.where(forgotten, each, kept), batch), start


def without(logits: Array, labels: Array, classes: Sequence[int] = ()) -> Array:
    """The logits, so low at each row's own label and at `classes` that these have probability 0.

    Args:
      logits: (n, ..., C) float.
      labels: (n, ...) integers in [0, C).
      classes: integers in [0, C).

    Raises:
      ValueError: labels that do not fit, a class outside the outputs, or no class that is left.

    Example:
      >>> print(without(jnp.zeros((1, 3)), jnp.array([1])).argmax(axis=-1))
      [0]
    """
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "pseudo_label: labels must be integers of the shape of the logits without the class "
            f"axis, got {labels.dtype} {labels.shape} and logits {logits.shape}."
        )
    count = logits.shape[-1]
    if len(set(classes)) > count - 2:
        raise ValueError(
            "pseudo_label: beside a row's own label and `classes` at least one class must be left, "
            f"but the model has {count} and classes={tuple(classes)}."
        )
    named = class_mask(tuple(classes), count).reshape(*[1] * labels.ndim, count)
    gone = jax.nn.one_hot(labels, count, dtype=bool) | named
    return jnp.where(gone, jnp.finfo(logits.dtype).min / 4, logits)
