"""What a kernel ridge machine holds, and how rows enter and leave it: pure functions, traceable.

    M = K + rho I,     G = M^-1,     alpha = G y,     each with zeros in slots that hold nothing

`kernel` has the builder, the guarantee and the sources; `linalg.principal` the block inverse. A
slot owns C neighbouring rows of the matrices, for a kernel (n, C, n, C), and one otherwise.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxunlearn.kernels.functions import Kernel
from jaxunlearn.kernels.slots import Slot, length, marked, requested, wiped, written
from jaxunlearn.linalg import principal
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array

S = TypeVar("S", bound=Any)  # a state with x, y, gram, alpha and slots


class KernelState(NamedTuple):
    """A fitted machine of n slots; a pytree of fixed shapes. N = n C for a kernel (n, C, n, C)."""

    x: Any  # tree of (n, ...), zeros in slots that hold nothing
    y: Array  # (n,), (n, k) or (n, C) float, zeros in slots that hold nothing
    gram: Array  # (N, N) float, K; zeros in slots that hold nothing
    inverse: Array  # (N, N) float, G; zeros in slots that hold nothing
    alpha: Array  # like y
    slots: Array  # (n,) int32, a `Slot` each
    status: Array  # [] int32, a `Solved`: CONVERGED, STALLED, INDEFINITE or NONFINITE
    error: Array  # [] float, max(eps |M|_1 |G|_1, |M G y - y| / |y|, and for a probe)


def dot(a: Array, b: Array) -> Array:
    """a b in the full precision of its dtype, on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _spread(state: Any, of_slots: Array) -> Array:
    """(N,) of (n,): each slot owns C neighbouring rows of the matrices."""
    return jnp.repeat(of_slots, len(state.gram) // len(state.slots))


def _columns(state: Any, y: Array) -> Array:
    """(N, k) of what is shaped like y."""
    return y.reshape(len(state.gram), -1)


def _entries(state: Any, places: Array, valid: Array) -> tuple[Array, Array]:
    """The rows of the matrices that belong to slots."""
    c = len(state.gram) // len(state.slots)
    return (places[:, None] * c + jnp.arange(c)[None]).reshape(-1), jnp.repeat(valid, c)


def _square(block: Array) -> Array:
    """(n C, m C) of (n, C, m, C), or what is (n, m) already."""
    return block.reshape(block.shape[0] * block.shape[1], -1) if block.ndim == 4 else block


def _system(state: KernelState, rho: float | Array, per_row: bool) -> Array:
    """M = K + rho I, or K + rho |S| I."""
    kept = _spread(state, state.slots == Slot.LEARNT)
    number = (state.slots == Slot.LEARNT).sum() if per_row else 1
    ridge = jnp.where(kept, rho * number, 1).astype(state.gram.dtype)
    return jnp.where(kept[:, None] & kept[None], state.gram, 0) + jnp.diag(ridge)


def _judged(
    state: KernelState, matrix: Array, definite: Array, tolerance: float | Array
) -> KernelState:
    """alpha = G y with one step of refinement, and how good G is on y and on a probe.

    Refinement makes alpha right even where G has drifted, so that the residual of alpha would hide
    what `leave_one_out` and the next request suffer from; that of G y shows it.
    """
    n, kept = len(matrix), _spread(state, state.slots == Slot.LEARNT)
    probe = jnp.where(kept, jnp.cos(2.4 * jnp.arange(n, dtype=matrix.dtype)), 0)
    y = jnp.concatenate([_columns(state, state.y), probe[:, None]], axis=1)
    solved = dot(state.inverse, y)
    left = y - dot(matrix, solved)
    alpha = jnp.where(kept[:, None], solved + dot(state.inverse, left), 0)[:, :-1]
    size = jnp.abs(y).max(axis=0, initial=0)
    drift = (jnp.abs(left).max(axis=0, initial=0) / jnp.where(size > 0, size, 1)).max()
    own = jnp.where(kept[:, None] & kept[None], matrix, 0)
    spread = jnp.abs(own).sum(0).max(initial=0) * jnp.abs(state.inverse).sum(0).max(initial=0)
    error = jnp.maximum(drift, jnp.finfo(matrix.dtype).eps * spread)
    status = jnp.where(error <= tolerance, Solved.CONVERGED, Solved.STALLED)
    status = jnp.where(definite, status, Solved.INDEFINITE)
    finite = jnp.isfinite(error) & jnp.isfinite(alpha).all()
    status = jnp.where(finite, status, Solved.NONFINITE).astype(jnp.int32)
    alpha = jnp.where(finite, alpha, 0).reshape(state.y.shape)
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    return state._replace(alpha=alpha, status=status, error=error)


def factorise(
    state: KernelState, *, rho: float | Array, per_row: bool, tolerance: float | Array
) -> KernelState:
    """G and alpha of the rows that are learnt, from K; INDEFINITE and zeros without a factor."""
    matrix = _system(state, rho, per_row)
    inverse, definite = principal.invert(matrix, _spread(state, state.slots == Slot.LEARNT))
    return _judged(state._replace(inverse=inverse), matrix, definite, tolerance)


def room(name: str, x: Any, capacity: int | None) -> int:
    """The number of slots; ValueError if the rows of x do not fit into it."""
    n = length(x) if capacity is None else capacity
    if n < length(x):
        raise ValueError(f"{name}: {length(x)} rows do not fit into {capacity=}.")
    return n


def placed(kernel: Kernel, n: int, x: Any, y: Array) -> KernelState:
    """n slots, of which the first hold x and y; nothing solved yet."""
    block = kernel(x, x)
    c, m = (block.shape[1] if block.ndim == 4 else 1), length(x)
    gram = jnp.zeros((n * c, n * c), block.dtype).at[: m * c, : m * c].set(_square(block))

    def wide(leaf: Array) -> Array:
        return jnp.zeros((n, *leaf.shape[1:]), leaf.dtype).at[:m].set(leaf)

    slots = jnp.where(jnp.arange(n) < m, Slot.LEARNT, Slot.EMPTY).astype(jnp.int32)
    targets = wide(jnp.asarray(y).astype(block.dtype))
    nothing = jnp.zeros_like(targets)
    zero = jnp.zeros((), block.dtype)
    inverse = jnp.zeros_like(gram)
    return KernelState(
        jax.tree.map(wide, x), targets, gram, inverse, nothing, slots, jnp.int32(0), zero
    )


def without(state: S, rows: Array) -> tuple[S, Array, Array]:
    """(state with the slots wiped, its places, which are valid); nothing solved yet."""
    places, valid = requested(rows, state.slots, Slot.LEARNT)
    gone = marked(places, valid, len(state.slots))
    entry = _spread(state, gone)
    gram = jnp.where(entry[:, None] | entry[None], 0, state.gram)
    slots = jnp.where(gone, Slot.FORGOTTEN, state.slots).astype(jnp.int32)
    x, y, alpha = wiped((state.x, state.y, state.alpha), gone)
    return state._replace(x=x, y=y, alpha=alpha, gram=gram, slots=slots), places, valid


def leave_out(state: KernelState, rows: Array) -> Array:
    places, valid = _entries(state, *requested(rows, state.slots, Slot.LEARNT))
    across = state.inverse[places]
    alpha = principal.downdate(across, _columns(state, state.alpha), places, valid)[0]
    return alpha.reshape(state.alpha.shape)


def forget(
    state: KernelState, rows: Array, *, rho: float | Array, tolerance: float | Array
) -> KernelState:
    """One block downdate of G; the state that came in where G_FF is not definite."""
    wiped_state, slots, ok = without(state, rows)
    places, valid = _entries(state, slots, ok)
    inverse, definite = principal.remove(state.inverse, places, valid)
    new = wiped_state._replace(inverse=inverse)
    new = _judged(new, _system(new, rho, False), definite, tolerance)
    return _whole(definite, new, state)


def place(kernel: Kernel, state: S, rows: Array, x: Any, y: Array) -> tuple[S, Array, Array]:
    """(state with x and y in free slots, places, valid); nothing solved yet."""
    free = jnp.where(state.slots == Slot.LEARNT, Slot.LEARNT, Slot.EMPTY)
    slots, ok = requested(rows, free, Slot.EMPTY)
    held = _spread(state, (state.slots == Slot.LEARNT) | marked(slots, ok, len(free)))
    new_x, new_y = written((state.x, state.y), slots, ok, (x, jnp.asarray(y)))
    places, valid = _entries(state, slots, ok)
    across = jnp.where(held[None], _square(kernel(x, new_x)), 0).astype(state.gram.dtype)
    target = jnp.where(valid, places, len(state.gram))
    gram = state.gram.at[target].set(across, mode="drop")
    gram = gram.at[:, target].set(across.T, mode="drop")
    now = jnp.where(marked(slots, ok, len(free)), Slot.LEARNT, state.slots).astype(jnp.int32)
    return state._replace(x=new_x, y=new_y, gram=gram, slots=now), places, valid


def learn(
    kernel: Kernel,
    state: KernelState,
    rows: Array,
    x: Any,
    y: Array,
    *,
    rho: float | Array,
    tolerance: float | Array,
) -> KernelState:
    kept = _spread(state, state.slots == Slot.LEARNT)
    new, places, valid = place(kernel, state, rows, x, y)
    matrix = _system(new, rho, False)
    inverse, definite, _ = principal.add(state.inverse, matrix, kept, places, valid)
    new = _judged(new._replace(inverse=inverse), matrix, definite, tolerance)
    return _whole(definite, new, state)


def _whole(definite: Array, new: KernelState, old: KernelState) -> KernelState:
    """The new state, or the old one whole with the reason."""
    chosen = jax.tree.map(lambda a, b: jnp.where(definite, a, b), new, old)
    return chosen._replace(status=new.status, error=new.error)


def predict(kernel: Kernel, state: Any, x: Any) -> Array:
    across = _square(kernel(x, state.x))
    kept = _spread(state, state.slots == Slot.LEARNT)
    values = dot(jnp.where(kept[None], across, 0), _columns(state, state.alpha))
    return values.reshape(length(x), *state.y.shape[1:])


def leave_one_out(state: KernelState) -> Array:
    """y_i - (G_ii)^-1 alpha_i, with G_ii a C x C block."""
    n, c = len(state.slots), len(state.gram) // len(state.slots)
    kept = state.slots == Slot.LEARNT
    own = state.inverse.reshape(n, c, n, c)[jnp.arange(n), :, jnp.arange(n), :]
    own = jnp.where(kept[:, None, None], own, jnp.eye(c, dtype=own.dtype)[None])
    alpha = _columns(state, state.alpha).reshape(n, c, -1)
    step = alpha / own if c == 1 else jnp.linalg.solve(own, alpha)
    return state.y - step.reshape(state.y.shape)
