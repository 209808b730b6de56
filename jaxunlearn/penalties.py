"""Penalties that keep parameters near an anchor: plain L2 and elastic weight consolidation.

    R(theta) = 1/2 <d, C d>,    d = m (theta - theta_o)

    L2                 C = 1
    EWC                C = diag(F), F the Fisher diagonal of what is to be kept
    second order       C = any matrix, given by its products

What continual learning uses to go on without stored examples, and unlearning as the retain side
when only forget (or new) data are at hand. The penalties are `Objective`s: a loss and a penalty
make a run,

    weighted_sum((1.0, mean_loss(model)), (mu, ewc(anchor, fisher)))

Their anchor and curvature travel as the objective's state, as arrays and not as constants of a
program. The same pull as an optax transformation is in `jaxunlearn.transforms`; penalties on
outputs and features are in `jaxunlearn.distillation`.

With C the Hessian of an earlier quadratic loss at its minimum, minimising (later loss) + R IS joint
training on both. For losses that are means over n_1 and n_2 examples this needs mu = n_1 / n_2.

Several tasks fit into one anchor and one Fisher. A sum of diagonal quadratics is one quadratic
around their weighted mean, plus a constant:

    offline   sum_k 1/2 F_k (theta - theta_k)^2 = 1/2 (sum_k F_k) (theta - a)^2 + const,
              a = sum_k F_k theta_k / sum_k F_k
    online    F <- zeta F + F_k,   a = the latest theta

Sources: Kirkpatrick et al. (2017), arXiv:1612.00796, eq. 3 (offline EWC); Schwarz et al. (2018),
arXiv:1805.06370, section 3.2 (online EWC); Smith et al. (2023), "A Closer Look at Rehearsal-Free
Continual Learning", arXiv:2203.17269, which compares them. Of the last no code was found: this is a
*reconstruction* from the standard definitions.

Departures: 1. Offline EWC keeps the weighted mean above instead of one anchor and Fisher per task:
the same gradient in the memory of one task. 2. Fisher diagonals are scaled to mean 1 by default, so
that mu has the meaning it has for L2. 3. Which Fisher is for the caller to say (see `ewc`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.columns import is_traced
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.typing import Array, Key, Params

Curvature = Params | Callable[[Params], Params] | None


class EWCState(NamedTuple):
    """What the tasks so far want kept; O(params) however many they were."""

    anchor: Params  # like params: the latest theta (online), or the F-weighted mean (offline)
    fisher: Params  # like params, float32 or wider, >= 0: accumulated importances
    tasks: Array  # [] int32, tasks accumulated


class _Quadratic(NamedTuple):
    """State of a penalty that never changes."""

    anchor: Params
    fisher: Params  # None where C is 1 or a function
    mask: Params  # full tree of bools, None where everything is penalised


def check_like(where: str, what: str, tree: Params, params: Params) -> None:
    """Raises `ValueError` unless `tree` has the structure and the shapes of `params`."""
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise ValueError(
            f"{where}: `{what}` and params are different trees, {jax.tree.structure(tree)} and "
            f"{jax.tree.structure(params)}. Was it made for another model?"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(tree), strict=True)
    for (path, p), leaf in pairs:
        if jnp.shape(p) != jnp.shape(leaf):
            raise ValueError(
                f"{where}: `{what}` and params differ at {jax.tree_util.keystr(path)}: shapes "
                f"{jnp.shape(leaf)} and {jnp.shape(p)}. If a head has grown, "
                "jaxunlearn.penalties.grown pads the old one and masks what is new."
            )


def check_importances(where: str, fisher: Params) -> None:
    """Raises `ValueError` where an importance is negative, NaN or Inf; traced values pass."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(fisher):
        if not is_traced(leaf) and not np.all(np.isfinite(leaf) & (np.asarray(leaf) >= 0)):
            raise ValueError(
                f"{where}: importances must be finite and >= 0, but those at "
                f"fisher{jax.tree_util.keystr(path)} are not. Did the model diverge?"
            )


def full_mask(where: str, mask: Any, params: Params) -> Params:
    """`mask` as a tree of the params' structure; None stays None.

    Raises:
      ValueError: the mask is no prefix of the params, or a leaf fits neither as one bool nor entry
        by entry.
      TypeError: a leaf is not boolean.
    """
    if mask is None:
        return None
    try:
        full = jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), mask, params)
    except ValueError as error:
        raise ValueError(f"{where}: the mask is no prefix of the params: {error}") from None
    for (path, m), p in zip(
        jax.tree_util.tree_leaves_with_path(full), jax.tree.leaves(params), strict=True
    ):
        place = f"{where}: mask{jax.tree_util.keystr(path)}"
        if jnp.result_type(m) != jnp.bool_:
            raise TypeError(f"{place} must be a bool or a bool array, got {jnp.result_type(m)}.")
        if jnp.shape(m) not in ((), jnp.shape(p)):
            raise ValueError(f"{place} has shape {jnp.shape(m)}, the leaf has {jnp.shape(p)}.")
    return full


def displacement(params: Params, anchor: Params, mask: Params = None) -> Params:
    """d = mask (theta - theta_o), in at least float32; a masked entry is 0 whatever it holds."""

    def difference(p: Array, a: Array) -> Array:
        dtype = jnp.promote_types(jnp.result_type(p), jnp.float32)
        return jnp.asarray(p, dtype) - jnp.asarray(a, dtype)

    d = jax.tree.map(difference, params, anchor)
    return d if mask is None else jax.tree.map(lambda m, x: jnp.where(m, x, 0), mask, d)


def quadratic(
    params: Params, anchor: Params, curvature: Curvature = None, mask: Any = None
) -> Array:
    """R = 1/2 <d, C d> with d = mask (theta - theta_o).

    Args:
      params: theta, a tree of float arrays.
      anchor: theta_o, a tree of the same shapes.
      curvature: None for C = 1; a tree of the same shapes, C = diag(F); or a function v -> C v on
        trees like params (say, a Hessian or Gauss-Newton product), with C symmetric.
      mask: what is penalised: a tree of bools or bool arrays, or a prefix of one; None: everything.
        Rows or columns of new classes in a head belong to False.

    Returns:
      [] float, at least float32.

    Raises:
      ValueError: trees or shapes differ (names the leaf).
      TypeError: a mask leaf is not boolean.

    | edge case          | result                                                      |
    |--------------------|-------------------------------------------------------------|
    | theta = theta_o    | 0, with zero gradient                                        |
    | C = diag(1)        | the same as C = 1                                            |
    | all masked out     | 0, with zero gradient                                        |
    | bf16 params        | the sum is float32, the gradient bf16                        |

    Cost: two passes over the parameters, or one product C v.

    Example:
      >>> print(quadratic(jnp.array([3.0, 1.0]), jnp.ones(2), curvature=jnp.array([2.0, 9.0])))
      4.0
    """
    check_like("quadratic", "anchor", anchor, params)
    product, fisher = (curvature, None) if callable(curvature) else (None, curvature)
    if fisher is not None:
        check_like("quadratic", "fisher", fisher, params)
    return _value(product, params, _Quadratic(anchor, fisher, full_mask("quadratic", mask, params)))


def _value(product: Callable | None, params: Params, q: _Quadratic) -> Array:
    d = displacement(params, q.anchor, q.mask)
    if product is not None:
        curved = product(d)
    else:
        curved = d if q.fisher is None else jax.tree.map(lambda f, x: f * x, q.fisher, d)
    return 0.5 * sum(map(jnp.vdot, jax.tree.leaves(d), jax.tree.leaves(curved)), jnp.zeros(()))


def _loss(
    product: Callable | None, params: Params, batches: Batches, state: _Quadratic, key: Key
) -> tuple[Array, _Quadratic]:
    del batches, key
    return _value(product, params, state), state


def _start(where: str, anchor: Params, fisher: Params, mask: Any, params: Params) -> _Quadratic:
    check_like(where, "anchor", anchor, params)
    if fisher is not None:
        check_like(where, "fisher", fisher, params)
        check_importances(where, fisher)
    return _Quadratic(anchor, fisher, full_mask(where, mask, params))


def l2_anchor(anchor: Params, mask: Any = None) -> Objective:
    """R = 1/2 sum_j m_j (theta_j - theta_o,j)^2, an Objective.

    Args:
      anchor: theta_o, a tree of the params' shapes.
      mask: as for `quadratic`. Leave the columns of new classes out of it.

    Returns:
      An Objective that reads no batch; its state is the anchor.

    Raises:
      ValueError, TypeError: (at `init`) as for `quadratic`.

    Cost: one pass over the parameters a step; memory of the anchor.

    Example:
      >>> penalty = l2_anchor({"w": jnp.ones(2)}, mask={"w": True})
      >>> params = {"w": jnp.array([3.0, 1.0])}
      >>> print(penalty.loss(params, {}, penalty.init(params), jax.random.key(0))[0])
      2.0
    """
    return Objective(partial(_start, "l2_anchor", anchor, None, mask), bind(_loss, None))


def ewc(anchor: Params, fisher: Curvature, mask: Any = None) -> Objective:
    """R = 1/2 sum_j m_j F_j (theta_j - theta_o,j)^2, an Objective.

    Args:
      anchor: theta_o, where the old task was solved; `EWCState.anchor` after several.
      fisher: F >= 0, a tree of the params' shapes; or a function v -> C v for a full curvature. mu
        means nothing until F is named: per example or per batch, true or observed labels, sum or
        mean. Recommended: the mean over examples of the per-example Fisher of the model's own label
        distribution, `fisher_diagonal(kind="exact")` (up to 100 classes, else "mc"). With observed
        labels F vanishes where the model fits them.
      mask: as for `quadratic`.

    Returns:
      An Objective that reads no batch; its state is anchor and F.

    Raises:
      ValueError: (at `init`) trees or shapes differ, or F is negative or not finite where it can be
        seen.

    | edge case        | result                          |
    |------------------|---------------------------------|
    | F = 1            | `l2_anchor`                     |
    | F = 0 somewhere  | that entry is free              |

    Cost: one pass over the parameters a step; memory of anchor and F.

    Example:
      >>> state = ewc_update(ewc_init(jnp.zeros(2)), jnp.ones(2), jnp.array([3.0, 1.0]))
      >>> penalty = ewc(state.anchor, state.fisher)
      >>> params = jnp.array([2.0, 1.0])
      >>> print(penalty.loss(params, {}, penalty.init(params), jax.random.key(0))[0])
      0.75
    """
    if callable(fisher):
        return Objective(partial(_start, "ewc", anchor, None, mask), bind(_loss, fisher))
    return Objective(partial(_start, "ewc", anchor, fisher, mask), bind(_loss, None))


def normalised(fisher: Params) -> Params:
    """F / mean_j F_j, over all entries of all leaves: mean importance 1; zeros stay zeros.

    Example:
      >>> print(normalised({"w": jnp.array([1.0, 3.0])})["w"])
      [0.5 1.5]
    """
    leaves = jax.tree.leaves(fisher)
    mean = sum(map(jnp.sum, leaves), jnp.zeros(())) / max(sum(leaf.size for leaf in leaves), 1)
    mean = jnp.where(mean > 0, mean, 1)
    return jax.tree.map(lambda f: f / mean.astype(f.dtype), fisher)


def ewc_init(params: Params) -> EWCState:
    """No task yet: importances 0 around `params`."""

    def zeros(p: Array) -> Array:
        return jnp.zeros(jnp.shape(p), jnp.promote_types(jnp.result_type(p), jnp.float32))

    return EWCState(params, jax.tree.map(zeros, params), jnp.int32(0))


def ewc_update(
    state: EWCState,
    params: Params,
    fisher: Params,
    *,
    mode: str = "online",
    zeta: float = 1.0,
    normalise: bool = True,
) -> EWCState:
    """F <- zeta F + F_k;  a <- theta_k (online) or a + F_k / F (theta_k - a) (offline).

    Args:
      state: of the tasks so far.
      params: theta_k, at the end of task k.
      fisher: F_k >= 0, of task k at theta_k.
      mode: "online" (one anchor, the latest) or "offline" (the exact sum of one penalty per task).
      zeta: what older tasks keep of their importance, in (0, 1].
      normalise: scale F_k to mean 1 first. The sum is not scaled: after k tasks its mean is k.

    Returns:
      The next `EWCState`; traceable, so that it may be carried through a scan over tasks.

    Raises:
      ValueError: unknown mode, zeta outside (0, 1], or trees that differ.

    | edge case                      | result                                   |
    |--------------------------------|------------------------------------------|
    | first task                     | its own F and theta, in either mode      |
    | entry with F = 0 so far        | anchor is the latest theta, no penalty   |

    Cost: one pass over the parameters.

    Example:
      >>> first = ewc_update(ewc_init(jnp.zeros(1)), jnp.ones(1), jnp.ones(1), mode="offline")
      >>> print(ewc_update(first, jnp.array([3.0]), jnp.ones(1), mode="offline").anchor)
      [2.]
    """
    if mode not in ("online", "offline"):
        raise ValueError(f"ewc_update: mode must be 'online' or 'offline', got {mode!r}.")
    if isinstance(zeta, int | float) and not 0 < zeta <= 1:
        raise ValueError(f"ewc_update: zeta must lie in (0, 1], got {zeta}.")
    check_like("ewc_update", "params", params, state.anchor)
    check_like("ewc_update", "fisher", fisher, state.anchor)
    check_importances("ewc_update", fisher)
    fisher = normalised(fisher) if normalise else fisher
    total = jax.tree.map(
        lambda old, new: (zeta * old + new).astype(old.dtype), state.fisher, fisher
    )
    if mode == "online":
        return EWCState(params, total, state.tasks + 1)

    def mean(a: Array, p: Array, new: Array, f: Array) -> Array:
        share = jnp.where(f > 0, new / jnp.where(f > 0, f, 1), 1)
        return (a + share * (p.astype(f.dtype) - a.astype(f.dtype))).astype(p.dtype)

    return EWCState(jax.tree.map(mean, state.anchor, params, fisher, total), total, state.tasks + 1)


def grown(anchor: Params, params: Params) -> tuple[Params, Params]:
    """An old anchor padded to a model that has grown, and the mask of what is old.

    Args:
      anchor: theta_o, a tree of the params' structure; axes may be shorter, as those of a head with
        fewer classes.
      params: theta.

    Returns:
      (anchor of the params' shapes, bool tree of the same shapes): old entries keep their leading
      places, True; new ones are 0, False, and get no penalty.

    Raises:
      ValueError: trees or numbers of axes differ, or an old axis is the longer one.

    Example:
      >>> anchor, mask = grown(jnp.ones((1, 2)), jnp.zeros((1, 3)))
      >>> print(anchor, mask)
      [[1. 1. 0.]] [[ True  True False]]
    """
    if jax.tree.structure(anchor) != jax.tree.structure(params):
        raise ValueError("grown: `anchor` and params are different trees. Was it another model?")

    def pad(path: Any, p: Array, a: Array) -> Array:
        new, old = jnp.shape(p), jnp.shape(a)
        if len(new) != len(old) or any(m > n for m, n in zip(old, new, strict=True)):
            raise ValueError(
                f"grown: expected every axis at least as long as before at "
                f"{jax.tree_util.keystr(path)}, got {new} from {old}."
            )
        return jnp.pad(a, [(0, n - m) for m, n in zip(old, new, strict=True)])

    return (
        jax.tree_util.tree_map_with_path(pad, params, anchor),
        jax.tree_util.tree_map_with_path(
            lambda path, p, a: pad(path, p, jnp.ones(jnp.shape(a), bool)), params, anchor
        ),
    )
