"""Three probes: a class that remains, transfer, a trace of membership; planted and absent."""

import numpy as np
import pytest

from jaxunlearn.audit import (
    TooFew,
    auc,
    fit_probe,
    forgotten_class_probe,
    membership_probe,
    probe_accuracy,
    probe_logits,
)


@pytest.fixture
def kinds():
    """Three models: class 2 well separated, a little, and not at all (it looks like class 0)."""
    rng = np.random.default_rng(0)
    y = np.arange(180) % 3
    centres = np.stack([[[4, 0, 0], [0, 4, 0], [4 * (1 - s), 0, 4 * s]] for s in (1, 0.4, 0)])
    return centres[:, y] + rng.normal(size=(3, 180, 3)), y


def split(kinds):
    x, y = kinds
    return x[:, :90], y[:90], x[:, 90:], y[90:]


def test_a_class_that_the_features_separate_is_found_and_one_that_they_do_not_is_not(kinds):
    found = forgotten_class_probe(*split(kinds), forgotten=2)
    assert found.recall[0] > 0.95 and found.auc[0] > 0.99
    assert found.recall[0] > found.recall[1] > found.recall[2]
    assert found.auc[0] > found.auc[1] > found.auc[2]
    assert found.recall[2] < 0.75 and found.auc[2] == pytest.approx(0.75, abs=0.1)


def test_recall_and_auc_are_those_of_the_probes_logits(kinds):
    train, train_y, test, test_y = split(kinds)
    found = forgotten_class_probe(train, train_y, test, test_y, forgotten=2)
    z = probe_logits(fit_probe(train, train_y), test)
    kind = test_y == 2
    right = z.argmax(2) == test_y[None, :]
    np.testing.assert_allclose(found.recall, right[:, kind].mean(1))
    np.testing.assert_allclose(found.accuracy, right.mean(1))
    score = z[:, :, 2] - np.log(np.exp(z[:, :, 0]) + np.exp(z[:, :, 1]))
    np.testing.assert_allclose(found.auc, auc(score[:, kind], score[:, ~kind]))
    assert (found.auc > auc(score[:, ~kind], score[:, kind])).all()  # swapped groups are noticed
    other = forgotten_class_probe(train, train_y, test, test_y, forgotten=0)
    assert (other.recall != found.recall).all()


def test_several_forgotten_classes_count_as_one_kind(kinds):
    train, train_y, test, test_y = split(kinds)
    found = forgotten_class_probe(train, train_y, test, test_y, forgotten=[0, 2])
    z = probe_logits(fit_probe(train, train_y), test)
    score = np.log(np.exp(z[:, :, 0]) + np.exp(z[:, :, 2])) - z[:, :, 1]
    kind = test_y != 1
    np.testing.assert_allclose(found.auc, auc(score[:, kind], score[:, ~kind]))
    assert (found.auc > 0.99).all()  # telling 0 from 2 is not asked


def test_the_probe_is_scored_on_other_examples_than_it_was_fitted_on():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 60, 40)), np.arange(60) % 2  # pure noise, many features
    honest = probe_accuracy(x[:, :30], y[:30], x[:, 30:], y[30:])
    assert (honest < 0.8).all()
    np.testing.assert_array_equal(probe_accuracy(x[:, :30], y[:30], x[:, :30], y[:30]), 1)


def test_transfer_to_labels_that_the_features_do_not_hold_is_at_chance():
    rng = np.random.default_rng(2)
    digit = rng.integers(0, 10, 400)
    one_hot = np.eye(10)[digit] + 0.1 * rng.normal(size=(400, 10))
    coarse = np.eye(10)[digit // 2 * 2] + 0.1 * rng.normal(size=(400, 10))  # parity wiped out
    x = np.stack([one_hot, coarse])
    parity = digit % 2
    found = probe_accuracy(x[:, :200], parity[:200], x[:, 200:], parity[200:])
    assert found[0] == 1 and found[1] == pytest.approx(0.5, abs=0.12)


def test_a_label_without_training_examples_is_missed(kinds):
    train, train_y, test, test_y = split(kinds)
    found = probe_accuracy(train[:, train_y != 2], train_y[train_y != 2], test, test_y)
    assert (found <= (test_y != 2).mean()).all() and (found > 0.5).all()


def test_a_trace_of_membership_is_found_and_its_absence_scores_one_half_on_average():
    rng = np.random.default_rng(3)
    trace = np.repeat([0.0, 2.0], [200, 1])[:, None, None] * [[1.0, 0, 0, 0]]
    forget = rng.normal(size=(201, 24, 4)) + trace
    held_out = rng.normal(size=(201, 30, 4))
    found = membership_probe(forget, held_out, rng=np.random.default_rng(0))
    assert found.auc[-1] > 0.85 and found.accuracy[-1] > 0.75
    for values in (found.auc[:-1], found.accuracy[:-1]):
        assert abs(values.mean() - 0.5) < 4 * values.std() / np.sqrt(200)
    # the mutant that scores the rows that it was fitted on is far above one half
    x = np.concatenate([forget, held_out[:, :24]], axis=1)[:-1]
    z = probe_logits(fit_probe(x, np.repeat([1, 0], 24)), x)
    score = z[:, :, 1] - z[:, :, 0]
    assert auc(score[:, :24], score[:, 24:]).mean() > 0.65


def test_a_membership_probe_is_balanced_and_drawn_by_its_generator():
    rng = np.random.default_rng(4)
    forget, held_out = rng.normal(size=(1, 10, 2)), rng.normal(size=(1, 200, 2))
    found = membership_probe(forget, held_out, rng=np.random.default_rng(0))
    assert found.accuracy[0] < 0.8  # always saying "held out" would be right in 20 of 21
    sorted_rows = held_out + 9.0 * (np.arange(200) < 10)[None, :, None]
    drawn = membership_probe(forget, sorted_rows, rng=np.random.default_rng(0))
    assert drawn.auc[0] < 0.9  # the first ten rows alone would be told apart at once
    again = membership_probe(forget, held_out, rng=np.random.default_rng(0))
    assert found == again
    assert found != membership_probe(forget, held_out, rng=np.random.default_rng(1))


def test_collapsed_features_know_nothing_and_broken_ones_are_nan(kinds):
    train, train_y, test, test_y = split(kinds)
    train, test = train.copy(), test.copy()
    train[0], test[0], train[1, 3, 0] = 0.3, 0.3, np.nan
    found = forgotten_class_probe(train, train_y, test, test_y, forgotten=2)
    assert found.auc[0] == 0.5 and found.accuracy[0] == pytest.approx(1 / 3)
    assert all(np.isnan(values[1]) and np.isfinite(values[2]) for values in found)
    assert np.isnan(probe_accuracy(train, train_y, test, test_y)[1])
    member = membership_probe(train, test, rng=np.random.default_rng(0))
    assert member.auc[0] == member.accuracy[0] == 0.5
    assert np.isnan(member.auc[1]) and np.isnan(member.accuracy[1])


def test_nothing_to_score_is_none_and_bad_input_is_refused(kinds):
    train, train_y, test, test_y = split(kinds)
    rng = np.random.default_rng(0)
    for part in (test_y == 2, test_y != 2, test_y < 0):
        scored = forgotten_class_probe(train, train_y, test[:, part], test_y[part], forgotten=2)
        assert scored is None
    assert probe_accuracy(train, train_y, test[:, :0], test_y[:0]) is None
    assert membership_probe(train, test[:, :0], rng=rng) is None
    with pytest.raises(TooFew, match=r"no training example of the forgotten class\(es\) \[5\]"):
        forgotten_class_probe(train, train_y, test, test_y, forgotten=[2, 5])
    with pytest.raises(TooFew, match="every training example is of a forgotten class"):
        forgotten_class_probe(train, train_y, test, test_y, forgotten=[0, 1, 2])
    with pytest.raises(ValueError, match=r"test labels \[9\] do not occur in training"):
        forgotten_class_probe(train, train_y, test, np.where(test_y == 1, 9, test_y), forgotten=2)
    with pytest.raises(TooFew, match="4 examples of one kind for 5 folds"):
        membership_probe(train[:, :4], test, rng=rng)
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        membership_probe(train, test, folds=1, rng=rng)
    with pytest.raises(ValueError, match=r"same width, got \(3, 90, 3\) and \(2, 90, 3\)"):
        membership_probe(train, test[:2], rng=rng)
