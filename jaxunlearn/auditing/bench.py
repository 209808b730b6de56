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

What a task or a network does not have is absent, for all ensembles alike:

| without                                  | there is no                                        |
|------------------------------------------|----------------------------------------------------|
| a second forget row                      | relearning of any kind                             |
| `init`, or a last layer called `head`    | fresh last layer                                   |
| `features`                               | features, probes                                   |
| `hidden` and `resume`                    | steering                                           |
| unseen rows                              | membership, features of unseen rows                |
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing import durability, representation
from jaxunlearn.auditing.blocks import Rows, in_blocks, some_rows
from jaxunlearn.auditing.membership import mean_roc, membership, outsiders
from jaxunlearn.auditing.planted import forgotten_classes
from jaxunlearn.auditing.representation import ALPHAS, ARMS, Guide
from jaxunlearn.compare import Evaluator
from jaxunlearn.compare import Settings as ComparisonSettings
from jaxunlearn.data.tasks import Task
from jaxunlearn.ensembles import ensemble
from jaxunlearn.model import Model
from jaxunlearn.typing import Params


class Measured(NamedTuple):
    """What was measured of one ensemble of M models; host arrays."""

    logits: Mapping[str, np.ndarray]  # part -> (M, n, C)
    features: Mapping[str, np.ndarray]  # rows -> (M, n, d); empty without `model.features`
    places: Mapping[str, np.ndarray]  # audit -> (M, ...) numbers that place each model
    curves: Mapping[str, np.ndarray]  # curve -> (M, T) numbers in [0, 1], along `Bench.axes`
    numbers: Mapping[str, np.ndarray]  # measure -> (M,)


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
      labels: part -> (n,) labels of these rows.
      forget, taught, kind, test: the rows behind features: to be forgotten, retained, unseen of the
        forgotten kind, unseen of other kinds (or of all, where kinds cannot be told).
      shown, held: the two halves of the forget rows.
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
        self.classes = forgotten_classes(task)
        self.every = max(1, steps // 20)
        self.steps -= self.steps % self.every
        forget = task.columns("train", "forget")
        self.forget = self._some("forget", forget)
        order = np.random.default_rng([settings.seed, 1]).permutation(len(forget["y"]))
        shown, held = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        self.shown = Rows(forget["x"][shown], forget["y"][shown])
        self.held = self._some("held", {name: column[held] for name, column in forget.items()})
        self.taught = self._some("taught", task.columns("train", "retain"))
        kind, test = self._unseen()
        self.kind, self.test = self._some("kind", kind), self._some("unseen", test)
        self.guide: Guide | None = None
        self.axes: dict[str, list] = durability.axes(self.steps, self.every, self.shown.size) | {
            f"steering_{arm}": list(ALPHAS) for arm in ARMS
        }
        self.key = jax.random.key(settings.seed)
        attacks = durability.attacks(
            network,
            durability.Exposed(self.forget, self.shown, self.held, self.taught, self._others()),
            settings.recipe, steps=self.steps, every=self.every, key=self.key,
        )  # fmt: skip
        self._attacks = {name: jax.jit(ensemble(attack)) for name, attack in attacks.items()}
        self._steering = jax.jit(
            ensemble(representation.steering(network, self.forget, key=self.key))
        )
        features = network.features
        self._featured = None if features is None else jax.jit(
            jax.vmap(lambda params, x: features(params, {"x": x}), in_axes=(0, None))
        )  # fmt: skip

    def _some(self, name: str, columns: Mapping[str, np.ndarray], most: int | None = None) -> Rows:
        most = self.rows if most is None else most
        return some_rows(columns, most, name=name, seed=self.settings.seed)

    def _unseen(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Test rows of the forgotten kind, and the others: all, if no kind can be told."""
        columns = self.task.columns("test", "all")
        of_kind = np.isin(columns["y"], self.classes)
        if "forget" in self.task.parts("test"):
            of_kind = np.isin(np.arange(len(of_kind)), self.task.parts("test")["forget"])
        kind, test = (
            {name: column[chosen] for name, column in columns.items()}
            for chosen in (of_kind, ~of_kind)
        )
        return kind, test

    def _others(self) -> Rows:
        """Retained rows for other training, as many as it reads. Of all kinds: remote rows may be
        of a single label, and whoever trains on one label forgets all others."""
        columns = self.task.columns("train", "retain")
        return self._some("others", columns, self.steps * self.settings.recipe.batch_size)

    def learn_steering(self, originals: Params) -> None:
        """Trains a sparse autoencoder on the hidden activations of each original, and finds the
        latents that stand for the forget rows. Without it, or for a network that cannot be split
        (`model.hidden`), nothing is steered."""
        self.guide = representation.learned_guide(
            self.network, originals, self.forget, self.taught,
            key=self.key, class_token=False,  # no network of `networks.build` has one
        )  # fmt: skip

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
        curves = {name: in_blocks(attack, params) for name, attack in self._attacks.items()}
        places = dict(curves)
        margins = audit.margins(logits["forget"], self.labels["forget"])
        places["margins"] = np.clip(margins, -MARGIN_CLIP, MARGIN_CLIP)
        if self.guide is not None:
            count = len(jax.tree.leaves(params)[0])
            mine = np.arange(count) % len(self.guide.experts)
            guide = jax.tree.map(lambda leaf: leaf[mine], self.guide)
            arms = in_blocks(self._steering, params, guide)
            curves |= {f"steering_{arm}": values for arm, values in zip(ARMS, arms, strict=True)}
            places["steering"] = np.stack(arms, axis=1)
        features = self._features(params)
        labels = {name: getattr(self, name).y for name in _FEATURED}
        seed = self.settings.seed
        numbers = membership(logits, self.labels, seed=seed)
        numbers |= representation.probes(features, labels, self.classes, seed=seed)
        for name, keys in _PLACES.items():
            values = [numbers[key] for key in keys if key in numbers]
            if values:
                places[name] = np.stack(values, axis=1)
        return Measured(logits, features, places, curves, numbers)

    def _features(self, params: Params) -> dict[str, np.ndarray]:
        """What the last layer reads, of each of the sets of rows."""
        run: Any = self._featured
        if run is None:
            return {}
        sets = {name: getattr(self, name).x for name in _FEATURED}
        found = {
            name: in_blocks(lambda p, x=x: run(p, x), params) for name, x in sets.items() if len(x)
        }
        return {name: found.get(name, found["forget"][:, :0]) for name in _FEATURED}

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
        return mean_roc(measured.logits, self.labels)

    def outsiders(self) -> str | None:
        """Unseen rows of the forgotten kind, or of all kinds where all are forgotten from."""
        return outsiders(self.parts)


MARGIN_CLIP = 100.0  # nats, as KLoM has it
_FEATURED = ("forget", "taught", "kind", "test")
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
