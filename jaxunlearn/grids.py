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


def _plain(recipe: Recipe, *multiples: float) -> list[float]:
    """Rates of plain SGD, whatever trained the network."""
    share = 25 if recipe.optimizer == "sgd" else 1
    return [rate / share for rate in _rates(recipe, *multiples)]


def _epochs(recipe: Recipe, *shares: float) -> list[int]:
    """Distinct numbers of epochs, at least 1, from shares of the recipe's."""
    return sorted({max(1, round(share * recipe.epochs)) for share in shares})


_STEPS = 1 / 30, 1 / 15, 1 / 10  # of the recipe's epochs: within a tenth of retraining

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
    "shrink_perturb": lambda r: {
        "learning_rate": _rates(r, 3, 4, 5),
        "shrink": [0.7, 0.8, 0.9, 0.95, 1.0],
        "alpha": [0.96, 0.97, 0.98, 0.999, 1.0],
        "forget_batch": [max(1, r.batch_size // 4)],
        "schedule": ["cosine"],
        "epochs": _epochs(r, *_STEPS),
    },
    "pseudo_label": lambda r: {
        "learning_rate": _rates(r, 0.25, 0.5, 1, 2, 5),
        "target": ["hard", "soft"],
        "rehearse": ["labels"],
        "epochs": _epochs(r, 1 / 30, 0.1),
    },
    "scrub": lambda r: {
        "learning_rate": _rates(r, 0.125, 0.25, 0.5, 1, 2),
        "alpha": [0.001, 0.1, 0.5],
        "msteps": [1, 2],
    },
    "bad_teacher": lambda r: {
        "learning_rate": _rates(r, 0.05, 0.1, 0.25, 0.5, 1),
        "epochs": _epochs(r, 0.1, 1 / 3),
    },
    "amnesiac": lambda r: {
        "learning_rate": _rates(r, 0.05, 0.1, 0.25, 0.5, 1),
        "epochs": _epochs(r, 1 / 30, 0.1),
    },
    "tmu": lambda r: {"learning_rate": _rates(r, 0.25, 1, 2, 4)},
    "cf_k": lambda r: {
        "k": [1, 2, 3],
        "learning_rate": _rates(r, 1, 2, 5, 10),
        "epochs": _epochs(r, 0.1),
    },
    "eu_k": lambda r: {
        "k": [1, 2, 3],
        "learning_rate": _rates(r, 1, 2, 5),
        "epochs": _epochs(r, 0.1),
    },
    "blind_model": lambda r: {
        "learning_rate": _rates(r, 1, 2, 5),
        "epochs": _epochs(r, 0.1),
    },
    "blindspot": lambda r: {
        "learning_rate": _rates(r, 0.5, 1, 2, 5),
        "blind_learning_rate": _plain(r, 1, 2, 5),
    },
    "entanglement": lambda r: {
        "learning_rate": _rates(r, 1 / 16, 1 / 10, 1 / 8, 1 / 6, 1 / 4),
        "recovery_rate": _plain(r, 1, 2, 4),
        "recovery_epochs": _epochs(r, 1 / 30, 1 / 15),
    },
    "l1_sparse": lambda r: {
        "learning_rate": _rates(r, 1, 2.5, 5, 10),
        "alpha": [5e-5, 5e-4, 2e-3],
        "epochs": _epochs(r, 0.1),
    },
    "hamu": lambda r: {
        "learning_rate": _plain(r, 0.5, 1, 3, 10, 30),
        "radius": _plain(r, 2.5, 5, 10, 25),
        "epochs": _epochs(r, 0.1),
    },
    "salun": lambda r: {
        "learning_rate": _rates(r, 0.125, 0.25, 0.5, 1, 2),
        "fraction": [0.1, 0.5],
        "epochs": _epochs(r, 1 / 30, 0.1),
    },
    "mox": lambda r: {
        "learning_rate": _rates(r, 1 / 32, 1 / 16, 1 / 8, 1 / 4),
        "alpha": [1.0, 2.0, 4.0, 8.0],
    },
    "forsaken": lambda r: {
        "learning_rate": _plain(r, 2.5, 8, 25, 75),
        "share": [0.05, 0.2, 1.0],
    },
    "unsir": lambda r: {
        "learning_rate": _rates(r, 1, 2.5, 5, 10),
        "copies": [5, 20],
    },
    "boundary_shrink": lambda r: {
        "learning_rate": _rates(r, 0.02, 0.05, 0.1, 0.3),
        "size": [0.05, 0.1, 0.3],
        "epochs": _epochs(r, 1 / 3),
    },
    "boundary_expand": lambda r: {
        "learning_rate": _rates(r, 0.05, 0.1, 0.3, 1),
        "epochs": _epochs(r, 1 / 3),
    },
    "pgu": lambda r: {
        "learning_rate": _rates(r, 0.5, 1, 2, 4),
        "rho": [0.2, 0.5, 0.9],
        "offset": [0.05, 0.2, 1.0],
    },
    "gradient_ascent": lambda r: {"learning_rate": _rates(r, 0.01, 0.03, 0.1, 0.3)},
    "jit_lipschitz": lambda r: {"learning_rate": _plain(r, 0.015, 0.05, 0.15, 0.5)},
    "info_theoretic": lambda r: {"learning_rate": _plain(r, 0.3, 1, 3, 10)},
    "ssd": lambda r: {"alpha": [1.0, 2.0, 5.0, 10.0, 30.0]},
    "lfssd": lambda r: {"alpha": [1.1, 1.3, 2.0, 3.0, 5.0]},
    "fisher_forgetting": lambda r: {"alpha": [1e-8, 1e-7, 1e-6, 1e-5]},
    "influence": lambda r: {"alpha": [1.0, 5.0, 20.0, 60.0]},
    "features_labels": lambda r: {"damping": [1.0, 3.0, 10.0, 30.0]},
    "win_u": lambda r: {"damping": [0.03, 0.1, 0.3, 1.0, 3.0]},
    "acu": lambda r: {"gamma": [0.01, 0.1, 1.0, 10.0]},
}
