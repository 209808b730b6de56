"""All audits at once: one exact test over everything that was measured.

Every audit gives each model a place: a vector of numbers (a relearning curve, an accuracy of a
probe) or a point known by its distances to the others (outputs, features). Vectors become distances

    D_ij = | (v_i - v_j) / s |_2,      s = deviation of each entry over all models

so that an audit is a matrix of distances between models, whatever it measures. A method's models
and the oracles (true retrainings) are then compared as the verdict of a comparison does it
(`energy`): relabel the pooled models B times, standardise every audit's energy over the
relabellings, take the largest.

    z_a(b) = (E_a(b) - mean_b E_a) / sd_b E_a          audit a, relabelling b
    p      = share of b with max_a z_a(b) >= max_a z_a(observed)
    p_a    = share of b with max_a' z_a'(b) >= z_a(observed)        (Westfall and Young)

p is a level for the whole suite: twelve audits raise no more false alarms than one. p_a <= level
names the audits behind a rejection; the smallest of them is p itself, and no false name is given
with more than that probability, however the audits depend on each other. Both are exact in finite
samples, because under "the method is retraining" all the models are exchangeable.

Sources: the energy test, see `energy`; single-step adjustment, P. H. Westfall, S. S. Young (1993),
"Resampling-Based Multiple Testing". The combination over audits is this project's own.

| input                                       | result                                            |
|---------------------------------------------|---------------------------------------------------|
| a model whose number is undefined (NaN)     | an entry of its own says so: undefined models are |
|                                             | alike, and differ from all others                 |
| an audit on which all models are equal      | decides nothing: its z is 0                       |
| too few models to reject at the level       | TooFew, with the number that would do             |
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .displacement import Displacement, displacement
from .energy import (
    relabelled_energies,
    relabellings,
    smallest_p_value,
    standardise,
    tail_share,
)
from .errors import TooFew
from .groups import as_stack
from .intervals import Seed


class Finding(NamedTuple):
    """What one audit says of a method."""

    p_value: float  # adjusted for all the audits, in (0, 1]
    energy: float  # between the method's models and the oracles
    resolution: float  # 95 % quantile of the energy over relabellings: what sampling alone gives
    moved: Displacement | None  # along the line oracle (0) to original (1); None: no such line

    @property
    def direction(self) -> str | None:
        """ "towards the original", "away from it", "aside"; None where there is no line."""
        if self.moved is None:
            return None
        along = self.moved.along
        return (
            "towards the original" if along.low > 0 else "away from it" if along.high < 0
            else "aside"
        )  # fmt: skip


class Evidence(NamedTuple):
    """What all audits together say of a method."""

    p_value: float  # of the suite, in (0, 1]: the smallest of the adjusted ones
    largest: str  # the audit that stands out most
    findings: Mapping[str, Finding]  # in the order of the audits

    def flagged(self, level: float = 0.05) -> tuple[str, ...]:
        """The audits with an adjusted p-value of at most `level`."""
        return tuple(a for a, found in self.findings.items() if found.p_value <= level)


def vector_distances(values: ArrayLike) -> np.ndarray:
    """Distances between models from a vector of numbers for each.

        D_ij = | (v_i - v_j) / s |_2 / sqrt(k),    s_l = deviation of entry l over the models

    Args:
        values: (M,) or (M, k, ...) numbers; trailing axes are flattened. NaN and infinities are
            "undefined"; an entry that is so for some models gets a companion that says for whom.

    Returns:
        (M, M) float64, symmetric, diagonal 0, finite.

    Raises:
        ValueError: no model, or no number.

    | entry                         | contributes                         |
    |-------------------------------|-------------------------------------|
    | equal for all models          | nothing                             |
    | undefined for all models      | nothing                             |
    | undefined for some            | its mean, and 0/1 for being defined |

    Example:
        >>> vector_distances([0.0, 1.0, 2.0]).round(2)[0]
        array([0.  , 1.22, 2.45])
    """
    v = np.asarray(values, np.float64)
    if v.ndim == 0 or v.size == 0:
        raise ValueError(
            f"vector_distances: expected (models, numbers) with at least one of each, got {v.shape}"
        )
    v = v.reshape(len(v), -1)
    known = np.isfinite(v)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, v, 0.0).sum(axis=0) / count
    v = np.where(known, v, mean)
    v = np.concatenate([v, known.astype(np.float64)], axis=1)
    v = v - v.mean(axis=0)
    size = np.abs(v).max(axis=0)
    spread = v.std(axis=0)
    flat = spread <= 1e-12 * np.maximum(size, np.finfo(np.float64).tiny)
    scaled = np.where(flat, 0.0, v / np.where(flat, 1.0, spread))
    scaled = scaled[:, ~flat] / np.sqrt(max(1, int((~flat).sum())))
    squares = (scaled**2).sum(axis=1)
    squared = squares[:, None] + squares - 2 * scaled @ scaled.T
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0))


def evidence(
    distances: Mapping[str, ArrayLike],
    method: ArrayLike,
    oracle: ArrayLike,
    original: ArrayLike,
    *,
    paired: bool = False,
    level: float = 0.05,
    permutations: int = 1999,
    resamples: int = 1000,
    seed: Seed,
) -> Evidence:
    """The exact test of the module, and what each audit contributes.

    Args:
        distances: {audit: (M, M) distances between all models}; finite for the groups.
        method, oracle, original: model numbers; the method may be the very list of the originals.
        paired: method[i] was made from original[i] (for the intervals of the displacement).
        level: that the groups must be able to reject at.
        permutations: B.
        resamples: bootstrap resamples of the displacements.
        seed: of everything random; one integer or several.

    Returns:
        `Evidence`.

    Raises:
        TooFew: groups with which no relabelling gives p <= level.
        ValueError: no audit, non-finite distances, overlapping groups.

    Cost: one (B+1, N) x (N, N) product per audit, N = |method| + |oracle|.

    Example:
        >>> x = np.concatenate([np.zeros(6), np.ones(8), np.zeros(4)]) + 0.01 * np.arange(18)
        >>> found = evidence({"probe": abs(x[:, None] - x)}, range(6), range(6, 14), range(14, 18),
        ...                  seed=0)
        >>> found.flagged(), found.findings["probe"].direction
        (('probe',), 'towards the original')
    """
    stack, (a, b) = as_stack(distances, "evidence", method=method, oracle=oracle)
    least = smallest_p_value(a.size, b.size)
    if least > level:
        raise TooFew(
            f"evidence: {a.size} models against {b.size} oracles cannot give a p-value below "
            f"{least:.2g}, so nothing could be flagged at level {level:g}. Train more seeds."
        )
    seeds = [seed] if isinstance(seed, int) else seed
    if isinstance(seeds, np.random.Generator):
        raise ValueError("evidence: seed must be integers, since each part draws its own.")
    rng = np.random.default_rng([*seeds, 0])
    labels = relabellings(rng, a.size, b.size, permutations)
    energies = relabelled_energies(stack, labels)
    z = standardise(energies, stack)
    largest = z.max(axis=0)
    adjusted = (largest >= z[:, :1] - 1e-9).mean(axis=1)
    findings = {
        name: Finding(
            float(adjusted[i]),
            float(energies[i, 0]),
            float(np.quantile(energies[i], 0.95)),
            displacement(
                D, method, oracle, original, paired=paired, resamples=resamples, seed=[*seeds, 1]
            ),
        )
        for i, (name, D) in enumerate(distances.items())
    }
    names = list(distances)
    return Evidence(float(tail_share(largest)), names[int(z[:, 0].argmax())], findings)
