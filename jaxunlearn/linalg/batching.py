"""Factorisations under `vmap` on several CPU devices.

A batched LAPACK call shares its matrices out over the thread pool of the process and waits for
them. When programs of several CPU devices do so at once, each waits with a thread that another
needs, and beyond some size none returns: two devices on two cores hang in a batched Cholesky factor
of 400 x 400. One matrix after another asks for no second thread.
"""

from collections.abc import Callable
from typing import Any

import jax


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of which `vmap` makes a loop on a CPU; elsewhere `function` itself.

    Example:
      >>> stack = jax.numpy.eye(2)[None] * jax.numpy.array([1.0, 4.0])[:, None, None]
      >>> print(jax.vmap(one_by_one(jax.numpy.linalg.cholesky))(stack)[:, 0, 0])
      [1. 2.]
    """
    if jax.default_backend() != "cpu":
        return function
    return jax.custom_batching.sequential_vmap(function)
