"""A small source and a task of every kind, for the tests of tasks."""

import numpy as np

from jaxunlearn.data import Source, class_task, group_task, index_task, random_task, subclass_task


def small(rows=60, copies=()):
    """Fine classes 0..5 nested in labels 0..2, a group column, ids that are not row numbers.

    `copies`: pairs (from, to) of training rows; x and every label of `to` become those of `from`.
    """
    rng = np.random.default_rng(0)
    splits = []
    for split, count in enumerate((rows, 18, 24)):
        fine = (rng.permutation(count) % 6).astype(np.int32)
        splits.append(
            {
                "x": rng.random((count, 3)).astype(np.float32),
                "y": fine // 2,
                "fine": fine,
                "user": (np.arange(count) % 7).astype(np.int32),
                "id": (1000 * (split + 1) + rng.permutation(count)).astype(np.int32),
            }
        )
    for source, target in copies:
        for column in ("x", "y", "fine"):
            splits[0][column][target] = splits[0][column][source]
    names = {"y": ("low", "mid", "high"), "fine": tuple("abcdef")}
    return Source("small", *splits, label_names=names)


SOURCE = small()
TASKS = {
    "class:1": lambda: class_task(SOURCE, 1),
    "class:0,2": lambda: class_task(SOURCE, (2, 0)),
    "subclass:3": lambda: subclass_task(SOURCE, 3),
    "subclass:0,5": lambda: subclass_task(SOURCE, ["f", "a"]),
    "group:user=4": lambda: group_task(SOURCE, "user", 4),
    "random:0.2:seed=1": lambda: random_task(SOURCE, 0.2, seed=1),
    "ids:1003,1007": lambda: index_task(SOURCE, [1007, 1003]),
}
