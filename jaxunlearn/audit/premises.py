"""Is there anything to measure, and did the model survive? What is asked besides the test.

Each question is answered by a reason in words, or by None when all is well. "At chance" is decided
on the originals: the mean accuracy, less two standard errors over models, is not clearly above it,

    mean - 2 sd / sqrt(n)  <=  chance + 0.05 (1 - chance),

and "collapsed" on the method's models: mean test accuracy < (chance + that of the oracles) / 2.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .energy import smallest_p_value
from .groups import Models, broken_models

CHANCE_MARGIN = 0.05  # less than this share of the way from chance to perfect is "at chance"


def as_accuracies(
    by_part: Mapping[str, ArrayLike | None] | None, chance: float | None, size: int, who: str
) -> dict[str, np.ndarray]:
    """Accuracies of every model per part, (M,) float64 each; parts given as None are dropped."""
    given = {part: values for part, values in (by_part or {}).items() if values is not None}
    if given and (chance is None or not 0 <= chance < 1):
        raise ValueError(f"{who}: accuracies need a chance level in [0, 1), got {chance}.")
    for part, values in given.items():
        if np.shape(values) != (size,):
            raise ValueError(
                f"{who}: accuracies[{part!r}] has shape {np.shape(values)}, expected one value "
                f"for each of the {size} models."
            )
    return {part: np.asarray(values, dtype=np.float64) for part, values in given.items()}


def too_few(models: Models, level: float) -> str | None:
    """Why the groups are too small for the test to reject at all, or for a floor."""
    oracles, originals = models.oracle.size, models.original.size
    if oracles == 0:
        return "there is no oracle to compare with"
    if originals < 2 or oracles < 2:
        return f"{originals} original(s) and {oracles} oracle(s); needs at least two of each"
    for size, name in ((models.method.size, "judged model(s)"), (originals, "originals")):
        least = smallest_p_value(size, oracles)
        if least > level:
            return (
                f"{size} {name} against {oracles} oracles cannot give a p-value below {least:.2g}; "
                "train more"
            )
    if not models.recipes and oracles < 4:
        return f"{oracles} oracles without alternative recipes give no floor; needs at least 4"
    if any(recipe.size < 2 for recipe in models.recipes):
        return "an alternative recipe has fewer than two models"
    return None


def broken_reference(present: Mapping[str, np.ndarray], models: Models) -> str | None:
    """Which models that the method is compared with are not finite."""
    references = [("original", models.original), ("oracle", models.oracle)]
    references += [("alternative recipe", recipe) for recipe in models.recipes]
    for name, group in references:
        if broken_models(present, group).any():
            return f"outputs of the {name} models are not finite"
    return None


def at_chance(
    accuracies: Mapping[str, np.ndarray], models: Models, chance: float | None
) -> str | None:
    """Whether the originals are at chance on test data, or never learnt the forget data."""
    for part, what in (
        ("test", "the original is at chance on test data"),
        ("forget", "the forget data was never learnt, the original is at chance on it"),
    ):
        if part not in accuracies or chance is None:
            continue
        values = accuracies[part][models.original]
        lower = values.mean() - 2 * values.std(ddof=1) / np.sqrt(values.size)
        if not lower > chance + CHANCE_MARGIN * (1 - chance):
            return f"{what} (accuracy {values.mean():.2f}, chance {chance:.2f})"
    return None


def sunk(accuracies: Mapping[str, np.ndarray], models: Models, chance: float | None) -> str | None:
    """Whether test accuracy fell below half-way from chance to the oracles."""
    if "test" not in accuracies or chance is None:
        return None
    ours = accuracies["test"][models.method].mean()
    theirs = accuracies["test"][models.oracle].mean()
    middle = (chance + theirs) / 2
    if ours >= middle:
        return None
    return (
        f"test accuracy {ours:.2f} is below {middle:.2f}, half-way from chance ({chance:.2f}) to "
        f"retraining ({theirs:.2f})"
    )
