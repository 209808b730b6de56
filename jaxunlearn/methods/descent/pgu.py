"""Projected-gradient unlearning: away from the labels, along what retained inputs cannot notice.

    min_theta  w_1 mean_F[-log(1 - p_y + o)] - w_2 mean_F[H(p)]
    G_l <- (1 - U_l U_l^T) G_l,      theta_l <- theta_l - eta_e G_l,      eta_e = eta gamma^(e/E)

U_l spans the core gradient space of layer l: the leading eigenvectors of the Gram matrix of what
retained examples send into its weight (`methods.descent.subspaces`). A step orthogonal to it leaves
the layer's answer to every input in the span alone, exactly. Through several layers that is a
statement of first order: once earlier layers have moved, so have the inputs of later ones. Biases,
scales and tables have no Gram and stay where they are.

The Gram of the retained examples is that of all training data, stored when the model was trained,
less that of the forget set, so that no retained data are needed; what is left serves the next
request.

A run ends by a rule of accuracies, looked at after every epoch (`methods.descent.accuracy_rules`):
instances where held-out examples are predicted better than those to be forgotten ("gap"), classes
where accuracy on retained or held-out data has dropped.

On easy data unlearning without the projection keeps the rest as well: it is a safeguard, and what
it costs is the directions that forget and retained inputs share.

Hoang et al. (2024), "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference
with Gradient Projection", arXiv:2312.04095.

Departures: 1. Grams in evaluation mode; the published pass leaves dropout on, and measures the full
Gram on augmented data, so that the difference may be indefinite. Here that is a status. 2. The
projection is behind the optimiser, whatever it is; for the published SGD both places are one. 3. A
rule that fires after the first epoch is a status and not an abort. 4. Where accuracy dropped, the
model before the drop is kept; no rule for that is published. 5. "held_out" is ours; the published
code stops classes on retained data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.losses import entropy, unlikelihood, weighted_mean
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.descent.accuracy_rules import (
    WATCHED,
    Rule,
    Watch,
    handed_out,
    watched,
    watching,
)
from jaxunlearn.methods.descent.accuracy_rules import Ending as Ending
from jaxunlearn.methods.descent.accuracy_rules import ending as ending_of
from jaxunlearn.methods.descent.stored_grams import check_enough, check_grams
from jaxunlearn.methods.descent.subspaces import (
    ENERGIES,
    Grams,
    core_spaces,
    grams_of,
    rounding,
    without,
)
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import Step, fit
from jaxunlearn.transforms.projection import project_out
from jaxunlearn.typing import Array, Key, Params, check_between


class PGUInfo(NamedTuple):
    """What a person wants to see. E epochs of B batches."""

    losses: Array  # (E B,) float32, NaN from where the run ended
    status: Array  # [] int32, a `training.Status`
    steps: Array  # [] int32, steps that changed the params
    best_score: Array  # [] float32, -inf unless a score is given
    ending: Array  # [] int32, an `Ending`
    epoch: Array  # [] int32, epochs behind the params (unless a score chose them)
    accuracies: dict[str, Array]  # field -> (E + 1,) float32, before and after every epoch, or NaN
    ranks: dict[str, Array]  # path of a weight -> [] int32, dimension of its core space
    deficits: dict[str, Array]  # path -> [], -smallest / largest eigenvalue of the retained Gram
    grams: Grams  # of the retained data: what to store for the next request


class _State(NamedTuple):
    """What the next step needs."""

    basis: Params  # Subspaces, in the structure of the params
    step: Array  # [] int32, training steps so far
    watch: Watch  # of the rule that ends the run


def pgu(
    tx: optax.GradientTransformation | None = None,
    *,
    rho: float = 0.9,
    energy: str = "singular",
    epochs: int = 100,
    decay: float = 0.1,
    unlikelihood_weight: float = 1.0,
    entropy_weight: float = 0.2,
    offset: float = 0.05,
    stop: str | None = "gap",
    drop: float = 0.05,
    grams: Grams | None = None,
    micro_batch: int | None = None,
) -> Method:
    """min_theta w_1 mean_F[-log(1 - p_y + o)] - w_2 mean_F[H(p)], outside the core gradient space.

    Args:
      tx: optax transformation; default plain SGD with learning rate 0.1. Its updates are scaled and
        then projected, so Adam is as good.
      rho: share of the singular values (or of the energy) of the retained inputs that the core
        space holds, in [0, 1].
      energy: "singular" (what published rho mean) or "squared"; see `subspaces.core_rank`.
      epochs: E, passes over the forget set, >= 0.
      decay: gamma > 0, the last learning rate in units of the first, which it nears epoch by epoch.
      unlikelihood_weight, entropy_weight: w_1, w_2.
      offset: o > 0, the slope in p_y is at most 1/o.
      stop: "gap", "retain", "held_out" or None (all epochs); see the module.
      drop: fall of accuracy that the last two rules allow, in [0, 1].
      grams: of the whole training set, F included, from `grams_of` or `load_grams`, or what the
        last request left, `info.grams`. None: measured on the retained data.
      micro_batch: examples taken at once where Grams are measured.

    Returns:
      A Method that needs forget, labels and the key; retain, if no Grams are stored or the rule
      looks at it; held_out, if the rule does. info is a `PGUInfo`; the params after each epoch are
      candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range; stored Grams of another model, or (when it is run)
        of no more examples than are to be forgotten.
      TypeError: `grams` is something else.

    Published (rho, learning rate from -> to), o = 0.05, w = (1, 0.2), 100 epochs of batches of 128:

    | forgotten                                     | rho         | learning rate |
    |-----------------------------------------------|-------------|---------------|
    | 500 of one class, AllCNN on CIFAR-10          | 0.9         | 0.1 -> 0.01   |
    | 100 of each class, 4 times, SmallVGG          | 0.95        | 0.05 -> 0.01  |
    | 5 classes, ResNet-18 on TinyImageNet          | 0.9 or 0.95 | 0.05 -> 0.01  |
    | 500 to 2500 poisoned, SmallVGG, o = 0.1       | 0.95        | 0.1 -> 0.05   |

    | edge case                                 | result                                          |
    |-------------------------------------------|-------------------------------------------------|
    | epochs = 0                                | params bit-identical                            |
    | rho = 1                                   | weights move where no retained input reaches;   |
    |                                           | bit-identical if the Gram has full rank         |
    | rho = 0                                   | plain descent of the weights that have a Gram   |
    | forget inputs inside the core space       | a linear layer stays, to rounding               |
    | the rule fires before the first step      | params bit-identical, ending AT_ONCE            |
    | Grams indefinite beyond rounding          | params bit-identical, ending INDEFINITE         |
    | divergence                                | last finite params, `info.status == DIVERGED`   |
    | biases, scales, tables, statistics        | left alone                                      |

    Cost: the Gram of one set (a forward pass and positions x d^2 an example), an eigendecomposition
    of each layer (about 9 d^3: seconds at d = 4608), E passes over F and a forward pass over what
    is watched after each; memory 3 d^2 a layer. Stored Grams are constants of the compiled program.
    On several devices Grams are sums over them.

    Source: Hoang et al. (2024), arXiv:2312.04095; departures in the module.

    Example:
      >>> sorted(pgu(stop="held_out", grams={}).needs)
      ['forget', 'held_out', 'key', 'labels']
    """
    for name, value, bounds in (
        ("rho", rho, {"at_least": 0, "at_most": 1}),
        ("decay", decay, {"above": 0}),
        ("unlikelihood_weight", unlikelihood_weight, {"at_least": 0}),
        ("entropy_weight", entropy_weight, {"at_least": 0}),
        ("offset", offset, {"above": 0}),
        ("drop", drop, {"at_least": 0, "at_most": 1}),
    ):
        check_between("pgu", name, value, **bounds)
    if energy not in ENERGIES:
        raise ValueError(f"pgu: energy must be among {ENERGIES}, got {energy!r}.")
    if stop not in WATCHED:
        raise ValueError(f"pgu: stop must be among {tuple(WATCHED)}, got {stop!r}.")
    if epochs < 0:
        raise ValueError(f"pgu: the length of a run must be >= 0, got epochs={epochs}.")
    check_grams("pgu", grams)
    weights, fields = (unlikelihood_weight, entropy_weight, offset), WATCHED[stop]
    projected = _projected(optax.sgd(0.1) if tx is None else tx)

    def warn(request: Request) -> None:
        if grams is not None:
            check_enough("pgu", grams, request.forget)

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        measured = request.retain if grams is None else request.forget
        assert measured is not None
        left = grams_of(model, params, measured, micro_batch=micro_batch)
        left = left if grams is None else without(grams, left)
        core = core_spaces(left, params, rho, energy)
        beyond = [core.deficits[p] > rounding(left[p].matrix) for p in core.deficits]
        indefinite = jnp.array([False, *beyond]).any()

        streams = {"train": request.forget, **{f: getattr(request, f) for f in fields}}
        evaluation = sum(streams[f].num_batches for f in fields)
        before = (fields,) if fields and epochs else ()
        batches = streams["train"].num_batches
        out = fit(
            Objective(
                lambda start: _State(
                    core.basis, jnp.int32(0), watching(start, epochs, len(fields))
                ),
                bind(_loss, model, weights, Rule(stop, evaluation, drop)),
                _outcome,
                bind(_extras, decay, batches * max(epochs, 1), batches),
            ),
            projected,
            params,
            streams,
            key=key,
            turns=before + epochs * (("train", *fields),),
            stop=_fired if fields else None,
            score=score,
        )
        watch: Watch = out.state.objective.watch
        epoch = np.arange(batches + evaluation) < batches
        trained = np.r_[np.zeros(evaluation * len(before), bool), np.tile(epoch, epochs)]
        losses = out.info.losses[np.flatnonzero(trained)]
        steps = jnp.isfinite(losses).sum().astype(jnp.int32)
        epochs_kept = jnp.where(watch.fired, watch.evaluated - 1 - watch.back, steps // batches)
        curves = jnp.where(watch.accuracies < 0, jnp.nan, watch.accuracies)
        info = PGUInfo(
            losses=losses,
            status=out.info.status,
            steps=steps,
            best_score=out.info.best_score,
            ending=jnp.where(indefinite, jnp.int32(Ending.INDEFINITE), ending_of(watch)),
            epoch=epochs_kept.astype(jnp.int32),
            accuracies={field: curves[:, i] for i, field in enumerate(fields)},
            ranks=core.ranks,
            deficits=core.deficits,
            grams=left,
        )
        made = jax.tree.map(lambda old, new: jnp.where(indefinite, old, new), params, out.params)
        return Unlearned(model, made, info)

    return method(
        unlearn,
        needs={"forget", "labels", "key", *fields, *(["retain"] if grams is None else [])},
        name="pgu",
        guarantee=EMPIRICAL,
        scored=True,
        warn=warn,
    )


def _projected(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx`, scaled by `rate`, projected out of `basis`; at rest where nothing is trained."""
    inner, last = optax.with_extra_args_support(tx), project_out()

    def update(
        grads: Params,
        state: Any,
        params: Params = None,
        *,
        train: bool,
        rate: Array,
        basis: Params,
        **extra: Any,
    ) -> tuple:
        if not train:
            return jax.tree.map(jnp.zeros_like, grads), state
        updates, state = inner.update(grads, state, params, **extra)
        updates = jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates)
        return last.update(updates, optax.EmptyState(), basis=basis)[0], state

    return optax.GradientTransformationExtraArgs(tx.init, update)  # type: ignore[arg-type]


def _extras(
    decay: float | Array,
    total: int,
    batches: int,
    params: Params,
    given: Batches,
    state: _State,
    key: Key,
) -> dict[str, Any]:
    del params, key
    done = state.step // batches * batches / total  # e / E, constant within an epoch
    return {"train": "train" in given, "rate": decay**done, "basis": state.basis}


def _loss(
    model: Model,
    weights: tuple,
    rule: Rule,
    params: Params,
    batches: Batches,
    state: _State,
    key: Key,
) -> tuple[Array, _State]:
    del key
    if "train" in batches:
        batch = batches["train"]
        logits = model.outputs(params, batch)
        unlikely, uncertain, offset = weights
        value = unlikely * weighted_mean(unlikelihood(logits, batch["y"], offset), batch)
        value -= uncertain * weighted_mean(entropy(logits), batch)
        return value, state._replace(step=state.step + 1)
    (field,) = batches
    right = model.outputs(params, batches[field]).argmax(axis=-1) == batches[field]["y"]
    params = jax.lax.stop_gradient(params)
    watch = watched(rule, params, state.watch, field, right, batches[field])
    return jnp.zeros(()), state._replace(watch=watch)


def _fired(step: Step) -> Array:
    return step.objective.watch.fired


def _outcome(params: Params, state: _State) -> Params:
    return handed_out(params, state.watch)
