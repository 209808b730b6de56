"""Lipschitz unlearning: flatten the function where it should forget, from the forget inputs alone.

    min_theta  1/N sum_k sum_{i in F} |f(x_i) - f(x_ik)| / |x_i - x_ik|            `jit_lipschitz`
               x_ik = clip(x_i + sigma xi_ik, min x, max x),   xi_ik ~ N(0, I)
    min_theta  1/N sum_k sum_{i in F} |J(x_i) u_ik|,   u_ik uniform on the sphere  `info_theoretic`

An example that told the model something sits where the learnt function bends; straightening the
function around it takes that back. No labels, no retained data, one pass in stored order. The
second line is the limit sigma -> 0 of the first, J the Jacobian of the outputs in the input.

Foster et al. (2024), "An Information Theoretic Approach to Machine Unlearning", arXiv:2402.01401;
its first version, "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization", named the
method JiT. `jit_lipschitz` follows the published code (`lipschitz.py`, the same file in both
releases); `info_theoretic` is a *reconstruction* from the abstract: the code has no such limit.

Fragile. The published step is not the gradient of the slope, and its size grows as 1 / sigma (see
`jaxunlearn.flatness`). Users of the published code report collapse (ViT, CIFAR-100: test accuracy
89 % to 1 %); here, on digits, sigma = 0.01 with a rate that is mild at sigma = 0.5 does the same.

Departures: 1. Evaluation mode; the published code leaves the network as it was built, so dropout
was probably on. 2. Rows of weight 0 take part neither in the sum nor in min x, max x; a row of
weight w counts w times. 3. A norm of 0 has gradient 0, and a row that clipping puts back on itself
counts 0 (NaN there). 4. `symmetric`, `reduction`, `clip`, `epochs` other than 1 and `micro_batch`
are ours; the defaults are the published ones.
"""

from collections.abc import Callable
from typing import Any

import optax

from jaxunlearn.flatness import directional_slopes, finite_slopes, slope_penalty
from jaxunlearn.method import Method
from jaxunlearn.methods.descent.descent import descent
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective
from jaxunlearn.typing import Array


def jit_lipschitz(
    tx: optax.GradientTransformation | None = None,
    *,
    sigma: float = 0.5,
    samples: int = 25,
    clip: bool = True,
    symmetric: bool = False,
    reduction: str = "sum",
    epochs: int = 1,
    micro_batch: int | None = None,
) -> Method:
    """min_theta 1/N sum_k sum_{i in F} |f(x_i) - f(x_ik)| / |x_i - x_ik|, x_ik held constant.

    Args:
      tx: optax transformation; default plain SGD with learning rate 3e-4.
      sigma: standard deviation of the noise, > 0, in the unit of x.
      samples: N >= 1 noises an example.
      clip: noisy inputs into the range of the batch.
      symmetric: gradient through the noisy side too: that of the slope itself.
      reduction: "sum" over the batch, so that its size scales the step (published: 64), or "mean",
        which with B times the learning rate takes the same steps on batches of B.
      epochs: passes over the forget set in stored order, >= 0. Published: 1.
      micro_batch: noises evaluated at once, >= 1; None is all.

    Returns:
      A Method that needs forget and the key: no labels, no retained data. Batches are those of
      `request.forget`; info is a `training.FitInfo` whose losses are the batches' slopes.

    Raises:
      ValueError: a constant outside its range.
      TypeError: (when called) inputs that are not float.

    Published (sigma, learning rate), on inputs of standard deviation about 1:

    | forgotten | VGG          | ViT        |
    |-----------|--------------|------------|
    | class     | (0.5, 3e-4)  | (0.8, 1.5) |
    | sub-class | (0.01, 3e-4) | (1.5, 0.5) |
    | random    | (0.01, 3e-4) | (0.5, 0.1) |

    | edge case                          | result                                              |
    |------------------------------------|-----------------------------------------------------|
    | epochs = 0, or learning rate 0     | params bit-identical                                |
    | outputs constant                   | params bit-identical                                |
    | batches in another order           | another result                                      |
    | divergence                         | last finite params, `info.status == DIVERGED`       |
    | sigma below the rounding of x      | noise that rounds to 0 counts 0, the rest is coarse |

    Cost: N + 3 forwards of each batch; memory of micro_batch noisy batches (all N if symmetric).
    On several devices the objective is one global sum, its min and max over the whole batch.

    Source: Foster et al. (2024), arXiv:2402.01401, and its code; departures in the module.

    Example:
      >>> sorted(jit_lipschitz(sigma=0.1).needs)
      ['forget', 'key']
    """
    if not 0 < sigma < float("inf"):
        raise ValueError(
            f"jit_lipschitz: sigma must be a finite number > 0, got {sigma}. The limit of small "
            "noise is info_theoretic."
        )
    options = {"sigma": sigma, "clip": clip, "symmetric": symmetric}
    return _flattened(
        "jit_lipschitz", finite_slopes, tx, epochs, reduction, samples, micro_batch, **options
    )


def info_theoretic(
    tx: optax.GradientTransformation | None = None,
    *,
    samples: int = 25,
    reduction: str = "sum",
    epochs: int = 1,
    micro_batch: int | None = None,
) -> Method:
    """min_theta 1/N sum_k sum_{i in F} |J(x_i) u_ik|, u_ik uniform on the unit sphere.

    Args:
      tx, samples, reduction, epochs, micro_batch: as for `jit_lipschitz`.

    Returns:
      A Method that needs forget and the key; info is a `training.FitInfo`.

    Raises:
      ValueError: a constant outside its range.
      TypeError: (when called) inputs that are not float.

    Edge cases: those of `jit_lipschitz`. With ReLU, biases have gradient 0 and stay.

    Cost: one linearisation and N forwards of each batch, and the backward pass through both; memory
    of N forwards.

    Source: Foster et al. (2024), arXiv:2402.01401, abstract; a *reconstruction*, see the module.

    Example:
      >>> sorted(info_theoretic(optax.sgd(1e-3)).needs)
      ['forget', 'key']
    """
    return _flattened(
        "info_theoretic", directional_slopes, tx, epochs, reduction, samples, micro_batch
    )


def _flattened(
    name: str,
    slopes: Callable[..., Array],
    tx: optax.GradientTransformation | None,
    epochs: int,
    reduction: str,
    samples: int,
    micro_batch: int | None,
    **options: Any,
) -> Method:
    if samples < 1 or (micro_batch is not None and micro_batch < 1):
        raise ValueError(
            f"{name}: samples and micro_batch must be >= 1, got {samples=}, {micro_batch=}."
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{name}: reduction must be 'sum' or 'mean', got {reduction!r}.")
    options |= {"samples": samples, "micro_batch": micro_batch}

    def objective(model: Model) -> Objective:
        return slope_penalty(model, slopes, reduction=reduction, **options)

    return descent(
        objective,
        optax.sgd(3e-4) if tx is None else tx,
        epochs=epochs,
        on=("forget",),
        shuffle=False,
        labels=False,
        name=name,
    )
