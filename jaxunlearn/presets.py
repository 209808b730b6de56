"""Methods by name, for tables and command lines: a catalogue, presets, and a data-only syntax.

    ssd                         the preset of the task
    ssd(alpha=5, effective_batch=1)     the preset with these arguments changed
    ssd(preset="paper")                 the published constants, the builder's defaults

The preset of a method is a rule in the terms of the `Recipe` that trained the network (optimiser,
learning rate eta, E epochs): the one in `PRESETS`, written down by hand, and over it what proxies
on digits chose for this kind of task (`jaxunlearn.calibrated`, a generated table). It is never
chosen by the oracle of a request; other data and networks deserve a calibration of their own.
`learning_rate=` (a multiple of eta is what the rules set) and `optimizer=` name the transformation
for methods that take one. Specifications are parsed, never evaluated: names, numbers, strings and
booleans only.
"""

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args

import optax

from jaxunlearn import methods
from jaxunlearn.calibrated import CALIBRATED
from jaxunlearn.data.columns import is_traced
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


def _share(recipe: Recipe, share: float) -> int:
    """That share of the recipe's epochs, at least 1."""
    return max(1, math.ceil(round(share * recipe.epochs, 6)))


def _tenth(recipe: Recipe) -> int:
    return _share(recipe, 1 / 10)


def _third(recipe: Recipe) -> int:
    return _share(recipe, 1 / 3)


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
            **({"stop_at_chance": classes} if classes > 1 else {"clip": 1.0}),
        },
        "eta / 10 until the forget loss is that of guessing (regression: a row stops at the error "
        "of one deviation)",
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
    "forsaken": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 25 * _sgd_rate(recipe),
            "steps": max(1, math.ceil(5 * recipe.epochs / 6)),
        },
        "full-batch SGD at 25 eta (eta if the recipe is SGD), 5 passes over F for 6 epochs, 5 % of "
        "the entries",
    ),
    "mox": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 16,
            "epochs": _third(recipe),
        },
        "alpha 4 and 10 passes over F for 30 epochs, as published; eta / 16, so that the reflected "
        "step is the published tenth of a weight's size",
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
            "radius": 10 * _sgd_rate(recipe),
            "learning_rate": (1 if kind in ("random", "ids") else 10) * _sgd_rate(recipe),
            "infeasible": "fallback",
            "epochs": _tenth(recipe),
        },
        "a fixed radius of 10 eta (a step of Adam on a hundred weights) and 5 eta nats a step, or "
        "eta / 2 to forget examples of all kinds; a tenth of the epochs",
    ),
    "l1_sparse": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 5 * recipe.learning_rate,
            "epochs": _tenth(recipe),
        },
        "a warm restart as for finetune, 5 eta, for a tenth of the epochs; published alpha 5e-4",
    ),
    "shrink_perturb": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 5 * recipe.learning_rate,
            "epochs": _tenth(recipe),
        },
        "the published s = 0.6, then a cycle that peaks at 5 eta, for a tenth of the epochs",
    ),
    "unsir": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 10 * recipe.learning_rate,
            "samples": max(1, recipe.batch_size // 2),
        },
        "the published passes, 10 eta to impair (20 times the 1e-3 that Adam is usually given) and "
        "half of it to repair; half a batch of noises",
    ),
    "boundary_shrink": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 10,
            "epochs": _third(recipe),
        },
        "eta / 10 for a third of the epochs, which on the forget set alone are few steps; size 0.1",
    ),
    "boundary_expand": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 10,
            "epochs": _third(recipe),
        },
        "as for boundary_shrink",
    ),
    "scrub": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 2,
            "epochs": _tenth(recipe),
            "msteps": max(1, _tenth(recipe) - 1),
            "gamma": 0.99,
            "alpha": 0.001,
            "temperature": 4.0,
            "forget_batch": max(1, recipe.batch_size // 4),
        },
        "the published large scale (all epochs but the last maximise, gamma 0.99, alpha 0.001, "
        "T 4, forget batches a quarter of the others) for a tenth of the epochs, with eta / 2: the "
        "published 5e-4 is half of what Adam is usually given",
    ),
    "bad_teacher": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 10,
            "epochs": _third(recipe),
        },
        "eta / 10 (the published 1e-4 is a tenth of what Adam is usually given) for a third of the "
        "epochs over the published 30 % of the retained data: about a tenth of the cost, and as "
        "many steps as one published pass",
    ),
    "amnesiac": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 4,
            "epochs": _tenth(recipe),
        },
        "eta / 4, inside the published range of a tenth of Adam's usual rate to all of it, for a "
        "tenth of the epochs",
    ),
    "pseudo_label": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 4,
            "epochs": _tenth(recipe),
            "rehearse": "labels",
        },
        "as for random_labels, eta / 4 for a tenth of the epochs, rehearsing the retained labels",
    ),
    "tmu": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 4 * recipe.learning_rate,
            "epochs": max(1, math.ceil(recipe.epochs / 30)),
            "twin_learning_rate": _sgd_rate(recipe),
            "twin_epochs": max(1, math.ceil(recipe.epochs / 30)),
            "short_learning_rate": _sgd_rate(recipe),
            "short_epochs": max(1, math.ceil(recipe.epochs / 30)),
            "judge_epochs": 20,
        },
        "twin, short model and fine-tuning a thirtieth of the epochs each, at eta, eta and 4 eta: "
        "the published rates beside that of the original's training, SGD counted as 25 times Adam; "
        "a tenth of the published passes for the judge",
    ),
    "cf_k": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 5 * recipe.learning_rate,
            "epochs": _tenth(recipe),
            "k": 1,
        },
        "the last layer, a warm restart as for finetune, 5 eta, for a tenth of the epochs",
    ),
    "eu_k": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": 5 * recipe.learning_rate,
            "epochs": _tenth(recipe),
            "k": 1,
        },
        "the last layer anew, 5 eta for a tenth of the epochs: ten times fewer steps, larger ones",
    ),
    "pgu": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "epochs": recipe.epochs,
            "stop": "gap" if kind in ("random", "ids") else "retain",
        },
        "eta falling to eta / 10 over as many passes of the forget set as the recipe has epochs, "
        "rho 0.9; ends where held-out examples are predicted better, or (classes) 5 % of the rest "
        "is lost",
    ),
    "entanglement": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 8,
            "epochs": _share(recipe, 1 / 30),
            "recovery_rate": 2 * _sgd_rate(recipe),
            "recovery_epochs": _share(recipe, 1 / 15),
            "batches": 1,
        },
        "a thirtieth of the epochs with eta / 8; a fifteenth of SGD at 2 eta (0.08 eta if the "
        "recipe is SGD), one batch a gradient; needs adjacent data",
    ),
    "blind_model": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "epochs": _tenth(recipe),
        },
        "the recipe, ended after a tenth of its epochs",
    ),
    "blindspot": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate,
            "blind_learning_rate": _sgd_rate(recipe),
            "blind_epochs": _share(recipe, 1 / 15),
            "epochs": _share(recipe, 1 / 30),
        },
        "blind model and imitation, a tenth of the epochs together, at eta: Adam moves a weight by "
        "about rate times steps, and eta over 19 steps is the published 1e-3 over 48",
    ),
    "gaussian_amnesiac": Preset(
        lambda kind, recipe, classes: {
            "learning_rate": recipe.learning_rate / 2,
            "epochs": _tenth(recipe),
        },
        "eta / 2 for a tenth of the epochs, targets drawn once",
    ),
    "features_labels": Preset(
        lambda kind, recipe, classes: {"curvature": "ggn", "damping": 10.0},
        "removal with the generalised Gauss-Newton matrix, damping 10 beside the sum of losses",
    ),
    "influence": Preset(
        lambda kind, recipe, classes: (
            {"curvature": "woodfisher", "alpha": 20.0}
            if classes > 1
            else {"curvature": "ggn", "damping": 100.0}
        ),
        "the published recursion over 1000 retained examples, alpha 20 (regression: the "
        "generalised Gauss-Newton matrix, damping 100; the recursion needs bounded losses)",
    ),
    "ssd": Preset(
        lambda kind, recipe, classes: {"alpha": 5.0 if classes > 1 else 2.0, "effective_batch": 1},
        "alpha 5 on exact per-example importances, lambda 1 (regression: alpha 2, since none "
        "exceeds n / n_f and ranges are wide)",
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

_REAL_ALONE = ("gaussian_amnesiac",)  # for real targets, and for no classes
DEFAULT_METHODS = tuple(name for name in PRESETS if name not in _REAL_ALONE)
REGRESSION_METHODS = (
    *("retrain", "blind_model", "finetune", "gradient_ascent", "neggrad_plus", "blindspot"),
    *("gaussian_amnesiac", "jit_lipschitz", "info_theoretic"),
    *("influence", "features_labels", "ssd", "lfssd", "assd"),
)


def check_target(names: Iterable[str], *, real: bool) -> None:
    """Refuses methods by name: what needs classes for a regression, and the other way round.

    Raises:
      ValueError: naming the method, and those that there are.
    """
    for name in names:
        if real and name not in REGRESSION_METHODS:
            raise ValueError(
                f"method {name} does not forget from a regression; these do: "
                f"{', '.join(REGRESSION_METHODS)}."
            )
        if not real and name in _REAL_ALONE:
            raise ValueError(
                f"method {name} is for regressions, with real targets; this source has classes."
            )


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
    return (_small(name, kind, recipe, classes) if preset == "small" else {}) | changes


RATES = ("learning_rate", "blind_learning_rate", "recovery_rate", "radius")
LENGTHS = ("epochs", "blind_epochs", "recovery_epochs")
_PLAIN = ("forsaken", "hamu", "jit_lipschitz", "info_theoretic")  # their rate is SGD's own
_LIKE = {"group": "class", "ids": "random"}  # kinds of task that have no proxies of their own


def _chosen(name: str, kind: str, classes: int) -> Mapping[str, Any] | None:
    """What proxies chose, if they did for this kind of task."""
    return None if classes < 2 else CALIBRATED.get(_LIKE.get(kind, kind), {}).get(name)


def _small(name: str, kind: str, recipe: Recipe, classes: int) -> dict[str, Any]:
    """The rule of `PRESETS`, and over it what proxies chose, in the terms of the recipe."""
    made = dict(PRESETS[name].arguments(kind, recipe, classes))
    for argument, value in (_chosen(name, kind, classes) or {}).items():
        if argument in RATES:
            plain = argument != "learning_rate" or name in _PLAIN
            value = value * (_sgd_rate(recipe) if plain else recipe.learning_rate)
        elif argument in LENGTHS:
            value = _share(recipe, value)
        made[argument] = value
    return made


def rule_of(name: str, kind: str, classes: int) -> str:
    """The preset of a method for a kind of task, in words."""
    chosen = _chosen(name, kind, classes)
    if not chosen:
        return PRESETS[name].rule
    told = ", ".join(
        f"{argument} {value:.3g} {'eta' if argument in RATES else 'E'}"
        if argument in RATES + LENGTHS
        else f"{argument} {value}"
        for argument, value in chosen.items()
    )
    return f"chosen on proxies of digits: {told}"


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
    if float in allowed and is_traced(value):
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
