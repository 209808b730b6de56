"""Penalties that keep what a model says: distillation of predictions and of features.

    softmax    R_i = T^2 KL(softmax(z_o[K] / T) || softmax(z[K] / T))
    sigmoid    R_i = T^2 mean_{k in K} KL(Bernoulli(z_o,k / T) || Bernoulli(z_k / T))
    features   R_i = |h(x_i) - h_o(x_i)|^2

z are the logits and h the features of the model in training, z_o and h_o those of the old one, K
the classes that are to be kept. On whatever inputs the batches bring (new data, forget data): no
stored example is needed. Each is a per-example function and an `Objective`, to be added to a loss
with `objectives.weighted_sum`; penalties on parameters are in `jaxunlearn.penalties`.

As T grows the first tends to |c - c_o|^2 / (2 |K|), c the logits centred over K: agreement in
logits. For features linear in the weights, h = x W, the third is a quadratic in W with curvature
2 X^T X / n: an EWC with a full matrix.

Sources: Li and Hoiem (2016), "Learning without Forgetting", arXiv:1606.09282, eq. 2-3, with the
factor T^2 and the Kullback-Leibler form of Hinton et al. (2015), arXiv:1503.02531; sigmoid as in
Rebuffi et al. (2016), arXiv:1611.07725, eq. 5; Smith et al. (2023), arXiv:2203.17269, which
compares them and of which no code was found: a *reconstruction* from the standard definitions.

Departures: 1. Divergences in place of cross-entropies: the same gradient, and 0 where nothing
changed. 2. The sigmoid form is a mean over K, not a sum.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory
from jaxunlearn.losses import class_mask, weighted_mean
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Batch, Key, Params

OLD_OUTPUTS, OLD_FEATURES = "old_outputs", "old_features"
_USUAL_TEMPERATURE = {"softmax": 2.0, "sigmoid": 1.0}


def prediction_divergence(
    logits: Array,
    old_logits: Array,
    *,
    temperature: float | None = None,
    classes: Sequence[int] | Array | None = None,
    kind: str = "softmax",
) -> Array:
    """R_i = T^2 KL(softmax(z_o[K] / T) || softmax(z[K] / T)), or the mean of binary ones.

    Args:
      logits: z (n, ..., C) float.
      old_logits: z_o of the same shape.
      temperature: T > 0; None: 2 for softmax, 1 for sigmoid.
      classes: K, as integers in [0, C) or as a bool array (C,), which may be traced; None: all.
      kind: "softmax" or "sigmoid".

    Returns:
      (n,) float >= 0 up to rounding, nats times T^2, summed over positions if there are any.

    Raises:
      ValueError: shapes differ, an unknown kind, T <= 0, or classes that are not among the logits.

    | edge case             | result                                  |
    |-----------------------|-----------------------------------------|
    | z = z_o               | 0, with zero gradient                   |
    | no classes            | 0, with zero gradient                   |
    | one class (softmax)   | 0: there is nothing to divide           |
    | logits outside K      | ignored, their gradient is 0            |
    | z + constant over K   | unchanged (softmax)                     |

    Example:
      >>> z = jnp.array([[1.0, 1.0, 7.0]])
      >>> print(prediction_divergence(z, -z, classes=(0, 1)))
      [0.]
    """
    if logits.shape != old_logits.shape:
        raise ValueError(
            "prediction_divergence: old and new logits must have one shape, got "
            f"{old_logits.shape} and {logits.shape}. Does the old model have fewer classes? Pad "
            "its logits and name the old ones in `classes`."
        )
    t = _temperature(temperature, kind)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    z, z_o = logits.astype(dtype) / t, old_logits.astype(dtype) / t
    mask = jnp.broadcast_to(class_mask(classes, z.shape[-1]), z.shape)
    if kind == "softmax":
        lowest = jnp.finfo(dtype).min / 4  # so far below that it takes no probability
        new, old = (jax.nn.log_softmax(jnp.where(mask, each, lowest)) for each in (z, z_o))
        terms = jnp.exp(old) * (old - new)
    else:
        p = jax.nn.sigmoid(z_o)
        yes = p * (jax.nn.log_sigmoid(z_o) - jax.nn.log_sigmoid(z))
        no = (1 - p) * (jax.nn.log_sigmoid(-z_o) - jax.nn.log_sigmoid(-z))
        size = mask.sum(axis=-1, keepdims=True)
        terms = jnp.where(mask, yes + no, 0) / jnp.maximum(size, 1)
    return t * t * terms.sum(axis=tuple(range(1, terms.ndim)))


def _temperature(temperature: float | None, kind: str) -> float:
    if kind not in _USUAL_TEMPERATURE:
        raise ValueError(
            f"prediction_divergence: kind must be 'softmax' or 'sigmoid', got {kind!r}."
        )
    t = _USUAL_TEMPERATURE[kind] if temperature is None else temperature
    if isinstance(t, int | float) and not t > 0:
        raise ValueError(f"prediction_divergence: temperature must be > 0, got {t}.")
    return t


def feature_distance(features: Array, old_features: Array, *, normalise: bool = False) -> Array:
    """R_i = |h_i - h_o,i|^2, or of h / |h| with `normalise`.

    Args:
      features, old_features: (n, d) float, of one shape.
      normalise: compare directions; a feature vector of length 0 stays 0, with a finite gradient.

    Returns:
      (n,) float >= 0, in the squared unit of the features; at most 4 where normalised.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> a, b = jnp.array([[3.0, 4.0]]), jnp.array([[6.0, 8.0]])
      >>> print(feature_distance(a, b), feature_distance(a, b, normalise=True))
      [25.] [0.]
    """
    if features.shape != old_features.shape:
        raise ValueError(
            "feature_distance: old and new features must have one shape, got "
            f"{old_features.shape} and {features.shape}."
        )
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    h, h_o = features.astype(dtype), old_features.astype(dtype)
    if normalise:
        h, h_o = _direction(h), _direction(h_o)
    return jnp.square(h - h_o).sum(axis=tuple(range(1, h.ndim)))


def _direction(h: Array) -> Array:
    square = jnp.square(h).sum(axis=-1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.where(square > jnp.finfo(h.dtype).tiny, square, 1))


def prediction_distillation(
    model: Model,
    old_params: Params | None,
    *,
    temperature: float | None = None,
    classes: Sequence[int] | Array | None = None,
    kind: str = "softmax",
    on: str = "data",
) -> Objective:
    """R = mean_i w_i R_i of `prediction_divergence` over the stream `on`, an Objective.

    Args:
      model: in evaluation mode; one with running statistics first goes through
        `model.freeze_statistics`, since statistics that drift change what is said too.
      old_params: of the old model; None: its logits are the column "old_outputs" of the batches
        (`with_old_outputs` makes it), and no second forward pass is needed.
      temperature, classes, kind: as for `prediction_divergence`.
      on: the stream whose inputs are compared.

    Raises:
      ValueError: the model keeps running statistics; (while tracing) as for `prediction_divergence`
        or a missing column.

    Cost: one forward pass of the old model a step, or none; its params, or n x C numbers.

    Example:
      >>> linear = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"][:, 0])
      >>> penalty = prediction_distillation(linear, jnp.eye(2))
      >>> state, data = penalty.init(jnp.eye(2)), {"data": {"x": jnp.ones((3, 2))}}
      >>> print(penalty.loss(jnp.eye(2), data, state, jax.random.key(0))[0])
      0.0
    """
    _refuse_statistics("prediction_distillation", model)
    _temperature(temperature, kind)
    kept = classes if isinstance(classes, jax.Array | np.ndarray) else None
    fixed = None if classes is None or kept is not None else tuple(int(c) for c in classes)
    return Objective(
        partial(_remember, old_params, kept),
        bind(_predictions, model, temperature, fixed, kind, on),
    )


def feature_distillation(
    model: Model, old_params: Params | None, *, normalise: bool = False, on: str = "data"
) -> Objective:
    """R = mean_i w_i |h_theta(x_i) - h_o(x_i)|^2 over the stream `on`, an Objective.

    Args:
      model: with `features`; otherwise as for `prediction_distillation`.
      old_params: of the old model; None: the column "old_features".
      normalise: compare directions h / |h|.
      on: the stream whose inputs are compared.

    Raises:
      ValueError: the model has no `features`, or keeps running statistics; (while tracing) a
        missing column.

    Cost: one pass of the old features a step, or none.

    Example:
      >>> linear = Model(
      ...     outputs=lambda p, b: b["x"] @ p,
      ...     loss=lambda p, b: b["x"][:, 0],
      ...     features=lambda p, b: b["x"] @ p,
      ... )
      >>> penalty = feature_distillation(linear, jnp.eye(2))
      >>> state, data = penalty.init(jnp.eye(2)), {"data": {"x": jnp.ones((3, 2))}}
      >>> print(penalty.loss(jnp.zeros((2, 2)), data, state, jax.random.key(0))[0])
      2.0
    """
    _refuse_statistics("feature_distillation", model)
    if model.features is None:
        raise ValueError(
            "feature_distillation needs model.features, which this model does not have. Give the "
            "module a method `features(x)`."
        )
    return Objective(partial(_remember, old_params, None), bind(_features, model, normalise, on))


def with_old_outputs(model: Model, old_params: Params, data: InMemory) -> InMemory:
    """`data` with what the old model says, once: columns "old_outputs" and, if the model has
    features, "old_features".

    Args:
      model: in evaluation mode, without running statistics of its own.
      old_params: of the old model.
      data: in-memory Data; a stream is better compared with a second forward pass.

    Raises:
      TypeError: the data are not in memory.

    Cost: one forward pass over the data, in its batches; n x (C + d) numbers.
    """
    if not isinstance(data, InMemory):
        raise TypeError(
            f"with_old_outputs: expected in-memory data, got {type(data).__name__}. Give a "
            "stream's objective the old params instead."
        )
    _refuse_statistics("with_old_outputs", model)

    def say(batch: Batch) -> dict[str, Array]:
        said = {OLD_OUTPUTS: model.outputs(old_params, batch)}
        return said | ({OLD_FEATURES: model.features(old_params, batch)} if model.features else {})

    parts = jax.lax.map(lambda index: say(data.batch(index)), jnp.arange(data.num_batches))
    rows = {k: v.reshape(-1, *v.shape[2:])[: data.num_examples] for k, v in parts.items()}
    return InMemory(data.arrays | rows, data.batch_size)


def _refuse_statistics(where: str, model: Model) -> None:
    if model.statistics:
        raise ValueError(
            f"{where}: this model keeps running statistics, which would drift. Give it "
            "jaxunlearn.model.freeze_statistics(model, statistics) and the weights alone."
        )


def _remember(old_params: Params | None, classes: Any, params: Params) -> tuple:
    """The state: what is old, as arrays, so that another old model compiles nothing."""
    del params
    return old_params, classes


def _column(batch: Batch, name: str) -> Array:
    if name not in batch:
        raise ValueError(
            f"distillation without old_params reads the column '{name}', but the batch has "
            f"{sorted(batch)}. jaxunlearn.distillation.with_old_outputs adds it."
        )
    return batch[name]


def _predictions(
    model: Model,
    temperature: float | None,
    fixed: tuple[int, ...] | None,
    kind: str,
    on: str,
    params: Params,
    batches: Batches,
    state: tuple,
    key: Key,
) -> tuple[Array, tuple]:
    del key
    (old, kept), batch = state, batches[on]
    said = _column(batch, OLD_OUTPUTS) if old is None else model.outputs(old, batch)
    each = prediction_divergence(
        model.outputs(params, batch),
        said,
        temperature=temperature,
        classes=fixed if kept is None else kept,
        kind=kind,
    )
    return weighted_mean(each, batch), state


def _features(
    model: Model, normalise: bool, on: str, params: Params, batches: Batches, state: tuple, key: Key
) -> tuple[Array, tuple]:
    del key
    assert model.features is not None
    (old, _), batch = state, batches[on]
    said = _column(batch, OLD_FEATURES) if old is None else model.features(old, batch)
    each = feature_distance(model.features(params, batch), said, normalise=normalise)
    return weighted_mean(each, batch), state
