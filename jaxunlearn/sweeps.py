"""Hyper-parameter sweeps: many settings of a method on many models as few programs.

    params[p, n] = build(**points[p]).unlearn(model, params[n], request, keys[n]).params

Arguments that are numbers a program can carry (rates, weights, strengths) become a leading axis of
one compiled program; those that shape the program (epochs, names, flags) are static, and points
that share them share a program. Which is which is found by tracing, not declared: an argument is
carried if the method can be traced with it unknown.

`jaxunlearn.reporting.pareto_front` picks the settings that no other one beats in everything.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory, as_data
from jaxunlearn.ensembles import ensemble
from jaxunlearn.method import Method, Request
from jaxunlearn.model import Model
from jaxunlearn.timing import seconds_of
from jaxunlearn.typing import Key, Params

Point = Mapping[str, Any]  # argument -> value

_MODELS_AT_ONCE = 64  # of all points together; more do not fit a cache, and cost more each
_CANNOT_TRACE = (TypeError, ValueError, jax.errors.JAXTypeError, jax.errors.JAXIndexError)


class Swept(NamedTuple):
    """What `sweep` returns; one entry per point, in the order of the points."""

    points: list[dict[str, Any]]
    params: list[Params]  # of every model: (N, ...) each
    info: list[Any]  # of every model: (N, ...) each
    seconds: list[float]  # run time of all models at this point: its share of its program
    carried: tuple[str, ...]  # arguments that were an axis of a program


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the values on the axes, the last axis fastest.

    Raises:
      ValueError: an axis without values.

    Example:
      >>> grid(alpha=[0.9, 0.99], epochs=[1])
      [{'alpha': 0.9, 'epochs': 1}, {'alpha': 0.99, 'epochs': 1}]
    """
    empty = [name for name, values in axes.items() if len(values) == 0]
    if empty:
        raise ValueError(f"grid: expected at least one value on every axis, got none for {empty}.")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def sweep(
    build: Callable[..., Method],
    points: Sequence[Point],
    model: Model,
    params: Params,
    request: Request,
    keys: Key,
) -> Swept:
    """params[p, n] = build(**points[p]).unlearn(model, params[n], request, keys[n]).params.

    Args:
      build: keyword arguments -> Method, such as a builder of `jaxunlearn.methods` or a function
        around one that makes the optimiser from a learning rate.
      points: settings, each with the same arguments; see `grid`.
      model, request: as for a Method; in-memory Data.
      params: stacked models, leaves (N, ...).
      keys: (N,) typed keys; every point gets the same ones, so that points differ by their
        settings alone.

    Returns:
      `Swept`.

    Raises:
      ValueError: no points, points with different arguments, or what a builder or a method refuses.

    | argument                                        | how it is swept                      |
    |-------------------------------------------------|--------------------------------------|
    | float, and the method can be traced without it  | an axis of one program               |
    | float that the builder must know                | a program per value                  |
    | integer, string, bool, None                     | a program per value                  |

    A point gives what the method gives alone, to rounding. Cost: as many unlearnings as points
    times models; one compilation per distinct set of static arguments; memory of 64 models, or of
    one point's.

    Example:
      >>> import optax
      >>> from jaxunlearn.methods import finetune
      >>> model = Model(lambda p, b: b["x"] * p, lambda p, b: (b["x"][:, 0] * p - b["y"]) ** 2)
      >>> data = {"x": np.ones((2, 1), np.float32), "y": np.ones(2, np.float32)}
      >>> request = Request(forget=data, retain=data | {"x": 2 * data["x"]})
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> points = grid(rate=[0.0, 0.1])
      >>> build = lambda rate: finetune(optax.sgd(rate), epochs=1)
      >>> found = sweep(build, points, model, jnp.ones(3), request, keys)
      >>> found.carried, [p.shape for p in found.params]
      (('rate',), [(3,), (3,)])
    """
    if not points:
        raise ValueError("sweep: expected at least one point.")
    names = sorted(points[0])
    for point in points:
        if sorted(point) != names:
            raise ValueError(
                f"sweep: every point must have the same arguments, got {names} and {sorted(point)}."
            )
    fields: list[Any] = [None if data is None else _in_memory(data) for data in request]
    arrays = Request(*fields)

    def unlearned(static: Point, carried: Point, params: Params, key: Key, request: Request) -> Any:
        out = build(**static, **carried).unlearn(model, params, request, key)
        return out.params, out.info

    params = jax.tree.map(np.asarray, params)  # on no device: a program has devices of its own
    axes = _carried(unlearned, points, params, keys, arrays)
    programs: dict[tuple, list[int]] = {}
    for place, point in enumerate(points):
        static = tuple((name, point[name]) for name in names if name not in axes)
        programs.setdefault(static, []).append(place)
    found: list[Any] = [None] * len(points)
    for static, places in programs.items():
        values = {name: jnp.asarray([float(points[p][name]) for p in places]) for name in axes}
        function = partial(unlearned, dict(static))
        tall, seconds = _run(function, values, len(places), params, keys, arrays)
        for i, place in enumerate(places):
            rows = slice(i * len(keys), (i + 1) * len(keys))
            found[place] = (*jax.tree.map(lambda leaf, rows=rows: leaf[rows], tall), seconds)
    every, info, seconds = (list(column) for column in zip(*found, strict=True))
    return Swept([dict(p) for p in points], every, info, seconds, axes)


def _in_memory(data: Any) -> InMemory:
    data = as_data(data)
    if not isinstance(data, InMemory):
        raise TypeError(
            "sweep: expected in-memory data, got a stream. Give arrays, see data.in_memory."
        )
    return data


def _run(
    function: Callable, values: Point, count: int, params: Params, keys: Key, request: Request
) -> tuple[Any, float]:
    """(results, leaves (count * N, ...); seconds per point) of one program, some points at once."""
    models = len(keys)
    size = min(count, max(1, _MODELS_AT_ONCE // models))

    def many(values: Any, params: Params, keys: Key, request: Request) -> Any:
        def each(value: Any, params: Params, key: Key) -> Any:
            return function(value, params, key, request)

        stretched = jax.tree.map(lambda leaf: jnp.repeat(leaf, models, axis=0), values)
        tiled = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * size), params)
        return ensemble(each)(stretched, tiled, jnp.concatenate([keys] * size))

    compiled, pieces, spent = None, [], 0.0
    for first in range(0, count, size):
        places = np.minimum(first + np.arange(size), count - 1)  # the last ones are filled up
        some = {name: axis[places] for name, axis in values.items()}
        if compiled is None:
            compiled = jax.jit(many).lower(some, params, keys, request).compile()
        out, seconds = seconds_of(compiled, some, params, keys, request)
        # On the host: slicing what lies on many devices would gather it.
        real = min(size, count - first) * models
        pieces.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[:real], out))
        spent += seconds / size
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces), spent / len(pieces)


def _carried(
    function: Callable, points: Sequence[Point], params: Params, keys: Key, request: Request
) -> tuple[str, ...]:
    """The float arguments without whose values the method can still be traced, greedily."""
    one_model = jax.tree.map(lambda leaf: leaf[0], params)
    candidates = [
        name
        for name in points[0]
        if all(type(p[name]) in (int, float) for p in points)
        and any(type(p[name]) is float for p in points)
        and len({p[name] for p in points}) > 1
    ]
    axes: list[str] = []
    for name in candidates:
        tried = [*axes, name]
        static = {n: v for n, v in points[0].items() if n not in tried}
        values = {n: jax.ShapeDtypeStruct((), jnp.result_type(float)) for n in tried}
        try:
            jax.eval_shape(partial(function, static), values, one_model, keys[0], request)
        except _CANNOT_TRACE:
            continue
        axes = tried
    return tuple(axes)
