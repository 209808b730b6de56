"""The recipe floor: a distance that nobody would call damage.

Train the oracles again by a recipe that nobody would call different (another batch size, a quarter
more epochs). On each part,

    floor = max( max_recipes energy(recipe, oracles),   resolution )

where the resolution is the 95 % quantile of the same energy under relabelling: what groups of these
sizes give by sampling alone. It keeps the floor finite and positive when the recipes happen to
agree (a U-statistic may then be negative). Without alternative recipes the floor is the resolution
between two halves of the oracles.

Source: this project.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .energy import permutation_test
from .errors import TooFew
from .intervals import Seed

ROUNDING = 1e-8  # distances below this are rounding of the squares that they are roots of


class Floor(NamedTuple):
    """The recipe floor of one part, in the unit of the distance."""

    value: float  # max(recipe, resolution, ROUNDING): finite and > 0
    recipe: float | None  # largest energy(alternative recipe, oracles); None without recipes
    resolution: float  # 95 % quantile of that energy over relabellings


def recipe_floor(
    matrices: Mapping[str, ArrayLike],
    oracle: ArrayLike,
    recipes: Sequence[ArrayLike] = (),
    *,
    permutations: int = 999,
    seed: Seed,
) -> dict[str, Floor]:
    """Floor of every part: the unit in which collateral damage is counted.

    Args:
        matrices: {part: (M, M) distances}.
        oracle: indices of the oracles, at least two (four without recipes).
        recipes: index groups, each of at least two oracles trained by one alternative recipe.
        permutations: relabellings behind the resolution.
        seed: seed (or a NumPy generator).

    Returns:
        {part: `Floor`}, the parts of `matrices` in order.

    Raises:
        TooFew, ValueError: as `permutation_test`.

    | case                              | floor                                      |
    |-----------------------------------|--------------------------------------------|
    | recipes nearer than sampling      | the resolution                             |
    | no recipes                        | the resolution between halves of oracles   |
    | all models equal on a part        | ROUNDING, 1e-8                             |

    Cost: one permutation test per recipe.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=24)
        >>> floors = recipe_floor({"test": abs(x[:, None] - x)}, range(12), [range(12, 24)], seed=0)
        >>> floors["test"].value >= floors["test"].resolution > 0
        True
    """
    rng = np.random.default_rng(seed)
    if recipes:
        pairs = [(recipe, oracle) for recipe in recipes]
    else:
        models = np.asarray(list(oracle) if isinstance(oracle, range) else oracle)
        if models.size < 4:
            raise TooFew(
                f"recipe_floor: without recipes the oracles are split in two: needs at least 4, "
                f"got {models.size}."
            )
        pairs = [(models[: models.size // 2], models[models.size // 2 :])]
    tests = [
        permutation_test(matrices, a, b, permutations=permutations, seed=rng) for a, b in pairs
    ]
    floors = {}
    for part in matrices:
        resolution = max(test.null_quantiles[part] for test in tests)
        recipe = max(test.energies[part] for test in tests) if recipes else None
        value = max(resolution, ROUNDING, *([] if recipe is None else [recipe]))
        floors[part] = Floor(value, recipe, resolution)
    return floors
