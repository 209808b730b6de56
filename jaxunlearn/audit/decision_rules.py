"""The strongest decision rule between two ensembles of one number: epsilon per example.

A rule says "unlearned" when the margin phi of an example lies in an interval, or outside it; single
thresholds, in both directions, are the intervals that are open at one end. With FPR and FNR its
error rates over M unlearned and N retrained models,

    eps(rule) = max( log (1 - delta - FPR) / FNR,  log (1 - delta - FNR) / FPR )
    eps_s = max over rules, at least 0

A rule with FPR = FNR = 0 separates perfectly: eps = +inf, reported as `EPSILON_CAP`. A rule with
exactly one of them 0 is discarded, for want of samples; so is a term whose argument is negative.

What is computed. A rule matters only through the number i of unlearned and j of retrained margins
inside. On a line of T = N + M sorted margins all T (T + 1) / 2 intervals are tried, none is missed
between the points of a grid, and eps comes from a table of (i, j). A rule has eps > 0 if and only
if |i/M - j/N| > delta, and then neither argument is negative.

Held out, the rule is chosen on the first half of both ensembles and measured on the second; with a
single rule there is no other to fall back on, so the term with the zero denominator is discarded
and not the rule.

Source: the estimate inside `jaxunlearn.audit.forgetting_quality`, E. Triantafillou et al. (2024),
arXiv:2406.09073; departures are listed there.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .margin_pairs import as_pair, pair_blocks

EPSILON_CAP = 50.0
RULES = ("intervals", "thresholds")


def _log_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """log(above / below), NaN where either is not positive."""
    fine = (above > 0) & (below > 0)
    return np.where(fine, np.log(np.where(fine, above, 1) / np.where(fine, below, 1)), np.nan)


def _epsilon_of_codes(codes: np.ndarray, m: int, n: int, delta: float) -> np.ndarray:
    """eps >= 0 of "unlearned inside" and of "unlearned outside", whichever is larger.

    A code i (n + 1) + j: i of m unlearned and j of n retrained margins are inside. Discarded rules
    count 0.
    """
    i, j = np.divmod(codes, n + 1)
    inside = epsilon_of_rates(j / n, (m - i) / m, delta)
    outside = epsilon_of_rates((n - j) / n, i / m, delta)
    return np.fmax(np.fmax(inside, outside), 0.0)


def _cuts(u: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places where the line of margins can be cut, and i (n + 1) + j of what lies to their left.

    (c, M) unlearned and (c, N) retrained -> (c, T + 1) positions and codes. Equal margins cannot be
    told apart: a cut between them is moved to the left of all of them.
    """
    m, n = u.shape[1], r.shape[1]
    pool = np.concatenate([u, r], axis=1)
    order = np.argsort(pool, axis=1, kind="stable")
    line = np.take_along_axis(pool, order, axis=1)
    steps = np.where(order < m, n + 1, 1)
    zero = np.zeros((len(pool), 1), dtype=np.int64)
    codes = np.concatenate([zero, np.cumsum(steps, axis=1)], axis=1)
    edge = np.full((len(pool), 1), np.inf)
    between = np.concatenate([-edge, (line[:, 1:] + line[:, :-1]) / 2, edge], axis=1)
    new = np.concatenate([zero == 0, line[:, 1:] > line[:, :-1], zero == 0], axis=1)
    last = np.maximum.accumulate(np.where(new, np.arange(m + n + 1), 0), axis=1)
    return np.take_along_axis(between, last, axis=1), np.take_along_axis(codes, last, axis=1)


def _best_interval(
    codes: np.ndarray, epsilon_at: Callable[[np.ndarray], np.ndarray], rules: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(c,) largest eps of an interval between two cuts, and the first such interval's two cuts."""
    c, cuts = codes.shape
    best = np.zeros(c)
    low, high = np.zeros(c, dtype=np.int64), np.zeros(c, dtype=np.int64)
    for start in range(cuts - 1 if rules == "intervals" else 1):
        epsilon = epsilon_at(codes[:, start + 1 :] - codes[:, start : start + 1])
        last = epsilon.argmax(axis=1)
        value = epsilon[np.arange(c), last]
        better = value > best
        best = np.where(better, value, best)
        low, high = np.where(better, start, low), np.where(better, start + 1 + last, high)
    return best, low, high


def _held_out(
    u: np.ndarray,
    r: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    direction: np.ndarray,
    delta: float,
) -> np.ndarray:
    """(c,) eps on other models of the rule low < phi <= high, unlearned inside (1) or outside."""
    x, y = (((low[:, None] < v) & (v <= high[:, None])).mean(axis=1) for v in (u, r))
    inside = direction > 0
    fpr, fnr = np.where(inside, y, 1 - y), np.where(inside, 1 - x, x)
    epsilon = np.fmax(_log_ratio(1 - delta - fpr, fnr), _log_ratio(1 - delta - fnr, fpr))
    epsilon = np.where((fpr == 0) & (fnr == 0), np.inf, np.fmax(epsilon, 0.0))
    return np.where(direction == 0, 0.0, epsilon)


def as_delta(delta: float | None, n: int, who: str) -> float:
    """delta, checked; None becomes 1 / n for n examples, and 0 for a single one."""
    if delta is None:
        return 1 / n if n > 1 else 0.0
    if not 0 <= delta < 1:
        raise ValueError(f"{who}: expected delta in [0, 1), got {delta}.")
    return float(delta)


def epsilon_of_rates(fpr: ArrayLike, fnr: ArrayLike, delta: float) -> np.ndarray:
    """eps of decision rules with these error rates, by the conventions of the module.

        max( log (1 - delta - FPR) / FNR,  log (1 - delta - FNR) / FPR )

    Args:
        fpr, fnr: rates in [0, 1], one shape.
        delta: in [0, 1).

    Returns:
        float64 of that shape: +inf where both rates are 0, NaN where exactly one is or where no
        argument is positive, else eps (negative ones too).

    Example:
        >>> epsilon_of_rates([0.0, 0.0, 0.25], [0.0, 0.5, 0.25], 0.0).round(3)
        array([  inf,    nan, 1.099])
    """
    fpr, fnr = np.asarray(fpr, np.float64), np.asarray(fnr, np.float64)
    usable = (fpr > 0) & (fnr > 0)
    epsilon = np.fmax(_log_ratio(1 - delta - fpr, fnr), _log_ratio(1 - delta - fnr, fpr))
    return np.where((fpr == 0) & (fnr == 0), np.inf, np.where(usable, epsilon, np.nan))


def forgetting_epsilons(
    oracle_margins: ArrayLike,
    method_margins: ArrayLike,
    *,
    delta: float | None = None,
    rules: str = "intervals",
    held_out: bool = False,
    cap: float = EPSILON_CAP,
    chunk: int | None = None,
) -> np.ndarray | None:
    """eps_s of every example: the strongest decision rule between the two ensembles.

    Args:
        oracle_margins: (N, n) margins of retrained models, N >= 2 (4 if held out).
        method_margins: (M, n) margins of unlearned models, M >= 2 (4 if held out).
        delta: in [0, 1); None: 1 / n, n the number of forget examples (0 for a single one, where
            1 / n would forgive everything).
        rules: "intervals" (single thresholds among them) or "thresholds" (these alone).
        held_out: choose the rule on the first half of the models, measure it on the second.
        cap: what a perfect separation counts; `math.inf` is allowed.
        chunk: examples handled at once; None keeps a block near 16 MiB.

    Returns:
        (n,) float64 in [0, cap], or None for n = 0. Swapping the two ensembles changes nothing.
        Not held out, it is biased upwards, and no monotone map of the (clipped) margins changes it;
        held out, the rule cuts half way between two margins, so only affine maps change nothing.

    | input                                        | result                                    |
    |----------------------------------------------|-------------------------------------------|
    | all margins equal                            | 0                                         |
    | disjoint ensembles                           | cap, whatever delta                       |
    | one ensemble inside a gap of the other       | cap ("intervals"), less ("thresholds")    |
    | ties between the ensembles                   | never told apart by a rule                |
    | margins of +-Inf; NaN; fewer models          | clipped; ValueError; TooFew               |
    | any `chunk`                                  | the same bits                             |

    Cost: per example (N + M)^2 / 2 look-ups in a table of (N + 1) (M + 1) ("intervals"), or N + M
    logarithms ("thresholds"); memory the table and a block.

    Example:
        >>> import numpy as np
        >>> forgetting_epsilons(np.zeros((4, 1)), np.ones((4, 1)))
        array([50.])
    """
    who = "forgetting_epsilons"
    oracle, method = as_pair(oracle_margins, method_margins, who, least=4 if held_out else 2)
    n = oracle.shape[1]
    delta = as_delta(delta, n, who)
    if rules not in RULES:
        raise ValueError(f"{who}: rules must be one of {RULES}, got {rules!r}.")
    if not cap > 0:
        raise ValueError(f"{who}: expected cap > 0 (math.inf is allowed), got {cap}.")
    if n == 0:
        return None
    fit_n, fit_m = (len(side) // 2 if held_out else len(side) for side in (oracle, method))
    epsilon_at = partial(_epsilon_of_codes, m=fit_m, n=fit_n, delta=delta)
    if rules == "intervals":  # so many of them that every (i, j) occurs: each is worked out once
        epsilon_at = epsilon_at(np.arange((fit_m + 1) * (fit_n + 1))).__getitem__
    found = []
    entries = 8 * (len(oracle) + len(method))
    for r, u in pair_blocks(oracle, method, who, chunk=chunk, entries=entries):
        places, codes = _cuts(u[:, :fit_m], r[:, :fit_n])
        epsilon, low, high = _best_interval(codes, epsilon_at, rules)
        if held_out:
            row = np.arange(len(u))
            i, j = np.divmod(codes[row, high] - codes[row, low], fit_n + 1)
            direction = np.sign(i * fit_n - j * fit_m)
            ends = places[row, low], places[row, high]
            epsilon = _held_out(u[:, fit_m:], r[:, fit_n:], *ends, direction, delta)
        found.append(np.minimum(epsilon, cap))
    return np.concatenate(found)


def epsilon_ceiling(num_oracles: int, num_methods: int, delta: float) -> float:
    """The largest finite eps that ensembles of these sizes can show; 0 if there is none.

        max( log N (1 - delta - 1/M),  log M (1 - delta - 1/N),  0 )    at FPR = 1/N, FNR = 1/M

    Args:
        num_oracles, num_methods: N and M, at least 2.
        delta: in [0, 1).

    Example:
        >>> round(epsilon_ceiling(512, 512, 0.0), 3), epsilon_ceiling(2, 2, 0.0)
        (6.236, 0.0)
    """
    delta = as_delta(delta, 1, "epsilon_ceiling")
    if min(num_oracles, num_methods) < 2:
        raise TooFew(
            "epsilon_ceiling: needs at least 2 models on each side, got "
            f"{num_oracles} and {num_methods}."
        )
    one = num_oracles * (1 - delta - 1 / num_methods)
    other = num_methods * (1 - delta - 1 / num_oracles)
    return math.log(max(one, other, 1.0))
