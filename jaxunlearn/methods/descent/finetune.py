"""Fine-tuning on what is retained: forgetting by not rehearsing.

    min_theta  mean_{i in R} l_i(theta)

The oldest baseline; its only mechanism is catastrophic forgetting, so it is weak where the model
has room for both. Constants (SGD 0.9, weight decay 5e-4, learning rate 0.01, 10 epochs) as in the
scripts of Jia et al. (2023), "Model Sparsity Can Simplify Machine Unlearning", arXiv:2304.04934. No
departure.
"""

from functools import partial

import optax

from jaxunlearn import objectives
from jaxunlearn.method import Method
from jaxunlearn.methods.descent.descent import descent, sgd


def finetune(tx: optax.GradientTransformation | None = None, *, epochs: int = 10) -> Method:
    """min_theta mean_{i in R} l_i(theta), from theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 0.01, momentum 0.9, weight decay
        5e-4.
      epochs: passes over the retained data, >= 0.

    Returns:
      A Method that needs retain, labels and the key. It never reads the forget set.

    Edge cases: epochs = 0 gives params bit-identical. Cost: `epochs` passes over the retained data.

    Source: Jia et al. (2023), arXiv:2304.04934, baseline "FT".

    Example:
      >>> sorted(finetune(optax.adamw(1e-4), epochs=1).needs)
      ['key', 'labels', 'retain']
    """
    objective = partial(objectives.mean_loss, on="retain")
    return descent(
        objective, sgd(0.01) if tx is None else tx, epochs=epochs, on=("retain",), name="finetune"
    )
