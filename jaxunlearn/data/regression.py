"""Regressions: a source with a real target, and the task that forgets a range of it.

    y = (target - mean) / deviation,    both of the training targets
    forget = the rows with low <= target < high

A regression is a `Source` whose `target` says what its numbers mean: `"y"` is float32 (n, 1), in
deviations, so that learning rates mean what they mean elsewhere, and a report has its errors in the
unit of the target. `random_task`, `index_task` and `group_task` take such a source as it is; what
is said in classes is refused.
"""

import math
from typing import Any

import numpy as np

from jaxunlearn.data.sources import Columns, Source, Target, stratified_split
from jaxunlearn.data.tasks import Task, make_task

_SIZES = (312, 50, 80)


def diabetes() -> Source:
    """Disease progression of the 442 patients that come with scikit-learn: 312 train, 50
    validation, 80 test.

    Ten measurements (age, sex, body mass index, blood pressure, six of the serum), each less its
    mean and in units of its deviation over the training rows; the target is a score of progression
    within a year, from 25 to 346. The split is `stratified_split` by deciles of the target with
    seed 0; ids are the rows of `sklearn.datasets.load_diabetes()`. The column `"sex"`, 0 or 1, is
    for `group_task`.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.

    Source: Efron et al. (2004), "Least Angle Regression", Annals of Statistics 32.

    Example:
      >>> source = diabetes()
      >>> source.input_shape, len(source.train["y"]), source.target.name
      ((10,), 312, 'progression')
    """
    try:
        from sklearn.datasets import load_diabetes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the source 'diabetes' comes with scikit-learn: pip install 'jaxunlearn[compare]'."
        ) from error
    bunch: Any = load_diabetes(scaled=False)
    target, x = bunch.target.astype(np.float64), bunch.data.astype(np.float64)
    decile = 10 * np.argsort(np.argsort(target, kind="stable"), kind="stable") // len(target)
    splits = stratified_split(decile, _SIZES)
    mean, deviation = x[splits[0]].mean(axis=0), x[splits[0]].std(axis=0)
    unit = Target("progression", float(target[splits[0]].mean()), float(target[splits[0]].std()))
    columns = {
        "x": ((x - mean) / deviation).astype(np.float32),
        "y": standardised(unit, target),
        "id": np.arange(len(target), dtype=np.int32),
        "sex": (x[:, 1] - 1).astype(np.int32),
    }
    parts = [{name: column[rows] for name, column in columns.items()} for rows in splits]
    return Source("diabetes", *parts, label_names={}, target=unit)


def standardised(unit: Target, targets: np.ndarray) -> np.ndarray:
    """Targets (n,) in their unit as the column `"y"`, float32 (n, 1)."""
    return ((np.asarray(targets, np.float64) - unit.mean) / unit.deviation).astype(np.float32)[
        :, None
    ]


def in_units(unit: Target, y: np.ndarray) -> np.ndarray:
    """What is in deviations, of any shape, in the unit of the target: the inverse in float64.

    Example:
      >>> unit = Target("age", 40.0, 10.0)
      >>> in_units(unit, standardised(unit, np.array([25.0, 50.0])))[:, 0]
      array([25., 50.])
    """
    return unit.mean + unit.deviation * np.asarray(y, np.float64)


def range_task(source: Source, low: float, high: float, *, duplicates: str = "raise") -> Task:
    """Forget every example whose target lies in [low, high), as the ages from 0 to 30.

    Args:
      source: a regression.
      low, high: in the unit of the target, low < high; infinite for an open end.

    Returns:
      A `Task` named `"range:200:346"`. Validation and test are split by the same rule.

    Raises:
      ValueError: a source of classes, ends that are no range, no training target between them, or
        every one.

    Example:
      >>> task = range_task(diabetes(), 200, math.inf)
      >>> print(task.describe())
      Forget progression from 200 to inf of diabetes: 89 of 312 training rows, 223 retained. Test:
      23 of the same kind, 57 others.
    """
    unit = regression_target(source)
    low, high = float(low), float(high)
    if not low < high:
        raise ValueError(f"range: expected low < high, got {low:g} and {high:g}.")
    ends = standardised(unit, np.array([low, high]))[:, 0]  # as the column is rounded

    def within(columns: Columns) -> np.ndarray:
        return (columns["y"][:, 0] >= ends[0]) & (columns["y"][:, 0] < ends[1])

    if not within(source.train).any():
        found = in_units(unit, source.train["y"])
        raise ValueError(
            f"range: no training target of {source.name} lies in [{low:g}, {high:g}); they lie in "
            f"[{found.min():g}, {found.max():g}]."
        )
    ends_named = ":".join(_written(end) for end in (low, high))
    words = f"{unit.name} from {low:g} to {high:g}"
    return make_task(source, f"range:{ends_named}", words, within, duplicates=duplicates)


def _written(end: float) -> str:
    """The shortest text that gives the number back: 200 and not 200.0."""
    return str(int(end)) if math.isfinite(end) and end == int(end) else repr(end)


def regression_target(source: Source) -> Target:
    """The target of a regression; `ValueError` for a source of classes."""
    if source.target is None:
        raise ValueError(
            f"{source.name} has classes, and a range is of a real target. Forget a class, or give "
            "a regression such as diabetes."
        )
    return source.target
