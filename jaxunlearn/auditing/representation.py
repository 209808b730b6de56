"""What the features still hold, model by model: neighbours, probes, and steering by the original.

    neighbours, probe     is what was forgotten still in a place of its own?
    transfer              are the features still good for something else: is the class number odd?
    probe for membership  do forgotten rows lie elsewhere than unseen rows of their kind?
    steering              do features of the original, injected half-way, bring it back?

Steering is the only attack that needs the originals: a sparse autoencoder is trained on the hidden
activations of each, and the latents that stand for the forget rows are kept as its guide.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing.blocks import Rows, in_blocks
from jaxunlearn.ensembles import ensemble
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Key, Params

ALPHAS = (0.0, 1.0, 2.0, 5.0, 10.0)  # strength of steering
ARMS = ("experts", "random", "reconstruction")  # what is steered, and its controls
SAE_STEPS = 500
_FOLDS = 5  # of the probe for membership, and neighbours that vote


class Guide(NamedTuple):
    """What steering takes from the originals: stacked, one of each per original."""

    params: Params
    sae: audit.SparseAutoencoder
    experts: Array  # (N, count)


def probes(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    classes: np.ndarray,
    *,
    seed: int,
) -> dict[str, np.ndarray]:
    """measure -> (M,) what simple classifiers read off the features.

    Args:
      features: rows -> (M, n, d) of "forget", "taught" (retained rows that teach the classifiers),
        "kind" (unseen rows of the forgotten kind) and "test" (unseen rows of other kinds, or all
        where kinds cannot be told).
      labels: rows -> (n,).
      classes: labels that were forgotten whole; empty if there are none.
      seed: of the folds.

    Returns:
      What cannot be asked of these rows is absent, the same for all models; NaN for a model with
      non-finite features.

    | measure                  | needs                                                          |
    |--------------------------|----------------------------------------------------------------|
    | neighbours               | unseen rows of the forgotten classes, or forget rows           |
    | probe_recall, probe_auc  | a class that was forgotten whole, unseen rows of it and others |
    | transfer                 | unseen rows of other kinds                                     |
    | probe_membership         | five forget rows, five unseen ones of their kind               |
    """
    if not features:
        return {}
    taught = np.concatenate([features["taught"], features["forget"]], axis=1)
    y = np.concatenate([labels["taught"], labels["forget"]])
    found: dict[str, Any] = {}
    if classes.size:
        voters = min(_FOLDS, len(y))
        found["neighbours"] = audit.knn_accuracy(
            taught, y, features["kind"], labels["kind"], k=voters
        )
        unseen = np.concatenate([features["kind"], features["test"]], axis=1)
        unseen_y = np.concatenate([labels["kind"], labels["test"]])
        known = np.isin(unseen_y, y)  # with few rows to teach, a class may be missing
        there = np.intersect1d(classes, y).tolist()
        probe = None if not there else audit.forgotten_class_probe(
            taught, y, unseen[:, known], unseen_y[known], forgotten=there
        )  # fmt: skip
        if probe is not None:
            found |= {"probe_recall": probe.recall, "probe_auc": probe.auc}
    else:
        found["neighbours"] = audit.knn_accuracy(
            features["taught"], labels["taught"], features["forget"], labels["forget"],
            k=min(_FOLDS, len(labels["taught"])),
        )  # fmt: skip
    found["transfer"] = audit.probe_accuracy(
        features["taught"], labels["taught"] % 2, features["test"], labels["test"] % 2
    )
    alike = features["kind"] if len(labels["kind"]) else features["test"]
    if min(len(labels["forget"]), alike.shape[1]) >= _FOLDS:
        rng = np.random.default_rng([seed, 3])
        known = audit.membership_probe(features["forget"], alike, folds=_FOLDS, rng=rng)
        if known is not None:
            found["probe_membership"] = known.auc
    return {name: values for name, values in found.items() if values is not None}


def learned_guide(
    network: Model,
    originals: Params,
    forget: Rows,
    taught: Rows,
    *,
    key: Key,
    class_token: bool,
) -> Guide | None:
    """A sparse autoencoder of each original, and its latents that stand for the forget rows.

    Args:
      network: of the comparison.
      originals: stacked, N models.
      forget, taught: rows whose hidden activations are learnt from.
      key: the same for all.
      class_token: whether the first token is one.

    Returns:
      `Guide`, on the host; None for a network that cannot be split (`model.hidden`).
    """
    if network.hidden is None:
        return None
    x = np.concatenate([forget.x, taught.x])
    target = np.arange(len(x)) < forget.size

    def one(params: Params) -> tuple[audit.SparseAutoencoder, Array]:
        hidden = network.hidden(params, {"x": x})  # type: ignore[misc]
        width = hidden.shape[-1]
        sae, _ = audit.train_sparse_autoencoder(
            hidden, key=key, k=min(16, width), steps=SAE_STEPS, class_token=class_token
        )
        count = max(1, min(10, width // 2))
        return sae, audit.expert_features(sae, hidden, jnp.asarray(target), count=count)

    sae, experts = in_blocks(jax.jit(ensemble(one)), originals)
    return Guide(jax.device_get(originals), sae, experts)


def steering(network: Model, forget: Rows, *, key: Key) -> Callable[[Params, Guide], tuple]:
    """(params, guide) of one model -> for each arm (A,) knowledge of the forget rows."""

    def curves(params: Params, guide: Guide) -> tuple[Array, ...]:
        found = audit.restoration(
            network, params, guide.params, guide.sae, forget.batch,
            jnp.ones(forget.size, bool), guide.experts, key=key, alphas=ALPHAS,
        )  # fmt: skip
        return tuple(found.steered[arm].confidence for arm in ARMS)

    return curves
