"""Shards on digits: what sharding costs in accuracy, saves in a deletion, and survives.

    python -m experiments.benchmarks.shards                    about seven minutes on two cores

An MLP 64-128-64-10 (Adam 2e-3, batches of 64, 20 epochs a stage) on the 1200 training rows of
digits, S shards of R = 3 slices each; `jaxunlearn.methods.exact.shards`.

| what                | how                                                                        |
|---------------------|----------------------------------------------------------------------------|
| accuracy            | test rows, by mean softmax and by majority vote, per seed; S = 1, 2, 4, 8  |
| cost of a deletion  | examples retrained / examples of a training: of random single rows, each   |
|                     | planned and not run (exact), beside (1/S)(2/3 + 1/(3R))                    |
| time of a deletion  | seconds of `forget` of one random row, its files included, and of training |
|                     | everything anew on what is left into an empty directory; programs are      |
|                     | compiled before                                                            |
| kills               | a process is killed at a random moment of a deletion of 12 rows; what the  |
|                     | same calls end in afterwards, against the uninterrupted run, bit for bit   |
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import machine
from jaxunlearn import compare, from_nnx, networks
from jaxunlearn.data import digits
from jaxunlearn.methods.exact import shard_ledger
from jaxunlearn.methods.exact.shard_plan import expected_cost, seed_of, stages
from jaxunlearn.methods.exact.shard_trainer import Trainer, gradient_trainer
from jaxunlearn.methods.exact.shards import Shards, ShardsState, shards

SCHEMA = 1
KIND = "jaxunlearn shards benchmark"
RESULTS = Path(__file__).resolve().parents[1] / "results"
LEARNING_RATE = 2e-3
BATCH_SIZE = 64
KILLED_SHARDS = 4


@cache
def _trainer(epochs: int) -> Trainer:
    model = from_nnx(networks.build("mlp", (8, 8), 10))
    return gradient_trainer(model, optax.adam(LEARNING_RATE), epochs=epochs)


def learner(directory: Path, num_shards: int, options: Any, aggregate: str = "mean") -> Shards:
    """The learner of this benchmark."""
    return shards(
        _trainer(options.epochs),
        directory,
        num_shards=num_shards,
        num_slices=options.slices,
        batch_size=BATCH_SIZE,
        aggregate=aggregate,
    )


def rows(ids: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """The training rows of digits, less some."""
    train = digits().train
    keep = ~np.isin(train["id"], list(ids))
    return {name: train[name][keep] for name in ("x", "y", "id")}


def bits(state: ShardsState) -> str:
    """Hash of everything learnt."""
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.states)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def planned_cost(num_shards: int, num_slices: int, seed: int) -> float:
    """Mean over all single deletions of (examples retrained / examples of a training)."""
    data = rows()
    plan = stages(data, seed_of(jax.random.key(seed)), num_shards, num_slices)
    full = sum(len(stage.rows) for own in plan for stage in own)
    costs = []
    for own in plan:
        seen: set[int] = set()
        for place, stage in enumerate(own):
            new = set(stage.rows.tolist()) - seen
            seen |= new
            again = sum(len(later.rows) - 1 for later in own[place:])
            costs += [again / (full - (len(own) - place))] * len(new)
    return statistics.mean(costs)


def _accuracy(made: Shards, state: ShardsState) -> float:
    test = digits().test
    return float((made.predict(state, {"x": test["x"]}).argmax(axis=1) == test["y"]).mean())


def _timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    out = jax.block_until_ready(function(*arguments))
    return out, time.perf_counter() - begin


def study(num_shards: int, options: Any) -> dict[str, Any]:
    """One number of shards: accuracies per seed, costs and seconds of deletions."""
    accuracy: dict[str, list[float]] = {"mean": [], "majority": []}
    forgetting, retraining, costs, draw = [], [], [], random.Random(num_shards)
    with tempfile.TemporaryDirectory() as root:
        for seed in range(options.seeds):
            directory = Path(root) / f"{seed}"
            made = learner(directory, num_shards, options)
            state, _ = made.learn(made.init(jax.random.key(seed)), rows())
            for how in accuracy:
                accuracy[how].append(_accuracy(learner(directory, num_shards, options, how), state))
        for turn in range(options.deletions + 1):
            x = draw.choice(state.columns["id"].tolist())
            (state, info), seconds = _timed(made.forget, state, [x])
            anew = learner(Path(root) / f"anew-{turn}", num_shards, options)
            left = {name: state.columns[name] for name in ("x", "y", "id", "weight")}
            (again, _), whole = _timed(anew.learn, anew.init(state.key), left)
            assert bits(again) == bits(state), "forgetting differs from retraining"
            if turn:  # The first compiles what is not compiled yet.
                forgetting.append(seconds)
                retraining.append(whole)
                costs.append(info.cost)
    return {
        "shards": num_shards,
        "accuracy": accuracy,
        "expected": expected_cost(num_shards, options.slices),
        "planned": planned_cost(num_shards, options.slices, options.seeds - 1),
        "measured": costs,
        "forget": forgetting,
        "retrain": retraining,
    }


# ------------------------------------------------------------------------------------------- kills


def _forgotten(options: Any) -> list[int]:
    return rows()["id"][:: len(rows()["id"]) // options.killed_rows][: options.killed_rows].tolist()


def _serve(options: Any) -> None:
    """For each directory on the input a fork, to be killed: it learns, says "ready", forgets.

    Everything is imported before the forks; JAX computes in them only.
    """
    import orbax.checkpoint  # noqa: F401

    digits()
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            made = learner(Path(line.strip()), KILLED_SHARDS, options)
            state, _ = made.learn(made.init(jax.random.key(0)), rows())
            print(f"ready {os.getpid()}", flush=True)
            made.forget(state, _forgotten(options))
            print("done", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print("dead", flush=True)


def _server(options: Any, programs: Path) -> subprocess.Popen:
    """`_serve` in a process; its forks find compiled programs in a folder, so few die compiling."""
    words = [f"--{name}={getattr(options, name)}" for name in ("epochs", "slices")]
    command = [sys.executable, "-m", "experiments.benchmarks.shards", "--serve", *words]
    return subprocess.Popen(
        [*command, f"--killed-rows={options.killed_rows}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        },
    )


def _line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    if line := process.stdout.readline():
        return line.strip()
    raise RuntimeError("the process whose forks were to be killed has ended; see its error above.")


def _interrupted(process: subprocess.Popen, directory: Path, moment: float | None) -> float:
    """Seconds of a deletion in a fork, which is killed after `moment` seconds unless None."""
    assert process.stdin is not None
    process.stdin.write(f"{directory}\n")
    process.stdin.flush()
    pid = int(_line(process).removeprefix("ready "))
    begin = time.perf_counter()
    if moment is not None:
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):  # It was faster.
            os.kill(pid, signal.SIGKILL)
    while _line(process) != "dead":
        pass
    return time.perf_counter() - begin


def kills(options: Any) -> dict[str, Any]:
    """How many killed deletions there were, when they were hit, and how many ended as they must."""
    ids, moments = _forgotten(options), random.Random(0)
    hit = {"before the request": 0, "between request and end": 0, "after the end": 0}
    with (
        tempfile.TemporaryDirectory() as root,
        _server(options, Path(root) / "programs") as process,
    ):
        whole, never = Path(root) / "whole", Path(root) / "never"
        made = learner(whole, KILLED_SHARDS, options)
        made.learn(made.init(jax.random.key(0)), rows())
        made = learner(never, KILLED_SHARDS, options)
        reference, _ = made.learn(made.init(jax.random.key(0)), rows(ids))
        files = {path.name for path in never.glob("shard-*/*")}
        passed, longest = 0, 0.0
        for number in range(-2, options.kills):
            directory = Path(root) / f"{number}"
            shutil.copytree(whole, directory)
            # Two live: the first compiles, the second says how long a deletion takes.
            moment = None if number < 0 else moments.uniform(0, longest)
            seconds = _interrupted(process, directory, moment)
            longest = seconds if moment is None else longest
            left = {path.name for path in directory.glob("*/*")}
            asked = shard_ledger.forgotten(directory) == frozenset(ids)
            ended = files <= left and not any("tmp" in name for name in left)
            made = learner(directory, KILLED_SHARDS, options)
            state, _ = made.learn(made.init(jax.random.key(0)), rows())
            state, _ = made.forget(state, ids)
            sound = bits(state) == bits(reference)
            sound &= {path.name for path in directory.glob("shard-*/*")} == files
            if number >= 0:
                when = "after the end" if ended else "between request and end"
                hit[when if asked else "before the request"] += 1
                passed += sound
            shutil.rmtree(directory)
        assert process.stdin is not None
        process.stdin.close()
    return {
        "kills": options.kills,
        "passed": passed,
        "hit": hit,
        "shards": KILLED_SHARDS,
        "rows": len(ids),
        "seconds": longest,
    }


def benchmark(options: Any) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    studies = []
    for num_shards in options.shards:
        studies.append(study(num_shards, options))
        print(table(studies[-1:]), file=sys.stderr, flush=True)
    found = kills(options)
    names = ("slices", "epochs", "seeds", "deletions", "killed_rows", "kills")
    words = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names]
    words.append("--shards " + " ".join(map(str, options.shards)))
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": " ".join(["python -m experiments.benchmarks.shards", *words]),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        "job": {
            "rows": len(rows()["id"]),
            "test": len(digits().test["y"]),
            "slices": options.slices,
            "epochs": options.epochs,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "seeds": options.seeds,
        },
        "studies": studies,
        "kills": found,
        "seconds": time.perf_counter() - begin,
    }


def table(studies: Sequence[dict[str, Any]]) -> str:
    """The studies as text for a terminal."""
    lines = ["  S  mean  majority  expected  planned  measured  forget s  retrain s"]
    for s in studies:
        mean, majority = (statistics.mean(s["accuracy"][how]) for how in ("mean", "majority"))
        lines.append(
            f"{s['shards']:3}{100 * mean:6.1f}{100 * majority:10.1f}{s['expected']:10.3f}"
            f"{s['planned']:9.3f}{statistics.mean(s['measured']):10.3f}"
            f"{statistics.median(s['forget']):10.3f}{statistics.median(s['retrain']):11.3f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes `OUT/shards.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.shards", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS, help="folder")
    add("--shards", nargs="+", type=int, default=[1, 2, 4, 8])
    add("--slices", type=int, default=3)
    add("--epochs", type=int, default=20, help="of each stage")
    add("--seeds", type=int, default=5)
    add("--deletions", type=int, default=9, help="timed, of one row each")
    add("--kills", type=int, default=50)
    add("--killed-rows", type=int, default=12, help="rows of the deletion that is killed")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        _serve(options)
        return 0
    record = benchmark(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "shards.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record["studies"]))
    print(f"{record['kills']['passed']} of {record['kills']['kills']} kills; wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
