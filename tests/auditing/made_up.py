"""Measured ensembles that nobody trained: every model lies somewhere between the oracles (0) and
the originals (1), in each audit by itself."""

import types
import zlib

import numpy as np

from jaxunlearn import compare
from jaxunlearn.auditing import Bench, Measured
from jaxunlearn.auditing.membership import mean_roc, outsiders

SIZES = {"forget": 12, "retain": 16, "test": 14, "forget_test": 12}
CLASSES = 4
STEPS = [0, 5, 10, 20]
CURVES = {
    "relearning": STEPS,
    "few_examples": [1, 2, 4],
    "fresh_head": STEPS,
    "other_training": STEPS,
    "pruning": [0.0, 0.5, 0.9],
    "quantisation": ["32 bits", "8 bits", "4 bits"],
}
VECTORS = {
    "margins": 12,
    "membership": 4,
    "retained_membership": 4,
    "probes": 5,
    "steering": 3,
}

_world = np.random.default_rng(0)
LABELS = {part: _world.integers(0, CLASSES, n) for part, n in SIZES.items()}
_BASE = {part: _world.normal(0, 1, (n, CLASSES)) for part, n in SIZES.items()}
_AWAY = {part: 3 * np.eye(CLASSES)[LABELS[part]] for part in SIZES}
_FEATURES = {part: _world.normal(0, 1, (2, SIZES[part], 5)) for part in ("forget", "test")}


def measured(models, seed, far=0.0, *, curves=None, without=()):
    """An ensemble; its models differ by noise.

    far: a number for everything, or {audit: number}, 0 where it is not named.
    curves: {curve: number for each place}, in place of `far`.
    without: fields that are empty.
    """

    def noise(key, *shape):
        """A stream for each name: one audit more leaves the others as they are."""
        return np.random.default_rng([seed, zlib.crc32(key.encode())]).normal(size=shape)

    def at(key):
        return far.get(key, 0.0) if isinstance(far, dict) else far

    logits = {
        part: (
            _BASE[part]
            + at(f"outputs_{part}") * _AWAY[part]
            + 0.2 * noise(f"outputs_{part}", models, *_BASE[part].shape)
        ).astype(np.float32)
        for part in SIZES
    }
    features = {
        part: (
            (1 - at(f"features_{part}")) * start
            + at(f"features_{part}") * end
            + 0.2 * noise(f"features_{part}", models, *start.shape)
        ).astype(np.float32)
        for part, (start, end) in _FEATURES.items()
    }
    lines = {}
    for key, places in CURVES.items():
        t = np.full(len(places), at(key)) if key not in (curves or {}) else np.array(curves[key])
        lines[key] = 0.1 + 0.7 * t + 0.02 * noise(key, models, len(places))
    vectors = {key: at(key) + 0.1 * noise(key, models, size) for key, size in VECTORS.items()}
    numbers = {
        "forget_loss_auc": 0.5 + 0.3 * at("membership") + 0.02 * noise("auc", models),
        "exposure": 1.44 + at("membership") + 0.1 * noise("exposure", models),
        "not_for_people": noise("other", models),
    }
    made = Measured(logits, features, lines | vectors, lines, numbers)
    return made._replace(**{field: {} for field in without})


def some(group, models):
    """These models of an ensemble."""
    return Measured(*({k: v[models] for k, v in field.items()} for field in group))


def bench(**changes):
    """What the judges ask of a `Bench`."""
    found = types.SimpleNamespace(
        labels=LABELS,
        settings=compare.Settings(seeds=6, oracles=8),
        rows=512,
        axes=CURVES,
        outsiders=lambda: outsiders(LABELS),
        broken=lambda group: Bench.broken(found, group),  # type: ignore[arg-type]
        roc=lambda group: mean_roc(group.logits, LABELS),
    )
    vars(found).update(changes)
    return found
