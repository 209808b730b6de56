"""Retain-forget entanglement: forget under a constraint, then repair what resembles the forgotten.

    1.  max_theta  mean_F C(l_i)   subject to   L_rem(theta) = L_rem(theta_0)
    2.  min_theta  L_adj(theta),   each step orthogonal to q_f and q_r
        q_f = grad [(1 - alpha) s L_F(theta) + alpha W_2^2(l_F(theta), l_F(theta_1))]
        q_r = grad L_rem(theta)

A sub-group is to be forgotten whose label others share. Retained data fall in two: *adjacent* rows,
of that label, and *remote* ones. Stage 1 (augmented Lagrangian, `jaxunlearn.constraints`) raises
the forget loss at a constant remote loss and damages the adjacent rows; stage 2 (projected SGD,
`jaxunlearn.transforms.gradient_span`) repairs these from theta_1, the end of stage 1, on what is to
first order a level set of the remote loss and of a scalar that holds both the mean and the shape of
the forget losses (`jaxunlearn.transport`): they can neither fall back together nor, with alpha > 0,
gather in a few hard rows. C(l) = l, with gradient 0 above `clip`; with `small_punish` k it is
C(l) - k / (l + 0.001): rows that are still fitted well get an extra push. s is `forget_sign`.

Cheng et al. (2026), "Machine Unlearning under Retain-Forget Entanglement", arXiv:2603.26569, after
its published code; defaults are its CIFAR-100 row.

Departures: 1. `forget_sign`: the paper's text has +1, its code -1, the default here. The two span
different planes unless alpha is 0 or 1. 2. Batch sizes are those of the Data, in both stages
(published, remote/adjacent/forget: 128/16/16, then 512/128/128). 3. q_f and q_r sum over `batches`
batches drawn without repetition, or over all there are. 4. Remote rows are told from retained ones
by `"id"`; adjacent ones among these get weight 0. Where rows have no ids, all of retain is remote,
and a warning says so. 5. W_2 compares the losses of one batch, as published. 6. See the ridge in
`gradient_span`. 7. A batch without a remote row has h = 0.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.streams import InMemory, Stream, as_data, is_traced
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.entangled_data import (
    has_ids,
    ids_of,
    mean_before,
    wide,
    with_losses,
    without_rows,
)
from jaxunlearn.methods.descent.entangled_objectives import forgetting, recovery
from jaxunlearn.model import Model
from jaxunlearn.objectives import bind
from jaxunlearn.training import FitInfo, Status, fit
from jaxunlearn.transforms.gradient_span import project_out_gradients
from jaxunlearn.typing import Array, Key, Params, check_between


class EntanglementInfo(NamedTuple):
    """What a person wants to see."""

    ascent: FitInfo  # stage 1; losses (steps,) of the augmented Lagrangian, nats
    recovery: FitInfo  # stage 2; losses (steps,) of adjacent batches, nats
    multiplier: Array  # [] float32, lambda after stage 1
    level: Array  # [] float32, mean remote loss of the original, nats
    status: Array  # [] int32, a `Status`: that of the first stage that did not complete


def entanglement(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 1,
    mu: float = 10.0,
    gamma: float = 1.0,
    clip: float = 10.0,
    small_punish: float = 0.0,
    stages: int = 2,
    recovery_rate: float = 2e-5,
    recovery_epochs: int = 6,
    alpha: float = 0.5,
    beta: float = 0.9,
    batches: int = 10,
    forget_sign: int = -1,
) -> Method:
    """1. max mean_F C(l) s.t. L_rem = L_rem(theta_0);  2. min L_adj, orthogonal to q_f and q_r.

    Args:
      tx: of stage 1; default Adam with learning rate 2.5e-6. Every step takes a batch of remote
        rows and the next one of the forget set; lambda moves in every step too.
      epochs: passes over the retained data in stage 1, >= 0.
      mu: > 0, of the augmented Lagrangian.
      gamma: >= 0, weight of the forget loss in stage 1; 0 forgets nothing.
      clip: c > 0, nats; a forget row whose loss has reached it stops pushing. Published: 10 for
        images, 5 for text.
      small_punish: k >= 0; published: 0 for images, 1 for text.
      stages: 2, or 1 to end after the first.
      recovery_rate: learning rate of the SGD of stage 2, >= 0.
      recovery_epochs: passes over the adjacent data in stage 2, >= 0.
      alpha: share of W_2^2 in q_f, in [0, 1]; 0 holds the mean forget loss alone.
      beta: decay of the velocity in stage 2, in [0, 1).
      batches: forget and remote batches in q_f and q_r, >= 1 (published as B_lim).
      forget_sign: s, +1 or -1.

    Returns:
      A Method that needs forget, retain, adjacent, labels and the key. Info is an
      `EntanglementInfo`; the params after each epoch of both stages are candidates for `keep_best`.

    Raises:
      ValueError: an argument out of range; (when called) no adjacent data, or no remote rows.

    | edge case                            | result                                              |
    |--------------------------------------|-----------------------------------------------------|
    | epochs = recovery_epochs = 0         | params bit-identical                                |
    | forget batches larger than the set   | every batch is the whole set, each row once         |
    | retain holds no adjacent row         | all of retain is remote                             |
    | no `"id"` column                     | all of retain is remote, with a `UserWarning`       |
    | all of retain is adjacent            | `ValueError`; inside a trace, no constraint         |
    | divergence in either stage           | last finite params before it, status DIVERGED       |

    Cost: a forward pass over retain and the forget set each; `epochs` passes over retain with as
    many forget batches; then per adjacent batch 1 + 2 `batches` backward passes. Retained rows of
    weight 0 cost as much as others: hand in retain without the adjacent rows to save them. Memory
    of two gradients, a velocity and one loss per forget row.

    Source: Cheng et al. (2026), arXiv:2603.26569; departures in the module.

    Example:
      >>> sorted(entanglement(optax.adam(1e-4), recovery_rate=1e-3).needs)
      ['adjacent', 'forget', 'key', 'labels', 'retain']
    """
    if stages not in (1, 2) or forget_sign not in (1, -1):
        raise ValueError(
            "entanglement: stages must be 1 or 2 and forget_sign +1 or -1, "
            f"got {stages=}, {forget_sign=}."
        )
    if min(epochs, recovery_epochs) < 0 or batches < 1:
        raise ValueError(
            "entanglement: epochs and recovery_epochs must be >= 0 and batches >= 1, "
            f"got {epochs=}, {recovery_epochs=}, {batches=}."
        )
    check_between("entanglement", "mu", mu, above=0)
    check_between("entanglement", "gamma", gamma, at_least=0)
    check_between("entanglement", "clip", clip, above=0)
    check_between("entanglement", "small_punish", small_punish, at_least=0)
    check_between("entanglement", "recovery_rate", recovery_rate, at_least=0)
    check_between("entanglement", "alpha", alpha, at_least=0, at_most=1)
    check_between("entanglement", "beta", beta, at_least=0, below=1)
    first_tx = optax.adam(2.5e-6) if tx is None else tx
    second_tx = optax.chain(
        project_out_gradients(beta), optax.scale_by_learning_rate(recovery_rate)
    )

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        forget, adjacent = as_data(request.forget), as_data(request.adjacent)
        remote = remote_rows(as_data(request.retain), adjacent)
        level = mean_before(with_losses(bind(model.loss, params), remote))
        first = fit(
            forgetting(model, level, mu=mu, gamma=gamma, clip=clip, small_punish=small_punish),
            first_tx,
            params,
            {"remote": remote, "forget": forget},
            key=jax.random.fold_in(key, 1),
            epochs=epochs,
            score=score,
        )
        frozen = first.state.params
        second = fit(
            recovery(model, alpha, forget_sign, forget=forget.batch_size, remote=remote.batch_size),
            second_tx,
            frozen,
            {
                "adjacent": adjacent,
                "forget": wide(with_losses(bind(model.loss, frozen), forget), batches),
                "remote": wide(remote, batches),
            },
            key=jax.random.fold_in(key, 2),
            epochs=recovery_epochs if stages == 2 else 0,
            score=score,
        )
        went = first.info.status == Status.COMPLETED
        on = went
        if score is not None:
            on = went & (second.info.best_score > first.info.best_score)
        info = EntanglementInfo(
            first.info,
            second.info,
            first.state.objective.multiplier,
            level,
            jnp.where(went, second.info.status, first.info.status),
        )
        kept = jax.tree.map(lambda a, b: jnp.where(on, a, b), second.params, first.params)
        return Unlearned(model, kept, info)

    needs = ("forget", "retain", "adjacent", "labels", "key")
    return method(unlearn, needs=needs, name="entanglement", scored=True, warn=_check_remote)


def remote_rows(retain: InMemory | Stream, adjacent: InMemory | Stream) -> InMemory | Stream:
    """Retain with weight 0 where a row's id is among the adjacent ones; all of it without ids."""
    return without_rows(retain, ids_of(adjacent)) if _told_apart(retain, adjacent) else retain


def _told_apart(retain: InMemory | Stream, adjacent: InMemory | Stream) -> bool:
    return has_ids(retain) and has_ids(adjacent)


def _check_remote(request: Request) -> None:
    """Says on the host what a trace cannot: rows without ids, no remote rows at all."""
    retain, adjacent = as_data(request.retain), as_data(request.adjacent)
    if not _told_apart(retain, adjacent):
        warnings.warn(
            "entanglement: retain and adjacent have no 'id' columns to tell remote rows by, so all "
            "of retain is taken as remote. Give ids, or retain without its adjacent rows.",
            UserWarning,
            stacklevel=3,
        )
    elif not is_traced((retain, adjacent)):
        if np.isin(np.asarray(ids_of(retain)), np.asarray(ids_of(adjacent))).all():
            raise ValueError(
                "entanglement: every retained row is adjacent, so nothing is remote and stage 1 "
                "has no constraint. Name as adjacent only what resembles the forget set."
            )
