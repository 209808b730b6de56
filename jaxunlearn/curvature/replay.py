"""Running a walked function again: with something added at its taps, or without its data.

run        r(H(params), row), every tap's results moved by an array of the caller's, and what the
           taps took from the data beside it: its gradient in those arrays is delta
statics    H(params): what enters the taps from the parameters' side
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxunlearn.curvature.taps import Block, Mark, Step, Tap, bind
from jaxunlearn.typing import Array


def run(block: Block, values: Sequence[Any], zeros: Sequence) -> tuple[list, list]:
    """(results, what each tap took from the data), with `zeros[t]` added to the results of tap t.

    Args:
      block: of `walk`.
      values: arrays for the jaxpr's inputs, in order.
      zeros: for each tap a tuple of arrays like its `out`.
    """
    env = _environment(block, values)
    zeros, captured = list(zeros), []
    for step in block.steps:
        own, zeros = zeros[: len(step.taps)], zeros[len(step.taps) :]
        operands = [_read(env, v) for v in step.eqn.invars]
        if step.kind == "bind":
            outs = bind(step.eqn, operands)
        elif step.kind == "tap":
            outs = _add(bind(step.eqn, operands), own[0])
            captured.append(_chosen(operands, step.marks, static=False))
        else:
            outs, taken = _ENTER[step.kind](step, operands, own)
            captured += taken
        env.update(zip(step.eqn.outvars, outs, strict=True))
    return [_read(env, v) for v in block.jaxpr.outvars], captured


def statics(block: Block, values: Sequence[Any]) -> list[tuple]:
    """For every tap its operands that no data reaches: H(params).

    Args:
      block: of `walk`.
      values: arrays for the jaxpr's inputs; None for the data.
    """
    return _evaluate(block, values)[1]


def _evaluate(block: Block, values: Sequence[Any]) -> tuple[list, list[tuple]]:
    """(results, operands of the taps), None for what the values that are given do not determine."""
    env = _environment(block, values)
    found: list[tuple] = []
    for step in block.steps:
        operands = [_read(env, v) for v in step.eqn.invars]
        outs: list = [None] * len(step.eqn.outvars)
        if step.kind == "tap":
            found.append(_chosen(operands, step.marks, static=True))
        elif step.kind == "scan":
            outs, inner = _evaluate_scan(step, operands)
            found += inner
        elif step.kind != "bind":
            outs, inner = _evaluate(step.block, operands)
            found += inner
        elif all(o is not None for o in operands):
            outs = bind(step.eqn, operands)
        env.update(zip(step.eqn.outvars, outs, strict=True))
    return [_read(env, v) for v in block.jaxpr.outvars], found


# ---- entering equations ----


def _run_inline(step: Step, operands: list, zeros: list) -> tuple[list, list]:
    return run(step.block, operands, zeros)


def _run_remat(step: Step, operands: list, zeros: list) -> tuple[list, list]:
    options = {k: step.eqn.params[k] for k in ("policy", "prevent_cse") if k in step.eqn.params}
    return jax.checkpoint(lambda o, z: run(step.block, o, z), **options)(operands, zeros)


def _run_scan(step: Step, operands: list, zeros: list) -> tuple[list, list]:
    first, last = step.constants, step.constants + step.carried
    constants, init, slices = operands[:first], operands[first:last], operands[last:]
    for zero, place in zip(zeros, step.promoted, strict=False):
        init[place] = init[place] + zero[0]

    def body(carry: list, xs: tuple) -> tuple[list, tuple]:
        outs, taken = run(step.block, [*constants, *carry, *xs[0]], xs[1])
        return outs[: step.carried], (outs[step.carried :], taken)

    inside = zeros[len(step.promoted) :]
    carry, (ys, taken) = _scan(step, body, init, (slices, inside))
    return [*carry, *ys], [()] * len(step.promoted) + taken


_ENTER = {"inline": _run_inline, "remat": _run_remat, "scan": _run_scan}


def _evaluate_scan(step: Step, operands: list) -> tuple[list, list[tuple]]:
    """The scan of what no data reaches, its changing operands of taps stacked along axis 0."""
    first, last = step.constants, step.constants + step.carried
    constants, init, slices = operands[:first], operands[first:last], operands[last:]
    promoted = [(init[place],) for place in step.promoted]
    init = [None if step.block.outs[i] is None else value for i, value in enumerate(init)]

    def body(carry: list, xs: list) -> tuple[list, tuple]:
        outs, found = _evaluate(step.block, [*constants, *carry, *xs])
        return outs[: step.carried], (outs[step.carried :], found)

    def start(carry: list) -> list:
        xs = jax.tree.map(lambda a: a[0], slices)
        after = jax.eval_shape(lambda c: body(c, xs)[0], carry)
        return [None if a is None else c for a, c in zip(after, carry, strict=True)]

    while sum(c is None for c in start(init)) > sum(c is None for c in init):
        init = start(init)

    def kept(carry: list, xs: list) -> tuple[list, tuple]:
        after, ys = body(carry, xs)
        return [None if c is None else a for a, c in zip(after, carry, strict=True)], ys

    carry, (ys, stacked) = _scan(step, kept, init, slices)
    same = _evaluate(step.block, [*constants, *[None] * (step.carried + len(slices))])[1]
    inner = step.block.taps
    level = step.block.level

    def choose(tap: Tap, many: tuple, one: tuple) -> tuple:
        marks = zip(tap.statics, many, one, strict=True)
        return tuple(m if mark.level == level else o for mark, m, o in marks)

    found = [choose(*each) for each in zip(inner, stacked, same, strict=True)]
    return [*carry, *ys], [*promoted, *found]


def _scan(step: Step, body: Callable, init: Any, xs: Any) -> tuple:
    options = {k: step.eqn.params[k] for k in ("length", "reverse", "unroll")}
    return jax.lax.scan(body, init, xs, **options)


# ---- small ----


def _environment(block: Block, values: Sequence[Any]) -> dict:
    env = dict(zip(block.jaxpr.constvars, block.consts, strict=True))
    return env | dict(zip(block.jaxpr.invars, values, strict=True))


def _read(env: dict, atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def _chosen(operands: list, marks: Sequence[Mark], static: bool) -> tuple:
    pairs = zip(operands, marks, strict=True)
    return tuple(o for o, m in pairs if (m is not None) == static)


def _add(outs: list, zeros: Sequence[Array]) -> list:
    remaining = iter(zeros)
    return [o + next(remaining) if jnp.issubdtype(o.dtype, jnp.inexact) else o for o in outs]
