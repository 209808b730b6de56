"""What a sweep of alternating least squares costs, and what a deletion does against retraining.

    python -m experiments.benchmarks.als                     about ten minutes on two cores
    python -m experiments.benchmarks.als --data-dir DIR      deletions on MovieLens-100k
    python -m experiments.benchmarks.als --ratings 2000 --rank 4 --deletions 1 --out OUT   a minute

    sweep      both sides once, from the same factors, on the same ratings: ours and `implicit`'s
    deletion   all ratings of one user, from a converged model, to the tolerance of a retraining
    floor      2 (2 N K^2 + (U + I) K^3 / 3) operations at the speed of a large float32 product

| fairness         | how                                                                           |
|------------------|-------------------------------------------------------------------------------|
| same problem     | Hu, Koren, Volinsky with the same confidences; factors compared after half    |
| equal conditions | programs take turns in one process; medians of repeats, ratio within a turn   |
| rival at its best| `implicit.cpu` itself, all cores, one BLAS thread in each as it recommends    |
| equal tolerance  | a retraining stops where the deletion does, by the same measure of gradient   |
| both retrainings | plain sweeps, as published, and with our Newton steps                         |
| nothing prepared | compiled programs are not read from a cache; compile time is shown apart      |

Run it with OPENBLAS_NUM_THREADS=1, as `implicit` recommends: both call LAPACK for small matrices
from threads of their own. Ratings are planted (`low_rank_ratings`) with degrees like those of
films; users and items for each number of ratings are those of MovieLens.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import machine
from jaxunlearn import compare
from jaxunlearn.data import Ratings, load_ratings, low_rank_ratings
from jaxunlearn.methods.exact.als import ALS, als

SCHEMA = 1
KIND = "jaxunlearn alternating least squares benchmark"
RESULTS = Path(__file__).resolve().parents[1] / "results"
SHAPES = {100_000: (943, 1682), 1_000_000: (6040, 3706), 10_000_000: (69_878, 10_677)}
OURS = {
    "cholesky": {"solver": "cholesky"},
    "cg": {"solver": "cg"},
    "cg, 3 steps": {"solver": "cg", "steps": 3, "solver_tolerance": 1e-20},
    "block": {"solver": "block"},
}
RIVALS = {"implicit, cholesky": "least_squares", "implicit, cg, 3 steps": "least_squares_cg"}
PAIRS = {"cholesky": "implicit, cholesky", "cg": "implicit, cholesky",
         "cg, 3 steps": "implicit, cg, 3 steps"}  # fmt: skip
ALPHA, REGULARISATION = 0.5, 1.0
DELETION = {"regularisation": 15.0, "biases": True}
MOST_SWEEPS = 1500
TOLERANCE = 3e-4  # of the gradient, relative to the largest factor: near what float32 carries


def planted(count: int, seed: int, kind: str) -> Ratings:
    """About so many ratings, of as many users and items as MovieLens has."""
    users, items = SHAPES.get(count, (max(8, int(count**0.5)), max(6, int(0.7 * count**0.5))))
    density = min(0.6, count / (users * items))
    return low_rank_ratings(
        users=users, items=items, rank=16, density=density, noise=0.3, seed=seed, kind=kind
    )


def mesh_of_all() -> Any:
    count = jax.device_count()
    auto = jax.sharding.AxisType.Auto
    return None if count == 1 else jax.make_mesh((count,), ("rows",), axis_types=(auto,))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of repeats."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def seconds_of(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def fastest_product() -> float:
    """Float32 operations a second of a large matrix product, on all cores."""
    a = jnp.ones((2048, 2048), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    seconds_of(lambda: multiply(a, a))
    return 2 * 2048**3 / min(seconds_of(lambda: multiply(a, a)) for _ in range(5))


def rivals(data: Ratings, users: np.ndarray, items: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Sweeps of `implicit` on copies of the factors; none where it is not installed."""
    try:
        rival = importlib.import_module("implicit.cpu._als")
    except ImportError:
        return {}
    matrix = data.matrix().astype(np.float32)
    matrix.data = 1 + ALPHA * matrix.data
    across, cores = matrix.T.tocsr(), machine.description()["cores"]

    def sweep(name: str, both: bool = True) -> Any:
        p, q = users.copy(), items.copy()
        more = {"cg_steps": 3} if name.endswith("cg") else {}
        getattr(rival, name)(matrix, p, q, REGULARISATION, num_threads=cores, **more)
        if both:
            getattr(rival, name)(across, q, p, REGULARISATION, num_threads=cores, **more)
        return p

    found: dict[str, Callable[[], Any]] = {
        label: (lambda name=name: sweep(name)) for label, name in RIVALS.items()
    }
    found["half"] = lambda: sweep("least_squares", both=False)
    return found


def sweeps(count: int, rank: int, repeats: int, seed: int, speed: float) -> dict[str, Any]:
    """One size: seconds of a sweep of every program in turns, agreement, memory, floor."""
    data = planted(count, seed, "implicit")
    learners: dict[str, ALS] = {
        name: als(
            rank=rank, regularisation=REGULARISATION, feedback="implicit", alpha=ALPHA,
            mesh=mesh_of_all(), **options,
        )
        for name, options in OURS.items()
    }  # fmt: skip
    begin = time.perf_counter()
    state = learners["cholesky"].init(data, jax.random.key(seed))
    arranged = time.perf_counter() - begin
    users, items = (np.array(f) for f in (state.user, state.item))
    programs: dict[str, Callable[[], Any]] = {
        name: (lambda learner=learner: learner.sweep(state)) for name, learner in learners.items()
    }
    others = rivals(data, users, items)
    half = others.pop("half", None)
    compiled = {name: seconds_of(run) for name, run in programs.items()}
    agreement = None
    if half is not None:
        ours = np.asarray(learners["cholesky"].sweep(state).user)
        agreement = float(np.abs(ours - half()).max() / np.abs(ours).max())
    programs |= others
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            times[name].append(seconds_of(run))
    operations = 2 * (2 * len(data) * rank**2 + (data.users + data.items) * rank**3 / 3)
    places = sum(leaf.nbytes for leaf in jax.tree.leaves((state.users, state.items)))
    return {
        "ratings": len(data),
        "users": data.users,
        "items": data.items,
        "arranged": arranged,
        "first_call": {name: compiled[name] for name in learners},
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratio": {
            name: spread([a / b for a, b in zip(times[name], times[rival], strict=True)])
            for name, rival in PAIRS.items()
            if rival in times
        },
        "agreement": agreement,
        "floor": operations / speed,
        "bytes": {
            "places": places,
            "values": state.entries.value.nbytes + state.entries.weight.nbytes,
            "factors": state.user.nbytes + state.item.nbytes,
            "while solving": _working_set(state),
            "gathered at once": 4 * 2 * len(data) * rank,
        },
    }


def _working_set(state: Any) -> int | None:
    """Bytes that the program of a sweep asks for beside its arguments and results."""
    from jaxunlearn.factorisation.alternating import EXACT, Rule, sweep_rows
    from jaxunlearn.factorisation.feedback import feedback_of

    rule = Rule(
        feedback_of("implicit", REGULARISATION, None, ALPHA, 1.0, False), EXACT, mesh_of_all()
    )
    everyone = jnp.ones(len(state.user), bool), jnp.ones(len(state.item), bool)
    found = sweep_rows.lower(state, *everyone, rule).compile().memory_analysis()
    return None if found is None else int(found.temp_size_in_bytes)


def deletions(data: Ratings, name: str, rank: int, count: int, seed: int) -> dict[str, Any]:
    """Users forgotten one at a time from a converged model, and retrainings without them."""
    learner = als(rank=rank, mesh=mesh_of_all(), **DELETION)
    state, original = learner.fit(
        learner.init(data, jax.random.key(seed)),
        sweeps=MOST_SWEEPS,
        tolerance=TOLERANCE,
        accelerate=True,
    )
    fresh = learner.init(data, jax.random.key(seed + 1))
    active = np.argsort(np.bincount(data.user, minlength=data.users), kind="stable")
    chosen = [int(active[int(q * (data.users - 1))]) for q in np.linspace(0.1, 0.95, count)]
    spare = int(active[data.users // 2 + 1])

    def retrain(user: int, accelerate: bool) -> tuple[Any, Any]:
        bare, _ = learner.forget(fresh, users=[user], mode="sweeps", sweeps=0)
        begin = fresh._replace(
            entries=bare.entries, user_count=bare.user_count, item_count=bare.item_count,
            mean=bare.mean, objective=fresh.objective,
        )  # fmt: skip
        return learner.fit(begin, sweeps=MOST_SWEEPS, tolerance=TOLERANCE, accelerate=accelerate)

    runs: dict[str, Callable[[int], tuple[Any, Any]]] = {
        "rows": lambda user: learner.forget(state, users=[user], mode="rows"),
        "3 sweeps": lambda user: learner.forget(state, users=[user], mode="sweeps"),
        "converged": lambda user: learner.forget(state, users=[user], tolerance=TOLERANCE),
        "converged, sweeps only": lambda user: learner.forget(
            state, users=[user], accelerate=False, sweeps=MOST_SWEEPS, tolerance=TOLERANCE
        ),
        "retrained": lambda user: retrain(user, False),
        "retrained, Newton steps": lambda user: retrain(user, True),
    }
    for name_, run in runs.items():
        if name_ not in ("converged, sweeps only", "retrained"):  # whose programs are the others'
            run(spare)
    found = []
    for user in chosen:
        kept = data.user != user
        states, row = {}, {"user": user, "removed": int((~kept).sum()), "runs": {}}
        for label, run in runs.items():
            repeats = 9 if label == "rows" else 1
            spent = []
            for _ in range(repeats):
                begin = time.perf_counter()
                after, report = run(user)
                jax.block_until_ready(after)
                spent.append(time.perf_counter() - begin)
            states[label] = learner.predict(after, data.user[kept], data.item[kept])
            row["runs"][label] = {
                "seconds": statistics.median(spent),
                "sweeps": report.sweeps,
                "newton_steps": report.newton_steps,
                "products": report.products,
                "converged": report.converged,
                "objective": report.objective,
            }
            if label in ("converged", "retrained"):
                row["runs"][label]["distance"] = learner.optimality(after).distance
        truth = states["retrained, Newton steps"]
        for label, predicted in states.items():
            row["runs"][label]["from_retrained"] = _rms(predicted - truth)
        row["undeleted"] = _rms(learner.predict(state, data.user[kept], data.item[kept]) - truth)
        found.append(row)
        shown = (f"{k} {1e3 * v['seconds']:.0f} ms" for k, v in row["runs"].items())
        print(f"user {user}: {', '.join(shown)}", flush=True)
    return {
        "data": name,
        "ratings": len(data),
        "users": data.users,
        "items": data.items,
        "rank": rank,
        "constants": DELETION | {"tolerance": TOLERANCE},
        "original": {"sweeps": original.sweeps, "converged": original.converged}
        | learner.optimality(state)._asdict(),
        "deletions": found,
    }


def _rms(difference: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(difference, np.float64) ** 2)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes `OUT/als.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.als", allow_abbrev=False
    )
    add = parser.add_argument
    add("--ratings", nargs="+", type=int, default=list(SHAPES), help="sizes of the sweeps")
    add("--rank", type=int, default=64)
    add("--deletions", type=int, default=5, help="users that are forgotten")
    add("--repeats", type=int, default=5, help="turns of every sweep")
    add("--seed", type=int, default=0)
    add("--data-dir", type=Path, default=None, help="where ml100k.npz lies; else planted ratings")
    add("--out", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or min(options.ratings) < 100 or options.deletions < 1:
        print(
            "als: expected --repeats >= 1, --deletions >= 1 and --ratings >= 100, got "
            f"{options.repeats}, {options.deletions} and {min(options.ratings)}.",
            file=sys.stderr,
        )
        return 2
    begin, speed, sizes = time.perf_counter(), fastest_product(), []
    for count in options.ratings:
        found = sweeps(count, options.rank, options.repeats, options.seed, speed)
        sizes.append(found)
        shown = ", ".join(f"{k} {1e3 * v['value']:.0f} ms" for k, v in found["seconds"].items())
        print(f"{found['ratings']} ratings: {shown}", flush=True)
    if options.data_dir is not None:
        source = load_ratings("movielens:100k", data_dir=options.data_dir)
        data, name = source.train, "MovieLens-100k, the earlier ratings of each user"
    else:
        data, name = planted(min(options.ratings), options.seed, "explicit"), "planted ratings"
    removed = deletions(data, name, options.rank, options.deletions, options.seed)
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    command = (f"OPENBLAS_NUM_THREADS={threads} " if threads else "") + (
        f"python -m experiments.benchmarks.als --ratings {' '.join(map(str, options.ratings))} "
        f"--rank {options.rank} --deletions {options.deletions} --repeats {options.repeats} "
        f"--seed {options.seed}" + (" --data-dir DIR" if options.data_dir else "")
    )
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command,
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions() | {"implicit": _version_of("implicit")},
        "seed": options.seed,
        "rank": options.rank,
        "repeats": options.repeats,
        "operations_a_second": speed,
        "sizes": sizes,
        "deletions": removed,
        "seconds": time.perf_counter() - begin,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "als.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


def _version_of(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    machine.use_all_cores()
    sys.exit(main())
