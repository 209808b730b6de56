"""An unlearning method is one value: a pure function and what it may read.

    Method.unlearn(model, params, request, key) -> Unlearned(model, params, info)

`method(...)` makes one from a plain function and puts a boundary around it. The function is handed a Request that holds
only what `needs` names; touching anything else raises `AccessError`, so that a method which calls itself
retain-free or label-free cannot cheat. `chain`, `masked` and `keep_best` take and return Methods.

| `needs` may name | what the method gets                                                    |
|------------------|-------------------------------------------------------------------------|
| forget, retain, adjacent | that field of the Request                                       |
| labels           | the column `"y"` of those Data, and with it `model.loss`                 |
| key              | the random key (without it the method must be deterministic)             |
| init, train, features | that function of the Model                                         |

What the boundary does, in order, to every method:

| situation                                     | result                                                        |
|-----------------------------------------------|---------------------------------------------------------------|
| wrong kinds of argument, a raw uint32 key     | `TypeError`                                                   |
| something in `needs` is absent or empty       | `ValueError` naming it                                        |
| the forget set is empty                       | params bit-identical, info `Nothing()`                        |
| NaN or Inf in params                          | `ValueError` naming the leaf                                  |
| labels outside [0, C)                         | `ValueError` naming the row                                   |
| forget and retain share rows                  | `ValueError`: by `"id"` if both have that column, else by content |
| `model.loss` is not per example               | `ValueError`                                                  |
| result of another tree, shape or dtype        | `TypeError` naming the leaf                                   |

Checks of values are host-side and are skipped inside `jit` and `vmap`, where values cannot be seen; checks of structure are
made everywhere.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory, Stream, as_data, is_traced
from jaxunlearn.losses import check_per_example
from jaxunlearn.model import Model, freeze_statistics, join_statistics, rebase, split_statistics
from jaxunlearn.typing import Array, Data, Key, Params, Score

EXACT_BITWISE = "exact-bitwise"
EMPIRICAL = "empirical"

_FIELDS = ("forget", "retain", "adjacent")
_MODEL_FUNCTIONS = ("init", "train", "features")
NEEDS = frozenset((*_FIELDS, *_MODEL_FUNCTIONS, "labels", "key"))
_UNLABELLED_COLUMNS = ("x", "id", "weight")


def exact(tolerance: float) -> str:
    """The guarantee "equals retraining to `tolerance`, tested"."""
    return f"exact({tolerance:g})"


def certified(epsilon: float, delta: float) -> str:
    """The guarantee "(epsilon, delta)-indistinguishable, assumptions checked at run time"."""
    return f"certified({epsilon:g}, {delta:g})"


def _strength(guarantee: str) -> int:
    level = guarantee.split("(")[0]
    order = ("empirical", "certified", "exact", "exact-bitwise")
    if level not in order:
        raise ValueError(
            f"guarantee must be one of {order} (see method.exact, method.certified), got {guarantee!r}."
        )
    return order.index(level)


class AccessError(RuntimeError):
    """A method read something that its `needs` does not name."""


class Request(NamedTuple):
    """What is to be forgotten and what may be looked at; each field is Data."""

    forget: Data
    retain: Data | None = None
    adjacent: Data | None = None  # the part of retain that resembles forget


class Unlearned(NamedTuple):
    """What a method returns; a pytree, so it can be vmapped."""

    model: Model  # the same one, except for inference-time methods
    params: Params
    info: Any  # arrays a person wants to see


class Nothing(NamedTuple):
    """Info of a request that asks for nothing: the empty forget set."""

    forgotten: int = 0


class Method(NamedTuple):
    """An unlearning method; see the module. Make one with `method`.

    Attributes:
      unlearn: (model, params, request, key) -> Unlearned, all arguments positional, guarded by the boundary.
      needs: what it reads, a subset of `NEEDS`.
      guarantee: "exact-bitwise", "exact(tol)", "certified(eps, delta)" or "empirical".
      name: for tables and errors.
      scored: if the method passes through several candidates, score -> the same method that returns the best one.
    """

    unlearn: Callable[[Model, Params, Request, Key], Unlearned]
    needs: frozenset[str]
    guarantee: str
    name: str
    scored: Callable[[Score], "Method"] | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Withheld:
    """Stands where something was taken away; any use of it raises."""

    what: str
    name: str
    needs: tuple[str, ...]

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise AccessError(
            f"{self.name} reads {self.what}, but its needs are {list(self.needs)}. "
            "Declare it in `needs`, or do not touch it."
        )

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._refuse()

    __call__ = __iter__ = __getitem__ = __contains__ = __len__ = __bool__ = _refuse


def method(
    function: Callable[[Model, Params, Request, Key], Unlearned],
    *,
    needs: Iterable[str],
    name: str,
    guarantee: str = EMPIRICAL,
    scored: Callable[[Score], Method] | None = None,
    whole: bool = False,
) -> Method:
    """A Method of a plain function, behind the boundary that this module describes.

    Args:
      function: (model, params, request, key) -> Unlearned, traceable when the Data are in-memory.
      needs: what it reads, from `NEEDS`.
      name: for tables and errors.
      guarantee: see `Method`.
      scored: see `Method`.
      whole: True if the function makes new params from nothing (retraining) and therefore works on running
        statistics too; otherwise it is handed the weights alone and cannot move them.

    Raises:
      ValueError: an unknown need or guarantee.
    """
    needs = frozenset(needs)
    if not needs <= NEEDS:
        raise ValueError(
            f"{name}: needs must be among {sorted(NEEDS)}, got {sorted(needs - NEEDS)} too."
        )
    _strength(guarantee)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        request = _check_kinds(name, model, request, key)
        _check_present(name, needs, model, request)
        if request.forget.num_examples == 0:
            return Unlearned(model, params, Nothing())
        _check_values(name, needs, model, params, request)
        seen, withheld = _strip(name, needs, request, key)
        if whole:
            out = function(_limit(name, needs, model), params, seen, withheld)
            out = out._replace(model=model)
        else:
            weights, statistics = split_statistics(model, params)
            inner = _limit(name, needs, freeze_statistics(model, statistics))
            out = function(inner, weights, seen, withheld)
            if out.model is inner:
                out = out._replace(
                    model=model, params=join_statistics(model, out.params, statistics)
                )
        if out.model is model:
            _check_same_structure(name, params, out.params)
        return out

    return Method(unlearn, needs, guarantee, name, scored)


def _check_kinds(name: str, model: Any, request: Any, key: Any) -> Request:
    if not isinstance(model, Model):
        raise TypeError(
            f"{name}: expected a jaxunlearn Model, got {type(model).__name__}; see from_nnx, from_linen."
        )
    if not isinstance(request, Request):
        raise TypeError(
            f"{name}: expected a Request(forget=..., retain=...), got {type(request).__name__}."
        )
    typed = isinstance(key, _Withheld) or (
        hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    )
    if not typed:
        raise TypeError(
            f"{name}: expected a typed key, jax.random.key(seed), got {getattr(key, 'dtype', type(key))}."
        )
    return Request(*(d if d is None or isinstance(d, _Withheld) else as_data(d) for d in request))


def _check_present(name: str, needs: frozenset[str], model: Model, request: Request) -> None:
    for field in _FIELDS:
        data = getattr(request, field)
        if field in needs and data is None:
            raise ValueError(
                f"{name} needs request.{field}, which is None. Give Request({field}=...)."
            )
        if field in needs and field != "forget" and data.num_examples == 0:
            raise ValueError(
                f"{name} needs request.{field}, which has no examples. If everything is to be forgotten, "
                "start from fresh parameters instead."
            )
    for function in _MODEL_FUNCTIONS:
        if function in needs and function != "train" and getattr(model, function) is None:
            raise ValueError(f"{name} needs model.{function}, which this model does not have.")


def _check_values(
    name: str, needs: frozenset[str], model: Model, params: Params, request: Request
) -> None:
    data = [getattr(request, field) for field in _FIELDS if field in needs]
    arrays = [d for d in data if isinstance(d, InMemory)]
    if "labels" in needs:
        for d in arrays[:1]:
            if "y" not in d:
                raise ValueError(
                    f"{name} needs labels, but the data has no column 'y', only {sorted(d.arrays)}."
                )
            check_per_example(model.loss, params, d.gather(jnp.arange(1)))
    if is_traced(params) or is_traced(arrays):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"{name}: params{jax.tree_util.keystr(path)} holds NaN or Inf. Was this model trained to divergence?"
            )
    for d in arrays:
        if "labels" in needs and jnp.issubdtype(d["y"].dtype, jnp.integer):
            _check_labels(name, model, params, d)
    if isinstance(request.forget, InMemory) and isinstance(request.retain, InMemory):
        check_disjoint(request.forget, request.retain)


def _check_labels(name: str, model: Model, params: Params, data: InMemory) -> None:
    shape = jax.eval_shape(model.outputs, params, data.gather(jnp.arange(1))).shape
    labels = np.asarray(data["y"])
    bad = (labels < 0) | (labels >= shape[-1])
    if len(shape) == labels.ndim + 1 and bad.any():
        row = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: labels must lie in [0, {shape[-1]}), the model's outputs, but row {row[0]} has {labels[row]}."
        )


def check_disjoint(forget: InMemory, retain: InMemory) -> None:
    """Raises `ValueError` if the two share rows: by `"id"` if both have it, else by the bytes of `"x"` (and `"y"`)."""
    if "id" in forget and "id" in retain:
        shared = np.intersect1d(np.asarray(forget["id"]), np.asarray(retain["id"]))
        if shared.size:
            raise ValueError(f"forget and retain overlap in {shared.size} ids, first {shared[0]}.")
        return
    columns = [c for c in ("x", "y") if c in forget and c in retain]
    seen = set(_row_hashes(forget, columns))
    for row, digest in enumerate(_row_hashes(retain, columns)):
        if digest in seen:
            raise ValueError(
                f"forget and retain overlap: row {row} of retain has the content of a forget row. "
                "If they are different examples, give both an 'id' column."
            )


def _row_hashes(data: InMemory, columns: list[str]) -> Iterable[bytes]:
    arrays = [np.ascontiguousarray(data[c]) for c in columns]
    for row in range(data.num_examples if columns else 0):
        yield hashlib.blake2b(b"".join(a[row].tobytes() for a in arrays), digest_size=16).digest()


def _strip(name: str, needs: frozenset[str], request: Request, key: Key) -> tuple[Request, Any]:
    declared = tuple(sorted(needs))
    fields = {}
    for field in _FIELDS:
        data = getattr(request, field)
        if field not in needs:
            data = _Withheld(f"request.{field}", name, declared)
        elif "labels" not in needs:
            data = without_labels(data)
        fields[field] = data
    return Request(**fields), key if "key" in needs else _Withheld("the key", name, declared)


def without_labels(data: Data) -> Data:
    """The same Data with the columns x, id and weight only."""
    if isinstance(data, InMemory):
        return data.drop(*(set(data.arrays) - set(_UNLABELLED_COLUMNS)))
    stream = (
        data
        if isinstance(data, Stream)
        else Stream(lambda: iter(data), data.num_examples, data.num_batches, _rows(data))
    )
    return dataclasses.replace(
        stream, transform=lambda b: {k: v for k, v in b.items() if k in _UNLABELLED_COLUMNS}
    )


def _rows(data: Data) -> int:
    return max((next(iter(b.values())).shape[0] for b in data), default=1)


def _limit(name: str, needs: frozenset[str], model: Model) -> Model:
    declared = tuple(sorted(needs))
    taken = {
        function: _Withheld(f"model.{function}", name, declared)
        for function in _MODEL_FUNCTIONS
        if function not in needs and getattr(model, function) is not None
    }
    return dataclasses.replace(model, **taken) if taken else model


def _check_same_structure(name: str, before: Params, after: Params) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"{name} returned params of another tree: expected {jax.tree.structure(before)}, "
            f"got {jax.tree.structure(after)}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        expected, came = (
            (jnp.shape(old), jnp.result_type(old)),
            (jnp.shape(new), jnp.result_type(new)),
        )
        if expected != came:
            raise TypeError(
                f"{name} changed params{jax.tree_util.keystr(path)} from {expected} to {came}."
            )


def _child_key(key: Any, index: int) -> Any:
    return key if isinstance(key, _Withheld) else jax.random.fold_in(key, index)


def chain(*methods: Method) -> Method:
    """One method after another: (m_k o ... o m_1)(params).

    `needs` is the union, the guarantee the weakest, info the tuple of infos. Each method still sees only what it
    needs itself, and gets the key `fold_in(key, its place)`. `chain()` is the identity.

    Example:
      >>> chain().needs
      frozenset()
    """
    needs = frozenset().union(*(m.needs for m in methods))
    guarantee = min((m.guarantee for m in methods), key=_strength, default=EXACT_BITWISE)
    name = " > ".join(m.name for m in methods) or "identity"

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        infos = []
        for index, each in enumerate(methods):
            model, params, info = each.unlearn(model, params, request, _child_key(key, index))
            infos.append(info)
        return Unlearned(model, params, tuple(infos))

    def scored(score: Score) -> Method:
        return chain(*(keep_best(each, score) for each in methods))

    return Method(unlearn, needs, guarantee, name, scored if methods else None)


def masked(each: Method, mask: Any) -> Method:
    """`each`, with only some leaves or entries allowed to move.

        theta' = where(mask, each(theta), theta)

    A frozen leaf is not merely put back at the end: the method never holds it (its model closes over it), so no weight
    decay, momentum, moving average or gradient norm can see it, and it comes back bit-identical.

    Args:
      each: any Method.
      mask: a tree of the params' structure, or a prefix of it, or a function params -> such a tree. Leaves are bools (the
        whole leaf) or bool arrays of the leaf's shape (entries). True moves. With running statistics the tree is that of the weights.

    Raises:
      ValueError: the mask does not fit the params.
      TypeError: a mask leaf is not boolean.

    Edge cases: mask all False gives the identity; all True gives `each`.
    """

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        weights, statistics = split_statistics(model, params)
        full = _full_mask(mask(weights) if callable(mask) else mask, weights)
        moving = jax.tree.map(lambda m, w: w if m is not False else None, full, weights)

        def expand(some: Params) -> Params:
            def choose(m: Any, w: Array, s: Any) -> Any:
                return w if m is False else s if m is True else jnp.where(m, s, w)

            chosen = jax.tree.map(choose, full, weights, some, is_leaf=lambda node: node is None)
            return join_statistics(model, chosen, statistics)

        def shrink(all_params: Params) -> Params:
            weights = split_statistics(model, all_params)[0]
            return jax.tree.map(lambda m, w: w if m is not False else None, full, weights)

        if not jax.tree.leaves(moving):
            return Unlearned(model, params, Nothing())
        inner = rebase(model, expand, shrink)
        inner = dataclasses.replace(inner, train=None)
        out = each.unlearn(inner, moving, request, key)
        if out.model is not inner:
            raise TypeError(
                f"masked({each.name}): an inference-time method replaces the model and has no leaves to mask."
            )
        return Unlearned(model, expand(out.params), out.info)

    def scored(score: Score) -> Method:
        return masked(keep_best(each, score), mask)

    return Method(unlearn, each.needs, EMPIRICAL, f"masked({each.name})", scored)


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

    Candidates are the params it starts from and, for gradient-trained methods, those after every epoch (for a chain,
    of every stage); for a one-shot method, its result. The score is (model, params) -> [], higher is better, and may
    read whatever it closes over: it is the user's own data, outside `needs`.

    Edge cases: a non-finite score never wins; ties keep the earlier candidate.
    """
    if each.scored is not None:
        return each.scored(score)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        out = each.unlearn(model, params, request, key)
        if out.model is not model:
            raise TypeError(
                f"keep_best({each.name}): an inference-time method replaces the model; score it outside."
            )
        better = score(model, out.params) > jnp.nan_to_num(score(model, params), nan=-jnp.inf)
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), out.params, params)
        return Unlearned(model, kept, out.info)

    return Method(unlearn, each.needs, each.guarantee, f"keep_best({each.name})")
