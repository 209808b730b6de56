"""Memorise to forget: train a copy to memorise the forget set, and go the other way.

    theta_mem = argmin-ward of  L_F(theta) + KL(h_ref || h_theta)_R,    from theta_ref
    theta'    = theta_ref + alpha (theta_ref - theta_mem)

Memorising is ordinary descent, with a minimum to go to, where ascent has none: on a quadratic loss
theta_mem never moves further than to its minimiser, while ascent grows as (1 + s H)^T. One step of
it is one step of ascent, alpha times as long; everything else is curvature. Without the KL term
this is the negation of a task vector (Ilharco et al., 2023, arXiv:2212.04089).

Huang et al. (2026), "Is Gradient Ascent Really Necessary? Memorize to Forget for Machine
Unlearning", arXiv:2602.06441. *Reconstruction* from descriptions of the paper and its appendix; no
code was found.

| variant   | here                | what it changes                                              |
|-----------|---------------------|--------------------------------------------------------------|
| plain     | the default         |                                                              |
| momentum  | `eta=0.675`         | an exponential average of theta' over the steps              |
| targeted  | `tau > 0`           | - tau min(l(x, y~), clip): theta' comes to prefer y~         |
| NPO       | `objective="npo"`   | 2/beta log sigmoid(-beta log(h_theta / h_ref)) in place of L_F |

Departures: 1. Weight decay pulls towards theta_ref; towards 0, as published, its reflection pushes
theta' away from 0 (`decay_to="zero"`). 2. The targeted term is summed over forget inputs, with
replacements y~ of their own, and clipped; as printed it runs over retained data and is unbounded.
3. The momentum average is taken of theta_mem and reflected at the end: the map is affine, so this
is the same average. Whether its published interval is a step or an epoch was not found; here it is
`interval` steps. 4. The published warm-up starts from a rate of 0 and wastes a step; the triangle
here starts and ends above it. 5. Losses of several positions are summed in both terms, not averaged
in both.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory
from jaxunlearn.distillation import prediction_distillation, with_old_outputs
from jaxunlearn.extrapolation import averaged, distance, extrapolate
from jaxunlearn.memorisation import check_replacements, mean_divergence, memorising, preferring
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective
from jaxunlearn.training import Status, fit
from jaxunlearn.transforms import anchor
from jaxunlearn.typing import Array, Data, Key, Params, check_between


class MoxInfo(NamedTuple):
    """The memorising run, and how far its reflection went."""

    losses: Array  # (steps,) float32, of memorising; NaN from where the run ended
    status: Array  # [] int32, a `Status`; DIVERGED too if theta' overflows
    steps: Array  # [] int32, steps that changed the memorising copy
    best_score: Array  # [] float32, -inf unless a score is given
    displacement: Array  # [] float32, |theta_mem - theta_ref|, averaged theta_mem with `eta`
    retain_divergence: Array  # [] float32, mean KL(h_ref || h_theta') over R, nats; NaN without R


def mox(
    tx: optax.GradientTransformation | None = None,
    *,
    alpha: float = 4.0,
    epochs: int = 10,
    objective: str = "ce",
    beta: float = 0.1,
    kl: float | None = 1.0,
    eta: float | None = None,
    interval: int = 1,
    tau: float | None = None,
    clip: float = 10.0,
    weight_decay: float | None = None,
    decay_to: str | None = None,
) -> Method:
    """theta' = theta_ref + alpha (theta_ref - theta_mem), theta_mem trained to memorise F.

    Args:
      tx: optax transformation of the memorising run; default AdamW with learning rate 1e-5, weight
        decay 0.01, linear warm-up in the first epoch and linear decay to the end.
      alpha: strength, any finite number; published grid 0.5, 1, 2, 4, 8. -1 returns theta_mem, for
        `extrapolation.extrapolations`: a sweep over alpha that trains once.
      epochs: passes over the forget set, >= 0; every batch goes with one of retained data.
      objective: "ce", the model's loss, or "npo".
      beta: of "npo", > 0.
      kl: weight of the KL term, >= 0; None: no such term, and no retained data.
      eta: rate of the momentum average in [0, 1]; None: none. Published: 0.675.
      interval: steps between its updates, >= 1.
      tau: weight of the targeted term, >= 0; None: none. It reads the column "replacement" of the
        forget data: the answers that theta' should prefer, of the kind of `"y"`.
      clip: nats, > 0, at which a replacement answer is unlikely enough.
      weight_decay, decay_to: of the default optimiser (None: 0.01 and "reference"; or "zero"). One
        that is given brings its own: see `transforms.anchor`.

    Returns:
      A Method that needs forget, labels, the key and, with `kl`, retain. Its info is a `MoxInfo`.
      The params after each epoch, reflected, are candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range, decay beside a `tx`; (when it is run) no column
        "replacement" for `tau`, or negative classes in it.

    | edge case                    | result                                                    |
    |------------------------------|-----------------------------------------------------------|
    | alpha = 0, epochs = 0        | params bit-identical                                      |
    | eta = 1; eta = 0             | no momentum; params bit-identical                         |
    | F memorised already          | a short, noisy step: see `info.displacement`              |
    | memorising diverges          | reflection of the last finite theta_mem, status DIVERGED  |
    | theta' overflows             | params bit-identical, status DIVERGED                     |
    | bf16 weights                 | reflected in float32                                      |

    Each NPO term is bounded below by 2/beta log sigmoid(-beta l_ref), since h_theta <= 1. The KL
    holds theta_mem, not theta', and is convex along the line only nearby: `info.retain_divergence`
    says what became of it.

    Cost: `epochs` gradient passes over F and as many batches of R. Outputs of theta_ref on R are
    computed once, where R is in memory and would be seen whole, else in every step; one more pass
    over R for the info. Memory: three copies of the weights, four with "npo" or with a streamed R.

    Source: Huang et al. (2026), arXiv:2602.06441; departures in the module.

    Example:
      >>> sorted(mox(optax.adam(1e-3), alpha=2.0, epochs=1, kl=None).needs)
      ['forget', 'key', 'labels']
    """
    for what, value, bounds in (
        ("alpha", alpha, {}),
        ("beta", beta, {"above": 0}),
        ("kl", kl, {"at_least": 0}),
        ("eta", eta, {"at_least": 0, "at_most": 1}),
        ("tau", tau, {"at_least": 0}),
        ("clip", clip, {"above": 0}),
        ("weight_decay", weight_decay, {"at_least": 0}),
    ):
        if value is not None:
            check_between("mox", what, value, **bounds)
    if objective not in ("ce", "npo"):
        raise ValueError(f"mox: objective must be 'ce' or 'npo', got {objective!r}.")
    if decay_to not in (None, "reference", "zero"):
        raise ValueError(f"mox: decay_to must be 'reference' or 'zero', got {decay_to!r}.")
    if tx is not None and not (weight_decay is None and decay_to is None):
        raise ValueError(
            "mox: weight_decay and decay_to belong to the default optimiser. Chain "
            "transforms.anchor or optax.add_decayed_weights into the one that is given."
        )
    if epochs < 0 or interval < 1:
        raise ValueError(
            f"mox: epochs must be >= 0 and interval >= 1, got {epochs} and {interval}."
        )

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        streams: dict[str, Data] = {"forget": request.forget}
        terms = [(1.0, memorising(model, objective, beta))]
        if tau is not None:
            terms.append((-tau, preferring(model, clip)))
        passed = epochs * request.forget.num_batches
        if kl is not None:
            assert request.retain is not None
            streams["retain"], old, held = _remembered(model, params, request.retain, passed)
            terms.append((kl, held))
        whole = objectives.weighted_sum(*terms)

        def reflect(memorised: Params) -> Params:
            return extrapolate(params, memorised, alpha)

        fitted = fit(
            whole if eta is None else averaged(whole, eta, interval),
            published_adamw(epochs, request.forget.num_batches, weight_decay, decay_to)
            if tx is None
            else tx,
            params,
            streams,
            key=key,
            epochs=epochs,
            score=None if score is None else lambda memorised: score(reflect(memorised)),
        )
        far = reflect(fitted.params)
        finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(far)]).all()
        forgotten = jax.tree.map(lambda new, old: jnp.where(finite, new, old), far, params)
        info = fitted.info._replace(
            status=jnp.where(finite, fitted.info.status, jnp.int32(Status.DIVERGED))
        )
        drifted = jnp.float32(jnp.nan)
        if kl is not None:
            drifted = mean_divergence(model, old, forgotten, streams["retain"])
        moved = distance(fitted.params, params)
        return Unlearned(model, forgotten, MoxInfo(*info, moved, drifted))

    needs = {"forget", "labels", "key"} | (set() if kl is None else {"retain"})
    warn = None if tau is None else check_replacements
    return method(unlearn, needs=needs, name="mox", scored=True, warn=warn)


def _remembered(
    model: Model, params: Params, retain: Data, steps: int
) -> tuple[Data, Params | None, Objective]:
    """R, with what theta_ref says of it where that saves work; theta_ref if not; the KL term."""
    bare = dataclasses.replace(model, features=None)
    held = partial(prediction_distillation, bare, temperature=1.0, on="retain")
    if isinstance(retain, InMemory) and steps >= retain.num_batches:
        return with_old_outputs(bare, params, retain), None, held(None)
    return retain, params, held(params)


def published_adamw(
    epochs: int,
    batches: int,
    weight_decay: float | Array | None = None,
    decay_to: str | None = None,
    learning_rate: float | Array = 1e-5,
) -> optax.GradientTransformation:
    """AdamW whose decay pulls to where the run starts, warmed up for an epoch, decayed to the end.

        eta_t = eta min((t + 1) / W, (T - t) / (T - W + 1)),    t = 0 .. T - 1

    Args:
      epochs, batches: T = epochs batches, W = batches (one epoch).
      weight_decay: decoupled, >= 0; None: 0.01.
      decay_to: "reference" (None too), where the run starts, or "zero".
      learning_rate: eta > 0.

    Example:
      >>> tx = published_adamw(2, 5, learning_rate=1.0)
      >>> updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> print(updates.round(3))
      [-0.2]
    """
    total = max(1, epochs * batches)

    def rate(step: Any) -> Array:
        return learning_rate * jnp.minimum(
            (step + 1) / batches, (total - step) / (total - batches + 1)
        )

    decay = 0.01 if weight_decay is None else weight_decay
    pull = optax.add_decayed_weights(decay) if decay_to == "zero" else anchor(strength=decay)
    return optax.chain(optax.scale_by_adam(), pull, optax.scale_by_learning_rate(rate))
