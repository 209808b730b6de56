"""How much privacy is provably missing: a lower bound on epsilon from runs in two worlds.

Unlearning (or training) is (epsilon, delta)-indistinguishable when for every event A

    Pr_in(A) <= e^epsilon Pr_out(A) + delta    and    Pr_out(A) <= e^epsilon Pr_in(A) + delta

"In": models that were trained on an example and then unlearned it (or were trained on it); "out":
models that never saw it. One number per model, larger = more like "in", and the event
"score >= t", called a member, has FPR = Pr_out and FNR = 1 - Pr_in, so that

    epsilon >= max( log((1 - delta - FPR) / FNR),  log((1 - delta - FNR) / FPR) )

The rates are not known, only counted. With upper bounds on both that hold together with confidence
1 - a (a / 2 each), the formula is a lower bound on epsilon with that confidence. It speaks of the
models and the score that it was shown: 0 proves nothing, more than 0 disproves a claim.

The threshold must not be chosen on the data that the bound is counted on without paying:

| how          | threshold                             | bound on a rate                       |
|--------------|---------------------------------------|---------------------------------------|
| "given"      | told in advance                       | Clopper-Pearson at a / 2              |
| "split"      | the best on a random half of the runs | the same, counted on the other half   |
| "exact"      | the best of all                       | the same at a level that holds for    |
|              |                                       | all thresholds at once (`binomial`)   |
| "bonferroni" | the best of all                       | Clopper-Pearson at a / (2 n)          |
| "dkw"        | the best of all                       | k / n + sqrt(log(2 / a) / (2 n))      |

`direction="either"` also asks whether *smaller* scores tell members; except for "split", which
chooses the direction on its own half too, that halves a once more.

Sources: membership region, P. Kairouz, S. Oh, P. Viswanath (2015), arXiv:1311.0776; counted with
Clopper-Pearson, M. Jagielski, J. Ullman, A. Oprea (2020), arXiv:2006.07709, and M. Nasr et al.
(2021), arXiv:2101.04535; for unlearning, E. Triantafillou et al. (2024), arXiv:2406.09073.
Departures: 1. all thresholds are paid for by events that do not depend on the data (`binomial`),
not by the number of thresholds that looked promising; 2. infinite estimates do not occur: n runs
that separate the worlds perfectly show `largest_epsilon`, no more.

| input                               | result                                          |
|-------------------------------------|-------------------------------------------------|
| nothing can be said                 | epsilon 0                                       |
| all scores equal                    | epsilon 0                                       |
| worlds of different sizes           | fine                                            |
| worlds swapped                      | "either": the same epsilon; "larger": 0         |
| no run in a world; "split" with < 2 | TooFew                                          |
| scores of +-Inf                     | ordered as they are                             |
| NaN                                 | ValueError: leave non-finite models out         |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .binomial import BANDS, check_confidence
from .cuts import best_cut, better_of, rate_tables, region, value_at
from .errors import TooFew

STRATEGIES = ("given", "split", *BANDS)
DIRECTIONS = ("either", "larger")
_HUGE = 1e300  # stands for infinity, so that midpoints exist


class EpsilonBound(NamedTuple):
    """Lower bounds on epsilon, one per statistic, and how they came about."""

    epsilon: np.ndarray  # (...) float64 in [0, largest]
    threshold: np.ndarray  # (...) float64; NaN where epsilon is 0
    larger: np.ndarray  # (...) bool: members are called at score >= threshold, else at <= threshold
    largest: float  # what so many runs can show at most
    runs: tuple[int, int]  # members, non-members
    delta: float
    confidence: float
    how: str

    @property
    def words(self) -> str:
        """One sentence on the largest of the statistics."""
        top = float(np.max(self.epsilon, initial=0.0))
        found = f"epsilon is at least {top:.2g}" if top > 0 else "nothing can be said of epsilon"
        return (
            f"{found} (delta {self.delta:g}, {100 * self.confidence:g} % confidence, {self.how}); "
            f"with {self.runs[0]} and {self.runs[1]} runs no more than {self.largest:.2g} can be "
            "shown"
        )


def epsilon_bound(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    how: str = "exact",
    direction: str = "either",
    threshold: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
) -> EpsilonBound:
    """A lower bound on epsilon from one score per model in two worlds.

        Pr( bound <= epsilon ) >= confidence    if the runs are independent within each world

    Args:
        members: (N,) or (N, ...) scores of N >= 1 models of the "in" world, one column per
            statistic (an example's log likelihood ratio, their sum over the forget set ...).
        nonmembers: (K,) or (K, ...) scores of K >= 1 models of the "out" world (the oracles).
        delta: in [0, 1); 1 / |forget set| is usual.
        confidence: 1 - a, in (0, 1), of each statistic by itself. To report the largest of k
            statistics, ask for 1 - a / k.
        how: "exact", "bonferroni", "dkw", "split" or "given" (see the module).
        direction: "either", or "larger" where members are known to score larger.
        threshold: (...) for "given" only: chosen without looking at these scores.
        rng: for "split" only: draws the halves.

    Returns:
        `EpsilonBound` with arrays of the trailing shape (...).

    Raises:
        TooFew: a world without a run, or with fewer than 2 to split.
        ValueError: unknown options, delta or confidence out of range, NaN, different statistics.

    Cost: a sort of N + K numbers per statistic; "exact" bounds once per (N, K, confidence).

    Source: arXiv:2006.07709, arXiv:2101.04535.

    Example:
        >>> found = epsilon_bound(np.arange(16.0) + 20, np.arange(16.0), delta=0.01)
        >>> print(found.words)
        epsilon is at least 0.64 (delta 0.01, 95 % confidence, exact); with 16 and 16 runs no more
        than 0.64 can be shown
    """
    _check(delta, confidence, how, direction, "epsilon_bound")
    _check_extras(how, threshold, rng)
    a, b = _as_scores(members, "members"), _as_scores(nonmembers, "nonmembers")
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            "epsilon_bound: expected the same statistics in both worlds, (models, ...), got "
            f"{a.shape} and {b.shape}."
        )
    runs, shape = (len(a), len(b)), a.shape[1:]
    largest = largest_epsilon(
        *runs, delta=delta, confidence=confidence, how=how, direction=direction
    )
    a, b = a.reshape(runs[0], -1), b.reshape(runs[1], -1)
    signs = (1, -1) if direction == "either" else (1,)

    def tables(positive: np.ndarray, negative: np.ndarray) -> list[np.ndarray]:
        each = _confidence_each(confidence, how, direction)
        return rate_tables([len(negative), len(positive)], confidence=each, how=how)

    def best(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return better_of([(*best_cut(s * a, s * b, tables(a, b), delta), s) for s in signs])

    if how == "given":
        cut = np.broadcast_to(np.asarray(threshold, np.float64), shape).reshape(-1)
        found, cut, sign = better_of(
            [(value_at(s * a, s * b, s * cut, tables(a, b), delta), s * cut, s) for s in signs]
        )
    elif rng is not None:
        (a_choose, a), (b_choose, b) = _halves(a, rng), _halves(b, rng)
        _, cut, sign = best(a_choose, b_choose)
        found = value_at(sign * a, sign * b, cut, tables(a, b), delta)
    else:
        found, cut, sign = best(a, b)
    shown = found > 0
    return EpsilonBound(
        np.where(shown, found, 0.0).reshape(shape),
        np.where(shown, sign * cut, np.nan).reshape(shape),
        (sign > 0).reshape(shape),
        largest, runs, float(delta), float(confidence), how,
    )  # fmt: skip


def largest_epsilon(
    members: int,
    nonmembers: int,
    *,
    delta: float,
    confidence: float = 0.95,
    how: str = "exact",
    direction: str = "either",
) -> float:
    """What so many runs can show at most: the bound when the scores separate the worlds perfectly.

        max( log((1 - delta - U_K) / U_N), log((1 - delta - U_N) / U_K) ),   U = bound for count 0

    Args:
        members, nonmembers: numbers of runs N and K.
        delta, confidence, how, direction: as for `epsilon_bound`.

    Returns:
        At least 0; grows like log min(N, K).

    Raises:
        TooFew, ValueError: as `epsilon_bound`.

    Example:
        >>> [round(largest_epsilon(n, n, delta=0.0, how="given"), 2) for n in (16, 64, 512)]
        [1.16, 2.65, 4.76]
    """
    _check(delta, confidence, how, direction, "largest_epsilon")
    runs, least = (members, nonmembers), 2 if how == "split" else 1
    if min(runs) < least:
        raise TooFew(
            f"epsilon: {members} runs of members and {nonmembers} of non-members; {how!r} needs at "
            f"least {least} of each. Train more seeds."
        )
    if how == "split":
        runs = (members - members // 2, nonmembers - nonmembers // 2)
    each = _confidence_each(confidence, how, direction)
    false_negative, false_positive = (
        table[0] for table in rate_tables(runs, confidence=each, how=how)
    )
    return max(0.0, float(region(false_positive, false_negative, delta)))


def _confidence_each(confidence: float, how: str, direction: str) -> float:
    """Of one bound on one rate, so that all that are used hold together."""
    both_ways = direction == "either" and how != "split"
    return 1 - (1 - confidence) / (4 if both_ways else 2)


def _halves(scores: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(len(scores))
    return scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]


def _check(delta: float, confidence: float, how: str, direction: str, caller: str) -> None:
    check_confidence(confidence, caller)
    if not 0 <= delta < 1:
        raise ValueError(f"{caller}: expected delta in [0, 1), got {delta}.")
    if how not in STRATEGIES:
        raise ValueError(f"{caller}: how must be one of {STRATEGIES}, got {how!r}.")
    if direction not in DIRECTIONS:
        raise ValueError(f"{caller}: direction must be one of {DIRECTIONS}, got {direction!r}.")


def _check_extras(how: str, threshold: ArrayLike | None, rng: np.random.Generator | None) -> None:
    for name, value, owner in (("threshold", threshold, "given"), ("rng", rng, "split")):
        if (value is not None) != (how == owner):
            verb = "needs" if value is None else f"how={owner!r} alone takes"
            subject = f"how={how!r} {verb}" if value is None else verb
            raise ValueError(f"epsilon_bound: {subject} {name}.")


def _as_scores(scores: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim == 0:
        raise ValueError(f"epsilon_bound: expected {name} of shape (models, ...), got one number.")
    broken = np.isnan(values).any(axis=tuple(range(1, values.ndim)))
    if broken.any():
        raise ValueError(
            f"epsilon_bound: {name} is NaN for models {np.flatnonzero(broken).tolist()}. "
            "Leave non-finite models out."
        )
    return np.clip(values, -_HUGE, _HUGE)
