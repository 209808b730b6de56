"""Gradient ascent on the forget set.

    max_theta  mean_{i in F} l_i(theta)

Unbounded below as a minimisation, so it destroys the model unless it is stopped: two brakes are
offered, a per-example clip and a stop at chance. Thudi et al. (2022), "Unrolling SGD: Understanding
Factors Influencing Machine Unlearning", arXiv:2109.13398; constants (SGD, 1e-4, 5 epochs) as in the
scripts that compare to it.

Departures: 1. `clip` and `stop_at_chance` are ours; both are off by default. 2. Plain SGD without
momentum and decay, so that one step is exactly theta_0 + learning_rate * grad L_F.
"""

import math
from functools import partial

import optax

from jaxunlearn import objectives
from jaxunlearn.method import Method
from jaxunlearn.methods.descent.descent import descent
from jaxunlearn.training import Step
from jaxunlearn.typing import Array


def gradient_ascent(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 5,
    clip: float | None = None,
    stop_at_chance: int | None = None,
) -> Method:
    """max_theta mean_{i in F} min(l_i(theta), clip), from theta_0.

    Args:
      tx: optax transformation of the DESCENT direction of -L; default plain SGD with learning rate
        1e-4.
      epochs: passes over the forget set, >= 0.
      clip: nats; an example whose loss has passed it stops pushing. None: unbounded.
      stop_at_chance: number of classes C >= 2; the run freezes after the first batch whose mean
        loss is at least log C, that of guessing. None: never.

    Returns:
      A Method that needs forget, labels and the key; it is retain-free.

    Raises:
      ValueError: a clip that is not positive, fewer than 2 classes, or a clip below log C, under
        which chance is never reached.

    | edge case      | result                                                                    |
    |----------------|---------------------------------------------------------------------------|
    | epochs = 0     | params bit-identical                                                      |
    | divergence     | last finite params, status DIVERGED                                       |

    Cost: `epochs` passes over the forget set.

    Source: Thudi et al. (2022), arXiv:2109.13398; departures in the module.

    Example:
      >>> sorted(gradient_ascent(epochs=1).needs)
      ['forget', 'key', 'labels']
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"gradient_ascent: clip must be > 0 nats or None, got {clip}.")

    if stop_at_chance is not None and stop_at_chance < 2:
        raise ValueError(
            f"gradient_ascent: stop_at_chance is the number of classes, >= 2, got {stop_at_chance}."
        )
    chance = None if stop_at_chance is None else math.log(stop_at_chance)
    if clip is not None and chance is not None and clip < chance:
        raise ValueError(
            f"gradient_ascent: with clip={clip} no loss reaches that of chance, {chance:.3g} nats."
        )

    def at_chance(step: Step) -> Array:
        return step.loss <= -chance  # type: ignore[operator]

    return descent(
        partial(objectives.ascent, clip=clip),
        optax.sgd(1e-4) if tx is None else tx,
        epochs=epochs,
        on=("forget",),
        stop=None if chance is None else at_chance,
        name="gradient_ascent",
    )
