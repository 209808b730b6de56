"""What a learner of rows checks before it learns or forgets them; values outside a trace only."""

import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import is_traced
from jaxunlearn.typing import Array


def check_rows(where: str, x: Array, y: Array, weight: Array, d: int, classes: int) -> None:
    """Raises unless x (n, d), y (n,) or (n, C) and weight (n,) can be learnt from."""
    n = x.shape[0] if x.ndim else 0
    if x.shape != (n, d) or y.shape not in ((n,), (n, classes)) or weight.shape != (n,):
        raise ValueError(
            f"{where}: expected x (n, {d}), y (n,) or (n, {classes}) and weight (n,), "
            f"got {x.shape}, {y.shape} and {weight.shape}."
        )
    if y.ndim == 1 and not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{where}: labels (n,) must be integers, got {y.dtype}. "
            f"Real targets are (n, {classes})."
        )
    if is_traced((x, y, weight)):
        return
    for name, column in (("x", x), ("y", y), ("weight", weight)):
        bad = ~np.isfinite(np.asarray(column, np.float64)).reshape(n, -1).all(axis=1)
        if bad.any():
            raise ValueError(f"{where}: {name} holds NaN or Inf, first in row {bad.argmax()}.")
    labels, counting = np.asarray(y), np.asarray(weight) > 0
    if (np.asarray(weight) < 0).any():
        raise ValueError(f"{where}: weights must be >= 0, got {np.asarray(weight).min():g}.")
    if y.ndim == 1 and n:
        outside = ((labels < 0) | (labels >= classes)) & counting
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"{where}: labels must lie in [0, {classes}), row {row} has {labels[row]}. New "
                "classes: grow the state first."
            )
