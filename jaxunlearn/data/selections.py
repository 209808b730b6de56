"""Five ways to say what to forget; each makes a `Task`.

| task            | forgotten                        | adjacent               | validation, test |
|-----------------|----------------------------------|------------------------|------------------|
| `class_task`    | one class or several             |                        | the same rule    |
| `subclass_task` | a finer class inside a label     | the rest of that label | the same rule    |
| `group_task`    | rows with a value in some column |                        | the same rule    |
| `random_task`   | a share of the rows, uniformly   |                        | retained whole   |
| `index_task`    | examples named by id             |                        | retained whole   |

| situation                                         | what happens                               |
|---------------------------------------------------|--------------------------------------------|
| nothing to forget (no ids, a share of 0)          | a documented no-op: forget has no rows     |
| an id given twice, or ids in another order        | the same task; `notes` counts the repeats  |
| unknown or negative ids, a mask of another length | `ValueError` naming them                   |
| ids that are floats or words                      | `TypeError`                                |

Every one takes `duplicates`: `"raise"`, `"forget"` or `"keep"`, what becomes of retained rows equal
to forgotten ones, see `jaxunlearn.data.tasks`.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxunlearn.data.sources import SPLITS, Source
from jaxunlearn.data.tasks import Task, make_task
from jaxunlearn.naming import did_you_mean


def class_task(source: Source, classes: Any, *, duplicates: str = "raise") -> Task:
    """Forget every example of one class or of several.

    Args:
      source: the examples.
      classes: a number in [0, num_classes), a name, or several of them.

    Returns:
      A `Task` named `"class:3"` or `"class:3,5"`, its numbers sorted.

    Raises:
      TypeError, ValueError: an unknown class, or all classes.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = class_task(digits(), (5, 3))
      >>> task.name, len(task.train_parts["forget"]), sorted(task.test_parts)
      ('class:3,5', 244, ['forget', 'retain'])
    """
    numbers = _numbers(source, "y", classes)
    return make_task(
        source,
        f"class:{','.join(map(str, numbers))}",
        f"{'class' if len(numbers) == 1 else 'classes'} {_called(source, 'y', numbers)}",
        lambda columns: np.isin(columns["y"], numbers),
        duplicates=duplicates,
    )


def subclass_task(
    source: Source, fine: Any, *, column: str = "fine", duplicates: str = "raise"
) -> Task:
    """Forget a finer class inside the label that is learnt; its siblings under the same label are
    adjacent.

    Args:
      source: examples whose `"y"` is a superclass and whose `column` is finer.
      fine: a number or a name in that column, or several.
      column: the finer label column.

    Returns:
      A `Task` named `"subclass:3"`.

    Raises:
      TypeError, ValueError: no such column (a source without finer labels), an unknown value.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = subclass_task(digits("odd_even"), 3)
      >>> np.unique(task.columns("train", "adjacent")["fine"]).tolist()
      [1, 5, 7, 9]
    """
    numbers = _numbers(source, column, fine)
    train = source.train
    labels = np.unique(train["y"][np.isin(train[column], numbers)])
    option = "" if column == "fine" else f":column={column}"
    return make_task(
        source,
        f"subclass:{','.join(map(str, numbers))}{option}",
        f"sub-class {_called(source, column, numbers)} of label "
        f"{_called(source, 'y', labels.tolist())}",
        lambda columns: np.isin(columns[column], numbers),
        adjacent=lambda columns: np.isin(columns["y"], labels),
        duplicates=duplicates,
    )


def group_task(source: Source, column: str, values: Any, *, duplicates: str = "raise") -> Task:
    """Forget every example with a given value in an integer column: a user, a writer, a hospital.

    Args:
      source: the examples.
      column: a one-dimensional integer column.
      values: one value of the column or several; names where the column has names.

    Returns:
      A `Task` named `"group:user=7"`.

    Raises:
      ValueError: no such column, a column of another kind, a value with no training row.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> group_task(digits("loop"), "fine", [8, 9]).name
      'group:fine=8,9'
    """
    groups = [n for n, c in source.train.items() if c.ndim == 1 and c.dtype.kind in "iu"]
    if column not in groups:
        raise ValueError(
            f"{source.name} has no integer column '{column}'. {did_you_mean(column, groups)}"
        )
    if column in source.label_names:
        wanted = _numbers(source, column, values)
    else:
        wanted = sorted(set(_integers(f"group '{column}'", values).tolist()))
    present = source.train[column]
    absent = [value for value in wanted if value not in present]
    if absent:
        raise ValueError(
            f"column '{column}' of {source.name} holds no {absent} in train; its "
            f"{len(np.unique(present))} values lie in [{present.min()}, {present.max()}]."
        )
    listed = ",".join(map(str, wanted))
    return make_task(
        source,
        f"group:{column}={listed}",
        f"the rows with {column} = {listed}",
        lambda columns: np.isin(columns[column], wanted),
        duplicates=duplicates,
    )


def random_task(source: Source, fraction: float, *, seed: int, duplicates: str = "raise") -> Task:
    """Forget a share of the training rows, drawn uniformly without replacement; not stratified.

    The rows are ranked by the raw output of PCG64, so the draw is the same everywhere and a smaller
    fraction with the same seed is a subset of a larger one. Validation and test are retained whole.

    Args:
      source: the examples.
      fraction: share of the training rows in [0, 1), rounded to a whole number of rows. 0 forgets
        nothing.
      seed: of the draw, >= 0.

    Returns:
      A `Task` named `"random:0.05:seed=0"`.

    Raises:
      ValueError: fraction out of range, or rounded up to everything; a seed that is not an integer
        >= 0.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = random_task(digits(), 0.05, seed=0)
      >>> len(task.train_parts["forget"]), sorted(task.test_parts)
      (60, ['retain'])
    """
    if isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise ValueError(
            f"random: expected a fraction of the training rows in [0, 1), got {fraction}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"random: expected an integer seed >= 0, got {seed!r}.")
    rows = len(source.train["y"])
    rank = np.argsort(np.argsort(np.random.PCG64(int(seed)).random_raw(rows), kind="stable"))
    drawn = rank < round(float(fraction) * rows)
    return make_task(
        source,
        f"random:{float(fraction)!r}:seed={seed}",
        f"a random {100 * fraction:.4g} %",
        lambda columns: drawn,
        held_out=False,
        duplicates=duplicates,
    )


def index_task(source: Source, ids: Any, *, duplicates: str = "raise") -> Task:
    """Forget training examples named by id.

    Args:
      source: the examples.
      ids: integers that occur in `source.train["id"]`, in any order, repeats allowed; or a boolean
        mask over the training rows. Empty forgets nothing.

    Returns:
      A `Task` named `"ids:4,7"`, or `"ids:250-<hash>"` beyond 16 ids. Order and repeats change
      nothing but `notes`.

    Raises:
      TypeError: ids that are not integers.
      ValueError: ids that are negative, unknown, or in validation or test; a mask of another
        length.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> source = digits()
      >>> task = index_task(source, [2, 0, 2])
      >>> task.name, task.notes, task.digest == index_task(source, [0, 2]).digest
      ('ids:0,2', ('1 repeated ids dropped',), True)
    """
    known = source.train["id"]
    given = _integers("ids", ids, mask_over=known)
    wanted = np.unique(given)
    if wanted.min(initial=0) < 0:
        raise ValueError(
            f"ids {wanted[wanted < 0][:5].tolist()} are negative: nothing counts from the end."
        )
    unknown = wanted[~np.isin(wanted, known)]
    if len(unknown):
        elsewhere = [s for s in SPLITS[1:] if np.isin(unknown, getattr(source, s)["id"]).any()]
        raise ValueError(
            f"ids {unknown[:5].tolist()}{'...' if len(unknown) > 5 else ''} are not training "
            f"examples of {source.name}: its {len(known)} ids lie in [{known.min()}, {known.max()}]"
            + (f", and some of those named are in {' and '.join(elsewhere)}" if elsewhere else "")
            + ". Only what was trained on can be forgotten."
        )
    repeated = len(given) - len(wanted)
    listed = ",".join(map(str, wanted.tolist()))
    if len(wanted) > 16:
        listed = f"{len(wanted)}-{hashlib.sha256(listed.encode()).hexdigest()[:8]}"
    return make_task(
        source,
        f"ids:{listed}",
        f"{len(wanted)} examples named by id",
        lambda columns: np.isin(columns["id"], wanted),
        held_out=False,
        duplicates=duplicates,
        notes=(f"{repeated} repeated ids dropped",) if repeated else (),
    )


def _integers(what: str, values: Any, mask_over: np.ndarray | None = None) -> np.ndarray:
    """`values` as int64 (k,); a boolean mask over `mask_over` becomes the values it selects."""
    array = np.asarray(sorted(values) if isinstance(values, set | frozenset) else values)
    array = array.reshape(1) if array.ndim == 0 else array
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype == bool and mask_over is not None:
        if array.shape != mask_over.shape:
            raise ValueError(
                f"{what}: a boolean mask must have one entry a training row, shape "
                f"{mask_over.shape}, got {array.shape}."
            )
        return mask_over[array].astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what}: expected integers (k,), got {array.dtype} {array.shape}.")
    return array.astype(np.int64)


def _listed(values: Any) -> list[Any]:
    """One value, or a collection of values, as a list."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        return [values.item() if isinstance(values, np.ndarray | np.generic) else values]
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _numbers(source: Source, column: str, values: Any) -> list[int]:
    """Values of a label column, given as numbers or names, as sorted distinct numbers."""
    if column not in source.label_names:
        raise ValueError(
            f"{source.name} has no label column '{column}'. "
            f"{did_you_mean(column, source.label_columns)}"
        )
    names = list(source.label_names[column])
    noun = "class" if column == "y" else f"'{column}'"
    numbers = set()
    for value in _listed(values):
        if isinstance(value, str) and not re.fullmatch(r"-?\d+", value):
            if value not in names:
                raise ValueError(
                    f"{source.name} has no {noun} called '{value}'. {did_you_mean(value, names)}"
                )
            numbers.add(names.index(value))
            continue
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(f"{noun}: expected a number or a name, got {value!r}.")
        if not 0 <= int(value) < len(names):
            raise ValueError(
                f"{source.name} has no {noun} {value}: they are numbered 0 to {len(names) - 1}."
            )
        numbers.add(int(value))
    return sorted(numbers)


def _called(source: Source, column: str, numbers: Sequence[int]) -> str:
    names = source.label_names[column]
    return ", ".join(str(n) if names[n] == str(n) else f"{n} ({names[n]})" for n in numbers)
