"""What is looked at of an ensemble of models, all at once: outputs, features, and what becomes of
both when the model is trained on, pruned, quantised or steered.

A `Bench` is built once for a task and measures one ensemble after another under equal conditions:
the same rows, the same random order of whatever is relearned, the same compiled programs (models go
through them in blocks of 16, so that an ensemble of any size compiles nothing new). Equal
conditions are what makes models exchangeable when a method is retraining, and so keeps the tests
behind the audits exact.

    knowledge(theta, S) = mean_{(x, y) in S} p_theta(y | x)          in [0, 1]

is the number that durability watches. The forget rows are shared out: one half is there to be
relearned, the other half is *held back* and watched, so that what returns there was not shown.

| measured                        | on                                                     |
|---------------------------------|--------------------------------------------------------|
| logits                          | every part of the task, all rows of the comparison     |
| features                        | forget rows, unseen rows; training rows for the probes |
| relearning, few examples, from  | knowledge of the half held back                        |
| a fresh last layer              |                                                        |
| other training (retained rows)  | knowledge of all forget rows                           |
| pruning, quantisation           | knowledge of all forget rows                           |
| steering by the original        | knowledge of all forget rows                           |
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing.planted import forgotten_classes
from jaxunlearn.compare import Evaluator
from jaxunlearn.compare import Settings as ComparisonSettings
from jaxunlearn.data.streams import InMemory, in_memory
from jaxunlearn.data.tasks import Task
from jaxunlearn.ensembles import ensemble
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Batch, Params

COUNTS = (1, 2, 4, 8, 16, 32)  # of forget rows from which the rest is relearned
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)  # of weights pruned
QUANTISED: dict[str, dict[str, Any]] = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "NF4": {"bits": 4, "group": 64, "levels": "nf4"},
    "3 bits": {"bits": 3},
}
ALPHAS = (0.0, 1.0, 2.0, 5.0, 10.0)  # strength of steering
ARMS = ("experts", "random", "reconstruction")  # what is steered, and its controls
SAE_STEPS = 500
_AT_ONCE = 16  # models in a block
_RATES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 60)])  # false positive rates of a curve


class Measured(NamedTuple):
    """What was measured of one ensemble of M models; host arrays."""

    logits: Mapping[str, np.ndarray]  # part -> (M, n, C)
    features: Mapping[str, np.ndarray]  # rows -> (M, n, d); empty without `model.features`
    places: Mapping[str, np.ndarray]  # audit -> (M, ...) numbers that place each model
    curves: Mapping[str, np.ndarray]  # curve -> (M, T) numbers in [0, 1], along `Bench.axes`
    numbers: Mapping[str, np.ndarray]  # measure -> (M,)


class Guide(NamedTuple):
    """What steering takes from the originals: stacked, one of each per original."""

    params: Params
    sae: audit.SparseAutoencoder
    experts: Array  # (N, count)


class Rows(NamedTuple):
    """Some rows with their labels."""

    x: np.ndarray
    y: np.ndarray

    @property
    def batch(self) -> Batch:
        return {"x": self.x, "y": self.y}


def _in_blocks(function: Callable, *stacked: Any) -> Any:
    """function over the leading axis of models, in blocks of equal size; on the host."""
    stacked = jax.device_get(stacked)
    count = len(jax.tree.leaves(stacked)[0])
    found = []
    for start in range(0, count, _AT_ONCE):
        models = np.minimum(start + np.arange(_AT_ONCE), count - 1)
        block = jax.tree.map(lambda leaf, models=models: leaf[models], stacked)
        found.append(jax.device_get(function(*block)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *found)


def _knowledge(network: Model, params: Params, rows: Rows) -> Array:
    """[] mean probability of the true label."""
    logp = jax.nn.log_softmax(network.outputs(params, rows.batch).astype(jnp.float32), axis=-1)
    return jnp.exp(jnp.take_along_axis(logp, rows.y[:, None], axis=-1)).mean()


def has_head(network: Model, fresh: Params | None) -> bool:
    """Whether the last layer can be replaced: it is called `head`, and there are fresh params."""
    if fresh is None:
        return False
    try:
        jax.eval_shape(audit.with_fresh_layer, fresh, fresh)
    except ValueError:
        return False
    return True


class Bench:
    """Measures ensembles of one task under equal conditions.

    Args:
      network: of the comparison.
      task: what was forgotten; it has forget rows.
      settings: of the comparison: recipe, rows that are evaluated, seed.
      rows: at most so many rows of a part go into features and attacks.
      steps: minibatches of relearning and of other training.

    Attributes:
      parts: part -> rows and words, as a comparison evaluates them.
      axes: curve -> where its numbers stand: steps, counts, shares, names.
    """

    def __init__(
        self,
        network: Model,
        task: Task,
        settings: ComparisonSettings,
        *,
        rows: int = 512,
        steps: int = 40,
    ):
        self.network, self.task, self.settings = network, task, settings
        self.rows, self.steps = rows, steps
        self.evaluator = Evaluator(network, task, settings)
        self.parts = self.evaluator.parts
        self.labels = {part: entry.columns["y"] for part, entry in self.parts.items()}
        forget = task.columns("train", "forget")
        self.forget = self._some("forget", forget)
        order = np.random.default_rng([settings.seed, 1]).permutation(len(forget["y"]))
        shown, held = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        self.shown = {name: column[shown] for name, column in forget.items()}
        self.held = self._some("held", {name: column[held] for name, column in forget.items()})
        self.every = max(1, steps // 20)
        self.steps -= self.steps % self.every
        self.counts = tuple(c for c in COUNTS if c <= len(shown))
        self.unseen = self._some("unseen", task.columns("test", "all"))
        self.taught = self._some("taught", task.columns("train", "retain"))
        self.classes = forgotten_classes(task)
        self.guide: Guide | None = None
        self.axes: dict[str, list] = {
            "relearning": audit.recorded_steps(self.steps, self.every).tolist(),
            "few_examples": list(self.counts),
            "fresh_head": audit.recorded_steps(self.steps, self.every).tolist(),
            "other_training": audit.recorded_steps(self.steps, self.every).tolist(),
            "pruning": list(SHARES),
            "quantisation": ["32 bits", *QUANTISED],
            **{f"steering_{arm}": list(ALPHAS) for arm in ARMS},
        }
        self._programs = self._compiled()

    def _some(self, name: str, columns: Mapping[str, np.ndarray]) -> Rows:
        """At most `rows` of these rows, a fixed random choice in stored order."""
        rng = np.random.default_rng([self.settings.seed, zlib.crc32(name.encode())])
        keep = np.sort(rng.permutation(len(columns["y"]))[: self.rows])
        return Rows(columns["x"][keep], columns["y"][keep])

    def _data(self, columns: Mapping[str, np.ndarray]) -> InMemory:
        return in_memory({"x": columns["x"], "y": columns["y"]}, self.settings.recipe.batch_size)

    def _compiled(self) -> dict[str, Callable]:
        """name -> a program of a block of models."""
        network, key = self.network, jax.random.key(self.settings.seed)
        tx = self.settings.recipe.tx
        shown, held, forget = self._data(self.shown), {"held": self.held.batch}, self.forget
        part = "remote" if "adjacent" in self.task.train_parts else "retain"
        others = self.task.columns("train", part)
        fresh = None if network.init is None else network.init(key)
        mixed = self._data(
            {name: np.concatenate([self.shown[name], getattr(self.taught, name)]) for name in "xy"}
        )

        def relearning(params: Params) -> Array:
            curve = audit.relearning_curve(
                network, params, shown, held, tx=tx, steps=self.steps, every=self.every, key=key
            )
            return curve.watched["held"].confidence

        def few_examples(params: Params) -> Array:
            curve = audit.relearning_by_examples(
                network, params, shown, held, counts=self.counts, tx=tx,
                steps=max(1, self.steps // 2), key=key,
            )  # fmt: skip
            return curve.watched["held"].confidence[:, -1]

        def other_training(params: Params) -> Array:
            curve = audit.relearning_curve(
                network, params, self._data(others), {"forget": forget.batch},
                tx=tx, steps=self.steps, every=self.every, key=key,
            )  # fmt: skip
            return curve.watched["forget"].confidence

        def pruning(params: Params) -> Array:
            def at(share: Array) -> Array:
                return _knowledge(network, audit.prune(params, share), forget)

            return jax.vmap(at)(jnp.asarray(SHARES, jnp.float32))

        def quantisation(params: Params) -> Array:
            kinds = [params, *(audit.quantise(params, **how) for how in QUANTISED.values())]
            return jnp.stack([_knowledge(network, each, forget) for each in kinds])

        def fresh_head(params: Params) -> Array:
            curve = audit.relearning_curve(
                network, audit.with_fresh_layer(params, fresh), mixed, held,
                tx=tx, steps=self.steps, every=self.every, key=key,
            )  # fmt: skip
            return curve.watched["held"].confidence

        found = {
            "other_training": other_training,
            "pruning": pruning,
            "quantisation": quantisation,
        }
        if len(self.shown["y"]):
            found |= {"relearning": relearning, "few_examples": few_examples}
            if has_head(network, fresh):
                found["fresh_head"] = fresh_head
        return {name: jax.jit(ensemble(function)) for name, function in found.items()}

    def learn_steering(self, originals: Params) -> None:
        """Trains a sparse autoencoder on the hidden activations of each original, and finds the
        latents that stand for the forget rows. Without it, or for a network that cannot be split
        (`model.hidden`), nothing is steered."""
        network, key = self.network, jax.random.key(self.settings.seed)
        if network.hidden is None:
            return
        x = np.concatenate([self.forget.x, self.taught.x])
        target = np.arange(len(x)) < len(self.forget.x)

        def one(params: Params) -> tuple[audit.SparseAutoencoder, Array]:
            hidden = network.hidden(params, {"x": x})  # type: ignore[misc]
            sae, _ = audit.train_sparse_autoencoder(
                hidden,
                key=key,
                k=min(16, hidden.shape[-1]),
                steps=SAE_STEPS,
                class_token=self.settings.recipe.model == "vit",
            )
            count = min(10, hidden.shape[-1] // 2)
            return sae, audit.expert_features(sae, hidden, jnp.asarray(target), count=count)

        def steering(params: Params, guide: Guide) -> tuple[Array, ...]:
            found = audit.restoration(
                network, params, guide.params, guide.sae, self.forget.batch,
                jnp.ones(len(self.forget.y), bool), guide.experts, key=key, alphas=ALPHAS,
            )  # fmt: skip
            return tuple(found.steered[arm].confidence for arm in ARMS)

        sae, experts = _in_blocks(jax.jit(ensemble(one)), originals)
        self.guide = Guide(jax.device_get(originals), sae, experts)
        self._steering = jax.jit(ensemble(steering))

    def __call__(self, params: Params) -> Measured:
        """Everything of one ensemble.

        Args:
          params: stacked, M models. Where there is a guide, model i is steered by original
            i modulo N: a method's model by the one that it was made from.

        Returns:
          `Measured`. A model whose outputs are not finite has NaN where it matters.

        Cost: outputs on all parts, three short trainings and a dozen evaluations of the forget
        rows; memory of 16 models at a time.
        """
        params = jax.device_get(params)
        logits = self.evaluator(params)
        curves = {name: _in_blocks(run, params) for name, run in self._programs.items()}
        places = dict(curves)
        if self.guide is not None:
            count = len(jax.tree.leaves(params)[0])
            mine = np.arange(count) % len(self.guide.experts)
            guide = jax.tree.map(lambda leaf: leaf[mine], self.guide)
            arms = _in_blocks(self._steering, params, guide)
            curves |= {f"steering_{arm}": values for arm, values in zip(ARMS, arms, strict=True)}
            places["steering"] = np.stack(arms, axis=1)
        numbers = self._membership(logits)
        features = self._features(params)
        numbers |= self._probes(features)
        for name, keys in _PLACES.items():
            values = [numbers[key] for key in keys if key in numbers]
            if values:
                places[name] = np.stack(values, axis=1)
        return Measured(logits, features, places, curves, numbers)

    def accuracies(self, measured: Measured) -> dict[str, np.ndarray]:
        """part -> (M,) accuracy; NaN for a model whose outputs are not finite."""
        found = {}
        for part, logits in measured.logits.items():
            scores = audit.part_scores(logits, self.labels[part])
            if scores is not None:
                found[part] = scores.accuracy
        return found

    def broken(self, measured: Measured) -> int:
        """How many models gave an output that is not finite, on some part."""
        sound = np.ones(len(next(iter(measured.logits.values()))), bool)
        for logits in measured.logits.values():
            sound &= np.isfinite(logits.max(axis=-1, initial=-np.inf)).all(axis=1)
        return int((~sound).sum())

    def roc(self, measured: Measured) -> dict[str, np.ndarray] | None:
        """Mean over models of the ROC of the loss attack on forget rows, at fixed rates."""
        others = self.outsiders()
        if others is None:
            return None
        inside, outside = (
            audit.attack_signal(measured.logits[p], self.labels[p], score="loss")
            for p in ("forget", others)
        )
        curves = [
            audit.roc_curve(m, o)
            for m, o in zip(inside, outside, strict=True)
            if np.isfinite(m).all() and np.isfinite(o).all()
        ]
        if not curves:
            return None
        steps = [np.interp(_RATES, each.fpr, each.tpr) for each in curves]
        return {"fpr": _RATES, "tpr": np.mean(steps, axis=0)}

    def outsiders(self) -> str | None:
        """Unseen rows of the forgotten kind, or of all kinds where all are forgotten from."""
        return next((p for p in ("forget_test", "test") if p in self.parts), None)

    def _membership(self, logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Attacks on forgotten and on retained rows, with unseen rows of the same kind."""
        found: dict[str, np.ndarray] = {}
        pairs = {"forget": self.outsiders(), "retain": "test" if "test" in self.parts else None}
        for part, others in pairs.items():
            if others is None:
                continue
            inside, outside = (
                {
                    score: audit.attack_signal(logits[p], self.labels[p], score=score)
                    for score in ("loss", "modified_entropy", "margin")
                }
                for p in (part, others)
            )
            for score in inside:
                found[f"{part}_{score}_auc"] = audit.auc(inside[score], outside[score])
            for name, fpr in (("tenth", 0.1), ("percent", 0.01), ("permille", 0.001)):
                rate = audit.tpr_at_fpr(inside["loss"], outside["loss"], fpr=fpr)
                found[f"{part}_tpr_{name}"] = rate
            if part == "forget":
                bits = audit.exposure(-inside["loss"], -outside["loss"])
                if bits is not None:
                    found["exposure"] = bits.mean(axis=1)
        if "retain" in logits and "test" in logits:
            signals = [
                audit.attack_signal(logits[p], self.labels[p], score="loss")
                for p in ("retain", "test", "forget")
            ]
            rng = np.random.default_rng([self.settings.seed, 2])
            found["mia_efficacy"] = audit.mia_efficacy(*signals, rng=rng)
        return found

    def _features(self, params: Params) -> dict[str, np.ndarray]:
        """What the last layer reads: of forget rows, unseen rows, and rows to train probes on."""
        features = self.network.features
        if features is None:
            return {}
        sets = {"forget": self.forget, "unseen": self.unseen, "taught": self.taught}
        run = jax.jit(jax.vmap(lambda p, x: features(p, {"x": x}), in_axes=(0, None)))
        found = {
            name: _in_blocks(lambda p, x=rows.x: run(p, x), params) for name, rows in sets.items()
        }
        kept = ~np.isin(self.unseen.y, self.classes)
        return found | {"test": found["unseen"][:, kept]}

    def _probes(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What simple classifiers read off the features."""
        if not features:
            return {}
        taught = np.concatenate([features["taught"], features["forget"]], axis=1)
        y = np.concatenate([self.taught.y, self.forget.y])
        target = np.isin(self.unseen.y, self.classes)
        found: dict[str, Any] = {}
        if target.any():
            kind, kind_y = features["unseen"][:, target], self.unseen.y[target]
            found["neighbours"] = audit.knn_accuracy(taught, y, kind, kind_y)
            probe = audit.forgotten_class_probe(
                taught, y, features["unseen"], self.unseen.y, forgotten=self.classes.tolist()
            )
            if probe is not None:
                found |= {"probe_recall": probe.recall, "probe_auc": probe.auc}
        else:
            found["neighbours"] = audit.knn_accuracy(
                features["taught"], self.taught.y, features["forget"], self.forget.y
            )
        others = ~target
        found["transfer"] = audit.probe_accuracy(
            features["taught"], self.taught.y % 2,
            features["unseen"][:, others], self.unseen.y[others] % 2,
        )  # fmt: skip
        if min(len(self.forget.y), int(target.sum()) or len(self.unseen.y)) >= 5:
            held_out = features["unseen"][:, target] if target.any() else features["unseen"]
            rng = np.random.default_rng([self.settings.seed, 3])
            known = audit.membership_probe(features["forget"], held_out, rng=rng)
            if known is not None:
                found["probe_membership"] = known.auc
        return {name: values for name, values in found.items() if values is not None}


_PLACES = {  # audit -> the numbers that place a model
    "membership": (
        *("forget_loss_auc", "forget_modified_entropy_auc", "forget_margin_auc"),
        "forget_tpr_tenth",
    ),
    "retained_membership": (
        *("retain_loss_auc", "retain_modified_entropy_auc", "retain_margin_auc"),
        "retain_tpr_tenth",
    ),
    "probes": ("neighbours", "probe_recall", "probe_auc", "transfer", "probe_membership"),
}
