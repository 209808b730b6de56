"""Forgetting tasks: which examples are to be forgotten, which are retained, which resemble the
forgotten ones.

    train = forget + retain          retain = adjacent + remote, where something is adjacent

Every row of a split is in exactly one of forget and retain: parts are made from one mask, so no id
can be in both. The forget part of validation and test are held-out examples of the forgotten kind;
there is none where the kind cannot be told. `jaxunlearn.data.selections` has the ways to make one.

| situation                                         | what happens                               |
|---------------------------------------------------|--------------------------------------------|
| nothing to forget (`random:0`, no ids)            | a documented no-op: forget has no rows     |
| everything to forget                              | `ValueError`: nothing would be retained    |
| a retained row equal to a forgotten one (x and y) | as `duplicates` says, see below            |

A copy that stays behind keeps teaching what was to be forgotten. `duplicates="raise"` (the default)
refuses, `"forget"` forgets the copies too (counted in `notes`), `"keep"` keeps them;
`Task.near_duplicates` counts what remains.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxunlearn.data.duplicates import NearDuplicates, equal_rows, near_duplicates
from jaxunlearn.data.sources import SPLITS, Columns, Source
from jaxunlearn.data.streams import InMemory, in_memory
from jaxunlearn.naming import did_you_mean

if TYPE_CHECKING:
    from jaxunlearn.method import Request

PARTS = ("forget", "retain", "adjacent")
_DUPLICATES = ("raise", "forget", "keep")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is to be forgotten from a source; `jaxunlearn.data.selections` makes them.

    Attributes:
      source: the examples.
      name: such as `"class:3"`; `parse_task(source, name)` gives the task back, save for long lists
        of ids.
      words: what is forgotten, for people.
      train_parts, validation_parts, test_parts: part -> sorted int64 row numbers of that split.
        `"forget"` and `"retain"` share out the split; `"adjacent"` is a subset of retain. A part
        that does not exist is absent, but train always has forget (perhaps with no rows) and
        retain.
      notes: what was normalised on the way, for the report.

    Raises:
      ValueError: the parts break one of these rules.
    """

    source: Source
    name: str
    words: str
    train_parts: Mapping[str, np.ndarray]
    validation_parts: Mapping[str, np.ndarray]
    test_parts: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in SPLITS:
            _check_parts(self.name, split, self.parts(split), len(getattr(self.source, split)["y"]))
        if not len(self.train_parts["retain"]):
            raise ValueError(
                f"task '{self.name}' forgets the whole training set of {self.source.name} "
                f"({len(self.source.train['y'])} rows): nothing would be retained, so there is no "
                "model to compare with. Forget less."
            )

    def parts(self, split: str) -> Mapping[str, np.ndarray]:
        """Part -> row numbers, of `"train"`, `"validation"` or `"test"`."""
        if split not in SPLITS:
            raise ValueError(f"no split '{split}'. {did_you_mean(split, SPLITS)}")
        return getattr(self, f"{split}_parts")

    def columns(self, split: str, part: str) -> dict[str, np.ndarray]:
        """All columns of one part, on the host, in the order of the split; `"all"` is the whole
        split, `"remote"` what is retained and not adjacent.

        Raises:
          ValueError: no such split, or this task has no such part there.
        """
        parts, columns = self.parts(split), getattr(self.source, split)
        if part == "all":
            return dict(columns)
        if "adjacent" in parts:
            parts = {**parts, "remote": np.setdiff1d(parts["retain"], parts["adjacent"])}
        if part not in parts:
            raise ValueError(
                f"task '{self.name}' has no part '{part}' in {split}. "
                f"{did_you_mean(part, [*parts, 'all'])}"
            )
        return {name: column[parts[part]] for name, column in columns.items()}

    def data(self, split: str, part: str, batch_size: int = 256) -> InMemory:
        """One part as Data, with all its columns."""
        return in_memory(self.columns(split, part), batch_size)

    def train_data(self, batch_size: int = 256) -> InMemory:
        """What the original is trained on: every training row."""
        return self.data("train", "all", batch_size)

    def oracle_data(self, batch_size: int = 256) -> InMemory:
        """What the oracle is trained on: the retained training rows."""
        return self.data("train", "retain", batch_size)

    def request(self, batch_size: int = 256) -> "Request":
        """The Request for a Method: forget, retain (which includes adjacent), adjacent or None, and
        held_out: validation examples of the forgotten kind, or all where kinds cannot be told.
        """
        from jaxunlearn.method import Request  # method builds on this package

        adjacent = "adjacent" in self.train_parts
        kind = "forget" if "forget" in self.validation_parts else "retain"
        unseen = len(self.validation_parts[kind]) > 0
        return Request(
            forget=self.data("train", "forget", batch_size),
            retain=self.oracle_data(batch_size),
            adjacent=self.data("train", "adjacent", batch_size) if adjacent else None,
            held_out=self.data("validation", kind, batch_size) if unseen else None,
        )

    @functools.cached_property
    def digest(self) -> str:
        """sha256, hexadecimal, of the source's digest, the kind of task and all row numbers.

        Two roads to the same parts (another order of ids, a repeated one) give the same digest.
        """
        state = hashlib.sha256(repr((self.source.digest, self.name.split(":")[0])).encode())
        for split in SPLITS:
            for part, rows in sorted(self.parts(split).items()):
                state.update(repr((split, part, len(rows))).encode())
                state.update(rows.astype("<i8").tobytes())
        return state.hexdigest()

    def describe(self) -> str:
        """The task in words.

        Example:
          >>> from jaxunlearn.data import class_task, digits
          >>> print(class_task(digits(), 3).describe())
          Forget class 3 of digits: 122 of 1200 training rows, 1078 retained. Test: 31 of the same
          kind, 269 others.
        """
        count = {(s, p): len(rows) for s in SPLITS for p, rows in self.parts(s).items()}
        total = count["train", "forget"] + count["train", "retain"]
        adjacent = count.get(("train", "adjacent"), 0)
        held_out = count.get(("test", "forget"), 0)
        text = (
            f"Forget {self.words} of {self.source.name}: {count['train', 'forget']} of {total} "
            f"training rows, {count['train', 'retain']} retained"
            + (f", {adjacent} of these adjacent" if adjacent else "")
            + f". Test: {held_out} of the same kind, {count.get(('test', 'retain'), 0)} others."
        )
        return " ".join([text, *(f"Note: {note}." for note in self.notes)])

    def near_duplicates(self, tolerance: float = 0.05) -> NearDuplicates:
        """How many retained training rows and test rows (all of them) repeat a forget row in x, or
        nearly do, as `jaxunlearn.data.duplicates` defines it.

        Args:
          tolerance: radius in units of the standard deviation of all entries of the training
            inputs, >= 0.
        """
        x = self.source.train["x"]
        return near_duplicates(
            x[self.train_parts["forget"]],
            x[self.train_parts["retain"]],
            self.source.test["x"],
            radius=tolerance * float(x.std(dtype=np.float64)),
        )


def _check_parts(name: str, split: str, parts: Mapping[str, np.ndarray], rows: int) -> None:
    where = f"task '{name}', {split}"
    required = {"forget", "retain"} if split == "train" else {"retain"}
    if not required <= set(parts) <= set(PARTS):
        raise ValueError(
            f"{where}: expected parts {sorted(required)} out of {PARTS}, got {sorted(parts)}."
        )
    for part, indices in parts.items():
        if indices.dtype != np.int64 or indices.ndim != 1 or (np.diff(indices) <= 0).any():
            raise ValueError(f"{where}: '{part}' must be sorted, distinct int64 row numbers.")
    forget = parts.get("forget", np.zeros(0, np.int64))
    shared = np.intersect1d(forget, parts["retain"])
    if len(shared):
        raise ValueError(f"{where}: rows {shared[:5].tolist()} are in both forget and retain.")
    if not np.array_equal(np.union1d(forget, parts["retain"]), np.arange(rows)):
        raise ValueError(f"{where}: forget and retain together must be the {rows} rows, each once.")
    if not np.isin(parts.get("adjacent", []), parts["retain"]).all():
        raise ValueError(f"{where}: adjacent rows must be retained rows.")


def make_task(
    source: Source,
    name: str,
    words: str,
    forget: Callable[[Columns], np.ndarray],
    *,
    adjacent: Callable[[Columns], np.ndarray] | None = None,
    held_out: bool = True,
    duplicates: str,
    notes: tuple[str, ...] = (),
) -> Task:
    """A Task from rules that say of each row whether it is forgotten.

    Args:
      source: the examples.
      name, words: as in `Task`.
      forget: columns of a split -> bool (n,), the rows to forget.
      adjacent: columns of a split -> bool (n,), the rows that resemble them (forgotten ones among
        them do not count); None: the task has no such part.
      held_out: False: `forget` is for training rows only, and the other splits are retained whole.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.
      notes: of the task.

    Raises:
      ValueError: unknown `duplicates`, a copy that stays behind, or nothing retained.
    """
    if duplicates not in _DUPLICATES:
        raise ValueError(
            f"duplicates='{duplicates}' is unknown. {did_you_mean(str(duplicates), _DUPLICATES)}"
        )
    parts: list[dict[str, np.ndarray]] = []
    for split in SPLITS:
        columns = getattr(source, split)
        training = split == "train"
        mask = forget(columns) if training or held_out else np.zeros(len(columns["y"]), bool)
        if training and duplicates != "keep" and mask.any():
            mask, copies = _with_copies(source, name, mask, duplicates)
            notes += (f"{copies} copies of forgotten rows are forgotten too",) if copies else ()
        resembling = adjacent(columns) & ~mask if adjacent else np.zeros(len(mask), bool)
        rows = {"forget": mask, "retain": ~mask, "adjacent": resembling}
        always = ("forget", "retain") if training else ("retain",)
        parts.append({p: np.flatnonzero(m) for p, m in rows.items() if p in always or m.any()})
    if duplicates != "raise":
        name = f"{name}:duplicates={duplicates}"
    return Task(source, name, words, *parts, notes=notes)


def _with_copies(
    source: Source, name: str, mask: np.ndarray, duplicates: str
) -> tuple[np.ndarray, int]:
    """`mask` grown by the retained rows that equal a forgotten one in x and y, and their number."""
    everything = equal_rows(mask, source.train["x"], source.train["y"])
    copies = everything & ~mask
    if copies.any() and duplicates == "raise":
        ids = source.train["id"][copies]
        raise ValueError(
            f"task '{name}': {len(ids)} retained rows equal forgotten ones in x and y, ids "
            f"{ids[:5].tolist()}{'...' if len(ids) > 5 else ''}. What they teach cannot be "
            "forgotten while they stay: pass duplicates='forget' to forget them too, or 'keep' to "
            "keep them."
        )
    return everything, int(copies.sum())
