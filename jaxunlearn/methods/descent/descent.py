"""The primitive under every gradient-trained method: objective, optax transformation, length.

    theta' = fit(objective(model), tx, theta, the needed fields of the request)

A method of this family is an Objective builder and defaults; the loop, its early stops and its
bookkeeping are `jaxunlearn.training.fit`.
"""

from collections.abc import Callable

import optax

from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective
from jaxunlearn.training import Step, Turns, fit
from jaxunlearn.typing import Array, Data, Key, Params


def sgd(learning_rate: float) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and coupled weight decay 5e-4, as in the published baselines."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9))


def descent(
    objective: Callable[[Model], Objective],
    tx: optax.GradientTransformation,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    turns: Turns | None = None,
    on: tuple[str, ...] = ("retain", "forget"),
    streams: Callable[[Request], dict[str, Data]] | None = None,
    shuffle: bool | Callable[[Request], Callable[[Key, int], Array]] = True,
    stop: Callable[[Step], Array] | None = None,
    labels: bool = True,
    name: str = "descent",
) -> Method:
    """theta' = argmin-ward of E[objective(theta; batches)] by `tx`, from theta.

    Args:
      objective: Model -> Objective over the streams.
      tx: optax transformation, schedules included.
      epochs, steps, turns: length, as in `fit`; exactly one. An epoch is one pass over the first
        stream, the others cycle; with turns it is what they say.
      on: fields of the request that the objective reads, the first one counts the epochs.
      streams: request -> named streams, if they are not just the fields `on` under their own names.
      shuffle: as in `fit`; a function takes the request first.
      stop: as in `fit`.
      labels: whether the objective reads labels, or the model's loss of them.
      name: for tables and errors.

    Returns:
      A Method that needs `on`, the key and (unless told otherwise) labels; guarantee empirical; its
      info is a `training.FitInfo`; the params after each epoch are candidates for `keep_best`.

    Raises:
      ValueError: not exactly one of epochs, steps and turns, or a negative one.

    | edge case                | result                                                            |
    |--------------------------|-------------------------------------------------------------------|
    | epochs = 0, turns = ()   | params bit-identical                                              |
    | divergence               | last finite params, `info.status == Status.DIVERGED`              |

    Example:
      >>> from functools import partial
      >>> from jaxunlearn import objectives
      >>> half = descent(partial(objectives.neggrad_plus, alpha=0.5), optax.adam(1e-3), epochs=1)
      >>> sorted(half.needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if sum(length is not None for length in (epochs, steps, turns)) != 1:
        raise ValueError(
            f"{name}: give exactly one of epochs, steps and turns, got epochs={epochs}, "
            f"steps={steps}, turns={turns}."
        )
    if min(epochs or 0, steps or 0) < 0:
        raise ValueError(f"{name}: the length of a run must be >= 0, got {epochs or steps}.")

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        fields = {field: getattr(request, field) for field in on}
        out = fit(
            objective(model),
            tx,
            params,
            fields if streams is None else streams(request),
            key=key,
            epochs=epochs,
            steps=steps,
            turns=turns,
            shuffle=shuffle(request) if callable(shuffle) else shuffle,
            stop=stop,
            score=score,
        )
        return Unlearned(model, out.params, out.info)

    needs = {*on, "key", *(["labels"] if labels else [])}
    return method(unlearn, needs=needs, name=name, guarantee=EMPIRICAL, scored=True)
