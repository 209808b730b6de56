"""Stand-ins for a request: others of the same kind and size, on which settings can be tried.

    forget class 3           ->  forget class 8, forget class 0, ...
    forget 5 % of the rows   ->  forget other rows, as many
    forget sub-class 3       ->  forget another sub-class of the same label

Whoever chooses a setting by looking at the oracle of the request itself has retrained already. A
proxy's oracle may be looked at: it says how strong a method must be for requests like this one, and
nothing about this one. The rows of the request are in no proxy's forget set.
"""

import itertools
import math

import numpy as np

from jaxunlearn.data.regression import in_units, range_task
from jaxunlearn.data.selections import class_task, group_task, index_task, subclass_task
from jaxunlearn.data.tasks import Task


def proxies(task: Task, count: int = 3, *, seed: int = 0) -> list[Task]:
    """Other requests of the kind and the size of `task`.

    Args:
      task: the request.
      count: how many, >= 1; fewer come back where there are no more.
      seed: of the draw, >= 0.

    Returns:
      Tasks on the same source, no two the same.

    Raises:
      ValueError: count < 1, or a request of which there is no other of the kind.

    | request             | a proxy forgets                                                      |
    |---------------------|----------------------------------------------------------------------|
    | classes             | as many other classes                                                |
    | sub-classes         | as many other sub-classes of the same labels                         |
    | groups of a column  | as many other groups, those of the nearest sizes                     |
    | random rows, ids    | as many other training rows, drawn uniformly                         |
    | a range of targets  | other ranges that hold as many training rows                         |

    Copies of forgotten rows are treated as in `task`.

    Example:
      >>> from jaxunlearn.data import class_task, digits
      >>> [proxy.name for proxy in proxies(class_task(digits(), 3), 2)]
      ['class:5', 'class:6']
    """
    if count < 1:
        raise ValueError(f"proxies: count must be >= 1, got {count}.")
    kind, body, *options = task.name.split(":")
    extra = dict(option.split("=", 1) for option in options if "=" in option)
    copies = extra.get("duplicates", "raise")
    rng = np.random.default_rng(seed)
    if kind in ("random", "ids"):
        return [_other_rows(task, rng, copies) for _ in range(count)]
    if kind == "range":
        return _other_ranges(task, count, rng, copies)
    source = task.source
    if kind == "class":
        column = "y"
        others = sorted(set(source.train["y"].tolist()))
    elif kind == "subclass":
        column = extra.get("column", "fine")
        labels = source.train["y"][task.train_parts["forget"]]
        others = sorted(set(source.train[column][np.isin(source.train["y"], labels)].tolist()))
    elif kind == "group":
        column, body = body.split("=", 1)
        others = sorted(set(source.train[column].tolist()))
    else:
        raise ValueError(
            f"proxies: no rule makes other requests like '{task.name}'; make them by hand."
        )
    own = [int(value) for value in body.split(",")]
    others = [value for value in others if value not in own]
    size = len(task.train_parts["forget"])
    sets = list(itertools.islice(itertools.combinations(others, len(own)), 10_000))
    if not sets:
        raise ValueError(f"proxies: there is no other request like '{task.name}' in {source.name}.")
    chosen = [list(map(int, sets[place])) for place in rng.permutation(len(sets))]
    if kind == "group":
        chosen.sort(key=lambda each: abs(int(np.isin(source.train[column], each).sum()) - size))
    chosen = chosen[:count]
    if kind == "class":
        return [class_task(source, each, duplicates=copies) for each in chosen]
    if kind == "subclass":
        return [subclass_task(source, each, column=column, duplicates=copies) for each in chosen]
    return [group_task(source, column, each, duplicates=copies) for each in chosen]


def _other_ranges(task: Task, count: int, rng: np.random.Generator, copies: str) -> list[Task]:
    """Windows of as many sorted targets, outside the request's own range."""
    source, own = task.source, task.train_parts["forget"]
    assert source.target is not None
    targets = in_units(source.target, source.train["y"]).reshape(-1)
    values = np.sort(targets)
    low, high = np.searchsorted(values, [targets[own].min(), targets[own].max()], side="left")
    starts = [*range(low - len(own) + 1), *range(high + 1, len(values) - len(own) + 1)]
    ends = [*values.tolist(), math.inf]
    windows = {(ends[s], ends[s + len(own)]) for s in starts if ends[s] < ends[s + len(own)]}
    if not windows:
        raise ValueError(f"proxies: there is no other request like '{task.name}' in {source.name}.")
    chosen = [sorted(windows)[place] for place in rng.permutation(len(windows))[:count]]
    return [range_task(source, *window, duplicates=copies) for window in chosen]


def _other_rows(task: Task, rng: np.random.Generator, copies: str) -> Task:
    """As many rows as the request has, none of them its own."""
    ids = task.source.train["id"]
    free, size = ids[task.train_parts["retain"]], len(task.train_parts["forget"])
    drawn = rng.permutation(free)[: min(size, len(free) - 1)]
    return index_task(task.source, np.sort(drawn), duplicates=copies)
