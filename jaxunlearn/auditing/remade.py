"""A finished comparison made again: from its record back to task, settings, methods and models.

A record holds numbers, not parameters. The models behind them come back from the cache, or are
trained anew: the record names the source, the request, the recipe and the seed, and equal
arguments give equal models. Nothing is taken on trust:

| what is compared                  | if it differs                                            |
|-----------------------------------|----------------------------------------------------------|
| digest of the data, of the split  | ValueError: another data set, or rows were chosen in a   |
|                                   | way that the name of the task cannot tell                |
| accuracy of every model on every  | ValueError: these are not the models of the record       |
| part                              | (another version of JAX, another device); compare anew   |
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import data, presets
from jaxunlearn.compare import Settings
from jaxunlearn.data.tasks import Task
from jaxunlearn.naming import nearest
from jaxunlearn.presets import Recipe, Specified

_THINNED = re.compile(r"(.+) \((\d+) rows\)")


def task_of(record: Mapping[str, Any], *, data_dir: str | Path | None = None) -> Task:
    """The task of a record of classifiers, with the same data and the same rows.

    Args:
      record: of a comparison, as in `results.json`.
      data_dir: as for `data.load`.

    Raises:
      ValueError: a record of recommenders or of a regression, or another data set or split.
      FileNotFoundError: the data are not on this machine.
    """
    told = record["task"]
    if "classes" not in told:
        raise ValueError(
            f"{told['source']} is not classified: audits of models, features and relearning are "
            "for classifiers. The comparison's own report stands."
        )
    thinned = _THINNED.fullmatch(told["source"])
    source = data.load(thinned[1] if thinned else told["source"], data_dir=data_dir)
    if thinned:
        source = data.thinned(source, int(thinned[2]))
    _check("source_digest", told["source_digest"], source.digest, f"the data of {source.name}")
    task = data.parse_task(source, told["name"])
    _check("digest", told["digest"], task.digest, f"the rows of {told['name']}")
    return task


def _check(field: str, stored: str, found: str, what: str) -> None:
    if stored != found:
        raise ValueError(
            f"{what} are not those of the comparison ({field} {found[:12]}..., expected "
            f"{stored[:12]}...). Run the comparison again, then audit that."
        )


def settings_of(record: Mapping[str, Any]) -> Settings:
    """The settings of a record's comparison.

    Raises:
      ValueError: a field that this version does not know.
    """
    stored: dict[str, Any] = dict(record["settings"])
    known = {field.name for field in dataclasses.fields(Settings)}
    recipe = {field.name for field in dataclasses.fields(Recipe)}
    unknown = (stored.keys() - known) | (stored.get("recipe", {}).keys() - recipe)
    if unknown:
        raise ValueError(f"settings: {sorted(unknown)} are unknown to this version of jaxunlearn.")
    stored["recipe"] = Recipe(**stored["recipe"])
    return Settings(**stored)


def methods_of(record: Mapping[str, Any], labels: Sequence[str] | None = None) -> list[Specified]:
    """The methods of a record, all of them or those with these labels, in the record's order.

    Raises:
      ValueError: a label that the record has not (names the nearest).
    """
    there = [row["label"] for row in record["rows"] if row["role"] == "method"]
    for label in labels or ():
        if label not in there:
            raise ValueError(f"methods: this comparison has no such row: {nearest(label, there)}")
    chosen = [label for label in there if labels is None or label in labels]
    return presets.parse_methods(",".join(chosen)) if chosen else []


def check_models(record: Mapping[str, Any], label: str, accuracies: Mapping[str, Any]) -> None:
    """Refuses models that are not those of the record.

    Args:
      record: of the comparison.
      label: of the row.
      accuracies: part -> (M,) accuracy of each model made again.

    Raises:
      ValueError: another number of models, or an accuracy that differs.
    """
    row = next(row for row in record["rows"] if row["label"] == label)
    for part, values in row["scores"].get("accuracy", {}).items():
        stored = [math.nan if v is None else v for v in (values or {}).get("per_model") or ()]
        found = np.asarray(accuracies[part], np.float64)
        if not stored and not found.size:
            continue
        same = len(stored) == found.size and np.array_equal(stored, found, equal_nan=True)
        if not same:
            raise ValueError(
                f"the models of '{label}' cannot be made again as they were: accuracy on {part} is "
                f"{_short(found)}, and {_short(np.asarray(stored))} in the record (made with "
                f"{_made_with(record)}). Run the comparison again, then audit that."
            )


def _short(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values[:4]) + (", ...]" if values.size > 4 else "]")


def _made_with(record: Mapping[str, Any]) -> str:
    versions = record["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("jax", "machine") if name in versions)
