"""Records as the experiments write them, of numbers that mean nothing and are all different."""

import numpy as np

from experiments.benchmarks import ensemble, speed_up
from jaxunlearn import results

PARTS = ("forget", "retain", "adjacent", "test", "forget_test")
FLOORS = ("forget", "retain", "adjacent", "test")
METRICS = ("jensen_shannon", "activation_distance", "prediction_agreement", "klom")
VERDICTS = {
    "retrain": "indistinguishable from retraining",
    "ssd": "under-forgotten",
    "finetune": "within recipe noise",
    "gradient_ascent(learning_rate=9.0)": "collapsed",
}


def summary(rng, scale=1.0):
    value = scale * rng.uniform(0.2, 0.9)
    return {"value": value, "low": 0.83 * value, "high": 1.07 * value}


def row(rng, label, role, verdict):
    attack = {name: summary(rng) for name in ("auc", "accuracy", "tpr")}
    scores = {"accuracy": {part: summary(rng) for part in PARTS}}
    if role != "oracle":
        scores |= {metric: {part: summary(rng) for part in PARTS} for metric in METRICS}
        scores["klom"] = {p: {"value": rng.uniform(2, 9), "quantile95": 9.5} for p in PARTS}
    found = {"verdict": "reference", "words": "a recipe that nobody would call different"}
    if role in ("original", "method"):
        found = {
            "verdict": verdict,
            "words": f"{verdict}: said of {label}",
            "p_value": rng.uniform(0.1, 0.9),
            "gap_closed": summary(rng),
            "collateral": summary(rng, 5.0),
        }
    found["energies"] = {part: rng.uniform(0.1, 2) for part in FLOORS}
    facts = {
        "method": label.split("(")[0],
        "arguments": {"alpha": rng.uniform(1, 9), "epochs": int(rng.integers(10, 99))},
        "preset": "a rule",
        "needs": ["forget"],
        "guarantee": "empirical",
        "paper": "2308.07707",
    }
    return {
        "label": label,
        "role": role,
        "models": 32 if role == "oracle" else 16,
        "scores": scores,
        "tug_of_war": summary(rng),
        "membership": {"loss": attack},
        "verdict": None if role == "oracle" else found,
        "seconds": {"compile": 3.0, "run": 2.0, "of_retraining": rng.uniform(0.2, 0.9)},
        **(facts if role == "method" else {}),
    }


def record(seed=0, **changes):
    """A comparison with all kinds of rows and parts, and numbers that mean nothing."""
    rng = np.random.default_rng(seed)
    rows = [row(rng, "original", "original", "under-forgotten"), row(rng, "oracle", "oracle", "")]
    rows.append(row(rng, "oracle, 38 epochs", "recipe", ""))
    rows += [row(rng, label, "method", verdict) for label, verdict in VERDICTS.items()]
    keys = ("value", "recipe", "resolution")
    floor = {m: {part: summary(rng) for part in PARTS} for m in METRICS}
    settings = {"seeds": 16, "oracles": 32, "seed": 0, "rows": 10_000}
    recipe = {"model": "mlp", "optimizer": "adam", "learning_rate": 0.002}
    made = {
        "schema": results.SCHEMA,
        "kind": "jaxunlearn compare",
        "status": "informative",
        "headline": "What was found.",
        "command": "jaxunlearn compare --source digits --forget class:3",
        "date": "2026-01-31",
        "machine": {"cpu": "A Processor", "cores": 2, "system": "Linux x86_64"},
        "task": {"name": "class:3", "source": "digits", "description": "Forget class 3."},
        "settings": settings | {"recipe": recipe | {"batch_size": 64, "epochs": 30}},
        "versions": {"jaxunlearn": "0.1.0", "machine": "2 x cpu (cpu)"},
        "seconds": 61.0,
        "parts": {part: {"examples": 9, "available": 9, "words": part} for part in PARTS},
        "floors": {part: {key: rng.uniform(0.1, 2) for key in keys} for part in FLOORS},
        "floor": floor | {"tug_of_war": summary(rng)},
        "rows": rows,
        "notes": ["ssd: a warning of the run"],
    }
    return made | changes


def benchmark(seed=0):
    """A timing of two programs of ours and three of PyTorch."""
    rng = np.random.default_rng(seed)
    kinds = {
        "ensemble, shard": "ours",
        "ensemble, map": "ours",
        "torch, 1 thread": "plain torch",
        "torch, 2 threads": "plain torch",
        "torch, 1 thread, fused Adam": "tuned torch",
    }
    programs = [
        {
            "program": program,
            "of": kind,
            **({"compile": rng.uniform(1, 9)} if kind == "ours" else {}),
            "models": 32 if kind == "ours" else 8,
            "seconds": rng.uniform(1, 9),
            "accuracy": rng.uniform(0.5, 0.9),
            "standard_error": rng.uniform(0.01, 0.09),
        }
        for program, kind in kinds.items()
    ]
    return {
        **{key: record()[key] for key in ("date", "machine", "versions", "seconds")},
        "schema": ensemble.SCHEMA,
        "kind": ensemble.KIND,
        "command": "python -m experiments.benchmarks.ensemble",
        "job": {
            "task": "class:3 of digits", "models": 32, "layers": [64, 128, 64, 10], "rows": 1078,
            "epochs": 30, "batch_size": 64, "learning_rate": 0.002, "repeats": 5, "devices": 2,
        },
        "floor": {"flops": 8.9e10, "rates": {"a shape": 3e11}, "seconds": rng.uniform(0.1, 0.9)},
        "programs": programs,
        "ratios": speed_up.ratios(programs),
        "same_job": speed_up.same_job(programs),
    }  # fmt: skip
