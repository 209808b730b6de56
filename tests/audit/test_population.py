"""The population attack: the share by loop, false positive rates, labels, blocks, edges."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, auc, population_attack


def test_the_score_is_the_share_of_the_population_below_with_ties_one_half():
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 13)).round(1), rng.normal(size=(2, 29)).round(1)
    found = population_attack(x, z)
    for m in range(2):
        expected = ((z[m] < x[m][:, None]) + 0.5 * (z[m] == x[m][:, None])).mean(axis=1)
        np.testing.assert_allclose(found[m], expected, rtol=1e-15)
    assert ((x[0][:, None] == z[0]).any()) and found.min() >= 0 and found.max() <= 1


def test_a_point_of_the_population_scores_one_half_on_average_and_an_unhalved_tie_does_not():
    z = np.random.default_rng(1).normal(size=(3, 40)).round(1)
    np.testing.assert_allclose(population_attack(z, z).mean(axis=1), 0.5)
    at_least = [(row <= row[:, None]).mean() for row in z]
    assert min(at_least) > 0.51


def test_a_threshold_on_the_score_has_the_false_positive_rate_it_says():
    rng = np.random.default_rng(2)
    strangers, population = rng.gumbel(size=(1, 4000)), rng.gumbel(size=(1, 4000))
    for alpha in (0.01, 0.1, 0.5):
        rate = (population_attack(strangers, population) >= 1 - alpha).mean()
        assert rate == pytest.approx(alpha, abs=4 * np.sqrt(2 * alpha / 4000))
    members = population_attack(rng.gumbel(3, size=(1, 500)), population)
    assert auc(members[0], population_attack(strangers, population)[0]) > 0.9


def test_thresholds_by_label_do_not_learn_the_class():
    rng = np.random.default_rng(3)
    labels, theirs = rng.integers(0, 2, 300), rng.integers(0, 2, 500)
    forgotten = rng.normal(size=(1, 300)) + 5 * labels  # class 1 is easy, trained on or not
    population = rng.normal(size=(1, 500)) + 5 * theirs
    by_label = population_attack(forgotten, population, labels=labels, population_labels=theirs)
    pooled = population_attack(forgotten, population)
    easy = labels == 1
    assert abs(by_label[0, easy].mean() - 0.5) < 0.06 and pooled[0, easy].mean() > 0.7
    for label in (0, 1):
        one = population_attack(forgotten[:, labels == label], population[:, theirs == label])
        np.testing.assert_array_equal(by_label[:, labels == label], one)


def test_any_chunk_gives_the_same_bits():
    rng = np.random.default_rng(4)
    x, z = rng.normal(size=(2, 23)), rng.normal(size=(2, 31))
    kinds = {"labels": rng.integers(0, 3, 23), "population_labels": rng.integers(0, 3, 31)}
    for labels in ({}, kinds):
        whole = population_attack(x, z, **labels)
        for chunk in (1, 7, 1000):
            found = population_attack(x, z, chunk=chunk, **labels)
            np.testing.assert_array_equal(found, whole)


def test_saturated_infinite_and_broken_signals_and_unknown_labels():
    flat = population_attack(np.ones((1, 4)), np.ones((1, 6)))
    np.testing.assert_array_equal(flat, 0.5)
    ends = population_attack([[np.inf, -np.inf]], [[0.0, 1.0]])
    np.testing.assert_array_equal(ends, [[1.0, 0.0]])
    x = np.array([[0.0, np.nan], [0.0, 1.0]])
    assert np.isnan(population_attack(x, np.ones((2, 3))))[:, 0].tolist() == [True, False]
    unknown = population_attack([[1.0, 1.0]], [[0.0]], labels=[0, 7], population_labels=[0])
    np.testing.assert_array_equal(unknown, [[1.0, np.nan]])
    assert population_attack(np.ones((2, 0)), np.ones((2, 3))).shape == (2, 0)


def test_an_empty_population_and_misfits_are_refused():
    with pytest.raises(TooFew, match="population_attack: the population is empty"):
        population_attack(np.ones((1, 2)), np.ones((1, 0)))
    with pytest.raises(ValueError, match=r"of the same models, got \(1, 2\) and \(2, 2\)"):
        population_attack(np.ones((1, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="both labels and population_labels, or neither"):
        population_attack(np.ones((1, 2)), np.ones((1, 2)), labels=[0, 0])
    with pytest.raises(ValueError, match=r"expected labels \(2,\) .* got \(3,\) and \(2,\)"):
        population_attack([[1.0, 2.0]], [[1.0, 2.0]], labels=[0] * 3, population_labels=[0, 0])
    with pytest.raises(ValueError, match="chunk >= 1 targets, or None, got 0"):
        population_attack(np.ones((1, 2)), np.ones((1, 2)), chunk=0)
