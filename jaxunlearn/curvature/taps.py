"""Taps: where each parameter meets the data, found by walking the jaxpr of a function.

A function f(params, row) splits into what depends on the parameters alone and the rest,

    f(params, row) = r(H(params), row)         H: reshapes, casts, slices, W + A B, g v / |v| ...

and the values H(params) enter r in single equations, y = op(h, x): a product, a convolution, a sum
with a bias, a gather. Such an equation is a *tap*. With an array of zeros added to every y, one
reverse pass gives delta = df/dy at all taps at once, and what the parameters' gradient is made of
is at hand without ever being formed:

    x       what the equation takes from the data         (captured on the way forward)
    delta   cotangent of what it gives                    (the gradient of the zeros)
    op      linear in h nearly always:                    dl/dh = op_h^T(x) delta

The walk enters jit, remat and scan (a stack of layers scanned over is one tap with a leading axis;
weights used in every step of a scan are one tap with more positions). Equations with insides that
are not entered (cond, custom_jvp, custom_vjp with weights in them) are taps as a whole: right, and
dearer. f is traced for ONE example and mapped over examples with `vmap`, so the example axis is
always the leading one, whatever the network does with its batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxunlearn.curvature.rules import Rule, is_reindexing, reindex, rule_for, stack_rule
from jaxunlearn.typing import Array, Batch

Chain = Callable[[Array], Array]


class Static(NamedTuple):
    """The mark of a value that no data reaches; the mark of any other is None."""

    leaves: frozenset[int] = frozenset()  # the parameter leaves that it is made of
    chain: Chain | None = None  # leaf -> value, if it is one leaf with its entries moved about
    level: int = 0  # the innermost scan in which it changes from step to step, 0 for none
    bases: tuple[Chain | None, ...] = ()  # leaf -> what was sliced, for each scan it changes in


Mark = Static | None


class Tap(NamedTuple):
    """One equation (y_1, ...) = op(statics, others) where parameters meet data."""

    name: str  # of the primitive
    apply: Callable[[Sequence[Array], Sequence[Array]], tuple[Array, ...]]
    statics: tuple[Static, ...]  # marks of the operands that no data reaches
    wrt: tuple[int, ...]  # which of them the parameters reach
    weights: tuple[jax.ShapeDtypeStruct, ...]  # the operands in wrt
    rule: Rule | None  # what is known of op, if `wrt` is one
    out: tuple[jax.ShapeDtypeStruct, ...]  # the y's, floating point only

    @property
    def leaves(self) -> frozenset[int]:
        return frozenset().union(*(self.statics[i].leaves for i in self.wrt))


class Step(NamedTuple):
    """One equation and what is done with it."""

    eqn: Any
    kind: str  # "bind", "tap", "inline", "remat" or "scan"
    marks: tuple[Mark, ...]  # of the operands
    taps: tuple[Tap, ...] = ()  # those that it contributes, in order
    block: Any = None  # the Block of its inside
    constants: int = 0  # scan: how many operands are the same in every step
    carried: int = 0  # scan: how many are carried from step to step
    promoted: tuple[int, ...] = ()  # scan: carried values that start without data and meet it


class Block(NamedTuple):
    """A jaxpr, walked."""

    jaxpr: Any
    consts: tuple
    steps: tuple[Step, ...]
    outs: tuple[Mark, ...]  # marks of the results
    level: int  # how many scans it lies in

    @property
    def taps(self) -> tuple[Tap, ...]:
        return tuple(tap for step in self.steps for tap in step.taps)


def walk(function: Callable, params: Any, *rest: Any) -> Block:
    """The Block of `function(params, *rest)`, traced for these shapes.

    Args:
      function: traceable; `rest` is the data.
      params: tree of arrays or ShapeDtypeStructs; leaves are counted in `jax.tree.leaves` order.
      rest: trees of arrays or ShapeDtypeStructs.
    """
    closed = jax.make_jaxpr(function)(params, *rest)
    count = len(jax.tree.leaves(params))
    marks: list[Mark] = [Static(frozenset([i]), _identity) for i in range(count)]
    marks += [None] * (len(closed.jaxpr.invars) - count)
    return _analyse(closed.jaxpr, closed.consts, marks, 0)


def single(function: Callable) -> Callable:
    """(params, one row without its axis) -> the row's result, of a function of batches."""
    return lambda params, row: function(params, {k: v[None] for k, v in row.items()})[0]


def walk_row(function: Callable, params: Any, batch: Batch) -> Block:
    """The Block of `function(params, batch)` for one row of the batch."""
    row = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in batch.items()}
    return walk(single(function), params, row)


_INLINED = frozenset(["jit", "pjit", "closed_call", "core_call"])
_REMAT = frozenset(["remat2", "remat", "checkpoint"])


def _analyse(jaxpr: Any, consts: Sequence[Any], marks: Sequence[Mark], level: int) -> Block:
    env: dict[Any, Mark] = dict.fromkeys(jaxpr.constvars, Static())
    env |= dict(zip(jaxpr.invars, marks, strict=True))

    def mark_of(atom: Any) -> Mark:
        return Static() if isinstance(atom, core.Literal) else env[atom]

    steps = []
    for eqn in jaxpr.eqns:
        operands = tuple(mark_of(v) for v in eqn.invars)
        step, outs = _step(eqn, operands, level)
        steps.append(step)
        env.update(zip(eqn.outvars, outs, strict=True))
    return Block(jaxpr, tuple(consts), tuple(steps), tuple(map(mark_of, jaxpr.outvars)), level)


def _step(eqn: Any, marks: tuple[Mark, ...], level: int) -> tuple[Step, Sequence[Mark]]:
    """What to do with one equation, and the marks of its results."""
    name = eqn.primitive.name
    given = [m for m in marks if m is not None]
    trained = any(m.leaves for m in given)
    static = len(given) == len(marks)
    if trained and name in _INLINED | _REMAT:
        jaxpr, consts = _opened(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        block = _analyse(jaxpr, consts, marks, level)
        kind = "inline" if name in _INLINED else "remat"
        return Step(eqn, kind, marks, block.taps, block), block.outs
    if static:
        return Step(eqn, "bind", marks), [_derived(eqn, given, v.aval) for v in eqn.outvars]
    data: list[Mark] = [None] * len(eqn.outvars)
    if trained and name == "scan":
        return _scan_step(eqn, marks, level)
    tap = _tap(eqn, marks) if trained else None
    if tap is None:
        return Step(eqn, "bind", marks), data
    return Step(eqn, "tap", marks, (tap,)), data


def _derived(eqn: Any, marks: list[Static], aval: Any) -> Static:
    """The mark of a result computed from static operands."""
    highest = max(marks, key=lambda m: m.level, default=Static())
    if eqn.primitive.name == "stop_gradient" or not jnp.issubdtype(aval.dtype, jnp.inexact):
        return Static(level=highest.level, bases=highest.bases)
    leaves = frozenset().union(*(m.leaves for m in marks))
    chain = highest.chain if is_reindexing(eqn) else None
    if chain is not None:
        chain = _then(chain, reindex(eqn))
    return Static(leaves, chain, highest.level, highest.bases)


def _tap(eqn: Any, marks: tuple[Mark, ...]) -> Tap | None:
    places = [i for i, m in enumerate(marks) if m is not None]
    statics = tuple(m for m in marks if m is not None)
    wrt = tuple(i for i, m in enumerate(statics) if m.leaves)
    inexact = [i for i, v in enumerate(eqn.outvars) if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if not inexact:
        return None

    def apply(fixed: Sequence[Array], others: Sequence[Array]) -> tuple[Array, ...]:
        left, right = iter(fixed), iter(others)
        operands = [next(right) if m is None else next(left) for m in marks]
        outs = bind(eqn, operands)
        return tuple(outs[i] for i in inexact)

    out = tuple(_struct(eqn.outvars[i].aval) for i in inexact)
    rule = rule_for(eqn, places[wrt[0]]) if len(wrt) == 1 else None
    weights = tuple(_struct(eqn.invars[places[i]].aval) for i in wrt)
    return Tap(eqn.primitive.name, apply, statics, wrt, weights, rule, out)


def _scan_step(eqn: Any, marks: tuple[Mark, ...], level: int) -> tuple[Step, Sequence[Mark]]:
    """Walks the body until the marks of what is carried are settled."""
    jaxpr, consts = _opened(eqn.params["jaxpr"])
    shapes = [v.aval.shape for v in jaxpr.invars]
    unsliced = sum(v.aval.shape == s for v, s in zip(eqn.invars, shapes, strict=True))
    results = zip(eqn.outvars, jaxpr.outvars, strict=True)
    carried = sum(v.aval.shape == o.aval.shape for v, o in results)
    constants, deep = unsliced - carried, level + 1

    def entered(mark: Mark, sliced: bool) -> Mark:
        if mark is None:
            return None
        chain = _identity if sliced and mark.chain is not None else None
        return Static(mark.leaves, chain, deep, (*mark.bases, mark.chain if sliced else None))

    outer = list(marks[:constants])
    carry = [entered(m, sliced=False) for m in marks[constants:unsliced]]
    slices = [entered(m, sliced=True) for m in marks[unsliced:]]
    while True:
        block = _analyse(jaxpr, consts, [*outer, *carry, *slices], deep)
        after = [_both(c, o) for c, o in zip(carry, block.outs[:carried], strict=True)]
        if after == carry:
            break
        carry = after

    starts = marks[constants:unsliced]
    pairs = enumerate(zip(starts, carry, strict=True))
    promoted = tuple(i for i, (m, c) in pairs if c is None and m is not None and m.leaves)
    static = [m for m in marks if m is not None]
    height = max(m.level for m in static)
    bases = next(m.bases for m in static if m.level == height)

    def left(mark: Mark, stacked: bool) -> Mark:
        """The mark outside of the scan of what has `mark` inside of it."""
        if mark is None or mark.level < deep:
            return mark if mark is None or not stacked else mark._replace(chain=None)
        base, chain = mark.bases[-1], None
        if stacked and base is not None and mark.chain is not None:
            chain = _then(base, jax.vmap(mark.chain))
        return Static(mark.leaves, chain, height, bases)

    length = eqn.params["length"]
    taps = [_promotion(starts[i], eqn.outvars[i].aval) for i in promoted]
    for tap in block.taps:
        varying = [m.level == deep for m in tap.statics]
        each = zip(tap.statics, varying, strict=True)
        shapes = zip(tap.weights, tap.wrt, strict=True)
        taps.append(
            tap._replace(
                apply=_stacked(tap, varying, length),
                statics=tuple(left(m, stacked=True) if v else m for m, v in each),
                weights=tuple(_longer(w, length) if varying[i] else w for w, i in shapes),
                rule=stack_rule(tap.rule, varying[tap.wrt[0]], length),
                out=tuple(_longer(o, length) for o in tap.out),
            )
        )
    outs = [left(m, i >= carried) for i, m in enumerate([*carry, *block.outs[carried:]])]
    step = Step(eqn, "scan", marks, tuple(taps), block, constants, carried, promoted)
    return step, outs


def _both(before: Mark, after: Mark) -> Mark:
    """The mark of a carried value that starts as one and goes on as the other."""
    if before is None or after is None:
        return None
    return before._replace(leaves=before.leaves | after.leaves)


def _promotion(mark: Mark, aval: Any) -> Tap:
    """A carried value that starts as a parameter: y = w."""
    assert mark is not None
    like = (_struct(aval),)
    return Tap("scan", lambda fixed, others: (fixed[0],), (mark,), (0,), like, None, like)


def _stacked(tap: Tap, varying: list[bool], length: int) -> Callable:
    axes = [0 if v else None for v in varying]
    return lambda fixed, others: jax.vmap(tap.apply, (axes, 0), axis_size=length)(
        list(fixed), list(others)
    )


# ---- small ----


def _identity(value: Array) -> Array:
    return value


def _then(first: Chain, second: Chain) -> Chain:
    return second if first is _identity else lambda value: second(first(value))


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, consts) of a closed or an open jaxpr."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _longer(like: jax.ShapeDtypeStruct, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((length, *like.shape), like.dtype)


def bind(eqn: Any, operands: Sequence[Any]) -> list:
    outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]
