"""Models whose answer is known: what audits that can be trusted must say of them.

| control                  | how it is made                                     | must be     |
|--------------------------|----------------------------------------------------|-------------|
| original                 | nothing was done                                   | flagged     |
| last layer masked        | the originals, the bias of the last layer lowered  | flagged     |
|                          | by 1000 at the forgotten classes                   |             |
| half-contaminated oracle | retrained on what is retained and half of what was | flagged     |
|                          | to be forgotten                                    |             |
| oracle again             | retrained like the oracles, from other keys        | not flagged |

The first three are planted positives: a suite that lets one pass has no power against it. The mask
changes what the model says and nothing that it knows, so outputs may look forgotten and the audits
of features and of relearning have to object. The last is the planted negative: what is flagged
there is a false alarm, or the oracles of the run are not what they are said to be.

Masking needs whole classes to forget; for other requests it is left out.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.audit.leaves import names_on
from jaxunlearn.cache import Cache
from jaxunlearn.compare import train_group, train_rows
from jaxunlearn.data.tasks import Task
from jaxunlearn.model import Model
from jaxunlearn.presets import Recipe
from jaxunlearn.typing import Params

MASK = -1000.0  # added to a logit: beyond any that a network gives
FLAGGED, NOT_FLAGGED = "flagged", "not flagged"


class Control(NamedTuple):
    """A planted group of models."""

    label: str
    words: str  # what it is, for people
    expected: str  # FLAGGED or NOT_FLAGGED
    params: Params  # stacked: leading axis of models


def forgotten_classes(task: Task) -> np.ndarray:
    """Labels that occur in the forget part of training and nowhere in what is retained.

    Returns:
      (k,) sorted; empty where no class is forgotten whole.

    Example:
      >>> from jaxunlearn.data import class_task, digits, random_task
      >>> forgotten_classes(class_task(digits(), 3)).tolist()
      [3]
      >>> forgotten_classes(random_task(digits(), 0.05, seed=0)).tolist()
      []
    """
    forget, retain = (task.columns("train", part)["y"] for part in ("forget", "retain"))
    return np.setdiff1d(forget, retain)


def mask_classes(params: Params, classes: np.ndarray) -> Params:
    """params with the bias of the last layer lowered by 1000 at these classes.

    Args:
      params: of a network of `jaxunlearn.networks`, or any whose last layer is called `head` and
        has a `bias`; leading axes (of models) are allowed.
      classes: (k,) class numbers.

    Raises:
      ValueError: there is no such bias.
    """
    found = []

    def lowered(path: tuple, leaf: Any) -> Any:
        names = names_on(path)
        if "head" not in names or "bias" not in names:
            return leaf
        found.append(names)
        return jnp.asarray(leaf).at[..., jnp.asarray(classes)].add(jnp.asarray(MASK, leaf.dtype))

    masked = jax.tree_util.tree_map_with_path(lowered, params)
    if len(found) != 1:
        raise ValueError(
            "mask_classes: expected exactly one leaf 'bias' of a layer 'head', found "
            f"{len(found)}. Mask the last layer of another network by hand."
        )
    return masked


def planted(
    network: Model,
    task: Task,
    recipe: Recipe,
    originals: Params,
    *,
    seeds: int,
    seed: int,
    cache: Cache | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Control]:
    """The planted groups of the table, one at a time (the original is at hand already).

    Args:
      network, task, recipe: of the comparison.
      originals: stacked params.
      seeds: models in each group.
      seed: of the comparison; the keys of the groups are derived from it and from their names.
      cache: where trained ensembles are kept.
      progress: called with a text before each training.

    Cost: 2 x seeds trainings.
    """
    classes = forgotten_classes(task)
    if classes.size:
        yield Control(
            "last layer masked",
            "the originals with the logit of what is to be forgotten pushed out of reach: nothing "
            "that they know has changed",
            FLAGGED,
            mask_classes(originals, classes),
        )
    forget, retain = task.train_parts["forget"], task.train_parts["retain"]
    if forget.size >= 2:
        progress(f"training {seeds} oracles contaminated with half of the forget rows")
        kept = np.random.default_rng([seed, 15]).permutation(forget)[: forget.size // 2]
        rows = np.sort(np.concatenate([retain, kept]))
        label = "half-contaminated oracle"
        params, _ = train_rows(network, task, rows, recipe, label, seeds, seed, cache)
        yield Control(
            label,
            f"trained on what is retained and on {kept.size} of the {forget.size} forget rows",
            FLAGGED,
            params,
        )
    progress(f"training {seeds} oracles again, from other keys")
    params, _ = train_group(network, task, "retain", recipe, "oracle again", seeds, seed, cache)
    yield Control(
        "oracle again",
        "true retrainings that are independent of the oracles",
        NOT_FLAGGED,
        params,
    )
