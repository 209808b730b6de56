"""Loss-free SSD: dampening by how much the outputs, not the loss, depend on a weight. No labels.

    a_S,j = mean_{i in S} |d/dtheta_j |f(x_i)|^2|
    theta'_j = theta_j min(lambda a_ref,j / a_f,j, 1)   where a_f,j > alpha a_ref,j

f(x) are the logits; the length of the output vector stands for how strongly the network reacts, so
neither labels nor a loss are needed, and an interpolating network, whose loss gradients vanish, is
as good as any. Foster, Schoepf and Brintrup (2024), "Loss-Free Machine Unlearning",
arXiv:2402.19308: two lines changed in SSD, as its README says them.

Absolute values grow like the root of squares, so a threshold here is smaller than in `ssd`: what
that one selects at alpha this one does at about its root. Per example, a_f/a_full <= n/n_f holds
as it does there.

The published code takes the absolute value of the gradient of a batch mean. What a loop over random
batches of B has in expectation is no function of moments, but for all but small B the mean of a
batch is close to normal, and then it is, with mean g and variance v = (F - g^2)/B (n - B)/(n - 1):

    E|N(g, v)| = sqrt(2 v / pi) exp(-g^2 / 2 v) + g erf(g / sqrt(2 v))

Departures: 1. per example by default, where no approximation is made; batches by the formula.
2. alpha is ours, since the paper's could not be found: 3, set by hand on one class of digits (a few
per cent of random examples want less, 1.3).
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxunlearn.curvature import absolute_moment, second_moment
from jaxunlearn.curvature.products import total_weight
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.edits.dampening import check_constants, check_request, dampen, describe
from jaxunlearn.methods.edits.moments import (
    LossFn,
    Moments,
    as_moments,
    batch_variance,
    forget_and_reference,
)
from jaxunlearn.model import Model, freeze_statistics, split_statistics
from jaxunlearn.typing import Array, Batch, Data, Key, Params


@functools.lru_cache(maxsize=32)  # one function for one model, so that its loops compile once
def output_norm(outputs: LossFn) -> LossFn:
    """(params, batch) -> (n,): |f(x_i)|^2 over all axes of the outputs but the first."""

    def squared(params: Params, batch: Batch) -> Array:
        out = outputs(params, batch)
        return jnp.sum(jnp.square(out), axis=tuple(range(1, out.ndim)))

    return squared


def output_moments(
    model: Model, params: Params, data: Data, *, micro_batch: int | None = None
) -> Moments:
    """(F, g, n) and a of |f(x)|^2 over a set: what `lfssd(stored=...)` takes. No labels are read.

    Args:
      model, params, data, micro_batch: as for `moments_of`.

    Cost: two backward passes over the data.
    """
    weights, statistics = split_statistics(model, params)
    norm = output_norm(freeze_statistics(model, statistics).outputs)
    second = second_moment(norm, weights, data, micro_batch=micro_batch)
    absolute = absolute_moment(norm, weights, data, micro_batch=micro_batch)
    return Moments(*second, absolute=absolute)


def magnitude(moments: Moments, effective_batch: int = 1) -> Params:
    """a for B = 1, else E|N(g, v)| with v the variance of the mean of a random batch.

    Returns:
      A tree like the params, >= |g|. B >= n gives |g|, the one full batch, exactly.
    """
    if effective_batch == 1:
        return moments.absolute

    def folded(g: Array, v: Array) -> Array:
        deviation = jnp.sqrt(jnp.where(v > 0, v, 1))
        z = g / deviation
        density = jnp.exp(-0.5 * z * z) * math.sqrt(2 / math.pi)
        value = deviation * density + g * jax.lax.erf(z / math.sqrt(2))
        return jnp.where(v > 0, value, jnp.abs(g))

    return jax.tree.map(folded, moments.mean, batch_variance(moments, float(effective_batch)))


def lfssd(
    *,
    alpha: float = 3.0,
    dampening: float = 1.0,
    effective_batch: int = 1,
    reference: str = "full",
    floor: float = 0.0,
    stored: Moments | None = None,
    micro_batch: int | None = None,
) -> Method:
    """theta'_j = theta_j min(lambda a_ref,j / a_f,j, 1) where a_f,j > alpha a_ref,j.

    a_S = mean_{i in S} |grad |f(x_i)|^2|.

    Args:
      alpha: selection threshold, >= 0. Ours: 3 for a class, 1.3 for random examples; see the
        module.
      dampening: lambda >= 0.
      effective_batch: B; 1 is per example and exact, else the normal approximation of the module
        (over the subsets of eight examples, 2 % off in the median and 12 % at most at B = 2; 1 %
        and 10 % at B = 4).
      reference: "full" or "retain".
      floor: smallest factor, in [0, 1].
      stored: `edits.output_moments` of the whole training set, in place of the retained data.
      micro_batch: examples taken at once; see `curvature.second_moment`.

    Returns:
      A Method that needs forget and, unless moments are stored, retain: no labels, no key.

    Raises:
      ValueError, TypeError: as for `ssd`.

    Warns:
      NothingSelectedWarning: n/n_f < 3 alpha with reference "full" and B = 1.

    | situation                                    | result                            |
    |----------------------------------------------|-----------------------------------|
    | alpha >= n/n_f, reference "full", B = 1      | params bit-identical (a theorem)  |
    | alpha = inf                                  | params bit-identical              |
    | outputs multiplied by a constant             | the same edit                     |
    | labels changed                               | the same bits; they are not read  |
    | stored moments of F and R                    | the same edit up to rounding      |

    Cost: one backward pass over F and R, or over F alone with stored moments.

    Source: Foster et al. (2024), arXiv:2402.19308; departures in the module.

    Example:
      >>> sorted(lfssd(alpha=3.0).needs)
      ['forget', 'retain']
    """
    check_constants(
        "lfssd",
        alpha=alpha,
        dampening=dampening,
        floor=floor,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        batching="random",
        reference=reference,
    )
    whole = as_moments("lfssd", stored)
    bounded = reference == "full" and effective_batch == 1

    def warn(request: Request) -> None:
        check_request("lfssd", request, whole, alpha, bounded)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key
        norm = output_norm(model.outputs)

        def measure(data: Data) -> Moments:
            if effective_batch > 1:
                return Moments(*second_moment(norm, params, data, micro_batch=micro_batch))
            absolute = absolute_moment(norm, params, data, micro_batch=micro_batch)
            return Moments((), (), total_weight(data), absolute=absolute)

        forget, base = forget_and_reference(measure, request, whole, reference)
        a_f, a_ref = (magnitude(m, effective_batch) for m in (forget, base))
        edited = dampen(params, a_f, a_ref, alpha, dampening, floor)
        return Unlearned(model, edited, describe(a_f, a_ref, alpha))

    return method(
        unlearn,
        needs={"forget"} | ({"retain"} if whole is None else set()),
        name="lfssd",
        guarantee=EMPIRICAL,
        warn=warn,
    )
