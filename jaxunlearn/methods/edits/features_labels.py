"""Unlearning of features, labels and points: the parameters follow a change of the training data.

    L(theta; D) = sum_i loss(z_i; theta) + (l2/2) |theta|^2 [+ b^T theta],    D~ = D with z -> z~
    G = sum over changed rows of  grad loss(z~; theta) - grad loss(z; theta)

    order 1    theta' = theta - tau G
    order 2    theta' = theta - (H~ + d I)^{-1} G,      H~ = Hessian of L(.; D~) at theta

Zeroed or replaced features, changed labels, or (no z~) removed points. Warnecke, Pirch, Wressnegger
and Rieck (2023), "Machine Unlearning of Features and Labels", arXiv:2108.11577, equations 5 to 9.
If theta is a minimum and the loss quadratic, order 2 is retraining; for convex losses trained with
a perturbed objective a certificate can be asked for (`jaxunlearn.methods.edits.certificate`).

Losses are SUMMED: l2, d and tau belong to the sum, whatever the batches. A weight decay of `w` in a
mean loss over n rows is l2 = n w.

Departures: 1. H~ over all corrected data at once, not one batch of it. 2. The generalised
Gauss-Newton matrix is offered for networks, where H~ is indefinite. 3. `gradient="full"` takes the
whole gradient of L(.; D~) for G: a Newton step, which removes the residual of training too, and
which may be repeated (`chain`) until the retrained optimum is reached. 4. All parameters move; for
the last layers only, as in the published image experiments, see `masked`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.curvature.products import OutputLoss, widen
from jaxunlearn.data.streams import InMemory, Stream
from jaxunlearn.linalg import Solved
from jaxunlearn.linalg.solution import norm
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.edits import newton
from jaxunlearn.methods.edits.certificate import Terms, certificate, check_privacy, regularised
from jaxunlearn.methods.edits.newton import Newton
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Batch, Data, Key, Params

Correction = Callable[[Batch], Batch]


class FeaturesLabelsInfo(NamedTuple):
    """How the correction went; with several steps, the worst of them."""

    status: Array  # [] int32, a `linalg.Solved`; anything but 0: the fallback was taken
    residual: Array  # [] float, relative residual of the solve; 0 for order 1
    iterations: Array  # [] int32, products with H~, of all steps
    damping: Array  # [] float, the damping it was solved with, raised or not
    moved: Array  # [] float, |theta' - theta|
    gradient_before: Array  # [] float, |grad L(theta; D~)|
    gradient_after: Array  # [] float, |grad L(theta'; D~)|, the beta of a certificate
    certificate: Any = ()  # a `Certificate` if one was asked for


def without_features(columns: Sequence[int]) -> Correction:
    """The rows with these columns of `"x"`, along its last axis, set to 0."""
    places = np.asarray(columns)

    def correct(batch: Batch) -> Batch:
        return {**batch, "x": jnp.asarray(batch["x"]).at[..., places].set(0)}

    return correct


def with_labels(column: str = "corrected_y") -> Correction:
    """The rows with `"y"` replaced by another column, which travels with the data."""

    def correct(batch: Batch) -> Batch:
        if column not in batch:
            raise KeyError(f"with_labels: no column '{column}' in this data: {sorted(batch)}.")
        return {**batch, "y": jnp.asarray(batch[column])}

    return correct


def corrected_model(model: Model, correction: Correction) -> Model:
    """The model that reads corrected rows: outputs'(theta, batch) = outputs(theta, correct(batch)).

    After features were removed from all rows this is how to delete them from the model as well:
    whatever stands in those columns, no output depends on it, for any parameters.
    """

    def over(function: Callable | None) -> Any:
        return function and (lambda params, batch, *key: function(params, correction(batch), *key))

    return dataclasses.replace(
        model,
        outputs=over(model.outputs),
        loss=over(model.loss),
        features=over(model.features),
        hidden=over(model.hidden),
        train=over(model.train),
    )


def correct(
    model: Model,
    params: Params,
    *,
    before: Data | None,
    after: Data | None,
    retain: Data | None,
    order: int = 2,
    tau: Array | float = 2e-5,
    at: str = "corrected",
    gradient: str = "difference",
    steps: int = 1,
    l2: Array | float = 0.0,
    damping: Array | float = 0.0,
    options: Newton = Newton(),  # noqa: B008  (a tuple)
    perturbation: Params | None = None,
) -> tuple[Params, FeaturesLabelsInfo]:
    """theta - tau G or theta - (H~ + d I)^{-1} G: the primitive under `features_labels`.

    Args:
      model: its loss (and outputs, for the Gauss-Newton matrix).
      params: theta, a minimum of L(.; before and retain) unless gradient="full".
      before: the changed rows as they were trained on; None if rows are only added.
      after: the same rows corrected, in the same order; None if they are removed.
      retain: the rows that did not change; None if all did.
      options: solver and fallback.
      perturbation: b of the objective, a tree like the params.
      The rest: as for `features_labels`.

    Returns:
      (params of the same tree and dtypes, info). Traceable with in-memory data.

    Raises:
      ValueError: nothing remains, or "cholesky" with too many parameters.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> model = Model(outputs=lambda p, b: p + 0 * b["y"], loss=lambda p, b: (p - b["y"]) ** 2)
      >>> rows = in_memory({"y": jnp.array([1.0, 2.0, 6.0])})
      >>> two, last = rows.take([0, 1]), rows.take([2])
      >>> mean, _ = correct(model, jnp.array(3.0), before=last, after=None, retain=two)
      >>> print(mean)
      1.5
    """
    kept = [part for part in (retain, after) if part is not None]
    present = kept + ([before] if before is not None else [])
    if not kept:
        raise ValueError(
            "correct: nothing remains: every row is removed and none is retained. "
            "Start from fresh parameters instead."
        )
    host = newton.streams(present)

    def of_chunks(data: Data | None, keep: Callable[[Array], Array]) -> list[Data]:
        return [] if data is None else [_share(data, steps, keep)]

    def mixed(j: Array | int) -> list[Data]:
        """The data with chunks 0 .. j corrected."""
        if steps == 1:
            return kept
        rest = [] if retain is None else [retain]
        return rest + of_chunks(after, lambda c: c <= j) + of_chunks(before, lambda c: c > j)

    def full_gradient(theta: Params, parts: Sequence[Data]) -> Params:
        return regularised(newton.gradient_of(model, theta, parts), theta, l2, perturbation)

    def step(theta: Params, j: Array | int) -> tuple[Params, tuple[Array, ...]]:
        if gradient == "full":
            g = full_gradient(theta, mixed(j))
        else:
            new, old = (of_chunks(part, lambda c: c == j) for part in (after, before))
            pulls = (newton.gradient_of(model, theta, part) for part in (new, old))
            g = optax.tree.sub(*pulls)
        downhill = optax.tree.scale(-tau, g)
        zero = jnp.zeros((), norm(g).dtype)
        if order == 1:
            finite = jnp.isfinite(norm(g))
            status = jnp.where(finite, jnp.int32(Solved.CONVERGED), jnp.int32(Solved.NONFINITE))
            return newton.apply(theta, downhill, finite), (status, zero, jnp.int32(0), zero)
        original = [part for part in (retain, before) if part is not None]
        parts = mixed(j) if at == "corrected" else original if steps == 1 else mixed(j - 1)
        solution, used = newton.newton_direction(
            model, theta, parts, g, l2=l2, damping=damping, options=options
        )
        solved = solution.status == Solved.CONVERGED
        edit = optax.tree.where(solved, optax.tree.scale(-1.0, solution.x), downhill)
        allowed = solved | (options.fallback == "first_order")
        facts = (solution.status, solution.residual, solution.iterations, used)
        return newton.apply(theta, edit, allowed), facts

    theta = widen(params)
    if steps == 1:
        theta, facts = step(theta, 0)
        facts = jax.tree.map(lambda a: a[None], facts)
    elif host:
        each = []
        for j in range(steps):
            theta, fact = step(theta, j)
            each.append(fact)
        facts = jax.tree.map(lambda *a: jnp.stack(a), *each)
    else:
        theta, facts = jax.lax.scan(step, theta, jnp.arange(steps))
    edited = jax.tree.map(lambda new, old: new.astype(old.dtype), theta, params)
    status, residual, iterations, used = facts
    info = FeaturesLabelsInfo(
        status.max(),
        residual.max(),
        iterations.sum(),
        used.max(),
        newton.moved(params, edited),
        norm(full_gradient(widen(params), kept)),
        norm(full_gradient(widen(edited), kept)),
    )
    return edited, info


def _share(data: Data, steps: int, keep: Callable[[Array], Array]) -> Data:
    """The data in which only the rows of some chunks count; row i of n is in chunk i steps // n."""
    if steps == 1:
        return data

    def weighed(batch: Batch, first: int, total: int) -> dict[str, Any]:
        rows = next(iter(batch.values())).shape[0]
        chunk = (first + jnp.arange(rows)) * steps // total
        weight = jnp.asarray(batch.get("weight", jnp.ones(rows)), jnp.float32)
        return {**batch, "weight": jnp.where(keep(chunk), weight, 0)}

    if isinstance(data, InMemory):
        return InMemory(weighed(data.arrays, 0, data.num_examples), data.batch_size)
    size = getattr(data, "batch_size", 0) or max(len(next(iter(b.values()))) for b in data)

    def open() -> Any:
        return (weighed(b, i * size, data.num_batches * size) for i, b in enumerate(data))

    return Stream(open, data.num_examples, data.num_batches, size)


def _corrected(data: Data, correction: Correction) -> Data:
    """`correction` of every row, its result looked at."""

    def checked(batch: Batch) -> Batch:
        new = correction(batch)
        if not isinstance(new, dict):
            raise TypeError(
                "features_labels: `correction` must map a batch (a dict of columns) to one, it "
                f"returned {type(new).__name__}."
            )
        for name, column in batch.items():
            if name in new and jnp.shape(new[name]) != jnp.shape(column):
                raise ValueError(
                    f"features_labels: `correction` changed column '{name}' from shape "
                    f"{jnp.shape(column)} to {jnp.shape(new[name])}. Rows and their shapes stay; "
                    "set features to 0 instead of dropping them."
                )
        if missing := sorted(set(batch) - set(new)):
            raise ValueError(
                f"features_labels: `correction` lost the columns {missing}. Return {{**batch, "
                "...}}."
            )
        return new

    if isinstance(data, InMemory):
        return InMemory(dict(checked(data.arrays)), data.batch_size)
    assert isinstance(data, Stream)
    before = data.transform
    return dataclasses.replace(data, transform=lambda batch: checked(before(batch)))


def features_labels(
    *,
    correction: Correction | None = None,
    retain: bool = True,
    order: int = 2,
    tau: float = 2e-5,
    curvature: str = "hessian",
    solver: str = "cg",
    at: str = "corrected",
    gradient: str = "difference",
    steps: int = 1,
    l2: float = 0.0,
    damping: float = 0.0,
    tolerance: float = 1e-4,
    iterations: int = 100,
    scale: float = 2e5,
    fallback: str = "damp",
    attempts: int = 3,
    output_loss: OutputLoss | None = None,
    certify: Terms | None = None,
) -> Method:
    """theta' = theta - (H~ + d I)^{-1} G,  or theta - tau G with order 1.

    Args:
      correction: a pure function of a batch (n rows) to the corrected batch, applied to the forget
        rows, e.g. `without_features([3])` or `with_labels("corrected_y")`. None removes the rows.
      retain: False if every training row is a forget row, as when a feature is removed from all
        data; the request then needs no `retain`.
      order: 1 or 2.
      tau: step of order 1 and of the fallback "first_order", per sum of gradients, > 0.
      curvature: "hessian", or "ggn" for networks.
      solver: "cg", "cholesky" (up to 1e4 parameters) or "lissa".
      at: H~ over the "corrected" data, or over the "original" ones (the classical influence
        function, several times less accurate).
      gradient: "difference" (G above) or "full" (the gradient of L(.; D~), a Newton step).
      steps: the rows are changed in so many chunks, G and H~ computed anew for each, >= 1: more
        accurate for large changes. If features leave ALL rows, with gradient="full" only: in the
        difference, what earlier chunks left over is amplified where only l2 remains in H~.
      l2: weight of (l2/2) |theta|^2 in training, beside the SUM of losses, >= 0.
      damping: d >= 0, in the units of H~ (LiSSA's own d is damping / scale).
      tolerance, iterations: of the solver.
      scale: s of "lissa", above half the largest eigenvalue of H~ + d I.
      fallback: for an unsolved system, "damp" (d times 10, up to `attempts` times), "first_order"
        or "keep". What is still unsolved leaves the params unchanged.
      attempts: see fallback, >= 0.
      output_loss: of "ggn", (outputs, y) -> (n,). None: cross-entropy for class labels, else
        squared error; if that is not the model's loss the status is FOREIGN.
      certify: terms of a certificate, in `info.certificate`; its b enters G where it is full.

    Returns:
      A Method that needs forget, retain (unless False) and labels; deterministic; info is a
      `FeaturesLabelsInfo`. Its guarantee is "empirical", because a certificate depends on values
      that only a run knows: read `info.certificate`.

    Raises:
      ValueError: a constant out of range; a correction that changes shapes.

    | situation                               | result                                            |
    |-----------------------------------------|---------------------------------------------------|
    | z~ = z                                  | params bit-identical                              |
    | quadratic loss, order 2, stationary     | equals retraining on D~ to rounding               |
    | a column zeroed in all rows, l2 > 0     | its coordinates go to 0 (linear models, b = 0)    |
    | indefinite, singular or unsolved system | the fallback; status and residual say so          |
    | NaN in G or H~                          | params bit-identical, status NONFINITE            |
    | running statistics                      | not parameters: left alone                        |

    Cost: 5 gradients; order 2 adds per step p products ("cholesky") or `iterations` at most, each
    about 2 gradients of D~; memory of four gradients (p^2 with "cholesky").

    Source: Warnecke et al. (2023), arXiv:2108.11577; departures in the module.

    Example:
      >>> relabel = features_labels(correction=with_labels("corrected_y"), l2=1.0)
      >>> sorted(relabel.needs)
      ['forget', 'labels', 'retain']
    """
    name = "features_labels"
    newton.check_choice(name, "at", at, ("corrected", "original"))
    newton.check_choice(name, "gradient", gradient, ("difference", "full"))
    options = Newton(
        curvature, solver, tolerance, iterations, scale, fallback, attempts, output_loss
    )
    newton.check_newton(name, options, ("damp", "first_order", "keep"))
    if order not in (1, 2) or steps < 1:
        raise ValueError(f"{name}: expected order 1 or 2 and steps >= 1, got {order=}, {steps=}.")
    if not (tau > 0 and l2 >= 0 and damping >= 0):
        raise ValueError(
            f"{name}: expected tau > 0, l2 >= 0 and damping >= 0, got {tau=}, {l2=}, {damping=}."
        )
    if correction is None and not retain:
        raise ValueError(
            f"{name}: without `correction` rows are removed, and with retain=False none remain. "
            "Give a correction, or start from fresh parameters."
        )
    if certify is not None:
        check_privacy(name, certify.epsilon, certify.delta)

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key
        rest = request.retain if retain else None
        after = None if correction is None else _corrected(request.forget, correction)
        edited, info = correct(
            model,
            params,
            before=request.forget,
            after=after,
            retain=rest,
            order=order,
            tau=tau,
            at=at,
            gradient=gradient,
            steps=steps,
            l2=l2,
            damping=damping,
            options=options,
            perturbation=None if certify is None else certify.perturbation,
        )
        if certify is not None:
            kept = [part for part in (rest, after) if part is not None]
            granted = certificate(model, edited, kept, certify, l2=l2)
            info = info._replace(certificate=granted)
        return Unlearned(model, edited, info)

    needs = {"forget", "labels"} | ({"retain"} if retain else set())
    return method(unlearn, needs=needs, name=name, guarantee=EMPIRICAL)
