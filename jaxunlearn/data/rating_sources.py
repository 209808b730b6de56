"""Named sources of ratings: planted ones embedded, MovieLens from a folder, any TFDS directory.

    source  =  train + test        the same users and items, each user's latest fifth held out

| name                     | looked for under `data_dir` and `data_dir/movielens`               |
|--------------------------|--------------------------------------------------------------------|
| `ratings`                | nothing: `low_rank_ratings`, 300 users and 200 items                |
| `movielens:100k`         | `ml100k.npz`, `ml-100k/u.data`                                     |
| `movielens:latest_small` | `ml_latest_small.npz`, `ml-latest-small/ratings.csv`               |
| `movielens:1m`           | `ml1m.npz`, `ml-1m/ratings.dat`                                    |
| `movielens`              | the first of these that is there                                   |
| `tfds:NAME/CONFIG`       | a TFDS directory such as `movielens/100k-ratings/0.1.1`            |

`:implicit` after a name makes feedback of it: `ratings:implicit` has counts of its own, elsewhere
every entry becomes a count of 1. The `.npz` members are `user`, `item` (integers or text), `rating`
and `timestamp` (integers); the other files are GroupLens's own, tab, comma or `::` between user,
item, rating and time. Text is parsed as numbers and nothing else; nothing is downloaded.

MovieLens is not ours to pass on: get it from https://grouplens.org/datasets/movielens.
"""

import dataclasses
import functools
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.archives import MAX_ARCHIVE_BYTES, read_npz
from jaxunlearn.data.low_rank import low_rank_ratings
from jaxunlearn.data.ratings import Ratings, ratings
from jaxunlearn.data.tfds import _find_directory, _refuse_foreign_features
from jaxunlearn.data.time_splits import time_split
from jaxunlearn.naming import closest, did_you_mean

KINDS = ("explicit", "implicit")
_MOVIELENS = {  # set -> its files; the delimiter of GroupLens's own
    "100k": ("ml100k.npz", "ml-100k/u.data", "\t"),
    "latest_small": ("ml_latest_small.npz", "ml-latest-small/ratings.csv", ","),
    "1m": ("ml1m.npz", "ml-1m/ratings.dat", "::"),
}
_NAMES = ("ratings", "movielens")
_FEATURES = ("user_id", "movie_id", "user_rating", "timestamp")  # of TFDS's movielens
_EMBEDDED: dict[str, Any] = {
    "users": 300,
    "items": 200,
    "rank": 6,
    "density": 0.1,
    "noise": 0.3,
    "seed": 0,
}


@dataclasses.dataclass(frozen=True, eq=False)
class RatingSource:
    """Ratings in two parts over the same users and items.

    Attributes:
      name: what reports call it.
      train, test: no pair of user and item is in both; test may be empty.
      kind: `"explicit"` (ratings, observed entries only count) or `"implicit"` (counts > 0; what
        was not seen counts too).
      words: where it comes from, for people.

    Raises:
      ValueError: a rule above is broken; the message names the row.
    """

    name: str
    train: Ratings
    test: Ratings
    kind: str
    words: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"{self.name}: kind='{self.kind}' is unknown. {did_you_mean(self.kind, KINDS)}"
            )
        if not len(self.train):
            raise ValueError(f"{self.name}.train has no entries.")
        a, b = self.train, self.test
        if not (
            (a.users, a.items) == (b.users, b.items)
            and np.array_equal(a.user_ids, b.user_ids)
            and np.array_equal(a.item_ids, b.item_ids)
        ):
            raise ValueError(
                f"{self.name}: train and test must have the same users and items; cut them from "
                "one Ratings with time_split or take."
            )
        keys = [part.user.astype(np.int64) * part.items + part.item for part in (a, b)]
        shared = np.isin(keys[1], keys[0])
        if shared.any():
            row = int(np.argmax(shared))
            raise ValueError(
                f"{self.name}: {int(shared.sum())} test entries are in train too, the first is row "
                f"{row}, user {b.user_ids[b.user[row]]} and item {b.item_ids[b.item[row]]}."
            )
        for split, part in (("train", a), ("test", b)):
            bad = part.value <= 0
            if self.kind == "implicit" and bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"{self.name}.{split}: implicit feedback is counts > 0, but row {row} has "
                    f"{part.value[row]}. Leave out what was not seen."
                )

    @functools.cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of both parts and the kind; the name is no part of it."""
        parts = (self.kind, self.train.digest, self.test.digest)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_rating_source(name: str) -> bool:
    """Whether `load_ratings`, not `load`, is meant to know the name; typing errors are forgiven.

    Example:
      >>> [is_rating_source(name) for name in ("movielens:1m", "rating", "mnist")]
      [True, True, False]
    """
    base, _, which = name.partition(":")
    if base == "tfds":
        return which.startswith("movielens")
    return closest(base, (*_NAMES, "digits", "mnist", "cifar10", "cifar100"), 0.6) in _NAMES


def load_ratings(
    name: str, data_dir: str | Path | None = None, *, test: float = 0.2, by: str = "user"
) -> RatingSource:
    """A source of ratings by name, see the table of the module.

    Args:
      name: such as `"ratings"`, `"movielens:100k"`, `"movielens:1m:implicit"`. Never a path.
      data_dir: folder of the data files; default the environment variable JAXUNLEARN_DATA.
      test, by: as for `time_split`.

    Raises:
      ValueError: a path, an unknown name (names the nearest), or a file that cannot be understood.
      FileNotFoundError: not on this machine; says where it looked.

    Example:
      >>> source = load_ratings("ratings")
      >>> len(source.train), len(source.test), source.kind
      (4921, 1079, 'explicit')
    """
    if not re.fullmatch(r"\w[\w.-]*(:\w[\w./-]*)*", name, re.ASCII) or ".." in name:
        raise ValueError(
            f"source {name!r}: expected a plain name such as 'ratings' or 'movielens:100k', not a "
            "path. The folder goes into data_dir."
        )
    plain = name.removesuffix(":implicit")
    kind = "explicit" if plain == name else "implicit"
    base, _, which = plain.partition(":")
    if base == "ratings" and not which:
        everything = low_rank_ratings(**_EMBEDDED, kind=kind)
        words = f"{everything.users} planted users and {everything.items} items of rank 6"
    elif base == "movielens" and which in ("", *_MOVIELENS):
        path, delimiter = _find(name, [which] if which else list(_MOVIELENS), data_dir)
        everything = _from_npz(path) if path.suffix == ".npz" else _from_text(path, delimiter)
        words = f"MovieLens ({path.name})"
    elif base == "tfds" and which:
        everything, words = _from_tfds(which, data_dir), f"the TFDS directory {which}"
    else:
        known = ("ratings", "movielens", *(f"movielens:{s}" for s in _MOVIELENS), "tfds:NAME")
        raise ValueError(f"no ratings are called '{name}'. {did_you_mean(name, known)}")
    if kind == "implicit" and base != "ratings":
        everything = dataclasses.replace(everything, value=np.ones(len(everything), np.float32))
    return RatingSource(name, *time_split(everything, test=test, by=by), kind=kind, words=words)


def _find(name: str, sets: list[str], data_dir: str | Path | None) -> tuple[Path, str]:
    root = data_dir or os.environ.get("JAXUNLEARN_DATA")
    folders = [Path(root).expanduser() / sub for sub in ("", "movielens")] if root else []
    places = [
        (folder / file, _MOVIELENS[each][2])
        for each in sets
        for file in _MOVIELENS[each][:2]
        for folder in folders
    ]
    for place in places:
        if place[0].is_file():
            return place
    looked = ", ".join(str(path) for path, _ in places) or "nowhere, since no folder was given"
    raise FileNotFoundError(
        f"no data for '{name}'. Looked for: {looked}. Give the folder as data_dir=... (command "
        "line: --data-dir) or in the environment variable JAXUNLEARN_DATA. Nothing is ever "
        "downloaded: get MovieLens from https://grouplens.org/datasets/movielens and unpack it "
        "there."
    )


def _from_npz(path: Path) -> Ratings:
    stored = read_npz(path, ("user", "item", "rating", "timestamp"))
    return _named(path, *stored.values())


def _from_text(path: Path, delimiter: str) -> Ratings:
    """GroupLens's own files: user, item, rating, time; a line of words on top is skipped."""
    if path.stat().st_size > MAX_ARCHIVE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; {MAX_ARCHIVE_BYTES} are accepted.")
    text = path.read_text(encoding="utf-8").strip().replace("::", "\t")
    header = text[:1].isalpha()
    fields = [("user", "i8"), ("item", "i8"), ("rating", "f8"), ("time", "i8")]
    if not text or (header and "\n" not in text):
        raise ValueError(f"{path} holds no ratings.")
    try:
        rows = np.loadtxt(
            io.StringIO(text),
            fields,
            delimiter="," if delimiter == "," else "\t",
            skiprows=int(header),
            ndmin=1,
            comments=None,
        )
    except ValueError as error:
        raise ValueError(
            f"{path}: expected lines of user, item, rating and time with {delimiter!r} between "
            f"them; {error}."
        ) from error
    return _named(path, *(rows[field] for field, _ in fields))


def _from_tfds(name: str, data_dir: str | Path | None) -> Ratings:
    """The split "train" of a TFDS directory with the features of its `movielens`."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TFDS directories are read with tensorflow-datasets: pip install 'jaxunlearn[data]'."
        ) from error
    variables = [os.environ.get(v) for v in ("JAXUNLEARN_DATA", "TFDS_DATA_DIR")]
    roots = [data_dir] if data_dir else [*filter(None, variables), "~/tensorflow_datasets"]
    places = [Path(root).expanduser() / name for root in roots]
    directory = _find_directory(next((p for p in places if p.is_dir()), places[0]), None)
    _refuse_foreign_features(directory)
    builder: Any = tfds.builder_from_directory(str(directory))
    missing = [feature for feature in _FEATURES if feature not in builder.info.features]
    if missing or "train" not in builder.info.splits:
        raise ValueError(
            f"{directory}: expected a split 'train' with the features {list(_FEATURES)}, got "
            f"{sorted(builder.info.splits)} with {sorted(builder.info.features)}."
        )
    try:
        rows = builder.as_data_source(split="train")
    except NotImplementedError as error:
        raise ValueError(
            f"{directory} is stored in a format without random access. Prepare it again with "
            "file_format='array_record'; tfrecord can be read by TensorFlow only."
        ) from error
    records = list(rows.__getitems__(range(len(rows)))) if len(rows) else []
    user, item, value, time = ([row[feature] for row in records] for feature in _FEATURES)
    user, item = (_ids(column) for column in (user, item))
    order = np.lexsort((item, user))  # the order on disk means nothing
    columns = (user, item, np.array(value, np.float64), np.array(time, np.int64))
    return _named(directory, *(column[order] for column in columns))


def _ids(values: list[Any]) -> np.ndarray:
    """Integers, also from text that is decimal throughout (10 comes after 9), or else text."""
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    decimal = all(re.fullmatch(r"0|[1-9]\d{0,17}", text, re.ASCII) for text in texts)
    return np.array(texts).astype(np.int64) if decimal else np.array(texts)


def _named(where: Any, *columns: np.ndarray) -> Ratings:
    try:
        return ratings(*columns)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
