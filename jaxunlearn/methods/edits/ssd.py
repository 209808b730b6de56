"""Selective synaptic dampening: shrink the weights that matter more to F than to everything.

    select j where  I_f,j > alpha I_ref,j;      theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1)

I_S is the diagonal empirical Fisher of the set S: the mean over examples of the squared gradient.
Foster, Schoepf and Brintrup (2024), "Fast Machine Unlearning Without Retraining Through Selective
Synaptic Dampening", arXiv:2308.07707, Algorithm 1.

What the published code squares is the gradient of a batch mean, and whether those batches held one
class or many changes the method. Here the per-example moments (F, g) are exact and the batching is
a formula:

    example (B = 1)   I = F
    random, B         I = g^2 + (F - g^2)/B (n - B)/(n - 1)           shuffled batches of B from n
    class, B          I = sum_c n_c/n [F_c/B + (1 - 1/B) g_c^2]       batches of one class each

Because F is part of the full set, "example" and "class" importances obey I_f/I_full <= n/n_f: with
alpha >= n/n_f nothing can be selected, which a warning says.

Departures: 1. per-example moments and the formulas above in place of a batch loop. 2. The default
is random batches of 64, since with class batches or B = 1 the published alpha = 10 cannot act on
one class of ten. 3. `reference="retain"` and a floor on the factor are offered (both from the
adaptive successor, arXiv:2402.10098).
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.fisher import class_means, second_moment
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Data, Key, Params


class NothingSelectedWarning(UserWarning):
    """The bound I_f/I_full <= n/n_f leaves (almost) nothing to select at this alpha."""


class SSDInfo(NamedTuple):
    """What was edited."""

    selected: Array  # [] float32, fraction of entries that were dampened
    largest_ratio: Array  # [] float32, max_j I_f,j / I_ref,j over entries with I_ref > 0


class Moments(NamedTuple):
    """All that any batching needs to know about a set."""

    square: Params  # F, mean squared per-example gradient
    mean: Params  # g, mean gradient
    count: Array  # [] n
    class_mean: Params = ()  # g_c, leaves (C, ...); only when asked for
    class_count: Any = ()  # (C,) n_c


def dampen(
    params: Params,
    forget: Params,
    reference: Params,
    alpha: float,
    dampening: float = 1.0,
    floor: float = 0.0,
) -> Params:
    """theta'_j = theta_j max(min(lambda I_ref,j / I_f,j, 1), floor) where I_f,j > alpha I_ref,j.

    Args:
      params: tree of float arrays.
      forget, reference: importances I_f and I_ref, trees of the same shapes, >= 0.
      alpha: selection threshold, >= 0; entries with equality are not selected.
      dampening: lambda >= 0.
      floor: smallest factor, in [0, 1].

    Returns:
      The params; the other entries bit-identical, dtype kept.

    Raises:
      ValueError: trees or shapes differ, naming the leaf.

    | entry                     | result                          |
    |---------------------------|---------------------------------|
    | I_f = I_ref = 0           | unchanged                       |
    | I_ref = 0 < I_f           | theta * floor                   |
    | alpha = inf               | unchanged                       |

    Example:
      >>> print(dampen(jnp.ones(2), jnp.array([4.0, 1.0]), jnp.ones(2), alpha=2.0))
      [0.25 1.  ]
    """
    for name, tree in (("forget", forget), ("reference", reference)):
        _check_like(params, tree, name)

    def edit(p: Array, i_f: Array, i_ref: Array) -> Array:
        factor = dampening * i_ref / jnp.where(i_f > 0, i_f, 1)
        factor = jnp.clip(factor, floor, 1).astype(p.dtype)
        return jnp.where(_selected(i_f, i_ref, alpha), p * factor, p)

    return jax.tree.map(edit, params, forget, reference)


def _selected(i_f: Array, i_ref: Array, alpha: float) -> Array:
    return (i_f > alpha * i_ref) if math.isfinite(alpha) else jnp.zeros(i_f.shape, bool)


def _check_like(params: Params, tree: Params, name: str) -> None:
    if jax.tree.structure(params) != jax.tree.structure(tree):
        raise ValueError(
            f"dampen: `{name}` and params are different trees. Was it computed for another model?"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(tree), strict=True)
    for (path, p), i in pairs:
        if p.shape != i.shape:
            raise ValueError(
                f"dampen: `{name}` and params differ at {jax.tree_util.keystr(path)}: shapes "
                f"{i.shape} and {p.shape}. Was it computed for another head?"
            )


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
    n = jnp.maximum(moments.count, 1)
    spread = jnp.where(n > batch, (n - batch) / jnp.maximum(n - 1, 1), 0) / batch

    def expected(f: Array, g: Array) -> Array:
        # F >= g^2 (Jensen); rounding must not make the variance negative
        return g * g + jnp.maximum(f - g * g, 0) * spread.astype(f.dtype)

    return jax.tree.map(expected, moments.square, moments.mean)


def moments_of(
    model: Model, params: Params, data: Data, by_class: bool, micro_batch: int | None = None
) -> Moments:
    """The Moments of a set; `by_class` costs a second pass and memory for C gradients."""
    second = second_moment(model.loss, params, data, micro_batch=micro_batch)
    if not by_class:
        return Moments(second.square, second.mean, second.count)
    classes = jax.eval_shape(model.outputs, params, next(iter(data))).shape[-1]
    means = class_means(model.loss, params, data, classes, micro_batch=micro_batch)
    return Moments(second.square, second.mean, second.count, *means)


def union(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets: example-weighted means."""

    def mix(x: Array, y: Array, n_x: Array, n_y: Array) -> Array:
        share = (n_x / jnp.maximum(n_x + n_y, 1)).astype(x.dtype)
        share = share.reshape(share.shape + (1,) * (x.ndim - share.ndim))
        return share * x + (1 - share) * y

    square, mean = jax.tree.map(
        lambda x, y: mix(x, y, a.count, b.count), (a.square, a.mean), (b.square, b.mean)
    )
    class_mean = jax.tree.map(
        lambda x, y: mix(x, y, a.class_count, b.class_count), a.class_mean, b.class_mean
    )
    class_count = jax.tree.map(jnp.add, a.class_count, b.class_count)
    return Moments(square, mean, a.count + b.count, class_mean, class_count)


def ssd(
    *,
    alpha: float = 10.0,
    dampening: float = 1.0,
    effective_batch: int = 64,
    batching: str = "random",
    reference: str = "full",
    floor: float = 0.0,
    micro_batch: int | None = None,
) -> Method:
    """theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1) where I_f,j > alpha I_ref,j.

    Args:
      alpha: selection threshold, >= 0. Published: 10 for ResNet-18; 5, 10, 25 for ViT on class,
        random, sub-class.
      dampening: lambda >= 0. Published: 1.
      effective_batch: B >= 1 in the formulas of the module; 1 is the per-example Fisher diagonal.
      batching: "random" or "class".
      reference: "full" (F and R together, the paper) or "retain".
      floor: smallest factor, in [0, 1].
      micro_batch: examples whose gradients are formed at once; see `curvature.second_moment`.

    Returns:
      A Method that needs forget, retain and labels; deterministic, so it takes no key.

    Raises:
      ValueError: a constant outside its range.

    Warns:
      NothingSelectedWarning: n/n_f < 3 alpha with reference "full" and B = 1 or class batches.

    | situation                                        | result                            |
    |--------------------------------------------------|-----------------------------------|
    | alpha >= n/n_f, reference "full", B = 1 or class | params bit-identical (a theorem)  |
    | alpha = inf                                      | params bit-identical              |
    | loss multiplied by a constant                    | the same edit                     |
    | examples permuted, another micro_batch           | the same edit up to rounding      |
    | running statistics                               | not parameters: left alone        |

    Cost: one backward pass per example of F and R (two with class batches); memory (micro_batch +
    5) x params.

    Source: Foster et al. (2024), arXiv:2308.07707, Algorithm 1; departures in the module.

    Example:
      >>> sorted(ssd(alpha=10.0, effective_batch=64).needs)
      ['forget', 'labels', 'retain']
    """
    if not (alpha >= 0 and dampening >= 0 and 0 <= floor <= 1):
        raise ValueError(
            f"ssd: expected alpha >= 0, dampening >= 0 and floor in [0, 1], got {alpha=}, "
            f"{dampening=}, {floor=}."
        )
    if effective_batch < 1 or (micro_batch is not None and micro_batch < 1):
        raise ValueError(f"ssd: batches must be >= 1, got {effective_batch=}, {micro_batch=}.")
    if batching not in ("random", "class"):
        raise ValueError(f"ssd: batching must be 'random' or 'class', got {batching!r}.")
    if reference not in ("full", "retain"):
        raise ValueError(f"ssd: reference must be 'full' or 'retain', got {reference!r}.")
    by_class = batching == "class" and effective_batch > 1
    bounded = reference == "full" and (effective_batch == 1 or by_class)

    def warn(request: Request) -> None:
        assert request.retain is not None
        ratio = 1 + request.retain.num_examples / request.forget.num_examples
        if bounded and ratio < 3 * alpha:
            warnings.warn(
                f"ssd: these importances obey I_f/I_full <= n/n_f = {ratio:.3g}, and alpha = "
                f"{alpha:g} selects only above {alpha:g}, so "
                f"{'nothing' if ratio <= alpha else 'little'} can be dampened. Use "
                "effective_batch=64 with batching='random', or a smaller alpha.",
                NothingSelectedWarning,
                stacklevel=3,
            )

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key
        assert request.retain is not None
        forget = moments_of(model, params, request.forget, by_class, micro_batch)
        retain = moments_of(model, params, request.retain, by_class, micro_batch)
        base = union(forget, retain) if reference == "full" else retain
        i_f = importance(forget, effective_batch, batching)
        i_ref = importance(base, effective_batch, batching)
        edited = dampen(params, i_f, i_ref, alpha, dampening, floor)
        return Unlearned(model, edited, _info(i_f, i_ref, alpha))

    return method(
        unlearn,
        needs={"forget", "retain", "labels"},
        name="ssd",
        guarantee=EMPIRICAL,
        warn=warn,
    )


def _info(forget: Params, reference: Params, alpha: float) -> SSDInfo:
    pairs = list(zip(jax.tree.leaves(forget), jax.tree.leaves(reference), strict=True))
    chosen = jnp.array([_selected(f, r, alpha).sum() for f, r in pairs]).sum()
    ratios = [
        jnp.max(jnp.where(r > 0, f / jnp.where(r > 0, r, 1), 0), initial=0.0) for f, r in pairs
    ]
    total = sum(f.size for f, _ in pairs)
    return SSDInfo(
        (chosen / max(total, 1)).astype(jnp.float32), jnp.max(jnp.array(ratios)).astype(jnp.float32)
    )
