"""Did it come back? Relearning curves of a method's models against those of retrained ones.

With v_i (T,) the knowledge of model i along its relearning curve (more is known where it is
larger), m, o, g the means of the method's models, the oracles and the originals, and u the unit
vector from o to g,

    S = <m - o, u>,   u = (g - o) / |g - o|             how far the curves lie above the oracles'
    p = share of relabellings of (method, oracles) with S at least the observed one
    t = <m - o, g - o> / |g - o|^2                      effect: 0 = oracles, 1 = originals

Every number of S is computed anew for each relabelling, the direction with it, so the one-sided
test is exact in finite samples: a method whose models are exchangeable with retrained ones is said
to have "come back" with probability at most `level`. A unit vector is used because S is then never
larger than |m - o|, however far a relabelled o lies beyond g.

There must be something that could come back. Before the method is judged, the originals are tested
to know more than the oracles, by exact relabelling as well, with d = g - o and

    sum_k d_k |d_k|        positive where the large differences are; curves may cross later

Where they do not, the answer is "undefined", never "no".

Source: this project. The exact one-sided randomisation test is R. A. Fisher's; the effect and its
interval are those of `displacement`. What `evidence` does for all audits at once, without a
direction, is done here for one, with it.

| input                                          | result                                         |
|------------------------------------------------|------------------------------------------------|
| too few models to reject at the level          | undefined, with the reason                     |
| originals that know no more than the oracles   | undefined                                      |
| a model without a number before relearning     | undefined: it has collapsed                    |
| a run that diverged later                      | its last record stands for the rest, and       |
|                                                | `diverged` counts it (the same for all groups) |
| all curves equal                               | undefined: nothing could come back             |
| the method is the very array of the originals  | the test of the gap is the test; t = 1         |

NumPy float64 on the host.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .displacement import displacement
from .energy import relabellings, tail_share
from .errors import TooFew
from .intervals import Interval, Seed

CAME_BACK = "came back"
NO_MORE = "no more than in retrained models"
UNDEFINED = "undefined"


class CameBack(NamedTuple):
    """Result of `came_back`."""

    verdict: str  # CAME_BACK, NO_MORE or UNDEFINED
    words: str  # a sentence that opens with the verdict
    p_value: float | None  # one-sided, in (0, 1]; None where the question is undefined
    effect: Interval | None  # t along the curve: 0 = oracles, 1 = originals; with its interval
    before: Interval | None  # t before any relearning, from the first record alone
    diverged: tuple[int, int, int]  # runs of method, oracles, originals that ended early


def came_back(
    method: ArrayLike,
    oracle: ArrayLike,
    original: ArrayLike,
    *,
    paired: bool = False,
    level: float = 0.05,
    permutations: int = 1999,
    resamples: int = 1000,
    seed: Seed,
) -> CameBack:
    """Whether relearning brings more of the forgotten back than it teaches a retrained model.

        p = share of relabellings with <m - o, u> at least the observed one,  u = (g - o) / |g - o|

    Args:
        method: (N, T) knowledge of each of the method's models at each record, or (N,) a single
            number each. Larger = more is known: confidence, accuracy, or minus the loss.
        oracle: (K, T), of retrained models under the same data, optimiser and steps.
        original: (G, T), of the models before unlearning; may be the very array `method`.
        paired: method[i] was made from original[i] (for the interval of the effect).
        level: of the test, and 1 - coverage of the intervals.
        permutations: relabellings drawn; all of them where there are no more than that.
        resamples: of the bootstrap of the effect.
        seed: integers (or a generator, then consumed).

    Returns:
        `CameBack`.

    Raises:
        ValueError: curves of different lengths, or that are not (models, records); a level
            outside (0, 1). Too few models raise nothing: the verdict is "undefined".

    Cost: one product of (relabellings, N + K) with (N + K, T).

    Example:
        >>> knows = lambda start: start + np.linspace(0, 0.2, 3) + 0.01 * np.arange(6)[:, None]
        >>> found = came_back(knows(0.4), knows(0.1), knows(0.7), seed=0)
        >>> found.verdict, round(found.effect.value, 3)
        ('came back', 0.5)
    """
    if not 0 < level < 1:
        raise ValueError(f"came_back: level must lie strictly between 0 and 1, got {level}.")
    groups = [
        _as_curves(v, name)
        for v, name in ((method, "method"), (oracle, "oracle"), (original, "original"))
    ]
    lengths = [v.shape[1] for v in groups]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"came_back: curves of method, oracle and original must have the same records, got "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}. Relearn all of them alike."
        )
    lost = [int(np.isnan(v).any(axis=1).sum()) for v in groups]
    diverged = (lost[0], lost[1], lost[2])
    collapsed = [
        f"{int(np.isnan(v[:, 0]).sum())} of {len(v)} {name}"
        for v, name in zip(groups, ("method's models", "oracles", "originals"), strict=True)
        if np.isnan(v[:, 0]).any()
    ]

    def undefined(why: str) -> CameBack:
        return CameBack(UNDEFINED, f"{UNDEFINED}: {why}", None, None, None, diverged)

    if collapsed:
        return undefined(f"no finite number before relearning for {', '.join(collapsed)}")
    m, o, g = (_carried(v) for v in groups)
    rng = np.random.default_rng(seed)
    itself = m.shape == g.shape and np.array_equal(m, g)
    for a, name in ((m, "models of the method"), (g, "originals")):
        least = 1 / math.comb(len(a) + len(o), len(a))
        if least > level:
            return undefined(
                f"{len(a)} {name} against {len(o)} oracles cannot give a p-value below "
                f"{least:.2g}, so nothing could be shown at level {level:g}; train more seeds"
            )
    gap = _share_above(_signed_squares(g, o, _labellings(rng, len(g), len(o), permutations)))
    if gap > level:
        return undefined(
            f"the originals do not know more than retrained models (p = {gap:.2g}), so there is "
            "nothing that could come back"
        )
    p_value = gap
    if not itself:
        labels = _labellings(rng, len(m), len(o), permutations)
        p_value = _share_above(_projections(m, o, g, labels))
    ends = [len(o), len(o) + len(g)]

    def moved(records: slice) -> Interval | None:
        points = np.concatenate([o, g] if itself else [o, g, m])[:, records]
        at_o, at_g, at_m = np.split(np.arange(len(points)), ends)
        D = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
        try:
            found = displacement(
                D, at_g if itself else at_m, at_o, at_g,
                paired=paired, level=1 - level, resamples=resamples, seed=rng,
            )  # fmt: skip
        except TooFew:
            return None
        return None if found is None else found.along

    effect, before = moved(slice(None)), moved(slice(1))
    verdict = CAME_BACK if p_value <= level else NO_MORE
    words = f"{verdict}: {_how_far(effect, before, m.shape[1])}p = {p_value:.2g}"
    if any(diverged):
        words += (
            f"; {diverged[0]} runs of the method, {diverged[1]} of the oracles and {diverged[2]} "
            "of the originals diverged, their last record stands for the rest"
        )
    return CameBack(verdict, words, p_value, effect, before, diverged)


def _as_curves(values: ArrayLike, name: str) -> np.ndarray:
    """Check: (M, T) with T >= 1; (M,) is T = 1; infinities are no number."""
    v = np.asarray(values, np.float64)
    v = v[:, None] if v.ndim == 1 else v
    if v.ndim != 2 or v.shape[1] == 0:
        raise ValueError(
            f"came_back: {name} must hold curves, (models, records) with at least one record, or "
            f"one number per model, got shape {v.shape}."
        )
    return np.where(np.isfinite(v), v, np.nan)


def _carried(v: np.ndarray) -> np.ndarray:
    """Each NaN replaced by the last number before it; the first column has none."""
    places = np.where(np.isnan(v), 0, np.arange(v.shape[1]))
    return np.take_along_axis(v, np.maximum.accumulate(places, axis=1), axis=1)


def _labellings(rng: np.random.Generator, n: int, k: int, permutations: int) -> np.ndarray:
    """(B, n + k) float64, 1 = first group, row 0 observed: all labellings if they are few."""
    if math.comb(n + k, n) > permutations + 1:
        return relabellings(rng, n, k, permutations)
    chosen = np.array(list(itertools.combinations(range(n + k), n)))
    labels = np.zeros((len(chosen), n + k))
    np.put_along_axis(labels, chosen, 1.0, axis=1)
    return labels


def _means(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the two groups under each labelling: (B, T) twice."""
    pool = np.concatenate([a, b])
    return labels @ pool / len(a), (1 - labels) @ pool / len(b)


def _signed_squares(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """sum_k d_k |d_k| of the difference d of the group means, per labelling: (B,)."""
    first, second = _means(a, b, labels)
    return ((first - second) * np.abs(first - second)).sum(axis=1)


def _projections(m: np.ndarray, o: np.ndarray, g: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """S of each labelling, (B,); 0 where the direction has no length."""
    first, second = _means(m, o, labels)
    line = g.mean(axis=0) - second
    length = np.linalg.norm(line, axis=1)
    return ((first - second) * line).sum(axis=1) / np.where(length > 0, length, 1.0)


def _share_above(statistics: np.ndarray) -> float:
    """Share of the labellings at least as large as the observed one; 1 where all are equal."""
    scale = np.abs(statistics).max()
    return float(tail_share(statistics / scale)) if scale > 0 else 1.0


def _how_far(effect: Interval | None, before: Interval | None, records: int) -> str:
    if effect is None:
        return ""
    words = (
        f"{effect.value:.2g} [{effect.low:.2g}, {effect.high:.2g}] of the way from retrained "
        "models to the originals"
    )
    if records > 1 and before is not None:
        words += f" along the curve, {before.value:.2g} before relearning"
    return words + ", "
