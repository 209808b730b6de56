"""The nouns that every signature uses.

| noun     | what it is                                                                       |
|----------|----------------------------------------------------------------------------------|
| `Params` | any pytree of arrays: a Linen dict, an `nnx.State`, a plain dict                   |
| `Batch`  | a mapping of arrays that share a leading axis n; `"weight"` (n,) >= 0 is optional   |
| `Data`   | what yields Batches every time it is iterated, and knows how many examples it has |
| `Key`    | a typed key, `jax.random.key(seed)`; always passed in, never defaulted             |
| `Score`  | `(model, params) -> ()`, higher is better; what `keep_best` ranks by                |

A row whose weight is 0 is padding: it contributes exactly 0 to every loss, gradient, importance and
metric. A row of weight 2 counts as the same row twice.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer

Array: TypeAlias = jax.Array
Params: TypeAlias = Any
Batch: TypeAlias = Mapping[str, Any]
Key: TypeAlias = jax.Array
Score: TypeAlias = Callable[[Any, Params], Array]


@runtime_checkable
class Data(Protocol):
    """A re-iterable stream of `Batch`es.

    `num_examples` counts the rows of one pass and `num_batches` its batches. Iterating twice yields
    the same batches twice; a one-shot generator is therefore not Data, and
    `jaxunlearn.data.as_data` refuses it by name.
    """

    @property
    def num_examples(self) -> int: ...

    @property
    def num_batches(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def check_key(where: str, key: Any) -> None:
    """Raises `TypeError` unless `key` is one typed key."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        came = type(key).__name__ if dtype is None else f"{dtype} of shape {key.shape}"
        raise TypeError(
            f"{where}: expected one typed key, jax.random.key(seed), got {came}. "
            "For several keys see jaxunlearn.ensemble."
        )


def check_between(
    where: str,
    what: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raises `ValueError` unless `value` is a finite number within the bounds that are given.

    A traced value passes: its number is not known yet. So builders that check with this can be
    swept, `jax.vmap` over their arguments.

    Example:
      >>> check_between("ssd", "alpha", 1.5, above=0)
    """
    if isinstance(value, Tracer):
        return
    number = float(value)
    bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
    kept = {
        ">=": at_least is None or number >= at_least,
        ">": above is None or number > above,
        "<=": at_most is None or number <= at_most,
        "<": below is None or number < below,
    }
    if not all(kept.values()) or not math.isfinite(number):
        asked = " and ".join(f"{sign} {b:g}" for sign, b in bounds.items() if b is not None)
        raise ValueError(
            f"{where}: {what} must be a finite number{asked and ' '}{asked}, got {value}."
        )
