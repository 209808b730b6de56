"""What leaving rows out of a kernel machine costs, against fitting it again; and the width table.

    python -m experiments.benchmarks.kernel                 some minutes on two cores

    speed-up  = seconds of a refit / seconds of the deletion         medians over interleaved turns
    agreement = max |alpha - alpha of the refit| / max |alpha of the refit|

| program          | what it does                                                               |
|------------------|----------------------------------------------------------------------------|
| leave_out        | alpha without F, from G: a question, the state stays                       |
| forget           | the state without F: G downdated, K, x, y wiped, error measured            |
| refit            | the state anew on what is left, same checks, same shapes                   |
| SciPy            | cho_factor and cho_solve on K_SS: alpha alone, K given                     |
| path / ascent    | hinge: support vectors led out, against dual ascent from zeros             |
| SVC              | scikit-learn's libsvm on K_SS, with an intercept that ours does not have   |

All in float64, compiled apart, `block_until_ready`, on the same rows in the same process. The width
table is `kernel_width`: networks trained without F against the kernel machine that forgot F.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg

from experiments import machine
from experiments.benchmarks import kernel_width
from jaxunlearn import compare, kernel_machine, kernel_ridge
from jaxunlearn.kernels.functions import rbf

SCHEMA = 1
KIND = "jaxunlearn kernel benchmark"
RHO = 0.1
ROOT = Path(__file__).resolve().parents[2]


def timed(programs: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each program; they take turns, and a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (n, 5), y (n,) of -1 and 1 with a tenth of the labels flipped."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5))
    return x, np.sign(x[:, 0] * x[:, 1] + x[:, 2]) * np.where(rng.random(n) < 0.1, -1, 1)


def ridge(n: int, forget: Sequence[int], turns: int, seed: int) -> list[dict[str, Any]]:
    """For each |F|: seconds and agreement of kernel ridge."""
    x, y = data(n, seed)
    of = kernel_ridge(kernel=rbf(gamma=0.2), rho=RHO)
    state = of.init(x, y)
    found = []
    for count in forget:
        rows = np.random.default_rng(seed + 1).choice(n, count, replace=False)
        keep = np.setdiff1d(np.arange(n), rows)
        without = of.forget(state, rows)
        gram = np.asarray(state.gram)[np.ix_(keep, keep)]

        def peer(gram: np.ndarray = gram, keep: np.ndarray = keep) -> np.ndarray:
            factor = scipy.linalg.cho_factor(gram + RHO * np.eye(len(gram)), lower=True)
            return scipy.linalg.cho_solve(factor, y[keep])

        seconds = timed(
            {
                "leave_out": lambda rows=rows: of.leave_out(state, rows),
                "forget": lambda rows=rows: of.forget(state, rows),
                "refit": lambda without=without: of.refit(without),
                "SciPy": peer,
            },
            turns,
        )
        exact = peer()
        answers = {"leave_out": of.leave_out(state, rows), "forget": without.alpha}
        off = {name: _off(np.asarray(a)[keep], exact) for name, a in answers.items()}
        found.append({"n": n, "forget": count, "seconds": seconds, "agreement": off})
    return found


def hinge(n: int, forget: Sequence[int], turns: int, seed: int) -> list[dict[str, Any]]:
    """For each |F| of support vectors: seconds of the path and of ascent from zeros."""
    x, y = data(n, seed)
    of = kernel_machine(kernel=rbf(gamma=0.2), rho=1.0)
    state = of.init(x, y)
    support = np.flatnonzero(np.asarray(state.alpha))
    found = []
    for count in forget:
        rows = np.random.default_rng(seed + 1).choice(support, count, replace=False)
        without = of.forget(state, rows)
        programs = {
            "path": lambda rows=rows: of.forget(state, rows),
            "ascent": lambda without=without: of.refit(without),
        } | _libsvm(np.asarray(state.gram), y, rows)
        seconds, again = timed(programs, turns), of.refit(without)
        found.append({
            "n": n, "forget": count, "support": len(support), "events": int(without.events),
            "gap": float(without.gap), "seconds": seconds,
            "agreement": _off(np.asarray(without.alpha), np.asarray(again.alpha)),
        })  # fmt: skip
    return found


def _libsvm(gram: np.ndarray, y: np.ndarray, rows: np.ndarray) -> dict[str, Callable[[], Any]]:
    """scikit-learn's SVC on what is left, if it is installed."""
    try:
        from sklearn.svm import SVC
    except ImportError:
        return {}
    keep = np.setdiff1d(np.arange(len(y)), rows)
    own, labels = gram[np.ix_(keep, keep)], y[keep]
    return {"SVC": lambda: SVC(kernel="precomputed", tol=1e-6).fit(own, labels).dual_coef_}


def _off(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    common = (options.turns, options.seed)
    with jax.enable_x64(True):
        ridges = [row for n in options.sizes for row in ridge(n, options.forget, *common)]
        hinges = [row for n in options.hinge_sizes for row in hinge(n, options.forget[:2], *common)]
    widths = {
        name: kernel_width.table(tuple(options.widths), options.seeds, options.steps, name)
        for name in kernel_width.LOSSES
    }
    asked = {name: getattr(options, name) for name in _ASKED}
    words = [f"--{k.replace('_', '-')} {_words(v)}" for k, v in asked.items()]
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": " ".join(["python -m experiments.benchmarks.kernel", *words]),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        **asked,
        "ridge": ridges,
        "hinge": hinges,
        "widths": widths,
        "moved": {name: kernel_width.moved(name, options.steps) for name in widths},
        "seconds": time.perf_counter() - begin,
    }


_ASKED = ("sizes", "hinge_sizes", "forget", "turns", "seed", "widths", "seeds", "steps")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the section, writes `OUT/kernel.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.kernel", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "experiments" / "results", help="folder")
    add("--sizes", nargs="+", type=int, default=[500, 1000, 2000], help="rows, kernel ridge")
    add("--hinge-sizes", nargs="*", type=int, default=[500, 1000], help="rows, hinge")
    add("--forget", nargs="+", type=int, default=[1, 10, 100], help="rows to forget")
    add("--turns", type=int, default=5)
    add("--seed", type=int, default=0, help="of data and of what is forgotten")
    add("--widths", nargs="+", type=int, default=[64, 512, 4096])
    add("--seeds", type=int, default=5, help="networks per width")
    add(
        "--steps",
        type=int,
        default=300,
        help="of descent; the hinge takes ten times as many",
    )
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    record = benchmark(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "kernel.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
