"""l1-sparse: fine-tune towards a sparse model, which has less room for what was forgotten.

    min_theta  mean_{i in R} l_i(theta) + lambda_e |theta|_1
    lambda_e = alpha max(0, 1 - e / (E - E_0)),    e = 0 .. E - 1 the epoch

Fine-tuning forgets only what it overwrites. A penalty on the size of the parameters makes it
overwrite more, above all what the retained data do not defend, and is then taken back linearly so
that the last epochs repair what it cost. Weights, biases and normalisation scales are all
penalised, as published.

Jia et al. (2023), "Model Sparsity Can Simplify Machine Unlearning", arXiv:2304.04934, section 4,
with the schedule and constants of its code (alpha 5e-4, learning rate 0.01, 10 epochs, E_0 = 0).

Departures: 1. Running statistics stay as they are. 2. `proximal` is ours: a soft threshold after
each step in the place of a subgradient before it (see `jaxunlearn.transforms.sparsity`); off by
default.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.descent import sgd
from jaxunlearn.model import Model
from jaxunlearn.training import fit
from jaxunlearn.transforms.sparsity import add_l1, proximal_l1
from jaxunlearn.typing import Array, Key, Params, check_between


def l1_sparse(
    tx: optax.GradientTransformation | None = None,
    *,
    alpha: float = 5e-4,
    epochs: int = 10,
    free_epochs: int = 0,
    proximal: float | None = None,
) -> Method:
    """min_theta L_R(theta) + lambda_e |theta|_1, lambda_e = alpha max(0, 1 - e / (E - E_0)).

    Args:
      tx: optax transformation; default SGD with learning rate 0.01, momentum 0.9, weight decay
        5e-4.
      alpha: strength >= 0 in the first epoch, nats per unit of parameter; published 1e-5 ... 1e-3.
        It may be traced.
      epochs: E >= 0, passes over the retained data.
      free_epochs: E_0 in [0, E], epochs at the end without a penalty.
      proximal: None for the published subgradient; or the learning rate eta > 0 of `tx`, for a soft
        threshold of eta lambda_e after each step, which makes exact zeros.

    Returns:
      A Method that needs retain, labels and the key; it never reads the forget set. Info is a
      `training.FitInfo` whose losses are those of the retained data, without the penalty.

    Raises:
      ValueError: an argument outside its range.

    | edge case          | result                                              |
    |--------------------|-----------------------------------------------------|
    | alpha = 0          | fine-tuning, same batches, same result              |
    | free_epochs = E    | the same                                            |
    | epochs = 0         | params bit-identical                                |
    | divergence         | last finite params, `info.status == DIVERGED`       |

    Cost: `epochs` passes over the retained data.

    Source: Jia et al. (2023), arXiv:2304.04934; departures in the module.

    Example:
      >>> sorted(l1_sparse(alpha=1e-4, epochs=3, free_epochs=1).needs)
      ['key', 'labels', 'retain']
    """
    check_between("l1_sparse", "alpha", alpha, at_least=0)
    check_between("l1_sparse", "epochs", epochs, at_least=0)
    check_between("l1_sparse", "free_epochs", free_epochs, at_least=0, at_most=epochs)
    if proximal is not None:
        check_between("l1_sparse", "proximal", proximal, above=0)
    inner = sgd(0.01) if tx is None else tx

    @functools.cache  # one transformation for each length of an epoch: streams compile once
    def sparsified(batches: int) -> optax.GradientTransformation:
        strength = linear_decay(alpha, epochs - free_epochs, batches)
        if proximal is None:
            return optax.chain(add_l1(strength), inner)
        return optax.chain(inner, proximal_l1(proximal, strength))

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        retain = request.retain
        assert retain is not None
        objective = objectives.mean_loss(model, on="retain")
        tx = sparsified(retain.num_batches)
        data = {"retain": retain}
        out = fit(objective, tx, params, data, key=key, epochs=epochs, score=score)
        return Unlearned(model, out.params, out.info)

    return method(unlearn, needs=("retain", "labels", "key"), name="l1_sparse", scored=True)


def linear_decay(alpha: float | Array, epochs: int, batches: int) -> Callable[[Any], Array]:
    """step -> alpha max(0, 1 - e / epochs), e = step // batches: constant within an epoch.

    Example:
      >>> strength = linear_decay(1.0, epochs=2, batches=3)
      >>> [float(strength(step)) for step in (0, 2, 3, 6, 99)]
      [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    return lambda step: alpha * (jnp.maximum(0, epochs - step // batches) / max(epochs, 1))
