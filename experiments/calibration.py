"""What calibration buys: every method as published and as its proxies chose, on the same request.

    python -m experiments.calibration                     class, sub-class and random, on digits
    python -m experiments.calibration --only random       one of them; the others stay in the file
    python -m experiments.calibration --methods finetune,scrub --epochs 3 --out DIR    a smoke run

For each request: proxies (`jaxunlearn.data.proxies`) with oracles of their own; every setting of
every grid (`jaxunlearn.grids`) on them; of each method the setting that is chosen within each
budget (`jaxunlearn.calibration`). Only then is the request itself looked at: the published
constants, the settings within a tenth of retraining, and for the other budgets the `BEST` methods
by their proxies, all in one comparison. The choice never sees the request's oracles.

Writes `calibration.json`; seconds are of this run alone, compilation apart where it says "time".
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import machine
from experiments.comparisons import COMPARISONS, RESULTS
from jaxunlearn import calibration, compare, grids, presets, sweeps
from jaxunlearn.calibration import Calibration, References, Trial
from jaxunlearn.data import load, parse_task, proxies
from jaxunlearn.data.tasks import Task
from jaxunlearn.presets import Specified
from jaxunlearn.publishing import publish_text
from jaxunlearn.results import plain

KIND, SCHEMA = "jaxunlearn experiment: calibration", 1
TASKS = ("class", "subclass", "random")  # of `experiments.comparisons`
BUDGETS = (0.02, 0.05, 0.10, 0.33)  # shares of retraining's run time
MAIN = 0.10  # the budget at which every method is shown
GRACE = 1.25  # a tenth of the epochs takes a little more than a tenth of the time
BEST = 3  # methods at each of the other budgets
UNPUBLISHED = ("retrain", "win_u")  # win_u's constants want a dense matrix of all weights a model


def calibrated(found: References, names: Sequence[str]) -> dict[str, Calibration]:
    """Every grid on the proxies, by method; the choice within any budget."""
    tried = {}
    for name in names:
        start = time.perf_counter()
        points = sweeps.grid(**grids.GRIDS[name](found.settings.recipe))
        tried[name] = calibration.calibrate(name, points, found)
        _say(f"  {name}: {len(points)} settings", time.perf_counter() - start)
    return tried


def within(tried: Calibration, budget: float, limit: float) -> Calibration:
    """The same trials, chosen again within a budget and the grace that its overheads need."""
    return calibration.choose(tried.name, tried.trials, budget=GRACE * budget, limit=limit)


def best(
    tried: dict[str, Calibration], budget: float, count: int, limit: float
) -> list[Calibration]:
    """The methods that come nearest to the proxies' oracles within a budget, gently."""
    found = [within(each, budget, limit) for each in tried.values()]
    gentle = [each for each in found if each.chosen and np.mean(each.chosen.collateral) <= limit]
    return sorted(gentle, key=lambda c: -float(np.mean(c.chosen.gap_closed)))[:count]  # type: ignore


def roles_of(
    tried: dict[str, Calibration], names: Sequence[str], limit: float
) -> dict[str, list[str]]:
    """Label of a specified method -> what it is here: "paper", "calibrated", "best within 2 %"."""
    roles: dict[str, list[str]] = {"retrain": ["retrain"]}
    for name in names:
        roles.setdefault(f"{name}(preset='paper')", []).append("paper")
    for each in tried.values():
        chosen = calibration.specified(within(each, MAIN, limit))
        if chosen:
            roles.setdefault(chosen.label, []).append("calibrated")
    for budget in BUDGETS:
        for each in best(tried, budget, BEST, limit):
            chosen = calibration.specified(each)
            assert chosen is not None
            roles.setdefault(chosen.label, []).append(f"best within {100 * budget:g} %")
    return roles


def one_task(
    name: str, chosen: Sequence[str] | None, options: argparse.Namespace, before: Any
) -> dict:
    """Calibration on proxies, then one comparison on the request.

    `before` are trials of an earlier run, by method: methods that are not chosen keep theirs.
    """
    begin = time.perf_counter()
    asked = COMPARISONS[name]
    recipe = asked.settings.recipe
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    task = parse_task(load(asked.source), asked.forget)
    usual = [each.name for each in compare.usual(task, recipe)]
    chosen = usual if chosen is None else chosen
    names = [each for each in usual if each in chosen and each in grids.GRIDS]
    kept = {each: _again(each, before[each]) for each in usual if each in before}
    settings = compare.Settings(recipe, options.seeds, options.oracles, rows=asked.settings.rows)
    stand_ins = proxies(task, options.proxies)
    found = calibration.references(stand_ins, settings, say=_say)
    tried = kept | calibrated(found, names)
    tried = {each: tried[each] for each in usual if each in tried}
    middle = time.perf_counter()
    limit = calibration.raised(calibration.COLLATERAL_LIMIT, found)
    roles = roles_of(tried, [each for each in tried if each not in UNPUBLISHED], limit)
    methods = presets.parse_methods(",".join(roles))
    judged = compare.compare(
        task, methods, dataclasses.replace(settings, oracles=2 * options.oracles), say=_say
    )
    return {
        "source": asked.source,
        "forget": asked.forget,
        "words": task.words,
        "proxies": [each.name for each in stand_ins],
        "retraining": found.retraining,
        "limit": limit,
        "seconds": {"proxies": middle - begin, "request": time.perf_counter() - middle},
        "status": judged.status,
        "tried": {name: _plain(each, limit) for name, each in tried.items()},
        "rows": [_row(row, roles, methods, task) for row in judged.rows],
        "notes": judged.record["notes"],
    }


def _again(name: str, stored: Any) -> Calibration:
    """The inverse of `_plain`."""
    trials = [
        Trial(t["settings"], t["gap_closed"], t["collateral"], t["cost"]) for t in stored["trials"]
    ]
    return Calibration(name, trials, None, "")


def _plain(tried: Calibration, limit: float) -> dict[str, Any]:
    """The trials without what is the same in all of them, and the choice within each budget."""
    trials = [
        {
            "settings": trial.settings,
            "gap_closed": [round(float(gap), 4) for gap in trial.gap_closed],
            "collateral": [round(float(kept), 3) for kept in trial.collateral],
            "cost": round(trial.cost, 4),
        }
        for trial in tried.trials
    ]
    chosen = {f"{budget:g}": within(tried, budget, limit) for budget in BUDGETS}
    places = {
        budget: None if each.chosen is None else tried.trials.index(each.chosen)
        for budget, each in chosen.items()
    }
    return {"trials": trials, "chosen": places}


def _row(
    row: dict, roles: dict[str, list[str]], methods: Sequence[Specified], task: Task
) -> dict[str, Any]:
    """What a table shows of one group of models."""
    names = {each.label: each.name for each in methods}
    verdict = row["verdict"] or {}
    accuracy = row["scores"].get("accuracy", {})
    return {
        "label": row["label"],
        "role": row["role"],
        "method": names.get(row["label"]),
        "as": roles.get(row["label"], []),
        "gap_closed": _ends(verdict.get("gap_closed")),
        "collateral": _ends(verdict.get("collateral")),
        "verdict": verdict.get("verdict"),
        "damages": verdict.get("damages", []),
        "p_value": verdict.get("p_value"),
        "accuracy": {part: (each or {}).get("value") for part, each in accuracy.items()},
        "of_retraining": row["seconds"]["of_retraining"],
    }


def _ends(interval: Any) -> Any:
    return None if interval is None else {k: interval[k] for k in ("value", "low", "high")}


def _say(text: str, seconds: float) -> None:
    print(f"{seconds:7.1f} s  {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, compares and writes; tasks that are not asked for stay as they were."""
    parser = argparse.ArgumentParser(prog="python -m experiments.calibration", allow_abbrev=False)
    add = parser.add_argument
    add("--only", choices=TASKS, action="append", help="this request; may be repeated")
    add("--methods", default=None, help="names, instead of all that have a grid")
    add("--keep", action="store_true", help="other methods keep the trials that are in the file")
    add("--seeds", type=int, default=8, help="originals, and models a setting")
    add("--oracles", type=int, default=16, help="of each proxy; the request has twice as many")
    add("--proxies", type=int, default=3)
    add("--epochs", type=int, default=None, help="of the recipe, instead of its own")
    add("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    with tempfile.TemporaryDirectory() as programs:
        _share_programs(programs)
        return _run(options)


def _share_programs(folder: str) -> None:
    """All proxies of a request have one shape: what is compiled for the first serves the others."""
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _run(options: argparse.Namespace) -> int:
    path = options.out / "calibration.json"
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
    chosen = None if options.methods is None else options.methods.split(",")
    for name in options.only or TASKS:
        print(f"{name}: {COMPARISONS[name].source}, {COMPARISONS[name].forget}")
        before = tasks[name]["tried"] if options.keep and name in tasks else {}
        tasks[name] = plain(one_task(name, chosen, options, before))
        record = {
            "kind": KIND,
            "schema": SCHEMA,
            "command": "python -m experiments.calibration",
            "date": machine.today(),
            "machine": machine.description(),
            "versions": compare.versions(),
            "seconds": sum(sum(task["seconds"].values()) for task in tasks.values()),
            "settings": {"seeds": options.seeds, "oracles": options.oracles},
            "budgets": list(BUDGETS),
            "limit": calibration.COLLATERAL_LIMIT,
            "tasks": {each: tasks[each] for each in TASKS if each in tasks},
        }
        options.out.mkdir(parents=True, exist_ok=True)
        publish_text(path, json.dumps(record))
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
