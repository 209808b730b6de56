"""An unlearning method is one value: a pure function and what it may read.

    Method.unlearn(model, params, request, key) -> Unlearned(model, params, info)

`method(...)` makes one from a plain function and puts a boundary around it. The function is handed
a Request that holds only what `needs` names; touching anything else raises `AccessError`, so that a
method which calls itself retain-free or label-free cannot cheat. `chain`, `masked` and `keep_best`
take and return Methods.

| `needs` may name         | what the method gets                                          |
|--------------------------|---------------------------------------------------------------|
| forget, retain, adjacent, held_out | that field of the Request                           |
| labels                   | the column `"y"` of those Data, and with it `model.loss`      |
| key                      | the random key (without it the method must be deterministic)  |
| init, train, features    | that function of the Model                                    |

What the boundary does, in order, to every method:

| situation                                 | result                                    |
|-------------------------------------------|-------------------------------------------|
| wrong kinds of argument, a raw uint32 key | `TypeError`                               |
| something in `needs` is absent or empty   | `ValueError` naming it                    |
| the forget set is empty (or all weight 0) | params bit-identical, info `Nothing()`    |
| `model.loss` is not per example           | `ValueError`                              |
| labels outside [0, C)                     | `ValueError` naming the row               |
| NaN or Inf in params                      | `ValueError` naming the leaf              |
| forget and retain share rows, or forget   | `ValueError` (by `"id"`, else by content) |
| and a held_out that is read               |                                           |
| result of another tree, shape or dtype    | `TypeError` naming the leaf               |

Rows of weight 0 are padding, and nothing is asked of them. Checks of values are host-side and are
skipped inside `jit` and `vmap`, where values cannot be seen; checks of structure are made
everywhere. Streams are checked batch by batch as they are read, and not compared with each other.

With in-memory Data a method is traceable. Called outside a trace it is compiled as one program,
once for each Model and set of shapes: a repeated call compiles nothing, masks and frozen statistics
or not.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.boundary import NEEDS as NEEDS
from jaxunlearn.boundary import AccessError as AccessError
from jaxunlearn.boundary import (
    Withheld,
    check_present,
    check_same_structure,
    check_values,
    is_empty,
    labels_explained,
    limit,
    strip,
)
from jaxunlearn.boundary import check_disjoint as check_disjoint
from jaxunlearn.boundary import without_labels as without_labels
from jaxunlearn.data.streams import InMemory, as_data, is_traced
from jaxunlearn.model import Model, freeze_statistics, join_statistics, rebase, split_statistics
from jaxunlearn.typing import Array, Data, Key, Params, Score, check_key

EXACT_BITWISE = "exact-bitwise"
EMPIRICAL = "empirical"
_LEVELS = ("empirical", "certified", "exact", "exact-bitwise")  # weakest first


def exact(tolerance: float) -> str:
    """The guarantee "equals retraining to `tolerance`, tested"."""
    return f"exact({tolerance:g})"


def certified(epsilon: float, delta: float) -> str:
    """The guarantee "(epsilon, delta)-indistinguishable, assumptions checked at run time"."""
    return f"certified({epsilon:g}, {delta:g})"


def _strength(guarantee: str) -> tuple[int, list[float]]:
    """Sorts guarantees, weakest first: by level, and within a level larger constants are weaker."""
    level, _, constants = guarantee.partition("(")
    if level not in _LEVELS:
        raise ValueError(
            f"guarantee must be one of {_LEVELS} (see method.exact, method.certified), "
            f"got {guarantee!r}."
        )
    return _LEVELS.index(level), [-float(c) for c in constants.rstrip(")").split(",") if c]


class Request(NamedTuple):
    """What is to be forgotten and what may be looked at; each field is Data."""

    forget: Data
    retain: Data | None = None
    adjacent: Data | None = None  # the part of retain that resembles forget
    held_out: Data | None = None  # of forget's kind, and never trained on


class Unlearned(NamedTuple):
    """What a method returns; a pytree, so it can be vmapped."""

    model: Model  # the same one, except for inference-time methods
    params: Params
    info: Any  # arrays a person wants to see


class Nothing(NamedTuple):
    """Info of a run with nothing to do: an empty forget set, or a mask that lets nothing move."""


class Method(NamedTuple):
    """An unlearning method; see the module. Make one with `method`.

    Attributes:
      unlearn: (model, params, request, key) -> Unlearned, all arguments positional, guarded by the
        boundary.
      needs: what it reads, a subset of `NEEDS`.
      guarantee: "exact-bitwise", "exact(tol)", "certified(eps, delta)" or "empirical".
      name: for tables and errors.
      scored: if the method passes through several candidates, score -> the same method that returns
        the best one. `keep_best` calls it.
    """

    unlearn: Callable[[Model, Params, Request, Key], Unlearned]
    needs: frozenset[str]
    guarantee: str
    name: str
    scored: Callable[[Score], "Method"] | None = None


def method(
    function: Callable[..., Unlearned],
    *,
    needs: Iterable[str],
    name: str,
    guarantee: str = EMPIRICAL,
    scored: bool = False,
    whole: bool = False,
    warn: Callable[[Request], None] | None = None,
) -> Method:
    """A Method of a plain function, behind the boundary that this module describes.

    Args:
      function: (model, params, request, key) -> Unlearned, traceable when the Data are in-memory.
      needs: what it reads, from `NEEDS`.
      name: for tables and errors.
      guarantee: see `Method`.
      scored: True if the function also takes a keyword `score`, params -> [], and then returns the
        best-scored of the candidates it passes through.
      whole: True if the function makes new params from nothing (retraining) or replaces the model.
        It is handed the model and the params as they are, and runs as it is written. Otherwise it
        is handed the weights alone and cannot move running statistics.
      warn: called with the checked request before every run, to say what cannot work.

    Raises:
      ValueError: an unknown need or guarantee.

    Example:
      >>> def halve(model, params, request, key):
      ...     return Unlearned(model, jax.tree.map(lambda p: p / 2, params), ())
      >>> halved = method(halve, needs=(), name="halve")
      >>> model = Model(outputs=lambda p, b: b["x"] * p, loss=lambda p, b: b["x"] * p)
      >>> request = Request(forget={"x": np.ones(1, np.float32)})
      >>> print(halved.unlearn(model, jnp.ones(2), request, jax.random.key(0)).params)
      [0.5 0.5]
    """
    needs = frozenset(needs)
    if not needs <= NEEDS:
        raise ValueError(
            f"{name}: needs must be among {sorted(NEEDS)}, got {sorted(needs - NEEDS)} too."
        )
    _strength(guarantee)

    def build(score: Score | None) -> Method:
        label = name if score is None else f"keep_best({name})"

        def run(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
            weights, statistics = (params, None) if whole else split_statistics(model, params)

            def joined(some: Params) -> Params:
                return some if whole else join_statistics(model, some, statistics)

            inner = limit(label, needs, model if whole else freeze_statistics(model, statistics))
            options = {} if score is None else {"score": _over_weights(score, model, joined)}
            out = function(inner, weights, request, key, **options)
            if not isinstance(out, Unlearned):
                raise TypeError(f"{label} must return Unlearned, got {type(out).__name__}.")
            return Unlearned(model, joined(out.params), out.info) if out.model == inner else out

        compiled = jax.jit(run, static_argnums=0)

        def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
            request = _check_kinds(label, model, request, key)
            check_present(label, needs, model, request)
            if is_empty(request.forget):
                return Unlearned(model, params, Nothing())
            request = check_values(label, needs, model, params, request)
            if warn is not None:
                warn(request)
            seen, withheld = strip(label, needs, request, key)
            streaming = any(not isinstance(d, InMemory | Withheld | None) for d in seen)
            as_it_is = whole or streaming or is_traced((params, seen, withheld))
            with labels_explained(label, needs):
                out = (run if as_it_is else compiled)(model, params, seen, withheld)
            if out.model == model:
                check_same_structure(label, params, out.params)
            return out

        return Method(unlearn, needs, guarantee, label, build if scored else None)

    return build(None)


def _check_kinds(name: str, model: Any, request: Any, key: Any) -> Request:
    if not isinstance(model, Model):
        raise TypeError(
            f"{name}: expected a jaxunlearn Model, got {type(model).__name__}; "
            "see from_nnx, from_linen."
        )
    if not isinstance(request, Request):
        raise TypeError(
            f"{name}: expected a Request(forget=..., retain=...), got {type(request).__name__}."
        )
    if not isinstance(key, Withheld):
        check_key(name, key)
    fields: list[Any] = [
        data if data is None or isinstance(data, Withheld) else as_data(data) for data in request
    ]
    return Request(*fields)


def _over_weights(
    score: Score, model: Model, joined: Callable[[Params], Params]
) -> Callable[[Params], Array]:
    return lambda weights: jnp.asarray(score(model, joined(weights)))


def _check_methods(verb: str, methods: Iterable[Any]) -> None:
    for each in methods:
        if not hasattr(each, "unlearn"):
            raise TypeError(
                f"{verb}: expected a Method, got {type(each).__name__}. Was a builder not called?"
            )


def chain(*methods: Method) -> Method:
    """One method after another: (m_k o ... o m_1)(params).

    `needs` is the union, the guarantee the weakest, info the tuple of infos. Each method still sees
    only what it needs itself, and gets the key `fold_in(key, its place)`. `chain()` is the
    identity.

    Raises:
      TypeError: something that is not a Method.

    Example:
      >>> chain().needs
      frozenset()
    """
    _check_methods("chain", methods)
    needs = frozenset().union(*(m.needs for m in methods))
    guarantee = min((m.guarantee for m in methods), key=_strength, default=EMPIRICAL)
    name = " > ".join(m.name for m in methods) or "identity"

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        request = _check_kinds(name, model, request, key)
        infos = []
        for place, each in enumerate(methods):
            own = key if isinstance(key, Withheld) else jax.random.fold_in(key, place)
            model, params, info = each.unlearn(model, params, request, own)
            infos.append(info)
        return Unlearned(model, params, tuple(infos))

    def scored(score: Score) -> Method:
        return chain(*(keep_best(each, score) for each in methods))

    return Method(unlearn, needs, guarantee, name, scored if methods else None)


def masked(each: Method, mask: Any) -> Method:
    """`each`, with only some leaves or entries allowed to move.

        theta' = where(mask, each(theta), theta)

    A frozen leaf is not merely put back at the end: the method never holds it (its model closes
    over it), so no weight decay, momentum, moving average or gradient norm can see it, and it comes
    back bit-identical. Of a leaf with frozen entries the method holds all, but the gradient of
    those entries is 0 and whatever is done to them is undone.

    Args:
      each: any Method that keeps the model.
      mask: a tree of the params' structure, or a prefix of it, or a traceable function params ->
        such a tree. Leaves are bools (the whole leaf) or bool arrays of the leaf's shape (entries);
        True moves. With running statistics the tree is that of the weights.

    Raises:
      ValueError: the mask does not fit the params.
      TypeError: a mask leaf is not boolean, or `each` is not a Method or replaces the model.

    | edge case          | result                                               |
    |--------------------|------------------------------------------------------|
    | all True           | what `each` gives                                    |
    | all False          | params bit-identical, info `Nothing()`               |
    | running statistics | frozen: a masked `retrain` trains in evaluation mode |

    Example:
      >>> from jaxunlearn.methods import gradient_ascent
      >>> head_only = masked(gradient_ascent(epochs=1), {"body": False, "head": True})
      >>> head_only.name
      'masked(gradient_ascent)'
    """
    _check_methods("masked", [each])

    def unlearn(
        model: Model,
        weights: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        full = _full_mask(mask(weights) if callable(mask) else mask, weights)

        def shrink(some: Params) -> Params:
            return jax.tree.map(lambda m, w: None if m is False else w, full, some)

        def expand(some: Params) -> Params:
            def choose(m: Any, w: Array, s: Any) -> Any:
                return w if m is False else s if m is True else jnp.where(m, s, w)

            return jax.tree.map(choose, full, weights, some)

        moving = shrink(weights)
        if not jax.tree.leaves(moving):
            return Unlearned(model, weights, Nothing())
        inner = rebase(model, expand, shrink)
        best = each if score is None else keep_best(each, lambda _, some: score(expand(some)))
        out = best.unlearn(inner, moving, request, key)
        if out.model != inner:
            raise TypeError(
                f"masked({each.name}): an inference-time method replaces the model and has no "
                "leaves to mask."
            )
        return Unlearned(model, expand(out.params), out.info)

    return method(unlearn, needs=each.needs, name=f"masked({each.name})", scored=True)


def _full_mask(mask: Any, params: Params) -> Any:
    """The mask as a tree of the params' structure; leaves True, False, or a bool array."""
    try:
        full = jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), mask, params)
    except ValueError as error:
        raise ValueError(f"masked: the mask is no prefix of the params: {error}") from None

    def check(path: Any, leaf: Any, value: Any) -> Any:
        where = f"mask{jax.tree_util.keystr(path)}"
        if isinstance(value, bool | np.bool_):
            return bool(value)
        if getattr(value, "dtype", None) != jnp.bool_:
            raise TypeError(
                f"masked: {where} must be a bool or a bool array, got {type(value).__name__}."
            )
        if value.shape == () and not is_traced(value):
            return bool(value)
        if value.shape != leaf.shape:
            raise ValueError(f"masked: {where} has shape {value.shape}, the leaf has {leaf.shape}.")
        return value

    return jax.tree_util.tree_map_with_path(check, params, full)


def keep_best(each: Method, score: Score) -> Method:
    """`each`, returning the best-scored of the candidates it passes through.

    Candidates are the params it starts from and, for gradient-trained methods, those after every
    epoch (for a chain, of every stage); for a one-shot method, its result. The score is
    (model, params) -> [], higher is better, and may read whatever it closes over: it is the user's
    own data, outside `needs`. It gets the whole model and all params, behind a mask too.

    Raises:
      TypeError: `each` is not a Method, or replaces the model.

    Edge cases: a score of NaN never wins; ties keep the earlier candidate.

    Example:
      >>> from jaxunlearn.methods import finetune
      >>> keep_best(finetune(), lambda model, params: -jnp.abs(params["w"]).sum()).name
      'keep_best(finetune)'
    """
    _check_methods("keep_best", [each])
    if each.scored is not None:
        return each.scored(score)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        out = each.unlearn(model, params, request, key)
        if out.model != model:
            raise TypeError(
                f"keep_best({each.name}): an inference-time method replaces the model; "
                "score it outside."
            )
        before, after = score(model, params), score(model, out.params)
        better = after > jnp.where(jnp.isnan(before), -jnp.inf, before)
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), out.params, params)
        return Unlearned(model, kept, out.info)

    return Method(unlearn, each.needs, each.guarantee, f"keep_best({each.name})")
