"""Two numbers a person can remember: gap closed and collateral, with intervals over models.

    gap closed = 1 - energy(method, oracles) / energy(original, oracles)     on the forget part
    collateral = max over retain, adjacent, remote, test of energy(method, oracles) / floor

Gap closed is 1 for a method as near to the oracles as a retrained model, 0 for one as far as the
original, negative beyond. Collateral is in recipe floors (`floors`): below 1 is what an innocent
change of the recipe does. Intervals resample the models of every group at once: method, oracles,
originals and alternative recipes; the resolution inside the floor stays as it is.

A method of one model has no scatter of its own and borrows that of the oracles:
energy = 2 (mean d(x, Y) - mean d(Y, Y')).

Source: this project.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .energy import cross_mean, equal_weights, within_mean
from .floors import ROUNDING, Floor
from .groups import KEPT, Models
from .intervals import Interval, Seed, bootstrap_weights, percentile_interval


class Scores(NamedTuple):
    """Numbers of one method; None = undefined."""

    energies: dict[str, float]  # energy(method, oracles) per part, in the unit of the distance
    gap_closed: Interval | None  # None when energy(original, oracles) is not positive
    collateral: Interval | None  # None without any of them


class _Weights(NamedTuple):
    original: np.ndarray  # (B, n) each
    oracle: np.ndarray
    method: np.ndarray
    recipes: list[np.ndarray]


def scores(
    present: Mapping[str, np.ndarray],
    models: Models,
    floors: Mapping[str, Floor],
    *,
    paired: bool = False,
    resamples: int = 1000,
    seed: Seed,
) -> Scores:
    """Energies, gap closed and collateral of `models.method` (equations of the module).

    Args:
        present: {part: (M, M) float64 distances}, "forget" among them, all of the models finite.
        models: the checked groups.
        floors: `recipe_floor` of these parts.
        paired: method[i] was made from original[i]: the two are then resampled together.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        `Scores`.

    Cost: resamples x (models of two groups)^2 multiplications per part and group.
    """
    rng = np.random.default_rng(seed)
    together = models.untouched or (paired and models.method.size == models.original.size)
    original = bootstrap_weights(rng, models.original.size, resamples)
    drawn = _Weights(
        original,
        bootstrap_weights(rng, models.oracle.size, resamples),
        original if together else bootstrap_weights(rng, models.method.size, resamples),
        [bootstrap_weights(rng, recipe.size, resamples) for recipe in models.recipes],
    )
    whole = _Weights(
        equal_weights(models.original),
        equal_weights(models.oracle),
        equal_weights(models.method),
        [equal_weights(recipe) for recipe in models.recipes],
    )
    kept = [part for part in present if part in KEPT]

    def distance(part: str, w: _Weights) -> np.ndarray:
        return group_energy(present[part], models.method, models.oracle, w.method, w.oracle)

    def gap(w: _Weights) -> np.ndarray:
        D = present["forget"]
        start = group_energy(D, models.original, models.oracle, w.original, w.oracle)
        return 1 - distance("forget", w) / np.where(start > 0, start, np.nan)

    def floor(part: str, w: _Weights) -> np.ndarray:
        found = [
            group_energy(present[part], recipe, models.oracle, w_r, w.oracle)
            for recipe, w_r in zip(models.recipes, w.recipes, strict=True)
        ]
        least = max(floors[part].resolution, ROUNDING)
        return np.fmax.reduce([*found, np.full(len(w.oracle), least)])

    def collateral(w: _Weights) -> np.ndarray:
        return np.max([distance(part, w) / floor(part, w) for part in kept], axis=0)

    def interval(statistic: Callable[[_Weights], np.ndarray]) -> Interval | None:
        value = float(statistic(whole)[0])
        if np.isnan(value):
            return None
        return percentile_interval(value, statistic(drawn), count=models.method.size)

    return Scores(
        {part: float(distance(part, whole)[0]) for part in present},
        interval(gap),
        interval(collateral) if kept else None,
    )


def group_energy(
    D: np.ndarray, group: np.ndarray, oracle: np.ndarray, w: np.ndarray, w_oracle: np.ndarray
) -> np.ndarray:
    """`weighted_energy` to the oracles, also of a single model. (B,)."""
    scatter = within_mean(D, oracle, w_oracle)
    own = within_mean(D, group, w) if group.size > 1 else scatter
    return 2 * cross_mean(D, group, oracle, w, w_oracle) - own - scatter
