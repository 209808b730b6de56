"""U-LiRA with shadow models: what it says of six methods, and what it costs, beside a loop.

    python -m experiments.benchmarks.shadows                   about two minutes on two cores

64 pairs of shadow models (`jaxunlearn.auditing.shadows`) for two requests on digits, 128 trainings
and as many true retrainings and runs of every method; an MLP 64-128-64-10, Adam 2e-3, batches of
64, 30 epochs. Seconds are those of the whole call, compilation, intervals and tests included.

The same protocol in a plain PyTorch loop (`shadows_torch`) is measured in the same process on a few
shadows and four of the methods, and *extrapolated*: seconds x models of the protocol / models that
were run. A ratio is of the same stages on both sides: the training and these four methods.

| fairness              | how                                                                      |
|-----------------------|--------------------------------------------------------------------------|
| same rows             | both train the shadows of one design                                     |
| same settings         | the presets of the methods, read by both                                 |
| same job              | margins of what was unlearned, both sides, mean over models; whether they|
|                       | differ beyond 3 standard errors                                          |
| PyTorch's best        | 1 thread and its default, after a warm-up; the faster one counts         |
| nothing prepared      | no compiled program is read from a cache; compile time is shown apart    |

PyTorch is optional (`pip install torch`). Without it ours is timed alone and no ratio is given.
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from experiments.benchmarks.shadows_torch import REBUILT, torch_protocol
from jaxunlearn import compare, presets, results
from jaxunlearn.auditing import shadows
from jaxunlearn.auditing.shadow_design import design
from jaxunlearn.data import digits, parse_task
from jaxunlearn.data.tasks import Task

SCHEMA = 1
KIND = "jaxunlearn shadows benchmark"
RESULTS = Path(__file__).resolve().parents[1] / "results"
LAYERS = (64, 128, 64, 10)
TASKS = ("random:0.1", "class:3")
METHODS = "finetune,neggrad_plus,gradient_ascent,random_labels,scrub,ssd"
NO_TORCH = "PyTorch is not installed: ours is timed alone, without a ratio. `pip install torch`."


def ours(task: Task, options: Any) -> dict[str, Any]:
    """The attack on every row of one request, and seconds."""
    recipe = presets.Recipe(epochs=options.epochs)
    network = compare.network_of(task.source, recipe)
    begin = time.perf_counter()
    found = shadows.shadow_lira(
        task,
        presets.parse_methods(options.methods),
        network=network,
        recipe=recipe,
        pairs=options.pairs,
        seed=0,
        resamples=options.relabellings,
        progress=lambda text: print(f"{task.name}: {text}", file=sys.stderr, flush=True),
    )
    seconds = time.perf_counter() - begin
    rows = [
        {k: v for k, v in row.items() if k not in ("examples", "roc")}
        for row in results.plain(found.rows)
    ]
    return {
        "task": task.name,
        "description": task.describe(),
        "targets": len(found.targets),
        "seconds": seconds,
        "notes": list(found.notes),
        "rows": rows,
    }


def rival(task: Task, options: Any) -> dict[str, Any] | None:
    """The protocol in PyTorch on a few models, and the same stages of ours; None without it."""
    if importlib.util.find_spec("torch") is None:
        print(NO_TORCH, file=sys.stderr)
        return None
    import torch

    recipe = presets.Recipe(epochs=options.epochs)
    kind, made = task.name.split(":")[0], design(task, options.pairs, seed=0)
    names = [each.name for each in presets.parse_methods(options.methods)]
    settings = {n: presets.settings(n, {}, kind, recipe, LAYERS[-1]) for n in names if n in REBUILT}
    models, threads = options.torch_models, sorted({1, torch.get_num_threads()})

    def run(models: int, threads: int, epochs: int) -> Any:
        return torch_protocol(
            task.source.train,
            made.trained[:models],
            made.forgotten[:models],
            made.targets,
            layers=LAYERS,
            learning_rate=recipe.learning_rate,
            batch_size=recipe.batch_size,
            epochs=epochs,
            settings=settings,
            threads=threads,
            seed=0,
        )

    runs = {}
    for count in threads:
        run(1, count, 1)  # the first steps of a process pay for what no later ones pay for
        runs[count] = run(models, count, recipe.epochs)
        words = ", ".join(f"{stage} {value:.2f} s" for stage, value in runs[count][0].items())
        print(f"torch, {count} thread(s), {models} models: {words}", file=sys.stderr, flush=True)
    best = min(runs, key=lambda count: sum(runs[count][0].values()))
    seconds, margins = runs[best]
    scale = 2 * options.pairs / models
    return {
        "task": task.name,
        "version": torch.__version__,
        "models": models,
        "threads": best,
        "tried": threads,
        "measured": seconds,
        "extrapolated": {stage: scale * value for stage, value in seconds.items()},
        "same_job": _same_job(task, made, recipe, settings, margins),
    }


def _same_job(
    task: Task, made: Any, recipe: Any, settings: Any, margins: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Stage -> mean margin of what was seen, ours less PyTorch's, over as many models."""
    models = len(margins["training"])
    few = made._replace(
        **{name: getattr(made, name)[:models] for name in ("member", "trained", "forgotten")}
    )
    network, kind = compare.network_of(task.source, recipe), task.name.split(":")[0]
    read = shadows.reader(network, *(task.source.train[c][made.targets] for c in "xy"))
    params = shadows.train_shadows(network, task, few, recipe, seed=0)[0]
    mine = {"training": read(params)}
    for name in settings:
        built = presets.build(name, {}, kind, recipe, LAYERS[-1])
        keys = compare.keys_of(0, f"same job {name}", models)
        mine[name] = read(
            shadows.unlearn_shadows(
                network, built, params, task, few, keys=keys, batch_size=recipe.batch_size
            )[0]
        )
    found = {}
    for stage, theirs in margins.items():
        sides = [
            np.array([phi[seen].mean() for phi, seen in zip(side, few.member, strict=True)])
            for side in (mine[stage], theirs)
        ]
        error = math.sqrt(sum(each.var(ddof=1) / models for each in sides))
        difference = float(sides[0].mean() - sides[1].mean())
        found[stage] = {
            "ours": float(sides[0].mean()),
            "torch": float(sides[1].mean()),
            "standard_error": error,
            "same": abs(difference) <= 3 * error,
        }
    return found


def ratios(study: dict[str, Any], torch: dict[str, Any]) -> dict[str, float]:
    """PyTorch's extrapolated seconds over ours, of the stages that both have."""
    mine = {row["label"]: row["seconds"] for row in study["rows"]}
    mine["training"] = mine["original"]
    stages = list(torch["extrapolated"])
    theirs = sum(torch["extrapolated"].values())
    run, compiling = (sum(mine[s][part] for s in stages) for part in ("run", "compile"))
    return {
        "torch": theirs,
        "ours": run,
        "compile": compiling,
        "run": theirs / run,
        "with_compile": theirs / (run + compiling),
    }


def benchmark(options: Any) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    tasks = [parse_task(digits(), name) for name in options.tasks]
    studies = [ours(task, options) for task in tasks]
    torch = rival(tasks[0], options)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": _command(options),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions() | ({"torch": torch["version"]} if torch else {}),
        "job": {
            "pairs": options.pairs,
            "layers": list(LAYERS),
            "epochs": options.epochs,
            "batch_size": presets.Recipe().batch_size,
            "learning_rate": presets.Recipe().learning_rate,
            "methods": [each.label for each in presets.parse_methods(options.methods)],
            "relabellings": options.relabellings,
        },
        "studies": studies,
        "torch": torch,
        "ratios": ratios(studies[0], torch) if torch else None,
        "seconds": time.perf_counter() - begin,
    }


def _command(options: Any) -> str:
    names = ("pairs", "epochs", "relabellings", "torch_models", "methods")
    words = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names]
    words.append("--tasks " + " ".join(options.tasks))
    return " ".join(["python -m experiments.benchmarks.shadows", *words])


def table(record: dict[str, Any]) -> str:
    """The measurement as text for a terminal."""
    lines = []
    for study in record["studies"]:
        lines.append(f"{study['task']}: {study['seconds']:.1f} s in all")
        lines.append(f"{'row':20}{'accuracy':>22}{'AUC':>7}{'p':>8}{'compile':>9}{'run':>7}")
        for row in study["rows"]:
            accuracy = row["accuracy"] or dict.fromkeys(("value", "low", "high"), math.nan)
            words = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
            area, p = (row["auc"] or {}).get("value", math.nan), row["p_value"] or math.nan
            seconds = row["seconds"]
            lines.append(
                f"{row['label']:20}{words:>22}{area:7.3f}{p:8.3f}{seconds['compile']:9.2f}"
                f"{seconds['run']:7.2f}"
            )
    if record["ratios"]:
        r = record["ratios"]
        lines.append(
            f"PyTorch, extrapolated from {record['torch']['models']} models: {r['torch']:.0f} s; "
            f"ours {r['ours']:.1f} s and {r['compile']:.1f} s to compile: {r['run']:.1f} x, with "
            f"compilation {r['with_compile']:.1f} x"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes `OUT/shadows.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.shadows", allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS, help="folder")
    add("--pairs", type=int, default=64)
    add("--epochs", type=int, default=30)
    add("--relabellings", type=int, default=999, help="of the exact test")
    add("--torch-models", type=int, default=8, help="shadows in PyTorch; scaled to all")
    add("--methods", default=METHODS)
    add("--tasks", nargs="+", default=TASKS, help="of digits; PyTorch runs the first")
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    record = benchmark(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "shadows.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(record))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
