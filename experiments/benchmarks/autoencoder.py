"""What deleting a person from a linear autoencoder costs, against fitting it again.

    python -m experiments.benchmarks.autoencoder                     some minutes on two cores
    python -m experiments.benchmarks.autoencoder --items 100 --out /tmp/out       a second or two

    ratio = seconds of the fastest refit / seconds of a request      in the same process, in turns
    error = max |B - B*|,    B* the refit in float64 on the people who stay

| fairness            | how                                                                        |
|---------------------|----------------------------------------------------------------------------|
| same job            | all end with P; the error of each is measured in the run                   |
| equal conditions    | requests and refits take turns in one process; the median of repeats       |
| rival at its best   | `numpy.linalg.inv` as in the published code, and our Cholesky; the faster  |
| the rival's Gram    | given to it (one row is subtracted); making it from X is shown apart       |
| whole requests      | a request is `learner.forget` with all its checks, not its inner program   |
| nothing prepared    | no compiled program is read from a cache; compile time is shown apart      |

Data: planted implicit feedback, every count taken as 1; 3 people an item, 40 entries a person.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import machine
from jaxunlearn import compare
from jaxunlearn.data import Ratings, low_rank_ratings
from jaxunlearn.linalg import kept_inverse
from jaxunlearn.methods.exact.autoencoder import ease

SCHEMA = 1
KIND = "jaxunlearn linear autoencoder benchmark"
RESULTS = Path(__file__).resolve().parents[1] / "results"
SIZES = (1000, 2000, 4000)
DTYPES = ("float64", "float32")
PEOPLE = (1, 16)  # of one request
REFITS = ("numpy.linalg.inv", "Cholesky")
REGULARISATION = 100.0
PER_ITEM, PER_PERSON = 3, 40
EXACT = 1e-10  # asked for, float64


def feedback(items: int, seed: int) -> Ratings:
    """Who had what: 3 people for each item, 40 entries a person on average, all 1."""
    made = low_rank_ratings(
        users=PER_ITEM * items,
        items=items,
        rank=16,
        density=min(0.5, PER_PERSON / items),
        noise=0.3,
        seed=seed,
        kind="implicit",
    )
    ones = np.ones(len(made), np.float32)
    return Ratings(user=made.user, item=made.item, value=ones, users=made.users, items=made.items)


def weights_of(inverse: np.ndarray) -> np.ndarray:
    """B of P, in float64."""
    b = -inverse / np.diag(inverse)[None]
    np.fill_diagonal(b, 0)
    return b


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and range of repeats."""
    return {"value": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds), the result being there."""
    begin = time.perf_counter()
    out = jax.block_until_ready(function())
    return out, time.perf_counter() - begin


def measured(data: Ratings, dtype: str, repeats: int) -> dict[str, Any]:
    """One size in one dtype: times of requests and refits in turns, and how far each is off."""
    x, items = data.matrix(), data.items
    learner = ease(users=data.users, items=items, regularisation=REGULARISATION, dtype=dtype)
    fitted, _ = timed(lambda: learner.learn(learner.init(), np.arange(data.users), data))
    gram, gram_seconds = timed(lambda: (x.T @ x).toarray())
    ridge = gram.astype(np.float64) + REGULARISATION * np.eye(items)
    renew = jax.jit(partial(kept_inverse.renewed, regularisation=REGULARISATION))

    def request(state: Any, who: np.ndarray) -> Any:
        return learner.forget(state, who, x[who].toarray())

    compile_seconds = {str(m): timed(lambda m=m: request(fitted, np.arange(m)))[1] for m in PEOPLE}
    timed(lambda: renew(fitted.kept))  # compiled
    seconds: dict[str, list[float]] = {name: [] for name in (*map(str, PEOPLE), *REFITS)}
    errors: dict[str, float] = {}
    for turn in range(repeats):
        for m in PEOPLE:
            who = turn * m + np.arange(m)
            after, spent = timed(lambda who=who: request(fitted, who))
            seconds[str(m)].append(spent)
            if turn == 0:
                gone = x[who].toarray().astype(np.float64)
                truth = weights_of(np.linalg.inv(ridge - gone.T @ gone))
                b = np.asarray(learner.weights(after), np.float64)
                errors[str(m)] = float(np.abs(b - truth).max())
                moved = np.abs(np.asarray(learner.weights(fitted), np.float64) - truth).max()
                errors[f"{m} not forgotten"] = float(moved)
        matrix = ridge.astype(dtype)
        inverse, spent = timed(lambda matrix=matrix: np.linalg.inv(matrix))
        seconds["numpy.linalg.inv"].append(spent)
        renewed, spent = timed(lambda: renew(fitted.kept))
        seconds["Cholesky"].append(spent)
        if turn == 0:
            truth = weights_of(np.linalg.inv(ridge))
            for name, p in (("numpy.linalg.inv", inverse), ("Cholesky", renewed.inverse)):
                b = weights_of(np.asarray(p).astype(np.float64))
                errors[name] = float(np.abs(b - truth).max())
    fastest = min(REFITS, key=lambda name: statistics.median(seconds[name]))
    ratios = {
        str(m): spread([r / s for r, s in zip(seconds[fastest], seconds[str(m)], strict=True)])
        for m in PEOPLE
    }
    return {
        "items": items,
        "users": data.users,
        "entries": len(data),
        "dtype": dtype,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "compile": compile_seconds,
        "gram_seconds": gram_seconds,
        "fastest_refit": fastest,
        "ratio": ratios,
        "error": errors,
        "residual": float(fitted.kept.residual),
        "bytes": int(2 * fitted.kept.gram.nbytes),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes `OUT/autoencoder.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.autoencoder", allow_abbrev=False
    )
    add = parser.add_argument
    add("--items", nargs="+", type=int, default=SIZES)
    add("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    add("--repeats", type=int, default=7, help="turns of every program")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or min(options.items) < 4 * max(PEOPLE):
        print(
            f"autoencoder: expected --repeats >= 1 and --items >= {4 * max(PEOPLE)}, got "
            f"{options.repeats} and {min(options.items)}.",
            file=sys.stderr,
        )
        return 2
    begin, sizes = time.perf_counter(), []
    with jax.enable_x64(True):
        for items in options.items:
            data = feedback(items, options.seed)
            for dtype in options.dtypes:
                sizes.append(measured(data, dtype, options.repeats))
                found = sizes[-1]
                print(
                    f"{items} items, {dtype}: {1e3 * found['seconds']['1']['value']:.2f} ms, "
                    f"{found['ratio']['1']['value']:.0f} x, error {found['error']['1']:.1e}",
                    flush=True,
                )
    command = (
        f"python -m experiments.benchmarks.autoencoder --items {' '.join(map(str, options.items))} "
        f"--dtypes {' '.join(options.dtypes)} --repeats {options.repeats} --seed {options.seed}"
    )
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command,
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions() | {"numpy": np.__version__},
        "seed": options.seed,
        "repeats": options.repeats,
        "regularisation": REGULARISATION,
        "sizes": sizes,
        "seconds": time.perf_counter() - begin,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "autoencoder.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    sys.exit(main())
