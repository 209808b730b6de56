"""The population attack: how high does an example stand among examples nobody trained on?

    score(x) = Pr_z( signal(z) < signal(x) ) + 1/2 Pr_z( signal(z) = signal(x) ),  z ~ population

needs no other model: only held-out examples, for each model anew. The score is one minus a p-value
for "x is a non-member": calling x a member where score(x) >= 1 - alpha is a threshold for every
model whose false positive rate is alpha on the population. A point of the population itself scores
1/2 on average.

With labels, x is compared with the population of its own label alone. That is the cure for the
usual trap in class forgetting, where forgotten and held-out examples differ in their mix of classes
and the attack learns the class.

Source: J. Ye et al. (2022), "Enhanced Membership Inference Attacks against Machine Learning
Models", arXiv:2111.09679, attack P. Departures: 1. ties count one half; 2. thresholds by label.

| input                                       | result                              |
|---------------------------------------------|-------------------------------------|
| an empty population                         | TooFew                              |
| a label that the population does not have   | NaN for its targets                 |
| all signals equal                           | 1/2                                 |
| a model with a NaN signal                   | NaN for that model                  |
| any `chunk`                                 | the same bits                       |
"""

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew


def population_attack(
    signals: ArrayLike,
    population: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    population_labels: ArrayLike | None = None,
    chunk: int | None = None,
) -> np.ndarray:
    """Where the signal of every target stands among those of a population, for every model.

        Pr_z( signal(z) < signal(x) ) + 1/2 Pr_z( signal(z) = signal(x) )

    Args:
        signals: (M, n) of the targets, larger = more like a member (`attack_signal`).
        population: (M, z) of z >= 1 held-out examples, in the same models.
        labels, population_labels: (n,) and (z,) to compare within a label; both or none.
        chunk: targets handled at once; None: 65,536.

    Returns:
        (M, n) float64 in [0, 1], larger = more like a member.

    Raises:
        TooFew: an empty population. ValueError: shapes that do not fit, one of the labels missing.

    Cost: a sort of the population and a binary search for each target; memory of a block, no
    (n, z) table.

    Source: J. Ye et al. (2022), arXiv:2111.09679.

    Example:
        >>> population_attack([[0.0, 2.0, 9.0]], [[1.0, 2.0, 3.0, 4.0]])
        array([[0.   , 0.375, 1.   ]])
    """
    x, z = np.asarray(signals, np.float64), np.asarray(population, np.float64)
    if x.ndim != 2 or z.ndim != 2 or len(x) != len(z):
        raise ValueError(
            "population_attack: expected signals (models, n) and population (models, z) of the "
            f"same models, got {x.shape} and {z.shape}."
        )
    if z.shape[1] == 0:
        raise TooFew("population_attack: the population is empty: nothing to compare with.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"population_attack: expected chunk >= 1 targets, or None, got {chunk}.")
    own, theirs = _as_labels(labels, population_labels, x.shape[1], z.shape[1])
    size = chunk or 1 << 16
    score = np.full(x.shape, np.nan)
    for label in np.unique(theirs):
        among = np.sort(z[:, theirs == label], axis=1)
        targets = np.flatnonzero(own == label)
        for start in range(0, targets.size, size):
            part = targets[start : start + size]
            for model, ordered in enumerate(among):
                score[model, part] = _share_below(x[model, part], ordered)
    score[np.isnan(x).any(axis=1) | np.isnan(z).any(axis=1)] = np.nan
    return score


def _share_below(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """(c,) values among (z,) ascending numbers: the share below, ties one half."""
    below = np.searchsorted(ordered, values, side="left")
    up_to = np.searchsorted(ordered, values, side="right")
    return (below + up_to) / (2 * ordered.size)


def _as_labels(own, theirs, n: int, z: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of targets and population; all alike where there are none."""
    if own is None and theirs is None:
        return np.zeros(n, int), np.zeros(z, int)
    if own is None or theirs is None:
        raise ValueError("population_attack: give both labels and population_labels, or neither.")
    own, theirs = np.asarray(own), np.asarray(theirs)
    if own.shape != (n,) or theirs.shape != (z,):
        raise ValueError(
            f"population_attack: expected labels ({n},) and population_labels ({z},), got "
            f"{own.shape} and {theirs.shape}."
        )
    return own, theirs
