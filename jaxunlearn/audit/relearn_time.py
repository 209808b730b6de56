"""How long did it take to have the knowledge back? Steps of a relearning curve, and their ratio.

    t_i = the first recorded step at which model i's loss is <= (1 + m) loss_0,   m = 0.05
    AIN = t_u / t_r,   t_u and t_r the average t of the method's models and of the oracles

loss_0 is the loss of the original model on the data watched. AIN, the anamnesis index, is 1 where
the method's models take as long as retrained ones; far below 1 information remained; far above 1
the data are avoided in a way that no retrained model would show (the "Streisand effect").

A run that never gets there within its steps has taken *at least* so many: infinity here, counted at
the cap in an average, and the ratio then says which way it is bounded. A run that diverged first
has no time: NaN.

Source: V. Chundawat et al. (2023), "Zero-Shot Machine Unlearning", arXiv:2201.05629; margin of the
loss as in A. Tarun et al. (2023), arXiv:2210.08196. Departures, a *reconstruction*: 1. averages
over models with a bootstrap interval, since one pair of runs is noisy at the scale of a minibatch;
2. capped runs are said to be capped; 3. optional interpolation between records. An AIN alone is a
poor summary, because one threshold on one optimiser decides it: show the curves (`relearning`) and
the test of them (`came_back`) beside it.

NumPy float64 on the host.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .intervals import Interval, Seed, percentile_interval

AVERAGES = ("mean", "median")
QUANTITIES = ("loss", "knowledge")


class AnamnesisIndex(NamedTuple):
    """Result of `anamnesis_index`."""

    ratio: Interval | None  # t_u / t_r; None: undefined, `words` say why
    method_capped: int  # method's models that did not get there within the cap
    oracle_capped: int  # oracles likewise
    bound: str  # "=" the ratio itself; ">=", "<=": it is at least, at most that; "" undefined
    words: str  # for people


def steps_needed(
    curves: ArrayLike,
    target: ArrayLike,
    steps: ArrayLike,
    *,
    rising: bool,
    interpolate: bool = False,
) -> np.ndarray:
    """The first step at which each curve reaches its target.

        t_i = min { s_k : v_ik >= target_i }      (<= if not `rising`)

    Args:
        curves: (M, T), a number of each model at each recorded step; NaN where a run had diverged.
        target: a number, or (M,) one for each model.
        steps: (T,) increasing, >= 0: `relearning.recorded_steps`, or numbers of examples.
        rising: whether a larger number is nearer to the target (accuracy; for a loss it is not).
        interpolate: the place on the straight line between the two records around the crossing,
            instead of the record after it.

    Returns:
        (M,) float64.

    Raises:
        ValueError: shapes that do not fit, no record, steps that do not increase, a NaN target.

    | curve                                           | result        |
    |-------------------------------------------------|---------------|
    | at the target from the start                    | steps[0]      |
    | reached, lost again later                       | the first one |
    | not reached                                     | inf           |
    | not reached before it diverged, or undefined    | NaN           |

    Example:
        >>> steps_needed([[3, 2, 1], [3, 3, 3]], 1.5, [0, 10, 20], rising=False, interpolate=True)
        array([15., inf])
    """
    v, s = np.asarray(curves, np.float64), np.asarray(steps, np.float64)
    if v.ndim != 2 or s.shape != v.shape[1:] or s.size == 0:
        raise ValueError(
            "steps_needed: expected curves of shape (models, records) and as many steps as "
            f"records, at least one, got {v.shape} and {s.shape}."
        )
    if (np.diff(s) <= 0).any() or s[0] < 0:
        raise ValueError(f"steps_needed: steps must increase from >= 0, got {s.tolist()}.")
    aim = np.asarray(target, np.float64)
    if aim.shape not in ((), (len(v),)) or np.isnan(aim).any():
        raise ValueError(
            f"steps_needed: expected one target, or one for each of {len(v)} models, none of them "
            f"NaN, got shape {aim.shape}: {aim.tolist()}."
        )
    sign = 1.0 if rising else -1.0
    missing = sign * (np.broadcast_to(aim, (len(v),))[:, None] - v)  # <= 0: reached
    reached = missing <= 0
    place = reached.argmax(axis=1)
    models = np.arange(len(v))
    found = s[place]
    if interpolate:
        before = np.maximum(place - 1, 0)
        a, b = missing[models, before], missing[models, place]
        share = np.divide(a, a - b, out=np.ones_like(a), where=np.isfinite(a) & (a > 0) & (b <= 0))
        found = s[before] + share * (s[place] - s[before])
    unreached = np.where(np.isnan(v).any(axis=1), np.nan, np.inf)
    lost = np.isnan(v).argmax(axis=1)  # the first undefined record
    early = reached.any(axis=1) & ~(np.isnan(v).any(axis=1) & (lost < place))
    return np.where(early, found, unreached)


def relearn_time(
    curves: ArrayLike,
    original: ArrayLike,
    steps: ArrayLike,
    *,
    quantity: str = "loss",
    margin: float = 0.05,
    interpolate: bool = False,
) -> np.ndarray:
    """Steps until a model is as good as the original again, up to a margin.

        quantity="loss":       loss_i      <= (1 + m) mean loss of the originals
        quantity="knowledge":  knowledge_i >= mean knowledge of the originals - m

    Args:
        curves: (M, T) loss, or knowledge (confidence or accuracy), of each model along its run.
        original: (G,) the same of the originals as they are, before any relearning.
        steps: (T,), as for `steps_needed`.
        quantity: one of `QUANTITIES`.
        margin: m >= 0; relative for a loss, absolute for knowledge.
        interpolate: as for `steps_needed`.

    Returns:
        (M,) float64, in steps; inf: not within the run, NaN: diverged first.

    Raises:
        TooFew: no original with a finite number.
        ValueError: as `steps_needed`; a margin or quantity out of range, a negative loss.

    Example:
        >>> relearn_time([[1.0, 0.5, 0.2], [0.2, 0.2, 0.2]], [0.2], [0, 1, 2])
        array([2., 0.])
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"relearn_time: quantity must be one of {QUANTITIES}, got {quantity!r}.")
    if not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"relearn_time: margin must be a finite number >= 0, got {margin}.")
    known = np.asarray(original, np.float64).reshape(-1)
    known = known[np.isfinite(known)]
    if known.size == 0:
        raise TooFew("relearn_time: needs at least one original with a finite number, got none.")
    aim = float(known.mean())
    if quantity == "knowledge":
        return steps_needed(curves, aim - margin, steps, rising=True, interpolate=interpolate)
    if aim < 0:
        raise ValueError(
            f"relearn_time: a margin relative to a loss needs a loss >= 0, got {aim:g}. "
            "Use quantity='knowledge' with minus the loss."
        )
    return steps_needed(curves, (1 + margin) * aim, steps, rising=False, interpolate=interpolate)


def anamnesis_index(
    method: ArrayLike,
    oracle: ArrayLike,
    *,
    cap: float,
    average: str = "mean",
    level: float = 0.95,
    resamples: int = 1000,
    seed: Seed,
) -> AnamnesisIndex:
    """AIN: the method's relearn time in units of the oracles'.

        AIN = average(t_method) / average(t_oracle)

    Args:
        method: (N,) relearn times; inf where a run did not get there, NaN where it diverged.
        oracle: (K,) likewise, of retrained models under the same data, optimiser and steps.
        cap: the length of the runs in the same unit, > 0; what inf counts as in an average.
        average: one of `AVERAGES`. A median is known while fewer than half of the runs are capped.
        level, resamples, seed: of the bootstrap interval; both groups are resampled, a capped run
            counting as `cap`.

    Returns:
        `AnamnesisIndex`.

    Raises:
        ValueError: no such average, cap <= 0, a time outside [0, cap] that is not inf.

    | case                                            | result                                   |
    |-------------------------------------------------|------------------------------------------|
    | equal times on both sides                       | exactly 1                                |
    | the method never forgot (t_u = 0)               | 0                                        |
    | capped runs that matter on the method's side    | bound ">="                               |
    | on the oracles' side                            | bound "<="                               |
    | on both sides                                   | None: no ratio is known                  |
    | t_r = 0: oracles know it without relearning     | None                                     |
    | diverged runs                                   | left out, and said                       |
    | resamples with t_r = 0                          | left out of the interval                 |

    Source: anamnesis index (arXiv:2201.05629), departures in the module.

    Example:
        >>> found = anamnesis_index([1, 2, 3], [4, 4, 4], cap=10, seed=0)
        >>> found.ratio.value, found.bound
        (0.5, '=')
    """
    if average not in AVERAGES:
        raise ValueError(f"anamnesis_index: average must be one of {AVERAGES}, got {average!r}.")
    if not (np.isfinite(cap) and cap > 0):
        raise ValueError(f"anamnesis_index: cap must be a finite number > 0, got {cap}.")
    t_u, u_capped, u_lost = _times(method, cap, "method")
    t_r, r_capped, r_lost = _times(oracle, cap, "oracle")
    take = np.mean if average == "mean" else np.median
    notes = [
        f"{count} of {size} {whose} {what}"
        for count, size, whose, what in (
            (u_capped, t_u.size, "method's runs", f"did not get there within {cap:g} steps"),
            (r_capped, t_r.size, "oracles' runs", f"did not get there within {cap:g} steps"),
            (u_lost, t_u.size + u_lost, "method's runs", "diverged"),
            (r_lost, t_r.size + r_lost, "oracles' runs", "diverged"),
        )
        if count
    ]

    def say(ratio: Interval | None, bound: str, words: str) -> AnamnesisIndex:
        return AnamnesisIndex(ratio, u_capped, r_capped, bound, "; ".join([words, *notes]))

    if t_u.size == 0 or t_r.size == 0:
        return say(None, "", "undefined: no run of one of the groups")
    u_bounded, r_bounded = np.isinf(take(t_u)), np.isinf(take(t_r))
    if u_bounded and r_bounded:
        return say(None, "", "undefined: neither group got there within its steps; run longer")
    t_u, t_r = np.minimum(t_u, cap), np.minimum(t_r, cap)
    if take(t_r) == 0:
        return say(None, "", "undefined: retrained models know as much without relearning")
    rng = np.random.default_rng(seed)
    above = take(t_u[rng.integers(0, t_u.size, (resamples, t_u.size))], axis=1)
    below = take(t_r[rng.integers(0, t_r.size, (resamples, t_r.size))], axis=1)
    replicates = above / np.where(below > 0, below, np.nan)
    value = float(take(t_u) / take(t_r))
    ratio = percentile_interval(value, replicates, count=t_u.size, level=level)
    bound = ">=" if u_bounded else "<=" if r_bounded else "="
    return say(ratio, bound, f"AIN {bound} {value:.3g}")


def _times(times: ArrayLike, cap: float, who: str) -> tuple[np.ndarray, int, int]:
    """The defined times (inf: capped), how many are capped, how many diverged."""
    t = np.asarray(times, np.float64)
    known = t[~np.isnan(t)] if t.ndim == 1 else t
    if t.ndim != 1 or ((known < 0) | ((known > cap) & np.isfinite(known))).any():
        raise ValueError(
            f"anamnesis_index: times of the {who} must be a list of numbers in [0, cap={cap:g}], "
            f"inf or NaN, got {t.tolist()}."
        )
    return known, int(np.isinf(known).sum()), int(t.size - known.size)
