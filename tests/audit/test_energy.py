"""The energy distance and its exact tests: loops, SciPy, simulated level and power, mutants."""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.audit import (
    TooFew,
    bootstrap_weights,
    energy,
    permutation_test,
    rank_of_one,
    smallest_p_value,
    weighted_energy,
)


def points(x):
    x = np.asarray(x, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def loop_energy(D, a, b):
    cross = np.mean([D[i, j] for i in a for j in b])
    within_a = np.mean([D[i, j] for i in a for j in a if i != j])
    within_b = np.mean([D[i, j] for i in b for j in b if i != j])
    return 2 * cross - within_a - within_b


def rejections(trials, draw, test):
    """How many of `trials` seeded data sets the test rejects at 5 %."""
    return sum(test(draw(np.random.default_rng(seed)), seed) <= 0.05 for seed in range(trials))


def within_binomial_error(count, trials, level):
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], trials, level)
    return low <= count <= high


def test_energy_equals_the_loop_over_pairs():
    D = points(np.random.default_rng(0).normal(size=(9, 3)))
    a, b = [0, 3, 4], [8, 1, 2, 7]
    assert energy(D, a, b) == pytest.approx(loop_energy(D, a, b), abs=1e-12)
    assert energy(D, a, b) == pytest.approx(energy(D, b, a), abs=1e-12)


def test_energy_agrees_with_scipy_once_its_root_and_its_self_pairs_are_accounted_for():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=7), rng.normal(1, 2, size=5)
    D = points(np.concatenate([x, y]))
    a, b = range(7), range(7, 12)
    # scipy: the square root, and averages over all pairs, a model with itself included
    within_a, within_b = D[:7, :7].sum(), D[7:, 7:].sum()
    correction = within_a * (1 / 42 - 1 / 49) + within_b * (1 / 20 - 1 / 25)
    theirs = scipy.stats.energy_distance(x, y) ** 2
    assert energy(D, a, b) == pytest.approx(theirs - correction, abs=1e-12)


def test_the_estimate_is_unbiased_zero_on_average_for_groups_of_one_law():
    values = []
    for seed in range(800):
        D = points(np.random.default_rng(seed).normal(size=(9, 2)))
        values.append(energy(D, range(3), range(3, 9)))
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    # the mutant that keeps self-pairs (a V-statistic) is far from zero by the same measure
    biased = [v + 2 * 0.5 * (1 / 3 + 1 / 6) for v in values]
    assert abs(np.mean(biased)) > 10 * error


def test_weighted_energy_with_whole_counts_is_the_energy_of_the_distinct_pairs():
    D = points(np.random.default_rng(2).normal(size=(7, 2)))
    a, b = np.array([0, 1, 2]), np.array([3, 4, 5, 6])
    wa = bootstrap_weights(np.random.default_rng(0), 3, 50)
    wb = bootstrap_weights(np.random.default_rng(1), 4, 50)
    result = weighted_energy(D, a, b, wa, wb)
    for got, u, v in zip(result, wa, wb, strict=True):
        drawn_a = np.repeat(a, np.rint(u * 3).astype(int))
        drawn_b = np.repeat(b, np.rint(v * 4).astype(int))
        pairs_a = [D[i, j] for i in drawn_a for j in drawn_a if i != j]
        pairs_b = [D[i, j] for i in drawn_b for j in drawn_b if i != j]
        if not pairs_a or not pairs_b:
            assert np.isnan(got)
            continue
        cross = np.mean([D[i, j] for i in drawn_a for j in drawn_b])
        assert got == pytest.approx(2 * cross - np.mean(pairs_a) - np.mean(pairs_b), abs=1e-12)


def test_the_permutation_p_value_is_the_share_of_all_relabellings():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 2))
    x[:3] += 1
    D = {"forget": points(x), "retain": points(rng.normal(size=(8, 2)))}
    energies = np.array(
        [
            [loop_energy(M, a, [i for i in range(8) if i not in a]) for M in D.values()]
            for a in itertools.combinations(range(8), 3)
        ]
    )
    z = ((energies - energies.mean(0)) / energies.std(0)).max(axis=1)
    exact = np.mean(z >= z[0] - 1e-12)  # the first combination is the observed one
    test = permutation_test(D, range(3), range(3, 8), permutations=20000, seed=0)
    assert test.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20000))
    assert test.energies["forget"] == pytest.approx(energies[0, 0])
    assert test.null_quantiles["retain"] == pytest.approx(
        np.quantile(energies[:, 1], 0.95), abs=0.1
    )
    largest = max(test.standardised, key=lambda part: test.standardised[part])
    assert test.largest == largest


def two_parts(rng, shift=0.0, contaminated=0):
    x = rng.normal(size=(48, 4))
    y = rng.exponential(size=(48, 2)) + 0.3 * x[:, :2]  # parts are dependent, laws are not normal
    x[:16] += shift
    x[:contaminated] += 6
    return {"forget": points(x), "test": points(y)}


def test_the_level_is_exact_false_alarms_are_within_binomial_error_of_five_percent():
    def test(D, seed):
        return permutation_test(D, range(16), range(16, 48), permutations=99, seed=seed).p_value

    count = rejections(400, two_parts, test)
    assert within_binomial_error(count, 400, 0.05)


def test_hidden_originals_are_found_by_the_power_of_the_test():
    def test(D, seed):
        return permutation_test(D, range(16), range(16, 48), permutations=99, seed=seed).p_value

    four = rejections(60, lambda rng: two_parts(rng, contaminated=4), test)
    one = rejections(60, lambda rng: two_parts(rng, contaminated=1), test)
    assert four >= 55 and one <= 20


def test_mutants_of_the_level_are_caught_by_the_same_check():
    trials = 400

    def observed_left_out(D, seed):
        """p = # / B instead of (1 + #) / (1 + B): alarms one time in six with five relabellings."""
        rng = np.random.default_rng(seed)
        a, b = np.arange(3), np.arange(3, 9)
        labels = [np.split(rng.permutation(9), [3]) for _ in range(5)]
        null = np.array([loop_energy(D, *split) for split in labels])
        return np.mean(null >= loop_energy(D, a, b))

    def small(rng):
        return points(rng.normal(size=(9, 2)))

    count = rejections(trials, small, observed_left_out)
    assert not within_binomial_error(count, trials, 0.05)

    def one_part_at_a_time(D, seed):
        """The smallest p-value of the parts, as if the largest had been chosen beforehand."""
        tests = [
            permutation_test({part: D[part]}, range(16), range(16, 48), permutations=99, seed=seed)
            for part in D
        ]
        return min(test.p_value for test in tests)

    def four_parts(rng):
        return {part: points(rng.normal(size=(48, 3))) for part in "abcd"}

    count = rejections(trials // 2, four_parts, one_part_at_a_time)
    assert not within_binomial_error(count, trials // 2, 0.05)


def test_groups_that_are_not_exchangeable_break_the_level():
    def wrong_group(D, seed):
        """Models of two recipes, sorted instead of drawn: the groups differ by construction."""
        order = np.argsort(D["forget"].sum(axis=1))
        return permutation_test(D, order[:16], order[16:], permutations=99, seed=seed).p_value

    assert not within_binomial_error(rejections(60, two_parts, wrong_group), 60, 0.05)


def test_every_seed_repeats_and_another_seed_differs():
    D = two_parts(np.random.default_rng(0), shift=0.25)
    first, again, other = (
        permutation_test(D, range(16), range(16, 48), permutations=199, seed=s) for s in (0, 0, 1)
    )
    assert first == again and first.null_quantiles != other.null_quantiles
    assert first.energies == other.energies


def test_equal_distances_decide_nothing():
    flat = np.ones((12, 12)) - np.eye(12)
    for D in (flat, 0 * flat):
        assert permutation_test({"forget": D}, range(5), range(5, 12), seed=0).p_value == 1
    x = np.r_[np.zeros(5), np.ones(7)] + 0.01 * np.arange(12)
    test = permutation_test({"retain": flat, "forget": points(x)}, range(5), range(5, 12), seed=0)
    assert test.largest == "forget" and test.standardised["retain"] == 0 and test.p_value < 0.02


def test_scaling_a_part_changes_no_p_value():
    D = two_parts(np.random.default_rng(4), shift=0.4)
    scaled = {"forget": 1e-6 * D["forget"], "test": 1e3 * D["test"]}
    tests = [permutation_test(M, range(16), range(16, 48), seed=0) for M in (D, scaled)]
    assert tests[0].p_value == tests[1].p_value


def test_a_test_of_the_size_of_a_comparison_takes_milliseconds():
    rng = np.random.default_rng(0)
    D = {part: points(rng.normal(size=(48, 5))) for part in "abcd"}
    permutation_test(D, range(16), range(16, 48), permutations=300, seed=0)
    start = time.process_time()
    permutation_test(D, range(16), range(16, 48), permutations=300, seed=0)
    assert time.process_time() - start < 0.5  # about 0.01 s, with room for a busy machine


def test_the_rank_of_one_model_is_that_of_its_mean_distance_among_all():
    rng = np.random.default_rng(5)
    D = points(rng.normal(size=(21, 3)) + 0.0)
    for model in (0, 7):
        oracles = [i for i in range(21) if i != model]
        mean = np.array([D[i, [j for j in range(21) if j != i]].mean() for i in range(21)])
        test = rank_of_one({"forget": D}, model, oracles)
        assert test.p_value == pytest.approx(np.mean(mean >= mean[model] - 1e-12))
        assert test.distances["forget"] == pytest.approx(mean[model])


def test_the_level_of_the_rank_test_is_exact_over_several_parts():
    def test(D, seed):
        return rank_of_one(D, 0, range(1, 40)).p_value  # 40 models: 5 % is attainable

    assert within_binomial_error(rejections(800, two_parts, test), 800, 0.05)
    far = two_parts(np.random.default_rng(0), contaminated=1)
    found = rank_of_one(far, 0, range(1, 40))
    assert found.p_value == pytest.approx(1 / 40) and found.largest == "forget"


def test_the_smallest_p_value_counts_the_relabellings():
    assert smallest_p_value(2, 3) == 1 / 10
    assert smallest_p_value(3, 3) == 2 / 20
    assert smallest_p_value(1, 1) == 1 / 2
    rng = np.random.default_rng(0)
    D = points(np.r_[rng.normal(size=3), 100 + rng.normal(size=3)])
    seen = permutation_test({"forget": D}, range(3), range(3, 6), permutations=5000, seed=0).p_value
    assert seen == pytest.approx(smallest_p_value(3, 3), abs=0.02)


def test_groups_and_matrices_that_cannot_be_compared_are_refused_by_name():
    D = points(np.arange(6.0))
    with pytest.raises(TooFew, match=r"energy: group 'a' has 1 model\(s\), needs at least 2"):
        energy(D, [0], [1, 2])
    with pytest.raises(ValueError, match="groups 'a' and 'b' share models"):
        energy(D, [0, 1], [1, 2])
    with pytest.raises(ValueError, match="group 'b': a model is listed twice"):
        energy(D, [0, 1], [2, 2])
    with pytest.raises(ValueError, match=r"must be in \[0, 6\), got 4 to 6"):
        energy(D, [0, 1], [4, 6])
    with pytest.raises(ValueError, match="A mask becomes numbers"):
        energy(D, [True, False], [2, 3])
    with pytest.raises(ValueError, match=r"square matrix of distances, got shape \(2, 6\)"):
        energy(D[:2], [0, 1], [2, 3])
    with pytest.raises(ValueError, match="symmetric, >= 0"):
        energy(D + np.eye(6), [0, 1], [2, 3])
    broken = D.copy()
    broken[0, 1:] = broken[1:, 0] = np.nan
    with pytest.raises(ValueError, match=r"permutation_test: matrices\['test'\]: .* not finite"):
        permutation_test({"forget": D, "test": broken}, [0, 1], [2, 3], seed=0)
    with pytest.raises(ValueError, match=r"same models in every part.*'test': 3"):
        permutation_test({"forget": D, "test": D[:3, :3]}, [0, 1], [2, 3], seed=0)
    with pytest.raises(ValueError, match="at least one part"):
        permutation_test({}, [0, 1], [2, 3], seed=0)
    with pytest.raises(ValueError, match="permutations: expected at least 1, got 0"):
        permutation_test({"forget": D}, [0, 1], [2, 3], permutations=0, seed=0)
    with pytest.raises(TooFew, match=r"rank_of_one: group 'oracle' has 1 model"):
        rank_of_one({"forget": D}, 0, [1])
