"""Epsilon from a single model: canaries put in by coin tosses, and how many the attacker finds.

Repeating a run hundreds of times is not always possible. In one run, each of m canaries is put into
the training data (and so into what is unlearned) or left out, by an independent fair coin; the
attacker then guesses "in" for the r canaries with the largest signals. Had the pipeline been
(epsilon, 0)-private, the number of right guesses would be stochastically below

    Binomial( r, 1 / (1 + e^-epsilon) )

so that too many of them refute the epsilon. The bounds themselves, with delta, and over f-privacy
curves of Gaussian noise, are those of `jax_privacy.auditing.CanaryScoreAuditor`, which this module
calls model by model: install `jaxunlearn[audit]`. Canaries that were not tossed for (a fixed forget
set against held-out data) give a number, but no guarantee.

Sources: T. Steinke, M. Nasr, M. Jagielski (2023), "Privacy Auditing with One (1) Training Run",
arXiv:2305.08846; with Gaussian curves, S. Mahloujifar, L. Melis, K. Chaudhuri (2024),
arXiv:2410.22235. Departure: the default chooses the threshold on a random half of the canaries. The
package's own default divides the significance by the number of thresholds on the convex hull of the
ROC curve, which depends on the data; in our simulations it never missed more than it may, but
nothing proves that it cannot.

| input                              | result                                      |
|------------------------------------|---------------------------------------------|
| jax-privacy is not installed       | ImportError that names the extra            |
| nothing can be said                | epsilon 0                                   |
| no member or no non-member         | TooFew; with "split" fewer than 2 of a kind |
| a model with a NaN signal          | NaN for that model                          |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .binomial import check_confidence
from .roc import as_signals

THRESHOLDS = ("split", "bonferroni", "given")
CURVES = ("any", "gaussian")
STATISTICS = ("hull_auc", "tpr", "epsilon")


class CanaryInterval(NamedTuple):
    """A statistic of each model's canaries, and its bootstrap interval over canaries."""

    value: np.ndarray  # (M,) float64
    low: np.ndarray  # (M,) float64
    high: np.ndarray  # (M,) float64


def one_run_epsilon(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    how: str = "split",
    curve: str = "any",
    threshold: float | None = None,
    seed: int,
) -> np.ndarray:
    """Lower bound on epsilon of each model from its own canaries.

        Pr( bound <= epsilon ) >= confidence    over the coins and the run, model by model

    Args:
        members: (M, m) or (m,) signals of the canaries that were put in; larger = more like "in".
        nonmembers: (M, k) or (k,) signals of those that were left out.
        delta: in (0, 1).
        confidence: in (0, 1).
        how: "split": the threshold is the best on a random half, the bound is that of the other;
            "bonferroni": jax-privacy's correction over thresholds; "given": `threshold`.
        curve: "any" (epsilon, delta)-private pipeline, or the sharper bound for one whose whole
            trade-off curve is that of "gaussian" noise.
        threshold: for "given" only.
        seed: draws the halves; not used otherwise.

    Returns:
        (M,) float64, or a scalar array, at least 0; NaN where a signal is NaN.

    Raises:
        ImportError, TooFew: see the module. ValueError: unknown options, values out of range.

    Cost: a search over thresholds per model: milliseconds ("any") to seconds ("gaussian").

    Source: arXiv:2305.08846; "gaussian": arXiv:2410.22235.

    Example (with jax-privacy):
        >>> signal = np.arange(100.0)
        >>> bound = one_run_epsilon(signal + 200, signal, delta=1e-5, seed=0)  # doctest: +SKIP
        >>> bound.round(2).item()  # doctest: +SKIP
        2.74
    """
    check_confidence(confidence, "one_run_epsilon")
    _one_of(how, THRESHOLDS, "how", "one_run_epsilon")
    _one_of(curve, CURVES, "curve", "one_run_epsilon")
    if not 0 < delta < 1:
        raise ValueError(f"one_run_epsilon: expected delta in (0, 1), got {delta}.")
    if (threshold is not None) != (how == "given"):
        raise ValueError('one_run_epsilon: threshold goes with how="given", and only with it.')
    auditing = _auditing()
    if how == "given":
        assert threshold is not None
        strategy = auditing.Explicit(float(threshold))
    else:
        strategy = auditing.Split(seed=seed) if how == "split" else auditing.Bonferroni()

    def bound(auditor: Any) -> float:
        ask = auditor.epsilon_one_run if curve == "any" else auditor.epsilon_one_run_fdp
        return ask(1 - confidence, delta, threshold_strategy=strategy)

    least = 2 if how == "split" else 1
    return _per_model(bound, members, nonmembers, least, "one_run_epsilon")


def canary_interval(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    of: str = "hull_auc",
    confidence: float = 0.95,
    fpr: float = 0.1,
    delta: float = 0.0,
    min_count: int = 50,
    resamples: int = 1000,
    seed: int,
) -> CanaryInterval:
    """A statistic of the attack on each model, with jax-privacy's bias-corrected bootstrap.

    The interval says how far the number would move with other canaries in the same model; for
    other models, resample models (`mean_interval`). Of "epsilon" it is the interval of a plain
    estimate log((TPR - delta) / FPR), never a bound.

    Args:
        members, nonmembers: as for `one_run_epsilon`.
        of: "hull_auc", the area under the convex hull of the ROC curve (the package's AUROC: best
            randomised thresholds, so above `auc`, and above 1/2 where there is no signal);
            "tpr" at `fpr`, on the hull too; or "epsilon", over thresholds with at least
            `min_count` false alarms.
        confidence: of the interval, in (0, 1).
        fpr: in [0, 1]; of "tpr". delta: in [0, 1); min_count: at least 1; of "epsilon".
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        `CanaryInterval` of (M,) arrays or scalars; NaN where a signal is NaN.

    Raises:
        ImportError, TooFew, ValueError: as `one_run_epsilon`.

    Cost: `resamples` ROC curves per model.

    Source: B. Efron (1987), "Better Bootstrap Confidence Intervals".

    Example (with jax-privacy):
        >>> signal = np.arange(100.0)
        >>> canary_interval(signal + 9.5, signal, seed=0).value.item()  # doctest: +SKIP
        0.595
    """
    check_confidence(confidence, "canary_interval")
    _one_of(of, STATISTICS, "of", "canary_interval")
    if resamples < 1:
        raise ValueError(f"canary_interval: expected at least 1 resample, got {resamples}.")
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    bootstrap = _auditing().BootstrapParams(resamples, ends, seed=seed)

    def ask(auditor: Any, params: Any) -> Any:
        if of == "hull_auc":
            return auditor.attack_auroc(bootstrap_params=params)
        if of == "tpr":
            return auditor.tpr_at_given_fpr(fpr, bootstrap_params=params)
        return auditor.epsilon_raw_counts(min_count, delta, bootstrap_params=params)

    def numbers(auditor: Any) -> np.ndarray:
        return np.array([ask(auditor, None), *ask(auditor, bootstrap)])

    found = _per_model(numbers, members, nonmembers, 1, "canary_interval")
    return CanaryInterval(*np.moveaxis(found, -1, 0))


def _per_model(
    measure: Callable[[Any], Any], members: ArrayLike, nonmembers: ArrayLike, least: int, name: str
) -> np.ndarray:
    """What `measure` says of the auditor of each model."""
    a, b = as_signals(members, nonmembers, name, least=least)
    make = _auditing().CanaryScoreAuditor
    rows = list(zip(np.atleast_2d(a), np.atleast_2d(b), strict=True))
    known = [not (np.isnan(x).any() or np.isnan(y).any()) for x, y in rows]
    found = [np.asarray(measure(make(x, y))) for (x, y), k in zip(rows, known, strict=True) if k]
    shape = found[0].shape if found else (3,) if name == "canary_interval" else ()
    result = np.full((len(rows), *shape), np.nan)
    if found:
        result[known] = found
    return result.reshape((*a.shape[:-1], *shape))


def _auditing() -> Any:
    try:
        from jax_privacy import auditing  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "one-run auditing is done by jax-privacy, which is not installed: "
            "pip install 'jaxunlearn[audit]'."
        ) from error
    return auditing


def _one_of(value: str, choices: tuple[str, ...], name: str, caller: str) -> None:
    if value not in choices:
        raise ValueError(f"{caller}: {name} must be one of {choices}, got {value!r}.")
