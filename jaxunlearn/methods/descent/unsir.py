"""UNSIR: learn noise that the model is sure is NOT the class, teach it that it is, then repair.

    N* = argmin_N  -mean_i l(theta_0; N_i, y_i) + energy mean_i |N_i|^2      error-maximising noise
    impair         min_theta mean loss over N* (labelled y) and R,  one pass
    repair         min_theta mean loss over R,                      one pass

Fitting noise under a class's label breaks what the features say about that class, while the
retained rows in the same pass hold the others up. The examples to be forgotten are never looked at:
what is read of the forget set are its labels, which say which classes are meant. So it suits
requests to forget whole classes; where the forget set has examples of all kinds, the noise is
spread over all classes in its proportions.

Tarun et al. (2023), "Fast Yet Effective Machine Unlearning", arXiv:2111.08947. *Reconstruction*:
defaults are the published constants where these are known (256 noises, 5 epochs of 8 steps, Adam
with rates 0.1, 0.02 and 0.01).

Departures: 1. One batch of noise for all classes, labelled in the proportions of the forget set,
in the place of one for each class; for one class they are the same. 2. The retained rows are a
uniform sample of as many as `retain_per_class` times the number of classes, not so many of each;
of streaming Data, the first ones. 3. With streaming Data the noise comes first in the impair pass,
since there is no shuffling across two streams. 4. Evaluation mode.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory, Stream, as_data, concatenate
from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import FitInfo, Fitted, fit
from jaxunlearn.typing import Array, Batch, Data, Key, Params, check_between


class UnsirInfo(NamedTuple):
    """What a person wants to see; the losses of the noise are minus the model's, plus energy."""

    noise: FitInfo
    impair: FitInfo
    repair: FitInfo
    status: Array  # [] int32, the worst `Status` of the three


def unsir(
    tx: optax.GradientTransformation | None = None,
    *,
    repair_tx: optax.GradientTransformation | None = None,
    noise_tx: optax.GradientTransformation | None = None,
    samples: int = 256,
    copies: int = 20,
    noise_steps: int = 40,
    energy: float = 0.1,
    retain_per_class: int | None = 1000,
    impair_epochs: int = 1,
    repair_epochs: int = 1,
) -> Method:
    """Noise that maximises the loss, one pass on it and R, one pass on R.

    Args:
      tx: optax transformation of the impair pass; default Adam with learning rate 0.02.
      repair_tx: of the repair pass; default `tx` with its updates halved, as published.
      noise_tx: of the noise; default Adam with learning rate 0.1.
      samples: noises, >= 1; they start from N(0, 1) in the shape of the retained inputs.
      copies: times that each noise is in the impair pass, >= 1.
      noise_steps: steps that the noise learns, >= 0.
      energy: weight > 0 of the squared length of a noise, nats per squared unit of x. It may be
        traced.
      retain_per_class: retained rows that are rehearsed, this many times the number of classes;
        None: all of them.
      impair_epochs, repair_epochs: passes, >= 0.

    Returns:
      A Method that needs forget, retain, labels and the key. Of the forget set it reads the columns
      "y" and "weight" only. Info is a `UnsirInfo`.

    Raises:
      ValueError: an argument outside its range.
      TypeError: (when called) inputs that are not float.

    | edge case                       | result                                                  |
    |---------------------------------|---------------------------------------------------------|
    | no impair and no repair epochs  | params bit-identical                                    |
    | no impair epochs                | fine-tuning on the sample                               |
    | other forget inputs             | same bits: they are not read                            |
    | divergence                      | last finite params, `info.status == DIVERGED`           |

    Cost: one and a third passes over the sample to impair (as published), one to repair, and
    noise_steps x samples rows to learn the noise; memory of samples x copies inputs.

    Source: Tarun et al. (2023), arXiv:2111.08947; a *reconstruction*, departures in the module.

    Example:
      >>> sorted(unsir(optax.adam(1e-3), samples=32).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    counts = {"samples": samples, "copies": copies, "noise_steps": noise_steps + 1}
    counts |= {"impair_epochs": impair_epochs + 1, "repair_epochs": repair_epochs + 1}
    if min(counts.values()) < 1 or (retain_per_class is not None and retain_per_class < 1):
        raise ValueError(
            "unsir: samples, copies and retain_per_class must be >= 1, noise_steps and epochs "
            f">= 0, got {samples=}, {copies=}, {retain_per_class=}, {noise_steps=}, "
            f"{impair_epochs=}, {repair_epochs=}."
        )
    check_between("unsir", "energy", energy, above=0)
    impair_tx = optax.adam(0.02) if tx is None else tx
    mend_tx = optax.chain(impair_tx, optax.scale(0.5)) if repair_tx is None else repair_tx
    learn_tx = optax.adam(0.1) if noise_tx is None else noise_tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        assert request.retain is not None
        sample_key, noise_key, impair_key, repair_key = jax.random.split(key, 4)
        retain = as_data(request.retain)
        row = retain.gather(jnp.arange(1)) if isinstance(retain, InMemory) else next(iter(retain))
        if retain_per_class is not None:
            classes = jax.eval_shape(model.outputs, params, row).shape[-1]
            retain = _some(retain, retain_per_class * classes, sample_key)

        labels = labels_in_proportion(request.forget, samples).astype(row["y"].dtype)
        learnt = error_maximising_noise(
            model, params, row, labels, learn_tx, key=noise_key, steps=noise_steps, energy=energy
        )
        copied = {"x": learnt.params, "y": labels}
        noisy = {k: jnp.tile(v, (copies, *[1] * (v.ndim - 1))) for k, v in copied.items()}
        mixed = concatenate(InMemory(noisy, retain.batch_size), retain)

        train = partial(fit, objectives.mean_loss(model), score=score)
        impaired = train(impair_tx, params, mixed, key=impair_key, epochs=impair_epochs)
        start = impaired.state.params
        repaired = train(mend_tx, start, retain, key=repair_key, epochs=repair_epochs)
        status = jnp.array([r.info.status for r in (learnt, impaired, repaired)]).max()
        info = UnsirInfo(learnt.info, impaired.info, repaired.info, status)
        if score is None:
            return Unlearned(model, repaired.params, info)
        later = repaired.info.best_score > impaired.info.best_score
        best = jax.tree.map(lambda a, b: jnp.where(later, a, b), repaired.params, impaired.params)
        return Unlearned(model, best, info)

    return method(unlearn, needs=("forget", "retain", "labels", "key"), name="unsir", scored=True)


def error_maximising_noise(
    model: Model,
    params: Params,
    like: Batch,
    labels: Array,
    tx: optax.GradientTransformation,
    *,
    key: Key,
    steps: int,
    energy: float | Array = 0.1,
) -> Fitted:
    """argmin_N -mean_i l(theta; N_i, y_i) + energy mean_i |N_i|^2, from N(0, 1), theta fixed.

    Args:
      model, params: whose loss is maximised.
      like: a batch whose "x" (n, ...) float has the shape and dtype of an input.
      labels: (B, ...) the class of each noise.
      tx, key, steps: as for `training.fit`.
      energy: weight > 0; it bounds what the loss would drive to infinity.

    Returns:
      `training.Fitted`; its `params` are the noise (B, ...).

    Raises:
      TypeError: inputs are not float.
    """
    x = jnp.asarray(like["x"])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"unsir learns inputs batch['x'], which must be float, got {x.dtype}. Convert images "
            "to float beforehand; give a model of tokens embeddings as inputs."
        )
    first, run = jax.random.split(key)
    noise = jax.random.normal(first, (labels.shape[0], *x.shape[1:]), x.dtype)
    objective = Objective(partial(_hold, params), bind(_noise_loss, model, energy))
    data = InMemory({"y": labels}, labels.shape[0])
    return fit(objective, tx, noise, data, key=run, steps=steps, shuffle=False)


def _hold(params: Params, noise: Array) -> Params:
    """The state: the model's params, as arrays, so that another model's compile nothing."""
    del noise
    return params


def _noise_loss(
    model: Model, energy: float, noise: Array, batches: Batches, state: Params, key: Key
) -> tuple[Array, Params]:
    del key
    batch = {**batches["data"], "x": noise}
    squares = jnp.square(noise.astype(jnp.promote_types(noise.dtype, jnp.float32)))
    lengths = squares.reshape(noise.shape[0], -1).sum(axis=1)
    return weighted_mean(energy * lengths - model.loss(state, batch), batch), state


def labels_in_proportion(data: Data, count: int) -> Array:
    """`count` labels of `data`, at evenly spaced places of the total weight: (count, ...).

    Example:
      >>> print(labels_in_proportion(InMemory({"y": jnp.array([4, 4, 7])}, 2), 6))
      [4 4 4 4 7 7]
    """
    parts: list[Any] = [data.arrays] if isinstance(data, InMemory) else list(data)
    y = jnp.concatenate([part["y"] for part in parts])
    ones = [jnp.ones(len(part["y"]), jnp.float32) for part in parts]
    weight = jnp.concatenate([p.get("weight", one) for p, one in zip(parts, ones, strict=True)])
    upto = jnp.cumsum(weight)
    places = (jnp.arange(count) + 0.5) / count * upto[-1]
    return y[jnp.minimum(jnp.searchsorted(upto, places), y.shape[0] - 1)]


def _some(data: InMemory | Stream, rows: int, key: Key) -> InMemory | Stream:
    """A uniform sample of `rows` rows, or the first batches that hold as many; or all."""
    if isinstance(data, InMemory):
        if rows >= data.num_examples:
            return data
        order = jax.random.permutation(key, data.num_examples)[:rows]
        return InMemory({name: column[order] for name, column in data.arrays.items()},
                        data.batch_size)  # fmt: skip
    batches = -(-rows // data.batch_size)
    if batches >= data.num_batches:
        return data
    return Stream(
        lambda: itertools.islice(iter(data), batches),
        min(batches * data.batch_size, data.num_examples),
        batches,
        data.batch_size,
    )
