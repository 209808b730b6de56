"""Equal conditions: rows by a fixed random choice, models in blocks of one size.

    out = f(theta_1 .. theta_16), f(theta_17 .. theta_32), ...      the last block is filled up

Every ensemble goes through the programs of one size, so that nothing is compiled anew for another
number of models, and what is measured of a model does not depend on the others beside it.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.typing import Batch

AT_ONCE = 16  # models in a block


class Rows(NamedTuple):
    """Some rows with their labels."""

    x: np.ndarray  # (n, ...)
    y: np.ndarray  # (n,)

    @property
    def batch(self) -> Batch:
        return {"x": self.x, "y": self.y}

    @property
    def size(self) -> int:
        return len(self.y)


def some_rows(columns: Mapping[str, np.ndarray], most: int, *, name: str, seed: int) -> Rows:
    """At most `most` of these rows, a fixed random choice in stored order.

    Args:
      columns: has `"x"` and `"y"`.
      most: >= 0.
      name: of the rows; together with `seed` it decides the choice.

    Example:
      >>> columns = {"x": np.eye(3), "y": np.arange(3)}
      >>> some_rows(columns, 2, name="forget", seed=0).size
      2
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    keep = np.sort(rng.permutation(len(columns["y"]))[:most])
    return Rows(columns["x"][keep], columns["y"][keep])


def in_blocks(function: Callable, *stacked: Any) -> Any:
    """`function` over the leading axis of models, in blocks of equal size; on the host.

    Args:
      function: of a block of 16 models; what it says of one must not depend on the others.
      stacked: trees of arrays with one leading axis M >= 1.

    Returns:
      What `function` returns, with a leading axis M of NumPy arrays.

    Example:
      >>> in_blocks(lambda x: 2 * x, np.arange(3.0))
      array([0., 2., 4.])
    """
    stacked = jax.device_get(stacked)
    count = len(jax.tree.leaves(stacked)[0])
    found = []
    for start in range(0, count, AT_ONCE):
        models = np.minimum(start + np.arange(AT_ONCE), count - 1)
        block = jax.tree.map(lambda leaf, models=models: leaf[models], stacked)
        found.append(jax.device_get(function(*block)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *found)
