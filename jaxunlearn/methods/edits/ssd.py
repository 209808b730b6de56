"""Selective synaptic dampening: shrink the weights that matter more to F than to everything.

    select j where  I_f,j > alpha I_ref,j;      theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1)

I_S is the diagonal empirical Fisher of the set S: the mean over examples of the squared gradient.
Foster, Schoepf and Brintrup (2024), "Fast Machine Unlearning Without Retraining Through Selective
Synaptic Dampening", arXiv:2308.07707, Algorithm 1.

What the published code squares is the gradient of a batch mean, and whether those batches held one
class or many changes the method. Here the per-example moments (F, g) are exact and the batching is
a formula:

    example (B = 1)   I = F
    random, B         I = g^2 + (F - g^2)/B (n - B)/(n - 1)           shuffled batches of B from n
    class, B          I = sum_c n_c/n [F_c/B + (1 - 1/B) g_c^2]       batches of one class each

Because F is part of the full set, "example" and "class" importances obey I_f/I_full <= n/n_f: with
alpha >= n/n_f nothing can be selected, which a warning says.

Departures: 1. per-example moments and the formulas above in place of a batch loop. 2. The default
is random batches of 64, since with class batches or B = 1 the published alpha = 10 cannot act on
one class of ten. 3. `reference="retain"` and a floor on the factor are offered (both from the
adaptive successor, arXiv:2402.10098).
"""

from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.edits.dampening import (
    check_constants,
    check_request,
    dampen,
    describe,
)
from jaxunlearn.methods.edits.moments import (
    Moments,
    as_moments,
    forget_and_reference,
    importance,
    moments_of,
)
from jaxunlearn.model import Model
from jaxunlearn.typing import Data, Key, Params


def ssd(
    *,
    alpha: float = 10.0,
    dampening: float = 1.0,
    effective_batch: int = 64,
    batching: str = "random",
    reference: str = "full",
    floor: float = 0.0,
    stored: Moments | None = None,
    micro_batch: int | None = None,
) -> Method:
    """theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1) where I_f,j > alpha I_ref,j.

    Args:
      alpha: selection threshold, >= 0. Published: 10 for ResNet-18; 5, 10, 25 for ViT on class,
        random, sub-class.
      dampening: lambda >= 0. Published: 1.
      effective_batch: B >= 1 in the formulas of the module; 1 is the per-example Fisher diagonal.
      batching: "random" or "class".
      reference: "full" (F and R together, the paper) or "retain".
      floor: smallest factor, in [0, 1].
      stored: moments of the whole training set, F included, at these params, from
        `edits.moments_of` (`by_class=True` for class batches) or `edits.load_moments`, or a
        `SecondMoment`. The retained data are then neither needed nor read.
      micro_batch: examples taken at once; see `curvature.second_moment`.

    Returns:
      A Method that needs forget, labels and, unless moments are stored, retain; deterministic, so
      it takes no key.

    Raises:
      ValueError: a constant outside its range; stored moments of another model, without class
        means that are needed, or (when it is run) of no more examples than are to be forgotten.
      TypeError: `stored` is something else.

    Warns:
      NothingSelectedWarning: n/n_f < 3 alpha with reference "full" and B = 1 or class batches.

    | situation                                        | result                            |
    |--------------------------------------------------|-----------------------------------|
    | alpha >= n/n_f, reference "full", B = 1 or class | params bit-identical (a theorem)  |
    | alpha = inf                                      | params bit-identical              |
    | loss multiplied by a constant                    | the same edit                     |
    | examples permuted, another micro_batch           | the same edit up to rounding      |
    | stored moments of F and R                        | the same edit up to rounding      |
    | an importance overflows or is NaN                | entry left alone, `info.unusable` |
    | running statistics                               | not parameters: left alone        |

    Cost: one backward pass over F and R, or over F alone with stored moments (class batches: one
    more, with C gradients in memory); memory 6 x params. Stored moments are constants of the
    compiled program, which holds a copy of them.

    Source: Foster et al. (2024), arXiv:2308.07707, Algorithm 1; departures in the module.

    Example:
      >>> sorted(ssd(alpha=10.0, effective_batch=64).needs)
      ['forget', 'labels', 'retain']
    """
    check_constants(
        "ssd",
        alpha=alpha,
        dampening=dampening,
        floor=floor,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        batching=batching,
        reference=reference,
    )
    whole = as_moments("ssd", stored)
    by_class = batching == "class" and effective_batch > 1
    bounded = reference == "full" and (effective_batch == 1 or by_class)

    def warn(request: Request) -> None:
        check_request("ssd", request, whole, alpha, bounded)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key

        def measure(data: Data) -> Moments:
            return moments_of(model, params, data, by_class=by_class, micro_batch=micro_batch)

        forget, base = forget_and_reference(measure, request, whole, reference)
        i_f = importance(forget, effective_batch, batching)
        i_ref = importance(base, effective_batch, batching)
        edited = dampen(params, i_f, i_ref, alpha, dampening, floor)
        return Unlearned(model, edited, describe(i_f, i_ref, alpha))

    return method(
        unlearn,
        needs={"forget", "labels"} | ({"retain"} if whole is None else set()),
        name="ssd",
        guarantee=EMPIRICAL,
        warn=warn,
    )
