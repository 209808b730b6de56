"""Running statistics as a step of their own.

Nothing else in the library changes the statistics of a normalisation layer after training: methods
never see them. If they too must forget, `refresh_batch_stats` re-estimates them on the data it is
given.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import as_data
from jaxunlearn.model import Model, join_statistics, split_statistics
from jaxunlearn.typing import Batch, Data, Params

_FAR = 2.0**16  # a start far from any statistic, so that the momentum is read off to full precision


def refresh_batch_stats(model: Model, params: Params, data: Data) -> Params:
    """Params with running statistics re-estimated on `data`: their average over its batches.

        s = sum_b n_b s_b / sum_b n_b,    s_b the statistic of batch b in training mode

    Run it on retained data after unlearning if the statistics themselves must forget. The batch
    statistic is recovered from the module's own moving average, whatever its momentum m < 1: an
    update is s' = m s + (1 - m) s_b, so two steps, from s = 0 and from a large s, give m and s_b.

    Args:
      model: with `statistics=True` and `train`; any other model's params come back unchanged.
      params: `{"params": ..., "batch_stats": ...}`.
      data: concrete (not traced) Data; rows of weight 0 are left out, other weights count 1.

    Returns:
      Params of the same tree; the weights are the very same arrays.

    Raises:
      TypeError: inside `jit` or `vmap`, where the rows that count cannot be told apart.

    | edge case                         | result                                              |
    |-----------------------------------|-----------------------------------------------------|
    | no rows that count                | params unchanged                                    |
    | momentum 1: statistics never move | that statistic unchanged                            |
    | dropout before a normalisation    | its masks come from one fixed key                   |

    Cost: two forward passes over `data`, and a compilation for each length of batch. Rounding:
    about 1e-7 / (1 - m) relative, in float32.
    """
    if not model.statistics or model.train is None:
        return params
    data = as_data(data)
    if is_traced((params, data)):
        raise TypeError(
            "refresh_batch_stats: expected concrete params and data; call it outside jit and vmap."
        )
    total, rows = None, 0
    for batch in data:
        real = batch["weight"] > 0
        count = int(real.sum())
        if count:
            kept = {name: column[real] for name, column in batch.items()}
            found = jax.tree.map(lambda s, n=count: s * n, _batch_statistics(model, params, kept))
            total = found if total is None else jax.tree.map(jnp.add, total, found)
            rows += count
    if total is None:
        return params
    weights, _ = split_statistics(model, params)
    return join_statistics(model, weights, jax.tree.map(lambda s: s / rows, total))


@jax.jit
def _batch_statistics(model: Model, params: Params, batch: Batch) -> Params:
    """s_b of every running statistic; the present one where it never moves."""
    weights, statistics = split_statistics(model, params)
    assert model.train is not None
    train = model.train

    def after(start: float) -> Params:
        filled = jax.tree.map(lambda leaf: jnp.full_like(leaf, start), statistics)
        joined = join_statistics(model, weights, filled)
        return split_statistics(model, train(joined, batch, jax.random.key(0))[1])[1]

    def solve(present: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
        share = 1 - (far - near) / _FAR
        return jnp.where(share > 0, near / jnp.where(share > 0, share, 1), present)

    return jax.tree.map(solve, statistics, after(0.0), after(_FAR))
