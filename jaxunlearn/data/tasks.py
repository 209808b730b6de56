"""Forgetting tasks: which examples are to be forgotten, which are retained, which resemble the
forgotten ones.

    train = forget + retain          adjacent is a part of retain

| task            | forgotten                        | adjacent               | validation, test |
|-----------------|----------------------------------|------------------------|------------------|
| `class_task`    | one class or several             |                        | the same rule    |
| `subclass_task` | a finer class inside a label     | the rest of that label | the same rule    |
| `group_task`    | rows with a value in some column |                        | the same rule    |
| `random_task`   | a share of the rows, uniformly   |                        | retained whole   |
| `index_task`    | examples named by id             |                        | retained whole   |

Every row of a split is in exactly one of forget and retain: parts are made from one mask, so no id
can be in both. The forget part of validation and test are held-out examples of the forgotten kind;
there is none where the kind cannot be told (random, index).

| situation                                         | what happens                               |
|---------------------------------------------------|--------------------------------------------|
| nothing to forget (`random:0`, no ids)            | a documented no-op: forget has no rows     |
| everything to forget                              | `ValueError`: nothing would be retained    |
| an id given twice, or ids in another order        | the same task; `notes` counts the repeats  |
| unknown or negative ids, a mask of another length | `ValueError` naming them                   |
| ids that are floats or words                      | `TypeError`                                |
| a retained row equal to a forgotten one (x and y) | as `duplicates` says, see below            |

A copy that stays behind keeps teaching what was to be forgotten. `duplicates="raise"` (the default)
refuses, `"forget"` forgets the copies too (counted in `notes`), `"keep"` keeps them;
`Task.near_duplicates` counts what remains.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxunlearn.data.sources import SPLITS, Columns, Source, did_you_mean
from jaxunlearn.data.streams import InMemory, in_memory

if TYPE_CHECKING:
    from jaxunlearn.method import Request

PARTS = ("forget", "retain", "adjacent")
_DUPLICATES = ("raise", "forget", "keep")


class NearDuplicates(NamedTuple):
    """How many rows outside the forget part carry the content of a forget row."""

    retain_equal: int  # retained training rows with the same bytes in x
    retain_near: int  # retained training rows nearly equal, the equal ones not counted
    test_equal: int  # test rows with the same bytes in x
    test_near: int  # test rows nearly equal, the equal ones not counted
    radius: float  # "nearly": root-mean-square difference of the entries of x at most this


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is to be forgotten from a source; make one with the functions of this module.

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
        split.

        Raises:
          ValueError: no such split, or this task has no such part there.
        """
        parts, columns = self.parts(split), getattr(self.source, split)
        if part == "all":
            return dict(columns)
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
        """The Request for a Method: forget, retain (which includes adjacent), adjacent or None."""
        from jaxunlearn.method import Request  # method builds on this package

        adjacent = "adjacent" in self.train_parts
        return Request(
            forget=self.data("train", "forget", batch_size),
            retain=self.oracle_data(batch_size),
            adjacent=self.data("train", "adjacent", batch_size) if adjacent else None,
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
          >>> from jaxunlearn.data.sources import digits
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
        nearly do.

            equal: the same bytes        near: sqrt(mean_k (a_k - b_k)^2) <= tolerance * std(x of
              train)

        Copies in retain keep teaching what was forgotten, so they cap the forgetting that any
        method, retraining included, can reach. Near means near in pixels: a shifted or mirrored
        copy is not found.

        Args:
          tolerance: in units of the standard deviation of all entries of the training inputs, >= 0.

        Cost: hashing is linear. Near rows are found without misses: an orthonormal projection to 16
          dimensions
        never lengthens a difference, so a k-d tree there proposes and the full rows decide. 54,000
        rows of 784 against 6,000 take seconds.
        """
        x = self.source.train["x"]
        radius = tolerance * float(x.std(dtype=np.float64))
        forget = x[self.train_parts["forget"]]
        counts = []
        for rows in (x[self.train_parts["retain"]], self.source.test["x"]):
            equal = _among(_content(rows), _content(forget))
            near = _near(rows[~equal], forget, radius) if tolerance > 0 else np.zeros(0, bool)
            counts += [int(equal.sum()), int(near.sum())]
        return NearDuplicates(*counts, radius=radius)


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


def _content(*columns: np.ndarray) -> list[bytes]:
    """One 16-byte hash a row, over the bytes of all `columns`."""
    views = [np.ascontiguousarray(c).view(np.uint8).reshape(len(c), -1) for c in columns if len(c)]
    digests = []
    for cells in zip(*views, strict=True):
        state = hashlib.blake2b(digest_size=16)
        for cell in cells:
            state.update(cell)
        digests.append(state.digest())
    return digests


def _among(rows: Sequence[bytes], targets: Sequence[bytes]) -> np.ndarray:
    known = frozenset(targets)
    return np.fromiter((row in known for row in rows), bool, len(rows))


def _near(rows: np.ndarray, targets: np.ndarray, radius: float) -> np.ndarray:
    """Which `rows` lie within root-mean-square distance `radius` of any of `targets`."""
    from scipy.spatial import KDTree  # half a second to import

    found = np.zeros(len(rows), bool)
    if not len(rows) or not len(targets):
        return found
    targets = targets[list({h: i for i, h in enumerate(_content(targets))}.values())]
    rows, targets = rows.reshape(len(rows), -1), targets.reshape(len(targets), -1)
    sample = np.concatenate([part[:: len(part) // 500 + 1] for part in (rows, targets)])
    _, _, basis = np.linalg.svd(sample - sample.mean(0), full_matrices=False)
    basis = basis[:16].T
    limit = radius * np.sqrt(rows.shape[1])
    rounding = 1e-5 * np.sqrt((targets**2).sum(1).max())
    tree = KDTree(targets @ basis)
    for row, candidates in enumerate(tree.query_ball_point(rows @ basis, limit + rounding)):
        if candidates:
            difference = targets[candidates].astype(np.float64) - rows[row]
            found[row] = (difference**2).mean(1).min() <= radius**2
    return found


def _make(
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
    """A Task from two row-wise rules; without `held_out`, `forget` is for training rows only."""
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
    content = _content(source.train["x"], source.train["y"])
    everything = _among(content, [content[row] for row in np.flatnonzero(mask)])
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


def _listed(values: Any) -> list[Any]:
    """One value, or a collection of values, as a list."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        return [values.item() if isinstance(values, np.ndarray | np.generic) else values]
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _numbers(source: Source, column: str, values: Any) -> list[int]:
    """Values of a label column, given as numbers or names, as sorted distinct numbers."""
    if column not in source.label_names:
        raise ValueError(
            f"{source.name} has no label column '{column}'. "
            f"{did_you_mean(column, source.label_columns)}"
        )
    names = list(source.label_names[column])
    noun = "class" if column == "y" else f"'{column}'"
    numbers = set()
    for value in _listed(values):
        if isinstance(value, str) and not re.fullmatch(r"-?\d+", value):
            if value not in names:
                raise ValueError(
                    f"{source.name} has no {noun} called '{value}'. {did_you_mean(value, names)}"
                )
            numbers.add(names.index(value))
            continue
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(f"{noun}: expected a number or a name, got {value!r}.")
        if not 0 <= int(value) < len(names):
            raise ValueError(
                f"{source.name} has no {noun} {value}: they are numbered 0 to {len(names) - 1}."
            )
        numbers.add(int(value))
    return sorted(numbers)


def _called(source: Source, column: str, numbers: Sequence[int]) -> str:
    names = source.label_names[column]
    return ", ".join(str(n) if names[n] == str(n) else f"{n} ({names[n]})" for n in numbers)


def class_task(source: Source, classes: Any, *, duplicates: str = "raise") -> Task:
    """Forget every example of one class or of several.

    Args:
      source: the examples.
      classes: a number in [0, num_classes), a name, or several of them.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.

    Returns:
      A `Task` named `"class:3"` or `"class:3,5"`, its numbers sorted.

    Raises:
      TypeError, ValueError: an unknown class, or all classes.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = class_task(digits(), (5, 3))
      >>> task.name, len(task.train_parts["forget"]), sorted(task.test_parts)
      ('class:3,5', 244, ['forget', 'retain'])
    """
    numbers = _numbers(source, "y", classes)
    return _make(
        source,
        f"class:{','.join(map(str, numbers))}",
        f"{'class' if len(numbers) == 1 else 'classes'} {_called(source, 'y', numbers)}",
        lambda columns: np.isin(columns["y"], numbers),
        duplicates=duplicates,
    )


def subclass_task(
    source: Source, fine: Any, *, column: str = "fine", duplicates: str = "raise"
) -> Task:
    """Forget a finer class inside the label that is learnt; its siblings under the same label are
    adjacent.

    Args:
      source: examples whose `"y"` is a superclass and whose `column` is finer.
      fine: a number or a name in that column, or several.
      column: the finer label column.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.

    Returns:
      A `Task` named `"subclass:3"`.

    Raises:
      TypeError, ValueError: no such column (a source without finer labels), an unknown value.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = subclass_task(digits("odd_even"), 3)
      >>> np.unique(task.columns("train", "adjacent")["fine"]).tolist()
      [1, 5, 7, 9]
    """
    numbers = _numbers(source, column, fine)
    train = source.train
    labels = np.unique(train["y"][np.isin(train[column], numbers)])
    option = "" if column == "fine" else f":column={column}"
    return _make(
        source,
        f"subclass:{','.join(map(str, numbers))}{option}",
        f"sub-class {_called(source, column, numbers)} of label "
        f"{_called(source, 'y', labels.tolist())}",
        lambda columns: np.isin(columns[column], numbers),
        adjacent=lambda columns: np.isin(columns["y"], labels),
        duplicates=duplicates,
    )


def group_task(source: Source, column: str, values: Any, *, duplicates: str = "raise") -> Task:
    """Forget every example with a given value in an integer column: a user, a writer, a hospital.

    Args:
      source: the examples.
      column: a one-dimensional integer column.
      values: one value of the column or several; names where the column has names.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.

    Returns:
      A `Task` named `"group:user=7"`.

    Raises:
      ValueError: no such column, a column of another kind, a value with no training row.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> group_task(digits("loop"), "fine", [8, 9]).name
      'group:fine=8,9'
    """
    groups = [n for n, c in source.train.items() if c.ndim == 1 and c.dtype.kind in "iu"]
    if column not in groups:
        raise ValueError(
            f"{source.name} has no integer column '{column}'. {did_you_mean(column, groups)}"
        )
    if column in source.label_names:
        wanted = _numbers(source, column, values)
    else:
        wanted = sorted(set(_integers(f"group '{column}'", values).tolist()))
    present = source.train[column]
    absent = [value for value in wanted if value not in present]
    if absent:
        raise ValueError(
            f"column '{column}' of {source.name} holds no {absent} in train; its "
            f"{len(np.unique(present))} values lie in [{present.min()}, {present.max()}]."
        )
    listed = ",".join(map(str, wanted))
    return _make(
        source,
        f"group:{column}={listed}",
        f"the rows with {column} = {listed}",
        lambda columns: np.isin(columns[column], wanted),
        duplicates=duplicates,
    )


def random_task(source: Source, fraction: float, *, seed: int, duplicates: str = "raise") -> Task:
    """Forget a share of the training rows, drawn uniformly without replacement; not stratified.

    The rows are ranked by the raw output of PCG64, so the draw is the same everywhere and a smaller
    fraction with the same seed is a subset of a larger one. Validation and test are retained whole.

    Args:
      source: the examples.
      fraction: share of the training rows in [0, 1), rounded to a whole number of rows. 0 forgets
        nothing.
      seed: of the draw, >= 0.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.

    Returns:
      A `Task` named `"random:0.05:seed=0"`.

    Raises:
      ValueError: fraction out of range, or rounded up to everything; a seed that is not an integer
        >= 0.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> task = random_task(digits(), 0.05, seed=0)
      >>> len(task.train_parts["forget"]), sorted(task.test_parts)
      (60, ['retain'])
    """
    if isinstance(fraction, bool) or not 0 <= fraction < 1:
        raise ValueError(
            f"random: expected a fraction of the training rows in [0, 1), got {fraction}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"random: expected an integer seed >= 0, got {seed!r}.")
    rows = len(source.train["y"])
    rank = np.argsort(np.argsort(np.random.PCG64(int(seed)).random_raw(rows), kind="stable"))
    drawn = rank < round(float(fraction) * rows)
    return _make(
        source,
        f"random:{float(fraction)!r}:seed={seed}",
        f"a random {100 * fraction:.4g} %",
        lambda columns: drawn,
        held_out=False,
        duplicates=duplicates,
    )


def index_task(source: Source, ids: Any, *, duplicates: str = "raise") -> Task:
    """Forget training examples named by id.

    Args:
      source: the examples.
      ids: integers that occur in `source.train["id"]`, in any order, repeats allowed; or a boolean
        mask over the training rows. Empty forgets nothing.
      duplicates: `"raise"`, `"forget"` or `"keep"`, see the module.

    Returns:
      A `Task` named `"ids:4,7"`, or `"ids:250-<hash>"` beyond 16 ids. Order and repeats change
      nothing but `notes`.

    Raises:
      TypeError: ids that are not integers.
      ValueError: ids that are negative, unknown, or in validation or test; a mask of another
        length.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> source = digits()
      >>> task = index_task(source, [2, 0, 2])
      >>> task.name, task.notes, task.digest == index_task(source, [0, 2]).digest
      ('ids:0,2', ('1 repeated ids dropped',), True)
    """
    known = source.train["id"]
    given = _integers("ids", ids, mask_over=known)
    wanted = np.unique(given)
    if wanted.min(initial=0) < 0:
        raise ValueError(
            f"ids {wanted[wanted < 0][:5].tolist()} are negative: nothing counts from the end."
        )
    unknown = wanted[~np.isin(wanted, known)]
    if len(unknown):
        elsewhere = [s for s in SPLITS[1:] if np.isin(unknown, getattr(source, s)["id"]).any()]
        raise ValueError(
            f"ids {unknown[:5].tolist()}{'...' if len(unknown) > 5 else ''} are not training "
            f"examples of {source.name}: its {len(known)} ids lie in [{known.min()}, {known.max()}]"
            + (f", and some of those named are in {' and '.join(elsewhere)}" if elsewhere else "")
            + ". Only what was trained on can be forgotten."
        )
    repeated = len(given) - len(wanted)
    listed = ",".join(map(str, wanted.tolist()))
    if len(wanted) > 16:
        listed = f"{len(wanted)}-{hashlib.sha256(listed.encode()).hexdigest()[:8]}"
    return _make(
        source,
        f"ids:{listed}",
        f"{len(wanted)} examples named by id",
        lambda columns: np.isin(columns["id"], wanted),
        held_out=False,
        duplicates=duplicates,
        notes=(f"{repeated} repeated ids dropped",) if repeated else (),
    )


def _integers(what: str, values: Any, mask_over: np.ndarray | None = None) -> np.ndarray:
    """`values` as int64 (k,); a boolean mask over `mask_over` becomes the values it selects."""
    array = np.asarray(sorted(values) if isinstance(values, set | frozenset) else values)
    array = array.reshape(1) if array.ndim == 0 else array
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype == bool and mask_over is not None:
        if array.shape != mask_over.shape:
            raise ValueError(
                f"{what}: a boolean mask must have one entry a training row, shape "
                f"{mask_over.shape}, got {array.shape}."
            )
        return mask_over[array].astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what}: expected integers (k,), got {array.dtype} {array.shape}.")
    return array.astype(np.int64)


_FORMS = {
    "class": "class:3 or class:3,5",
    "subclass": "subclass:3 or subclass:3:column=fine",
    "random": "random:0.05 or random:0.05:seed=1",
    "group": "group:column=value",
    "ids": "ids:1,2,3",
}
_OPTIONS = {"subclass": ("column",), "random": ("seed",)}


def parse_task(source: Source, spec: str) -> Task:
    """A task from text: `KIND:VALUE[:option=value...]`. Text is data; nothing of it is evaluated.

    | text                             | task                                                  |
    |----------------------------------|-------------------------------------------------------|
    | `class:3`, `class:3,cat`         | `class_task`, by number or name                       |
    | `subclass:3`, `subclass:3:column=fine` | `subclass_task`                                 |
    | `random:0.05`, `random:0.05:seed=1`    | `random_task`; the seed is 0 unless given       |
    | `group:user=7`, `group:user=7,9` | `group_task`                                          |
    | `ids:4,7`                        | `index_task`                                          |

    Each takes `:duplicates=forget` or `:duplicates=keep` too.

    Raises:
      ValueError: unknown kind or option (names the nearest), a value out of range or of the wrong
        form.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> parse_task(digits(), "random:0.05").name
      'random:0.05:seed=0'
    """
    kind, *fields = spec.split(":")
    if kind not in _FORMS:
        raise ValueError(f"task '{spec}': no kind '{kind}'. {did_you_mean(kind, _FORMS)}")
    if not fields or not fields[0]:
        raise ValueError(f"task '{spec}': expected {_FORMS[kind]}.")
    options: dict[str, Any] = {}
    allowed = (*_OPTIONS.get(kind, ()), "duplicates")
    for field in fields[1:]:
        option, equals, value = field.partition("=")
        if not equals or option not in allowed:
            raise ValueError(
                f"task '{spec}': no option '{option}'. {did_you_mean(option, allowed)}"
            )
        options[option] = value
    body = fields[0]
    values = body.split(",")
    if kind == "class":
        return class_task(source, values, **options)
    if kind == "subclass":
        return subclass_task(source, values, **options)
    if kind == "random":
        seed = _read(spec, options.pop("seed", "0"), int)
        return random_task(source, _read(spec, body, float), seed=seed, **options)
    if kind == "ids":
        return index_task(source, [_read(spec, value, int) for value in values], **options)
    column, equals, value = body.partition("=")
    if not equals:
        raise ValueError(f"task '{spec}': expected {_FORMS[kind]}.")
    if column not in source.label_names:
        return group_task(
            source, column, [_read(spec, v, int) for v in value.split(",")], **options
        )
    return group_task(source, column, value.split(","), **options)


def _read(spec: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        noun = {int: "an integer", float: "a number"}[kind]
        raise ValueError(
            f"task '{spec}': expected {noun}, got '{text}'; the form is "
            f"{_FORMS[spec.split(':')[0]]}."
        ) from None
