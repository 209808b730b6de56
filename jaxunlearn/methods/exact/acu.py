"""The last layer of a deep model, swapped for the analytic head that never saw the forget set.

    theta'_head = (sum_R x x^T + gamma I)^-1 sum_R x y^T,    x = (features, 1),  R what is retained

Only the head is exact: it is the ridge head that the retained rows alone would give on these
features. **The backbone is outside the guarantee.** If it was trained on the forget set, its
features remember it; a claim of forgetting needs a backbone that was not, and the Method's own
guarantee is therefore "empirical". Nor was the head that comes in a ridge head: the trained one is
replaced, not corrected, and the outputs are regressed class indicators, not log-odds.

Tang et al. (2025), arXiv:2505.12239; see `analytic`, of which this is the adapter to a `Model`.
Departures: 1. A head with a bias sees a feature that is always 1, so the bias is learnt, and
shrunk, like any weight. 2. Retained data can stand in for a stored state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.exact import analytic_gram as grams
from jaxunlearn.methods.exact.analytic_gram import GramState
from jaxunlearn.model import Model, freeze_statistics, split_statistics
from jaxunlearn.typing import Array, Batch, Data, Key, Params

_LARGEST_MISMATCH = 2.0**-5  # of the outputs: a head in bfloat16 has 2^-8


class AcuInfo(NamedTuple):
    """How the head was solved."""

    status: Array  # [] int32, a `linalg.solution.Solved`; only CONVERGED moved the params
    residual: Array  # [] float, |C - (A + gamma I) W| / |C|
    mismatch: Array  # [] float, largest |outputs - (features W + b)| over the largest |output|
    rows: Array  # [] float, weight of the rows that the head knows
    state: GramState | None  # of what remains, for the next request, if a state was given


class _Head(NamedTuple):
    """Where the last layer is among the leaves of the params; hashable."""

    kernel: int
    bias: int | None
    features: int
    classes: int


class _Sum(NamedTuple):
    """The job of `fold_over`: hashable, so that equal ones share a compiled program."""

    model: Model
    head: _Head
    sign: int
    gamma: float

    def __call__(self, params: Params, carry: GramState, batch: Batch, keys: Any) -> GramState:
        del keys
        dtype = carry.rows.dtype
        x = _features(self.model, params, batch, self.head, dtype)
        y = grams.targets_of(batch["y"], self.head.classes, dtype)
        weight = batch["weight"].astype(dtype)
        options: dict[str, Any] = {"sign": self.sign, "gamma": self.gamma, "verify": False}
        return grams.change(carry, x, y, weight, **options)


def acu_state(
    model: Model,
    params: Params,
    data: Data,
    *,
    per_class: bool = False,
    head: str | None = None,
    micro_batch: int | None = None,
) -> GramState:
    """The Gram state of all training data at these params, for `acu(state=...)`.

    Args:
      model, params, data: what was trained, on what; afterwards the data may go.
      per_class: a Gram for each class, which `balanced` heads need.
      head: see `acu`.
      micro_batch: rows taken at once; None: a batch of the data.

    Returns:
      A `GramState` over the d features (and the constant 1, for a head with a bias). It goes with
      these params: other backbone weights give other features, which it would be subtracted wrongly
      from.

    Raises:
      ValueError: no head as `acu` wants it, or no `model.features`.

    Cost: one forward pass over the data and n d^2 (for each class, if `per_class`).
    """
    if model.features is None:
        raise ValueError("acu_state needs model.features, which this model does not have.")
    weights, statistics = split_statistics(model, params)
    frozen = freeze_statistics(model, statistics)
    found = _find(frozen, weights, _first(data), head)
    start = _empty(found, weights, found.classes if per_class else 1)
    job = _Sum(frozen, found, 1, 1.0)
    return fold_over(job, weights, data, start, micro_batch=micro_batch)


def acu(
    *,
    gamma: float = 0.1,
    state: GramState | None = None,
    balanced: bool = False,
    head: str | None = None,
    tolerance: float = 1e-3,
    micro_batch: int | None = None,
) -> Method:
    """theta'_head = (sum_R x x^T + gamma I)^-1 sum_R x y^T on frozen features; the rest stays.

    Args:
      gamma: ridge > 0, beside a sum of squared errors. Published: 0.1.
      state: from `acu_state`, over all training data; then the forget set is subtracted from it and
        no retained data are read. None: the head is solved from the retained data.
      balanced: classes weighted by 1/n_c (AIR); a state then needs `per_class=True`.
      head: text in the paths of the head's leaves ("head"). None: the one leaf (d, C) that maps
        features to outputs, and the bias (C,) beside it.
      tolerance: relative residual, > 0, above which the head stays as it was.
      micro_batch: rows taken at once; None: a batch of the data.

    Returns:
      A Method that needs features, labels and retain, or forget in its place where a state is
      given; deterministic. Guarantee "empirical": the head equals that of retraining it on frozen
      features (1e-10 in float64), the backbone is as it was. Info is an `AcuInfo`; its `state` must
      replace a stored one before the next request.

    Raises:
      ValueError: a constant out of range; no or several leaves that can be the head; outputs that
        are not features W + b; a state of another head, or of fewer rows than are to be forgotten;
        a head that is not solved. In a trace: `info.status` FOREIGN, INDEFINITE, NONFINITE or
        STALLED, and params unchanged.

    | situation                              | result                                             |
    |----------------------------------------|----------------------------------------------------|
    | with a state, or with retained data    | the same head, to rounding                         |
    | a class that is forgotten whole        | column and bias 0: its output is 0 everywhere      |
    | a head in a smaller dtype              | solved in at least float32, then cast              |
    | running statistics, all other leaves   | bit-identical                                      |
    | everything forgotten, with a state     | head 0                                             |

    Cost: one forward pass over the retained data (with a state: the forget set) and d^3/3.

    Source: Tang et al. (2025), arXiv:2505.12239; departures in the module.

    Example:
      >>> sorted(acu(gamma=0.1).needs)
      ['features', 'labels', 'retain']
    """
    if not gamma > 0 or not tolerance > 0:
        raise ValueError(f"acu: expected gamma > 0 and tolerance > 0, got {gamma=}, {tolerance=}.")
    if state is not None and balanced and len(state.gram.high) == 1:
        raise ValueError("acu: balanced needs a Gram of each class: acu_state(per_class=True).")

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key
        data = request.retain if state is None else request.forget
        assert data is not None
        first = _first(data)
        found = _find(model, params, first, head)
        start = _empty(found, params, found.classes if balanced else 1) if state is None else state
        d = found.features + (found.bias is not None)
        if start.cross.high.shape != (d, found.classes):
            raise ValueError(
                f"acu: the state is of {start.cross.high.shape[0]} features and "
                f"{start.count.size} classes, this head reads {d} (the constant of a bias among "
                f"them) and gives {found.classes}. Was it made for another model?"
            )
        sign = 1 if state is None else -1
        job = _Sum(model, found, sign, gamma)
        sums = fold_over(job, params, data, start, micro_batch=micro_batch)
        solved = grams.ridge(*grams.system(sums, balanced), gamma, tolerance=tolerance)
        mismatch = _mismatch(model, params, first, found)
        held = grams.definite(sums, gamma) | (sign > 0)
        status = jnp.where(held, solved.status, Solved.INDEFINITE)
        status = jnp.where(sums.status == Solved.CONVERGED, status, sums.status)
        status = jnp.where(mismatch <= _LARGEST_MISMATCH, status, Solved.FOREIGN).astype(jnp.int32)
        good = status == Solved.CONVERGED
        leaves, tree = jax.tree.flatten(params)
        parts = {found.kernel: solved.x[: found.features]}
        parts |= {} if found.bias is None else {found.bias: solved.x[found.features]}
        for place, new in parts.items():
            old = leaves[place]
            leaves[place] = jnp.where(good, new.astype(old.dtype), old)
        info = AcuInfo(
            status, solved.residual, mismatch, sums.rows, None if state is None else sums
        )
        return Unlearned(model, tree.unflatten(leaves), info)

    needs = {"labels", "features", "retain" if state is None else "forget"}
    inner = method(unlearn, needs=needs, name="acu", guarantee=EMPIRICAL)

    def checked(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        out = inner.unlearn(model, params, request, key)
        if isinstance(out.info, AcuInfo) and not is_traced(out.info):
            _raise_if(out.info)
        return out

    return inner._replace(unlearn=checked)


def _raise_if(info: AcuInfo) -> None:
    status = Solved(int(info.status))
    if status == Solved.FOREIGN:
        raise ValueError(
            "acu: the outputs are not features W + b of the head's leaves (they differ by "
            f"{float(info.mismatch):.1e} of the largest output). Is model.features what the last "
            "layer reads? head= names the leaves."
        )
    if status != Solved.CONVERGED:
        raise ValueError(
            f"acu: the head is {status.name} with residual {float(info.residual):.1e}. Was the "
            "state made of other rows, or at other params? Otherwise take a larger gamma."
        )


def _first(data: Data) -> Batch:
    return data.batch(0) if isinstance(data, InMemory) else next(iter(data))


def _find(model: Model, params: Params, batch: Batch, head: str | None) -> _Head:
    """The leaves of the last layer, by path and by shape."""
    assert model.features is not None
    x = jax.eval_shape(model.features, params, batch)
    z = jax.eval_shape(model.outputs, params, batch)
    if len(x.shape) != 2 or len(z.shape) != 2:
        raise ValueError(
            f"acu: expected features (n, d) and outputs (n, C), got {x.shape} and {z.shape}."
        )
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    shapes = [jnp.shape(leaf) for _, leaf in paths]
    d, classes = x.shape[1], z.shape[1]

    def places(shape: tuple[int, ...]) -> list[int]:
        fits = [i for i, found in enumerate(shapes) if found == shape]
        return [i for i in fits if head is None or head in names[i]]

    kernels, biases = places((d, classes)), places((classes,))
    if len(kernels) == 1:
        parent = paths[kernels[0]][0][:-1]
        beside = [i for i in biases if paths[i][0][:-1] == parent]
        biases = beside or biases
    if len(kernels) != 1 or len(biases) > 1:
        listed = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise ValueError(
            f"acu: expected one leaf ({d}, {classes}) and at most one ({classes},) for the head, "
            f"found {len(kernels)} and {len(biases)} with {head=}. Name a part of their paths with "
            f"head=; the leaves are {listed}."
        )
    return _Head(kernels[0], biases[0] if biases else None, d, classes)


def _empty(head: _Head, params: Params, count: int) -> GramState:
    kernel = jax.tree.leaves(params)[head.kernel]
    dtype = jnp.result_type(jnp.float32, kernel.dtype)
    return grams.empty(head.features + (head.bias is not None), head.classes, count, dtype)


def _features(model: Model, params: Params, batch: Batch, head: _Head, dtype: jnp.dtype) -> Array:
    """(n, d), and a column of ones for a bias."""
    assert model.features is not None
    x = model.features(params, batch).astype(dtype)
    return x if head.bias is None else jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)


def _mismatch(model: Model, params: Params, batch: Batch, head: _Head) -> Array:
    """[] the largest |outputs - (features W + b)| over the largest |output|."""
    leaves = jax.tree.leaves(params)
    z = model.outputs(params, batch).astype(jnp.float32)
    w = leaves[head.kernel].astype(jnp.float32)
    if head.bias is not None:
        w = jnp.concatenate([w, leaves[head.bias][None].astype(jnp.float32)])
    mine = jnp.matmul(_features(model, params, batch, head, jnp.dtype(jnp.float32)), w,
                      precision=jax.lax.Precision.HIGHEST)  # fmt: skip
    size = jnp.abs(z).max()
    return jnp.abs(z - mine).max() / jnp.where(size > 0, size, 1)
