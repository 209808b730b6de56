"""Kernel machines of any convex loss that forget rows: support vectors are led out along a path.

    f(x) = sum_i alpha_i k(x, x_i)   minimises   (rho/2) |f|^2 + sum_i l(y_i, f(x_i)),  no intercept

| what is deleted                | what happens                                                    |
|--------------------------------|-----------------------------------------------------------------|
| rows with alpha_i = 0          | nothing: they never mattered; predictions bit-equal             |
| support vectors, hinge         | the decremental path, exact (`decremental`)                     |
| support vectors, other losses  | dual ascent from the weights at hand, to tolerance              |

Either way the state holds the duality gap of the problem WITHOUT those rows (`dual_ascent`): a
certificate that does not ask how the weights were found. With the tangent kernel of a network and
rho = n lambda these are the machines that wide networks trained by subgradient descent follow:
Chen, Huang, Nguyen and Weng (2021), "On the Equivalence between Neural Network and Support Vector
Machine", arXiv:2111.06063. Deletion is Cauwenberghs and Poggio's (2000), not in that paper. As in
`kernel`, rho is kept when rows go; `kernels.dynamics` has the descent itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import is_traced
from jaxunlearn.kernels import system as kernel_system
from jaxunlearn.kernels.decremental import decrement
from jaxunlearn.kernels.dual_ascent import ascend, relative_gap
from jaxunlearn.kernels.functions import Kernel
from jaxunlearn.kernels.losses import KernelLoss, hinge
from jaxunlearn.kernels.slots import (
    IllConditionedError,
    Slot,
    check_examples,
    check_free,
    check_learnt,
    lengthened,
    padded,
)
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array


class MachineState(NamedTuple):
    """A trained machine of n slots; a pytree of fixed shapes."""

    x: Any  # tree of (n, ...), zeros in slots that hold nothing
    y: Array  # (n,) float, zeros in slots that hold nothing
    gram: Array  # (n, n) float, K; zeros in slots that hold nothing
    alpha: Array  # (n,) float; rows with another number than 0 are support vectors
    slots: Array  # (n,) int32, a `Slot` each
    status: Array  # [] int32, a `Solved`: CONVERGED, EXHAUSTED or NONFINITE
    gap: Array  # [] float >= 0, duality gap over P(0) of the problem of the rows that are learnt
    events: Array  # [] int32, margin changes along the last path (hinge)
    epochs: Array  # [] int32, passes of the last dual ascent; 0 if none was needed


class KernelMachine(NamedTuple):
    """What `kernel_machine` returns; all functions are pure and traceable."""

    init: Callable[..., MachineState]  # (x, y, capacity=None) -> state
    learn: Callable[..., MachineState]  # (state, rows, x, y) -> state
    forget: Callable[..., MachineState]  # (state, rows) -> state
    predict: Callable[..., Array]  # (state, x) -> (m,)
    refit: Callable[..., MachineState]  # (state) -> state solved again from zeros


# ------------------------------------------------------------------------ compiled for all machines


@partial(jax.jit, static_argnums=(0, 1))
def _placed(kernel: Kernel, n: int, x: Any, y: Array) -> MachineState:
    s, zero = kernel_system.placed(kernel, n, x, y), jnp.int32(0)
    return MachineState(s.x, s.y, s.gram, s.alpha, s.slots, zero, s.error, zero, zero)


@partial(jax.jit, static_argnums=0)
def _led_out(
    loss: KernelLoss, state: MachineState, rows: Array, rho: Array
) -> tuple[MachineState, Array]:
    """(state without the rows, whether no support vector was among them)."""
    kept = state.slots == Slot.LEARNT
    new = kernel_system.without(state, rows)[0]
    gone = kept & (new.slots != Slot.LEARNT)
    events = jnp.int32(0)
    if loss.name == "hinge":
        path = decrement(state.gram, state.y, state.alpha, kept, gone, rho)
        new, events = new._replace(alpha=path.alpha), path.events
    return new._replace(events=events), ~jnp.any(gone & (state.alpha != 0))


@partial(jax.jit, static_argnums=(0, 1))
def _settled(
    loss: KernelLoss, epochs: int, state: MachineState, idle: Array, rho: Array, tolerance: Array
) -> MachineState:
    """The certificate; dual ascent from the weights at hand, unless idle or solved already."""
    kept = state.slots == Slot.LEARNT
    problem = {"loss": loss, "rho": rho}

    def same(s: MachineState) -> MachineState:
        gap = relative_gap(s.gram, s.y, s.alpha, kept, **problem)
        return s._replace(gap=gap, epochs=jnp.int32(0))

    def solved(s: MachineState) -> MachineState:
        limits = {"tolerance": tolerance, "epochs": epochs}
        dual = ascend(s.gram, s.y, kept, s.alpha, **problem, **limits)
        return s._replace(alpha=dual.alpha, status=dual.status, gap=dual.gap, epochs=dual.epochs)

    return jax.lax.cond(idle, same, solved, state)


_place = jax.jit(kernel_system.place, static_argnums=0)
_predict = jax.jit(kernel_system.predict, static_argnums=0)


# ------------------------------------------------------------------------------------- the builder


def kernel_machine(
    *,
    kernel: Kernel,
    rho: float,
    loss: KernelLoss | None = None,
    tolerance: float | None = None,
    epochs: int = 2000,
) -> KernelMachine:
    """min over f of (rho/2) |f|^2 + sum_i l(y_i, f(x_i)), and the same without the rows F.

    Args:
      kernel: (left, right) -> (n, m); see `methods.exact.kernels`.
      rho: > 0; 1 / rho is the C of support vector machines.
      loss: from `kernels.losses`; None: the hinge.
      tolerance: relative duality gap that counts as solved, > 0; None: 100 machine epsilons.
      epochs: passes of dual ascent at most, >= 1.

    Returns:
      `init(x, y, capacity=None)`, `learn(state, rows, x, y)`, `forget(state, rows)`,
      `predict(state, x)`, as for `kernel_ridge`; `refit(state)` solves anew, from zeros. For
      several classes, `vmap` over y (n,) of -1 and 1.

    Raises:
      ValueError: a constant out of its range; labels other than -1 and 1 for a loss of labels; rows
        as for `kernel_ridge`.
      TypeError: rows that are not integers.
      IllConditionedError: the gap is above the tolerance after all epochs.

    Guarantee: predictions at x differ from those of a refit by at most 2 sqrt(2 g k(x, x) / rho)
    for relative gaps up to g / P(0) of either; for the hinge to 1e-8 of the weights in float64. The
    kernel is outside, as for `kernel_ridge`.

    | situation                          | result                                                  |
    |------------------------------------|---------------------------------------------------------|
    | none of F a support vector         | alpha and predictions bit-equal                         |
    | no rows, or forgotten already      | alpha and predictions bit-equal                         |
    | all rows                           | predicts 0                                              |
    | a path among dependent rows        | dual ascent takes over from where it stopped            |
    | inside `jit` or `vmap`             | no checks: bad rows are skipped, failure is in `status` |

    Cost: init 1 to `epochs` passes of n^2 and, for the hinge, 2 n^3; forget n^3 and 6 n^2 an event
    (hinge), a few passes (other losses), or the check, n^2, when no support vector goes.

    Example:
      >>> from jaxunlearn.kernels.functions import linear
      >>> machine = kernel_machine(kernel=linear, rho=0.5)
      >>> state = machine.init(jnp.array([[1.0], [-2.0]]), jnp.array([1.0, -1.0]))
      >>> print(machine.predict(state, jnp.ones((1, 1))), state.alpha != 0)
      [1.] [ True False]
    """
    of = hinge() if loss is None else loss
    if not rho > 0 or not (tolerance is None or tolerance > 0) or epochs < 1:
        raise ValueError(
            "kernel_machine: expected rho > 0, tolerance > 0 and epochs >= 1, got "
            f"{rho=}, {tolerance=}, {epochs=}."
        )

    def enough(dtype: Any) -> float:
        return 100 * float(jnp.finfo(dtype).eps) if tolerance is None else tolerance

    def settled(state: MachineState, idle: Array | bool = False) -> MachineState:
        return _settled(of, epochs, state, jnp.asarray(idle), rho, enough(state.gram.dtype))

    def checked(name: str, state: MachineState) -> MachineState:
        if not is_traced(state) and int(state.status) != Solved.CONVERGED:
            raise IllConditionedError(
                f"kernel_machine.{name}: {Solved(int(state.status)).name} with relative gap "
                f"{float(state.gap):.1e} after {int(state.epochs)} epochs, tolerance "
                f"{enough(state.gram.dtype):.1e}. Raise rho={rho:g}, epochs={epochs} or the "
                "tolerance, or use float64."
            )
        return state

    def check_labels(name: str, y: Any) -> None:
        if of.labels and not is_traced(y) and not np.isin(np.asarray(y), (-1, 1)).all():
            wrong = np.asarray(y)[~np.isin(np.asarray(y), (-1, 1))].ravel()[0]
            raise ValueError(f"{name}: the loss {of.name} wants labels -1 and 1, got {wrong}.")

    def init(x: Any, y: Array, capacity: int | None = None) -> MachineState:
        check_examples("kernel_machine.init", x, y)
        check_labels("kernel_machine.init", y)
        n = kernel_system.room("kernel_machine.init", x, capacity)
        return checked("init", settled(_placed(kernel, n, x, y)))

    def refit(state: MachineState) -> MachineState:
        start = state._replace(alpha=jnp.zeros_like(state.alpha), events=jnp.int32(0))
        return checked("refit", settled(start))

    def learn(state: MachineState, rows: Any, x: Any, y: Array) -> MachineState:
        name = "kernel_machine.learn"
        check_examples(name, x, y, len(rows))
        check_labels(name, y)
        if not len(rows):
            return state
        rows = padded(rows, name, state.slots)
        check_free(name, rows, state.slots)
        x, y = lengthened((x, y), len(rows))
        new = _place(kernel, state, rows, x, y)[0]
        return checked("learn", settled(new._replace(events=jnp.int32(0))))

    def forget(state: MachineState, rows: Any) -> MachineState:
        rows = padded(rows, "kernel_machine.forget", state.slots)
        check_learnt("kernel_machine.forget", rows, state.slots)
        return checked("forget", settled(*_led_out(of, state, rows, rho)))

    return KernelMachine(init, learn, forget, partial(_predict, kernel), refit)
