"""Diagonals of second-order information over a data set: one backward pass for all examples.

    second moment        F = sum_i w_i g_i^2 / sum_i w_i,   g_i = grad loss_i       (entry by entry)
    absolute moment      sum_i w_i |g_i| / sum_i w_i
    Fisher diagonal      "empirical": F above, with the true labels
                         "exact":     mean_i sum_c p_c(x_i) (grad loss_i(c))^2, the model's labels
                         "mc":        the same with k labels drawn from the model
    GGN diagonal         mean_i diag(J_i^T (d^2 loss / d output^2) J_i)

The square is taken per example, never per batch: the square of a batch-mean gradient is another
quantity, which depends on how the batches were made. Both follow from F and the mean gradient g:

    E over random batches of B from n of (batch mean)^2 = g^2 + (F - g^2)/B (n - B)/(n - 1)

How: `strategy="taps"` finds where the parameters meet the data and squares there (`moments`,
`taps`); `strategy="vmap"` forms every gradient and is the reference, equal to rounding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import losses
from jaxunlearn.curvature.capture import Columns, one_column
from jaxunlearn.curvature.columns import OutputLoss, output_factor
from jaxunlearn.curvature.coupling import check_independent
from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.curvature.formulas import accumulator
from jaxunlearn.curvature.moments import by_taps, by_vmap
from jaxunlearn.data.streams import is_traced
from jaxunlearn.typing import Array, Batch, Data, Key, Params, check_key

LossFn = Callable[[Params, Batch], Array]

_SUMS = {"taps": by_taps, "vmap": by_vmap}
_KINDS = ("empirical", "exact", "mc")
_LIKELIHOODS: dict[str, OutputLoss] = {
    "categorical": losses.cross_entropy,
    "gaussian": losses.squared_error,
}


class NonFiniteError(ValueError):
    """A per-example gradient is not finite."""


class SecondMoment(NamedTuple):
    """Moments of the per-example gradient over a set."""

    square: Params  # like params, float32 or wider: mean of squares F
    mean: Params  # like params: mean gradient g
    count: Array  # [] total weight of the examples


def second_moment(
    loss_fn: LossFn,
    params: Params,
    data: Data,
    *,
    strategy: str = "taps",
    micro_batch: int | None = None,
) -> SecondMoment:
    """F = mean_i g_i^2 and g = mean_i g_i over `data`.

    Args:
      loss_fn: (params, batch) -> (n,), evaluation mode, no averaging inside. The loop is compiled
        once for each function, so pass the same function again, not a new lambda.
      params: tree of float arrays.
      data: in-memory (traceable) or streaming; weights are example weights.
      strategy: "taps" or "vmap"; the same to rounding.
      micro_batch: examples taken at once; changes rounding only. None: with taps a batch of the
        data, with "vmap" 1 on a CPU (where the square of one row fuses into its backward pass) and
        64 elsewhere.

    Returns:
      SecondMoment; leaves in at least float32 whatever the dtype of the params.

    Raises:
      ValueError: micro_batch < 1, or an unknown strategy.
      CoupledError: the loss mixes the examples of a batch.
      NonFiniteError: (outside of a trace) a moment is not finite; the leaf is named.

    | edge case           | result                                                              |
    |---------------------|---------------------------------------------------------------------|
    | rows of weight 0    | contribute exactly 0, even where their own gradient would be NaN     |
    | all weights 0       | zeros, count 0                                                      |
    | one example         | F = g^2                                                             |
    | data repeated twice | the same F and g                                                    |
    | a leaf not used     | zeros                                                               |

    Cost: with taps about one ordinary backward pass over the data (BENCHMARKS.md), memory that of a
    gradient of `micro_batch` rows and 3 x params; with "vmap" (micro_batch + 2) x params.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[1.0], [3.0]]), "y": jnp.zeros(2)})
      >>> loss = lambda p, b: 0.5 * (b["x"] @ p - b["y"]) ** 2
      >>> print(second_moment(loss, jnp.ones(1), data).square)
      [41.]
    """
    sums = _moments(loss_fn, one_column, params, data, strategy, micro_batch, plain=True)
    return SecondMoment(*sums)


def absolute_moment(
    loss_fn: LossFn,
    params: Params,
    data: Data,
    *,
    strategy: str = "taps",
    micro_batch: int | None = None,
) -> Params:
    """mean_i |g_i|, entry by entry; arguments, errors and cost of `second_moment`.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([1.0, -3.0])})
      >>> print(absolute_moment(lambda p, b: p * b["x"], jnp.ones(()), data))
      2.0
    """
    return _moments(loss_fn, one_column, params, data, strategy, micro_batch, power="abs").moment


def fisher_diagonal(
    loss_fn: LossFn | None,
    params: Params,
    data: Data,
    *,
    kind: str = "empirical",
    outputs: Callable[[Params, Batch], Array] | None = None,
    likelihood: str = "categorical",
    samples: int = 1,
    key: Key | None = None,
    strategy: str = "taps",
    micro_batch: int | None = None,
) -> Params:
    """diag F = mean_i E_y [(grad -log p(y | x_i))^2], the y being the labels or the model's own.

        "empirical"   y is the label in the data:        mean_i (grad loss_i)^2
        "exact"       expectation over p(y | x_i):       mean_i diag(J_i^T (diag(p) - p p^T) J_i)
        "mc"          k draws from p(y | x_i) instead:   unbiased, error ~ 1/sqrt(k n)

    Args:
      loss_fn: (params, batch) -> (n,), read by "empirical" alone; None otherwise.
      params, data, strategy, micro_batch: as for `second_moment`.
      kind: one of the three. "empirical" vanishes where the model fits its labels; "exact" does
        not, and costs C - 1 backward passes for C classes.
      outputs: (params, batch) -> (n, ..., C) logits or predictions; needed unless "empirical".
      likelihood: "categorical" (softmax of the logits, at each position) or "gaussian" (loss
        |f - y|^2, that is, variance 1/2 per output).
      samples: k >= 1 draws per example, for "mc".
      key: for "mc". Row i of the data draws from `fold_in(key, i)`, so batching changes nothing.

    Returns:
      A tree like the params, float32 or wider, mean over examples.

    Raises:
      ValueError: an unknown kind or likelihood, outputs or loss_fn missing, samples < 1.
      TypeError: "mc" without a key.
      CoupledError, NonFiniteError: as for `second_moment`.

    Cost: columns x one backward pass: 1, positions x (C - 1), or k. Where a weight is used at one
    position, the columns' squares are summed first: one product for all of them.

    Source: the distinctions of Kunstner, Balles and Hennig (2019), arXiv:1905.12558.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[2.0]]), "y": jnp.array([1])})
      >>> logits = lambda p, b: b["x"] * p[None]
      >>> print(fisher_diagonal(None, jnp.zeros(2), data, kind="exact", outputs=logits).round(5))
      [1. 1.]
    """
    if kind not in _KINDS:
        raise ValueError(f"fisher_diagonal: kind must be one of {_KINDS}, got {kind!r}.")
    if kind == "empirical":
        if loss_fn is None:
            raise ValueError("fisher_diagonal: kind 'empirical' needs loss_fn(params, batch).")
        return _moments(loss_fn, one_column, params, data, strategy, micro_batch).moment
    if outputs is None:
        raise ValueError(
            f"fisher_diagonal: kind {kind!r} needs outputs(params, batch), the logits or "
            "predictions; of a Model that is model.outputs."
        )
    if likelihood not in _LIKELIHOODS:
        raise ValueError(
            f"fisher_diagonal: likelihood must be one of {tuple(_LIKELIHOODS)}, "
            f"got {likelihood!r}. For another loss use ggn_diagonal."
        )
    if samples < 1:
        raise ValueError(f"fisher_diagonal: samples must be >= 1, got {samples}.")
    drawn = samples if kind == "mc" else None
    if drawn:
        check_key("fisher_diagonal", key)
    loss = _LIKELIHOODS[likelihood]
    return ggn_diagonal(
        outputs,
        loss,
        params,
        data,
        samples=drawn,
        key=key,
        strategy=strategy,
        micro_batch=micro_batch,
    )


def ggn_diagonal(
    outputs: Callable[[Params, Batch], Array],
    output_loss: OutputLoss,
    params: Params,
    data: Data,
    *,
    samples: int | None = None,
    key: Key | None = None,
    strategy: str = "taps",
    micro_batch: int | None = None,
) -> Params:
    """mean_i diag(J_i^T Lambda_i J_i), Lambda_i the Hessian of the loss in the outputs.

    Args:
      outputs: (params, batch) -> (n, ...).
      output_loss: (outputs (n, ...), labels (n, ...)) -> (n,), convex in the outputs (negative
        eigenvalues of Lambda count as 0), e.g. `losses.cross_entropy`.
      params, data, strategy, micro_batch: as for `second_moment`; the data has labels `"y"`, read
        by losses other than cross-entropy and squared error only.
      samples, key: k Monte-Carlo columns instead of an exact factor of Lambda.

    Returns:
      A tree like the params, float32 or wider.

    Raises:
      CoupledError, NonFiniteError: as for `second_moment`.

    Cost: as many backward passes as Lambda has columns: positions x (C - 1) for softmax.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[1.0], [3.0]]), "y": jnp.zeros((2, 1))})
      >>> line = lambda p, b: b["x"] * p
      >>> print(ggn_diagonal(line, losses.squared_error, jnp.ones(()), data).round(5))
      10.0
    """
    columns = _Factor(output_loss, samples)
    return _moments(outputs, columns, params, data, strategy, micro_batch, key=key).moment


def class_means(
    loss_fn: LossFn, params: Params, data: Data, classes: int, *, micro_batch: int | None = None
) -> tuple[Params, Array]:
    """Mean gradient of each class: g_c = sum_{y_i = c} w_i g_i / n_c, n_c = sum_{y_i = c} w_i.

    Args:
      loss_fn, params, data, micro_batch: as for `second_moment`.
      classes: C; labels `"y"` (n,) in [0, C).

    Returns:
      (tree with leaves (C, *leaf.shape), counts (C,)); a class without examples has mean 0 and
      count 0.

    Cost: C ordinary backward passes over the data, one for each class's weights; memory C x params.
    """
    zeros = accumulator(params)
    zeros = jax.tree.map(lambda a: jnp.zeros((classes, *a.shape), a.dtype), zeros)
    job = _ByClass(loss_fn, classes)
    start = (zeros, jnp.zeros(classes))
    sums, counts = fold_over(job, params, data, start, micro_batch=micro_batch)
    scale = jnp.where(counts > 0, counts, 1)
    means = jax.tree.map(
        lambda s: s / scale.astype(s.dtype).reshape(-1, *([1] * (s.ndim - 1))), sums
    )
    return means, counts


# ---- what is added up over the data; hashable, so that a loop is compiled once for each ----


class _Sums(NamedTuple):
    moment: Params  # sum of phi of the per-example gradients
    plain: Params  # sum of the gradients, or ()
    count: Array  # [] sum of the weights


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Adds the rows of a batch to a _Sums."""

    function: Callable
    columns: Columns
    power: str
    plain: bool
    strategy: str

    def __call__(self, params: Params, sums: Any, batch: Batch, keys: Any) -> _Sums:
        check_independent(self.function, params, batch)
        weight = batch["weight"]
        scale = jnp.sqrt(weight) if self.power == "square" else weight
        made = _SUMS[self.strategy](
            self.function, self.columns, params, batch, scale, keys, self.power, self.plain
        )
        moment = jax.tree.map(jnp.add, sums.moment, made.moment)
        plain = jax.tree.map(jnp.add, sums.plain, made.gradient) if self.plain else ()
        return _Sums(moment, plain, sums.count + weight.sum())


@dataclasses.dataclass(frozen=True)
class _ByClass:
    """Adds the rows of a batch to (sums of gradients by class, counts)."""

    loss_fn: LossFn
    classes: int

    def __call__(self, params: Params, carry: Any, batch: Batch, keys: Any) -> tuple:
        del keys
        check_independent(self.loss_fn, params, batch)
        sums, counts = carry
        member = batch["y"][None, :] == jnp.arange(self.classes)[:, None]
        member = jnp.where(member, batch["weight"][None], 0)
        losses, pull = jax.vjp(lambda p: self.loss_fn(p, batch), params)
        grads = jax.lax.map(lambda w: pull(w.astype(losses.dtype))[0], member)
        sums = jax.tree.map(lambda acc, g: acc + g.astype(acc.dtype), sums, grads)
        return sums, counts + member.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class _Factor:
    """Columns of a factor of the Hessian of the loss in the outputs."""

    output_loss: OutputLoss
    samples: int | None

    def __call__(self, out: Array, row: Batch, key: Any) -> Array:
        label = row.get("y", jnp.zeros(()))
        return jnp.moveaxis(output_factor(self.output_loss, out, label, self.samples, key), -1, 0)


def _moments(
    function: Callable,
    columns: Columns,
    params: Params,
    data: Data,
    strategy: str,
    micro_batch: int | None,
    *,
    power: str = "square",
    plain: bool = False,
    key: Key | None = None,
) -> _Sums:
    """Means over the data of phi of the gradients, and of the gradients if `plain`."""
    if strategy not in _SUMS:
        raise ValueError(f"strategy must be one of {tuple(_SUMS)}, got {strategy!r}.")
    if micro_batch is None and strategy == "vmap":
        micro_batch = 1 if jax.default_backend() == "cpu" else 64
    zeros = accumulator(params)
    job = _Moments(function, columns, power, plain, strategy)
    start = _Sums(zeros, zeros if plain else (), jnp.zeros(()))
    sums = fold_over(job, params, data, start, micro_batch=micro_batch, key=key)
    scale = jnp.where(sums.count > 0, sums.count, 1)
    moment, mean = jax.tree.map(lambda s: s / scale.astype(s.dtype), (sums.moment, sums.plain))
    if not is_traced(moment):
        _check_finite(moment)
    return _Sums(moment, mean, sums.count)


def _check_finite(means: Params) -> None:
    finite = jax.device_get(jax.tree.map(lambda m: jnp.isfinite(m).all(), means))
    for path, good in jax.tree_util.tree_leaves_with_path(finite):
        if not good:
            raise NonFiniteError(
                f"the per-example gradients of params{jax.tree_util.keystr(path)} are not all "
                "finite, or their squares overflow. Look for NaN or infinite values in the params "
                "and the data, or scale the loss down."
            )
