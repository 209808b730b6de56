"""Forgetting quality: how large an epsilon do unlearned and retrained ensembles show, per example?

For a forget example s let phi_s be the margin log p_y / (1 - p_y) in M unlearned and in N retrained
models, and eps_s the epsilon of the best decision rule between the two (`forgetting_epsilons`):

    n(s) = clip(1 + floor(eps_s / 0.5), 1, 13)
    H(s) = 2 / 2^n(s)                                  1 in the best bin, 2^-12 in the last
    FQ = mean_s H(s)                                   1 = as good as retrained
    score = FQ (RA_u / RA_r) (TA_u / TA_r)             retain and test accuracies

**Read it with its null.** eps_s is the largest of thousands of estimates: for one and the same law
it is far from 0, intervals grow *worse* with more models, and no finite value exceeds about
log(N - 1) (`epsilon_ceiling`). As eps depends on ranks only, the null is the same for all
continuous laws (`forgetting_null`). For delta = 1e-3, equal laws:

    N = M                          8     16     32     64    128    512
    mean eps, intervals         1.54   1.82   2.03   2.17   2.31   2.49
    FQ,       intervals         0.18   0.12   0.09   0.07   0.06   0.05
    FQ,       thresholds        0.28   0.23   0.23   0.22   0.22   0.25
    FQ,       held out          0.84   0.87   0.88   0.88   0.89   0.91
    largest finite eps          1.94   2.71   3.43   4.14   4.84   6.24

With 64 models a shift by half a deviation moves FQ from 0.07 to 0.06 with intervals, from 0.23 to
0.12 with thresholds, and from 0.87 to 0.73 held out: the default is the published number, the
others are there to be believed. What is left of the bias held out comes from cutting eps at 0.

Source: E. Triantafillou et al. (2024), "Are we making progress in unlearning? Findings from the
first NeurIPS unlearning competition", arXiv:2406.09073. *Reconstruction*. Departures: 1. all
intervals between the margins, where the released scorer lays a grid of 0.01 over single thresholds
and over intervals about as wide as the narrower ensemble, and needs a shortcut for ensembles a
hundred times narrower than the other; 2. single thresholds in both directions, where it fixes the
direction by the medians; 3. the last of the 13 bins is open, where it gives nothing beyond the
bins; 4. delta = 1 / (number of forget examples), where it has 1e-5; 5. margins clipped at +-100.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .agreement import halves
from .decision_rules import as_delta, forgetting_epsilons
from .intervals import Seed
from .margin_pairs import ExampleSummary, as_margins, over_examples

BIN_WIDTH = 0.5
BINS = 13
RUNTIME_SHARE = 0.2  # of the time of retraining: slower entries were not scored


class ForgettingQuality(NamedTuple):
    """The estimate for one forget set."""

    quality: float  # FQ in (0, 1]
    epsilons: np.ndarray  # (n,) float64 in [0, EPSILON_CAP]
    points: np.ndarray  # (n,) float64, H(s) in {1, 1/2, ..., 2^-12}
    summary: ExampleSummary  # of the epsilons
    delta: float


class ChallengeScore(NamedTuple):
    """The final score of the competition, with what it is made of."""

    score: float  # FQ * retain_ratio * test_ratio, >= 0, may exceed 1
    retain_ratio: float  # RA_u / RA_r
    test_ratio: float  # TA_u / TA_r
    eligible: bool | None  # runtime at most a fifth of retraining; None: not said


def forgetting_points(epsilons: ArrayLike) -> np.ndarray:
    """H(s) = 2 / 2^n(s) with n(s) = clip(1 + floor(eps_s / 0.5), 1, 13).

    Args:
        epsilons: any shape, >= 0; +inf falls in the last bin.

    Example:
        >>> forgetting_points([0.0, 0.5, 1.7, 50.0])
        array([1.00000000e+00, 5.00000000e-01, 1.25000000e-01, 2.44140625e-04])
    """
    eps = np.asarray(epsilons, dtype=np.float64)
    if not np.all(eps >= 0):
        raise ValueError("forgetting_points: expected epsilons >= 0 without NaN.")
    return 2.0 ** (1 - np.clip(1 + np.floor(eps / BIN_WIDTH), 1, BINS))


def forgetting_quality(
    oracle_margins: ArrayLike,
    method_margins: ArrayLike,
    *,
    delta: float | None = None,
    rules: str = "intervals",
    held_out: bool = False,
    chunk: int | None = None,
) -> ForgettingQuality | None:
    """FQ of a forget set: the mean of the points of its examples.

    Args, Raises, Cost: as `forgetting_epsilons`.

    Returns:
        `ForgettingQuality`, or None for n = 0. A property of two ensembles: one model has none.
        Beside it belong `forgetting_null` (the sizes) and `forgetting_floor` (the oracles).

    Example:
        >>> import numpy as np
        >>> forgetting_quality(np.zeros((4, 2)), np.zeros((4, 2))).quality
        1.0
    """
    epsilons = forgetting_epsilons(
        oracle_margins, method_margins, delta=delta, rules=rules, held_out=held_out, chunk=chunk
    )
    summary = over_examples(epsilons)
    if epsilons is None or summary is None:
        return None
    points = forgetting_points(epsilons)
    used = as_delta(delta, epsilons.size, "forgetting_quality")
    return ForgettingQuality(float(points.mean()), epsilons, points, summary, used)


def forgetting_floor(
    oracle_margins: ArrayLike,
    *,
    delta: float | None = None,
    rules: str = "intervals",
    held_out: bool = False,
    chunk: int | None = None,
) -> ForgettingQuality | None:
    """FQ of one half of the oracles against the other: retrained against retrained.

    Args:
        oracle_margins: (N, n), N >= 4 (8 if held out); the first N // 2 stand in for the method.
        delta, rules, held_out, chunk: as `forgetting_epsilons`.

    Example:
        >>> import numpy as np
        >>> forgetting_floor(np.ones((4, 2))).quality
        1.0
    """
    least = 8 if held_out else 4
    oracles = as_margins(oracle_margins, "oracle_margins", "forgetting_floor", least=least)
    first, second = halves(oracles)
    return forgetting_quality(
        second, first, delta=delta, rules=rules, held_out=held_out, chunk=chunk
    )


def forgetting_null(
    num_oracles: int,
    num_methods: int,
    *,
    delta: float,
    examples: int = 300,
    seed: Seed,
    rules: str = "intervals",
    held_out: bool = False,
) -> ForgettingQuality:
    """What ensembles of these sizes score when both are drawn from one continuous law.

    Args:
        num_oracles, num_methods: models on each side.
        delta: that of the estimate: 1 / (number of its forget examples), unless it was given.
        examples: simulated examples, at least 1. They are independent, real ones are not: the
            means are right, the spread of FQ over repetitions is larger in reality.
        seed: seed (or a NumPy generator).
        rules, held_out: as `forgetting_epsilons`.

    Example:
        >>> forgetting_null(16, 16, delta=1e-3, seed=0).quality < 0.3
        True
    """
    if examples < 1:
        raise ValueError(f"forgetting_null: expected examples >= 1, got {examples}.")
    rng = np.random.default_rng(seed)
    oracle, method = rng.random((num_oracles, examples)), rng.random((num_methods, examples))
    found = forgetting_quality(oracle, method, delta=delta, rules=rules, held_out=held_out)
    assert found is not None
    return found


def challenge_score(
    quality: float,
    retain_accuracy: ArrayLike,
    oracle_retain_accuracy: ArrayLike,
    test_accuracy: ArrayLike,
    oracle_test_accuracy: ArrayLike,
    *,
    runtime_share: float | None = None,
) -> ChallengeScore | None:
    """The final score: FQ times the ratios of retain and test accuracy to retraining.

        score = FQ * (mean RA_u / mean RA_r) * (mean TA_u / mean TA_r)

    The ratios are not cut at 1: a method that beats retraining on the test data is paid for it.

    Args:
        quality: FQ in [0, 1].
        retain_accuracy, test_accuracy: (M,) of the unlearned models, in [0, 1].
        oracle_retain_accuracy, oracle_test_accuracy: (N,) of the retrained models.
        runtime_share: time of unlearning / time of retraining; entries above 0.2 were not scored.

    Returns:
        `ChallengeScore`; None where the retrained accuracy is 0 or no model has one (NaN are left
        out): the ratio is then undefined.

    Raises:
        ValueError: quality or accuracies outside [0, 1], a negative runtime.

    Example:
        >>> challenge_score(0.5, [0.9], [1.0], [0.8], [0.8], runtime_share=0.1).score
        0.45
    """
    named = {
        "quality": quality,
        "retain_accuracy": retain_accuracy,
        "oracle_retain_accuracy": oracle_retain_accuracy,
        "test_accuracy": test_accuracy,
        "oracle_test_accuracy": oracle_test_accuracy,
    }
    means = {}
    for name, given in named.items():
        values = np.asarray(given, dtype=np.float64)
        if np.any((values < 0) | (values > 1)):
            raise ValueError(f"challenge_score: expected {name} in [0, 1], got {given}.")
        values = values[np.isfinite(values)]
        means[name] = float(values.mean()) if values.size else math.nan
    if runtime_share is not None and not runtime_share >= 0:
        raise ValueError(f"challenge_score: expected runtime_share >= 0, got {runtime_share}.")
    ratios = []
    for part in ("retain", "test"):
        own, reference = means[f"{part}_accuracy"], means[f"oracle_{part}_accuracy"]
        if not reference > 0 or math.isnan(own):
            return None
        ratios.append(own / reference)
    retain_ratio, test_ratio = ratios
    eligible = None if runtime_share is None else runtime_share <= RUNTIME_SHARE
    score = means["quality"] * retain_ratio * test_ratio
    return ChallengeScore(score, retain_ratio, test_ratio, eligible)
