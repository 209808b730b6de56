"""Attacks on membership, model by model: forgotten and retained rows against unseen ones.

    AUC, TPR    of the loss, modified entropy and margin, members against unseen rows of the kind
    population  mean share of unseen rows of a forget row's label with a smaller margin
    exposure    rank of each forget row's loss among those of unseen rows, in bits
    efficacy    share of the forget rows that the model's own attacker calls unseen

A row of the forgotten kind that was never seen is what a forgotten row should look like; where no
kind can be told (rows chosen at random), every test row is of the kind.
"""

from collections.abc import Container, Mapping

import numpy as np

from jaxunlearn import audit

_RATES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])  # false positive rates of a curve


def outsiders(parts: Container[str]) -> str | None:
    """Unseen rows of the forgotten kind, or of all kinds where all are forgotten from.

    Example:
      >>> outsiders(["forget", "test", "forget_test"]), outsiders(["test"]), outsiders([])
      ('forget_test', 'test', None)
    """
    return next((part for part in ("forget_test", "test") if part in parts), None)


def membership(
    logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, np.ndarray]:
    """measure -> (M,) one number for each model.

    Args:
      logits: part -> (M, n, C).
      labels: part -> (n,).
      seed: of the attacker behind `mia_efficacy`.

    Returns:
      Without unseen rows, nothing; NaN for a model whose outputs are not finite.
    """
    found: dict[str, np.ndarray] = {}
    pairs = {"forget": outsiders(logits), "retain": "test" if "test" in logits else None}
    for part, others in pairs.items():
        if others is None:
            continue
        inside, outside = (
            {
                score: audit.attack_signal(logits[p], labels[p], score=score)
                for score in ("loss", "modified_entropy", "margin")
            }
            for p in (part, others)
        )
        for score in inside:
            found[f"{part}_{score}_auc"] = audit.auc(inside[score], outside[score])
        for name, fpr in (("tenth", 0.1), ("percent", 0.01), ("permille", 0.001)):
            found[f"{part}_tpr_{name}"] = audit.tpr_at_fpr(inside["loss"], outside["loss"], fpr=fpr)
        if part == "forget":
            ranks = audit.population_attack(
                inside["margin"], outside["margin"], labels=labels[part],
                population_labels=labels[others],
            )  # fmt: skip
            known = np.isfinite(ranks)  # not so where no unseen row has the label
            sums, counts = np.where(known, ranks, 0.0).sum(axis=1), known.sum(axis=1)
            found["population"] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
            bits = audit.exposure(-inside["loss"], -outside["loss"])
            if bits is not None:
                found["exposure"] = bits.mean(axis=1)
    if "retain" in logits and "test" in logits:
        signals = [
            audit.attack_signal(logits[p], labels[p], score="loss")
            for p in ("retain", "test", "forget")
        ]
        rng = np.random.default_rng([seed, 2])
        found["mia_efficacy"] = audit.mia_efficacy(*signals, rng=rng)
    return found


def mean_roc(
    logits: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Mean over models of the ROC of the loss attack on forget rows, at fixed rates.

    Returns:
      {"fpr": (61,), "tpr": (61,)}; models that are not finite are left out. None where nothing is
      left, or there is no unseen row.
    """
    others = outsiders(logits)
    if others is None:
        return None
    inside, outside = (
        audit.attack_signal(logits[p], labels[p], score="loss") for p in ("forget", others)
    )
    curves = [
        audit.roc_curve(m, o)
        for m, o in zip(inside, outside, strict=True)
        if np.isfinite(m).all() and np.isfinite(o).all()
    ]
    if not curves:
        return None
    steps = [np.interp(_RATES, each.fpr, each.tpr) for each in curves]
    return {"fpr": _RATES, "tpr": np.mean(steps, axis=0)}
