"""A model: pure functions of (params, batch).

    outputs(params, batch) -> (n, ...)     logits or predictions, evaluation mode
    loss(params, batch)    -> (n,)         per example, nats or squared error, evaluation mode

Three doors in: `from_nnx`, `from_linen`, and `Model(...)` by hand. A Model is registered as a
static pytree node, so `jit` and `vmap` take it as an argument; keep one and reuse it, since two
adapters of one module are two models to the compiler.

Running statistics (BatchNorm) differ from one trained model to the next, so they travel with the
parameters: a model that has them sets `statistics=True`, and its params are
`{"params": weights, "batch_stats": statistics}`. `outputs` and `loss` read the stored statistics
and never change them; only `train` does. Every `Method` is handed the weights alone (see
`jaxunlearn.method`), so no decay, noise or dampening can reach a running variance.
`jaxunlearn.refresh_batch_stats` re-estimates them as a step of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import losses
from jaxunlearn.typing import Array, Batch, Key, Params


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions of (params, batch); see the module.

    Attributes:
      outputs: (params, batch) -> (n, ...), evaluation mode.
      loss: (params, batch) -> (n,), evaluation mode; one number per example, never an average.
      features: (params, batch) -> (n, d), what the last layer reads; None if the model does not
        say.
      init: key -> fresh params; None if the model cannot be re-initialised (then it cannot be
        retrained).
      train: (params, batch, key) -> ((n,) losses, params with updated statistics), training mode;
        None if training mode equals evaluation mode.
      statistics: whether params are `{"params": weights, "batch_stats": statistics}`.
      hidden: (params, batch) -> (n, t, d), the activations of t tokens half-way through, evaluation
        mode; None if the model does not say. A class token, where there is one, is the first.
      resume: (params, hidden) -> outputs, the rest of the way; None if and only if `hidden` is.
        resume(params, hidden(params, batch)) = outputs(params, batch).

    Example:
      >>> linear = Model(
      ...     outputs=lambda p, batch: batch["x"] @ p["w"],
      ...     loss=lambda p, batch: jnp.square(batch["x"] @ p["w"] - batch["y"]),
      ...     init=lambda key: {"w": jax.random.normal(key, (3,))},
      ... )
      >>> linear.outputs({"w": jnp.ones(3)}, {"x": jnp.ones((2, 3))})
      Array([3., 3.], dtype=float32)
    """

    outputs: Callable[[Params, Batch], Array]
    loss: Callable[[Params, Batch], Array]
    features: Callable[[Params, Batch], Array] | None = None
    init: Callable[[Key], Params] | None = None
    train: Callable[[Params, Batch, Key], tuple[Array, Params]] | None = None
    statistics: bool = False
    hidden: Callable[[Params, Batch], Array] | None = None
    resume: Callable[[Params, Array], Array] | None = None


def split_statistics(model: Model, params: Params) -> tuple[Params, Params]:
    """(weights, statistics); the statistics are None for a model without any."""
    if not model.statistics:
        return params, None
    if not isinstance(params, Mapping) or set(params) != {"params", "batch_stats"}:
        keys = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            "this model keeps running statistics, so its params must be "
            f"{{'params': ..., 'batch_stats': ...}}, got {keys}. model.init(key) makes them."
        )
    return params["params"], params["batch_stats"]


def join_statistics(model: Model, weights: Params, statistics: Params) -> Params:
    """The inverse of `split_statistics`."""
    return {"params": weights, "batch_stats": statistics} if model.statistics else weights


def rebase(
    model: Model, expand: Callable[[Params], Params], shrink: Callable[[Params], Params]
) -> Model:
    """The same model over smaller params q.

        f'(q, batch) = f(expand(q), batch),    init'(key) = shrink(init(key))

    How statistics and masked leaves are kept out of a method's reach: it never holds them.
    """

    def over(function: Callable | None) -> Callable | None:
        return None if function is None else lambda q, inputs: function(expand(q), inputs)

    def train(q: Params, batch: Batch, key: Key) -> tuple[Array, Params]:
        assert model.train is not None
        values, params = model.train(expand(q), batch, key)
        return values, shrink(params)

    init = model.init
    return Model(
        outputs=over(model.outputs),  # type: ignore[arg-type]
        loss=over(model.loss),  # type: ignore[arg-type]
        features=over(model.features),
        init=None if init is None else lambda key: shrink(init(key)),
        train=None if model.train is None else train,
        hidden=over(model.hidden),
        resume=over(model.resume),
    )


def freeze_statistics(model: Model, statistics: Params) -> Model:
    """The model of the weights alone, in evaluation mode, with these statistics closed over."""
    if not model.statistics:
        return model
    frozen = rebase(
        model,
        lambda weights: join_statistics(model, weights, statistics),
        lambda params: split_statistics(model, params)[0],
    )
    return dataclasses.replace(frozen, train=None)


def _is_method(module: type, *names: str) -> bool:
    """Whether the class has these methods: `linen.Dense(...).features` is a number, not one."""
    return all(callable(getattr(module, name, None)) for name in names)


def from_nnx(module: Any, *, loss: Callable[[Array, Array], Array] = losses.cross_entropy) -> Model:
    """A Model of a Flax NNX module that maps `batch["x"]` to outputs.

    Args:
      module: a factory `rngs -> nnx.Module` (then `model.init` works), or an `nnx.Module` (then
        params are `nnx.state(module, nnx.Param)` and there is no `init`). It is never changed.
      loss: (outputs, batch["y"]) -> (n,).

    Returns:
      A Model whose params are an `nnx.State` of `nnx.Param`; with statistics
      `{"params": that, "batch_stats": nnx.state(module, nnx.BatchStat)}`. If the module's class has
      a method `features(x)`, `model.features` is it; if it has both `middle(x)` and `resume(h)`,
      they are `model.hidden` and `model.resume`.

    Raises:
      TypeError: `module` is neither, or is a Linen module.

    Variables of other kinds (say, fixed random features) are constants, the same for every `init`.
    Random streams (dropout) get keys of their own from the step's key, and are not read in
    evaluation mode.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> model.outputs(model.init(jax.random.key(0)), {"x": jnp.ones((5, 3))}).shape
      (5, 2)
    """
    from flax import linen, nnx

    build = None if isinstance(module, nnx.Module) else module
    if isinstance(module, linen.Module) or not (build is None or callable(build)):
        raise TypeError(
            "from_nnx: expected a factory `rngs -> nnx.Module` or an nnx.Module, got "
            f"{type(module).__name__}. A Linen module goes through from_linen."
        )
    example = module if build is None else build(nnx.Rngs(0))
    if not isinstance(example, nnx.Module):
        raise TypeError(
            "from_nnx: the factory must return an nnx.Module, "
            f"it returned {type(example).__name__}."
        )
    copy = nnx.clone(example)
    copy.train()
    train_graph = nnx.graphdef(copy)
    copy.eval()
    graph, _, statistics, streams, constants = nnx.split(
        copy, nnx.Param, nnx.BatchStat, nnx.RngKey, ...
    )
    has_statistics = bool(jax.tree.leaves(statistics))
    has_randomness = bool(jax.tree.leaves(streams))
    splits = _is_method(type(example), "middle", "resume")

    def collect(weights: Any, statistics: Any) -> Params:
        return {"params": weights, "batch_stats": statistics} if has_statistics else weights

    def rebuild(graph: Any, params: Params, streams: Any = streams) -> Any:
        weights, moving = (
            (params["params"], params["batch_stats"]) if has_statistics else (params, statistics)
        )
        # Copied, because training would otherwise write into the Variables that `params` hold.
        return nnx.merge(graph, weights, moving, streams, constants, copy=True)

    def outputs(params: Params, batch: Batch) -> Array:
        return rebuild(graph, params)(batch["x"])

    def features(params: Params, batch: Batch) -> Array:
        return rebuild(graph, params).features(batch["x"])

    def hidden(params: Params, batch: Batch) -> Array:
        return rebuild(graph, params).middle(batch["x"])

    def resume(params: Params, hidden: Array) -> Array:
        return rebuild(graph, params).resume(hidden)

    def init(key: Key) -> Params:
        assert build is not None
        fresh = build(nnx.Rngs(key))
        return collect(nnx.state(fresh, nnx.Param), nnx.state(fresh, nnx.BatchStat))

    def train(params: Params, batch: Batch, key: Key) -> tuple[Array, Params]:
        copy = rebuild(train_graph, params, _own_keys(streams, key))
        values = loss(copy(batch["x"]), batch["y"])
        return values, collect(nnx.state(copy, nnx.Param), nnx.state(copy, nnx.BatchStat))

    return Model(
        outputs=outputs,
        loss=lambda params, batch: loss(outputs(params, batch), batch["y"]),
        features=features if _is_method(type(example), "features") else None,
        init=None if build is None else init,
        train=train if has_statistics or has_randomness else None,
        statistics=has_statistics,
        hidden=hidden if splits else None,
        resume=resume if splits else None,
    )


def _own_keys(streams: Any, key: Key) -> Any:
    """`streams`, a tree of keys, with the i-th leaf drawn from fold_in(key, i)."""
    leaves, tree = jax.tree.flatten(streams)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    shaped = [
        jax.random.split(k, leaf.shape) if leaf.shape else k
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shaped)


def from_linen(
    module: Any,
    example: Array,
    *,
    loss: Callable[[Array, Array], Array] = losses.cross_entropy,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """A Model of a Flax Linen module that maps `batch["x"]` to outputs.

    Args:
      module: `nn.Module`; its variables are the collection "params" and, optionally, "batch_stats".
      example: an input with a leading axis, (1, ...) is enough; only its shape and dtype are read.
      loss: (outputs, batch["y"]) -> (n,).
      train_kwargs: what the module is called with in training mode, e.g. `{"train": True}`; without
        it training mode equals evaluation mode.
      eval_kwargs: what it is called with in evaluation mode, e.g. `{"train": False}`.

    Returns:
      A Model whose params are `variables["params"]` (or, with statistics, both collections). If the
      module's class has a method `features(x)`, `model.features` is it; if it has both `middle(x)`
      and `resume(h)`, they are `model.hidden` and `model.resume`. These are called without
      `eval_kwargs`, so their defaults must be those of evaluation.

    Raises:
      TypeError: `module` is no Linen module.
      ValueError: the module has variable collections other than "params" and "batch_stats".

    Example:
      >>> from flax import linen
      >>> model = from_linen(linen.Dense(2), jnp.ones((1, 3)))
      >>> model.outputs(model.init(jax.random.key(0)), {"x": jnp.ones((5, 3))}).shape
      (5, 2)
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(
            f"from_linen: expected a linen.Module, got {type(module).__name__}. "
            "An NNX module goes through from_nnx."
        )
    eval_options = dict(eval_kwargs or {})
    shape = jax.ShapeDtypeStruct(jnp.shape(example), jnp.result_type(example))

    def create(key: Key, x: Array) -> Any:
        return module.init(key, x, **eval_options)

    collections = set(jax.eval_shape(create, jax.random.key(0), shape))
    if not collections <= {"params", "batch_stats"}:
        raise ValueError(
            f"from_linen: {type(module).__name__} has the variable collections "
            f"{sorted(collections)}; only 'params' and 'batch_stats' are understood. "
            "Build a Model(...) by hand."
        )
    has_statistics = "batch_stats" in collections
    splits = _is_method(type(module), "middle", "resume")

    def variables(params: Params) -> Any:
        return params if has_statistics else {"params": params}

    def outputs(params: Params, batch: Batch) -> Any:
        return module.apply(variables(params), batch["x"], **eval_options)

    def features(params: Params, batch: Batch) -> Any:
        return module.apply(variables(params), batch["x"], method="features")

    def hidden(params: Params, batch: Batch) -> Any:
        return module.apply(variables(params), batch["x"], method="middle")

    def resume(params: Params, hidden: Array) -> Any:
        return module.apply(variables(params), hidden, method="resume")

    def init(key: Key) -> Params:
        created = create(key, jnp.zeros(shape.shape, shape.dtype))
        return dict(created) if has_statistics else created["params"]

    def train(params: Params, batch: Batch, key: Key) -> tuple[Array, Params]:
        logits, changed = module.apply(
            variables(params),
            batch["x"],
            **dict(train_kwargs or {}),
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return loss(logits, batch["y"]), dict(params) | dict(changed) if has_statistics else params

    return Model(
        outputs=outputs,
        loss=lambda params, batch: loss(outputs(params, batch), batch["y"]),
        features=features if _is_method(type(module), "features") else None,
        init=init,
        train=None if train_kwargs is None else train,
        statistics=has_statistics,
        hidden=hidden if splits else None,
        resume=resume if splits else None,
    )
