"""Blindspot: where it should forget, imitate a brief model that never saw the forget data.

    B = a model trained for a few epochs on R from fresh parameters, then frozen
    min_theta  mean_i  (1 - u_i) l_i(theta) + u_i ( d(f(x_i), B(x_i)) + beta sum_j AT_ij )
    u_i = 1 if i in F,   AT_ij = mean over positions of (Q(a_j) - Q(b_j))^2,   from theta_0

a_j and b_j are activations of the two models for x_i, and Q(a) is their attention map: the mean
over channels of a^2, flattened and normalised to length 1. What the model says of F, and where it
looks, is to become what somebody says who was not there; what it says of R is rehearsed.

B alone is a strong baseline, at its price: the publication's own numbers on sentences have it
nearer to retraining than the model that imitates it. `blind_model` is B as a method, and belongs
into every table with `blindspot`.

Tarun et al. (2023), "Deep Regression Unlearning", arXiv:2210.08196, and its published code, for
regression. Attention maps are those of Zagoruyko and Komodakis (2017), arXiv:1612.03928.

Departures: 1. Written per example. The published weights of a batch, its shares of forgotten and of
retained rows times the mean over each, are the same number, and so are its gradients. 2. For
classifiers, which are not in the publication, d is KL(softmax B || softmax f). 3. Retained rows
have the model's own loss; `ell` is d alone, and should be the same loss for a regression. 4. The
student is trained in evaluation mode; B has running statistics of its own, from R. 5. On streaming
Data the forget batches come first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.streams import InMemory
from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.losses import num_classes, squared_error, weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.union import union
from jaxunlearn.model import Model, join_statistics, split_statistics
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import FitInfo, fit, train
from jaxunlearn.typing import Array, Batch, Key, Params, check_between

Activations = Callable[[Params, Batch], tuple[Array, ...]]  # each (n, d) or (n, ..., channels)

_DEAD = 1e-12  # added to a squared length, so that a map of zeros stays one, with zero gradient


class BlindspotInfo(NamedTuple):
    """The fields of `training.FitInfo`, and those of B."""

    losses: Array  # (steps,) float32, NaN from where the run ended
    status: Array  # [] int32, a `Status`; DIVERGED also where B diverged
    steps: Array  # [] int32
    best_score: Array  # [] float32, -inf unless a score is given
    blind: FitInfo  # of the training of B


def attention(activation: Array) -> Array:
    """Q(a) = v / |v|,    v = the mean over channels of a^2, flattened.

    Args:
      activation: (n, ..., channels) float, any positions in between; (n, d) is d positions of one
        channel.

    Returns:
      (n, positions) float >= 0, rows of length 1 (0 where everything is 0).

    | edge case                | result                                                     |
    |--------------------------|------------------------------------------------------------|
    | a times a positive number | unchanged, while |v| is far above 1e-6                     |
    | a = 0, a dead map        | 0, with zero gradient                                      |

    Example:
      >>> print(attention(jnp.array([[0.0, 2.0, 0.0]])))
      [[0. 1. 0.]]
    """
    squares = jnp.square(activation)
    v = squares if activation.ndim == 2 else squares.mean(axis=-1).reshape(len(activation), -1)
    return v * jax.lax.rsqrt(jnp.square(v).sum(axis=1, keepdims=True) + _DEAD)


def attention_gap(activation: Array, blind: Array) -> Array:
    """AT_i = mean over positions of (Q(a_i) - Q(b_i))^2, in [0, 2 / positions].

    Args:
      activation, blind: of one shape, see `attention`.

    Returns:
      (n,) float; 0 exactly where both maps agree up to their scale.
    """
    return jnp.square(attention(activation) - attention(blind)).mean(axis=1)


def _absolute_error(predictions: Array, targets: Array) -> Array:
    """sum_k |f_k - g_k|, with gradient 0 where they are equal (that of `jnp.abs` is 1 at 0)."""
    gap = predictions - targets
    return (jnp.sign(gap) * gap).sum(axis=tuple(range(1, gap.ndim)))


_ELLS: dict[str, Callable[[Array, Array], Array]] = {
    "l1": _absolute_error,
    "l2": squared_error,
    "kl": partial(prediction_divergence, temperature=1.0),
}


def imitation(
    model: Model,
    blind: Params,
    statistics: Params = None,
    *,
    ell: str,
    activations: Activations | None,
    beta: float = 50.0,
) -> Objective:
    """L = mean_i (1 - u_i) l_i + u_i (d(f, B)_i + beta sum_j AT_ij) over "data", u = "forget".

    Args:
      model: the student's and the blind model's; for running statistics, see `statistics`.
      blind: params of B, statistics included; they are state, and never move.
      statistics: the student's, frozen; the objective's params are its weights alone.
      ell, activations, beta: as for `blindspot`.
    """
    loss = bind(_imitation, model, _ELLS[ell], activations, beta)
    return Objective(lambda weights: (blind, statistics), loss)


def _imitation(
    model: Model,
    ell: Callable[[Array, Array], Array],
    activations: Activations | None,
    beta: float,
    weights: Params,
    batches: Batches,
    state: tuple[Params, Params],
    key: Key,
) -> tuple[Array, tuple[Params, Params]]:
    del key
    blind, statistics = state
    batch, params = batches["data"], join_statistics(model, weights, statistics)
    copied = ell(model.outputs(params, batch), model.outputs(blind, batch))
    if activations is not None:
        pairs = zip(activations(params, batch), activations(blind, batch), strict=True)
        copied += beta * sum(attention_gap(a, b) for a, b in pairs)
    losses = jnp.where(batch["forget"], copied, model.loss(params, batch))
    return weighted_mean(losses, batch), state


def _features(model: Model, params: Params, batch: Batch) -> tuple[Array]:
    assert model.features is not None
    return (model.features(params, batch),)


def blindspot(
    tx: optax.GradientTransformation | None = None,
    *,
    blind_tx: optax.GradientTransformation | None = None,
    blind_learning_rate: float = 0.01,
    blind_epochs: int = 2,
    epochs: int = 1,
    beta: float = 50.0,
    ell: str | None = None,
    activations: str | Activations | None = "features",
) -> Method:
    """min_theta mean_R l_i(theta) + mean_F d(f, B) + beta sum_j AT_j, row by row, from theta_0.

    Args:
      tx: optax transformation; default Adam with learning rate 1e-3.
      blind_tx: that of B; default Adam with `blind_learning_rate`, which is otherwise not read.
      blind_learning_rate: > 0.
      blind_epochs: passes of B over the retained data, >= 0. Published: 2 or 10, of 100 of the
        model.
      epochs: passes over F and R together, >= 0. Published: 1 or 5.
      beta: weight of the attention transfer, >= 0.
      ell: d: "l1" (sum_k |f_k - B_k|), "l2" (sum_k (f_k - B_k)^2) or "kl" (KL(softmax B || softmax
        f), nats). None: "kl" where labels are classes, else "l2".
      activations: "features" (the model's, as a map of d positions), a function (params, batch) ->
        tuple of arrays, each (n, d) or (n, ..., channels), of the whole params; or None for no
        attention transfer.

    Returns:
      A Method that needs forget, retain, labels, the key, the model's init and train, and its
      features where they are read; info is a `BlindspotInfo`; the params after each epoch are
      candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range, an unknown `ell` or `activations`.

    | edge case                    | result                                                     |
    |------------------------------|------------------------------------------------------------|
    | epochs = 0                   | params bit-identical                                       |
    | a batch without forget rows  | fine-tuning on R                                           |
    | a batch of forget rows alone | no label is read                                           |
    | f = B                        | the forget term and its gradient are 0                     |
    | `masked`                     | B keeps the frozen leaves too, and is blind in the others  |
    | divergence, also of B        | last finite params, `info.status == Status.DIVERGED`       |

    Cost: `blind_epochs` passes over R; then `epochs` passes over all data with a forward pass of B
    beside each gradient. Memory: two models.

    Source: Tarun et al. (2023), arXiv:2210.08196; departures in the module.

    Example:
      >>> sorted(blindspot(activations=None).needs)
      ['forget', 'init', 'key', 'labels', 'retain', 'train']
    """
    if ell is not None and ell not in _ELLS:
        raise ValueError(f"blindspot: ell must be 'l1', 'l2', 'kl' or None, got {ell!r}.")
    if isinstance(activations, str) and activations != "features":
        raise ValueError(
            "blindspot: activations must be 'features', a function (params, batch) -> arrays, or "
            f"None, got {activations!r}."
        )
    for name, length in (("epochs", epochs), ("blind_epochs", blind_epochs)):
        if length < 0:
            raise ValueError(f"blindspot: {name} must be >= 0, got {length}.")
    check_between("blindspot", "beta", beta, at_least=0)
    check_between("blindspot", "blind_learning_rate", blind_learning_rate, above=0)
    tx = optax.adam(1e-3) if tx is None else tx
    blind_tx = optax.adam(blind_learning_rate) if blind_tx is None else blind_tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        assert request.retain is not None
        first, second = jax.random.split(key)
        blind = train(model, blind_tx, request.retain, key=first, epochs=blind_epochs)
        weights, statistics = split_statistics(model, params)

        def joined(weights: Params) -> Params:
            return join_statistics(model, weights, statistics)

        data = union(request.forget, request.retain)
        objective = imitation(
            model,
            blind.params,
            statistics,
            ell=ell or _usual_ell(model, params, data),
            activations=bind(_features, model) if isinstance(activations, str) else activations,
            beta=beta,
        )
        scored = None if score is None else lambda weights: score(joined(weights))
        out = fit(objective, tx, weights, data, key=second, epochs=epochs, score=scored)
        status = jnp.maximum(out.info.status, blind.info.status)  # DIVERGED is the largest
        info = BlindspotInfo(*out.info._replace(status=status), blind=blind.info)
        return Unlearned(model, joined(out.params), info)

    needs = {"forget", "retain", "labels", "key", "init", "train"}
    needs |= {"features"} if isinstance(activations, str) else set()
    return method(unlearn, needs=needs, name="blindspot", scored=True, whole=True)


def _usual_ell(model: Model, params: Params, data: Any) -> str:
    """By the labels of one row."""
    example = data.gather(jnp.arange(1)) if isinstance(data, InMemory) else next(iter(data))
    return "l2" if num_classes(model.outputs, params, example) is None else "kl"


def blind_model(tx: optax.GradientTransformation | None = None, *, epochs: int = 2) -> Method:
    """B = train(R) from fresh parameters, for a few epochs: what `blindspot` imitates, itself.

    The baseline that throws the trained model away: retraining by a recipe cut short.

    Args:
      tx: optax transformation; default Adam with learning rate 0.01.
      epochs: passes over the retained data, >= 0.

    Returns:
      A Method that needs retain, labels, the key and the model's init and train functions; info is
      a `training.FitInfo`. It never saw the forget set; but since another recipe than the
      original's is another distribution of models, its guarantee is empirical.

    Raises:
      ValueError: epochs < 0.

    Edge cases: epochs = 0 gives fresh params. Cost: `epochs` passes over the retained data.

    Source: Tarun et al. (2023), arXiv:2210.08196, "blindspot model".

    Example:
      >>> blind_model(optax.adam(1e-3), epochs=3).guarantee
      'empirical'
    """
    if epochs < 0:
        raise ValueError(f"blind_model: epochs must be >= 0, got {epochs}.")
    tx = optax.adam(0.01) if tx is None else tx

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del params
        assert request.retain is not None
        out = train(model, tx, request.retain, key=key, epochs=epochs)
        return Unlearned(model, out.params, out.info)

    needs = {"retain", "labels", "key", "init", "train"}
    return method(unlearn, needs=needs, name="blind_model", whole=True)
