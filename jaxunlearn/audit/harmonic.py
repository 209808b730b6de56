"""One number for logits and features together: their agreement with retraining, harmonically.

    agreement of a metric   1 - |m_i - mean_o m_o|,  at least 0       m in [0, 1], o the oracles
    a = mean agreement of the metrics of logits
    b = mean agreement of the metrics of representations
    harmonic = 2 a b / (a + b)                                        0 where a = b = 0

A method that gets the outputs right and the features wrong (or the other way round) cannot buy
one with the other: the harmonic mean is at most twice the smaller of the two.

*A reconstruction.* Y. Kim et al. (2026), arXiv:2503.06991 report such aggregates under the names
AGR and H-LR, but their formulas are not published; these are not claimed to be those, hence the
other name. Departures: 1. values in [0, 1], not per cent; 2. an ensemble of oracles; 3. a
disagreement of more than 1 (a negative CKA against 1) counts as 1.

Read it beside its floor: one half of the oracles as the models, the other half as the oracles.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew

Values = Mapping[str, ArrayLike | None]


class HarmonicAgreement(NamedTuple):
    """Agreement of M models with retraining."""

    logits: np.ndarray  # (M,) float64 in [0, 1], mean over the metrics of logits
    representations: np.ndarray  # (M,) float64 in [0, 1], mean over those of representations
    harmonic: np.ndarray  # (M,) float64 in [0, 1], harmonic mean of the two


def harmonic_agreement(
    logits: Values, oracle_logits: Values, representations: Values, oracle_representations: Values
) -> HarmonicAgreement | None:
    """The summary of the module, for every model.

    Args:
        logits: {metric: (M,) in [0, 1]} of outputs, as accuracies of the parts.
        oracle_logits: {metric: (N,)} of N >= 1 oracles, the same metrics.
        representations: {metric: (M,) in [-1, 1]} of features, as `knn_accuracy`, `mean_cka`.
        oracle_representations: {metric: (N,)}, the same metrics.

    Returns:
        `HarmonicAgreement`, NaN for a model with a NaN among its metrics; None when a metric is
        None (undefined): the summary is then undefined as well. Oracles with NaN are left out.

    Raises:
        TooFew: a metric without a finite oracle. ValueError: different metrics on the two sides, or
            none.

    Example:
        >>> harmonic_agreement(
        ...     {"forget": [0.0]}, {"forget": [0.0]}, {"knn": [1.0]}, {"knn": [0.5]}
        ... ).harmonic.round(4)
        array([0.6667])
    """
    a = _mean_agreement(logits, oracle_logits, "logits")
    b = _mean_agreement(representations, oracle_representations, "representations")
    if a is None or b is None:
        return None
    if a.shape != b.shape:
        raise ValueError(
            "harmonic_agreement: expected the same models in logits and representations, got "
            f"{a.size} and {b.size}."
        )
    total = a + b
    return HarmonicAgreement(a, b, 2 * a * b / np.where(total == 0, 1.0, total))


def _mean_agreement(values: Values, oracle_values: Values, who: str) -> np.ndarray | None:
    if not values or set(values) != set(oracle_values):
        raise ValueError(
            f"harmonic_agreement: expected the same metrics of {who} on both sides, got "
            f"{sorted(values)} and {sorted(oracle_values)}."
        )
    agreements = []
    for metric, value in values.items():
        oracle = oracle_values[metric]
        if value is None or oracle is None:
            return None
        oracles = np.asarray(oracle, dtype=np.float64)
        oracles = oracles[np.isfinite(oracles)]
        if oracles.size == 0:
            raise TooFew(f"harmonic_agreement: no oracle has a finite {metric!r} of {who}.")
        gap = np.abs(np.atleast_1d(np.asarray(value, dtype=np.float64)) - oracles.mean())
        agreements.append(np.maximum(0.0, 1.0 - gap))
    sizes = {a.shape for a in agreements}
    if len(sizes) > 1:
        raise ValueError(
            f"harmonic_agreement: expected one value a model for every metric of {who}, got shapes "
            f"{sorted(sizes)}."
        )
    return np.mean(agreements, axis=0)
