"""The auditors, audited: does each bound and interval hold as often as it says, and is it any use?

    python -m experiments.auditor_coverage          a few minutes on two cores

| study     | what is simulated                                         | what is counted         |
|-----------|-----------------------------------------------------------|-------------------------|
| epsilon   | two worlds whose epsilon is known exactly, n runs in each | bounds beyond the truth |
| one run   | canaries told by randomised response, one model           | bounds beyond the truth |
| claims    | noise of 2/3, 1 and 3/2 times the deviation claimed       | claims refuted          |
| noise     | the same, Kolmogorov-Smirnov against the claim            | claims refuted          |
| intervals | means over few models, of three laws                      | intervals with the mean |
| rates     | every rate from 0.01 to 0.99, by summing, not by chance   | intervals with the rate |
| areas     | AUC of Gaussian signals, of few examples                  | intervals with the area |
| exposure  | canaries that no model has seen                           | mean, share of 3 bits   |

Worlds: "gaussian" N(mu, 1) against N(0, 1), whose epsilon at delta = 0.01 is that of the Gaussian
mechanism; "pure", where every threshold has the ratio e^epsilon exactly, so that a look at many
thresholds is a temptation as great as can be.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from experiments import machine
from jaxunlearn import audit, compare

SCHEMA = 1
KIND = "jaxunlearn auditor coverage"
CONFIDENCE = 0.95
DELTA = 0.01
HOWS = ("exact", "bonferroni", "dkw", "split")
WORLDS = {"no difference": 0.0, "gaussian, mu 1": 1.0, "gaussian, mu 2.5": 2.5, "pure": None}
PURE = 1.0  # epsilon of the pure worlds
RUNS = (16, 64, 256, 1024)
SCALES = {"2/3": 2 / 3, "1": 1.0, "3/2": 3 / 2}
LAWS = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "near a ceiling": (lambda rng, size: rng.beta(20, 1, size=size), 20 / 21),
}
INTERVALS = ("percentile", "expanded", "student", "studentised")
MODELS = (8, 16, 32, 64)


# -------------------------------------------------------------------------------------- the worlds


def worlds(
    name: str, runs: int, trials: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Scores of both worlds, (runs, trials) each, delta, and the true epsilon."""
    mu = WORLDS[name]
    if mu is not None:
        truth = float(audit.gaussian_epsilon(mu, DELTA))
        shape = (runs, trials)
        return rng.normal(mu, 1, shape), rng.normal(0, 1, shape), DELTA, truth

    def pure(rate: float) -> np.ndarray:
        tail = rng.random((runs, trials)) < rate
        return np.where(tail, rng.exponential(size=tail.shape), -rng.random(tail.shape))

    return pure(0.6), pure(0.6 * np.exp(-PURE)), 0.0, PURE


# ------------------------------------------------------------------------------------- the studies


def epsilon_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often a bound exceeds the truth, and how much of it it shows."""
    rows = []
    for name in WORLDS:
        for runs in RUNS:
            a, b, delta, truth = worlds(name, runs, trials, rng)
            for how in HOWS:
                halves = rng if how == "split" else None
                found = audit.epsilon_bound(
                    a, b, delta=delta, confidence=CONFIDENCE, how=how, rng=halves
                )
                rows.append({
                    "world": name, "runs": runs, "how": how, "truth": truth, "delta": delta,
                    "exceeded": float((found.epsilon > truth).mean()),
                    "mean": float(found.epsilon.mean()), "largest": found.largest,
                })  # fmt: skip
    return rows


def one_run_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]] | None:
    """The same of one run with canaries; None where jax-privacy is not installed."""
    truth, rows = 1.5, []
    for canaries in (50, 250, 1000):
        told = rng.random((trials, 2 * canaries)) < 1 / (1 + np.exp(-truth))
        noise = 0.01 * rng.random(told.shape)
        a, b = told[:, :canaries] + noise[:, :canaries], ~told[:, canaries:] + noise[:, canaries:]
        for how in ("split", "bonferroni"):
            try:
                found = audit.one_run_epsilon(
                    a, b, delta=1e-6, confidence=CONFIDENCE, how=how, seed=int(rng.integers(2**31))
                )
            except ImportError:
                return None
            rows.append({
                "canaries": 2 * canaries, "how": how, "truth": truth,
                "exceeded": float((found > truth).mean()), "mean": float(found.mean()),
            })  # fmt: skip
    return rows


def claims_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Noise of another scale than was claimed: refuted by the bound, and by its distribution."""
    delta, claim, rows = 0.1, float(audit.gaussian_epsilon(1.0, 0.1)), []
    for name, scale in SCALES.items():
        for n in (256, 1024, 4096):
            noise = rng.normal(0, scale, (2, n, trials))
            found = audit.epsilon_bound(1 + noise[0], noise[1], delta=delta, direction="larger")
            tested = audit.noise_p_value(noise[0].T, scale=1.0)
            rows.append({
                "scale": name, "n": n, "claim": claim, "delta": delta,
                "bound": float((found.epsilon > claim).mean()), "mean": float(found.epsilon.mean()),
                "noise": float((tested <= 1 - CONFIDENCE).mean()),
            })  # fmt: skip
    return rows


def intervals_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often an interval of a mean over models holds it, and its mean width."""
    rows = []
    for name, (draw, mean) in LAWS.items():
        for models in MODELS:
            values = draw(rng, (trials, models))
            for how in INTERVALS:
                found = [audit.mean_interval(v, rng=rng, level=CONFIDENCE, how=how) for v in values]
                low, high = np.array([(i.low, i.high) for i in found if i is not None]).T
                rows.append({
                    "law": name, "models": models, "how": how,
                    "covered": float(((low <= mean) & (mean <= high)).mean()),
                    "width": float((high - low).mean()),
                })  # fmt: skip
    return rows


def rates_study() -> list[dict[str, Any]]:
    """Least coverage over all rates, by summing the binomial law: Clopper-Pearson and Wald."""
    rates, rows = np.linspace(0.01, 0.99, 99), []
    for n in (8, 16, 64, 256):
        k = np.arange(n + 1)
        exact = audit.clopper_pearson(k, n, confidence=CONFIDENCE)
        half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
        mass = scipy.stats.binom.pmf(k[None], n, rates[:, None])
        row: dict[str, Any] = {"trials": n}
        for how, (low, high) in {
            "clopper-pearson": exact,
            "wald": (k / n - half, k / n + half),
        }.items():
            inside = (low[None] <= rates[:, None]) & (rates[:, None] <= high[None])
            row[how] = float((mass * inside).sum(axis=1).min())
        rows.append(row)
    return rows


def areas_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Coverage of the interval of an AUC."""
    rows = []
    for shift in (0.0, 1.0, 2.0):
        truth = float(scipy.stats.norm.cdf(shift / np.sqrt(2)))
        for m, k in ((20, 20), (20, 200), (100, 100)):
            a, b = rng.normal(shift, 1, (trials, m)), rng.normal(0, 1, (trials, k))
            found = audit.auc_interval(a, b, confidence=CONFIDENCE)
            inside = (found.low <= truth) & (truth <= found.high)
            rows.append({
                "members": m, "nonmembers": k, "truth": truth, "covered": float(inside.mean()),
                "width": float((found.high - found.low).mean()),
            })  # fmt: skip
    return rows


def exposure_study(trials: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Canaries that nobody has seen: their mean exposure, and how often it is 3 bits or more."""
    rows = []
    for references in (31, 255):
        losses = rng.gumbel(size=(min(trials, 500), references + 1))
        for how in ("rank", "interpolated", "extrapolated"):
            found = audit.exposure(losses[:, :1], losses[:, 1:], how=how)
            assert found is not None
            rows.append({
                "references": references, "how": how, "mean": float(found.mean()),
                "floor": audit.exposure_floor(references),
                "beyond": float((found >= 3).mean()),
                "largest": audit.largest_exposure(references),
            })  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------- the run


def study(trials: int, seed: int) -> dict[str, Any]:
    """Everything, as plain data."""
    made: dict[str, Any] = {}
    for number, (name, run) in enumerate({
        "epsilon": epsilon_study, "one_run": one_run_study, "claims": claims_study,
        "intervals": intervals_study, "areas": areas_study, "exposure": exposure_study,
    }.items()):  # fmt: skip
        begin = time.perf_counter()
        few = max(2, trials // 10) if name in ("one_run", "claims") else trials
        made[name] = run(few, np.random.default_rng([seed, number]))
        print(f"{time.perf_counter() - begin:7.1f} s  {name}", file=sys.stderr, flush=True)
    return {**made, "rates": rates_study()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates, writes `OUT/auditor_coverage.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.auditor_coverage", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder")
    add("--trials", type=int, default=2000, help="of each simulation; a tenth of the dear ones")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.trials < 2:
        parser.error("--trials: at least 2")
    begin = time.perf_counter()
    command = "python -m experiments.auditor_coverage"
    changed = f" --trials {options.trials}" if options.trials != 2000 else ""
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command + changed,
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        "confidence": CONFIDENCE,
        "trials": options.trials,
        "studies": study(options.trials, options.seed),
    }
    record["seconds"] = time.perf_counter() - begin
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "auditor_coverage.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
