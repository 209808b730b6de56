"""Fisher forgetting: noise where the retained data do not hold a weight in place.

    theta = theta_0 + sqrt(alpha v) xi,     xi ~ N(0, I),     v = 1 / F

F is the diagonal of the Fisher information on the RETAINED data, with labels drawn from the model
itself and summed over exactly:  F = mean_x sum_c p_c(x) (d CE(x, c) / d theta)^2.  A weight that R
needs has a large F and hardly moves; whatever F alone had written into the others is drowned.
Golatkar, Achille and Soatto (2020), "Eternal Sunshine of the Spotless Net: Selective Forgetting in
Deep Networks", arXiv:1911.04933; constants from its code, in the order in which they act:

    1. v = min(1/F, 1000), and for the last layer min(1/F, 100)
    2. alpha v is averaged over the input axis of a weight, so that the incoming weights of one
       output unit share one variance
    3. if a class is forgotten altogether, what leads to its output in the last layer gets mean 0
       and variance 1e-4 instead
    4. variances are multiplied by 10 for the last layer and for vectors (norm scales and biases)

Departures: 1. the Fisher of single examples; the code squares the gradient of batch means of 32,
with the batch's mean probability, which is smaller by up to 32: the same alpha does less here.
2. Layouts are those of JAX: outputs last, inputs before them. Of a kernel with several input axes
(attention) only the last one is averaged over. 3. Whether a class goes altogether is read off the
labels: it is in F and not in R. 4. The last layer may be named.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature import fisher_diagonal
from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Data, Key, Params

MOST = 1e3  # largest 1/F
MOST_HEAD = 1e2  # the same in the last layer
FACTOR = 10.0  # of the variance in the last layer and of vectors
CLASS_VARIANCE = 1e-4  # of what leads to a class that is forgotten altogether, before FACTOR


class FisherForgettingInfo(NamedTuple):
    """How much noise, and where the Fisher did not decide it."""

    deviation: Array  # [] float32, root mean variance of the noise over all entries
    clamped: Array  # [] float32, fraction of entries with 1/F at its clamp
    classes: Array  # (C,) bool, classes whose outputs were erased by step 3
    unusable: Array  # [] float32, fraction of entries whose Fisher is NaN or inf: no noise


def noise_variance(
    fisher: Array, alpha: float | Array, *, head: bool, average: bool = True
) -> Array:
    """Steps 1, 2 and 4 of the module for one leaf; the variance of its noise.

    Args:
      fisher: F of the leaf, >= 0, any shape; its last axis are outputs, the one before it inputs.
      alpha: >= 0, in squared units of the parameter times those of F.
      head: whether it belongs to the last layer.
      average: step 2.

    Returns:
      Of the same shape; entries whose F is NaN or inf get none and do not enter the average.

    Example:
      >>> F = jnp.array([[1.0, 0.0], [0.25, 0.0]])
      >>> print(noise_variance(F, 0.01, head=False))
      [[ 0.025 10.   ]
       [ 0.025 10.   ]]
    """
    usable = jnp.isfinite(fisher)
    v = jnp.where(usable, jnp.minimum(1 / fisher, MOST_HEAD if head else MOST), 0)
    if average and fisher.ndim > 1:
        number = jnp.maximum(usable.sum(axis=-2, keepdims=True), 1)
        v = jnp.where(usable, v.sum(axis=-2, keepdims=True) / number.astype(v.dtype), 0)
    return alpha * v * (FACTOR if head or fisher.ndim < 2 else 1)


def last_layer(params: Params, classes: int, head: str | None = None) -> Params:
    """Which leaves belong to the last layer: those named, or those whose last axis is the classes.

    Args:
      params: tree of arrays.
      classes: C, the size of the outputs' last axis.
      head: part of the key path of its leaves, such as "head"; None finds them by their shape.

    Returns:
      A tree of bools.

    Raises:
      ValueError: no leaf is so named, a leaf so named does not end in C, or by their shape two
        weights or two biases could be it.

    Example:
      >>> body, head = {"w": jnp.ones((4, 6))}, {"w": jnp.ones((6, 3)), "b": jnp.ones(3)}
      >>> last_layer({"body": body, "head": head}, 3)
      {'body': {'w': False}, 'head': {'b': True, 'w': True}}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    fits = [leaf.shape[-1:] == (classes,) for _, leaf in leaves]
    if head is None:
        found = fits
        for kind in (True, False):
            same = [n for n, f, (_, x) in zip(names, fits, leaves, strict=True)
                    if f and (x.ndim > 1) == kind]  # fmt: skip
            if len(same) > 1:
                raise ValueError(
                    f"fisher_forgetting: {' and '.join(same)} all end in {classes}, the number of "
                    "classes, and one layer is the last. Name it: head='...', a part of its path."
                )
    else:
        found = [head in name for name in names]
        if not any(found):
            raise ValueError(
                f"fisher_forgetting: no leaf has head={head!r} in its path. There are {names}."
            )
        for name, named, fit, (_, leaf) in zip(names, found, fits, leaves, strict=True):
            if named and not fit:
                raise ValueError(
                    f"fisher_forgetting: params{name} has head={head!r} in its path, but its shape "
                    f"{leaf.shape} does not end in {classes}, the number of classes."
                )
    return jax.tree.unflatten(jax.tree.structure(params), found)


def whole_classes(forget: Data, retain: Data, classes: int) -> Array:
    """(C,) bool: classes that occur in F and not in R, among rows of positive weight."""

    def present(data: Data) -> Array:
        seen = jnp.zeros(classes, bool)
        for batch in [data.arrays] if isinstance(data, InMemory) else data:
            y = jnp.asarray(batch["y"]).astype(jnp.int32)
            counts = (
                jnp.asarray(batch["weight"]) > 0 if "weight" in batch else jnp.ones(len(y), bool)
            )
            counts = jnp.broadcast_to(counts.reshape(-1, *[1] * (y.ndim - 1)), y.shape)
            seen = seen.at[y].max(counts)
        return seen

    return present(forget) & ~present(retain)


def fisher_forgetting(
    *,
    alpha: float = 1e-6,
    whole_class_rule: bool = True,
    head: str | None = None,
    average: bool = True,
    micro_batch: int | None = None,
) -> Method:
    """theta = theta_0 + sqrt(alpha min(1/F, clamp)) xi, F the exact Fisher diagonal on R.

    Args:
      alpha: scale of the variance, >= 0. Published: swept over 1e-9 ... 1e-6.
      whole_class_rule: step 3 of the module, for classes that are in F and not in R. Without it
        the forget set and the labels are not read at all.
      head: part of the path of the last layer's leaves. None: those that end in C, where this is
        one weight and one bias at most.
      average: step 2.
      micro_batch: examples taken at once; see `curvature.fisher_diagonal`.

    Returns:
      A Method that needs retain and the key, and with the rule for classes forget and labels.

    Raises:
      ValueError: a constant outside its range; the last layer cannot be told (see `last_layer`).

    | situation                         | result                                               |
    |-----------------------------------|------------------------------------------------------|
    | alpha = 0                         | params bit-identical, with whole classes too         |
    | F = 0 (a dead unit)               | the clamp: variance 1000 alpha                       |
    | no last layer (it is frozen)      | no special treatment of any leaf                     |
    | F is NaN or inf                   | no noise there, counted in `info.unusable`           |
    | random examples of all classes    | step 3 does nothing                                  |
    | regression                        | refused: outputs are read as logits                  |

    Cost: C - 1 backward passes over R for C classes, and nothing iterative; memory of three trees
    beside that of a gradient.

    Source: Golatkar et al. (2020), arXiv:1911.04933; departures in the module.

    Example:
      >>> sorted(fisher_forgetting(whole_class_rule=False).needs)
      ['key', 'retain']
    """
    if not is_traced(alpha) and not 0 <= alpha < float("inf"):
        raise ValueError(f"fisher_forgetting: alpha must be finite and >= 0, got {alpha}.")
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"fisher_forgetting: micro_batch must be >= 1 or None, got {micro_batch}.")

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        retain = request.retain
        assert retain is not None
        example = next(iter(retain))
        classes = jax.eval_shape(model.outputs, params, example).shape[-1]
        if whole_class_rule and not jnp.issubdtype(example["y"].dtype, jnp.integer):
            raise ValueError(
                "fisher_forgetting: labels must be integer classes, got "
                f"{example['y'].dtype}. Outputs are read as logits: regression has no rule here."
            )
        in_head = last_layer(params, classes, head)
        fisher = fisher_diagonal(
            None,
            params,
            retain,
            kind="exact",
            outputs=model.outputs,
            micro_batch=micro_batch,
        )
        gone = jnp.zeros(classes, bool)
        if whole_class_rule:
            # alpha = 0 is the identity, also where a class would be erased
            gone = whole_classes(request.forget, retain, classes) & (jnp.asarray(alpha) > 0)

        def distribution(p: Array, f: Array, last: bool) -> tuple[Array, Array]:
            variance = noise_variance(f, alpha, head=last, average=average)
            if not last:
                return p, variance
            erased = jnp.broadcast_to(gone.reshape([1] * (p.ndim - 1) + [classes]), p.shape)
            return jnp.where(erased, 0, p), jnp.where(erased, CLASS_VARIANCE * FACTOR, variance)

        leaves, tree = jax.tree.flatten(params)
        fishers, lasts = jax.tree.leaves(fisher), jax.tree.leaves(in_head)
        made = [distribution(*each) for each in zip(leaves, fishers, lasts, strict=True)]
        edited = [
            _draw(mean, variance, jax.random.fold_in(key, place))
            for place, (mean, variance) in enumerate(made)
        ]
        edited = [
            jnp.where(jnp.asarray(alpha) > 0, new, old)  # -0.0 + 0.0 is another zero
            for new, old in zip(edited, leaves, strict=True)
        ]
        info = _describe([variance for _, variance in made], fishers, lasts, gone)
        return Unlearned(model, jax.tree.unflatten(tree, edited), info)

    return method(
        unlearn,
        needs={"retain", "key"} | ({"forget", "labels"} if whole_class_rule else set()),
        name="fisher_forgetting",
        guarantee=EMPIRICAL,
    )


def _draw(mean: Array, variance: Array, key: Key) -> Array:
    noise = jnp.sqrt(variance) * jax.random.normal(key, mean.shape, variance.dtype)
    return (mean.astype(variance.dtype) + noise).astype(mean.dtype)


def _describe(
    variances: list[Array], fishers: list[Array], lasts: list[bool], gone: Array
) -> FisherForgettingInfo:
    total = max(sum(v.size for v in variances), 1)

    def share(counts: list[Array]) -> Array:
        return sum(counts, jnp.float32(0)) / total

    pairs = list(zip(fishers, lasts, strict=True))
    return FisherForgettingInfo(
        deviation=jnp.sqrt(share([v.sum().astype(jnp.float32) for v in variances])),
        clamped=share([jnp.sum(f <= 1 / (MOST_HEAD if last else MOST)) for f, last in pairs]),
        classes=gone,
        unusable=share([jnp.sum(~jnp.isfinite(f)) for f in fishers]),
    )
