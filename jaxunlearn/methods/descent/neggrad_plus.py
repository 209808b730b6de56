"""NegGrad+: descend on retained data, ascend on the forget set, in one step.

    min_theta  alpha L_R(theta) - (1 - alpha) L_F(theta)

Kurmanji et al. (2023), "Towards Unbounded Machine Unlearning", arXiv:2302.09880, baseline
"NegGrad+". *Reconstruction*: the objective is the paper's, the defaults are within the ranges its
scripts sweep.

Departures: none in the mathematics. The forget set is cycled: every step pairs a batch of each, and
an epoch is one pass over the retained data.
"""

from functools import partial

import optax

from jaxunlearn import objectives
from jaxunlearn.method import Method
from jaxunlearn.methods.descent.descent import descent, sgd
from jaxunlearn.typing import check_between


def neggrad_plus(
    tx: optax.GradientTransformation | None = None, *, alpha: float = 0.95, epochs: int = 5
) -> Method:
    """min_theta alpha L_R(theta) - (1 - alpha) L_F(theta), from theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 0.01, momentum 0.9, weight decay
        5e-4.
      alpha: weight of the retained data, in [0, 1]; published sweeps lie in 0.95 ... 0.9999.
      epochs: passes over the retained data, >= 0.

    Returns:
      A Method that needs forget, retain, labels and the key.

    Raises:
      ValueError: alpha outside [0, 1].

    | edge case  | result                                              |
    |------------|-----------------------------------------------------|
    | alpha = 1  | fine-tuning, same batches, same result               |
    | alpha = 0  | gradient ascent on the cycled forget batches         |
    | epochs = 0 | params bit-identical                                |

    Cost: `epochs` passes over the retained data and as many forget batches.

    Source: Kurmanji et al. (2023), arXiv:2302.09880.

    Example:
      >>> neggrad_plus(alpha=0.99, epochs=3).guarantee
      'empirical'
    """
    check_between("neggrad_plus", "alpha", alpha, at_least=0, at_most=1)
    return descent(
        partial(objectives.neggrad_plus, alpha=alpha),
        sgd(0.01) if tx is None else tx,
        epochs=epochs,
        on=("retain", "forget"),
        name="neggrad_plus",
    )
