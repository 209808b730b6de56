"""Streams of batches: arrays in memory, lists of batches, grain data sets.

    InMemory = {"x": (n, ...), "y": (n,), ...}    batches of `batch_size` rows, the last padded

In-memory Data is a registered pytree: its arrays travel through `jit` and `vmap`, its batch size is
static. That is what makes whole unlearning runs traceable. Everything else streams from the host
through the same jitted step. Every Data can be iterated any number of times and yields the same
batches each time.

Padding has weight 0 and holds copies of rows that count, never zeros, so that a loss which is
singular at some made-up input cannot send a NaN through its gradient. Rows that come with weight 0
reach a model the same way: as copies of a row that counts.

Columns are checked here, at the boundary: see the table of `jaxunlearn.data.columns`. A generator
or another one-shot iterator is refused by name, because it could be read only once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.columns import check_columns
from jaxunlearn.data.columns import is_traced as is_traced
from jaxunlearn.typing import Array, Batch, Data

_ENDLESS = 2**40  # `grain.MapDataset.repeat()` reports sys.maxsize rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """Columns that fit in device memory; make one with `in_memory`.

    Attributes:
      arrays: column name -> array (n, ...). A pytree leaf each.
      batch_size: rows per batch, static.
    """

    arrays: dict[str, Array]
    batch_size: int = dataclasses.field(metadata={"static": True})

    @property
    def num_examples(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    @property
    def num_batches(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def __getitem__(self, name: str) -> Array:
        if name not in self.arrays:
            raise KeyError(f"no column '{name}' in this data; it has {sorted(self.arrays)}.")
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[Batch]:
        """Batches in stored order, all of min(batch_size, n) rows, the last one padded."""
        for index in range(self.num_batches):
            yield self.batch(index)

    def batch(self, index: int | Array, order: Array | None = None) -> Batch:
        """Batch `index` of a pass in `order`, a permutation of the rows; None is stored order."""
        n = self.num_examples
        rows = min(self.batch_size, n)
        places = index * rows + jnp.arange(rows)
        indices = places if order is None else order[places % n]
        return self.gather(indices, jnp.maximum((index + 1) * rows - n, 0))

    def gather(self, indices: Array, padding: int | Array = 0) -> Batch:
        """Rows `indices` (b,) modulo n, the last `padding` of them with weight 0."""
        rows = indices % self.num_examples
        real = jnp.arange(indices.shape[0]) < indices.shape[0] - padding
        if "weight" in self:
            weight = jnp.where(real, self["weight"][rows], 0)
            rows = jnp.where(weight > 0, rows, rows[jnp.argmax(weight > 0)])
        else:
            weight = real.astype(jnp.float32)
        return {name: column[rows] for name, column in self.arrays.items()} | {"weight": weight}

    def take(self, indices: Any) -> "InMemory":
        """Some rows, in the order given, as Data of their own.

        Args:
          indices: (k,) integers in [-n, n), repeats allowed, or a boolean mask (n,); concrete.

        Raises:
          IndexError: an index outside the rows, or a mask of another length. (JAX alone would
            silently take the last row instead.)
          TypeError: neither integers nor booleans.
        """
        n, places = self.num_examples, np.asarray(indices)
        if places.dtype == bool and places.shape == (n,):
            places = np.flatnonzero(places)
        elif places.dtype == bool:
            raise IndexError(
                f"take: a mask needs shape ({n},), one entry a row, got {places.shape}."
            )
        elif places.size == 0:
            places = np.zeros(0, np.int32)
        elif not np.issubdtype(places.dtype, np.integer) or places.ndim != 1:
            raise TypeError(
                f"take: expected integers (k,) or a boolean mask ({n},), "
                f"got {places.dtype} of shape {places.shape}."
            )
        outside = (places < -n) | (places >= n)
        if outside.any():
            raise IndexError(
                f"take: index {places[outside][0]} is outside the {n} rows of this data."
            )
        return InMemory({k: v[places] for k, v in self.arrays.items()}, self.batch_size)

    def replace(self, **columns: Any) -> "InMemory":
        """The same rows with columns replaced or added; checked as by `in_memory`."""
        return in_memory(self.arrays | columns, self.batch_size)

    def drop(self, *names: str) -> "InMemory":
        """The same rows without some columns; names that are not there are ignored."""
        kept = {k: v for k, v in self.arrays.items() if k not in names}
        if not kept:
            raise ValueError(f"drop: dropping {sorted(names)} would leave no column.")
        return InMemory(kept, self.batch_size)


def in_memory(columns: Mapping[str, Any], batch_size: int = 256) -> InMemory:
    """Arrays that share a leading axis, as Data.

    Args:
      columns: name -> array (n, ...); `"x"` inputs, `"y"` labels or targets, optionally `"weight"`
        (n,) >= 0 and `"id"` (n,) integers. Other columns travel along.
      batch_size: rows per batch, >= 1.

    Returns:
      `InMemory`, a pytree whose leaves are the columns.

    Raises:
      TypeError, ValueError: see the table of `jaxunlearn.data.columns`.

    Example:
      >>> data = in_memory({"x": np.zeros((5, 2)), "y": np.arange(5)}, batch_size=2)
      >>> data.num_examples, [int(batch["weight"].sum()) for batch in data]
      (5, [2, 2, 1])
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size!r}.")
    check_columns(columns, "in_memory")
    return InMemory({name: jnp.asarray(column) for name, column in columns.items()}, batch_size)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Data read from the host; make one with `from_batches`, `from_grain` or `as_data`.

    Attributes:
      open: starts a new pass over the Batches, NumPy or JAX arrays.
      num_examples: rows of one pass whose weight is not 0.
      num_batches: batches of one pass.
      batch_size: rows of the longest batch; shorter ones are padded to it, so that one compiled
        step serves all.
      transform: a function of a padded Batch, applied to every one (the boundary of a Method uses
        it to take labels away).
    """

    open: Callable[[], Iterator[Batch]]
    num_examples: int
    num_batches: int
    batch_size: int
    transform: Callable[[Batch], Batch] = lambda batch: batch

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.open()):
            rows = check_columns(batch, f"batch {index}")
            if rows > self.batch_size:
                raise ValueError(
                    f"batch {index} has {rows} rows, more than batch_size={self.batch_size}."
                )
            yield self.transform(_pad(batch, rows, self.batch_size))

    def drop(self, *names: str) -> "Stream":
        """The same stream without some columns; names that are not there are ignored."""
        before = self.transform

        def transform(batch: Batch) -> Batch:
            return {k: v for k, v in before(batch).items() if k not in names}

        return dataclasses.replace(self, transform=transform)


def _weight(batch: Batch, rows: int) -> np.ndarray:
    return np.asarray(batch.get("weight", np.ones(rows, np.float32)))


def _pad(batch: Batch, rows: int, batch_size: int) -> Batch:
    """`batch` with `batch_size` rows; those of weight 0 are copies of rows that count, in turn."""
    weight = _weight(batch, rows)
    weight = np.concatenate([weight, np.zeros(batch_size - rows, weight.dtype)])
    real = np.flatnonzero(weight) if weight.any() else np.arange(rows)
    source = np.where(weight > 0, np.arange(batch_size), np.resize(real, batch_size))
    padded = {
        name: jnp.asarray(
            column[source] if rows else np.zeros((batch_size, *column.shape[1:]), column.dtype)
        )
        for name, column in batch.items()
    }
    return padded | {"weight": jnp.asarray(weight)}


def _measured(batches: Iterable[Batch], what: str) -> Stream:
    """`batches` as a Stream, after one pass that counts and checks every one of them."""
    largest, examples, count = 0, 0, 0
    for batch in batches:
        rows = check_columns(batch, f"{what} {count}")
        examples += int(np.count_nonzero(_weight(batch, rows)))
        largest, count = max(largest, rows), count + 1
    return Stream(lambda: iter(batches), examples, count, largest)


def from_batches(batches: Sequence[Batch]) -> Stream:
    """A list or tuple of Batches as Data; the longest sets `batch_size`, shorter ones are padded.

    Raises:
      TypeError: `batches` is a generator or another one-shot iterator.
      ValueError: the list is empty, or a batch breaks a rule of `jaxunlearn.data.columns`.

    Example:
      >>> data = from_batches([{"x": np.ones((2, 3))}, {"x": np.ones((1, 3))}])
      >>> data.num_examples, data.batch_size
      (3, 2)
    """
    _refuse_iterator(batches)
    if len(batches) == 0:
        raise ValueError("from_batches: expected at least one batch, got an empty list.")
    return _measured(batches, "batch")


def from_grain(dataset: Any) -> Stream:
    """A grain data set whose elements are Batches, as Data.

    Args:
      dataset: `grain.MapDataset` or `grain.IterDataset` after `.batch(...)`, finite. Shuffling is
        grain's: `grain.MapDataset.source(rows).seed(0).shuffle().batch(64)`; every pass then has
        the same order. One pass is made here, to count and check the rows.

    Raises:
      TypeError: `dataset` can be read only once.
      ValueError: `dataset` yields no batch, or repeats without end.
    """
    _refuse_iterator(dataset)
    if hasattr(dataset, "__len__") and len(dataset) > _ENDLESS:
        raise ValueError(
            "from_grain: the data set repeats without end. Leave `.repeat()` out; training asks "
            "for as many passes as it needs."
        )
    stream = _measured(dataset, "grain batch")
    if stream.num_batches == 0:
        raise ValueError(
            "from_grain: the data set yields no batch; was `.batch(n)` called on an empty source?"
        )
    return stream


def concatenate(*parts: Data) -> InMemory | Stream:
    """All rows of `parts`, in order, with the columns that every part has.

    A part without `"weight"` counts every row 1. In-memory parts become one in-memory Data (with
    the first part's batch size), which `fit` shuffles as a whole. If any part streams, the result
    streams the parts one after another.

    Raises:
      ValueError: no part, no common column, or a column whose rows differ in shape or dtype.
    """
    data = [as_data(part) for part in parts]
    data = [part for part in data if isinstance(part, InMemory) or part.num_batches]
    heads = [part.arrays if isinstance(part, InMemory) else next(iter(part)) for part in data]
    weighted = any("weight" in head for head in heads)
    shared = [c for c in (heads[0] if heads else ()) if all(c in head for head in heads)]
    shared = [c for c in shared if c != "weight"]
    if not shared:
        raise ValueError(
            "concatenate: expected parts with a column in common, "
            f"got {[sorted(h) for h in heads]}."
        )
    for name in shared:
        kinds = {(head[name].shape[1:], str(head[name].dtype)) for head in heads}
        if len(kinds) > 1:
            raise ValueError(
                f"concatenate: the rows of column '{name}' must have one shape and dtype, "
                f"got {sorted(kinds)}."
            )
    arrays = [part for part in data if isinstance(part, InMemory)]
    if len(arrays) == len(data):
        columns = {name: jnp.concatenate([part[name] for part in arrays]) for name in shared}
        if weighted:
            ones = [jnp.ones(part.num_examples, jnp.float32) for part in arrays]
            weights = [p.arrays.get("weight", one) for p, one in zip(arrays, ones, strict=True)]
            columns["weight"] = jnp.concatenate(weights)
        return InMemory(columns, arrays[0].batch_size)

    def open() -> Iterator[Batch]:
        for part in data:
            for batch in part:
                yield {name: batch[name] for name in (*shared, "weight")}

    rows = max(part.batch_size for part in data if part.num_batches)
    return Stream(open, sum(p.num_examples for p in data), sum(p.num_batches for p in data), rows)


def as_data(data: Any, batch_size: int = 256) -> InMemory | Stream:
    """Whatever can be read as Data, as `InMemory` or `Stream`.

    | given                                            | becomes                                |
    |--------------------------------------------------|----------------------------------------|
    | `InMemory`, `Stream`                             | itself                                 |
    | a mapping of arrays                              | `in_memory(data, batch_size)`          |
    | a list or tuple of batches                       | `from_batches(data)`                   |
    | a grain data set                                 | `from_grain(data)`                     |
    | any other object with the three members of `Data` | a `Stream`, after one pass over it      |
    | a generator, or anything else                    | `TypeError`                            |
    """
    if isinstance(data, InMemory | Stream):
        return data
    if isinstance(data, Mapping):
        return in_memory(data, batch_size)
    if isinstance(data, list | tuple):
        return from_batches(data)
    _refuse_iterator(data)
    if type(data).__module__.split(".")[0] == "grain":
        return from_grain(data)
    if isinstance(data, Data):
        return _measured(data, "batch")
    raise TypeError(
        "expected Data: a mapping of arrays, a list of batches, a grain data set, or an object "
        f"with `num_examples`, `num_batches` and `__iter__`; got {type(data).__name__}."
    )


def in_batches(data: Any, batch_size: int | None) -> InMemory | Stream:
    """The same Data in batches of another size; None, and a stream, keep their own.

    Example:
      >>> in_batches({"x": np.zeros((5, 2))}, 2).num_batches
      3
    """
    data = as_data(data)
    if batch_size is None or not isinstance(data, InMemory):
        return data
    return dataclasses.replace(data, batch_size=batch_size)


def _refuse_iterator(data: Any) -> None:
    if isinstance(data, Iterator):
        raise TypeError(
            f"a {type(data).__name__} can be read only once, but training passes over its data "
            "many times. Give a list of batches, or arrays through jaxunlearn.data.in_memory."
        )
