"""SCRUB: a student that disobeys its teacher where it is to forget, and obeys it elsewhere.

    max_theta  T^2 KL(softmax(f_0 / T) || softmax(f_theta / T))  over F        epochs 1 .. msteps
    min_theta  gamma CE + alpha T^2 KL(softmax(f_0 / T) || softmax(f_theta / T))  over R     always

f_0 is the model as it was. An epoch is one pass over F that maximises, up to epoch `msteps`, and
then one over R that minimises, in batches of their own and with one optimiser. Ending with epochs
over R alone is what makes it work: they repair what the first ones break. `rewind` (SCRUB+R) goes
back to the epoch whose error on F is nearest to that on held-out data; see
`jaxunlearn.methods.descent.rewind`.

Kurmanji et al. (2023), "Towards Unbounded Machine Unlearning", arXiv:2302.09880. Constants are
those of the authors' two notebooks, `SMALL_SCALE` (the defaults) and `LARGE_SCALE`. The rewinding
is a *reconstruction*.

Departures: 1. Evaluation mode. At theta_0 the divergence is 0 with zero gradient, so that nothing
but weight decay and rounding moves the first maximising pass (in the notebooks also noise of
training mode): with plain SGD it does nothing, and Adam without decay blows rounding up. 2. The
decay of the rate multiplies the updates of whatever `tx` is. 3. Streaming forget Data keep their
own batches.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import optax

from jaxunlearn.data.streams import InMemory, Stream, as_data, in_batches
from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.rewind import remembering, rewound
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.teachers import as_found
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Key, Params, check_between

SMALL_SCALE: Mapping[str, Any] = MappingProxyType(
    {
        "tx": optax.chain(optax.add_decayed_weights(0.1), optax.adam(5e-4)),
        "epochs": 10,
        "msteps": 3,
        "gamma": 1.0,
        "alpha": 0.5,
        "temperature": 2.0,
        "decay_after": (5, 8, 9),
    }
)
LARGE_SCALE: Mapping[str, Any] = MappingProxyType(
    {
        "tx": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(5e-4, momentum=0.9)),
        "epochs": 3,
        "msteps": 2,
        "gamma": 0.99,
        "alpha": 0.001,
        "temperature": 4.0,
        "decay_after": (3, 5, 9),
        "forget_batch": 32,  # of 128 retained rows
    }
)


def scrub(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 10,
    msteps: int = 3,
    gamma: float = 1.0,
    alpha: float = 0.5,
    temperature: float = 2.0,
    decay_after: tuple[int, ...] = (5, 8, 9),
    decay: float = 0.1,
    forget_batch: int | None = None,
    rewind: bool = False,
) -> Method:
    """max_theta T^2 KL over F, then min_theta gamma CE + alpha T^2 KL over R, epoch by epoch.

    Args:
      tx: optax transformation for both; default Adam with learning rate 5e-4 and coupled weight
        decay 0.1.
      epochs: >= 0.
      msteps: epochs that begin with a pass over F, >= 0; more than `epochs` is all of them.
      gamma, alpha: weights of the labels and of the teacher on R, >= 0.
      temperature: T > 0.
      decay_after: updates are multiplied by `decay` once more after each of these epochs; () if
        `tx` has a schedule of its own.
      decay: in [0, 1].
      forget_batch: rows of a batch of F, >= 1; None: the batch size of the Data. One that is larger
        than F is all of F.
      rewind: SCRUB+R: return the epoch that errs on F as the last one errs on held-out data.

    Returns:
      A Method that needs retain, labels and the key, forget unless msteps = 0, and forget and
      held_out to rewind. Info is a `training.FitInfo`, or a `RewindInfo`. Without rewinding, the
      params after each epoch are candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range.

    | published   | optimiser         | weight decay | epochs | msteps | gamma | alpha | T | after |
    |-------------|-------------------|--------------|--------|--------|-------|-------|---|-------|
    | SMALL_SCALE | Adam 5e-4         | 0.1          | 10     | 3      | 1     | 0.5   | 2 | 5,8,9 |
    | LARGE_SCALE | SGD 5e-4, mom. .9 | 5e-4         | 3      | 2      | 0.99  | 0.001 | 4 | 3,5,9 |

    | edge case                  | result                                                       |
    |----------------------------|--------------------------------------------------------------|
    | epochs = 0                 | params bit-identical                                         |
    | msteps = 0                 | distillation fine-tuning; F is not read                      |
    | msteps = 0, alpha = 0      | fine-tuning with gamma times the loss                        |
    | divergence                 | last finite params, `info.status == Status.DIVERGED`         |

    Cost: `epochs` passes over R and `msteps` over F, each with one more forward pass; memory of two
    models. To rewind: E - 1 models more, and E forward passes over F and one over held_out.

    Source: Kurmanji et al. (2023), arXiv:2302.09880; departures in the module.

    Example:
      >>> sorted(scrub(**LARGE_SCALE).needs), sorted(scrub(msteps=0).needs)
      (['forget', 'key', 'labels', 'retain'], ['key', 'labels', 'retain'])
    """
    for what, value in (("gamma", gamma), ("alpha", alpha)):
        check_between("scrub", what, value, at_least=0)
    check_between("scrub", "temperature", temperature, above=0)
    check_between("scrub", "decay", decay, at_least=0, at_most=1)
    if min(epochs, msteps, *decay_after) < 0 or (forget_batch is not None and forget_batch < 1):
        raise ValueError(
            "scrub: epochs, msteps and decay_after must be >= 0 and forget_batch >= 1, got "
            f"{epochs=}, {msteps=}, {decay_after=}, {forget_batch=}."
        )
    base = SMALL_SCALE["tx"] if tx is None else tx
    turns = [("forget", "retain") if e < msteps else ("retain",) for e in range(epochs)]
    maximises, rewinds = min(msteps, epochs) > 0, rewind and epochs > 0

    @lru_cache
    def decayed(steps: tuple[int, ...]) -> optax.GradientTransformation:
        if not steps:
            return base

        def factor(count: Any) -> Array:
            return jnp.asarray(decay) ** (count >= jnp.asarray(steps)).sum()

        return optax.chain(base, optax.scale_by_schedule(factor))

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        streams: dict[str, InMemory | Stream] = {"retain": as_data(request.retain)}
        if maximises:
            streams["forget"] = in_batches(request.forget, forget_batch)
        sizes = [sum(streams[name].num_batches for name in epoch) for epoch in turns]
        starts = [0, *itertools.accumulate(sizes)]
        objective = disobedience(model, gamma, alpha, temperature)
        out = fit(
            remembering(objective, starts[:-1]) if rewinds else objective,
            decayed(tuple(starts[e] for e in decay_after if e < epochs)),
            params,
            streams,
            key=key,
            turns=turns,
            score=score,
        )
        if not rewinds:
            return Unlearned(model, out.params, out.info)
        assert request.held_out is not None
        chosen, info = rewound(model, out, starts[:-1], request.forget, request.held_out)
        return Unlearned(model, chosen, info)

    needs = {"retain", "labels", "key"} | ({"forget"} if maximises else set())
    needs |= {"forget", "held_out"} if rewind else set()
    return method(unlearn, needs=needs, name="scrub", scored=not rewind)


def disobedience(
    model: Model, gamma: float = 1.0, alpha: float = 0.5, temperature: float = 2.0
) -> Objective:
    """L = -T^2 KL where it is the turn of "forget", gamma CE + alpha T^2 KL where of "retain".

    For `fit(..., turns=...)`. The state is the teacher: the params that the run starts from.
    """
    return Objective(as_found, bind(_disobey, model, gamma, alpha, temperature))


def _disobey(
    model: Model,
    gamma: Any,
    alpha: Any,
    temperature: Any,
    params: Params,
    batches: Batches,
    teacher: Params,
    key: Key,
) -> tuple[Array, Params]:
    del key
    ((turn, batch),) = batches.items()
    each = prediction_divergence(
        model.outputs(params, batch), model.outputs(teacher, batch), temperature=temperature
    )
    divergence = weighted_mean(each, batch)
    if turn == "forget":
        return -divergence, teacher
    return gamma * weighted_mean(model.loss(params, batch), batch) + alpha * divergence, teacher
