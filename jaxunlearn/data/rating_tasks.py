"""What to forget of a source of ratings: people, items, or single entries.

    train = forget + retain        of a user or an item, test has a forgotten part too

| text                                 | forgotten entries of train         | of test             |
|--------------------------------------|------------------------------------|---------------------|
| `user:42`, `user:42,7`               | all of those users, by original id | all of those users  |
| `item:7`                             | all of those items, by original id | all of those items  |
| `random:0.01`, `random:0.01:seed=1`  | a share, drawn uniformly           | none                |
| `entries:1,2,3`                      | those row numbers                  | none                |

| situation                                    | what happens                                  |
|----------------------------------------------|-----------------------------------------------|
| an id twice, or in another order             | the same task, the same digest                |
| no such user, item or row                    | `ValueError` naming it                        |
| `random:0`, a user with no entry in train    | a documented no-op: nothing is forgotten      |
| everything                                   | `ValueError`: nothing would be retained       |

Text is data; nothing of it is evaluated. `parse_rating_task(source, task.name)` gives a task back.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from jaxunlearn.data.rating_sources import RatingSource
from jaxunlearn.data.ratings import Ratings
from jaxunlearn.data.specs import read_number
from jaxunlearn.naming import closest, did_you_mean

_FORMS = {
    "user": "user:42 or user:42,7",
    "item": "item:42 or item:42,7",
    "random": "random:0.01 or random:0.01:seed=1",
    "entries": "entries:1,2,3",
}


@dataclasses.dataclass(frozen=True, eq=False)
class RatingTask:
    """What is to be forgotten from a source of ratings; `parse_rating_task` makes them.

    Attributes:
      source: the ratings.
      name: such as `"user:42"`; the kind of task is the word before the colon.
      words: what is forgotten, for people.
      forget: int64, sorted distinct row numbers of `source.train`.
      test_forget: int64, sorted distinct row numbers of `source.test` of the same users or items.
      users, items: int64, sorted row numbers of the factors that go altogether; empty unless the
        task is of users, of items.

    Raises:
      ValueError: rows that are not sorted, distinct and in range, or nothing would be retained.
    """

    source: RatingSource
    name: str
    words: str
    forget: np.ndarray
    test_forget: np.ndarray
    users: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        train, test = self.source.train, self.source.test
        limits = {"forget": len(train), "test_forget": len(test), "users": train.users}
        for field, limit in (limits | {"items": train.items}).items():
            rows = np.asarray(getattr(self, field))
            if (
                rows.dtype != np.int64
                or rows.ndim != 1
                or (np.diff(rows) <= 0).any()
                or (rows < 0).any()
                or (rows >= limit).any()
            ):
                raise ValueError(
                    f"task '{self.name}': {field} must be sorted, distinct int64 numbers in "
                    f"[0, {limit})."
                )
            rows = rows.view()
            rows.flags.writeable = False
            object.__setattr__(self, field, rows)
        if len(self.forget) == len(train):
            raise ValueError(
                f"task '{self.name}' forgets all {len(train)} training entries of "
                f"{self.source.name}: nothing would be retained, so there is no model to compare "
                "with. Forget less."
            )

    @property
    def kind(self) -> str:
        """`"user"`, `"item"`, `"random"` or `"entries"`."""
        return self.name.split(":")[0]

    @functools.cached_property
    def forgotten(self) -> Ratings:
        """The entries of train to be forgotten."""
        return self.source.train.take(self.forget)

    @functools.cached_property
    def retained(self) -> Ratings:
        """All others: what the oracle is trained on. Users and items keep their numbers."""
        return self.source.train.without(self.forget)

    @functools.cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of the source's digest, the kind of task and all row numbers."""
        state = hashlib.sha256(repr((self.source.digest, self.kind)).encode())
        for field in ("forget", "test_forget", "users", "items"):
            rows = getattr(self, field)
            state.update(repr((field, len(rows))).encode())
            state.update(rows.astype("<i8").tobytes())
        return state.hexdigest()

    def describe(self) -> str:
        """The task in words.

        Example:
          >>> from jaxunlearn.data import load_ratings
          >>> print(parse_rating_task(load_ratings("ratings"), "user:3").describe())
          Forget user 3 of ratings: 16 of 4921 training entries, 4905 retained. Test: 3 of the same
          kind, 1076 others.
        """
        train, test, f, t = (
            *(len(self.source.train), len(self.source.test)),
            *(len(self.forget), len(self.test_forget)),
        )
        return (
            f"Forget {self.words} of {self.source.name}: {f} of {train} training entries, "
            f"{train - f} retained. Test: {t} of the same kind, {test - t} others."
        )


def parse_rating_task(source: RatingSource, spec: str) -> RatingTask:
    """A task from text, `KIND:VALUE[:seed=...]`, see the table of the module.

    Raises:
      ValueError: unknown kind (names the nearest), user or item; a value of the wrong form or out
        of range; everything forgotten.

    Example:
      >>> from jaxunlearn.data import load_ratings
      >>> parse_rating_task(load_ratings("ratings"), "random:0.01").name
      'random:0.01:seed=0'
    """
    kind, *fields = spec.split(":")
    if kind not in _FORMS:
        raise ValueError(f"task '{spec}': no kind '{kind}'. {did_you_mean(kind, _FORMS)}")
    if not fields or not fields[0] or len(fields) > 1 + (kind == "random"):
        raise ValueError(f"task '{spec}': expected {_FORMS[kind]}.")
    train, test = source.train, source.test
    none = np.zeros(0, np.int64)
    if kind in ("user", "item"):
        chosen = _numbers_of(spec, kind, fields[0].split(","), getattr(train, f"{kind}_ids"))
        names = [str(getattr(train, f"{kind}_ids")[row]) for row in chosen]
        forget, held_out = (
            np.flatnonzero(np.isin(getattr(part, kind), chosen)) for part in (train, test)
        )
        sides = (chosen, none) if kind == "user" else (none, chosen)
        words = f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"
        return RatingTask(source, f"{kind}:{','.join(names)}", words, forget, held_out, *sides)
    if kind == "entries":
        rows = np.array(
            sorted({read_number(spec, text, int, _FORMS) for text in fields[0].split(",")})
        )
        bad = (rows < 0) | (rows >= len(train))
        if bad.any():
            raise ValueError(
                f"task '{spec}': no row {rows[bad][0]} among the {len(train)} training entries."
            )
        name = f"entries:{','.join(map(str, rows))}"
        words = f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}"
        return RatingTask(source, name, words, rows, none, none, none)
    fraction = read_number(spec, fields[0], float, _FORMS)
    option, _, seed = (fields[1] if len(fields) > 1 else "seed=0").partition("=")
    if option != "seed" or not seed.isdecimal():
        raise ValueError(f"task '{spec}': expected {_FORMS['random']}.")
    if not 0 <= fraction < 1:
        raise ValueError(f"task '{spec}': expected a share in [0, 1), got {fraction}.")
    draw = np.random.PCG64(int(seed)).random_raw(len(train))
    rows = np.sort(np.argsort(draw, kind="stable")[: round(fraction * len(train))])
    name, words = f"random:{fraction!r}:seed={int(seed)}", f"a random {100 * fraction:.4g} %"
    return RatingTask(source, name, words, rows.astype(np.int64), none, none, none)


def _numbers_of(spec: str, kind: str, texts: list[str], ids: np.ndarray) -> np.ndarray:
    """Row numbers of original ids given as text, sorted and distinct."""
    known = {str(each): row for row, each in enumerate(ids)}
    for text in texts:
        if text not in known:
            near = closest(text, known, cutoff=0.6) if ids.dtype.kind == "U" else None
            hint = f"did you mean '{near}'?" if near else f"there are {len(ids)}, such as {ids[0]}."
            raise ValueError(f"task '{spec}': no {kind} is called '{text}'; {hint}")
    return np.array(sorted({known[text] for text in texts}), np.int64)
