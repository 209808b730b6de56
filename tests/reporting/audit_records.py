"""A made-up audit, like those that `jaxunlearn audit` writes: its numbers hang together.

Every row lies somewhere between the oracles (0) and the originals (1); a leftover is seen by the
audits that look where it is. Nothing is trained.
"""

import numpy as np

AUDITS = {
    "outputs": ("Outputs", "behaviour", "Predictions on every part of the data are compared."),
    "lira": ("Likelihood-ratio attack", "membership", "Each forgotten example is attacked."),
    "relearning": ("Relearning", "durability", "The models train again on a few forgotten examples"
                   "; what was only hidden comes back sooner than it is learnt anew."),
    "quantisation": ("Four-bit weights", "durability", "The weights are rounded to four bits."),
    "cka": ("Similarity of features", "representation", "Features are compared by debiased CKA."),
    "probe": ("Linear probe", "representation", "A new last layer is trained on frozen features."),
}  # fmt: skip

# label -> (role, words, expected, verdict, how far from the oracles each audit sees it)
ROWS = {
    "original": ("original", "trained on everything, untouched", "flagged", "forgotten traces "
                 "remain", dict.fromkeys(AUDITS, 1.0)),
    "oracle": ("oracle", "true retrainings", None, None, {}),
    "retrain": ("method", "retraining, as a method", None, "indistinguishable from retraining", {}),
    "finetune(epochs=3)": ("method", "a few more epochs without the forgotten data", None,
                           "forgotten traces remain", dict.fromkeys(AUDITS, 0.6)),
    "ssd(alpha=5)": ("method", "dampens weights that matter to the forgotten data", None,
                     "came back", {"relearning": 0.8, "cka": 0.5, "probe": 0.7}),
    "neggrad_plus(alpha=0.99, epochs=12)": ("method", "ascends on the forgotten data", None,
                                            "differs from retraining", {"outputs": -0.3}),
    "gradient_ascent": ("method", "ascends until nothing is left", None, "collapsed", None),
    "head mask": ("control", "an original whose last layer was masked: its features remember",
                  "flagged", "came back", {"relearning": 1.0, "cka": 0.9, "probe": 1.0}),
    "half-contaminated oracle": ("control", "retrained with half of the forgotten data", "flagged",
                                 "forgotten traces remain", dict.fromkeys(AUDITS, 0.5)),
    "independent oracle": ("control", "retrained with seeds of its own", "not flagged",
                           "indistinguishable from retraining", {}),
}  # fmt: skip

MEASURES = {
    "accuracy": ("Accuracy on forgotten data", "behaviour", "%", "oracle", 100.0, 1, 0.10, 0.99),
    "klom": ("KLoM", "behaviour", "", "low", 1.0, 2, 0.31, 9.4),
    "auc": ("AUC of the likelihood-ratio attack", "membership", "", "oracle", 1.0, 3, 0.50, 0.93),
    "tpr": ("Recognised at 1 % false alarms", "membership", "%", "oracle", 100.0, 1, 0.01, 0.34),
    "steps": ("Steps until relearnt", "durability", "steps", "oracle", 1.0, 0, 42.0, 1.0),
    "rounded": ("Accuracy after rounding to four bits", "durability", "%", "oracle", 100.0, 1,
                0.11, 0.98),
    "cka": ("Debiased CKA with the original", "representation", "", "oracle", 1.0, 3, 0.41, 0.97),
    "probe": ("Accuracy of a linear probe", "representation", "%", "oracle", 100.0, 1, 0.62, 0.99),
}  # fmt: skip
CURVES = {
    "relearning": ("Relearning", "durability", "steps", "accuracy on forgotten data",
                   [0, 1, 2, 5, 10, 20, 50], None, True),
    "bits": ("Rounding", "durability", "bits", "accuracy on forgotten data", [32, 8, 4, 3],
             ["32 (none)", "8", "4", "3"], False),
    "probes": ("Probe by number of labels", "representation", "labels per class", "accuracy",
               [1, 3, 10, 30], None, True),
}  # fmt: skip


def summary(rng, value, scale):
    half = scale * rng.uniform(0.3, 1)
    return {"value": value, "low": value - half, "high": value + 1.3 * half}


def place(far, key):
    """How far from the oracles (0) towards the originals (1) an audit of that name sees a row."""
    return 0.0 if far is None else far.get(key, 0.0)


def measures(rng, far):
    found = {}
    for key, (_, _, _, _, _, _, oracle, original) in MEASURES.items():
        audit = {"klom": "outputs", "accuracy": "outputs", "auc": "lira", "tpr": "lira"}.get(
            key, {"steps": "relearning", "rounded": "quantisation"}.get(key, key)
        )
        value = oracle + place(far, audit) * (original - oracle)
        found[key] = summary(rng, value, 0.03 * abs(original - oracle))
    return found


def curves(rng, far):
    found = {}
    for key, (_, _, _, _, x, _, _) in CURVES.items():
        t = np.linspace(0, 1, len(x))
        if key == "bits":
            lift, y = place(far, "quantisation"), np.full(len(x), 0.1)
        else:
            lift = place(far, "relearning" if key == "relearning" else "probe")
            y = 0.1 + 0.8 * t**2
        y = np.clip(y + lift * (0.95 - y) * (1 - 0.3 * (t == 0)), 0, 1)
        half = 0.02 + 0.03 * rng.uniform(size=len(x))
        found[key] = {"value": y.tolist(), "low": (y - half).tolist(), "high": (y + half).tolist()}
    return found


def roc(far):
    fpr = np.concatenate([[0.0], np.geomspace(1e-3, 1, 40)])
    return {"fpr": fpr.tolist(), "tpr": (fpr ** (1 - 0.7 * max(0.0, place(far, "lira")))).tolist()}


def examples(rng, far, size):
    shift = 0.4 * place(far, "lira") * rng.beta(0.7, 1.2, size)
    floor = np.clip(0.5 + 0.06 * rng.standard_normal(size), 0, 1)
    score = np.clip(0.5 + 0.06 * rng.standard_normal(size) + shift, 0, 1)
    return {"score": score.tolist(), "floor": floor.tolist()}


def row(rng, label):
    role, words, expected, verdict, far = ROWS[label]
    made = {"label": label, "role": role, "models": 32 if role == "oracle" else 16}
    made |= {"words": words, "expected": expected, "finding": None, "evidence": {}}
    made |= {"measures": measures(rng, far), "curves": curves(rng, far), "roc": roc(far)}
    made["examples"] = {part: examples(rng, far, n) for part, n in (("forget", 24), ("retain", 90))}
    if role == "oracle":
        return made
    if far is None:  # models that were destroyed: nothing of them is a number
        made["finding"] = {
            "verdict": "collapsed",
            "words": "collapsed: 16 of 16 models gave non-finite outputs",
            "p_value": None,
            "flagged": [],
            "came_back": [],
        }
        made |= {"evidence": dict.fromkeys(AUDITS), "examples": None, "roc": None}
        made |= {"measures": dict.fromkeys(MEASURES), "curves": dict.fromkeys(CURVES)}
        return made  # fmt: skip
    for key in AUDITS:
        seen = place(far, key)
        made["evidence"][key] = {
            "p_value": 0.0005 if seen else round(float(rng.uniform(0.1, 1)), 3),
            "energy": 0.8 * seen**2 + 0.01 * float(rng.standard_normal()),
            "resolution": 0.03 * (1 + list(AUDITS).index(key)),
            "direction": None if not seen else "towards the original" if seen > 0 else
            "away from it",
        }  # fmt: skip
    flagged = [key for key in AUDITS if place(far, key)]
    came_back = [key for key in ("relearning",) if key in flagged and verdict == "came back"]
    p = min(each["p_value"] for each in made["evidence"].values())
    words = f"{verdict}: {len(flagged)} of {len(AUDITS)} audits tell it from retraining."
    made["finding"] = {"verdict": verdict, "words": words, "p_value": p, "flagged": flagged,
                       "came_back": came_back}  # fmt: skip
    return made


def shadow(rng, label):
    far = ROWS[label][4]
    lift = 0.4 * max(0.0, place(far, "lira"))
    tpr = {rate: summary(rng, float(rate) + lift, 0.02) for rate in ("0.1", "0.01")}
    return {
        "label": label,
        "accuracy": summary(rng, 0.5 + lift, 0.02),
        "auc": summary(rng, 0.5 + 1.1 * lift, 0.02),
        "tpr": tpr | {"0.001": None},
        "worst": 0.55 + lift,
        "examples": examples(rng, far, 30)["score"],
        "roc": roc(far),
    }


def plausible(labels=tuple(ROWS), shadows=True, seed=0):
    """A record with these rows of `ROWS`."""
    rng = np.random.default_rng(seed)
    rows = [row(rng, label) for label in labels]
    attacked = [shadow(rng, label) for label in labels if ROWS[label][4] is not None]
    return {
        "schema": 1,
        "kind": "jaxunlearn audit",
        "status": "informative",
        "run": {"results": "results.json", "digest": "f" * 64},
        "task": {"name": "class:3", "words": "class 3", "source": "digits",
                 "description": "Forget class 3 of digits: 122 of 1200 training rows."},
        "settings": {"level": 0.05, "permutations": 1999, "seed": 0, "relearn_steps": 50},
        "versions": {"jaxunlearn": "0.1.0", "jax": "0.10.2"},
        "metrics": {"lira": "1", "klom": "1"},
        "seconds": 93.1,
        "command": "jaxunlearn audit --run out",
        "audits": {k: dict(zip(("title", "family", "words"), told, strict=True))
                   for k, told in AUDITS.items()},
        "measures": {
            key: {"title": title, "family": family, "unit": unit, "aim": aim, "scale": scale,
                  "digits": digits, "words": f"What {title} is."}
            for key, (title, family, unit, aim, scale, digits, _, _) in MEASURES.items()
        },
        "curves": {
            key: {"title": title, "family": family, "words": f"How {title.lower()} goes.",
                  "x_title": across, "y_title": up, "x": x, "ticks": ticks, "log_x": log}
            for key, (title, family, across, up, x, ticks, log) in CURVES.items()
        },
        "floors": measures(rng, {}) | {"cka": None},
        "rows": rows,
        "shadows": {"pairs": 64, "words": "Half of the pairs forgot, half never saw the targets.",
                    "rows": attacked} if shadows else None,
        "notes": ["gradient_ascent: all models gave non-finite outputs."],
    }  # fmt: skip


def row_of(audit, label):
    """The row of that label."""
    return next(row for row in audit["rows"] if row["label"] == label)
