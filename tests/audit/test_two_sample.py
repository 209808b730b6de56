"""Two-sample tests: SciPy, all relabellings, level under dependence, power, chunks, mutants."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.audit import TooFew, smallest_p_value
from jaxunlearn.audit.two_sample import classifier_test, ks_tests


def dependent(rng, oracles, methods, examples, shared=0.9):
    """Margins with one factor per model that all its examples share."""
    total = oracles + methods
    factor, own = rng.normal(size=(total, 1)), rng.normal(size=(total, examples))
    pool = shared * factor + np.sqrt(1 - shared**2) * own
    return pool[:oracles], pool[oracles:]


def within_binomial_error(count, trials, level):
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], trials, level)
    return low <= count <= high


@pytest.mark.parametrize("sizes", [(9, 9), (12, 7), (3, 20), (200, 190)])
def test_statistic_and_p_value_are_those_of_scipy_ties_or_not(sizes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sizes[0], 12)), rng.normal(0.5, 1, size=(sizes[1], 12))
    x[:, 6:], y[:, 6:] = x[:, 6:].round(), y[:, 6:].round()
    found = ks_tests(x, y, permutations=3, seed=0)
    for k, (a, b) in enumerate(zip(x.T, y.T, strict=True)):
        theirs = scipy.stats.ks_2samp(a, b, method="exact")
        assert found.statistic[k] == pytest.approx(theirs.statistic, abs=1e-12)
        assert found.p_value[k] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_adjusted_p_value_is_the_share_of_all_relabellings_with_as_large_a_maximum():
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(8, 4))
    pool[:3, 0] += 2
    largest = []
    for chosen in itertools.combinations(range(8), 3):
        rest = [i for i in range(8) if i not in chosen]
        largest.append(
            max(
                scipy.stats.ks_2samp(pool[list(chosen), k], pool[rest, k]).statistic
                for k in range(4)
            )
        )
    found = ks_tests(pool[3:], pool[:3], permutations=20000, seed=0)
    for d, adjusted in zip(found.statistic, found.adjusted, strict=True):
        exact = np.mean(np.array(largest) >= d - 1e-12)
        assert adjusted == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000))
    assert found.any_p_value == found.adjusted.min()
    assert (found.adjusted >= found.p_value - 0.02).all()


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_level_holds_whatever_the_dependence_between_examples(shared):
    wrong, uncorrected = 0, 0
    for seed in range(300):
        x, y = dependent(np.random.default_rng(seed), 12, 8, 15, shared)
        found = ks_tests(x, y, permutations=79, seed=seed)
        wrong += found.rejected > 0
        uncorrected += (found.p_value <= 0.05).any()
    assert wrong <= scipy.stats.binom.ppf(0.9995, 300, 0.05)
    # mutant: the p-values of single examples, taken as they are
    assert not within_binomial_error(uncorrected, 300, 0.05)


def test_the_level_also_holds_for_the_equal_examples_among_different_ones():
    wrong, right = 0, 0
    for seed in range(200):
        x, y = dependent(np.random.default_rng(seed), 16, 16, 12, 0.5)
        y[:, :4] += 4
        adjusted = ks_tests(x, y, permutations=99, seed=seed).adjusted
        wrong += (adjusted[4:] <= 0.05).any()
        right += (adjusted[:4] <= 0.05).all()
    assert wrong <= scipy.stats.binom.ppf(0.9995, 200, 0.05) and right == 200


def test_under_dependence_the_correction_is_milder_than_bonferroni():
    x, y = dependent(np.random.default_rng(3), 32, 32, 200, 0.99)
    found = ks_tests(x, y + 0.8, permutations=999, seed=0)
    assert found.rejected > 0.5 > (found.p_value * 200 <= 0.05).mean()


def test_the_share_rejected_counts_the_examples_that_differ():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(32, 50)), rng.normal(size=(32, 50))
    y[:, :20] += 6
    assert ks_tests(x, y, seed=0).rejected == pytest.approx(0.4)
    assert ks_tests(x, y, seed=0, level=0.0005).rejected == 0  # B = 999 cannot say so much
    found = ks_tests(x, y, seed=0, permutations=19)  # p = 1 / 20 is rejected at 5 %
    assert found.any_p_value == 0.05 and found.rejected == pytest.approx(0.4)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_any_chunk_gives_the_same_bits(chunk):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(9, 40)).round(1), rng.normal(0.5, 1, size=(6, 40)).round(1)
    whole, parts = (ks_tests(x, y, permutations=50, seed=0, chunk=c) for c in (None, chunk))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_increasing_map_or_another_order_of_the_examples_changes_no_test():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(9, 5)), rng.normal(0.5, 1, size=(6, 5))
    plain, mapped = ks_tests(x, y, seed=0), ks_tests(np.exp(x), np.exp(y), seed=0)
    np.testing.assert_array_equal(mapped.adjusted, plain.adjusted)
    np.testing.assert_array_equal(
        ks_tests(x[:, ::-1], y[:, ::-1], seed=0).adjusted, plain.adjusted[::-1]
    )
    np.testing.assert_array_equal(ks_tests(y, x, seed=0).statistic, plain.statistic)
    assert (ks_tests(x, y[:, ::-1], seed=0).statistic != plain.statistic).any()


def test_constant_and_saturated_margins_reject_nothing_and_opposite_ones_all():
    full = np.full((8, 3), 150.0)
    found = ks_tests(full, np.full((6, 3), np.inf), seed=0)
    assert (found.statistic == 0).all() and (found.p_value == 1).all() and found.rejected == 0
    found = ks_tests(full, -full, seed=0)
    assert (found.statistic == 1).all() and found.rejected == 1
    assert classifier_test(full, np.full((6, 3), np.inf), seed=0)[:2] == (0.5, 1.0)
    assert classifier_test(full, -full, seed=0).auc == 1


def test_few_models_cannot_reject_and_the_p_value_says_so():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3, 4))
    found = ks_tests(x, x + 50, permutations=4000, seed=0)
    assert found.any_p_value == pytest.approx(smallest_p_value(3, 3), abs=0.02)
    assert found.rejected == 0


def loop_wins(x, y):
    """Ridge regression refitted without the two models of every pair: (M, N) wins of the method."""
    pool = np.concatenate([y, x])
    z = (pool - pool.mean(axis=0)) / pool.std(axis=0)
    label = np.repeat([1.0, 0.0], [len(y), len(x)])
    ridge = np.trace(z @ z.T) / len(z)
    wins = np.zeros((len(y), len(x)))
    for i, j in itertools.product(range(len(y)), range(len(x))):
        kept = [k for k in range(len(z)) if k not in (i, len(y) + j)]
        design = np.c_[np.ones(len(kept)), z[kept]]
        penalty = ridge * np.diag([0.0] + [1.0] * z.shape[1])
        w = np.linalg.solve(design.T @ design + penalty, design.T @ label[kept])
        wins[i, j] = (z[i] - z[len(y) + j]) @ w[1:] > 0
    return wins


def test_the_closed_form_is_the_classifier_refitted_for_every_pair():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(6, 3)), rng.normal(0.4, 1, size=(5, 3))
    wins = loop_wins(x, y)
    found = classifier_test(x, y, permutations=9, seed=0)
    assert found.auc == pytest.approx(wins.mean()) and 0 < found.auc < 1
    np.testing.assert_allclose(found.wins, np.r_[wins.mean(axis=1), wins.mean(axis=0)])


def test_over_all_relabellings_the_auc_is_one_half_and_leaving_one_out_is_below():
    pool = np.random.default_rng(9).normal(size=(7, 4))
    aucs, accuracy = [], []
    for chosen in itertools.combinations(range(7), 3):
        rest = [i for i in range(7) if i not in chosen]
        x, y = pool[rest], pool[list(chosen)]
        aucs.append(classifier_test(x, y, permutations=1, seed=0).auc)
        # the mutant: one model left out, nearest mean of the others
        for k in range(7):
            own = [m for m in (chosen if k in chosen else rest) if m != k]
            other = rest if k in chosen else list(chosen)
            near = np.linalg.norm(pool[k] - pool[own].mean(axis=0))
            accuracy.append(near < np.linalg.norm(pool[k] - pool[other].mean(axis=0)))
    assert np.mean(aucs) == pytest.approx(0.5, abs=1e-12)
    assert np.mean(accuracy) < 0.48


def test_the_classifier_test_has_its_level_and_sees_a_shift_too_small_for_single_examples():
    null, power, single = 0, 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(10, 40)), rng.normal(size=(8, 40))
        null += classifier_test(x, y, permutations=59, seed=seed).p_value <= 0.05
        if seed < 30:
            power += classifier_test(x, y + 0.6, permutations=59, seed=seed).p_value <= 0.05
            single += ks_tests(x, y + 0.6, permutations=59, seed=seed).any_p_value <= 0.05
    assert within_binomial_error(null, 200, 0.05)
    assert power >= 27 and single <= 15


def test_the_classifier_does_not_care_for_units_and_repeats():
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(8, 5)), rng.normal(0.8, 1, size=(7, 5))
    plain = classifier_test(x, y, seed=0)
    units = np.array([1.0, 0.01, 5.0, -2.0, 1.0])
    mapped = classifier_test(units * x + 3, units * y + 3, seed=0)
    assert mapped[:3] == pytest.approx(plain[:3]) and classifier_test(x, y, seed=0).auc == plain.auc
    assert classifier_test(x, y, seed=1).null_quantile != plain.null_quantile
    assert classifier_test(y, x, seed=0).auc == pytest.approx(plain.auc)
    assert 0.5 < plain.null_quantile < 1 and plain.wins.shape == (15,)


def test_nothing_is_undefined_and_bad_input_is_refused():
    x, y = np.zeros((4, 3)), np.ones((5, 3))
    assert ks_tests(x[:, :0], y[:, :0], seed=0) is None
    assert classifier_test(x[:, :0], y[:, :0], seed=0) is None
    for test in (ks_tests, classifier_test):
        with pytest.raises(TooFew, match=r"oracle_margins holds 1 model\(s\), needs at least 2"):
            test(x[:1], y, seed=0)
        with pytest.raises(ValueError, match="same examples on both sides, got 3 and 2"):
            test(x, y[:, :2], seed=0)
        with pytest.raises(ValueError, match=r"method_margins is NaN for models \[0, 1, 2, 3, 4\]"):
            test(x, y * np.nan, seed=0)
        with pytest.raises(ValueError, match="permutations: expected at least 1, got 0"):
            test(x, y, permutations=0, seed=0)
    with pytest.raises(ValueError, match="level strictly between 0 and 1, got 1"):
        ks_tests(x, y, level=1, seed=0)
