"""Loss, accuracy and margins: against loops and closed forms, and at the edges."""

import math

import numpy as np
import pytest

from jaxunlearn.audit import cross_entropy, margins, part_scores, scores_by_part


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    return rng.normal(scale=3, size=(3, 10, 4)), rng.integers(0, 4, size=10)


def probabilities(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def test_loss_accuracy_and_margin_equal_the_loop(task):
    logits, labels = task
    result = part_scores(logits, labels)
    for m in range(3):
        p = [probabilities(z)[y] for z, y in zip(logits[m], labels, strict=True)]
        hits = [int(np.argmax(z)) == y for z, y in zip(logits[m], labels, strict=True)]
        assert result.loss[m] == pytest.approx(-np.mean(np.log(p)))
        assert result.accuracy[m] == pytest.approx(np.mean(hits))
        np.testing.assert_allclose(cross_entropy(logits, labels)[m], -np.log(p))
        odds = np.log(p) - np.log1p(-np.array(p))
        np.testing.assert_allclose(margins(logits, labels)[m], odds, rtol=1e-9)


def test_scores_agree_with_scikit_learn(task):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = task
    result = part_scores(logits, labels)
    for m in range(3):
        p = np.array([probabilities(z) for z in logits[m]])
        loss = metrics.log_loss(labels, p, labels=range(4))
        assert result.loss[m] == pytest.approx(loss)
        assert result.accuracy[m] == metrics.accuracy_score(labels, p.argmax(1))


def test_weights_average_and_padding_contributes_exactly_nothing(task):
    logits, labels = task
    weight = np.array([1, 0, 2, 1, 0, 1, 1, 3, 1, 1.0])
    padded = logits.copy()
    padded[:, weight == 0] = np.nan
    result = part_scores(padded, labels, weight=weight)
    expected = (cross_entropy(logits, labels) * weight).sum(1) / weight.sum()
    np.testing.assert_allclose(result.loss, expected)
    doubled = np.repeat(np.arange(10), weight.astype(int))
    np.testing.assert_allclose(
        result.accuracy, part_scores(logits[:, doubled], labels[doubled]).accuracy
    )


def test_margins_do_not_saturate_where_probabilities_do():
    z = np.array([[[60.0, 0.0, 0.0], [-900.0, 0.0, 0.0]]])
    np.testing.assert_allclose(margins(z, [0, 0]), [[60 - math.log(2), -900 - math.log(2)]])


def test_nothing_is_undefined_and_parts_stay_apart(task):
    logits, labels = task
    assert part_scores(logits[:, :0], labels[:0]) is None
    assert part_scores(logits, labels, weight=np.zeros(10)) is None
    parts = scores_by_part(
        {"forget": logits[:, :3], "test": logits[:, 3:], "adjacent": logits[:, :0]},
        {"forget": labels[:3], "test": labels[3:], "adjacent": np.zeros(0)},
    )
    assert parts["adjacent"] is None
    np.testing.assert_array_equal(parts["test"].loss, part_scores(logits[:, 3:], labels[3:]).loss)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_model_has_no_score_whatever_argmax_says(task, bad):
    logits, labels = task
    broken = logits.copy()
    broken[1, 4, 0] = bad
    result = part_scores(broken, labels)
    assert np.isnan(result.loss[1]) and np.isnan(result.accuracy[1])
    np.testing.assert_array_equal(result.loss[[0, 2]], part_scores(logits, labels).loss[[0, 2]])


def test_a_masked_class_has_infinite_loss_and_is_not_predicted():
    masked = np.array([[[-np.inf, 1.0, 0.0]]])
    assert part_scores(masked, [0]).loss[0] == np.inf
    assert part_scores(masked, [0]).accuracy[0] == 0
    assert margins(masked, [0])[0, 0] == -np.inf


def test_bad_labels_and_shapes_are_refused_by_name(task):
    logits, labels = task
    with pytest.raises(ValueError, match=r"labels of shape \(10,\), got \(10, 1\)"):
        part_scores(logits, labels[:, None])
    with pytest.raises(ValueError, match=r"expected labels in \[0, 4\), got 0 to 4"):
        cross_entropy(logits, np.r_[0, 4, np.zeros(8, int)])
    with pytest.raises(ValueError, match="integer labels, got dtype float64"):
        margins(logits, labels.astype(float))
    with pytest.raises(ValueError, match=r"at least two classes, got \(3, 10, 1\)"):
        part_scores(logits[..., :1], labels)
    with pytest.raises(ValueError, match=r"weights >= 0 of shape \(10,\)"):
        part_scores(logits, labels, weight=-np.ones(10))
    with pytest.raises(ValueError, match=r"parts \['forget'\], labels \['test'\]"):
        scores_by_part({"forget": logits}, {"test": labels})
