"""Moments of per-example gradients over a set: all that an importance is computed from.

    F = mean_i g_i^2      g = mean_i g_i      a = mean_i |g_i|      n      g_c, n_c of each class c

Published codes loop over batches, square the gradient of a batch mean and average; what that
measures depends on the batch size and on how the batches were made. Here the batching is a formula
of the moments, exact in expectation:

    example (B = 1)   I = F
    random, B         I = g^2 + (F - g^2)/B (n - B)/(n - 1)           shuffled batches of B from n
    class, B          I = sum_c n_c/n [F_c/B + (1 - 1/B) g_c^2]       batches of one class each

Moments of disjoint sets add up, and those of a part can be taken away again. So the moments of the
whole training set, computed once when the model is trained and saved beside it, stand in for the
retained data: D = F + R gives I_D at once, and I_R = I_(D without F) by subtraction.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.curvature import SecondMoment, class_means, second_moment
from jaxunlearn.manifest import array_sha256, canonical_json, named_leaves, read_manifest
from jaxunlearn.method import Request
from jaxunlearn.model import Model, freeze_statistics, split_statistics
from jaxunlearn.typing import Array, Batch, Data, Params

LossFn = Callable[[Params, Batch], Array]
_TREES = ("square", "mean", "class_mean", "absolute")


class Moments(NamedTuple):
    """Moments over one set; what was not asked for is (). A `SecondMoment` is the first three."""

    square: Params  # F, mean squared per-example gradient
    mean: Params  # g, mean gradient
    count: Array  # [] n, total weight of the examples
    class_mean: Params = ()  # g_c, leaves (C, ...)
    class_count: Any = ()  # (C,) n_c
    absolute: Params = ()  # a, mean absolute per-example gradient


def moments_of(
    model: Model,
    params: Params,
    data: Data,
    *,
    by_class: bool = False,
    micro_batch: int | None = None,
) -> Moments:
    """(F, g, n) of the loss over a set, and (g_c, n_c) if `by_class`.

    At training time, over all of the training data, this is what `ssd(stored=...)` and
    `assd(stored=...)` take in place of the retained data; see `save_moments`.

    Args:
      model: its loss is differentiated; with running statistics, at these.
      params: as the model takes them; the moments have the tree of the weights.
      data: in-memory or streaming, with labels.
      by_class: also the moments for importances of class batches.
      micro_batch: see `curvature.second_moment`.

    Cost: one backward pass over the data; with `by_class` two, and memory for C gradients.

    Example:
      >>> from jaxunlearn import data, losses
      >>> def loss(p, b):
      ...     return losses.squared_error(b["x"] @ p, b["y"])
      >>> model = Model(outputs=lambda p, b: b["x"] @ p, loss=loss)
      >>> some = data.in_memory({"x": jnp.array([[1.0], [3.0]]), "y": jnp.zeros(2)})
      >>> made = moments_of(model, jnp.ones(1), some)
      >>> print(made.square, made.mean, made.count)
      [164.] [10.] 2.0
    """
    weights, statistics = split_statistics(model, params)
    inner = freeze_statistics(model, statistics)
    second = second_moment(inner.loss, weights, data, micro_batch=micro_batch)
    first = Moments(second.square, second.mean, second.count)
    if not by_class:
        return first
    classes = jax.eval_shape(inner.outputs, weights, next(iter(data))).shape[-1]
    means, counts = class_means(inner.loss, weights, data, classes, micro_batch=micro_batch)
    return first._replace(class_mean=means, class_count=counts)


def importance(moments: Moments, effective_batch: int = 1, batching: str = "random") -> Params:
    """The importance that a loop over batches of `effective_batch` has in expectation, exactly.

    Args:
      moments: of one set, with class means if batching is "class".
      effective_batch: B >= 1; 1 is the per-example Fisher diagonal F, whatever the batching.
      batching: "random" (with the finite-population factor) or "class".

    Returns:
      A tree like the params. "random" with B >= n is g^2, the one full batch.
    """
    batch = float(effective_batch)
    if effective_batch == 1:
        return moments.square
    if batching == "class":
        share = moments.class_count / jnp.maximum(jnp.sum(moments.class_count), 1)

        def within(f: Array, g: Array) -> Array:
            return f / batch + (1 - 1 / batch) * jnp.tensordot(share.astype(g.dtype), g * g, axes=1)

        return jax.tree.map(within, moments.square, moments.class_mean)
    return jax.tree.map(lambda g, v: g * g + v, moments.mean, batch_variance(moments, batch))


def batch_variance(moments: Moments, batch: float) -> Params:
    """(F - g^2)/B (n - B)/(n - 1): the variance of the mean gradient of a random batch."""
    n = jnp.maximum(moments.count, 1)
    spread = jnp.where(n > batch, (n - batch) / jnp.maximum(n - 1, 1), 0) / batch

    def variance(f: Array, g: Array) -> Array:
        # F >= g^2 (Jensen); rounding must not make the variance negative
        return jnp.maximum(f - g * g, 0) * spread.astype(f.dtype)

    return jax.tree.map(variance, moments.square, moments.mean)


def union(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets: example-weighted means."""
    return _combine(a, b, lambda n_a, n_b: (n_a + n_b, n_b / jnp.maximum(n_a + n_b, 1)))


def remainder(whole: Moments, part: Moments) -> Moments:
    """Moments of `whole` without `part`, the inverse of `union`: (n x - n_p x_p) / (n - n_p).

    Squares and absolute values stay >= 0 whatever the rounding, which is that of n/(n - n_p) times
    the numbers subtracted. Where nothing is left (n <= n_p), NaN: no importance can be made of it.
    """

    def lose(n: Array, n_p: Array) -> tuple[Array, Array]:
        left = n - n_p
        return left, jnp.where(left > 0, -n_p / jnp.where(left > 0, left, 1), jnp.nan)

    out = _combine(whole, part, lose)
    # a class without examples has mean 0
    known = jax.tree.map(lambda g: jnp.where(_wide(out.class_count, g) > 0, g, 0), out.class_mean)
    square, absolute = jax.tree.map(lambda f: jnp.maximum(f, 0), (out.square, out.absolute))
    return out._replace(square=square, absolute=absolute, class_mean=known)


def _combine(a: Moments, b: Moments, rule: Callable[[Array, Array], tuple]) -> Moments:
    """(1 - s) a + s b for every mean, where rule(n_a, n_b) = (n, s), also class by class."""
    count, share = rule(a.count, b.count)

    def mix(share: Array) -> Callable[[Array, Array], Array]:
        def of(x: Array, y: Array) -> Array:
            s = _wide(share.astype(x.dtype), x)
            return (1 - s) * x + s * y

        return of

    square, mean, absolute = jax.tree.map(
        mix(share), (a.square, a.mean, a.absolute), (b.square, b.mean, b.absolute)
    )
    if isinstance(a.class_count, tuple):
        return Moments(square, mean, count, absolute=absolute)
    class_count, class_share = rule(a.class_count, b.class_count)
    class_mean = jax.tree.map(mix(class_share), a.class_mean, b.class_mean)
    return Moments(square, mean, count, class_mean, class_count, absolute)


def _wide(share: Array, like: Array) -> Array:
    """[] or (C,), with axes of length 1 added behind until it broadcasts against `like`."""
    return share.reshape(share.shape + (1,) * (like.ndim - share.ndim))


# ----------------------------------------------------------------- moments stored beside a model


def forget_and_reference(
    measure: Callable[[Data], Moments], request: Request, stored: Moments | None, reference: str
) -> tuple[Moments, Moments]:
    """Moments of F, and of F and R together ("full") or of R ("retain"), measured or stored."""
    forget = measure(request.forget)
    if stored is None:
        assert request.retain is not None
        retain = measure(request.retain)
        return forget, union(forget, retain) if reference == "full" else retain
    full = restrict(stored, forget)
    return forget, full if reference == "full" else remainder(full, forget)


def as_moments(name: str, stored: Any) -> Moments | None:
    """`stored` as Moments (a `SecondMoment` will do), or None.

    Raises:
      TypeError: it is neither.
    """
    if stored is None or isinstance(stored, Moments):
        return stored
    if isinstance(stored, SecondMoment):
        return Moments(*stored)
    raise TypeError(
        f"{name}: stored must be Moments of the whole training set (see moments_of), got "
        f"{type(stored).__name__}."
    )


def restrict(stored: Moments, like: Moments) -> Moments:
    """The parts and leaves of `stored` that `like` has, found by their paths.

    Of a method that may move some leaves only, `like` has only these.

    Raises:
      ValueError: one is missing or has another shape, naming it.
    """

    def pick(field: str) -> Params:
        wanted, kept = getattr(like, field), getattr(stored, field)
        if isinstance(wanted, tuple) and not jax.tree.leaves(wanted):
            return wanted
        there = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        }

        def find(path: Any, leaf: Array) -> Array:
            name = jax.tree_util.keystr(path)
            if name not in there:
                raise ValueError(
                    f"stored moments have no {field} at params{name}. Were they computed for "
                    "another model, or without this part (by_class, output_moments)?"
                )
            if there[name].shape != leaf.shape:
                raise ValueError(
                    f"stored {field} and params differ at params{name}: shapes "
                    f"{there[name].shape} and {leaf.shape}. Was it computed for another head?"
                )
            return there[name]

        return jax.tree_util.tree_map_with_path(find, wanted)

    trees = {field: pick(field) for field in _TREES}
    by_class = not isinstance(like.class_count, tuple)
    return Moments(**trees, count=stored.count, class_count=stored.class_count if by_class else ())


def save_moments(
    path: str | os.PathLike[str], moments: Moments, params: Params, *, overwrite: bool = False
) -> Path:
    """Writes moments as a checkpoint, with the fingerprint of the params they were computed at.

    Args:
      path: a directory that does not exist yet, such as the model's own checkpoint's neighbour.
      moments: from `moments_of` or `output_moments`.
      params: what they were computed at, all of it.
      overwrite, Returns, Raises: as for `checkpoint.save`.
    """
    trees = [field for field in Moments._fields if jax.tree.leaves(getattr(moments, field))]
    classes = len(moments.class_count) if "class_count" in trees else 0
    about = {"params": _fingerprint(params), "parts": trees, "classes": classes}
    counts = {f: jnp.asarray(getattr(moments, f), jnp.float32) for f in trees if "count" in f}
    moments = moments._replace(**counts)
    return checkpoint.save(path, moments, metadata={"moments": about}, overwrite=overwrite)


def load_moments(path: str | os.PathLike[str], model: Model, params: Params) -> Moments:
    """Reads what `save_moments` wrote, for this model at exactly these params.

    Raises:
      ValueError: the checkpoint holds something else, or moments at other params, where they say
        nothing: importances change with every training step.
      CheckpointError, FileNotFoundError: as for `checkpoint.load`.

    Example:
      >>> import tempfile
      >>> ones = jnp.ones(2)
      >>> model = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"] @ p)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = save_moments(f"{directory}/moments", Moments(ones, ones, jnp.ones(())), ones)
      ...     print(load_moments(path, model, ones).square)
      [1. 1.]
    """
    about = read_manifest(path)["metadata"].get("moments")
    if about is None:
        raise ValueError(f"{path} holds no moments. save_moments writes them.")
    if about["params"] != _fingerprint(params):
        raise ValueError(
            f"the moments in {path} were computed at other parameters than these. Compute them "
            "again with moments_of, after the last training step."
        )
    weights, _ = split_statistics(model, params)

    def like(*axes: int) -> Callable[[Array], jax.ShapeDtypeStruct]:
        return lambda p: jax.ShapeDtypeStruct(
            (*axes, *jnp.shape(p)), jnp.promote_types(jnp.result_type(p), jnp.float32)
        )

    classes = about["classes"]
    shapes = {field: jax.tree.map(like(), weights) for field in ("square", "mean", "absolute")}
    shapes["class_mean"] = jax.tree.map(like(classes), weights)
    shapes["class_count"] = jax.ShapeDtypeStruct((classes,), jnp.float32)
    shapes["count"] = jax.ShapeDtypeStruct((), jnp.float32)
    parts: dict[str, Any] = {f: shapes[f] if f in about["parts"] else () for f in Moments._fields}
    return checkpoint.load(path, Moments(**parts))


def _fingerprint(params: Params) -> str:
    """sha256 over names and bytes of the leaves."""
    hashes = {
        name: array_sha256(np.asarray(leaf, order="C"))
        for name, leaf in named_leaves(params).items()
    }
    return hashlib.sha256(canonical_json(hashes, "params").encode()).hexdigest()
