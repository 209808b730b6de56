"""Many small trainings as one program, against a plain PyTorch loop: the same job in the same run.

    python -m experiments.benchmarks.ensemble              about four minutes on two cores

The job: 32 oracles of class 3 of digits (1078 retained rows), an MLP 64-128-64-10, Adam 2e-3,
batches of 64, 30 epochs. Ours is `ensemble(train)` compiled once, as one program; PyTorch's is a
loop over epochs and batches, one model after another, with the data already in tensors.

    speed-up = seconds of PyTorch / seconds of ours       (medians over interleaved repeats)
    gap      = seconds / floor                            (the matrix products alone; see `floor`)

| fairness                | how                                                                    |
|-------------------------|------------------------------------------------------------------------|
| same start              | PyTorch's weights are drawn as Flax draws them (LeCun, truncated)      |
| same job                | held-out accuracy of both, and whether they differ beyond 3 std errors |
| PyTorch's best          | 1 thread and its default; fused Adam too, counted apart as "tuned"     |
| nothing prepared        | no compiled program is read from a cache; compile time is shown apart  |
| equal conditions        | repeats take turns in one process; a fresh set of seeds in each        |
| fewer PyTorch models    | `--torch-models`; its seconds are scaled to the whole job, and it says |

PyTorch is optional (`pip install torch`). Without it ours is timed alone and no ratio is given.
"""

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import machine
from experiments.benchmarks.floor import matmul_rate, training_flops
from experiments.benchmarks.plain_torch import plain_torch
from experiments.benchmarks.speed_up import ratios, same_job
from jaxunlearn import compare, ensemble, from_nnx, networks, train
from jaxunlearn.data import class_task, digits

SCHEMA = 1
KIND = "jaxunlearn ensemble benchmark"
LAYERS = (64, 128, 64, 10)
LEARNING_RATE = 2e-3
BATCH_SIZE = 64
HOW = ("shard", "shard:4", "vmap", "map")  # the first is the headline
NO_TORCH = "PyTorch is not installed: ours is timed alone, without a ratio. `pip install torch`."

Run = Callable[[int], tuple[float, np.ndarray]]  # seed -> (seconds, held-out accuracies)


def ours(task: Any, how: str, models: int, epochs: int) -> tuple[float, Run]:
    """(seconds to compile, run): all models as one program; `how` may end in ":chunk"."""
    how, _, chunk = how.partition(":")
    network = from_nnx(networks.build("mlp", task.source.input_shape, task.source.num_classes))
    data, tx = task.oracle_data(BATCH_SIZE), optax.adam(LEARNING_RATE)
    test = task.columns("test", "retain")

    def one(key: Any) -> Any:
        return train(network, tx, data, key=key, epochs=epochs).params

    many = ensemble(one, how=how, chunk=int(chunk) if chunk else None)
    keys = jax.random.split(jax.random.key(0), models)
    jax.clear_caches()  # no program profits from what was traced for the one before
    begin = time.perf_counter()
    program = jax.jit(many).lower(keys).compile()
    compiling = time.perf_counter() - begin
    predict = jax.jit(jax.vmap(lambda params: network.outputs(params, test).argmax(axis=-1)))

    def run(seed: int) -> tuple[float, np.ndarray]:
        keys = jax.block_until_ready(jax.random.split(jax.random.key(seed), models))
        begin = time.perf_counter()
        params = jax.block_until_ready(program(keys))
        seconds = time.perf_counter() - begin
        return seconds, (np.asarray(predict(params)) == test["y"]).mean(axis=1)

    return compiling, run


def _programs(task: Any, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Run]]:
    """What is timed: a record of each, still without its seconds, and the function that runs it."""
    entries, runs = [], []
    for how in options.how:
        print(f"compiling how={how!r}", file=sys.stderr, flush=True)
        compiling, run = ours(task, how, options.models, options.epochs)
        entries.append({"program": f"ensemble, {how}", "of": "ours", "compile": compiling})
        runs.append(run)
    if importlib.util.find_spec("torch") is None:
        print(NO_TORCH, file=sys.stderr)
        return entries, runs
    import torch

    usual = torch.get_num_threads()
    columns = [task.columns(split, "retain") for split in ("train", "test")]
    for threads, fused in itertools.product(sorted({1, usual}), (False, True)):
        words = f"torch, {threads} thread{'s' * (threads > 1)}{', fused Adam' * fused}"
        entries.append({"program": words, "of": "tuned torch" if fused else "plain torch"})
        run = plain_torch(
            *columns,
            layers=LAYERS,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            epochs=options.epochs,
            models=options.torch_models,
            threads=threads,
            fused=fused,
        )
        runs.append(run)
    return entries, runs


def _measure(entries: list[dict], runs: list[Run], options: argparse.Namespace) -> None:
    """Runs every program `repeats` times in turns, after one warm-up, and completes the records."""
    times: list[list[float]] = [[] for _ in runs]
    right: list[list[np.ndarray]] = [[] for _ in runs]
    for seed in range(options.repeats + 1):
        for i, run in enumerate(runs):
            seconds, accuracies = run(seed)
            right[i].append(accuracies)
            if seed:
                times[i].append(seconds)
                print(f"{seconds:8.2f} s  {entries[i]['program']}", file=sys.stderr, flush=True)
    for entry, seconds, found in zip(entries, times, right, strict=True):
        accuracies, models = np.concatenate(found), len(found[0])
        entry |= {
            "models": models,
            "runs": seconds,
            "seconds": statistics.median(seconds) * options.models / models,
            "accuracy": float(accuracies.mean()),
            "standard_error": float(accuracies.std(ddof=1) / math.sqrt(len(accuracies))),
        }


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    task = class_task(digits(), 3)
    rows = len(task.train_parts["retain"])
    flops = options.models * training_flops(options.epochs * rows, LAYERS)
    before = _rates()
    entries, runs = _programs(task, options)
    _measure(entries, runs, options)
    rates = {shape: max(rate, before[shape]) for shape, rate in _rates().items()}
    versions = compare.versions()
    if len(entries) > len(options.how):
        versions["torch"] = sys.modules["torch"].__version__
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": _command(options),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": versions,
        "job": {
            "task": f"{task.name} of {task.source.name}",
            "models": options.models,
            "layers": list(LAYERS),
            "rows": rows,
            "held_out": len(task.test_parts["retain"]),
            "epochs": options.epochs,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "steps": options.epochs * math.ceil(rows / BATCH_SIZE),
            "repeats": options.repeats,
            "devices": jax.device_count(),
        },
        "floor": {"flops": flops, "rates": rates, "seconds": flops / max(rates.values())},
        "programs": entries,
        "ratios": ratios(entries),
        "same_job": same_job(entries),
        "seconds": time.perf_counter() - begin,
    }


def _rates() -> dict[str, float]:
    """FLOP per second of one large product per device, and of many of the size of the job's."""
    return {
        "1024 x 1024 x 1024": matmul_rate(1, 1024, 1024, 1024),
        "64 x 64 x 128, 256 at once": matmul_rate(256, BATCH_SIZE, *LAYERS[:2]),
    }


def _command(options: argparse.Namespace) -> str:
    names = ("models", "torch_models", "epochs", "repeats")
    words = [f" --{name.replace('_', '-')} {getattr(options, name)}" for name in names]
    words.append(" --how " + " ".join(options.how))
    return "python -m experiments.benchmarks.ensemble" + "".join(words)


def table(record: dict[str, Any]) -> str:
    """The measurement as text for a terminal."""
    floor = record["floor"]
    lines = [
        f"{record['job']['models']} trainings, seconds: median of {record['job']['repeats']}",
        f"{'program':32}{'compile':>9}{'run':>9}{'/ floor':>9}{'accuracy':>18}",
        f"{'floor (matmul rate)':32}{'':9}{floor['seconds']:9.2f}{1:9.1f}",
    ]
    for p in record["programs"]:
        compiling = f"{p['compile']:9.2f}" if "compile" in p else f"{'':9}"
        accuracy = f"{100 * p['accuracy']:.2f} ±{100 * p['standard_error']:.2f} %"
        gap = p["seconds"] / floor["seconds"]
        lines.append(f"{p['program']:32}{compiling}{p['seconds']:9.2f}{gap:9.1f}{accuracy:>18}")
    for program, kinds in record["ratios"].items():
        for kind, r in kinds.items():
            lines.append(
                f"{program}: {r['run']:.1f} x the fastest {kind}, {r['with_compile']:.1f} x with "
                "compile"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes `OUT/ensemble.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.ensemble", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder")
    add("--models", type=int, default=32)
    add("--torch-models", type=int, default=8, help="trained per repeat; scaled to --models")
    add("--epochs", type=int, default=30)
    add("--repeats", type=int, default=5)
    add("--how", nargs="+", default=HOW, help="as for `ensemble`; shard:4 is shard in chunks of 4")
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    options.out.mkdir(parents=True, exist_ok=True)
    record = benchmark(options)
    print(table(record))
    path = options.out / "ensemble.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
