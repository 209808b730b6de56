"""The last k layers alone: fine-tuned (CF-k), or made anew and trained (EU-k), the rest kept.

    CF-k   theta'_last = argmin mean_{i in R} l_i,  from theta_last          the rest bit-identical
    EU-k   theta'_last = argmin mean_{i in R} l_i,  from init(key)_last      the rest bit-identical

CF forgets by not rehearsing, EU by starting again; k says how far back. What the first layers know
of F stays: both are baselines, and for small k a test of whether an audit looks below the outputs.
Goel et al. (2022), "Towards Adversarial Evaluations for Inexact Machine Unlearning",
arXiv:2201.06640. *Reconstruction*: from the paper's definition, no code was read; the constants
are those of fine-tuning elsewhere in this family.

Which layers are last is read off the model, not off its names: `layers` walks the program of the
outputs and takes parameters in the order in which they first meet data, so what enters the last k
layers is what entered them before.

Departures: 1. Evaluation mode; running statistics stay. 2. EU-k with all layers is `retrain` for
its number of epochs, same bits, where the model has no training mode of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import objectives
from jaxunlearn.curvature.taps import walk_row
from jaxunlearn.data.streams import InMemory
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, keep_best, masked, method
from jaxunlearn.methods.descent.descent import descent, sgd
from jaxunlearn.model import Model, freeze_statistics, split_statistics
from jaxunlearn.typing import Array, Batch, Data, Key, Params

# What a bias or a scale meets data in; in any other equation a layer begins.
_CONTINUES = frozenset("add sub mul div max min pow select_n concatenate scan".split())


def layers(model: Model, params: Params, batch: Batch) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters of each layer, first layer first.

    Args:
      model: its `outputs` are traced, not run.
      params: as the model takes them; only shapes are read.
      batch: rows as the model takes them; only shapes are read.

    Returns:
      One tuple of paths (`jax.tree_util.keystr`, in the tree of the weights) for each layer.

    | parameters                                     | belong                                     |
    |------------------------------------------------|--------------------------------------------|
    | named leaves beside each other, {"w": .., "b"} | to one layer (not at the root of the tree) |
    | a bias or a scale by itself, a norm's          | to the layer before, the first to the next |
    | used in several layers (tied)                  | to the first of them                       |
    | layers stacked in one leaf, run by a scan      | to one layer                               |
    | side by side in two branches                   | to layers in the order of the program      |
    | not used by the outputs                        | to none                                    |

    Example:
      >>> linear = lambda p, h: h @ p["w"] + p["b"][None]
      >>> two = lambda p, batch: linear(p["head"], jnp.tanh(linear(p["body"], batch["x"])))
      >>> p = {n: {"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for n in ("body", "head")}
      >>> [sorted(l) for l in layers(Model(two, two), p, {"x": jnp.ones((1, 2))})]
      [["['body']['b']", "['body']['w']"], ["['head']['b']", "['head']['w']"]]
    """
    weights, found = _layers(model, params, batch)
    names = [jax.tree_util.keystr(path) for path, _ in _paths(weights)]
    return tuple(tuple(names[i] for i in layer) for layer in found)


def last_layers(model: Model, params: Params, batch: Batch, k: int) -> Any:
    """True for the parameters of the last k of `layers`: a mask for `masked`.

    Args:
      model, params, batch: as for `layers`.
      k: >= 1. With as many as there are layers, or more, every leaf is True, used or not.

    Returns:
      A tree of bools with the structure of the params (of the weights, with running statistics).

    Raises:
      ValueError: k is not an integer >= 1, or no parameter reaches the outputs.

    Example:
      >>> model = Model(lambda p, b: jnp.tanh(b["x"] @ p[0]) @ p[1], lambda p, b: b["x"][:, 0])
      >>> last_layers(model, [jnp.ones((2, 2)), jnp.ones((2, 2))], {"x": jnp.ones((1, 2))}, 1)
      [False, True]
    """
    _check_k("last_layers", k)
    weights, found = _layers(model, params, batch)
    if not found:
        raise ValueError(
            "last_layers: no parameter reaches the model's outputs, so there are no layers."
        )
    last = {leaf for layer in found[-k:] for leaf in layer}
    moves = [k >= len(found) or leaf in last for leaf in range(len(jax.tree.leaves(weights)))]
    return jax.tree.unflatten(jax.tree.structure(weights), moves)


def cf_k(tx: optax.GradientTransformation | None = None, *, k: int = 1, epochs: int = 10) -> Method:
    """min_theta_last mean_{i in R} l_i(theta), over the last k layers, from theta_0.

    Args:
      tx: optax transformation of the last layers; default SGD with learning rate 0.01, momentum
        0.9, weight decay 5e-4.
      k: how many layers may move, >= 1; see `last_layers`.
      epochs: passes over the retained data, >= 0.

    Returns:
      A Method that needs retain, labels and the key. It never reads the forget set. Info is a
      `training.FitInfo`; the params after each epoch are candidates for `keep_best`.

    Raises:
      ValueError: k < 1, epochs < 0.

    | edge case           | result                                                   |
    |---------------------|----------------------------------------------------------|
    | epochs = 0          | params bit-identical                                     |
    | all layers, or more | `finetune`, same bits                                    |
    | other layers        | bit-identical, whatever decay or momentum `tx` has       |
    | inside `masked`     | the last k of the layers that the mask lets move         |
    | divergence          | last finite params, `info.status == Status.DIVERGED`     |

    Cost: `epochs` passes over the retained data, the backward ones through the last layers only.

    Source: Goel et al. (2022), arXiv:2201.06640; reconstruction, see the module.

    Example:
      >>> sorted(cf_k(k=2, epochs=1).needs)
      ['key', 'labels', 'retain']
    """
    _check_k("cf_k", k)
    trained = _on_retained(tx, epochs, "cf_k", "retain")

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        mask = last_layers(model, params, _first(_retained(request)), k)
        return _run(masked(trained, mask), model, params, request, key, score)

    return method(unlearn, needs=trained.needs, name="cf_k", guarantee=EMPIRICAL, scored=True)


def eu_k(tx: optax.GradientTransformation | None = None, *, k: int = 1, epochs: int = 10) -> Method:
    """min_theta_last mean_{i in R} l_i(theta), over the last k layers, from fresh ones.

    Args:
      tx: optax transformation of the last layers; default SGD with learning rate 0.01, momentum
        0.9, weight decay 5e-4.
      k: how many layers are made anew, >= 1; see `last_layers`.
      epochs: passes over the retained data, >= 0; as many as the original had is the paper's sense.

    Returns:
      A Method that needs retain, labels, the key and `model.init`. It never reads the forget set.
      Info is a `training.FitInfo`; fresh params and those after each epoch are candidates for
      `keep_best`.

    Raises:
      ValueError: k < 1, epochs < 0.

    | edge case           | result                                                   |
    |---------------------|----------------------------------------------------------|
    | epochs = 0          | the last k layers fresh, the rest bit-identical          |
    | all layers, or more | `retrain` for these epochs, same bits                    |
    | running statistics  | those of the original                                    |
    | divergence          | last finite params, `info.status == Status.DIVERGED`     |

    Cost: `epochs` passes over the retained data, the backward ones through the last layers only.

    Source: Goel et al. (2022), arXiv:2201.06640; reconstruction, see the module.

    Example:
      >>> sorted(eu_k(k=2, epochs=1).needs)
      ['init', 'key', 'labels', 'retain']
    """
    _check_k("eu_k", k)
    trained = _on_retained(tx, epochs, "eu_k", "data")

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        assert model.init is not None
        mask = last_layers(model, params, _first(_retained(request)), k)
        init_key, run_key = jax.random.split(key)
        start = jax.tree.map(
            lambda m, new, old: new if m else old, mask, model.init(init_key), params
        )
        return _run(masked(trained, mask), model, start, request, run_key, score)

    needs = trained.needs | {"init"}
    return method(unlearn, needs=needs, name="eu_k", guarantee=EMPIRICAL, scored=True)


# ------------------------------------------------------------------------------------------- small


def _check_k(where: str, k: Any) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{where}: k, the number of layers, must be an integer >= 1, got {k!r}.")


def _on_retained(
    tx: optax.GradientTransformation | None, epochs: int, name: str, stream: str
) -> Method:
    """Fine-tuning on R as the stream of that name, which decides the order of its rows."""
    return descent(
        partial(objectives.mean_loss, on=stream),
        sgd(0.01) if tx is None else tx,
        epochs=epochs,
        on=("retain",),
        streams=lambda request: {stream: _retained(request)},
        name=name,
    )


def _retained(request: Request) -> Data:
    assert request.retain is not None
    return request.retain


def _run(
    each: Method, model: Model, params: Params, request: Request, key: Key, score: Any
) -> Unlearned:
    best = each if score is None else keep_best(each, lambda _, weights: score(weights))
    return best.unlearn(model, params, request, key)


def _first(data: Data) -> Batch:
    return data.batch(0) if isinstance(data, InMemory) else next(iter(data))


def _paths(weights: Params) -> list:
    return jax.tree_util.tree_leaves_with_path(weights)


def _layers(model: Model, params: Params, batch: Batch) -> tuple[Params, list[list[int]]]:
    """(weights, the leaf numbers of each layer), first layer first."""
    weights, statistics = split_statistics(model, params)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), weights)
    block = walk_row(freeze_statistics(model, statistics).outputs, shapes, batch)
    begins: dict[int, bool] = {}  # leaf -> whether a layer begins where it first meets data
    for tap in block.taps:
        for leaf in sorted(tap.leaves - begins.keys()):
            begins[leaf] = tap.name not in _CONTINUES
    for mark in block.outs:  # what reaches the outputs without meeting data
        begins |= {leaf: False for leaf in (mark.leaves if mark else ()) if leaf not in begins}
    homes = [_home(path, i) for i, (path, _) in enumerate(_paths(weights))]
    units: dict[Any, list[int]] = {}
    for leaf in begins:
        units.setdefault(homes[leaf], []).append(leaf)
    found: list[list[int]] = []
    begun = False
    for unit in units.values():
        begin = any(begins[leaf] for leaf in unit)
        if not found or (begin and begun):
            found.append([])
        found[-1] += unit
        begun |= begin
    return weights, found


def _home(path: tuple, leaf: int) -> Any:
    """What named leaves beside each other share: their parent; any other leaf is by itself."""
    if len(path) and str(path[-1]) == ".value":  # of a Flax Variable
        path = path[:-1]
    last = path[-1] if len(path) > 1 else None
    named = isinstance(getattr(last, "key", getattr(last, "name", None)), str)
    return path[:-1] if named else leaf
