"""Kernel ridge regression that forgets any rows exactly, by the block inverse.

    f(x) = sum_i alpha_i k(x, x_i),     M = K + rho I,     G = M^-1,     alpha = G y

    leave F out       alpha_S' = alpha_S - G_SF (G_FF)^-1 alpha_F          equal to a refit on S
    leave i out       f_-i(x_i) = y_i - alpha_i / G_ii                     equal to n refits

f minimises (rho/2) |f|^2 + 1/2 sum_i (y_i - f(x_i))^2: a SUM over rows, and rho stays what it is
when rows go. With a mean over rows the ridge is n lambda, every entry of M^-1 changes with n, and
deletion means another G: `per_row=True` refits (n^3), and `kernels.spectrum` answers single
requests from one eigendecomposition (n^2). The two conventions are different "exact" answers.

With k the tangent kernel of a network this is the wide limit of the network trained on the squared
loss with an l2 penalty to its start: Chen, Huang, Nguyen and Weng (2021), "On the Equivalence
between Neural Network and Support Vector Machine", arXiv:2111.06063. Deletion by the block inverse
is classical (see `linalg.principal`) and not in that paper.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxunlearn.data.streams import is_traced
from jaxunlearn.kernels import system as kernel_system
from jaxunlearn.kernels.functions import Kernel
from jaxunlearn.kernels.slots import (
    IllConditionedError,
    check_examples,
    check_free,
    check_learnt,
    lengthened,
    padded,
)
from jaxunlearn.kernels.system import KernelState
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array


class KernelRidge(NamedTuple):
    """What `kernel_ridge` returns; all functions are pure and traceable."""

    init: Callable[..., KernelState]  # (x, y, capacity=None) -> state
    learn: Callable[..., KernelState]  # (state, rows, x, y) -> state
    forget: Callable[..., KernelState]  # (state, rows) -> state
    predict: Callable[..., Array]  # (state, x) -> (m,), (m, k) or (m, C)
    leave_out: Callable[..., Array]  # (state, rows) -> alpha without those rows, like y
    leave_one_out: Callable[..., Array]  # (state) -> f_-i(x_i), like y
    refit: Callable[..., KernelState]  # (state) -> state with a new factorisation


# Compiled once for all machines of a kernel: rho and tolerance are arguments like any other.
_factorise = jax.jit(kernel_system.factorise, static_argnames="per_row")
_forget, _without = jax.jit(kernel_system.forget), jax.jit(kernel_system.without)
_leave_out, _leave_one_out = map(jax.jit, (kernel_system.leave_out, kernel_system.leave_one_out))
_placed = jax.jit(kernel_system.placed, static_argnums=(0, 1))
_place = jax.jit(kernel_system.place, static_argnums=0)
_learn = jax.jit(kernel_system.learn, static_argnums=0)
_predict = jax.jit(kernel_system.predict, static_argnums=0)


def kernel_ridge(
    *, kernel: Kernel, rho: float, per_row: bool = False, tolerance: float = 1e-2
) -> KernelRidge:
    """alpha = (K + rho I)^-1 y, and alpha_S - G_SF (G_FF)^-1 alpha_F without the rows F.

    Args:
      kernel: (left, right) -> (n, m), or (n, C, m, C) for C outputs with a kernel among them; see
        `methods.exact.kernels`. Its dtype is that of everything here.
      rho: the ridge, > 0; float32 wants at least 1e-4 of the largest eigenvalue of K.
      per_row: False, rho is kept when rows come and go; True, the ridge is rho times the number of
        rows (a mean of losses), and every `learn` and `forget` is a refit.
      tolerance: largest relative error of alpha that is accepted, > 0; the bound is
        eps |M|_1 |G|_1, a condition number in units of rounding.

    Returns:
      `init(x, y, capacity=None)`: n = capacity slots, rows 0, 1, ... of them learnt.
      `learn(state, rows, x, y)`: puts examples into free slots, again if they were forgotten.
      `forget(state, rows)`: nothing of the rows is left in the state: x, y, K, G and alpha are 0.
      `predict(state, x)`; `leave_out(state, rows)`, alpha alone, for "what if" (`vmap` it over
      requests); `leave_one_out(state)`, predictions; `refit(state)`, a new factorisation.

    Raises:
      ValueError: rho or tolerance not positive; rows outside [0, capacity), never learnt (forget),
        already learnt or twice (learn); shapes that do not fit; NaN or Inf in x or y.
      TypeError: rows that are not integers.
      IllConditionedError: the error exceeds the tolerance, or K + rho I is not positive definite.

    Guarantee: exact(1e-6) in float64 and exact(1e-3) in float32, of the weights against a refit on
    what is left, as far as `state.error` allows; it is about the head of a fixed kernel. A kernel
    that was itself learnt from the data (a trained network, a length chosen by validation, scalings
    of x) still knows the rows. The bits of G do depend on them by rounding.

    | situation                          | result                                                  |
    |------------------------------------|---------------------------------------------------------|
    | no rows to forget                  | the same machine, to rounding                           |
    | rows forgotten already             | the same machine, to rounding                           |
    | all rows                           | predicts 0                                              |
    | learnt again                       | the state before, to rounding                           |
    | inside `jit` or `vmap`             | no checks: bad rows are skipped, failure is in `status` |
    | a downdate that lost its digits    | refitted; inside `jit` INDEFINITE and the old state     |

    Cost: init and refit n^3 and memory 5 n^2; forget and learn of m rows 2 m n^2 and 4 m n^2;
    leave_out m n + m^3 / 3 once compiled; all n times C for a kernel (n, C, n, C).

    Source: the module.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxunlearn.kernels.functions import linear
      >>> machine = kernel_ridge(kernel=linear, rho=1.0)
      >>> state = machine.init(jnp.eye(2), jnp.array([2.0, 4.0]))
      >>> print(machine.predict(state, jnp.eye(2)))
      [1. 2.]
      >>> print(machine.predict(machine.forget(state, [1]), jnp.eye(2)))
      [1. 0.]
    """
    if not rho > 0 or not tolerance > 0:
        raise ValueError(
            f"kernel_ridge: expected rho > 0 and tolerance > 0, got {rho=}, {tolerance=}."
        )
    limits = {"rho": rho, "tolerance": tolerance}
    refit_now = partial(_factorise, per_row=per_row, **limits)

    def checked(name: str, state: KernelState) -> KernelState:
        if not is_traced(state) and int(state.status) != Solved.CONVERGED:
            raise IllConditionedError(
                f"kernel_ridge.{name}: {Solved(int(state.status)).name}, relative error of the "
                f"weights up to {float(state.error):.1e}, tolerance {tolerance:g}. Raise "
                f"rho={rho:g} (float32 wants 1e-4 of the largest eigenvalue) or use float64."
            )
        return state

    def or_refit(name: str, new: KernelState, again: Callable[[], KernelState]) -> KernelState:
        """A downdate that is not good enough is replaced by a factorisation."""
        failed = not is_traced(new) and int(new.status) != Solved.CONVERGED
        return checked(name, refit_now(again()) if failed else new)

    def init(x: Any, y: Array, capacity: int | None = None) -> KernelState:
        check_examples("kernel_ridge.init", x, y)
        n = kernel_system.room("kernel_ridge.init", x, capacity)
        return checked("init", refit_now(_placed(kernel, n, x, y)))

    def refit(state: KernelState) -> KernelState:
        return checked("refit", refit_now(state))

    def forget(state: KernelState, rows: Any) -> KernelState:
        rows = padded(rows, "kernel_ridge.forget", state.slots)
        check_learnt("kernel_ridge.forget", rows, state.slots)
        if per_row:
            return checked("forget", refit_now(_without(state, rows)[0]))
        return or_refit("forget", _forget(state, rows, **limits), lambda: _without(state, rows)[0])

    def leave_out(state: KernelState, rows: Any) -> Array:
        if per_row:
            raise ValueError(
                "kernel_ridge.leave_out: the ridge changes with the rows (per_row=True); "
                "see kernel_spectrum.leave_out_per_row."
            )
        rows = padded(rows, "kernel_ridge.leave_out", state.slots)
        check_learnt("kernel_ridge.leave_out", rows, state.slots)
        return _leave_out(state, rows)

    def learn(state: KernelState, rows: Any, x: Any, y: Array) -> KernelState:
        name = "kernel_ridge.learn"
        check_examples(name, x, y, len(rows))
        if not len(rows):
            return state
        rows = padded(rows, name, state.slots)
        check_free(name, rows, state.slots)
        x, y = lengthened((x, y), len(rows))
        if per_row:
            return checked("learn", refit_now(_place(kernel, state, rows, x, y)[0]))
        new = _learn(kernel, state, rows, x, y, **limits)
        return or_refit("learn", new, lambda: _place(kernel, state, rows, x, y)[0])

    def leave_one_out(state: KernelState) -> Array:
        if per_row:
            raise ValueError(
                "kernel_ridge.leave_one_out: the ridge changes with the rows (per_row=True); "
                "see kernel_spectrum.leave_out_per_row."
            )
        return _leave_one_out(state)

    return KernelRidge(
        init, learn, forget, partial(_predict, kernel), leave_out, leave_one_out, refit
    )
