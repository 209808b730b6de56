"""Boundary shrink: give every forget example to the class on the other side of its boundary.

    min_theta  mean_{i in F} l(theta; x_i, y'_i)
    y'_i = argmax_{c != y_i} f_theta_0(x'_i)_c
    x'_i = x_i + size sign(grad_x l(theta_0; x_i, y_i))

A step against the label (FGSM) leads to the nearest boundary, and the class beyond it is the one
that the example would be taken for by a model that had not seen it. Only the forget set is read.
The labels are those of theta_0 throughout, so they are found once, before the run.

Chen et al. (2023), "Boundary Unlearning", CVPR 2023, arXiv:2303.11570, with the constants of the
code that compares to it (size 0.1, SGD, 10 epochs, learning rates 1e-5 ... 1e-3).

Departures: 1. The true class is excluded. Published, a step that does not cross the boundary leaves
y' = y, and the example is learnt anew instead of forgotten; `exclude_true=False` is that. 2. Inputs
are clipped only where a range is given: the published [0, 1] is wrong for inputs that have been
normalised. Published as well: rounding to the 256 levels of an image, here `rounding=1 / 255`.
3. Evaluation mode; running statistics stay as they are.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory, Stream, as_data, is_traced
from jaxunlearn.losses import num_classes
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.descent import sgd
from jaxunlearn.model import Model
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Batch, Data, Key, Params, check_between


def boundary_shrink(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 10,
    size: float = 0.1,
    low: float | None = None,
    high: float | None = None,
    rounding: float | None = None,
    exclude_true: bool = True,
) -> Method:
    """min_theta mean_{i in F} l(theta; x_i, y'_i), y' the nearest wrong class under theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 1e-5, momentum 0.9, weight decay
        5e-4.
      epochs: passes over the forget set, >= 0.
      size: of the step to the neighbour, > 0, in the unit of x. It may be traced.
      low, high: range of the inputs, into which neighbours are clipped; None: no bound on that
        side. Published: 0 and 1.
      rounding: distance > 0 of the levels that neighbours are rounded to; None: none. Published:
        1 / 255.
      exclude_true: whether the true class is no candidate; see departure 1.

    Returns:
      A Method that needs forget, labels and the key; it is retain-free. Info is a
      `training.FitInfo`.

    Raises:
      ValueError: an argument outside its range; (when called) inputs outside [low, high], or
        targets that are not classes, or a single class.
      TypeError: (when called) inputs that are not float.

    | edge case                        | result                                                |
    |----------------------------------|-------------------------------------------------------|
    | epochs = 0                       | params bit-identical                                  |
    | gradient in x exactly 0          | x' = x, y' the runner-up at x itself                  |
    | no boundary within `size`        | the runner-up at x'                                   |
    | exclude_true=False and no        | y' = y: the example is rehearsed                      |
    | boundary within `size`           |                                                       |
    | divergence                       | last finite params, `info.status == DIVERGED`         |

    Cost: `epochs` passes over the forget set, and one with two forwards and one backward for the
    labels (for streaming Data one in every epoch).

    Source: Chen et al. (2023), arXiv:2303.11570; departures in the module.

    Example:
      >>> sorted(boundary_shrink(low=0.0, high=1.0).needs)
      ['forget', 'key', 'labels']
    """
    check_between("boundary_shrink", "epochs", epochs, at_least=0)
    check_between("boundary_shrink", "size", size, above=0)
    bounds = {"low": low, "high": high}
    for what, bound in bounds.items():
        if bound is not None:
            check_between("boundary_shrink", what, bound)
    if low is not None and high is not None and not is_traced((low, high)):
        check_between("boundary_shrink", "high", high, above=low)
    if rounding is not None:
        check_between("boundary_shrink", "rounding", rounding, above=0)
    options: dict[str, Any] = {
        "size": size,
        **bounds,
        "rounding": rounding,
        "exclude_true": exclude_true,
    }
    steps = sgd(1e-5) if tx is None else tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        forget = _relabelled(request.forget, partial(nearest_wrong, model, params, **options))
        objective = objectives.mean_loss(model, on="forget")
        data = {"forget": forget}
        out = fit(objective, steps, params, data, key=key, epochs=epochs, score=score)
        return Unlearned(model, out.params, out.info)

    return method(
        unlearn,
        needs=("forget", "labels", "key"),
        name="boundary_shrink",
        scored=True,
        warn=partial(_check_range, low, high),
    )


def neighbour(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    size: float | Array = 0.1,
    low: float | None = None,
    high: float | None = None,
    rounding: float | None = None,
) -> Array:
    """x' = round(clip(x + size sign(grad_x l))), one step of the fast gradient sign method.

    Args:
      model: whose loss of `batch` is differentiated in its inputs.
      params: passed on.
      batch: with "x" (n, ...) float and labels "y".
      size, low, high, rounding: as for `boundary_shrink`.

    Returns:
      (n, ...) of the dtype of x.

    Raises:
      TypeError: x is not float.

    Example:
      >>> model = Model(outputs=lambda p, b: b["x"], loss=lambda p, b: b["x"][:, 0] ** 2)
      >>> print(neighbour(model, (), {"x": jnp.array([[2.0], [-2.0], [0.0]])}, high=2.0)[:, 0])
      [ 2.  -2.1  0. ]
    """
    x = jnp.asarray(batch["x"])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"boundary_shrink moves the inputs batch['x'], which must be float, got {x.dtype}. "
            "Convert images to float beforehand; tokens have no neighbours."
        )
    slope = jax.grad(lambda x: model.loss(params, {**batch, "x": x}).sum())(x)
    moved = jnp.clip(x + (size * jnp.sign(slope)).astype(x.dtype), low, high)
    if rounding is not None:
        moved = jnp.round(moved / rounding) * rounding
    return moved.astype(x.dtype)


def nearest_wrong(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    exclude_true: bool = True,
    **options: Any,
) -> Array:
    """y'_i = argmax_{c != y_i} f(x'_i)_c, x' the `neighbour` of x: shape and dtype of y.

    Raises:
      ValueError: the targets are not classes, or there is only one class.
    """
    labels = batch["y"]
    classes = num_classes(model.outputs, params, batch)
    if classes is None or classes < 2:
        raise ValueError(
            "boundary_shrink: expected integer labels of at least 2 classes, got labels "
            f"{labels.dtype}{list(labels.shape)} for {classes or 'no'} classes."
        )
    logits = model.outputs(params, {**batch, "x": neighbour(model, params, batch, **options)})
    if exclude_true:
        logits = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), -jnp.inf, logits)
    return logits.argmax(axis=-1).astype(labels.dtype)


def _relabelled(data: Data, labels: Callable[[Batch], Array]) -> InMemory | Stream:
    """The same Data with labels(batch) for "y": now (in memory), or as they are read (streams)."""
    data = as_data(data)
    if isinstance(data, InMemory):
        parts = jax.lax.map(lambda i: labels(data.batch(i)), jnp.arange(data.num_batches))
        new = parts.reshape(-1, *parts.shape[2:])[: data.num_examples]
        return InMemory(data.arrays | {"y": new}, data.batch_size)
    before, compiled = data.transform, jax.jit(labels)

    def transform(batch: Batch) -> Batch:
        read = before(batch)
        return {**read, "y": compiled(read)}

    return dataclasses.replace(data, transform=transform)


def _check_range(low: float | None, high: float | None, request: Request) -> None:
    forget = request.forget
    if not isinstance(forget, InMemory) or is_traced((forget, low, high)):
        return
    x = np.asarray(forget["x"])
    below, above = low is not None and x.min() < low, high is not None and x.max() > high
    if below or above:
        raise ValueError(
            f"boundary_shrink: inputs must lie in [low, high] = [{low}, {high}], but the forget "
            f"set has them from {x.min():.4g} to {x.max():.4g}. Have they been normalised? Give "
            "the range that they have now, or None."
        )
