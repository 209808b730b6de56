"""Does a per-example loss mix the examples of a batch? Read off its jaxpr, before anything runs.

A loss (params, batch of n) -> (n,) has per-example gradients only if row i of the result depends
on row i of the batch alone. Batch normalisation in training mode, a softmax or a mean over the
batch break that, without any sign in the shapes. The function is traced for n = a large prime, so
that the example axis is recognised wherever it goes: every equation that takes an array with that
axis must give arrays with that axis, once. One that sums over it, sorts, shifts or squares it
couples rows.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from jaxunlearn.typing import Batch, Params

_ALONG = {  # primitives that keep the shape and may mix what lies along an axis
    "cumsum": "axis",
    "cumprod": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumlogsumexp": "axis",
    "sort": "dimension",
    "rev": "dimensions",
}


class CoupledError(ValueError):
    """The loss of one example depends on the other examples of its batch."""


def check_independent(function: Callable, params: Params, batch: Batch) -> None:
    """Raises if row i of `function(params, batch)` can depend on other rows than row i.

    Args:
      function: (params, batch) -> (n, ...).
      params: tree of arrays.
      batch: any number of rows; only shapes and dtypes are read.

    Raises:
      CoupledError: naming the equation and the shapes.
      ValueError: the result has no example axis.

    A function that cannot be traced for another number of rows is let through: nothing is known.

    Cost: one trace, no computation.

    Example:
      >>> import jax.numpy as jnp
      >>> check_independent(lambda p, b: p * (b["x"] - b["x"].mean()), 1.0, {"x": jnp.ones(3)})
      Traceback (most recent call last):
      ...
      jaxunlearn.curvature.coupling.CoupledError: the loss of one example depends on the others...
    """
    sizes = {d for leaf in jax.tree.leaves((params, batch)) for d in jax.numpy.shape(leaf)}
    rows = next(p for p in (7919, 7927, 7933, 7937) if not any(d % p == 0 and d for d in sizes))
    like = {k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype) for k, v in batch.items()}
    try:
        closed = jax.make_jaxpr(function)(params, like)
    except Exception:  # whatever ties the function to its batch size; it will speak up for itself
        return
    shape = closed.jaxpr.outvars[0].aval.shape
    if not shape or shape[0] != rows:
        raise ValueError(
            "expected a per-example loss (params, batch of n) -> (n, ...), got shape "
            f"{shape} for a batch of n = {rows}. Return one number per example, not their mean."
        )
    _check(closed.jaxpr, rows)


def _check(jaxpr: Any, rows: int) -> None:
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not needed.intersection(eqn.outvars):
            continue
        needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        name = eqn.primitive.name
        if name == "scan":
            _check_scan(eqn, rows)
        elif inner is not None and hasattr(getattr(inner, "jaxpr", inner), "eqns"):
            _check(getattr(inner, "jaxpr", inner), rows)
        elif name not in ("while", "cond"):
            _check_equation(eqn, rows, _count(eqn.invars, rows), _count(eqn.outvars, rows))


def _check_scan(eqn: Any, rows: int) -> None:
    """A loop over the examples may not carry anything from one to the next."""
    jaxpr = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    inside = [v.aval.shape for v in jaxpr.invars]
    sliced = [v for v, s in zip(eqn.invars, inside, strict=True) if v.aval.shape != s]
    if eqn.params["length"] != rows or not any(v.aval.shape[0] == rows for v in sliced):
        _check(jaxpr, rows)
    elif any(v.aval.shape == o.aval.shape for v, o in zip(eqn.outvars, jaxpr.outvars, strict=True)):
        raise _error(eqn, "a value is carried from one example to the next")


def _check_equation(eqn: Any, rows: int, before: int, after: int) -> None:
    if before == 0 or not eqn.outvars:
        return
    name = eqn.primitive.name
    if name in _ALONG:
        axes = eqn.params[_ALONG[name]]
        shape = eqn.invars[0].aval.shape
        if any(shape[a] % rows == 0 for a in (axes if isinstance(axes, tuple) else (axes,))):
            raise _error(eqn, f"{name} runs along the example axis")
    if after == 0:
        raise _error(eqn, "the example axis is summed over or cut")
    if after > 1:
        raise _error(eqn, "every example meets every other")


def _count(atoms: Any, rows: int) -> int:
    """The largest number of example axes in one of these arrays."""
    return max((sum(d % rows == 0 and d > 0 for d in a.aval.shape) for a in atoms), default=0)


def _error(eqn: Any, what: str) -> CoupledError:
    def shapes(atoms: Any) -> str:
        return ", ".join(str(a.aval.shape) for a in atoms)

    return CoupledError(
        f"the loss of one example depends on the others of its batch: {what} in "
        f"{eqn.primitive.name}: {shapes(eqn.invars)} -> {shapes(eqn.outvars)}. Per-example "
        "gradients do not exist then. Is batch normalisation in training mode, or is there a mean "
        "over the batch? Use evaluation mode and return one loss per example."
    )
