"""Named sources of labelled examples: digits and diabetes embedded, MNIST and CIFAR from `.npz`
files, any TFDS directory.

    source  =  train + validation + test        each row with x, y and an id of its own

A `Source` is host NumPy: three splits with the same columns, an id for every example, names for
every label, and a digest of all of it. Tasks (`jaxunlearn.data.tasks`) cut it into what is
forgotten and what is retained. Nothing here touches the network, and nothing reads a pickle.

| name        | labels                       | needs                 | x                           |
|-------------|------------------------------|-----------------------|-----------------------------|
| `digits`    | `digit`*, `odd_even`, `loop` | scikit-learn          | (n, 8, 8), stored / 16      |
| `mnist`     | the ten digits               | `mnist.npz`           | (n, 28, 28) standardised    |
| `cifar10`   | the ten classes              | `cifar10.npz`         | (n, 32, 32, 3) standardised |
| `cifar100`  | `fine`*, `coarse`            | `cifar100[_part].npz` | (n, 32, 32, 3) standardised |
| `tfds:NAME` | as stored                    | a TFDS directory      | standardised where uint8    |
| `diabetes`  | a real target                | scikit-learn          | (n, 10) standardised        |

The label set with a star is the default. Digits lie in [0, 1]. How archives are laid out and images
scaled is said in `jaxunlearn.data.archives`, where TFDS directories lie in `jaxunlearn.data.tfds`;
what is a regression is in `jaxunlearn.data.regression`.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxunlearn.data.columns import check_columns
from jaxunlearn.naming import did_you_mean

Columns: TypeAlias = Mapping[str, np.ndarray]

SPLITS = ("train", "validation", "test")
_DTYPES = {"x": ("float32",), "y": ("int32",), "id": ("int32", "int64")}
_REAL = _DTYPES | {"y": ("float32",)}
_DIGITS_SIZES = (1200, 297, 300)
_DIGITS_LABELS: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "odd_even": ("even", "odd"),
    "loop": ("without loop", "with loop"),
}
_LOOPED_DIGITS = (0, 6, 8, 9)


class Target(NamedTuple):
    """What the number that a regression predicts means: target = mean + deviation * y."""

    name: str  # what it is called
    mean: float  # of the training targets, in their unit
    deviation: float  # > 0, likewise


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Labelled examples in three splits, on the host.

    Attributes:
      name: what reports call it.
      train, validation, test: column name -> array (n, ...), the same columns in each. `"x"`
        float32 (n, ...) finite; `"y"` int32 (n,) in [0, num_classes); `"id"` int32 or int64 (n,),
        unique over all three splits, in [0, 2**31) so that it survives as int32 on the device.
        Further columns are free, e.g. `"fine"`. A validation or test split may have no rows. The
        arrays are made read-only views.
      label_names: label column -> names of its values 0, 1, ...; has `"y"`, unless `target` is
        given.
      target: of a regression, whose `"y"` is float32 (n, 1), the target less its mean, in units of
        its deviation. None: `"y"` holds classes.

    Raises:
      TypeError, ValueError: a rule above is broken; the message names split, column and row.

    Example:
      >>> source = digits()
      >>> source.input_shape, source.num_classes, len(source.train["y"])
      ((8, 8), 10, 1200)
    """

    name: str
    train: Columns
    validation: Columns
    test: Columns
    label_names: Mapping[str, tuple[str, ...]]
    target: Target | None = None

    def __post_init__(self) -> None:
        real = self.target is not None
        if real == ("y" in self.label_names):
            need = "must not name 'y', since it has a real target" if real else "needs 'y'"
            raise ValueError(f"{self.name}: label_names {need}, has {sorted(self.label_names)}.")
        if self.target is not None and not 0 < self.target.deviation < np.inf:
            raise ValueError(
                f"{self.name}: the target needs a finite deviation > 0, got {self.target}."
            )
        for split in SPLITS:
            columns = {name: _read_only(column) for name, column in getattr(self, split).items()}
            object.__setattr__(self, split, columns)
            _check_split(f"{self.name}.{split}", columns, self.train, self.label_names, real)
        if len(self.train["y"]) == 0:
            raise ValueError(f"{self.name}.train has no rows.")
        ids = np.concatenate([getattr(self, split)["id"] for split in SPLITS])
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"{self.name}: ids must be unique over train, validation and test, but "
                f"{(counts > 1).sum()} occur more than once, the first is {values[counts > 1][0]}. "
                "Number the examples, for instance with np.arange."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the values of `"y"`; `ValueError` for a regression, which has none."""
        if self.target is not None:
            raise ValueError(f"{self.name} is a regression of {self.target.name}: no classes.")
        return self.label_names["y"]

    @property
    def num_classes(self) -> int:
        """How many values `"y"` may take."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives an example: its classes, or 1 of a regression."""
        return self.num_classes if self.target is None else 1

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns whose values have names; `"y"` is one of them."""
        return tuple(self.label_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train["x"].shape[1:]

    @functools.cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of every split's column names, dtypes, shapes and bytes, and of all
        label names.

        The name of the source is no part of it. Cost: one pass over the data (CIFAR-10: under 2 s),
        once.
        """
        state = hashlib.sha256()
        if self.target is not None:
            state.update(repr(("target", *self.target)).encode())
        for column, names in sorted(self.label_names.items()):
            state.update(repr(("names", column, tuple(names))).encode())
        for split in SPLITS:
            for name, column in sorted(getattr(self, split).items()):
                state.update(repr((split, name, column.dtype.str, column.shape)).encode())
                state.update(np.ascontiguousarray(column).data)
        return state.hexdigest()


def _read_only(column: Any) -> np.ndarray:
    view = np.asarray(column).view()
    view.flags.writeable = False
    return view


def _check_split(
    where: str,
    columns: Columns,
    train: Columns,
    label_names: Mapping[str, Sequence[str]],
    real: bool,
) -> None:
    """Every rule of `Source` that concerns one split."""
    missing = [name for name in ("x", "y", "id", *label_names) if name not in columns]
    if missing or set(columns) != set(train):
        raise ValueError(
            f"{where}: expected the columns x, y, id and those of train {sorted(train)} in every "
            f"split, got {sorted(columns)}."
        )
    check_columns(columns, where)
    for name, column in columns.items():
        if column.shape[1:] != train[name].shape[1:]:
            raise ValueError(
                f"{where}['{name}'] has rows of shape {column.shape[1:]}, in train "
                f"{train[name].shape[1:]}."
            )
        if column.dtype != train[name].dtype:
            raise TypeError(f"{where}['{name}'] is {column.dtype}, in train {train[name].dtype}.")
    for name, allowed in (_REAL if real else _DTYPES).items():
        if columns[name].dtype not in map(np.dtype, allowed):
            raise TypeError(
                f"{where}['{name}']: expected {' or '.join(allowed)}, got {columns[name].dtype}. "
                f"Use .astype(np.{allowed[0]}) if that loses nothing."
            )
    if real and columns["y"].shape[1:] != (1,):
        raise ValueError(f"{where}['y']: expected targets (n, 1), got {columns['y'].shape}.")
    limits = {"id": 2**31} | {name: len(names) for name, names in label_names.items()}
    for name, limit in limits.items():
        column = columns[name]
        if column.ndim != 1 or not np.issubdtype(column.dtype, np.integer):
            raise TypeError(
                f"{where}['{name}']: expected integers (n,), got {column.dtype} {column.shape}."
            )
        bad = (column < 0) | (column >= limit)
        if bad.any():
            raise ValueError(
                f"{where}['{name}'] must lie in [0, {limit}), but row {np.argmax(bad)} has "
                f"{column[np.argmax(bad)]}."
            )


def stratified_split(strata: np.ndarray, sizes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Row numbers of disjoint parts of given sizes, each with every stratum in its fair share
    (within one row).

    The rows of each stratum are shuffled and laid out evenly on [0, 1): row k of m at (k + 1/2) /
    m. All strata merged in this order are cut at the sizes. The shuffle sorts the raw 64-bit output
    of PCG64, a stream that NumPy promises never to change, so the split is the same in every
    version and on every machine.

    Args:
      strata: integers (n,), usually the labels.
      sizes: rows of each part; they add up to n.
      seed: of the shuffle.

    Returns:
      One sorted int64 array a part.

    Raises:
      ValueError: the sizes do not add up to n.

    Example:
      >>> [part.tolist() for part in stratified_split(np.array([0, 0, 0, 0, 1, 1]), [3, 3])]
      [[2, 3, 4], [0, 1, 5]]
    """
    n = len(strata)
    if sum(sizes) != n or min(sizes) < 0:
        raise ValueError(f"sizes must be >= 0 and add up to {n} rows, got {tuple(sizes)}.")
    shuffle = np.random.PCG64(seed).random_raw(n)
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    by_stratum = np.lexsort((shuffle, stratum))
    rank = np.empty(n)
    rank[by_stratum] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((shuffle, (rank + 0.5) / counts[stratum]))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def digits(labels: str = "digit") -> Source:
    """The 1,797 handwritten digits that come with scikit-learn: 1,200 train, 297 validation, 300
    test.

    The split is `stratified_split` by digit with seed 0 and does not depend on `labels`; ids are
    the rows of `sklearn.datasets.load_digits()`.

    | labels     | y                                            | further column    |
    |------------|----------------------------------------------|-------------------|
    | `digit`    | the digit                                    |                   |
    | `odd_even` | 0 even, 1 odd                                | `fine`: the digit |
    | `loop`     | 1 if the figure closes a loop: 0, 6, 8 and 9 | `fine`: the digit |

    A 4 counts as without loop: in this collection most of them are written open.

    Raises:
      ValueError: unknown `labels`.
      ModuleNotFoundError: scikit-learn is not installed.

    Example:
      >>> digits("loop").class_names, sorted(digits("loop").train)
      (('without loop', 'with loop'), ['fine', 'id', 'x', 'y'])
    """
    if labels not in _DIGITS_LABELS:
        raise ValueError(f"digits has no labels '{labels}'. {did_you_mean(labels, _DIGITS_LABELS)}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the source 'digits' comes with scikit-learn: pip install 'jaxunlearn[compare]'."
        ) from error
    bunch: Any = load_digits()
    digit = bunch.target.astype(np.int32)
    columns = {"id": np.arange(len(digit), dtype=np.int32), "fine": digit}
    columns["x"] = (bunch.images / 16).astype(np.float32)  # exact: stored values are 0, 1, ..., 16
    columns["y"] = {"digit": digit, "odd_even": digit % 2, "loop": np.isin(digit, _LOOPED_DIGITS)}[
        labels
    ].astype(np.int32)
    label_names = {"y": _DIGITS_LABELS[labels], "fine": _DIGITS_LABELS["digit"]}
    if labels == "digit":
        del columns["fine"], label_names["fine"]
    splits = [
        {name: column[rows] for name, column in columns.items()}
        for rows in stratified_split(digit, _DIGITS_SIZES)
    ]
    name = "digits" if labels == "digit" else f"digits:{labels}"
    return Source(name, *splits, label_names=label_names)


def thinned(source: Source, rows: int, *, seed: int = 0) -> Source:
    """The same source with at most that many training rows, a fixed random choice in stored order.

    Args:
      source: any source.
      rows: training rows to keep, >= 1; validation and test stay whole.
      seed: of the choice, >= 0.

    Returns:
      A source named "cifar10 (4000 rows)", or `source` itself where it has no more.

    Raises:
      ValueError: rows < 1.

    Example:
      >>> small = thinned(digits(), 100)
      >>> small.name, len(small.train["y"]), len(small.test["y"])
      ('digits (100 rows)', 100, 300)
    """
    if rows < 1:
        raise ValueError(f"{source.name}: expected at least 1 training row, got {rows}.")
    count = len(source.train["y"])
    if rows >= count:
        return source
    keep = np.sort(np.random.default_rng(seed).permutation(count)[:rows])
    train = {name: column[keep] for name, column in source.train.items()}
    return dataclasses.replace(source, name=f"{source.name} ({rows} rows)", train=train)


def load(name: str, *, data_dir: str | Path | None = None, labels: str | None = None) -> Source:
    """A source by name: `"digits"`, `"digits:odd_even"`, `"diabetes"`, `"mnist"`, `"cifar10"`,
    `"cifar100:coarse"`, `"tfds:NAME"`.

    Args:
      name: a name of this module's table; labels may follow a colon. Names are names, never paths.
      data_dir: folder of the data files; default the environment variable JAXUNLEARN_DATA.
      labels: the label set, where the source has several; the same as after the colon.

    Raises:
      ValueError: a path instead of a name, an unknown name or label set (names the nearest).
      FileNotFoundError: the data are not on this machine. Nothing is downloaded.

    Example:
      >>> load("digits:odd_even").class_names
      ('even', 'odd')
    """
    from jaxunlearn.data import archives, regression, tfds  # which build on this module

    if not re.fullmatch(r"\w[\w.-]*(:\w[\w.:-]*)?", name, re.ASCII) or ".." in name:
        raise ValueError(
            f"source {name!r}: expected a plain name such as 'digits' or 'tfds:mnist', not a path. "
            "The folder goes into data_dir."
        )
    base, _, suffix = name.partition(":")
    if base == "tfds":
        if not suffix or labels:
            raise ValueError(
                f"source {name!r}: expected 'tfds:NAME' and no labels, got labels={labels!r}."
            )
        return tfds.tfds_source(suffix, data_dir=data_dir)
    if suffix and labels and suffix != labels:
        raise ValueError(
            f"source {name!r} and labels={labels!r} contradict each other; give one of them."
        )
    chosen = [given for given in (suffix or labels,) if given]
    if base == "digits":
        return digits(*chosen)
    if base == "cifar100":
        return archives.cifar100(*chosen, data_dir=data_dir)
    if base == "diabetes":
        if chosen:
            raise ValueError(f"'diabetes' has one target only; '{chosen[0]}' is unknown.")
        return regression.diabetes()
    if base in ("mnist", "cifar10"):
        if chosen:
            raise ValueError(f"'{base}' has one set of labels only; '{chosen[0]}' is unknown.")
        return getattr(archives, base)(data_dir=data_dir)
    known = ("digits", "mnist", "cifar10", "cifar100", "tfds:NAME", "diabetes")
    raise ValueError(f"no source is called '{base}'. {did_you_mean(base, known)}")
