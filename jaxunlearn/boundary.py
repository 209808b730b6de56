"""The boundary around every Method: what is looked at before and after, and what is taken away.

`jaxunlearn.method` says what happens when; here is how. Everything raises on the host, while
tracing or before anything is compiled.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.duplicates import row_hashes
from jaxunlearn.data.streams import InMemory, Stream, as_data, is_traced
from jaxunlearn.losses import check_labels, check_per_example, num_classes
from jaxunlearn.model import Model
from jaxunlearn.typing import Batch, Data, Params

FIELDS = ("forget", "retain", "adjacent", "held_out")
MODEL_FUNCTIONS = ("init", "train", "features", "hidden", "resume")
NEEDS = frozenset((*FIELDS, *MODEL_FUNCTIONS, "labels", "key"))
_UNLABELLED_COLUMNS = ("x", "id", "weight")


class AccessError(RuntimeError):
    """A method read something that its `needs` does not name."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Withheld:
    """Stands where something was taken away; any use of it raises `AccessError`."""

    what: str
    name: str
    needs: tuple[str, ...]

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise _refusal(self.name, self.what, self.needs)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._refuse()

    __call__ = __iter__ = __getitem__ = __contains__ = __len__ = __bool__ = _refuse


def _refusal(name: str, what: str, needs: Iterable[str]) -> AccessError:
    return AccessError(
        f"{name} reads {what}, but its needs are {sorted(needs)}. "
        "Declare it in `needs`, or do not touch it."
    )


# ------------------------------------------------------------------------------- what comes in


def is_empty(data: Data | None) -> bool:
    """True if it has no rows, or (where that can be seen) none of positive weight."""
    if data is None or isinstance(data, Withheld):
        return False
    if isinstance(data, InMemory) and "weight" in data and not is_traced(data["weight"]):
        return not np.any(np.asarray(data["weight"]) > 0)
    return data.num_examples == 0


def check_present(name: str, needs: frozenset[str], model: Model, request: Any) -> None:
    """Raises `ValueError` if something in `needs` is absent, or a needed field is empty."""
    for field in needs.intersection(FIELDS):
        data = getattr(request, field)
        if data is None:
            raise ValueError(
                f"{name} needs request.{field}, which is None. Give Request({field}=...)."
            )
        if field != "forget" and is_empty(data):
            raise ValueError(
                f"{name} needs request.{field}, which has no examples. If everything is to be "
                "forgotten, start from fresh parameters instead."
            )
    for function in needs.intersection(("init", "features")):
        if getattr(model, function) is None:
            raise ValueError(f"{name} needs model.{function}, which this model does not have.")


def check_values(
    name: str, needs: frozenset[str], model: Model, params: Params, request: Any
) -> Any:
    """The request, once its values are checked; its streams check their labels when read."""
    needed = {f: getattr(request, f) for f in FIELDS if f in needs}
    if "labels" in needs:
        guarded = {
            field: _check_labels(name, model, params, data)
            for field, data in needed.items()
            if isinstance(data, InMemory | Stream)
        }
        request = request._replace(**guarded)
    if not is_traced(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
            with jax.ensure_compile_time_eval():  # concrete params may be closed over by a trace
                finite = not floating or bool(jnp.isfinite(leaf).all())
            if not finite:
                raise ValueError(
                    f"{name}: params{jax.tree_util.keystr(path)} holds NaN or Inf. "
                    "Was this model trained to divergence?"
                )
    for field in ("retain", *({"held_out"} & needs)):
        both = request.forget, getattr(request, field)
        if all(isinstance(data, InMemory) for data in both) and not is_traced(both):
            check_disjoint(*both, name=field)
    return request


def _check_labels(name: str, model: Model, params: Params, data: InMemory | Stream) -> Data:
    """The same data, its labels checked now (in memory) or as they are read (streams)."""
    example = data.gather(jnp.arange(1)) if isinstance(data, InMemory) else next(iter(data))
    if "y" not in example:
        columns = sorted(set(example) - {"weight"})
        raise ValueError(f"{name} needs labels, but the data has no column 'y', only {columns}.")
    check_per_example(model.loss, params, example)
    classes = num_classes(model.outputs, params, example)
    if classes is None:
        return data  # targets, not classes

    def checked(columns: Batch) -> Batch:
        check_labels(name, columns, classes)
        return columns

    if isinstance(data, InMemory):
        if not is_traced(data):
            checked(data.arrays)
        return data
    before = data.transform
    return dataclasses.replace(data, transform=lambda batch: checked(before(batch)))


def check_disjoint(forget: InMemory, other: InMemory, name: str = "retain") -> None:
    """Raises `ValueError` if the forget set and the field `name` share rows of positive weight.

    Rows are told apart by `"id"` if both have that column, else by the bytes of `"x"` (and `"y"`).
    """
    if "id" in forget and "id" in other:
        first, second = (np.asarray(d["id"])[_counting(d)] for d in (forget, other))
        shared = np.intersect1d(first, second)
        if shared.size:
            raise ValueError(f"forget and {name} overlap in {shared.size} ids, first {shared[0]}.")
        return
    columns = [c for c in ("x", "y") if c in forget and c in other]
    seen = set(_contents(forget, columns))
    for place, content in enumerate(_contents(other, columns)):
        if content in seen:
            row = _counting(other)[place]
            raise ValueError(
                f"forget and {name} overlap: row {row} of {name} has the content of a forget row. "
                "If they are different examples, give both an 'id' column."
            )


def _counting(data: InMemory) -> np.ndarray:
    """(m,) the rows of positive weight."""
    weight = np.asarray(data["weight"]) if "weight" in data else np.ones(data.num_examples)
    return np.flatnonzero(weight > 0)


def _contents(data: InMemory, columns: list[str]) -> list[bytes]:
    return row_hashes(*(np.asarray(data[c])[_counting(data)] for c in columns))


# ----------------------------------------------------------------------------- what is taken away


def strip(name: str, needs: frozenset[str], request: Any, key: Any) -> tuple[Any, Any]:
    """(request, key) with everything withheld that `needs` does not name."""
    declared = tuple(sorted(needs))
    fields = {}
    for field in FIELDS:
        data = getattr(request, field)
        if field not in needs:
            data = Withheld(f"request.{field}", name, declared)
        elif "labels" not in needs and not isinstance(data, Withheld):
            data = without_labels(data)
        fields[field] = data
    return request._replace(**fields), key if "key" in needs else Withheld(
        "the key", name, declared
    )


def without_labels(data: Data) -> Data:
    """The same Data with the columns x, id and weight only."""
    if isinstance(data, InMemory):
        return data.drop(*(set(data.arrays) - set(_UNLABELLED_COLUMNS)))
    stream = as_data(data)
    assert isinstance(stream, Stream)
    before = stream.transform
    return dataclasses.replace(
        stream,
        transform=lambda b: {k: v for k, v in before(b).items() if k in _UNLABELLED_COLUMNS},
    )


@contextmanager
def labels_explained(name: str, needs: frozenset[str]) -> Iterator[None]:
    """The `KeyError` of a method that looks for labels it did not declare, as `AccessError`."""
    try:
        yield
    except KeyError as error:
        if "labels" in needs or "'y'" not in str(error):
            raise
        raise _refusal(name, "the labels 'y'", needs) from error


def limit(name: str, needs: frozenset[str], model: Model) -> Model:
    """The model without the functions that `needs` does not name."""
    declared = tuple(sorted(needs))
    taken = {
        function: Withheld(f"model.{function}", name, declared)
        for function in MODEL_FUNCTIONS
        if function not in needs and getattr(model, function) is not None
    }
    return dataclasses.replace(model, **taken) if taken else model


# ------------------------------------------------------------------------------------ what goes out


def check_same_structure(name: str, before: Params, after: Params) -> None:
    """Raises `TypeError` unless both are one tree with leaves of the same shapes and dtypes."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"{name} returned params of another tree: expected {jax.tree.structure(before)}, "
            f"got {jax.tree.structure(after)}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        expected = jnp.shape(old), jnp.result_type(old)
        came = jnp.shape(new), jnp.result_type(new)
        if expected != came:
            raise TypeError(
                f"{name} changed params{jax.tree_util.keystr(path)} from shape {expected[0]}, "
                f"{expected[1]} to shape {came[0]}, {came[1]}."
            )
