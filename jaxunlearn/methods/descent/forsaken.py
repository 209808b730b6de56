"""Forsaken: sparse steps that make forget examples look as if the model had never seen them.

    D_t = argmin_D  mean_{i in F} KL(q_{y_i} || p_{theta_t - D}(. | x_i)) + lambda |D|_1
    theta_{t+1} = theta_t - D_t

q_c is what the original model says, on average, of examples of class c that it was not trained on.
The problem for D_t, the "mask gradient", is solved by one proximal-gradient step (or `inner` of
them), D = S_{eta lambda}(eta grad), which is 0 in most entries: the few that matter to the
forgotten are moved, the rest of the memory stays, and no retained data are read.

Averaging costs nothing: the mean of KL(q_j || p) over a set of non-members is KL(mean q_j || p)
plus a constant, so the whole set of their posteriors has the same gradient as its mean.

Ma et al. (2022), "Learn to Forget: Machine Unlearning via Neuron Masking", arXiv:2003.10933.
*Reconstruction* from the abstract and secondary descriptions: the mask gradient, the membership
target and the sparsity penalty are the paper's, the equations and every constant are ours. The
paper's measure is `jaxunlearn.audit.forgetting_rate`.

Choices: 1. Steps see all of F at once; in memory they go through it in its batches, which bounds
the memory and changes nothing. A streamed F is gathered. 2. lambda may be given as the share of the
entries that the first step moves. 3. The stop asks a membership oracle before every step. The one
that is made here is a threshold on losses of the original model, which is a device for stopping
early and no evidence of anything afterwards. 4. log q is floored at -30 nats.

Without retained data nothing holds accuracy but the smallness of D: where the model generalises
from F to its neighbours, these move with it. Use few, small steps or a `target`, and measure.
Held-out data must not be the data the result is judged on. A step towards q lowers confidence and
can overshoot: examples that are *too* uncertain are recognised the other way round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.streams import InMemory, concatenate
from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.nonmembers import (
    check_classes,
    loss_threshold,
    losses_and_weights,
    nats,
    posteriors,
)
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import Step, fit
from jaxunlearn.transforms.shrinkage import soft_threshold
from jaxunlearn.typing import Array, Data, Key, Params, check_between

Oracle = Callable[[Array, Array], Array]  # (logits (n, ..., C), labels (n, ...)) -> (n,) bool

_FLOOR = -30.0  # nats


class ForsakenState(NamedTuple):
    """State of the objective: constants of the run, and the oracle's last word."""

    posteriors: Array  # (C, C) float32, row c is q_c
    threshold: Array  # [] float32, nats: a loss up to it is a member's; 0 if it is not asked
    nonmembers: Array  # [] float32, share of F that the oracle does not recognise, at theta_t


class ForsakenInfo(NamedTuple):
    """What a person wants to see."""

    losses: Array  # (steps inner,) float32, mean KL before each step; NaN from where the run ended
    status: Array  # [] int32, a `Status`; STOPPED where the oracle was content
    steps: Array  # [] int32, steps made, the one of 0 before a stop included
    best_score: Array  # [] float32, -inf unless a score is given
    nonmembers: Array  # [] float32, share of F taken for non-members when last asked; NaN without
    moved: Array  # [] float32, share of the entries that differ from the original


def forsaken(
    *,
    learning_rate: float = 1e-3,
    penalty: float | None = None,
    share: float = 0.05,
    steps: int = 50,
    inner: int = 1,
    target: float | None = None,
    oracle: Oracle | None = None,
) -> Method:
    """theta <- theta - S_{eta lambda}(eta grad mean_{i in F} KL(q_{y_i} || p_theta(. | x_i))).

    Args:
      learning_rate: eta > 0.
      penalty: lambda >= 0, in nats per unit of weight; None: so that `share` of the entries move.
      share: in [0, 1], of all entries, in the first step; read if `penalty` is None.
      steps: T >= 0 mask gradients, one pass over F each (`inner` passes).
      inner: k >= 1 proximal-gradient steps to a mask gradient.
      target: share of F in [0, 1]; the run ends before the first step at which the oracle calls at
        least so many non-members. None: all steps are made and no oracle is asked.
      oracle: (logits, labels) -> (n,) bool, True for a member; None: the loss is at most the
        threshold that best tells F from held-out data under the original model.

    Returns:
      A Method that needs forget, held_out and labels; deterministic, without a key. Its info is a
      `ForsakenInfo`; the params after each step are candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range, an oracle without a target; (when it is run) a
        forgotten class of which no held-out example is given; labels that are not classes.

    | edge case                          | result                                                |
    |------------------------------------|-------------------------------------------------------|
    | steps = 0, or lambda huge          | params bit-identical                                  |
    | lambda = 0                         | gradient descent on the KL term                       |
    | |grad_j| <= lambda                 | entry j does not move in that step, to the bit        |
    | p = q on all of F                  | bit-identical for lambda > 0 above rounding           |
    | target reached by the original     | params bit-identical, status STOPPED                  |
    | class without held-out rows, under | the mean posterior of all held-out rows stands in     |
    | a trace, where it cannot be seen   |                                                       |
    | divergence                         | last finite params, status DIVERGED                   |

    Cost: T k gradient passes over F, one forward pass over the held-out data (two passes and one
    over F if the threshold is made here); a copy of the weights if k > 1.

    Source: Ma et al. (2022), arXiv:2003.10933, a *reconstruction*.

    Example:
      >>> sorted(forsaken(share=0.1, steps=5).needs)
      ['forget', 'held_out', 'labels']
    """
    check_between("forsaken", "learning_rate", learning_rate, above=0)
    check_between("forsaken", "share", share, at_least=0, at_most=1)
    if penalty is not None:
        check_between("forsaken", "penalty", penalty, at_least=0)
    if target is not None:
        check_between("forsaken", "target", target, at_least=0, at_most=1)
    if steps < 0 or inner < 1:
        raise ValueError(f"forsaken: steps must be >= 0 and inner >= 1, got {steps} and {inner}.")
    if oracle is not None and target is None:
        raise ValueError("forsaken: an oracle is asked only with a target, the share to reach.")
    few = (
        soft_threshold(share=share, every=inner)
        if penalty is None
        else soft_threshold(learning_rate * penalty, every=inner)
    )

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        del key
        assert request.held_out is not None
        forget = request.forget
        rows = forget.batch_size  # type: ignore[attr-defined]
        whole = forget if isinstance(forget, InMemory) else _gathered(forget)
        threshold = jnp.float32(0)
        if target is not None and oracle is None:
            known, unknown = (
                losses_and_weights(model, params, data) for data in (whole, request.held_out)
            )
            threshold = loss_threshold(*known, *unknown)
        q = posteriors(model, params, request.held_out)
        start = ForsakenState(q, threshold, jnp.float32(0))
        fitted = fit(
            Objective(lambda _: start, bind(_towards, model, oracle, target, rows)),
            optax.chain(optax.sgd(learning_rate), few),
            params,
            {"forget": InMemory(whole.arrays, whole.num_examples)},
            key=jax.random.key(0),  # nothing is drawn: one batch, in stored order
            steps=steps * inner,
            shuffle=False,
            stop=None if target is None else bind(_content, target),
            score=score,
        )
        asked = fitted.state.objective.nonmembers
        if target is None or steps == 0:
            asked = jnp.float32(jnp.nan)
        moved = _share_moved(fitted.params, params)
        return Unlearned(model, fitted.params, ForsakenInfo(*fitted.info, asked, moved))

    return method(
        unlearn,
        needs={"forget", "held_out", "labels"},
        name="forsaken",
        scored=True,
        warn=check_classes,
    )


def _towards(
    model: Model,
    oracle: Oracle | None,
    target: Any,
    rows: int,
    params: Params,
    batches: Batches,
    state: ForsakenState,
    key: Key,
) -> tuple[Array, ForsakenState]:
    """The KL term over all of F, batch by batch; without gradient once the oracle is content."""
    del key
    data = InMemory(dict(batches["forget"]), rows)
    log_q = jnp.maximum(jnp.log(state.posteriors), _FLOOR)

    @jax.checkpoint
    def part(index: Array) -> tuple[Array, Array, Array]:
        batch = data.batch(index)
        logits, labels = model.outputs(params, batch), batch["y"]
        each = prediction_divergence(logits, log_q[labels].astype(logits.dtype), temperature=1.0)
        if target is None:
            return each, jnp.zeros(each.shape, bool), batch["weight"]
        if oracle is None:
            return each, nats(logits, labels) > state.threshold, batch["weight"]
        return each, ~oracle(logits, labels), batch["weight"]

    parts = jax.lax.map(part, jnp.arange(data.num_batches))
    each, stranger, weight = (column.reshape(-1) for column in parts)
    counted = {"weight": weight}
    value = weighted_mean(each, counted)
    if target is None:
        return value, state
    seen = weighted_mean(stranger.astype(jnp.float32), counted)
    value = jnp.where(seen >= target, jax.lax.stop_gradient(value), value)
    return value, state._replace(nonmembers=jax.lax.stop_gradient(seen))


def _content(target: Any, step: Step) -> Array:
    return step.objective.nonmembers >= target


def _gathered(stream: Data) -> InMemory:
    """All rows of a stream; F is the small part."""
    whole = concatenate(*(InMemory(dict(batch), batch["weight"].size) for batch in stream))
    assert isinstance(whole, InMemory)
    return whole


def _share_moved(params: Params, before: Params) -> Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True)
    counts = [jnp.count_nonzero(new != old).astype(jnp.float32) for new, old in pairs]
    return sum(counts, jnp.float32(0)) / max(1, sum(x.size for x in jax.tree.leaves(params)))
