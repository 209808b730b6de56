"""A ridge head on frozen features that learns and forgets examples, exactly.

    W = argmin sum_i w_i |x_i^T W - y_i|^2 + gamma |W|^2 = (A + gamma I)^-1 C,
    A = sum_i w_i x_i x_i^T,    C = sum_i w_i x_i y_i^T

Forgetting subtracts what learning added, so the head is that of never having seen the example: the
same as fitting ridge to the rows that remain. What is outside of this: the backbone that made x,
and a feature map that was fitted to data (a normaliser, kernel centres, see `random_features`). If
they saw the example, they remember it.

Tang et al. (2025), "ACU: Analytic Continual Unlearning for Efficient and Exact Forgetting with
Privacy Preservation", arXiv:2505.12239, on the learner of ACIL (Zhuang et al. 2022,
arXiv:2205.14922). A *reconstruction*: no code of the unlearning side was found, and its downdates
were derived from the learning side, which is published. Departures:

1. The default state is the Gram, in pairs of floats, and not R = (A + gamma I)^-1, whose rounding
   errors add up from request to request; R and a Cholesky factor are offered.
2. What was never added is refused where that shows: S or A indefinite, a negative count.
3. Class-balanced weights (AIR) and single classes that go whole, where a Gram is kept of each.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.streams import is_traced
from jaxunlearn.linalg.solution import Solution, Solved
from jaxunlearn.method import exact
from jaxunlearn.methods.exact import analytic_factor as factors
from jaxunlearn.methods.exact import analytic_gram as grams
from jaxunlearn.methods.exact import analytic_inverse as inverses
from jaxunlearn.methods.exact.pairs import value
from jaxunlearn.methods.exact.row_checks import check_rows
from jaxunlearn.typing import Array

STATES = ("gram", "cholesky", "inverse")
TOLERANCE = 1e-10
_CONSTANTS = ("sign", "gamma", "compensated", "verify", "tolerance", "refresh", "balanced")


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled program for each shape and set of constants, whoever builds the head."""
    return jax.jit(function, static_argnames=_constants(function))


def _constants(function: Callable[..., Any]) -> list[str]:
    return [name for name in _CONSTANTS if name in inspect.signature(function).parameters]


_CHANGE = {
    "gram": _compile(grams.change),
    "cholesky": _compile(factors.change),
    "inverse": _compile(inverses.change),
}
_HEAD = {
    "gram": _compile(grams.head),
    "cholesky": _compile(factors.head),
    "inverse": _compile(inverses.head),
}


class AnalyticHead(NamedTuple):
    """Pure functions on a state that is a pytree; see `analytic_head`."""

    init: Callable[..., Any]  # (features, classes, dtype=None) -> state
    learn: Callable[..., Any]  # (state, x, y, weight=None) -> state
    forget: Callable[..., Any]  # (state, x, y, weight=None) -> state
    replace: Callable[..., Any]  # (state, x, y, new_x, new_y) -> state
    forget_class: Callable[..., Any]  # (state, c) -> state
    grow: Callable[..., Any]  # (state, classes) -> state
    merge: Callable[..., Any]  # (state, state) -> state
    reduce: Callable[..., Any]  # (state, axis_name) -> state
    weights: Callable[..., Solution]  # state -> Solution, x = W (d, C)
    predict: Callable[..., Array]  # (state, x) -> (n, C)
    leverage: Callable[..., Array]  # (state, x) -> (n,)
    guarantee: str


def analytic_head(
    *,
    gamma: float,
    state: str = "gram",
    per_class: bool = False,
    balanced: bool = False,
    compensated: bool = True,
    verify: bool = True,
    refresh: int = 100,
    tolerance: float = 1e-3,
) -> AnalyticHead:
    """W = (sum_i w_i x_i x_i^T + gamma I)^-1 sum_i w_i x_i y_i^T, with rows that come and go.

    Args:
      gamma: ridge > 0, beside the SUM of squared errors. Published: 0.1.
      state: "gram", "cholesky" or "inverse"; see the second table.
      per_class: keep a Gram of each class (C d^2 numbers), for `forget_class`. Gram state only.
      balanced: weigh class c by omega_c ~ 1/n_c of mean 1 (AIR); needs and sets `per_class`.
      compensated: float32 sums in pairs, of exact products. False: plain float32 sums.
      verify: Gram state: a removal must leave A positive semidefinite, checked by a Cholesky
        factor. False: only counts are checked, and A when the head is solved.
      refresh: inverse state: requests after which R is made anew from the Gram, >= 1.
      tolerance: relative residual, > 0, above which a head is refused, and R is made anew.

    Returns:
      An `AnalyticHead`; d features, C classes:

      `init(d, C, dtype=None)`: float32, or float64 where `jax.enable_x64` is on.
      `learn`, `forget(state, x, y, weight=None)`: x (n, d) float; y (n,) integer labels in [0, C),
        or (n, C) targets; weight (n,) >= 0, where 0 is padding that changes nothing. A row must
        come with the bits that it was learnt with.
      `replace(state, x, y, new_x, new_y)`: corrected labels, features or both.
      `forget_class(state, c)`: all of class c; no example is needed.
      `grow(state, classes)`: more classes; their columns are 0.
      `merge(a, b)`: the state of both data sets; `reduce(state, axis_name)`: of a mapped axis.
      `weights(state)`: `linalg.solution.Solution` with x = W (d, C).
      `predict(state, x)`: scores x W; a class without examples gets the least float.
      `leverage(state, x)`: x_i^T R x_i, in [0, 1) for a learnt row.

      All are traceable. `learn`, `forget` and `weights` compile themselves, once for each shape.

    Raises:
      ValueError: a constant out of range; shapes, labels or NaN that cannot be learnt; rows that
        were never learnt, as far as that shows; a head that is not solved to `tolerance`. In a
        trace: `state.status` instead (of the Gram inside it, for "inverse"), and the state stays as
        it was from then on.

    | situation                                 | result                                          |
    |-------------------------------------------|-------------------------------------------------|
    | `forget` rows that were learnt            | the head of the other rows, to 1e-10 in float64 |
    | any order, any batches                    | the same head, to rounding                      |
    | learnt and forgotten again                | the state from before, to rounding              |
    | everything forgotten                      | the start state: W = 0, A = 0 exactly           |
    | a class whose examples are all forgotten  | its column is 0 and its score the least float   |
    | gamma -> infinity                         | W -> 0, and deletions change nothing            |
    | rows never learnt, leverage >= 1          | raises; as a status, INDEFINITE                 |
    | rows never learnt that fit within A       | not seen: give them ids, see `ledger`           |
    | new residual of one forgotten row         | the old one / (1 - leverage)                    |

    | state      | learn, forget n rows      | weights      | drift                    | additive |
    |------------|---------------------------|--------------|--------------------------|----------|
    | "gram"     | n d^2 (+ d^3/3 to verify) | d^3/3 + C d^2| none to speak of         | yes      |
    | "cholesky" | 4 n d^2; d^3/3 if n > d/10| C d^2        | slow                     | no       |
    | "inverse"  | 4 n d^2; d^3 if n >= d    | none         | watched, and made anew   | no       |

    Cost: as above, independent of how many examples were ever learnt; memory 2 d^2 numbers for the
    Gram (pairs; 5 d^2 more while its head is solved), d^2 for the factor, 3 d^2 for the inverse.
    Data on several devices: each learns its rows, then `reduce`.

    Source: arXiv:2505.12239 (a reconstruction), AIR arXiv:2408.10349; departures in the module.

    Example:
      >>> head = analytic_head(gamma=1.0)
      >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
      >>> state = head.learn(head.init(3, 2), x, y)
      >>> state = head.forget(state, x[2:], y[2:])
      >>> print(head.weights(state).x)
      [[0.5 0. ]
       [0.  0.5]
       [0.  0. ]]
    """
    _check_constants(gamma, state, per_class or balanced, refresh, tolerance)
    kind = state
    grams_of_each = per_class or balanced
    options: dict[str, Any] = {"gamma": gamma, "compensated": compensated}
    options |= {
        "gram": {"verify": verify},
        "cholesky": {},
        "inverse": {"tolerance": tolerance, "refresh": refresh},
    }[kind]
    change = partial(_CHANGE[kind], **options)
    solving = {"gamma": gamma, "balanced": balanced, "compensated": compensated}
    head = partial(_HEAD[kind], tolerance=tolerance, **(solving if kind == "gram" else {}))

    def init(features: int, classes: int, dtype: Any = None) -> Any:
        if features < 1 or classes < 1:
            raise ValueError(f"analytic_head: expected counts >= 1, got {features=}, {classes=}.")
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        if kind == "gram":
            return grams.empty(features, classes, classes if grams_of_each else 1, dtype)
        make = factors.empty if kind == "cholesky" else inverses.empty
        return make(features, classes, gamma, dtype)

    def moved(verb: str, sign: int, some: Any, x: Array, y: Array, weight: Array | None) -> Any:
        x, y = jnp.asarray(x), jnp.asarray(y)
        d, classes = _sums(some).cross.high.shape
        weight = jnp.ones(x.shape[:1]) if weight is None else jnp.asarray(weight)
        check_rows(f"analytic_head.{verb}", x, y, weight, d, classes)
        if grams_of_each and y.ndim != 1:
            raise ValueError(
                f"analytic_head.{verb}: a Gram of each class needs integer labels (n,), "
                f"got targets {y.shape}."
            )
        dtype = _sums(some).rows.dtype
        rows = x.astype(dtype), grams.targets_of(y, classes, dtype), weight.astype(dtype)
        if is_traced((some, rows)):
            return change(some, *rows, sign=sign)
        _check_status(verb, some)
        new = change(some, *rows, sign=sign)
        _check_status(verb, new)
        return new

    def learn(some: Any, x: Array, y: Array, weight: Array | None = None) -> Any:
        return moved("learn", 1, some, x, y, weight)

    def forget(some: Any, x: Array, y: Array, weight: Array | None = None) -> Any:
        return moved("forget", -1, some, x, y, weight)

    def replace(some: Any, x: Array, y: Array, new_x: Array, new_y: Array) -> Any:
        return forget(learn(some, new_x, new_y), x, y)  # in this order never near indefinite

    def needs(wanted: bool, verb: str, what: str) -> None:
        if not wanted:
            raise ValueError(f"analytic_head.{verb} needs {what}; this head was made without.")

    def forget_class(some: Any, c: int | Array) -> Any:
        needs(grams_of_each, "forget_class", "per_class=True (or forget its examples)")
        count = some.count[c]
        return some._replace(
            gram=jax.tree.map(lambda a: a.at[c].set(0), some.gram),
            cross=jax.tree.map(lambda a: a.at[:, c].set(0), some.cross),
            count=some.count.at[c].set(0),
            rows=some.rows - count,
        )

    def grow(some: Any, classes: int) -> Any:
        more = classes - _sums(some).count.size
        if more < 0:
            raise ValueError(
                f"analytic_head.grow: expected at least the {_sums(some).count.size} classes that "
                f"there are, got {classes}."
            )

        def wider(a: Array) -> Array:
            return jnp.pad(a, ((0, 0), (0, more)))

        def longer(sums: Any) -> Any:
            cross, count = jax.tree.map(wider, sums.cross), jnp.pad(sums.count, (0, more))
            sums = sums._replace(cross=cross, count=count)
            if not grams_of_each:
                return sums
            return sums._replace(
                gram=jax.tree.map(lambda a: jnp.pad(a, ((0, more), (0, 0), (0, 0))), sums.gram)
            )

        if kind == "inverse":
            return some._replace(gram=longer(some.gram), weights=wider(some.weights))
        return longer(some)

    def merge(a: Any, b: Any) -> Any:
        needs(kind == "gram", "merge", "state='gram'")
        return grams.merge(a, b)

    def reduce(some: Any, axis_name: str) -> Any:
        needs(kind == "gram", "reduce", "state='gram'")
        return grams.reduce(some, axis_name)

    def weights(some: Any) -> Solution:
        if is_traced(some):
            return head(some)
        _check_status("weights", some)
        found = head(some)
        if int(found.status) != Solved.CONVERGED:
            raise ValueError(
                f"analytic_head.weights: the head is {Solved(int(found.status)).name} with "
                f"residual {float(found.residual):.1e}, expected at most {tolerance:g}. Were rows "
                "forgotten that were never learnt? Otherwise take a larger gamma, or float64."
            )
        return found

    def predict(some: Any, x: Array) -> Array:
        w = weights(some).x
        scores = jnp.matmul(x.astype(w.dtype), w, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(_sums(some).count[None] > 0, scores, jnp.finfo(w.dtype).min)

    def leverage(some: Any, x: Array) -> Array:
        x = jnp.asarray(x, _sums(some).rows.dtype)
        return jnp.einsum("nd,dn->n", x, _resolve(some, kind, gamma, balanced, x.T))

    return AnalyticHead(
        init, learn, forget, replace, forget_class, grow, merge, reduce, weights, predict, leverage,
        exact(TOLERANCE),
    )  # fmt: skip


def _resolve(some: Any, kind: str, gamma: float, balanced: bool, b: Array) -> Array:
    """R b."""
    if kind == "inverse":
        return jnp.matmul(some.inverse, b, precision=jax.lax.Precision.HIGHEST)
    if kind == "cholesky":
        return grams.solve(some.factor, b)
    matrix = value(grams.system(some, balanced)[0]) + gamma * jnp.eye(len(b), dtype=b.dtype)
    return grams.solve(jnp.linalg.cholesky(matrix), b)


def _sums(some: Any) -> Any:
    """The part of a state that has cross, count and rows."""
    return some.gram if isinstance(some, inverses.InverseState) else some


def _check_constants(
    gamma: float, state: str, per_class: bool, refresh: int, tolerance: float
) -> None:
    if state not in STATES:
        raise ValueError(f"analytic_head: state must be among {STATES}, got {state!r}.")
    if not gamma > 0 or not tolerance > 0 or refresh < 1:
        raise ValueError(
            "analytic_head: expected gamma > 0, tolerance > 0 and refresh >= 1, "
            f"got {gamma=}, {tolerance=}, {refresh=}."
        )
    if per_class and state != "gram":
        raise ValueError(
            "analytic_head: per_class and balanced keep Grams, so state must be 'gram', "
            f"not {state!r}."
        )


def _check_status(verb: str, some: Any) -> None:
    status = int(_sums(some).status)
    if status == Solved.INDEFINITE:
        raise ValueError(
            f"analytic_head.{verb}: more would be removed than was learnt (a negative count, or A "
            "is no longer positive semidefinite). Rows can be forgotten once, with the features "
            "and labels they were learnt with; a ledger of ids says which were."
        )
    if status != Solved.CONVERGED:
        raise ValueError(
            f"analytic_head.{verb}: {Solved(status).name}: the sums of these rows are beyond "
            f"{_sums(some).rows.dtype}. Scale the features down."
        )
