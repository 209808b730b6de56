"""Shrink and perturb: halfway back to a fresh start, then trained on what is retained.

    theta_1 = s theta_0 + (1 - s) theta_fresh,    theta_fresh = init(key)
    min_theta  alpha L_R(theta) - (1 - alpha) L_F(theta) + c KL(p_0 || p_theta),    from theta_1

What a model holds about single examples is delicate, what it has learnt about its task is not:
shrinking weakens the first more than the second, and the noise of a fresh initialisation makes
training plastic again. s is a dial between two familiar ends, fine-tuning (s = 1) and retraining
(s = 0), each cut to the same few epochs and a schedule that uses them well: the learning rate rises
for a quarter of the run and falls to zero along a cosine. With alpha < 1 the forget set pushes too,
as in NegGrad+: what the restart alone would leave of it goes, and the fall of the learning rate
mends what the push bends.

Ash and Adams (2020), "On Warm-Starting Neural Network Training", arXiv:1910.08475, section 5.

Departures: 1. Offered here as an unlearning method; the paper trains on MORE data from a warm
start. 2. The fresh parameters enter with weight 1 - s, so that s = 0 is a fresh start; the paper
adds noise of a fixed scale beside s = 0.6. 3. The schedule, the forget set's term (alpha = 1 unless
asked for) and the distillation term (c = 0 unless asked for) are ours.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import in_batches
from jaxunlearn.distillation import prediction_distillation
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.descent import sgd
from jaxunlearn.model import Model
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Key, Params, check_between

_WARMUP = {"one_cycle": 0.25, "cosine": 0.0, "constant": None}  # share of the run


def shrink_perturb(
    tx: optax.GradientTransformation | None = None,
    *,
    shrink: float = 0.6,
    epochs: int = 3,
    schedule: str = "one_cycle",
    alpha: float | None = None,
    forget_batch: int | None = None,
    distil: float | None = None,
    temperature: float = 2.0,
) -> Method:
    """theta_1 = s theta_0 + (1 - s) init(key), then min alpha L_R - (1 - alpha) L_F + c T^2 KL.

    Args:
      tx: optax transformation at the PEAK of the schedule; default SGD with learning rate 0.1,
        momentum 0.9, weight decay 5e-4.
      shrink: s in [0, 1]: 1 keeps the model, 0 starts afresh. It may be traced.
      epochs: passes over the retained data, >= 0.
      schedule: factor on the updates of `tx` along the run: "one_cycle" (up for a quarter, then
        down to 0 along a cosine), "cosine" (down from the start: a warm restart) or "constant".
      alpha: weight of the retained data in [0, 1], beside 1 - alpha of the forget set's ascent;
        None for retained data alone. It may be traced.
      forget_batch: rows of a batch of F, >= 1, beside each batch of R; None: the batch size of the
        Data. A smaller one is cheaper: the steps are counted by R.
      distil: c >= 0, weight of the divergence to the predictions of theta_0 on the retained data;
        None for no such term. What theta_0 says of retained data may carry traces of the others.
      temperature: T > 0 of that divergence.

    Returns:
      A Method that needs retain, labels, init and the key, and forget if alpha is given; otherwise
      it never reads the forget set. Info is a `training.FitInfo`.

    Raises:
      ValueError: an argument outside its range, or an unknown schedule.

    | edge case                  | result                                                       |
    |----------------------------|--------------------------------------------------------------|
    | s = 1, constant schedule   | `finetune`, same batches, with the second half of the split key |
    | s = 0, constant schedule   | `train` for that many epochs, in evaluation mode             |
    | alpha = 1                  | as without alpha, same batches                               |
    | epochs = 0                 | params bit-identical: what is not repaired is not perturbed  |
    | divergence                 | last finite params, `info.status == DIVERGED`                |
    | running statistics         | those of theta_0, also beside fresh weights                  |

    Cost: `epochs` passes over the retained data, and as many forwards of theta_0 with `distil`, or
    as many batches of F with alpha.

    Source: Ash and Adams (2020), arXiv:1910.08475; departures in the module.

    Example:
      >>> sorted(shrink_perturb(shrink=0.4, epochs=2).needs)
      ['init', 'key', 'labels', 'retain']
    """
    check_between("shrink_perturb", "shrink", shrink, at_least=0, at_most=1)
    check_between("shrink_perturb", "epochs", epochs, at_least=0)
    check_between("shrink_perturb", "temperature", temperature, above=0)
    if alpha is not None:
        check_between("shrink_perturb", "alpha", alpha, at_least=0, at_most=1)
    if distil is not None:
        check_between("shrink_perturb", "distil", distil, at_least=0)
    if forget_batch is not None and (forget_batch < 1 or alpha is None):
        raise ValueError(
            "shrink_perturb: forget_batch must be >= 1 and goes with alpha, got "
            f"{forget_batch=}, {alpha=}."
        )
    if schedule not in _WARMUP:
        raise ValueError(
            f"shrink_perturb: schedule must be one of {sorted(_WARMUP)}, got {schedule!r}."
        )
    inner, warmup = sgd(0.1) if tx is None else tx, _WARMUP[schedule]

    @functools.cache  # one transformation for each length of a run: streams compile once
    def scheduled(steps: int) -> optax.GradientTransformation:
        if warmup is None:
            return inner
        return optax.chain(inner, optax.scale_by_schedule(cycle(steps, warmup)))

    def objective(model: Model, old: Params) -> objectives.Objective:
        terms = [(1.0, objectives.mean_loss(model, on="retain"))]
        if alpha is not None:
            terms = [(1.0, objectives.neggrad_plus(model, alpha, together=True))]
        if distil is not None:
            said = prediction_distillation(model, old, temperature=temperature, on="retain")
            terms.append((distil, said))
        return objectives.weighted_sum(*terms)

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        retain = request.retain
        assert retain is not None and model.init is not None
        init_key, fit_key = jax.random.split(key)
        streams = {"retain": retain}
        if alpha is not None:
            streams["forget"] = in_batches(request.forget, forget_batch)
        start = params if epochs == 0 else interpolate(params, model.init(init_key), shrink)
        out = fit(
            objective(model, params),
            scheduled(epochs * retain.num_batches),
            start,
            streams,
            key=fit_key,
            epochs=epochs,
            score=score,
        )
        if score is None:
            return Unlearned(model, out.params, out.info)
        before = score(params)  # a candidate that the run itself does not pass through
        better = out.info.best_score > jnp.where(jnp.isnan(before), -jnp.inf, before)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), out.params, params)
        return Unlearned(model, best, out.info)

    reads = ("retain", "labels", "init", "key", *(() if alpha is None else ("forget",)))
    return method(unlearn, needs=reads, name="shrink_perturb", scored=True)


def interpolate(params: Params, fresh: Params, shrink: float | Array) -> Params:
    """s theta + (1 - s) theta_fresh, computed in at least float32, in the dtypes of theta.

    Example:
      >>> print(interpolate(jnp.ones(2), jnp.zeros(2), 0.25))
      [0.25 0.25]
    """

    def between(p: Array, f: Array) -> Array:
        dtype = jnp.promote_types(p.dtype, jnp.float32)
        return (shrink * p.astype(dtype) + (1 - shrink) * f.astype(dtype)).astype(p.dtype)

    return jax.tree.map(between, params, fresh)


def cycle(steps: int, warmup: float) -> Callable[[Any], Array]:
    """step -> factor in [0, 1]: up linearly for the share `warmup`, then down along a cosine.

    t = (step + 1/2) / steps is the middle of a step, so that none of them has factor 0.

    Example:
      >>> [f"{cycle(4, 0.25)(step):.2f}" for step in range(4)]
      ['0.50', '0.93', '0.50', '0.07']
    """

    def factor(step: Any) -> Array:
        t = (step + 0.5) / steps
        down = 0.5 * (1 + jnp.cos(jnp.pi * (t - warmup) / (1 - warmup)))
        return jnp.where(t < warmup, t / max(warmup, 1e-9), down)

    return factor
