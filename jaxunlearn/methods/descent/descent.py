"""The primitive under every gradient-trained method: an objective, an optax transformation, a length.

    theta' = fit(objective(model), tx, theta, the needed fields of the request)

A method of this family is an Objective builder and defaults; the loop, its early stops and its bookkeeping are
`jaxunlearn.training.fit`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective
from jaxunlearn.training import FitInfo, Step, fit
from jaxunlearn.typing import Array, Data, Key, Params, Score


class DescentInfo(NamedTuple):
    """What a gradient-trained method reports; see `training.FitInfo`."""

    losses: Array  # (steps,) float32, the objective at each step, NaN after an early stop
    status: Array  # [] int32, training.Status
    steps: Array  # [] int32, steps that changed the params
    best_score: Array  # [] float32, -inf unless keep_best asked for scores


def of_fit(info: FitInfo) -> DescentInfo:
    """The report of a run of `fit`."""
    return DescentInfo(*info)


def sgd(learning_rate: float) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and coupled weight decay 5e-4: what the published baselines were tuned with."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9))


def descent(
    objective: Callable[[Model], Objective],
    tx: optax.GradientTransformation,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    on: tuple[str, ...] = ("retain", "forget"),
    streams: Callable[[Request], dict[str, Data]] | None = None,
    shuffle: bool | Callable[[Request], Callable[[Key, int], Array]] = True,
    stop: Callable[[Step], Array] | None = None,
    name: str = "descent",
    _score: Score | None = None,
) -> Method:
    """theta' = argmin-ward of E[objective(theta; batches)] by `tx`, from theta.

    Args:
      objective: Model -> Objective over the streams.
      tx: optax transformation, schedules included.
      epochs, steps: length; exactly one. An epoch is one pass over the first stream, the others cycle.
      on: fields of the request that the objective reads, the first one counts the epochs.
      streams: request -> named streams, if they are not just the fields `on` under their own names.
      shuffle: as in `fit`; a function takes the request first.
      stop: as in `fit`.
      name: for tables and errors.

    Returns:
      A Method that needs `on`, labels and the key; guarantee empirical; with per-epoch candidates for `keep_best`.

    Raises:
      ValueError: neither or both of epochs and steps.

    | edge case                | result                                                            |
    |--------------------------|-------------------------------------------------------------------|
    | epochs = 0               | params bit-identical                                              |
    | divergence               | last finite params, `info.status == Status.DIVERGED`              |

    Example:
      >>> from functools import partial
      >>> from jaxunlearn import objectives
      >>> half = descent(partial(objectives.neggrad_plus, alpha=0.5), optax.adam(1e-3), epochs=1)
      >>> sorted(half.needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"{name}: give exactly one of epochs and steps, got epochs={epochs}, steps={steps}."
        )
    bound = lru_cache(maxsize=8)(
        objective
    )  # one Objective per Model: a repeated eager run compiles nothing

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        named = (
            {field: getattr(request, field) for field in on}
            if streams is None
            else streams(request)
        )
        out = fit(
            bound(model),
            tx,
            params,
            named,
            key=key,
            epochs=epochs,
            steps=steps,
            shuffle=shuffle(request) if callable(shuffle) else shuffle,
            stop=stop,
            score=None if _score is None else lambda p: jnp.asarray(_score(model, p)),
        )
        return Unlearned(model, out.params, of_fit(out.info))

    def scored(score: Score) -> Method:
        return descent(
            objective, tx, epochs=epochs, steps=steps, on=on, streams=streams, shuffle=shuffle, stop=stop,
            name=f"keep_best({name})", _score=score,
        )  # fmt: skip

    return method(
        unlearn, needs={*on, "labels", "key"}, name=name, guarantee=EMPIRICAL, scored=scored
    )
