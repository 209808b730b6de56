"""The suite: which audits there are, in words, and how each places models apart.

    behaviour        what the models say: outputs on every part
    membership       can forgotten rows, and retained ones, be told from rows never seen?
    durability       does what was forgotten come back: relearning, other training, compression
    representation   what the features still hold: similarity, probes, steering

Every audit reads what `bench` measured of an ensemble and gives each model a place; `distances`
turns the places of several ensembles into one matrix of distances between models per
audit, which `audit.evidence` tests all at once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing.bench import Measured


class Audit(NamedTuple):
    """One audit, for people."""

    title: str
    family: str
    words: str


_OUTPUTS = {
    "forget": ("forget rows", "the rows that were to be forgotten"),
    "retain": ("retained rows", "training rows that were to stay"),
    "adjacent": ("adjacent rows", "retained rows that resemble the forgotten ones"),
    "remote": ("remote rows", "retained rows that do not"),
    "test": ("test rows", "unseen rows of other kinds"),
    "forget_test": ("unseen rows of the forgotten kind", "unseen rows of the forgotten kind"),
}

AUDITS: dict[str, Audit] = {
    **{
        f"outputs_{part}": Audit(
            f"Outputs on {title}",
            "behaviour",
            f"Probabilities on {words}, compared between models. A difference is one that anybody "
            "who uses the model can meet.",
        )
        for part, (title, words) in _OUTPUTS.items()
    },
    "margins": Audit(
        "Margins on forget rows",
        "behaviour",
        "Log-odds of the true label, row by row in deviations of that row. They tell a row that is "
        "known by heart from one that is merely classified rightly, where both probabilities are "
        "near 1.",
    ),
    "membership": Audit(
        "Membership of forgotten rows",
        "membership",
        "How well losses and margins tell forgotten training rows from unseen rows of the same "
        "kind. A difference says that the model still treats them as known, or as marked.",
    ),
    "retained_membership": Audit(
        "Membership of retained rows",
        "membership",
        "The same for retained training rows against test rows: forgetting some must not expose "
        "others.",
    ),
    "relearning": Audit(
        "Relearning",
        "durability",
        "The model is trained on one half of the forget rows and watched on the other half. "
        "What is relearned faster than by a retrained model was not gone.",
    ),
    "few_examples": Audit(
        "Relearning from few rows",
        "durability",
        "The same, from 1, 2, 4, ... forget rows: how much has to leak for the rest to come back.",
    ),
    "fresh_head": Audit(
        "Relearning with a fresh last layer",
        "durability",
        "The last layer is drawn anew, and the model is trained on retained rows and on the shown "
        "half of the forget rows. A mask on the last layer is gone then; what lay behind it is "
        "not.",
    ),
    "other_training": Audit(
        "Training on other data",
        "durability",
        "Training goes on with retained rows alone. What comes back without being shown was only "
        "hidden.",
    ),
    "pruning": Audit(
        "Pruning",
        "durability",
        "The smallest weights are set to zero. Small changes that hide what was forgotten are the "
        "first to go.",
    ),
    "quantisation": Audit(
        "Quantisation",
        "durability",
        "Weights are rounded to 8, 4 and 3 bits and to NF4. A change smaller than a rounding cell "
        "is undone by it.",
    ),
    "features_forget": Audit(
        "Features of forget rows",
        "representation",
        "Similarity (debiased CKA) of what the last layer reads, between models. It does not see "
        "the last layer, so hiding an answer there changes nothing here.",
    ),
    "features_test": Audit(
        "Features of unseen rows",
        "representation",
        "The same on unseen rows of other kinds: damage to, or traces in, what is shared.",
    ),
    "probes": Audit(
        "Probes",
        "representation",
        "Simple classifiers trained on the features: nearest neighbours, a linear probe, and a "
        "related task. They measure what could still be read off, not what the model says.",
    ),
    "steering": Audit(
        "Steering",
        "representation",
        "Features of the original that stand for what was forgotten are added half-way through "
        "the network. What comes back was suppressed, not deleted.",
    ),
}

DURABLE = tuple(key for key, each in AUDITS.items() if each.family == "durability")


def distances(groups: Sequence[Measured]) -> dict[str, np.ndarray]:
    """audit -> (M, M) distances between all models of these groups, in their order.

    Audits that some group was not measured by (no such part, no features) are absent. A model
    without finite outputs has NaN distances there; models whose features are constant or not finite
    are alike, and as far as can be from all others.
    """
    found: dict[str, np.ndarray] = {}
    for key in AUDITS:
        kind, _, part = key.partition("_")
        if kind == "outputs":
            matrix = _joined(
                groups, lambda g, part=part: g.logits.get(part), audit.hellinger_matrix
            )
        elif kind == "features":
            matrix = _joined(groups, lambda g, part=part: g.features.get(part), _cka_distances)
        else:
            matrix = _joined(groups, lambda g, key=key: g.places.get(key), audit.vector_distances)
        if matrix is not None:
            found[key] = matrix
    return found


def undefined(group: Measured) -> set[str]:
    """Audits for which some model of the group has no number, or features that are constant.

    Such models are placed by convention: that they differ is a fact, in which direction is none.
    """
    found = {key for key, values in group.places.items() if not np.isfinite(values).all()}
    for rows in ("forget", "test"):
        features = group.features.get(rows)
        if features is not None and features.shape[1] >= 4:
            if np.isnan(np.diagonal(audit.cka_matrix(features))).any():
                found.add(f"features_{rows}")
    return found


def _cka_distances(features: np.ndarray) -> np.ndarray | None:
    if features.shape[1] < 4:
        return None
    similar = audit.cka_matrix(features)
    D = audit.cka_distance(similar)
    lost = np.isnan(np.diagonal(similar))
    D[lost], D[:, lost] = np.sqrt(2), np.sqrt(2)
    D[np.ix_(lost, lost)] = 0.0
    return D


def _joined(groups: Sequence[Measured], read, place) -> np.ndarray | None:
    values = [read(group) for group in groups]
    if any(v is None or v.shape[1:] == (0,) or v.size == 0 for v in values):
        return None
    return place(np.concatenate(values))


def described(keys: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Title, family and words of these audits, for the record."""
    return {key: AUDITS[key]._asdict() for key in keys}
