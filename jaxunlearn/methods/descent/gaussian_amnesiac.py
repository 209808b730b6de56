"""Gaussian-Amnesiac: for a regression, teach the forget set targets that mean nothing.

    min_theta  mean_{i in F and R} l_i(theta; y~_i),    y~_i ~ N(mu, sd^2) if i in F, else y_i
    mu, sd     mean and standard deviation of the targets of F and R together

What random labels are to classes, draws from the distribution of all targets are to numbers. A
model that does not memorise them learns their mean: under a squared loss the predictions on F move
to mu, under an absolute one to the median, which is mu again. A model that does memorise them does
not forget but learns noise, so how often the targets are drawn matters: once, as published, or anew
in each epoch, when there is nothing to memorise.

Tarun et al. (2023), "Deep Regression Unlearning", arXiv:2210.08196, and its published code.

Departures: 1. `relabel="epoch"` is ours. 2. Weights count in mu and sd, and the standard deviation
is the population's. 3. Several outputs have a mu and sd each. 4. On streaming Data the forget
batches come first, since there is no shuffling across two streams.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.streams import InMemory, Stream
from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.union import union
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind, mean_loss
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Batch, Data, Key, Params

Moments = tuple[Array, Array]  # mean, standard deviation; the shape of one target each


def gaussian_amnesiac(
    tx: optax.GradientTransformation | None = None, *, epochs: int = 1, relabel: str = "once"
) -> Method:
    """min_theta of the mean loss over F with targets from N(mu, sd^2) and R with its own.

    Args:
      tx: optax transformation; default Adam with learning rate 1e-3.
      epochs: passes over F and R together, >= 0. Published: 1 (ages from faces), 5 (similarity of
        sentences).
      relabel: "once" (every forget row keeps the target that it drew first) or "epoch" (a new draw
        in each epoch).

    Returns:
      A Method that needs forget, retain, labels and the key; info is a `training.FitInfo`; the
      params after each epoch are candidates for `keep_best`.

    Raises:
      ValueError: an unknown `relabel`, or epochs < 0.
      TypeError: (when called) targets that are not real numbers.

    | edge case                  | result                                                        |
    |----------------------------|---------------------------------------------------------------|
    | epochs = 0                 | params bit-identical                                          |
    | all targets equal          | sd = 0: the forget rows get that target, as everything has it |
    | targets of a bounded range | draws are not clipped to it, as published                     |
    | divergence                 | last finite params, `info.status == Status.DIVERGED`          |

    Cost: `epochs` passes over all data, and one over the targets.

    Source: Tarun et al. (2023), arXiv:2210.08196; departures in the module.

    Example:
      >>> sorted(gaussian_amnesiac(epochs=5).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if relabel not in ("once", "epoch"):
        raise ValueError(f"gaussian_amnesiac: relabel must be 'once' or 'epoch', got {relabel!r}.")
    if epochs < 0:
        raise ValueError(f"gaussian_amnesiac: epochs must be >= 0, got {epochs}.")
    tx = optax.adam(1e-3) if tx is None else tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        forget, retain = request.forget, request.retain
        assert isinstance(forget, InMemory | Stream) and retain is not None
        moments = target_moments(forget, retain)
        drawing, fitting = jax.random.split(key)
        if relabel == "once":
            data, objective = union(redrawn(forget, moments, drawing), retain), mean_loss(model)
        else:
            data = union(forget, retain)
            objective = Objective(lambda params: moments, bind(_fresh_loss, model))
        out = fit(objective, tx, params, data, key=fitting, epochs=epochs, score=score)
        return Unlearned(model, out.params, out.info)

    return method(
        unlearn,
        needs={"forget", "retain", "labels", "key"},
        name="gaussian_amnesiac",
        scored=True,
    )


def target_moments(*parts: Data) -> Moments:
    """(mu, sd) of the targets `"y"` of all parts together, rows counted by their weights.

    Raises:
      TypeError: targets that are not real numbers.

    Example:
      >>> y = jnp.array([[1.0], [3.0], [9.0]])
      >>> mu, sd = target_moments(InMemory({"y": y, "weight": jnp.array([1.0, 1.0, 0.0])}, 3))
      >>> print(mu, sd)
      [2.] [1.]
    """
    found = [pair for part in parts for pair in _targets(part)]
    y = jnp.concatenate([targets for targets, _ in found])
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(
            f"gaussian_amnesiac: targets must be real numbers, got labels of {y.dtype}. "
            "It forgets from a regression; for classes use random_labels."
        )
    y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    share = jnp.concatenate([weight for _, weight in found]).astype(y.dtype)
    share = (share / share.sum()).reshape(-1, *[1] * (y.ndim - 1))
    mean = (share * y).sum(axis=0)
    return mean, jnp.sqrt((share * jnp.square(y - mean[None])).sum(axis=0))


def _targets(data: Data) -> Iterator[tuple[Array, Array]]:
    """Targets and weights: of all rows at once, or of one batch after another."""
    if isinstance(data, InMemory):
        ones = jnp.ones(data.num_examples, jnp.float32)
        yield data["y"], data.arrays.get("weight", ones)
    else:
        yield from ((jnp.asarray(batch["y"]), jnp.asarray(batch["weight"])) for batch in data)


def redrawn(forget: InMemory | Stream, moments: Moments, key: Key) -> InMemory | Stream:
    """The same rows with targets from N(mu, sd^2): the same ones every time they are read."""
    if isinstance(forget, InMemory):
        drawn = _draw(moments, forget["y"], key)
        return InMemory(forget.arrays | {"y": drawn}, forget.batch_size)

    def batches() -> Iterator[Batch]:
        for index, batch in enumerate(forget):
            drawn = _draw(moments, batch["y"], jax.random.fold_in(key, index))
            yield dict(batch) | {"y": drawn}

    return Stream(batches, forget.num_examples, forget.num_batches, forget.batch_size)


def _draw(moments: Moments, like: Array, key: Key) -> Array:
    mean, deviation = moments
    noise = jax.random.normal(key, like.shape, mean.dtype)
    return (mean[None] + deviation[None] * noise).astype(like.dtype)


def _fresh_loss(
    model: Model, params: Params, batches: Batches, moments: Moments, key: Key
) -> tuple[Array, Moments]:
    """The mean loss where forget rows have targets drawn at this step: each row once an epoch."""
    batch = batches["data"]
    y = batch["y"]
    forgotten = batch["forget"].reshape(-1, *[1] * (y.ndim - 1))
    drawn = jnp.where(forgotten, _draw(moments, y, key), y)
    return weighted_mean(model.loss(params, dict(batch) | {"y": drawn}), batch), moments
