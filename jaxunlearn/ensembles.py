"""Many seeds in one program: a function of one model becomes one of a leading axis of models."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.typing import Array


def ensemble(
    function: Callable,
    *,
    how: str = "auto",
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable:
    """out[i] = function(*(a[i] for a in args)): many models as one program.

    Args:
      function: arrays (a key, params, ...) -> any pytree of arrays.
      how: one of the table.
      chunk: at most so many models at once on a device (bounds memory); None for all, or for one
        after another with "map".
      devices: for "shard"; default all of `jax.devices()`.

    | how     | the models run                                                             |
    |---------|----------------------------------------------------------------------------|
    | "vmap"  | all at once on one device                                                  |
    | "map"   | one after another in one program (`lax.map`), `chunk` at once if given     |
    | "shard" | an equal share on each device, vmapped within it                           |
    | "auto"  | "shard" if there are several devices, else "vmap"                          |

    Returns:
      A function of the same arguments with a leading axis each (all of one length N), traceable;
      wrap it in `jax.jit`. N need not be a multiple of the number of devices, nor of `chunk`.

    Raises:
      ValueError: an unknown `how`, chunk < 1, arguments without a common leading axis, or N = 0.

    The result does not depend on `how` beyond rounding: each model sees its own key only.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> jax.jit(ensemble(lambda key: jax.random.normal(key, (2,))))(keys).shape
      (3, 2)
    """
    if how not in ("auto", "vmap", "map", "shard"):
        raise ValueError(f"ensemble: how must be 'auto', 'vmap', 'map' or 'shard', got {how!r}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"ensemble: chunk must be >= 1 or None, got {chunk}.")

    def one(args: tuple) -> Any:
        return function(*args)

    def local(*args: Any) -> Any:
        if chunk is None or chunk >= _length(args):
            return jax.vmap(function)(*args)
        return jax.lax.map(one, args, batch_size=chunk)

    def many(*args: Any) -> Any:
        size = _length(args)
        places = np.array(jax.devices() if devices is None else devices)
        if how == "map":
            return jax.lax.map(one, args, batch_size=chunk)
        if how == "vmap" or (how == "auto" and places.size == 1):
            return local(*args)
        return _sharded(local, places[:size], size)(*args)

    return many


def _length(args: tuple) -> int:
    shapes = sorted({jnp.shape(leaf) for leaf in jax.tree.leaves(args)})
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            "ensemble: every argument needs the same leading axis of length >= 1, "
            f"got the shapes {shapes}."
        )
    return shapes[0][0]


def _sharded(function: Callable, devices: np.ndarray, size: int) -> Callable:
    """`function` on an equal share of the leading axis per device; the last share is filled up."""
    mesh = jax.sharding.Mesh(devices, ("models",))
    spec = jax.sharding.PartitionSpec("models")
    padding = -size % devices.size

    def extend(leaf: Array) -> Array:
        return jnp.concatenate([leaf, leaf[:padding]]) if padding else leaf

    spread = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return lambda *args: jax.tree.map(lambda leaf: leaf[:size], spread(*jax.tree.map(extend, args)))
