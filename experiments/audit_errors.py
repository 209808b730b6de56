"""How often is the suite of audits wrong? False alarms on retrained models, and what it catches.

    python -m experiments.audit_errors          six minutes on two cores

| study        | what stands in the place of a method      | what must be said                    |
|--------------|-------------------------------------------|--------------------------------------|
| false alarms | models retrained like the oracles, anew   | indistinguishable, but for one trial |
|              | in each of 200 trials                     | in twenty                            |
| power        | untouched originals, originals with the   | flagged                              |
|              | last layer masked, oracles that saw half  |                                      |
|              | of the forget rows                        |                                      |

False alarms need thousands of models, so they are small (MLP, 400 rows of digits, 10 epochs; 8
models against 16 oracles, all of them fresh in every trial); power is measured on the models of a
default comparison (16 against 32). Both go through `jaxunlearn.auditing` as `jaxunlearn audit`
does, U-LiRA with shadow models excepted. For comparison, what the field usually reports (accuracy
on forget rows, AUC of the loss attack) is put to the same test by itself.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from jaxunlearn import audit, compare, data, presets, results
from jaxunlearn.auditing import Bench, Measured
from jaxunlearn.auditing.planted import planted
from jaxunlearn.auditing.suite import AUDITS, described, distances
from jaxunlearn.data.tasks import Task

SCHEMA = 1
KIND = "jaxunlearn audit errors"
LEVEL = 0.05
ROWS, EPOCHS = 400, 10  # of the small models
METHOD, ORACLES, ORIGINALS = 8, 16, 8  # models in a trial
AT_ONCE = 480  # oracles trained in one program
QUIET = ("class:3", "random:0.1")
LOUD = {
    "class:3": ("digits", "class:3"),
    "subclass:3": ("digits:odd_even", "subclass:3"),
    "random:0.1": ("digits", "random:0.1"),
    "random:0.05": ("digits", "random:0.05"),
}


def some(measured: Measured, models: np.ndarray) -> Measured:
    """These models of an ensemble."""
    return Measured(*({k: v[models] for k, v in field.items()} for field in measured))


def together(groups: Sequence[Measured]) -> Measured:
    """Ensembles one after another."""

    def joined(name: str) -> dict[str, np.ndarray]:
        fields = [getattr(group, name) for group in groups]
        return {key: np.concatenate([field[key] for field in fields]) for key in fields[0]}

    return Measured(*(joined(name) for name in Measured._fields))


# ------------------------------------------------------------------------------------ false alarms


def measured_oracles(
    task: Task, settings: compare.Settings, count: int, say: Any
) -> tuple[Measured, Measured]:
    """(originals, `count` oracles) as the suite measures them."""
    network = compare.network_of(task.source, settings.recipe)
    bench = Bench(network, task, settings, rows=128, steps=20)
    originals, _ = compare.train_group(
        network, task, "all", settings.recipe, "original", ORIGINALS, settings.seed, None
    )
    bench.learn_steering(originals)
    found = []
    for start in range(0, count, AT_ONCE):
        say(f"{task.name}: oracles {start} to {min(count, start + AT_ONCE)} of {count}")
        params, _ = compare.train_group(
            network, task, "retain", settings.recipe, f"oracles from {start}",
            min(AT_ONCE, count - start), settings.seed, None,
        )  # fmt: skip
        found.append(bench(params))
    return bench(originals), together(found)


def alarms(
    originals: Measured, oracles: Measured, trials: int, permutations: int, say: Any
) -> dict[str, Any]:
    """How often fresh oracles are flagged against oracles, by all audits and by each alone."""
    size = METHOD + ORACLES
    flagged: list[tuple[str, ...]] = []
    alone: dict[str, list[float]] = {}
    for trial in range(trials):
        if trial % 50 == 0:
            say(f"trial {trial} of {trials}")
        models = np.arange(trial * size, (trial + 1) * size)
        places = distances([some(oracles, models), originals])
        mine, theirs = range(METHOD), range(METHOD, size)
        found = audit.evidence(
            places, mine, theirs, range(size, size + ORIGINALS),
            level=LEVEL, permutations=permutations, resamples=19, seed=trial,
        )  # fmt: skip
        flagged.append(found.flagged(LEVEL))
        for key, D in places.items():
            p = audit.permutation_test(
                {key: D}, mine, theirs, permutations=permutations, seed=[trial, 1]
            )
            alone.setdefault(key, []).append(p.p_value)
    return {
        "trials": trials,
        "flagged": sum(bool(names) for names in flagged),
        "by": {key: sum(key in names for names in flagged) for key in alone},
        "alone": {key: sum(p <= LEVEL for p in values) for key, values in alone.items()},
        "any_alone": int(
            (np.stack(list(alone.values())) <= LEVEL).any(axis=0).sum()
        ),
    }  # fmt: skip


def quiet_study(trials: int, permutations: int, say: Any) -> dict[str, Any]:
    """Task -> false alarms."""
    source = data.thinned(data.digits(), ROWS)
    settings = compare.Settings(presets.Recipe(epochs=EPOCHS), seeds=ORIGINALS, oracles=ORACLES)
    found = {}
    for name in QUIET:
        task = data.parse_task(source, name)
        originals, oracles = measured_oracles(task, settings, trials * (METHOD + ORACLES), say)
        found[name] = alarms(originals, oracles, trials, permutations, say)
    return found


# ------------------------------------------------------------------------------------------- power


def loud_study(settings: compare.Settings, permutations: int, say: Any) -> dict[str, Any]:
    """Task -> planted group -> audit -> adjusted p-value and direction."""
    found: dict[str, Any] = {}
    for name, (source, forget) in LOUD.items():
        task = data.parse_task(data.load(source), forget)
        network = compare.network_of(task.source, settings.recipe)
        bench = Bench(network, task, settings)
        groups: dict[str, Measured] = {}
        expected = {"original": "flagged"}
        say(f"{name}: originals and oracles")
        originals, _ = compare.train_group(
            network, task, "all", settings.recipe, "original", settings.seeds, settings.seed, None
        )
        oracles, _ = compare.train_group(
            network, task, "retain", settings.recipe, "oracle", settings.oracles, settings.seed,
            None,
        )  # fmt: skip
        bench.learn_steering(originals)
        groups["original"], reference = bench(originals), bench(oracles)
        for control in planted(
            network, task, settings.recipe, originals, seeds=settings.seeds, seed=settings.seed,
            progress=lambda text, name=name: say(f"{name}: {text}"),
        ):  # fmt: skip
            groups[control.label] = bench(control.params)
            expected[control.label] = control.expected
        found[name] = {
            label: _judged(label, own, reference, groups["original"], settings, permutations)
            | {"expected": expected[label], "usual": _usual(bench, own, reference, permutations)}
            for label, own in groups.items()
        }
    return found


def _usual(bench: Bench, own: Measured, oracle: Measured, permutations: int) -> dict[str, float]:
    """p-values, each by itself, of what the field usually reports."""
    values = {
        "accuracy on forget rows": [bench.accuracies(g)["forget"] for g in (own, oracle)],
        "AUC of the loss attack": [g.numbers["forget_loss_auc"] for g in (own, oracle)],
    }
    size = len(values["accuracy on forget rows"][0])
    return {
        name: audit.permutation_test(
            {name: audit.vector_distances(np.concatenate(pair))},
            range(size), range(size, size + len(pair[1])), permutations=permutations, seed=0,
        ).p_value
        for name, pair in values.items()
    }  # fmt: skip


def _judged(
    label: str,
    own: Measured,
    oracle: Measured,
    original: Measured,
    settings: compare.Settings,
    permutations: int,
) -> dict[str, Any]:
    ends = np.cumsum([0, settings.seeds, settings.oracles, settings.seeds])
    mine, theirs, start = (range(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True))
    itself = label == "original"
    found = audit.evidence(
        distances([own, oracle] if itself else [own, oracle, original]),
        mine, theirs, mine if itself else start,
        paired=label == "last layer masked", level=LEVEL, permutations=permutations, seed=0,
    )  # fmt: skip
    return {
        "p_value": found.p_value,
        "audits": {
            key: {"p_value": each.p_value, "direction": each.direction}
            for key, each in found.findings.items()
        },
    }


# -------------------------------------------------------------------------------------------- main


def run(trials: int, permutations: int, settings: compare.Settings, say: Any) -> Mapping[str, Any]:
    """The record, but for its date and command."""
    start = time.perf_counter()
    quiet = quiet_study(trials, permutations, say)
    loud = loud_study(settings, permutations, say)
    keys = {key for each in quiet.values() for key in each["alone"]}
    keys |= {k for task in loud.values() for group in task.values() for k in group["audits"]}
    return results.plain({
        "level": LEVEL,
        "permutations": permutations,
        "small": {"rows": ROWS, "epochs": EPOCHS, "models": METHOD, "oracles": ORACLES},
        "large": {"models": settings.seeds, "oracles": settings.oracles},
        "audits": described([key for key in AUDITS if key in keys]),
        "quiet": quiet,
        "loud": loud,
        "seconds": time.perf_counter() - start,
    })  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit_errors", allow_abbrev=False)
    add = parser.add_argument
    add("--trials", type=int, default=200, help="of each request, for false alarms")
    add("--permutations", type=int, default=1999)
    add("--out", type=Path, default=Path(__file__).parent / "results" / "audit_errors.json")
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    found = run(options.trials, options.permutations, compare.Settings(), say)
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": "python -m experiments.audit_errors"
        + (f" --trials {options.trials}" if options.trials != 200 else ""),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        **found,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
