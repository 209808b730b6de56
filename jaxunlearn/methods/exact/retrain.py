"""Retraining from scratch on what is retained: the reference that every other method imitates.

    theta' = train(model.init(key_0), R; key_1),    (key_0, key_1) = split(key)

All parameters are re-initialised, running statistics included. Published "retrain" baselines that
reset only the last layer, or that train with another recipe, are not retraining. Bourtoule et al.
(2021), "Machine Unlearning", arXiv:1912.03817, names it the naive exact solution. No departure.
"""

import optax

from jaxunlearn.method import EXACT_BITWISE, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.training import train
from jaxunlearn.typing import Key, Params


def retrain(tx: optax.GradientTransformation, *, epochs: int) -> Method:
    """theta' = train(R) from fresh parameters: the bits that never having seen F gives.

    Args:
      tx: the optax transformation of the original training.
      epochs: its number of epochs. The same number of EPOCHS, so fewer steps than the original run.

    Returns:
      A Method that needs retain, labels, the key and the model's init and train functions;
      guarantee "exact-bitwise": the same bits as `jaxunlearn.train(model, tx, retain, key=key,
      epochs=epochs)`.

    Raises:
      ValueError: epochs < 0.

    | edge case           | result                                         |
    |---------------------|------------------------------------------------|
    | an empty forget set | params unchanged: there is nothing to forget   |
    | epochs = 0          | fresh params                                   |

    Cost: one full training on the retained data.

    Source: Bourtoule et al. (2021), arXiv:1912.03817.

    Example:
      >>> retrain(optax.adam(1e-3), epochs=2).guarantee
      'exact-bitwise'
    """
    if epochs < 0:
        raise ValueError(f"retrain: epochs must be >= 0, got {epochs}.")

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del params
        assert request.retain is not None
        out = train(model, tx, request.retain, key=key, epochs=epochs)
        return Unlearned(model, out.params, out.info)

    return method(
        unlearn,
        needs={"retain", "labels", "key", "init", "train"},
        name="retrain",
        guarantee=EXACT_BITWISE,
        whole=True,
    )
