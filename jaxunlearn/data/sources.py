"""Named sources of labelled examples: digits embedded, MNIST and CIFAR from `.npz` files, any TFDS
directory.

    x = (u / 255 - mean_c) / std_c        u stored pixel, mean_c and std_c of channel c over the
    training split

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

The label set with a star is the default. Digits lie in [0, 1].
Scaling is fixed once per source, over its whole training split, forget rows included: original,
oracle and unlearned model all see the same inputs. Validation rows never enter it.

**Archives.** `<data_dir>/<name>/<name>.npz` or `<data_dir>/<name>.npz`, with `data_dir` the
argument or else the environment variable JAXUNLEARN_DATA. Members, for each split in (`train`,
`test`): `<split>_images` uint8 (n, H, W) or (n, H, W, C), or instead `<split>_residual` uint8 (3,
n, H, W); labels `<split>_labels`, for CIFAR-100 `<split>_fine` and `<split>_coarse`; optional names
`class_names`, `fine_names`, `coarse_names`. A residual is the image after a reversible filter that
makes it compress better: planes G, R - G, B - G, each replaced by its differences down the rows and
then along the columns, all modulo 256. The id of a training row is its place in the archive; test
rows continue the count.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Columns: TypeAlias = Mapping[str, np.ndarray]

SPLITS = ("train", "validation", "test")
MAX_ARCHIVE_BYTES = 2**31  # more than all of CIFAR-10, less than what a small machine chokes on
# What reading a damaged zip file can raise (NotImplementedError is a RuntimeError).
_DAMAGE = (
    *(ValueError, OSError, EOFError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, struct.error, lzma.LZMAError, zlib.error),
)
_DIGITS_SIZES = (1200, 297, 300)
_DIGITS_LABELS: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "odd_even": ("even", "odd"),
    "loop": ("without loop", "with loop"),
}
_LOOPED_DIGITS = (0, 6, 8, 9)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of `choices`, if any is near, and all of them.

    Example:
      >>> did_you_mean("minst", ["digits", "mnist"])
      "Did you mean 'mnist'? Known: digits, mnist."
    """
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=1)
    return (f"Did you mean '{near[0]}'? " if near else "") + f"Known: {', '.join(names)}."


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
      label_names: label column -> names of its values 0, 1, ...; always has `"y"`.

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

    def __post_init__(self) -> None:
        if "y" not in self.label_names:
            raise ValueError(f"{self.name}: label_names needs 'y', has {sorted(self.label_names)}.")
        for split in SPLITS:
            columns = {name: _read_only(column) for name, column in getattr(self, split).items()}
            object.__setattr__(self, split, columns)
            _check_split(f"{self.name}.{split}", columns, self.train, self.label_names)
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
        """Names of the values of `"y"`."""
        return self.label_names["y"]

    @property
    def num_classes(self) -> int:
        """How many values `"y"` may take."""
        return len(self.class_names)

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
    where: str, columns: Columns, train: Columns, label_names: Mapping[str, Sequence[str]]
) -> None:
    """Every rule of `Source` that concerns one split."""
    missing = [name for name in ("x", "y", "id", *label_names) if name not in columns]
    if missing or set(columns) != set(train):
        raise ValueError(
            f"{where}: expected the columns x, y, id and those of train {sorted(train)} in every "
            f"split, got {sorted(columns)}."
        )
    x, rows = columns["x"], len(columns["y"])
    for name, column in columns.items():
        if column.dtype == np.dtype(object):
            raise TypeError(f"{where}['{name}']: arrays of Python objects are refused.")
        if column.ndim == 0 or len(column) != rows or column.shape[1:] != train[name].shape[1:]:
            raise ValueError(
                f"{where}['{name}'] has shape {column.shape}; expected {rows} rows of shape "
                f"{train[name].shape[1:]}."
            )
        if column.dtype != train[name].dtype:
            raise TypeError(f"{where}['{name}'] is {column.dtype}, in train {train[name].dtype}.")
    if x.dtype != np.float32:
        raise TypeError(f"{where}['x']: expected float32, got {x.dtype}. Use x.astype(np.float32).")
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    if not finite.all():
        raise ValueError(
            f"{where}['x'] holds NaN or Inf in {(~finite).sum()} of {rows} rows, first at row "
            f"{np.argmin(finite)}."
        )
    if columns["y"].dtype != np.int32:
        raise TypeError(f"{where}['y']: expected int32 class numbers, got {columns['y'].dtype}.")
    if columns["id"].dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise TypeError(f"{where}['id']: expected int32 or int64, got {columns['id'].dtype}.")
    for name, limit in [
        ("id", 2**31),
        *((name, len(names)) for name, names in label_names.items()),
    ]:
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


def scale_images(
    train: np.ndarray, *others: np.ndarray, maximum: float = 255.0, standardise: bool = True
) -> tuple[np.ndarray, ...]:
    """Stored pixels as float32: u / maximum, then per channel less the mean and over the deviation
    of `train`.

    Args:
      train, *others: uint8 (n, H, W) or (n, H, W, C). Grey images have one channel.
      maximum: the stored value that becomes 1.
      standardise: False leaves u / maximum as it is. A constant channel is only centred.

    Returns:
      `train` and `others`, scaled, of the same shapes. Moments come from a 256-bin histogram, in
      float64.

    Example:
      >>> x, = scale_images(np.array([[[0, 255]]], np.uint8))
      >>> x.tolist()
      [[[-1.0, 1.0]]]
    """
    values = np.arange(256) / maximum
    channels = train.shape[3] if train.ndim == 4 else 1
    tables = np.tile(values, (channels, 1))
    for table, plane in zip(
        tables, np.moveaxis(train.reshape(*train.shape[:3], channels), 3, 0), strict=True
    ):
        if not standardise or plane.size == 0:
            continue
        pieces = np.array_split(plane, len(plane) // 4096 + 1)
        share = sum(np.bincount(piece.ravel(), minlength=256) for piece in pieces) / plane.size
        mean = share @ values
        table -= mean
        table /= np.sqrt(share @ (values - mean) ** 2) or 1.0
    tables = tables.astype(np.float32)
    channel = np.zeros((), np.int64) if train.ndim == 3 else np.arange(channels)
    return tuple(
        np.concatenate([tables[channel, piece] for piece in np.array_split(u, len(u) // 4096 + 1)])
        for u in (train, *others)
    )


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
    images, digit = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
    columns = {"id": np.arange(len(digit), dtype=np.int32), "fine": digit}
    (columns["x"],) = scale_images(images, maximum=16.0, standardise=False)
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


def read_npz(
    path: str | Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    max_bytes: int = MAX_ARCHIVE_BYTES,
) -> dict[str, np.ndarray]:
    """Members of an `.npz` archive, checked before anything of their size is allocated; no code can
    run.

    | archive                                        | what happens                              |
    |------------------------------------------------|-------------------------------------------|
    | not a zip file (a pickle, a broken download)   | `ValueError`: pickles are never read      |
    | a required member is absent                    | `ValueError` naming it, and what is there |
    | a member of Python objects                     | `ValueError`: refused                     |
    | header and stored size disagree                | `ValueError` before allocation            |
    | the members read exceed `max_bytes`            | `ValueError` before allocation            |
    | bytes flipped or missing                       | `ValueError` naming the member            |

    Args:
      path: the file.
      required, optional: member names without `.npy`.
      max_bytes: most that the members read may take together.

    Returns:
      member name -> array, the required ones and those optional ones that are there.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
        except _DAMAGE as error:
            raise ValueError(
                f"{path} is not a readable .npz archive ({error}). Pickles are never read: convert "
                "the data once, where you trust it, with np.savez(path, name=array, ...)."
            ) from error
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in required if name not in members]
        if missing:
            raise ValueError(f"{path}: members {missing} are missing; it has {sorted(members)}.")
        wanted = [name for name in (*required, *optional) if name in members]
        total = sum(members[name].file_size for name in wanted)
        if total > max_bytes:
            raise ValueError(f"{path} unpacks to {total} bytes; at most {max_bytes} are accepted.")
        arrays: dict[str, np.ndarray] = {}
        for name in wanted:
            try:
                with archive.open(members[name]) as stream:
                    _check_npy_header(stream, members[name].file_size)
                with archive.open(members[name]) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            except _DAMAGE as error:
                raise ValueError(f"{path}, member '{name}': {error}") from error
    return arrays


def _check_npy_header(stream: Any, file_size: int) -> None:
    """Refuse arrays of objects, and shapes that do not account for exactly the stored bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version} is not accepted; save it again with np.savez.")
    read_header: Callable[..., Any] = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is refused, since reading it can run code.")
    size = functools.reduce(lambda product, length: product * length, shape, dtype.itemsize)
    if min(shape, default=0) < 0 or size + stream.tell() != file_size:
        raise ValueError(
            f"its header announces {shape} {dtype}, {size} bytes, but "
            f"{file_size - stream.tell()} are stored."
        )


def unfilter(residual: np.ndarray) -> np.ndarray:
    """Undo the reversible image filter: uint8 (3, n, H, W) -> uint8 (n, H, W, 3), exactly.

    Differences are undone by running sums down the rows and along the columns, modulo 256; then the
    planes are G, R - G, B - G.

    Example:
      >>> unfilter(np.array([5, 250, 1], np.uint8).reshape(3, 1, 1, 1)).ravel().tolist()
      [255, 5, 6]
    """
    planes = np.cumsum(residual, axis=2, dtype=np.uint8)
    np.cumsum(planes, axis=3, dtype=np.uint8, out=planes)
    green = planes[0]
    return np.stack([green + planes[1], green, green + planes[2]], axis=-1)


def mnist(*, data_dir: str | Path | None = None, validation: float = 0.1) -> Source:
    """MNIST from `mnist.npz`. Arguments, ids and errors as for `cifar100`."""
    return _from_archive("mnist", {"y": "labels"}, {}, data_dir, validation)


def cifar10(*, data_dir: str | Path | None = None, validation: float = 0.1) -> Source:
    """CIFAR-10 from `cifar10.npz`. Arguments, ids and errors as for `cifar100`."""
    return _from_archive("cifar10", {"y": "labels"}, {"y": "class_names"}, data_dir, validation)


def cifar100(
    labels: str = "fine", *, data_dir: str | Path | None = None, validation: float = 0.1
) -> Source:
    """CIFAR-100, or a part of it, from `cifar100.npz` or `cifar100_part.npz`.

    Args:
      labels: `"fine"` (100 classes; the superclass is kept as column `"coarse"`) or `"coarse"` (20
        superclasses; the class is kept as column `"fine"`, which is what `subclass_task` wants).
      data_dir: where to look; default the environment variable JAXUNLEARN_DATA.
      validation: share of the archive's training rows that become the validation split, in [0, 1),
        stratified by class with seed 0. With 0 every training row stays, as published lists of
        indices expect.

    Raises:
      FileNotFoundError: nothing there; says where it looked and how to get the data.
      ValueError: unknown `labels`, a damaged archive, or members of the wrong shape.
    """
    columns = {"fine": ("fine", "coarse"), "coarse": ("coarse", "fine")}
    if labels not in columns:
        raise ValueError(f"cifar100 has no labels '{labels}'. {did_you_mean(labels, columns)}")
    main, other = columns[labels]
    names = {"y": f"{main}_names", other: f"{other}_names"}
    source = _from_archive("cifar100", {"y": main, other: other}, names, data_dir, validation)
    return source if labels == "fine" else dataclasses.replace(source, name="cifar100:coarse")


_ORIGINS = {
    "mnist": "http://yann.lecun.com/exdb/mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
}


def _find_archive(name: str, data_dir: str | Path | None, label_members: Iterable[str]) -> Path:
    root = data_dir or os.environ.get("JAXUNLEARN_DATA")
    files = (f"{name}/{name}.npz", f"{name}.npz", f"{name}/{name}_part.npz")
    places = [Path(root).expanduser() / file for file in files] if root else []
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places)) or "nowhere, since no folder was given"
    members = ", ".join(
        f"{s}_{m}={s}_{m}" for s in ("train", "test") for m in ("images", *label_members)
    )
    raise FileNotFoundError(
        f"no data for '{name}'. Looked for: {looked}. Give the folder as data_dir=... (command "
        "line: --data-dir) or in the environment variable JAXUNLEARN_DATA. Nothing is ever "
        f"downloaded: get the originals from {_ORIGINS[name]} and store them once with "
        f"np.savez_compressed('{name}.npz', {members}): images uint8 (n, H, W) or (n, H, W, C), "
        "labels integers (n,)."
    )


def _from_archive(
    name: str,
    label_members: Mapping[str, str],
    name_members: Mapping[str, str],
    data_dir: str | Path | None,
    validation: float,
) -> Source:
    """A Source from an archive; two mappings say column -> member of its labels, of their names."""
    path = _find_archive(name, data_dir, label_members.values())
    labels = [
        f"{split}_{member}" for split in ("train", "test") for member in label_members.values()
    ]
    kinds = ("images", "residual")
    optional = [f"{split}_{kind}" for split in ("train", "test") for kind in kinds]
    stored = read_npz(path, labels, [*optional, *name_members.values()])

    def pixels(split: str) -> np.ndarray:
        if f"{split}_images" not in stored and f"{split}_residual" not in stored:
            raise ValueError(f"{path}: expected a member {split}_images or {split}_residual.")
        filtered = f"{split}_images" not in stored
        u = stored.pop(f"{split}_residual" if filtered else f"{split}_images")
        if (
            u.dtype != np.uint8
            or (filtered and (u.ndim != 4 or len(u) != 3))
            or u.ndim not in (3, 4)
        ):
            raise ValueError(
                f"{path}: expected {split}_images uint8 (n, H, W) or (n, H, W, C), or "
                f"{split}_residual uint8 (3, n, H, W); got {u.dtype} {u.shape}."
            )
        return unfilter(u) if filtered else u

    def columns(split: str, u: np.ndarray, start: int) -> dict[str, np.ndarray]:
        out = {"u": u, "id": np.arange(start, start + len(u), dtype=np.int32)}
        for column, member in label_members.items():
            label = stored[f"{split}_{member}"]
            if label.shape != (len(u),) or not np.issubdtype(label.dtype, np.integer):
                raise ValueError(
                    f"{path}: expected {split}_{member} integers ({len(u)},), got {label.dtype} "
                    f"{label.shape}."
                )
            out[column] = label.astype(np.int32)
        return out

    train = columns("train", pixels("train"), 0)
    test = columns("test", pixels("test"), len(train["u"]))
    label_names = {}
    for column in label_members:
        count = 1 + max(int(part[column].max(initial=0)) for part in (train, test))
        names = stored.get(name_members.get(column, ""), np.arange(count))
        label_names[column] = tuple(str(word) for word in names)
    return image_source(name, train, None, test, label_names, validation=validation)


def image_source(
    name: str,
    train: dict[str, np.ndarray],
    validation_columns: dict[str, np.ndarray] | None,
    test: dict[str, np.ndarray],
    label_names: Mapping[str, tuple[str, ...]],
    *,
    validation: float = 0.1,
    maximum: float = 255.0,
    standardise: bool = True,
) -> Source:
    """A Source from columns with raw inputs `"u"` in place of `"x"`.

    uint8 inputs are scaled as `scale_images` says; inputs of any other dtype are only made float32.
    Without `validation_columns`, the share `validation` of the training rows is split off,
    stratified by `"fine"` where there is such a column and else by `"y"`.

    Raises:
      ValueError: `validation` outside [0, 1), or anything `Source` refuses.
    """
    if not 0 <= validation < 1:
        raise ValueError(
            f"validation: expected a share of the training rows in [0, 1), got {validation}."
        )
    if validation_columns is None:
        rows = len(train["y"])
        held_out = round(validation * rows)
        keep, hold = stratified_split(train.get("fine", train["y"]), (rows - held_out, held_out))
        validation_columns = {key: column[hold] for key, column in train.items()}
        train = {key: column[keep] for key, column in train.items()}
    splits = [dict(train), dict(validation_columns), dict(test)]
    raw = [split.pop("u") for split in splits]
    if raw[0].dtype == np.uint8 and raw[0].ndim in (3, 4):
        scaled = scale_images(*raw, maximum=maximum, standardise=standardise)
    else:
        scaled = tuple(u.astype(np.float32) for u in raw)
    for split, x in zip(splits, scaled, strict=True):
        split["x"] = x
    return Source(name, *splits, label_names=dict(label_names))


def load(name: str, *, data_dir: str | Path | None = None, labels: str | None = None) -> Source:
    """A source by name: `"digits"`, `"digits:odd_even"`, `"mnist"`, `"cifar10"`,
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
    if not re.fullmatch(r"\w[\w.-]*(:\w[\w.:-]*)?", name, re.ASCII) or ".." in name:
        raise ValueError(
            f"source {name!r}: expected a plain name such as 'digits' or 'tfds:mnist', not a path. "
            "The folder goes into data_dir."
        )
    base, _, suffix = name.partition(":")
    several = {"digits": digits, "cifar100": functools.partial(cifar100, data_dir=data_dir)}
    single = {"mnist": mnist, "cifar10": cifar10}
    known = ("digits", "mnist", "cifar10", "cifar100", "tfds:NAME")
    if base == "tfds":
        from jaxunlearn.data.tfds import tfds_source  # which itself builds on this module

        if not suffix or labels:
            raise ValueError(
                f"source {name!r}: expected 'tfds:NAME' and no labels, got labels={labels!r}."
            )
        return tfds_source(suffix, data_dir=data_dir)
    if suffix and labels and suffix != labels:
        raise ValueError(
            f"source {name!r} and labels={labels!r} contradict each other; give one of them."
        )
    chosen = suffix or labels
    if base in several:
        return several[base](chosen) if chosen else several[base]()
    if base in single:
        if chosen:
            raise ValueError(f"source '{base}' has one set of labels only; '{chosen}' is unknown.")
        return single[base](data_dir=data_dir)
    raise ValueError(f"no source is called '{base}'. {did_you_mean(base, known)}")
