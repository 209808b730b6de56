"""How long a compiled program runs: compilation apart, the first call apart, medians of the rest.

The first call of a program pays for memory, threads and transfers that no later call pays for: ten
milliseconds, which is a tenth of a small retraining and most of what costs a hundredth of it.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_MOST, _PATIENCE = 5, 1.0  # repeated calls; seconds after which none is begun


def seconds_of(compiled: Callable, *args: Any) -> tuple[Any, float]:
    """(result, seconds): of the first call if that is long, else the median of a few further ones.

    Args:
      compiled: a program that changes nothing outside itself.
      args: its arguments.

    Returns:
      The result of the first call, and seconds until everything in it is there.

    Example:
      >>> out, seconds = seconds_of(jax.jit(lambda x: x + 1), np.ones(2))
      >>> print(out, 0 < seconds < 60)
      [2. 2.] True
    """
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(*args))
    first = time.perf_counter() - start
    spent, further = first, []
    while spent < _PATIENCE and len(further) < _MOST:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        further.append(time.perf_counter() - begin)
        spent += further[-1]
    return out, float(np.median(further)) if further else first
