"""Suppressed or deleted? Push the features of what was forgotten back in; does it return?

    h_u, h_o = hidden(params, x), hidden(original, x)       tokens half-way up
    logits   = resume(params, steer(h_u, h_o))              the rest of the way, unlearned
    rate     = (accuracy steered - unlearned) / (original - unlearned)       on the forgotten

A rate near 1 says that the layers above still know what to do: suppressed. It is no statement by
itself. Retraining from a common start is restored as well, so the same number is asked of models
that were never trained on the data, and of controls:

| steered            | what is changed (see `steering`)               | what it is for           |
|--------------------|------------------------------------------------|--------------------------|
| `"experts"`        | expert latents of patches; class token kept    | the question             |
| `"class_token"`    | the class token moves to the original's        | the trivial part         |
| `"both"`           | both, the published intervention               | comparison with tables   |
| `"random"`         | as experts, with as many other latents         | is it these features?    |
| `"reconstruction"` | patches read through the dictionary, no latent | what the dictionary does |

Read the experts' rate beside the controls': where the dictionary alone, or any latents, bring back
as much, the unlearned model was easily disturbed, and nothing is known of these features.

The trivial part: at alpha = 1 the class token *is* the original's, and a classifier that reads the
class token is then the original up to the layers above, whatever happened below. Networks without a
class token have no such arm. Steering cannot see a suppression in the layers above the tokens: an
output bias of -1000 gives rate 0 though nothing was deleted. Pair it with linear probes.

Source: Y. Jang et al. (2026), arXiv:2602.18505. The rate is a *reconstruction*. Departures: 1. the
arms apart, and the controls; 2. all rows are steered, not only those whose true label is the
forgotten one, so that `retained` says what the intervention costs (rows do not mix: the forgotten
ones get the published number); 3. tokens half-way up the network, not block 9 of 12.

| input                                       | result                                         |
|---------------------------------------------|------------------------------------------------|
| original and unlearned equally accurate     | rate NaN                                       |
| no target row                               | TooFew; inside a trace NaN                     |
| no row besides                              | `retained` NaN                                 |
| a model with non-finite outputs             | NaN for that model                             |
| outputs of -Inf for some classes            | valid, as a masked head gives them             |
| rows of weight 0                            | count for nothing                              |
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.streams import InMemory, in_memory
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Batch, Key, Params, check_between, check_key

from .errors import TooFew
from .sparse_autoencoder import SparseAutoencoder
from .steering import ARMS, as_target, check_arm, latent_mask, random_latents, steer


class SteeredScores(NamedTuple):
    """Of one model, or of one model at each alpha: shape (A,) in the place of []."""

    accuracy: Array  # [] float in [0, 1], on the target rows
    confidence: Array  # [] float in [0, 1], mean probability of the label, on the target rows
    retained: Array  # [] float in [0, 1], accuracy on the other rows


class Restoration(NamedTuple):
    """What steering brings back in one model."""

    unlearned: SteeredScores  # [] without any intervention
    original: SteeredScores  # [] of the original; NaN if there is none
    steered: Mapping[str, SteeredScores]  # arm or control -> (A,)
    rate: Mapping[str, Array]  # arm or control -> (A,) float; NaN where undefined


def restoration(
    model: Model,
    params: Params,
    original_params: Params | None,
    sae: SparseAutoencoder,
    batch: Batch,
    target: Array,
    experts: Array,
    *,
    key: Key,
    alphas: Sequence[float] | Array = (1.0, 5.0, 10.0),
    mode: str = "inject",
    draws: int = 4,
    chunk: int | None = None,
) -> Restoration:
    """How much of the target comes back in one model, for every arm, control and alpha.

        rate = (accuracy steered - accuracy unlearned) / (accuracy original - accuracy unlearned)

    Args:
      model: with `hidden`, `resume` and outputs (n, C).
      params: the unlearned model; or an oracle, which never saw the target, for comparison.
      original_params: the original; None in mode "add" if rates are not wanted.
      sae: trained on the original's activations (`train_sparse_autoencoder`).
      batch: columns "x", "y" (n,) integers and optionally "weight" (n,); n >= 1.
      target: (n,) bool, rows of the forgotten class, or forgotten rows; the others are retained.
      experts: (count,) integers, see `expert_features`.
      key: typed key, draws the random latents.
      alphas: (A,) strengths.
      mode: "inject" or "add", see `steer`.
      draws: sets of `count` random latents, none an expert, over which "random" is averaged.
      chunk: rows at once, which bounds memory; None for all. The result is the same: accuracies
        and rates to the bit, confidences up to the rounding of the network's own products.

    Returns:
      `Restoration`. Its arms are "experts" and, with a class token in mode "inject", "class_token"
      and "both"; its controls "random" and "reconstruction" (the same for every alpha; in mode
      "add" it is the unlearned model itself).

    Raises:
      ValueError: see the messages: a model that cannot be split, a wrong target, experts, alphas,
        mode, draws or chunk, too few latents for the random control.
      TooFew: no rows, or (where it can be seen) no target row.

    Traceable; `jax.vmap` over (params, original_params, sae, experts, key) audits many models.

    Cost: two lower and (arms + draws) A upper halves of a forward pass; memory of chunk rows of it.

    Source: see the module.

    Example:
      >>> from jaxunlearn.audit.sparse_autoencoder import Dictionary
      >>> eye, zero = jnp.eye(4), jnp.zeros(4)
      >>> sae = SparseAutoencoder(Dictionary(eye, eye, zero, zero), zero[None], jnp.ones(1), 2)
      >>> split = Model(
      ...     outputs=lambda p, b: b["x"] * p,
      ...     loss=lambda p, b: b["x"][:, 0],
      ...     hidden=lambda p, b: (b["x"] * p)[:, None],
      ...     resume=lambda p, h: h[:, 0],
      ... )
      >>> suppressed = jnp.array([[0.0, 1.0, 1.0, 1.0]])  # the first feature is no longer computed
      >>> rows = {"x": eye + 0.1, "y": jnp.arange(4)}
      >>> first, expert = jnp.arange(4) == 0, jnp.array([0])
      >>> back = restoration(
      ...     split, suppressed, jnp.ones((1, 4)), sae, rows, first, expert, key=jax.random.key(0)
      ... )
      >>> print(back.rate["experts"], back.rate["random"])
      [1. 1. 1.] [0. 0. 0.]
    """
    _check_split(model)
    check_arm(sae, original_params is not None, "experts", mode)
    check_between("restoration", "draws", draws, at_least=1)
    check_key("restoration", key)
    chosen = latent_mask(experts, sae.dictionary.latent.shape[-1])
    others = random_latents(key, chosen, len(experts), draws)
    data = _rows(batch, chunk)
    target = as_target(target, data.num_examples, "restoration")
    alphas = _strengths(alphas)
    arms = ARMS if sae.class_token and mode == "inject" else ARMS[:1]

    def grades(index: Array) -> dict[str, Array]:
        """(A or 1, 2, rows): what `_grade` says for every intervention on one chunk."""
        rows = data.batch(index)
        hidden = model.hidden(params, rows)  # type: ignore[misc]
        original = None if original_params is None else model.hidden(original_params, rows)  # type: ignore[misc]

        def graded(tokens: Array) -> Array:
            return _grade(model.resume(params, tokens), rows["y"])  # type: ignore[misc]

        def steered(latents: Array, arm: str, strengths: Array) -> Array:
            def at(alpha: Array) -> Array:
                return graded(steer(sae, hidden, original, latents, alpha, arm=arm, mode=mode))

            return jax.vmap(at)(strengths)

        found = {arm: steered(chosen, arm, alphas) for arm in arms}
        drawn = jax.vmap(lambda latents: steered(latents, "experts", alphas))(others)
        found["random"] = drawn.mean(axis=0)
        none = jnp.zeros_like(chosen)
        found["reconstruction"] = steered(none, "experts", jnp.zeros(1, alphas.dtype))
        found["unlearned"] = graded(hidden)[None]
        if original is not None:
            logits = model.resume(original_params, original)  # type: ignore[misc]
            found["original"] = _grade(logits, rows["y"])[None]
        return found

    found = jax.lax.map(grades, jnp.arange(data.num_batches))
    weight = jnp.asarray(batch.get("weight", jnp.ones(len(target))))
    scores = {name: _scores(each, target, weight) for name, each in found.items()}
    unlearned = _first(scores.pop("unlearned"))
    undefined = SteeredScores(*[jnp.full((), jnp.nan)] * 3)
    original = _first(scores.pop("original")) if "original" in scores else undefined
    spread = {
        name: SteeredScores(*(jnp.broadcast_to(value, alphas.shape) for value in each))
        for name, each in scores.items()
    }
    rate = {
        name: restoration_rate(each.accuracy, unlearned.accuracy, original.accuracy)
        for name, each in spread.items()
    }
    return Restoration(unlearned, original, spread, rate)


def restoration_rate(restored: Array, unlearned: Array, original: Array) -> Array:
    """(restored - unlearned) / (original - unlearned); NaN where original = unlearned.

    Example:
      >>> print(restoration_rate(jnp.array([0.25, 0.5]), jnp.array(0.25), jnp.array(0.75)))
      [0.  0.5]
    """
    gap = original - unlearned
    return jnp.where(gap == 0, jnp.nan, (restored - unlearned) / jnp.where(gap == 0, 1, gap))


def _grade(logits: Array, labels: Array) -> Array:
    """(2, rows): whether the label is said, and its probability; NaN for a row without either."""
    if logits.ndim != 2:
        raise ValueError(
            f"restoration: expected outputs (n, C), one label an example, got {logits.shape}."
        )
    said = jax.nn.softmax(logits, axis=-1)
    probability = jnp.take_along_axis(said, labels[:, None].astype(jnp.int32), axis=-1)[:, 0]
    valid = jnp.isfinite(logits.max(axis=-1))
    correct = (logits.argmax(axis=-1) == labels).astype(said.dtype)
    return jnp.where(valid[None], jnp.stack([correct, probability]), jnp.nan)


def _scores(grades: Array, target: Array, weight: Array) -> SteeredScores:
    """Averages over the target and over the rest, from grades (chunks, A, 2, rows)."""
    each = jnp.moveaxis(grades, 0, -2)
    each = each.reshape(*each.shape[:-2], -1)[..., : len(target)]  # whatever the chunks: (A, 2, n)

    def mean(values: Array, rows: Array) -> Array:
        w = jnp.where(rows, weight, 0)[None]
        return jnp.where(w > 0, w * values, 0).sum(-1) / w.sum(-1)

    correct, probability = each[:, 0], each[:, 1]
    return SteeredScores(mean(correct, target), mean(probability, target), mean(correct, ~target))


def _first(scores: SteeredScores) -> SteeredScores:
    return SteeredScores(*(value[0] for value in scores))


def _check_split(model: Model) -> None:
    if model.hidden is None or model.resume is None:
        raise ValueError(
            "restoration: this model cannot be split: it has no `hidden` and `resume`. Give the "
            "module methods middle(x) and resume(h), or Model(..., hidden=..., resume=...)."
        )


def _rows(batch: Batch, chunk: int | None) -> InMemory:
    """The batch as Data of `chunk` rows at once."""
    labels = batch.get("y")
    if labels is None or jnp.ndim(labels) != 1 or jnp.result_type(labels).kind not in "iu":
        came = "none" if labels is None else f"{jnp.result_type(labels)} {jnp.shape(labels)}"
        raise ValueError(
            f"restoration: expected the column 'y' as integer classes (n,), got {came}."
        )
    if len(labels) == 0:
        raise TooFew("restoration: the batch has no rows.")
    size = len(labels) if chunk is None else chunk
    check_between("restoration", "chunk", size, at_least=1)
    return in_memory(dict(batch), size)


def _strengths(alphas: Sequence[float] | Array) -> Array:
    strengths = jnp.asarray(alphas, jnp.result_type(float))
    if strengths.ndim != 1 or strengths.size == 0:
        raise ValueError(
            f"restoration: expected alphas (A,) with A >= 1, got shape {strengths.shape}."
        )
    return strengths
