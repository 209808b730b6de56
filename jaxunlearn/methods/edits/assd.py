"""Adaptive SSD: the threshold is a percentile of the ratios, so there is nothing to tune.

    p = 100 - ln(1 + 100 n_f / (n_f + n_r))
    alpha = the p-th percentile of I_f,j / I_ref,j over ALL parameters j
    theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1)   where I_f,j > alpha I_ref,j

The larger the share of F, the more entries are edited, and always between none and 4.6 % of them:
0.69 % when one example in a hundred is forgotten. Importances are those of `ssd`, with the retained
data as reference and random batches of 1024.

Schoepf, Foster and Brintrup (2024), "Parameter-tuning-free data entry error unlearning with
adaptive selective synaptic dampening", arXiv:2402.10098; constants as in its notebook.

Departures: 1. per-example moments and the formula of random batches in place of a batch loop
(module `moments`). 2. Evaluation mode; the notebook leaves the network in training mode. 3. The
percentile is taken without pooling the parameters into one array (`tree_quantile`).
"""

import jax.numpy as jnp

from jaxunlearn.linalg.quantiles import tree_quantile
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.edits.dampening import (
    check_constants,
    check_request,
    dampen,
    describe,
    ratios,
)
from jaxunlearn.methods.edits.moments import (
    Moments,
    as_moments,
    forget_and_reference,
    importance,
    moments_of,
)
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Data, Key, Params


def adaptive_share(forget: float | Array, total: float | Array) -> Array:
    """ln(1 + 100 n_f / n) / 100: the share of entries above the threshold, in [0, 0.0462].

    Args:
      forget: n_f, weight of the forget set.
      total: n = n_f + n_r >= n_f.

    Example:
      >>> print(f"{adaptive_share(1.0, 100.0):.4f}")
      0.0069
    """
    return jnp.log1p(100 * jnp.asarray(forget) / total) / 100


def adaptive_alpha(forget: Params, reference: Params, share: float | Array) -> Array:
    """The (1 - share)-quantile of I_f / I_ref over all entries where that is finite.

    Returns:
      [] float; NaN if no entry has a finite ratio, and with NaN nothing is selected.

    Example:
      >>> print(adaptive_alpha(jnp.arange(5.0), jnp.full(5, 2.0), 0.25))
      1.5
    """
    return tree_quantile(ratios(forget, reference), 1 - jnp.asarray(share))


def assd(
    *,
    dampening: float = 1.0,
    effective_batch: int = 1024,
    batching: str = "random",
    reference: str = "retain",
    floor: float = 0.0,
    stored: Moments | None = None,
    micro_batch: int | None = None,
) -> Method:
    """`ssd` with alpha = percentile_p of I_f / I_ref, p = 100 - ln(1 + 100 n_f / (n_f + n_r)).

    Args:
      dampening: lambda >= 0. Published: 1.
      effective_batch: B >= 1 of the importances. Published: 1024; a forget set of at most B
        examples then has I_f = g^2, the square of its mean gradient.
      batching: "random" or "class".
      reference: "retain" (published) or "full".
      floor: smallest factor, in [0, 1]; the notebook's "dampen limit". Published: 0, off.
      stored: moments of the whole training set in place of the retained data, as in `ssd`; those
        of R are then what is left without F.
      micro_batch: examples taken at once; see `curvature.second_moment`.

    Returns:
      A Method that needs forget, labels and, unless moments are stored, retain; deterministic.

    Raises:
      ValueError, TypeError: as for `ssd`.

    | situation                              | result                                      |
    |----------------------------------------|---------------------------------------------|
    | I_ref = 0                              | not counted by the percentile               |
    | I_ref = 0 < I_f                        | selected; theta * floor                     |
    | no finite ratio at all                 | params bit-identical, `info.alpha` NaN      |
    | loss multiplied by a constant          | the same edit                               |
    | stored moments of F and R              | the same edit up to rounding                |

    Cost: that of `ssd`, and 35 reads of the ratios for the percentile.

    Source: Schoepf et al. (2024), arXiv:2402.10098; departures in the module.

    Example:
      >>> sorted(assd().needs)
      ['forget', 'labels', 'retain']
    """
    check_constants(
        "assd",
        alpha=0.0,
        dampening=dampening,
        floor=floor,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        batching=batching,
        reference=reference,
    )
    whole = as_moments("assd", stored)
    by_class = batching == "class" and effective_batch > 1

    def warn(request: Request) -> None:
        check_request("assd", request, whole, alpha=0.0, bounded=False)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key

        def measure(data: Data) -> Moments:
            return moments_of(model, params, data, by_class=by_class, micro_batch=micro_batch)

        forget, base = forget_and_reference(measure, request, whole, reference)
        i_f = importance(forget, effective_batch, batching)
        i_ref = importance(base, effective_batch, batching)
        total = base.count + (forget.count if reference == "retain" else 0)
        alpha = adaptive_alpha(i_f, i_ref, adaptive_share(forget.count, total))
        edited = dampen(params, i_f, i_ref, alpha, dampening, floor)
        return Unlearned(model, edited, describe(i_f, i_ref, alpha))

    return method(
        unlearn,
        needs={"forget", "labels"} | ({"retain"} if whole is None else set()),
        name="assd",
        guarantee=EMPIRICAL,
        warn=warn,
    )
