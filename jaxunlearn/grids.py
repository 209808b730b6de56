"""What a calibration tries: for each method the arguments that matter and a few values of each.

The values are rules in the terms of the `Recipe`, like the presets (eta is its learning rate, E its
epochs). They say where to look and nothing about what is found there; `jaxunlearn.calibration`
chooses among them on proxy requests. A method that is absent has nothing to choose.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxunlearn.presets import Recipe

Axes = Mapping[str, Sequence[Any]]


def _rates(recipe: Recipe, *multiples: float) -> list[float]:
    return [multiple * recipe.learning_rate for multiple in multiples]


def _epochs(recipe: Recipe, *shares: float) -> list[int]:
    """Distinct numbers of epochs, at least 1, from shares of the recipe's."""
    return sorted({max(1, round(share * recipe.epochs)) for share in shares})


GRIDS: dict[str, Callable[[Recipe], Axes]] = {
    "finetune": lambda r: {
        "learning_rate": _rates(r, 1, 2, 3, 5, 7, 10),
        "epochs": _epochs(r, 1 / 30, 0.1, 1 / 3),
    },
    "neggrad_plus": lambda r: {
        "learning_rate": _rates(r, 0.25, 0.5, 1, 2),
        "alpha": [0.9, 0.97, 0.99, 0.997, 0.999],
        "epochs": _epochs(r, 1 / 30, 0.1),
    },
    "random_labels": lambda r: {
        "learning_rate": _rates(r, 0.1, 0.25, 0.5, 1, 2),
        "epochs": _epochs(r, 1 / 30, 0.1),
    },
    "gradient_ascent": lambda r: {"learning_rate": _rates(r, 0.01, 0.03, 0.1, 0.3)},
    "jit_lipschitz": lambda r: {"learning_rate": _rates(r, 0.015, 0.05, 0.15, 0.5)},
    "info_theoretic": lambda r: {"learning_rate": _rates(r, 0.3, 1, 3, 10)},
    "ssd": lambda r: {"alpha": [1.0, 2.0, 5.0, 10.0, 30.0]},
    "lfssd": lambda r: {"alpha": [1.1, 1.3, 2.0, 3.0, 5.0]},
    "fisher_forgetting": lambda r: {"alpha": [1e-8, 1e-7, 1e-6, 1e-5]},
    "influence": lambda r: {"alpha": [1.0, 5.0, 20.0, 60.0]},
    "features_labels": lambda r: {"damping": [1.0, 3.0, 10.0, 30.0]},
    "win_u": lambda r: {"damping": [0.03, 0.1, 0.3, 1.0, 3.0]},
    "acu": lambda r: {"gamma": [0.01, 0.1, 1.0, 10.0]},
}
