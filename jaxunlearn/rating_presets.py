"""Recommenders and what forgets from them, by name, for comparisons and command lines.

    als                                 until the gradient of what is retained is 0
    als(mode='sweeps', sweeps=3)        the affected rows, then that many sweeps
    als(mode='rows')                    the affected rows alone
    finetune(sweeps=3)                  sweeps on what is retained, from the trained factors
    retrain                             from factors drawn anew, as the oracles were
    retrain(same_seed=True)             from the very factors that the original began with

Everything is a factorisation by alternating least squares (`jaxunlearn.methods.exact.als`), fitted
by one `Factorisation` recipe. Specifications are parsed as `jaxunlearn.specification` does, never
evaluated.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxunlearn.data.rating_tasks import RatingTask
from jaxunlearn.methods.exact.als import MODES, als
from jaxunlearn.naming import nearest
from jaxunlearn.presets import check_value
from jaxunlearn.specification import Specified, parse
from jaxunlearn.typing import Key

_MOST = 1000  # sweeps of a fit until convergence
_REGULARISATION = {"explicit": 5.0, "implicit": 5.0, "ials": 0.01}


@dataclasses.dataclass(frozen=True)
class Factorisation:
    """How originals, oracles and `retrain` are fitted.

    Attributes:
      rank: number of factors, >= 1.
      regularisation: > 0; None: 5, or 0.01 for "ials", whose penalty grows with the counts.
      feedback: "explicit" (ratings; biases are fitted too), "implicit" or "ials" (counts).
      sweeps: passes of alternating least squares, >= 1; None: until the gradient is 0, as far as
        `tolerance` says.
      tolerance: of the largest entry of the gradient, relative to the largest factor, > 0; read
        only where sweeps is None.
      scale: standard deviation of the factors that a fit begins with, > 0.
    """

    rank: int = 8
    regularisation: float | None = None
    feedback: str = "explicit"
    sweeps: int | None = None
    tolerance: float = 1e-4
    scale: float = 0.1

    def __post_init__(self) -> None:
        if self.feedback not in _REGULARISATION:
            raise ValueError(f"feedback: {nearest(self.feedback, _REGULARISATION)}")
        for name in ("rank", "sweeps"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {count}.")
        for name in ("regularisation", "tolerance", "scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value}.")

    @property
    def learner(self) -> Any:
        """The functions of `jaxunlearn.methods.exact.als`."""
        strength = self.regularisation
        return als(
            rank=self.rank,
            regularisation=_REGULARISATION[self.feedback] if strength is None else strength,
            feedback=self.feedback,
            biases=self.feedback == "explicit",
            scale=self.scale,
        )

    def fit(self, learner: Any, ratings: Any, key: Key) -> tuple[Any, Any]:
        """(state, report) of a fit from new factors."""
        state = learner.init(ratings, key)
        if self.sweeps is not None:
            return learner.fit(state, sweeps=self.sweeps)
        return learner.fit(state, sweeps=_MOST, tolerance=self.tolerance, accelerate=True)

    def variants(self) -> dict[str, "Factorisation"]:
        """Recipes that nobody would call different: more sweeps (25 %) or a tolerance of three
        times as much, and a wider start (twice)."""
        wider = dataclasses.replace(self, scale=2 * self.scale)
        if self.sweeps is None:
            other = dataclasses.replace(self, tolerance=3 * self.tolerance)
            words = f"tolerance {other.tolerance:g}"
        else:
            other = dataclasses.replace(self, sweeps=math.ceil(1.25 * self.sweeps))
            words = f"{other.sweeps} sweeps"
        return {words: other, f"scale {wider.scale:g}": wider}


class Given(NamedTuple):
    """What a method starts from, for one model."""

    recipe: Factorisation
    learner: Any
    task: RatingTask
    original: Any  # trained state
    begun: Key  # the original's own key
    key: Key


class RatingMethod(NamedTuple):
    """One line of the catalogue."""

    run: Callable[..., tuple[Any, Any]]  # (Given, arguments) -> state, report
    defaults: Mapping[str, Any]
    family: str
    guarantee: str  # what it can promise at best; the report of a run says what it did
    paper: str  # arXiv id
    rule: str


def _als(given: Given, *, mode: str, sweeps: int, tolerance: float | None) -> tuple[Any, Any]:
    task = given.task
    which = {
        "user": {"users": task.users},
        "item": {"items": task.items},
    }.get(task.kind, {"entries": task.forget})
    options: dict[str, Any] = {"sweeps": sweeps} if mode == "sweeps" else {}
    if mode == "converged":  # as near as the fits themselves
        options["tolerance"] = given.recipe.tolerance if tolerance is None else tolerance
    return given.learner.forget(given.original, **which, mode=mode, **options)


def _finetune(given: Given, *, sweeps: int) -> tuple[Any, Any]:
    start = given.learner.init(given.task.retained, given.key)
    start = start._replace(user=given.original.user, item=given.original.item)
    return given.learner.fit(start, sweeps=sweeps)


def _retrain(given: Given, *, same_seed: bool) -> tuple[Any, Any]:
    key = given.begun if same_seed else given.key
    return given.recipe.fit(given.learner, given.task.retained, key)


METHODS: dict[str, RatingMethod] = {
    "retrain": RatingMethod(
        _retrain, {"same_seed": False}, "exact", "exact-bitwise", "", "the recipe itself"
    ),
    "als": RatingMethod(
        _als,
        {"mode": "converged", "sweeps": 3, "tolerance": None},
        "exact",
        "empirical",
        "2302.06676",
        "until converged; mode 'rows' solves the affected rows, 'sweeps' adds some sweeps",
    ),
    "finetune": RatingMethod(
        _finetune, {"sweeps": 3}, "descent", "empirical", "", "3 sweeps on what is retained"
    ),
}
DEFAULT_METHODS = (
    "retrain,retrain(same_seed=True),als(mode='rows'),als(mode='sweeps'),"
    "als(mode='converged'),finetune"
)
_TYPES = {"same_seed": bool, "mode": str, "sweeps": int, "tolerance": float | None}


def parse_methods(text: str) -> list[Specified]:
    """`"als(mode='sweeps',sweeps=3),retrain"` as data; see `specification.parse`.

    Raises:
      ValueError: unreadable text, no such method, argument or mode (the nearest name is said), a
        value of another type than the argument's, or out of its range.

    Example:
      >>> [each.changes for each in parse_methods("retrain,als(mode='rows')")]
      [{}, {'mode': 'rows'}]
    """
    found = parse(text, METHODS)
    for each in found:
        for argument, value in each.changes.items():
            if argument not in METHODS[each.name].defaults:
                known = METHODS[each.name].defaults
                raise ValueError(f"method {each.name}: argument {nearest(argument, known)}")
            _check_argument(f"method {each.name}", argument, value)
    return found


def _check_argument(where: str, argument: str, value: Any) -> None:
    check_value(f"{where}: {argument}", value, _TYPES[argument])
    if argument == "mode":
        if value not in MODES:
            raise ValueError(f"{where}: mode {nearest(value, MODES)}")
    elif argument == "sweeps" and value < 0:
        raise ValueError(f"{where}: expected sweeps >= 0, got {value}.")
    elif argument == "tolerance" and value is not None and not 0 < value < math.inf:
        raise ValueError(f"{where}: expected a finite tolerance > 0, got {value}.")


def page(name: str) -> str:
    """A method in words, for the command line."""
    entry = METHODS[name]
    given = ", ".join(f"{key}={value!r}" for key, value in entry.defaults.items())
    about = f"{name}({given})\n\n{__doc__}\nIn comparisons of ratings: {entry.rule}."
    return about if name != "als" else f"{inspect.getdoc(als)}\n\n{about}"


def arguments(each: Specified) -> dict[str, Any]:
    """All arguments of a method, as changed."""
    return dict(METHODS[each.name].defaults) | each.changes
