"""Predictions of groups of regressions to numbers: verdicts, errors, distances, the error attack.

Two models are as far apart on a part as their predictions for its examples:

    D_ij = sqrt( mean_x (f_i(x) - f_j(x))^2 ) / standard deviation of the training targets

From there everything is as for classifiers: energies, exact tests, floors. What the premises of a
verdict call accuracy is the share of the variance of the training targets that is explained;
chance, 0, is predicting their mean. Errors and distances are told in the unit of the target.

Wanted of a range that is forgotten is no large error but that of retrained models, which never saw
such targets and mostly predict the nearest that they know.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import audit
from jaxunlearn.data.sources import Source, Target
from jaxunlearn.scoring import Group, Judge, Part, summary

_ROC_GRID = np.linspace(0, 1, 51)
_OUTSIDERS = ("forget_test", "test")  # against whom membership is attacked, where they are there
_FPR = 0.1  # at which the true positive rate is told
_FOLDS = 5


def deviation_of(source: Source) -> float:
    """Standard deviation of the training targets as they are stored: 1 up to rounding, unless they
    were scaled by another rule; 1 if they are all equal."""
    return float(np.asarray(source.train["y"], np.float64).std()) or 1.0


def predictions(group: Group, part: str) -> np.ndarray:
    """(M, n) from the outputs (M, n, 1) of a group."""
    return group.logits[part][..., 0]


def judge_regression(
    groups: list[Group], parts: Mapping[str, Part], deviation: float, settings: Any
) -> Judge:
    """`Judge` of models that predict one number: scaled differences, explained variance, chance 0.

    Args:
      groups: with outputs (M, n, 1).
      parts: as evaluated; those without an example are left out.
      deviation: of the training targets, as stored.
      settings: as for `Judge`.
    """
    matrices, explained = {}, {}
    for part in audit.PARTS:
        if part in parts and len(targets := parts[part].columns["y"]):
            f = np.concatenate([predictions(group, part) for group in groups])
            matrix = audit.prediction_matrix(f, scale=deviation)
            share = audit.explained(f, targets[:, 0], variance=deviation**2)
            assert matrix is not None and share is not None
            matrices[part], explained[part] = matrix, share
    return Judge(groups, matrices, explained, 0.0, settings)


class RegressionMetrics:
    """The metrics of a group, and their floors between two halves of the oracles.

    Args:
      oracle: the group of true retrainings; None where there is nothing to forget.
      parts: as evaluated.
      target: the unit in which errors and distances are told.
      deviation: of the training targets, as stored.
      settings: seed and resamples.
    """

    def __init__(
        self,
        oracle: Group | None,
        parts: Mapping[str, Part],
        target: Target,
        deviation: float,
        settings: Any,
    ):
        self.oracle, self.target, self.deviation = oracle, target, deviation
        self.settings = settings
        self.targets = {p: y[:, 0] for p, e in parts.items() if len(y := e.columns["y"])}
        self.parts = parts

    def floor(self) -> dict[str, Any]:
        """The same metrics of one half of the oracles, with the other half as the reference."""
        if self.oracle is None:
            return {}
        halves = {part: audit.halves(outputs) for part, outputs in self.oracle.logits.items()}
        first, second = (
            self.oracle._replace(logits={part: pair[i] for part, pair in halves.items()})
            for i in (0, 1)
        )
        other = RegressionMetrics(second, self.parts, self.target, self.deviation, self.settings)
        return other.scores(first)

    def scores(self, group: Group) -> dict[str, Any]:
        """metric -> part -> summary."""
        found: dict[str, Any] = {}
        unit = self.target.deviation

        def note(name: str, part: str, values: np.ndarray | None, scale: float = 1.0) -> None:
            scaled = None if values is None else scale * values
            found.setdefault(name, {})[part] = summary(scaled, self.settings)

        for part, y in self.targets.items():
            f = predictions(group, part)
            note("rmse", part, audit.rmse(f, y), unit)
            note("mae", part, audit.mae(f, y), unit)
            note("explained", part, audit.explained(f, y, variance=self.deviation**2))
            if self.oracle is not None and group is not self.oracle:
                g = predictions(self.oracle, part)
                note("wasserstein", part, audit.wasserstein(f, g), unit)
                note("prediction_distance", part, audit.prediction_distance(f, g), unit)
        return found

    def whole(self, group: Group) -> dict[str, Any]:
        """There is no metric for all parts together."""
        del group
        return {}

    def membership(self, group: Group) -> dict[str, Any] | None:
        """{"error": {auc, accuracy, tpr}}: forgotten training examples against held-out ones of
        the same kind, told apart by the size of their errors."""
        if (signals := self._signals(group)) is None:
            return None
        members, others = signals
        rng = np.random.default_rng(self.settings.seed)
        try:
            accuracy = audit.attack_accuracy(members, others, folds=_FOLDS, rng=rng)
        except audit.TooFew as error:
            return {"undefined": str(error)}
        found = {
            "auc": audit.auc(members, others),
            "accuracy": accuracy,
            "tpr": audit.tpr_at_fpr(members, others, fpr=_FPR),
        }
        return {"error": {name: summary(values, self.settings) for name, values in found.items()}}

    def curve(self, group: Group) -> dict[str, list[float]] | None:
        """Mean over models of the ROC of that attack, on a common grid of false positive rates."""
        rates = []
        for m, o in zip(*(self._signals(group) or ((), ())), strict=True):
            if np.isfinite(m).all() and np.isfinite(o).all():
                roc = audit.roc_curve(m, o)
                rates.append(np.interp(_ROC_GRID, roc.fpr, roc.tpr))
        if not rates:
            return None
        return {"fpr": _ROC_GRID.tolist(), "tpr": np.mean(rates, axis=0).tolist()}

    def _signals(self, group: Group) -> tuple[np.ndarray, np.ndarray] | None:
        """-|y - f| of the forgotten and of the other examples; None where either is missing."""
        outsiders = next((part for part in _OUTSIDERS if part in self.targets), None)
        if outsiders is None or "forget" not in self.targets:
            return None

        def of(part: str) -> np.ndarray:
            f = predictions(group, part)
            return audit.entry_signal(f, f, score="misfit", ratings=self.targets[part])

        return of("forget"), of(outsiders)


def shown(target: Target) -> dict[str, Any]:
    """How the report shows a record of a regression, see `reporting.views`."""
    return {
        "column": {
            "metric": "rmse",
            "title": "RMSE",
            "unit": "",
            "scale": 1.0,
            "digits": max(0, 2 - math.floor(math.log10(target.deviation))),
            "limit": None,
            "words": "The first columns are root mean square errors, in the unit of the target "
            f"({target.name})",
            "premise": "Where a verdict speaks of accuracy, it is the share of the variance of the "
            "training targets that is explained; chance, 0, is predicting their mean.",
        },
        "whole": [],
        "attacks": {
            "words": "Mean ROC of the error attack: forgotten training examples against held-out "
            "ones, told apart by how small their errors are. Black is the oracle, which never saw "
            "either; dotted is guessing.",
            "tables": [
                [
                    "The error attack",
                    [
                        ["error", "auc", "AUC"],
                        ["error", "accuracy", "accuracy"],
                        ["error", "tpr", f"TPR at FPR {_FPR:g}"],
                    ],
                ]
            ],
        },
    }
