"""What do the features still know? Linear probes on frozen features, three questions.

    forgotten_class_probe   can the forgotten class still be told from the others?
    probe_accuracy          are the features still of use for another task?
    membership_probe        do the features tell forgotten rows from rows never trained on?

Each trains the same probe (`fit_probe`, a convex problem with one answer) on the features of every
model, and scores it on other examples. A method that only edits the last layer changes none of the
numbers: the features are what it was.

The first probe is *given* the labels of the forgotten class, so it measures the information that
remains and not the behaviour of the model. It has no target of its own: a retrained model, which
never saw the class, separates it too, often well. The distance to the retrained models' value, on
either side, is the finding.

Sources: linear probes, G. Alain and Y. Bengio (2016), arXiv:1610.01644; as an audit of unlearning
with transfer to other data, Y. Kim et al. (2026), arXiv:2503.06991. Departures: 1. a probe of fixed
penalty solved to its optimum, where the paper uses k nearest neighbours only; 2. the membership
probe is this project's own.

| input                                          | result                                        |
|------------------------------------------------|-----------------------------------------------|
| no test example (of one of the two kinds)      | None                                          |
| no training example of the forgotten class     | TooFew                                        |
| training examples of one class only            | TooFew                                        |
| fewer forgotten or held-out rows than folds    | TooFew                                        |
| constant features (a collapsed model)          | auc 1/2, accuracy that of the largest class   |
| a model with NaN or Inf in its features        | NaN for that model                            |

NumPy float64 on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from .accuracy import part_scores
from .errors import TooFew
from .membership import auc
from .neighbours import as_labelled
from .similarity import as_features
from .softmax_regression import fit_probe, probe_logits


class ForgottenClass(NamedTuple):
    """How well a probe finds the forgotten class among held-out examples, for M models."""

    recall: np.ndarray  # (M,) float64 in [0, 1], share of forgotten examples given their class
    auc: np.ndarray  # (M,) float64 in [0, 1], forgotten class against all others, by log-odds
    accuracy: np.ndarray  # (M,) float64 in [0, 1], over all held-out examples


class MembershipProbe(NamedTuple):
    """How well a probe tells forgotten rows from held-out rows, for M models."""

    auc: np.ndarray  # (M,) float64 in [0, 1], mean over the folds
    accuracy: np.ndarray  # (M,) float64 in [0, 1], balanced, mean over the folds


def forgotten_class_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    forgotten: int | Sequence[int],
    l2: float = 1.0,
) -> ForgottenClass | None:
    """Recall and one-against-rest AUC of the forgotten class, by a probe of all classes.

        score(x) = logsumexp_{c forgotten} z_c(x) - logsumexp_{c not forgotten} z_c(x)

    Args:
        train_features: (M, n, d) of labelled examples of all kinds, the forgotten one included.
        train_labels: (n,) integers >= 0, the true ones.
        test_features: (M, m, d) of other examples of all kinds.
        test_labels: (m,) integers among the training labels.
        forgotten: the forgotten class, or several of them.
        l2: penalty, as `fit_probe`.

    Returns:
        `ForgottenClass`, or None when the test examples lack the forgotten or the other kinds.

    Raises:
        TooFew: no training example of a forgotten class, or of no other. ValueError: test labels
            that the probe cannot know.

    Cost: one `fit_probe`.

    Example:
        >>> import numpy as np
        >>> y = np.repeat([0, 1, 2], 20)
        >>> x = 9 * np.eye(3)[y] + np.random.default_rng(0).normal(size=(2, 60, 3))
        >>> forgotten_class_probe(x[:, ::2], y[::2], x[:, 1::2], y[1::2], forgotten=2).recall
        array([1., 1.])
    """
    x, y = as_labelled(train_features, train_labels, "forgotten_class_probe: train")
    z, test_y = as_labelled(test_features, test_labels, "forgotten_class_probe: test")
    classes = np.unique(np.atleast_1d(np.asarray(forgotten)))
    missing = sorted(set(classes.tolist()) - set(y.tolist()))
    if missing or classes.size == 0:
        raise TooFew(
            f"forgotten_class_probe: no training example of the forgotten class(es) {missing}. "
            "The probe asks whether they can be told apart when their labels are given."
        )
    if np.isin(y, classes).all():
        raise TooFew("forgotten_class_probe: every training example is of a forgotten class.")
    if unknown := sorted(set(test_y.tolist()) - set(y.tolist())):
        raise ValueError(
            f"forgotten_class_probe: test labels {unknown} do not occur in training; add examples "
            "of them there, or leave them out here."
        )
    kind = np.isin(test_y, classes)
    if kind.all() or not kind.any():
        return None
    logits = probe_logits(fit_probe(x, y, l2=l2), z)
    broken = np.isnan(logits).any(axis=(1, 2))
    inside = np.isin(np.arange(logits.shape[2]), classes)
    here, elsewhere = (logsumexp(logits[:, :, part], axis=2) for part in (inside, ~inside))
    score = np.asarray(here) - np.asarray(elsewhere)
    right = logits.argmax(axis=2) == test_y[None, :]
    return ForgottenClass(
        recall=np.where(broken, np.nan, right[:, kind].mean(axis=1)),
        auc=auc(score[:, kind], score[:, ~kind]),
        accuracy=np.where(broken, np.nan, right.mean(axis=1)),
    )


def probe_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    l2: float = 1.0,
) -> np.ndarray | None:
    """Accuracy of a probe for any labels: the use of the features for a related task.

    The labels need not be those of the model: the parity of a digit, the animal of a breed, or
    another data set altogether, whose features each model computes.

    Args:
        train_features: (M, n, d). train_labels: (n,) integers >= 0.
        test_features: (M, m, d) of other examples. test_labels: (m,) integers >= 0.
        l2: penalty, as `fit_probe`.

    Returns:
        (M,) float64 in [0, 1], NaN for a broken model; None for m = 0. A label without training
        examples counts as missed.

    Raises, Cost: as `fit_probe`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(2, 80, 4))
        >>> y = (x[0, :, 1] > 0).astype(int)            # a task of the first model's features
        >>> probe_accuracy(x[:, :60], y[:60], x[:, 60:], y[60:]).round(1)
        array([1. , 0.6])
    """
    x, y = as_labelled(train_features, train_labels, "probe_accuracy: train")
    z, test_y = as_labelled(test_features, test_labels, "probe_accuracy: test")
    if test_y.size == 0:
        return None
    size = int(max(y.max(initial=0), test_y.max())) + 1
    scores = part_scores(probe_logits(fit_probe(x, y, num_classes=size, l2=l2), z), test_y)
    return None if scores is None else scores.accuracy


def membership_probe(
    forget_features: ArrayLike,
    held_out_features: ArrayLike,
    *,
    folds: int = 5,
    l2: float = 1.0,
    rng: np.random.Generator,
) -> MembershipProbe | None:
    """Can a probe tell forgotten training rows from held-out rows of the same kind?

    A logistic regression on the features, trained on all folds but one and scored on that one. The
    larger kind is subsampled so that both have equally many, and every fold holds equally many of
    both. All models share the rows and the folds.

    Args:
        forget_features: (M, m, d). held_out_features: (M, k, d), of the same class mixture as the
            forgotten rows (or else the probe learns the class).
        folds: at least 2.
        l2: penalty, as `fit_probe`.
        rng: a NumPy generator that draws the subsample and the folds.

    Returns:
        `MembershipProbe`, or None without rows of one of the kinds. 1/2 is what features without
        any trace score on average.

    Raises:
        TooFew: fewer rows of a kind than folds.

    Cost: `folds` times `fit_probe`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(2, 40, 3))
        >>> membership_probe(x, x + 9, rng=np.random.default_rng(1)).auc
        array([1., 1.])
    """
    forget = as_features(forget_features, "membership_probe: forget")
    held_out = as_features(held_out_features, "membership_probe: held_out")
    if forget.shape[0] != held_out.shape[0] or forget.shape[2] != held_out.shape[2]:
        raise ValueError(
            "membership_probe: expected features of the same models and of the same width, got "
            f"{forget.shape} and {held_out.shape}."
        )
    if folds < 2:
        raise ValueError(f"membership_probe: expected at least 2 folds, got {folds}.")
    size = min(forget.shape[1], held_out.shape[1])
    if size == 0:
        return None
    if size < folds:
        raise TooFew(
            f"membership_probe: {size} examples of one kind for {folds} folds. "
            "Use fewer folds or more examples."
        )
    members = forget[:, rng.permutation(forget.shape[1])[:size]]
    others = held_out[:, rng.permutation(held_out.shape[1])[:size]]
    x = np.concatenate([members, others], axis=1)
    member = np.repeat([1, 0], size)
    fold = np.tile(np.arange(size) % folds, 2)
    areas, hits = [], []
    for held in range(folds):
        probe = fit_probe(x[:, fold != held], member[fold != held], l2=l2)
        logits = probe_logits(probe, x[:, fold == held])
        score, kind = logits[:, :, 1] - logits[:, :, 0], member[fold == held] == 1
        areas.append(auc(score[:, kind], score[:, ~kind]))
        side = np.sign(score) * np.where(kind, 1, -1)[None, :]
        hits.append(((side + 1) / 2).mean(axis=1))
    return MembershipProbe(np.mean(areas, axis=0), np.mean(hits, axis=0))
