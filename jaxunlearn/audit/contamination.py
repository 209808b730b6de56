"""What would a passing method have had to hide? The smallest contamination the test finds.

"Not rejected" means little without the power of the test. Hide k untouched originals among N
models that are otherwise like the oracles, and run the same permutation test with the same sizes at
the same level: the smallest k that is found in at least half of random replacements says what this
many models can show. Where it is k = 4 of N = 16, a method that leaves a quarter of its runs
unchanged would have been caught more often than not; one that leaves an eighth would not.

The N models like the oracles are taken from the pool of the method's models and the oracles, split
at random anew in each trial: under the verdict being qualified (not rejected) all of these are
exchangeable, and a random split does not inherit how lucky the observed one was.

Source: this project.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .energy import relabelled_energies, relabellings, standardise, tail_share
from .groups import as_stack
from .intervals import Seed


class Contamination(NamedTuple):
    """The smallest number of hidden originals that the test finds."""

    count: int  # k >= 1 originals ...
    size: int  # ... among N models
    power: float  # share of random replacements flagged at that k, at least the power asked for

    @property
    def fraction(self) -> float:
        """k / N, in (0, 1]."""
        return self.count / self.size


def detectable_contamination(
    matrices: Mapping[str, ArrayLike],
    method: ArrayLike,
    oracle: ArrayLike,
    original: ArrayLike,
    *,
    level: float = 0.05,
    power: float = 0.5,
    trials: int = 20,
    permutations: int = 199,
    seed: Seed,
) -> Contamination | None:
    """Smallest k such that k originals hidden among |method| oracle-like models are found.

    Args:
        matrices: {part: (M, M) distances}, as for `permutation_test`.
        method: indices of the N >= 2 models that passed (their number sets N).
        oracle: indices of the oracles, at least two.
        original: indices of the originals; k goes up to min(N, |original|).
        level: level of the test.
        power: share of the trials that must reject, in (0, 1].
        trials: random replacements tried for each k.
        permutations: relabellings in each trial (few do: only p <= level is asked).
        seed: seed (or a NumPy generator).

    Returns:
        `Contamination`, or None when not even the largest k is found.

    Raises:
        TooFew, ValueError: as `permutation_test`.

    Cost: k x trials permutation tests, batched into one product for each k.

    Example:
        >>> import numpy as np
        >>> x = np.concatenate([np.linspace(0, 1, 24), np.full(8, 5.0) + 0.1 * np.arange(8)])
        >>> found = detectable_contamination(
        ...     {"forget": abs(x[:, None] - x)}, range(8), range(8, 24), range(24, 32), seed=0)
        >>> found.size, found.count <= 4
        (8, True)
    """
    stack, (m, o, g) = as_stack(
        matrices, "detectable_contamination", method=method, oracle=oracle, original=original
    )
    rng = np.random.default_rng(seed)
    pool = np.concatenate([m, o])
    labels = relabellings(rng, m.size, o.size, permutations)
    for count in range(1, min(m.size, g.size) + 1):
        models = np.tile(pool, (trials, 1))
        models = rng.permuted(models, axis=1)
        hidden = rng.permuted(np.tile(g, (trials, 1)), axis=1)[:, :count]
        models[:, :count] = hidden
        D = stack[:, models[:, :, None], models[:, None, :]]
        energies = relabelled_energies(D, labels)
        z = standardise(energies, D).max(axis=0)
        found = float((tail_share(z) <= level).mean())
        if found >= power:
            return Contamination(count, m.size, found)
    return None
