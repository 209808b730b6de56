"""Methods by name, for tables and command lines: a catalogue, presets, and a data-only syntax.

    ssd                         the preset of the task
    ssd(alpha=5, effective_batch=1)     the preset with these arguments changed

The preset of a method is a rule written down before any oracle of the request was looked at. The rules for networks
trained by a `Recipe` (optimiser, learning rate eta, E epochs) are in `PRESETS`; `learning_rate=` (a multiple of eta is
what the rules set) and `optimizer=` name the transformation for methods that take one. Specifications are parsed, never
evaluated: names, numbers, strings and booleans only.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import optax

from jaxunlearn import methods
from jaxunlearn.method import Method


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How originals, oracles and `retrain` are trained.

    Attributes:
      model: a name that `networks.build` knows.
      optimizer: "adam" or "sgd" (momentum 0.9).
      learning_rate: constant, > 0.
      batch_size: rows per step, >= 1.
      epochs: passes over the training data, >= 0.
    """

    model: str = "mlp"
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    batch_size: int = 64
    epochs: int = 30

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer: {_nearest(self.optimizer, _OPTIMIZERS)}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate: expected a number > 0, got {self.learning_rate}.")
        if self.batch_size < 1 or self.epochs < 0:
            raise ValueError(
                f"expected batch_size >= 1 and epochs >= 0, got {self.batch_size} and {self.epochs}."
            )

    @property
    def tx(self) -> optax.GradientTransformation:
        return _OPTIMIZERS[self.optimizer](self.learning_rate)

    def variants(self) -> dict[str, "Recipe"]:
        """Recipes that nobody would call different: 25 % more epochs, half as large a batch again."""
        longer = dataclasses.replace(self, epochs=math.ceil(1.25 * self.epochs))
        wider = dataclasses.replace(self, batch_size=math.ceil(1.5 * self.batch_size))
        return {
            f"{longer.epochs} epochs": longer,
            f"batch {wider.batch_size}": wider,
        }


_OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "sgd": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
}


class Preset(NamedTuple):
    """Arguments of a builder as a function of (kind of task, recipe, number of classes), and the rule in words."""

    arguments: Callable[[str, Recipe, int], dict[str, Any]]
    rule: str


def _tenth(recipe: Recipe) -> int:
    return max(1, math.ceil(recipe.epochs / 10))


def _third(recipe: Recipe) -> int:
    return max(1, math.ceil(recipe.epochs / 3))


PRESETS: dict[str, Preset] = {
    "retrain": Preset(
        lambda kind, recipe, classes: {"learning_rate": recipe.learning_rate, "epochs": recipe.epochs},
        "the recipe itself",
    ),
    "finetune": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 5 * recipe.learning_rate,
            "epochs": _third(recipe),
        },
        "a warm restart: 5 eta for a third of the epochs",
    ),
    "gradient_ascent": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 10,
            "epochs": recipe.epochs,
            "stop_at_chance": classes,
        },
        "eta / 10 until the forget loss is that of guessing",
    ),
    "neggrad_plus": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "alpha": 0.9 if kind in ("random", "ids") else 0.99,
            "epochs": _tenth(recipe),
        },
        "eta for a tenth of the epochs; alpha 0.99, or 0.9 when examples of all kinds are forgotten",
    ),
    "random_labels": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "epochs": _tenth(recipe),
        },
        "eta for a tenth of the epochs",
    ),
    "ssd": Preset(
        lambda kind, recipe, classes: {"alpha": 5.0, "effective_batch": 1},
        "alpha 5 on exact per-example importances, lambda 1",
    ),
}

DEFAULT_METHODS = tuple(PRESETS)


class Entry(NamedTuple):
    """One line of the catalogue."""

    name: str
    family: str  # exact, edits, descent ...
    builder: Callable[..., Method]
    needs: tuple[str, ...]
    guarantee: str
    paper: str  # arXiv id

    @property
    def page(self) -> str:
        """The method's page: its module and its builder, in full."""
        module = inspect.getmodule(self.builder)
        return f"{inspect.getdoc(module)}\n\n{self.signature}\n\n{inspect.getdoc(self.builder)}"

    @property
    def signature(self) -> str:
        return f"{self.name}{_plain_signature(self.builder)}"


def _plain_signature(builder: Callable) -> str:
    signature = inspect.signature(builder)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def catalogue() -> dict[str, Entry]:
    """Every method that has a preset, by name."""
    entries = {}
    for name in PRESETS:
        builder = getattr(methods, name)
        built = build(name, {}, "class", Recipe(), 10)
        module = inspect.getmodule(builder)
        cited = re.search(r"arXiv:(\d{4}\.\d{4,5})", inspect.getdoc(builder) or "")
        family = module.__name__.split(".")[2] if module else ""
        paper = cited.group(1) if cited else ""
        entries[name] = Entry(name, family, builder, tuple(sorted(built.needs)), built.guarantee, paper)
    return entries


def build(
    name: str, changes: Mapping[str, Any], kind: str, recipe: Recipe, classes: int
) -> Method:
    """The method `name` with its preset for this kind of task and recipe, and some arguments changed.

    Raises:
      ValueError: no such method or argument, or a value that the builder refuses; the nearest name is said.
    """
    if name not in PRESETS:
        raise ValueError(f"method: {_nearest(name, PRESETS)}")
    builder = getattr(methods, name)
    accepted = [p for p in inspect.signature(builder).parameters if not p.startswith("_")]
    options = [p for p in accepted if p != "tx"]
    options += ["learning_rate", "optimizer"] if "tx" in accepted else []
    for argument in changes:
        if argument not in options:
            raise ValueError(f"method {name}: argument {_nearest(argument, options)}")
    arguments = PRESETS[name].arguments(kind, recipe, classes) | dict(changes)
    if "tx" in accepted:
        made = dataclasses.replace(
            recipe,
            learning_rate=arguments.pop("learning_rate"),
            optimizer=arguments.pop("optimizer", recipe.optimizer),
        )
        arguments["tx"] = made.tx
    try:
        return builder(**arguments)
    except TypeError as error:
        raise ValueError(f"method {name}: {error}") from None


class Specified(NamedTuple):
    """A method of a command line."""

    label: str  # as written, for tables
    name: str
    changes: dict[str, Any]


def parse_methods(text: str) -> list[Specified]:
    """`"ssd,neggrad_plus(alpha=0.9,epochs=3)"` as data.

    Raises:
      ValueError: not of this form, an unknown method, or the same entry twice. Nothing is evaluated: a value must be a
        number, a string, True, False or None.

    Example:
      >>> [m.changes for m in parse_methods("ssd, finetune(epochs=2)")]
      [{}, {'epochs': 2}]
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(
            f"methods: cannot read {text!r}. Write names separated by commas, with arguments in brackets: "
            "ssd,neggrad_plus(alpha=0.9,epochs=3)."
        ) from None
    found = [_specified(node) for node in tree.elts]  # type: ignore[attr-defined]
    labels = [each.label for each in found]
    if not found:
        raise ValueError("methods: expected at least one method.")
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"methods: {label} is listed {labels.count(label)} times.")
    return found


def _specified(node: ast.expr) -> Specified:
    call = node if isinstance(node, ast.Call) else None
    target = call.func if call else node
    if not isinstance(target, ast.Name) or (call and call.args):
        raise ValueError(
            f"methods: {ast.unparse(node)!r} is not a method; arguments are given by name, as in ssd(alpha=5)."
        )
    if target.id not in PRESETS:
        raise ValueError(f"method: {_nearest(target.id, PRESETS)}")
    changes = {}
    for keyword in call.keywords if call else ():
        try:
            value = ast.literal_eval(keyword.value)
        except ValueError:
            value = ...
        if keyword.arg is None or not isinstance(value, int | float | str | None):
            raise ValueError(
                f"methods: {ast.unparse(node)!r}: a value must be a number, a string, True, False or None."
            )
        changes[keyword.arg] = value
    return Specified(ast.unparse(node), target.id, changes)


def _nearest(word: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    near = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.0)
    return f"{word!r} is unknown. Did you mean {near[0]!r}? There are: {', '.join(choices)}."
