"""One comparison, from a task to a report: originals, oracles, methods, audits.

    originals   N models trained on everything            seeds
    oracles     M models trained on what is retained      the reference
    recipes     M/2 oracles by each of two recipes that nobody would call different: the floor
    methods     every method applied to every original    judged against the oracles

Everything is an ensemble: one compiled program per group, over all devices. Trained groups are kept
in a content-addressed cache whose key holds the data, the split, the recipe, the keys and the
version of the code that trains; methods always run, because their time is measured. `compare`
returns a `results.Results`; nothing is printed or written here.
"""

import dataclasses
import hashlib
import platform
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import (
    __version__,
    convolution,
    ensembles,
    loop,
    losses,
    model,
    networks,
    objectives,
    presets,
    results,
    training,
)
from jaxunlearn.cache import Cache, code_version
from jaxunlearn.data import streams
from jaxunlearn.data.sources import Source
from jaxunlearn.data.tasks import Task
from jaxunlearn.ensembles import ensemble
from jaxunlearn.method import Method, Request
from jaxunlearn.presets import Recipe, Specified
from jaxunlearn.timing import seconds_of
from jaxunlearn.typing import Data, Key, Params

_CODE_THAT_TRAINS = (
    training,
    loop,
    ensembles,
    networks,
    objectives,
    model,
    convolution,
    losses,
    streams,
    presets,
)

Say = Callable[[str, float], None]  # (what is happening, seconds since the start)

_MODELS_AT_ONCE = 16  # when outputs are computed
_ROWS_AT_ONCE = 4096


class Timing(NamedTuple):
    """Seconds of one compiled program."""

    compile: float
    run: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a comparison may vary besides the task and the methods.

    Attributes:
      recipe: how models are trained.
      seeds: number of originals, and so of models per method, >= 2.
      oracles: number of true retrainings, >= 4.
      seed: of everything random.
      rows: at most so many examples of a part are evaluated (a fixed random choice); bounds memory.
      permutations, resamples: of the tests and the intervals.
    """

    recipe: Recipe = Recipe()
    seeds: int = 16
    oracles: int = 32
    seed: int = 0
    rows: int = 10_000
    permutations: int = 999
    resamples: int = 1000

    def __post_init__(self) -> None:
        check_numbers(self)


def check_numbers(settings: Any) -> None:
    """Refuses numbers of models, rows and seeds with which nothing can be said.

    Raises:
      ValueError: fewer than 2 seeds, 4 oracles or 1 row, or a seed below 0.
    """
    if settings.seeds < 2 or settings.oracles < 4:
        raise ValueError(
            f"expected at least 2 seeds and 4 oracles, got {settings.seeds} and "
            f"{settings.oracles}: with fewer there is neither a floor nor an interval."
        )
    if settings.rows < 1:
        raise ValueError(f"rows: expected at least 1, got {settings.rows}.")
    if settings.seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {settings.seed}.")


def compare(
    task: Task,
    methods: Sequence[Specified] | None = None,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    cache: Cache | None = None,
    say: Say = lambda text, seconds: None,
) -> results.Results:
    """Originals, oracles, methods and audits of one task.

    Args:
      task: what is to be forgotten, of which source, of classes or with a real target.
      methods: see `presets.parse_methods`; default `presets.DEFAULT_METHODS` with their presets, or
        `presets.REGRESSION_METHODS`.
      settings: numbers of models and the recipe.
      cache: where trained ensembles are kept; None trains them anew.
      say: progress, called with a text and the seconds since the start.

    Returns:
      `results.Results`; `results.status` says whether the comparison is informative.

    Raises:
      ValueError: an unknown network or a network that does not fit the inputs, a method that needs
        what the task has not (adjacent data or classes, say).

    Cost: (seeds + 2 oracles) trainings, the methods, and outputs of all models on at most 5 x
      `rows` examples.
    """
    start = time.perf_counter()

    def progress(text: str) -> None:
        say(text, time.perf_counter() - start)

    network = network_of(task.source, settings.recipe)
    evaluator = Evaluator(network, task, settings)
    notes = _left_out(task, settings.recipe) if methods is None else []
    groups: list[results.Group] = []
    for made in ensembles_of(network, task, methods, settings, cache=cache, progress=progress):
        notes += made.notes
        label, role, params, timing, facts, _ = made
        groups.append(
            results.Group(label, role, evaluator(params), timing.compile, timing.run, dict(facts))
        )
    progress("auditing")
    return results.assemble(
        task, settings, groups, evaluator.parts, notes, versions(), time.perf_counter() - start
    )


class Ensemble(NamedTuple):
    """One group of models of a comparison, as it is made."""

    label: str
    role: str  # original, oracle, recipe, method
    params: Params  # stacked: leading axis of models
    timing: Timing
    facts: Mapping[str, Any]  # about a method or a recipe, for the record
    notes: tuple[str, ...]  # warnings, for the report


def ensembles_of(
    network: model.Model,
    task: Task,
    methods: Sequence[Specified] | None,
    settings: Settings,
    *,
    cache: Cache | None = None,
    progress: Callable[[str], None] = lambda text: None,
    timed: bool = True,
) -> Iterator[Ensemble]:
    """The groups of models of a comparison, one at a time: originals, oracles, recipes, methods.

    Args:
      network: see `network_of`.
      task, methods, settings, cache: as for `compare`.
      progress: called with a text before each group.
      timed: whether a method that is quick is run several times for its time.

    Yields:
      `Ensemble`; equal arguments give equal params. Only the originals are kept from one to the
      next, so that memory holds two groups whatever the number of methods.

    Raises:
      ValueError: a method that needs what the task has not; before anything is trained.
    """
    recipe, source = settings.recipe, task.source
    kind = task.name.split(":")[0]
    request = task.request(recipe.batch_size)
    chosen = usual(task, recipe) if methods is None else list(methods)
    presets.check_target([each.name for each in chosen], real=source.target is not None)
    built = [
        (each, presets.build(each.name, each.changes, kind, recipe, source.num_outputs))
        for each in chosen
    ]

    def trained(
        name: str, part: str, used: Recipe, count: int, words: str
    ) -> tuple[Params, Timing]:
        progress(f"training {count} {words}")
        return train_group(network, task, part, used, name, count, settings.seed, cache)

    originals, timing = trained("original", "all", recipe, settings.seeds, "originals")
    yield Ensemble("original", "original", originals, timing, {}, ())
    if task.train_parts["forget"].size:
        yield Ensemble("oracle", "oracle", *trained(
            "oracle", "retain", recipe, settings.oracles, "oracles (true retrainings)"
        ), {}, ())  # fmt: skip
        for words, variant in recipe.variants().items():
            half = max(2, settings.oracles // 2)
            params, timing = trained(words, "retain", variant, half, f"oracles by {words}")
            facts = {"recipe": dataclasses.asdict(variant)}
            yield Ensemble(f"oracle, {words}", "recipe", params, timing, facts, ())
    for each, method in built:
        progress(f"unlearning with {each.label}")
        keys = keys_of(settings.seed, f"method {each.label}", settings.seeds)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out, timing = _unlearned(network, method, originals, request, keys, repeat=timed)
        said = [str(w.message).removeprefix(f"{each.name}: ") for w in _distinct(caught)]
        facts = _facts(each, method, out.info, kind, recipe, task)
        notes = tuple(f"{each.label}: {text}" for text in said)
        yield Ensemble(each.label, "method", out.params, timing, facts, notes)


def network_of(source: Source, recipe: Recipe) -> model.Model:
    """The network of a recipe with outputs and loss for what the source holds."""
    return model.from_nnx(
        networks.build(recipe.model, source.input_shape, source.num_outputs),
        loss=losses.cross_entropy if source.target is None else losses.squared_error,
    )


def _listed(task: Task) -> tuple[str, ...]:
    real = task.source.target is not None
    return presets.REGRESSION_METHODS if real else presets.DEFAULT_METHODS


def usual(task: Task, recipe: Recipe) -> list[Specified]:
    """The methods that are compared when none are named: all that have what they need."""
    names = possible(_listed(task), task.request(recipe.batch_size))[0]
    return presets.parse_methods(",".join(names))


def _left_out(task: Task, recipe: Recipe) -> list[str]:
    """Why usual methods are not among those of this task."""
    return possible(_listed(task), task.request(recipe.batch_size))[1]


def possible(names: Sequence[str], request: Request) -> tuple[list[str], list[str]]:
    """(methods that have all they need of this request, why the others are left out)."""
    absent = {field for field, data in request._asdict().items() if data is None}
    lacking = {name: absent.intersection(presets.catalogue()[name].needs) for name in names}
    notes = [
        f"{name} is left out: it needs {' and '.join(sorted(lacks)).replace('_', '-')} data, of "
        "which this task has none."
        for name, lacks in lacking.items()
        if lacks
    ]
    return [name for name, lacks in lacking.items() if not lacks], notes


def train_group(
    network: model.Model,
    task: Task,
    part: str,
    recipe: Recipe,
    name: str,
    count: int,
    seed: int,
    cache: Cache | None,
) -> tuple[Params, Timing]:
    """`count` models trained by `recipe` on one part of the training split, or from the cache."""
    keys = keys_of(seed, name, count)
    data = task.data("train", part, recipe.batch_size)
    key = _address(task, part, recipe, name, count, seed)
    return _trained(network, recipe, data, keys, key, cache)


def train_rows(
    network: model.Model,
    task: Task,
    rows: np.ndarray,
    recipe: Recipe,
    name: str,
    count: int,
    seed: int,
    cache: Cache | None,
) -> tuple[Params, Timing]:
    """`count` models trained by `recipe` on these rows of the training split, or from the cache.

    Args:
      rows: (k,) sorted row numbers.
      name: of the group; it decides the keys.
    """
    rows = np.asarray(rows, np.int64)
    keys = keys_of(seed, name, count)
    data = task.train_data(recipe.batch_size).take(rows)
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    key = _address(task, "rows", recipe, name, count, seed) | {"rows": digest}
    return _trained(network, recipe, data, keys, key, cache)


def keys_of(seed: int, name: str, count: int) -> Key:
    """One key per model of a named group; growing a group keeps the keys of its first models."""
    root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(count))


def _address(
    task: Task, part: str, recipe: Recipe, name: str, count: int, seed: int
) -> dict[str, Any]:
    """Everything a trained ensemble depends on."""
    return {
        "data": task.source.digest,
        "split": task.digest if part != "all" else "all",
        "part": part,
        "recipe": dataclasses.asdict(recipe),
        "group": name,
        "models": count,
        "seed": seed,
        "devices": jax.device_count(),
        "code": code_version(*_CODE_THAT_TRAINS),
    }


def _timed(function: Callable, *args: Any, repeat: bool = False) -> tuple[Any, Timing]:
    """(result, seconds to compile, seconds to run) of a function compiled for these arguments."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    middle = time.perf_counter()
    if repeat:
        out, seconds = seconds_of(compiled, *args)
        return out, Timing(middle - begin, seconds)
    out = jax.block_until_ready(compiled(*args))
    return out, Timing(middle - begin, time.perf_counter() - middle)


def _trained(
    network: model.Model, recipe: Recipe, data: Data, keys: Key, address: dict, cache: Cache | None
) -> tuple[Params, Timing]:
    tx = recipe.tx

    def many(keys: Key, data: Data) -> Params:  # data as an argument: no constant of the program
        def one(key: Key) -> Params:
            return training.train(network, tx, data, key=key, epochs=recipe.epochs).params

        return ensemble(one)(keys)

    if cache is None:
        return _timed(many, keys, data)
    timing = Timing(0.0, 0.0)

    def make() -> Params:
        nonlocal timing
        params, timing = _timed(many, keys, data)
        return params

    found = cache.get_or_make(address, make, jax.eval_shape(many, keys, data))
    return found.tree, timing


def _unlearned(
    network: model.Model, method: Method, originals: Params, request: Any, keys: Key, repeat: bool
) -> Any:
    def many(originals: Params, request: Any, keys: Key) -> Any:
        def one(params: Params, key: Key) -> Any:
            return method.unlearn(network, params, request, key)._replace(model=None)

        return ensemble(one)(originals, keys)

    return _timed(many, originals, request, keys, repeat=repeat)


def _distinct(caught: list) -> list:
    return list({str(w.message): w for w in caught}.values())


def _facts(
    each: Specified, method: Method, info: Any, kind: str, recipe: Recipe, task: Task
) -> dict:
    """What the report says about a method besides its numbers."""
    entry = presets.catalogue()[each.name]
    arguments = presets.settings(each.name, each.changes, kind, recipe, task.source.num_outputs)
    return {
        "method": each.name,
        "family": entry.family,
        "paper": entry.paper,
        "needs": sorted(method.needs),
        "guarantee": method.guarantee,
        "arguments": arguments,
        "preset": "as given"
        if each.changes
        else presets.rule_of(each.name, kind, task.source.num_outputs),
        "info": _scalars(info),
    }


def _scalars(info: Any) -> dict[str, list[float]]:
    """Per-model scalars of an info tuple, for the record."""
    named = info._asdict() if hasattr(info, "_asdict") else {}
    return {
        name: np.asarray(value, np.float64).tolist()
        for name, value in named.items()
        if hasattr(value, "ndim") and value.ndim == 1
    }


class Evaluator:
    """Outputs of stacked models on every part of a task, each example computed once."""

    def __init__(self, network: model.Model, task: Task, settings: Settings):
        self.parts = results.parts_of(task, settings.rows, settings.seed)
        inputs = [part.columns["x"] for part in self.parts.values()]
        self.inputs = np.concatenate(inputs)
        self.bounds = np.cumsum([0, *(len(x) for x in inputs)])
        self.block = min(_ROWS_AT_ONCE, len(self.inputs))
        self.outputs = jax.jit(
            jax.vmap(lambda p, x: network.outputs(p, {"x": x}), in_axes=(0, None))
        )

    def __call__(self, params: Params) -> dict[str, np.ndarray]:
        """{part: (M, n, C) float32}; models and rows are padded to blocks so that one program
        serves all."""
        # To the host first: slices of an array that is spread over devices are programs of their
        # own, with collectives that can wait for each other for ever on a CPU.
        params = jax.device_get(params)
        count = jax.tree.leaves(params)[0].shape[0]
        blocks = [self._block(start, count) for start in range(0, count, _MODELS_AT_ONCE)]
        logits = np.concatenate([self._rows(_take(params, block)) for block in blocks])[:count]
        cuts = zip(self.parts, self.bounds[:-1], self.bounds[1:], strict=True)
        return {part: logits[:, low:high] for part, low, high in cuts}

    @staticmethod
    def _block(start: int, count: int) -> np.ndarray:
        return np.minimum(start + np.arange(_MODELS_AT_ONCE), count - 1)

    def _rows(self, params: Params) -> np.ndarray:
        blocks = []
        for start in range(0, len(self.inputs), self.block):
            rows = np.minimum(start + np.arange(self.block), len(self.inputs) - 1)
            blocks.append(np.asarray(self.outputs(params, self.inputs[rows]), np.float32))
        return np.concatenate(blocks, axis=1)[:, : len(self.inputs)]


def _take(params: Params, models: np.ndarray) -> Params:
    return jax.tree.map(lambda leaf: leaf[models], params)


def versions() -> dict[str, str]:
    """Versions of what computed a result, for its record."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
    found = {name: metadata.version(name) for name in names}
    device = jax.devices()[0]
    return (
        {"jaxunlearn": __version__}
        | found
        | {
            "python": platform.python_version(),
            "code": code_version(*_CODE_THAT_TRAINS),
            "machine": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        }
    )
