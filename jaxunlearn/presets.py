"""Methods by name, for tables and command lines: a catalogue, presets, and a data-only syntax.

    ssd                         the preset of the task
    ssd(alpha=5, effective_batch=1)     the preset with these arguments changed
    ssd(preset="paper")                 the published constants, the builder's defaults

The preset of a method is a rule in the terms of the `Recipe` that trained the network (optimiser,
learning rate eta, E epochs); the rules are in `PRESETS`. They were set once, by hand, with class 3
and random 5 % of digits in view, and are never chosen per request: on those two tasks they are a
little too kind to themselves, elsewhere they are as good as any untuned setting. `learning_rate=`
(a multiple of eta is what the rules set) and `optimizer=` name the transformation for methods that
take one. Specifications are parsed, never evaluated: names, numbers, strings and
booleans only.
"""

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import optax

from jaxunlearn import methods
from jaxunlearn.method import Method
from jaxunlearn.naming import nearest as nearest
from jaxunlearn.specification import Specified as Specified
from jaxunlearn.specification import parse
from jaxunlearn.typing import check_between


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
            raise ValueError(f"optimizer: {nearest(self.optimizer, _OPTIMIZERS)}")
        check_between("recipe", "learning_rate", self.learning_rate, above=0)
        if self.batch_size < 1 or self.epochs < 0:
            raise ValueError(
                "expected batch_size >= 1 and epochs >= 0, "
                f"got {self.batch_size} and {self.epochs}."
            )

    @property
    def tx(self) -> optax.GradientTransformation:
        return _OPTIMIZERS[self.optimizer](self.learning_rate)

    def variants(self) -> dict[str, "Recipe"]:
        """Recipes that nobody would call different: more epochs (25 %), larger batches (50 %)."""
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
    """Arguments of a builder from (kind of task, recipe, number of classes); the rule in words."""

    arguments: Callable[[str, Recipe, int], dict[str, Any]]
    rule: str


def _tenth(recipe: Recipe) -> int:
    return max(1, math.ceil(recipe.epochs / 10))


def _third(recipe: Recipe) -> int:
    return max(1, math.ceil(recipe.epochs / 3))


def _sgd_rate(recipe: Recipe) -> float:
    """eta of Adam; an SGD recipe has about 25 times that of an Adam recipe that trains alike."""
    return recipe.learning_rate / (25 if recipe.optimizer == "sgd" else 1)


PRESETS: dict[str, Preset] = {
    "retrain": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "epochs": recipe.epochs,
        },
        "the recipe itself",
    ),
    "acu": Preset(
        lambda kind, recipe, classes: {"gamma": 0.1},
        "the published ridge, gamma 0.1, solved from the retained data",
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
    "jit_lipschitz": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 0.15 * _sgd_rate(recipe),
            "optimizer": "sgd",
        },
        "one pass of SGD at 0.15 eta (0.006 eta if the recipe is SGD), sigma 0.5",
    ),
    "info_theoretic": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 3 * _sgd_rate(recipe),
            "optimizer": "sgd",
        },
        "one pass of SGD at 3 eta (0.12 eta if the recipe is SGD)",
    ),
    "neggrad_plus": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 4,
            "alpha": 0.9 if kind in ("random", "ids") else 0.99,
            "epochs": _tenth(recipe),
        },
        "eta / 4 for a tenth of the epochs; alpha 0.99, or 0.9 to forget examples of all kinds",
    ),
    "random_labels": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 4,
            "epochs": _tenth(recipe),
        },
        "eta / 4 for a tenth of the epochs",
    ),
    "salun": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 4,
            "epochs": _tenth(recipe),
        },
        "that of random_labels, and half of the weights frozen",
    ),
    "hamu": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "epochs": _tenth(recipe),
        },
        "to be set",
    ),
    "features_labels": Preset(
        lambda kind, recipe, classes: {"curvature": "ggn", "damping": 10.0},
        "removal with the generalised Gauss-Newton matrix, damping 10 beside the sum of losses",
    ),
    "influence": Preset(
        lambda kind, recipe, classes: {"curvature": "woodfisher", "alpha": 20.0},
        "the published recursion over 1000 retained examples, alpha 20",
    ),
    "ssd": Preset(
        lambda kind, recipe, classes: {"alpha": 5.0, "effective_batch": 1},
        "alpha 5 on exact per-example importances, lambda 1",
    ),
    "lfssd": Preset(
        lambda kind, recipe, classes: {"alpha": 1.3 if kind in ("random", "ids") else 3.0},
        "alpha 3, or 1.3 to forget examples of all kinds; absolute per-example gradients, lambda 1",
    ),
    "assd": Preset(
        lambda kind, recipe, classes: {},
        "as published: there is nothing to set",
    ),
    "fisher_forgetting": Preset(
        lambda kind, recipe, classes: {"alpha": 1e-6},
        "alpha 1e-6 on the exact Fisher of the retained data",
    ),
    "win_u": Preset(
        lambda kind, recipe, classes: {
            "leaves": "head",
            "damping": 0.03 if kind in ("random", "ids") else 1.0,
        },
        "the head alone, dense; damping 1, or 0.03 to forget examples of all kinds",
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
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
    ]
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
        needs = tuple(sorted(built.needs))
        entries[name] = Entry(name, family, builder, needs, built.guarantee, paper)
    return entries


def build(name: str, changes: Mapping[str, Any], kind: str, recipe: Recipe, classes: int) -> Method:
    """The method `name` with its preset for this kind of task and recipe, some arguments changed.

    `preset="paper"` among the changes leaves the preset out: the builder's defaults, which are the
    published ones, and the changes. A traced number passes for a number (`jaxunlearn.sweeps`).

    Raises:
      ValueError: no such method or argument (the nearest name is said), a value of another type
        than the argument's, or one that the builder refuses.
    """
    arguments = settings(name, changes, kind, recipe, classes)
    builder = getattr(methods, name)
    accepted = inspect.signature(builder).parameters
    options = {argument: p.annotation for argument, p in accepted.items() if argument != "tx"}
    options |= {"learning_rate": float, "optimizer": str} if "tx" in accepted else {}
    for argument, value in arguments.items():
        if argument not in options:
            raise ValueError(f"method {name}: argument {nearest(argument, [*options, 'preset'])}")
        if argument in changes:
            check_value(f"method {name}: {argument}", value, options[argument])
    if "tx" in accepted and {"learning_rate", "optimizer"} & set(arguments):
        try:
            made = dataclasses.replace(
                recipe,
                learning_rate=arguments.pop("learning_rate", recipe.learning_rate),
                optimizer=arguments.pop("optimizer", recipe.optimizer),
            )
        except ValueError as error:
            raise ValueError(f"method {name}: {error}") from None
        arguments["tx"] = made.tx
    return builder(**arguments)


def settings(
    name: str, changes: Mapping[str, Any], kind: str, recipe: Recipe, classes: int
) -> dict[str, Any]:
    """The arguments of `build` in full: those of the preset, then the changes.

    Raises:
      ValueError: no such method, or no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"method: {nearest(name, PRESETS)}")
    changes = dict(changes)
    preset = changes.pop("preset", "small")
    if preset not in ("small", "paper"):
        raise ValueError(
            f"method {name}: preset must be 'small' (the rule of this catalogue) or 'paper' (the "
            f"published constants), got {preset!r}."
        )
    return (PRESETS[name].arguments(kind, recipe, classes) if preset == "small" else {}) | changes


_NOUNS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    types.NoneType: "None",
}


def check_value(what: str, value: Any, annotation: Any) -> None:
    """Refuses `value` unless it is of a type that `annotation`, such as `float | None`, names."""
    allowed = get_args(annotation) or (annotation,)
    if float in allowed and isinstance(value, jax.core.Tracer):
        return
    if type(value) is int and abs(value) >= 2**31:
        raise ValueError(
            f"{what} must be below 2**31 in size, got about 10**{len(str(abs(value))) - 1}."
        )
    if type(value) not in allowed and not (type(value) is int and float in allowed):
        expected = " or ".join(_NOUNS.get(each, str(each)) for each in allowed)
        raise ValueError(f"{what} must be {expected}, got {value!r}.")


def parse_methods(text: str) -> list[Specified]:
    """`"ssd,neggrad_plus(alpha=0.9,epochs=3)"` as data; see `specification.parse`.

    Raises:
      ValueError: not of this form, an unknown method, or the same entry twice.

    Example:
      >>> [m.changes for m in parse_methods("ssd, finetune(epochs=2)")]
      [{}, {'epochs': 2}]
    """
    return parse(text, PRESETS)
