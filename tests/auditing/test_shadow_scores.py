"""The attack on twins: where its answer is known in closed form, how often its test is wrong."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, norm

from jaxunlearn import audit, results
from jaxunlearn.audit import TooFew
from jaxunlearn.audit.lira import pair_left_out
from jaxunlearn.auditing.shadow_scores import LEAST_PAIRS, scored, swap_test


def twins(rng, pairs, targets):
    """(2 pairs, targets) bool, opposite in each pair, half of each row True."""
    halves = rng.random((pairs, targets)).argsort(axis=1) < targets // 2
    return np.stack([halves, ~halves], axis=1).reshape(2 * pairs, targets)


def simulated(seed, pairs=6, targets=10, shift=0.0, common=0.0):
    """Margins N(shift * member, 1) around a mean of each target; a common part of each model."""
    rng = np.random.default_rng(seed)
    member = twins(rng, pairs, targets)
    phi = rng.normal(size=member.shape) + common * rng.normal(size=(len(member), 1))
    return phi + 3 * rng.normal(size=targets) + shift * member, member


def attack(phi, member, seed=0, relabellings=31):
    return scored("a row", phi, member, relabellings=relabellings, rng=np.random.default_rng(seed))


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 4.0])
def test_two_gaussians_are_told_apart_as_often_as_their_distance_says(shift):
    phi, member = simulated(1, pairs=64, targets=200, shift=shift)
    found = attack(phi, member, relabellings=1)
    sigma = 0.5 / np.sqrt(phi.size)
    assert abs(found.accuracy.value - norm.cdf(shift / 2)) < 4 * sigma + 0.005  # of 63 fitted means
    assert found.auc.value == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)


def test_retraining_gives_a_half_within_the_binomial_error():
    cells = 200 * 12 * 10
    made = [simulated(seed) for seed in range(200)]
    calls = [pair_left_out(phi, member, pooled=None, who="test") > 0 for phi, member in made]
    right = np.mean([call == member for call, (_, member) in zip(calls, made, strict=True)])
    low, high = binom.ppf([0.001, 0.999], cells, 0.5) / cells
    assert low < right < high


def test_gaussians_that_were_fitted_on_the_scored_model_flatter_the_attack():
    """The mutant of the test above: nobody is left out, and retraining looks like a leak."""
    right = []
    for seed in range(100):
        phi, member = simulated(seed)
        worlds = [np.where(side, phi, np.nan) for side in (member, ~member)]
        mean = [np.nanmean(world, axis=0) for world in worlds]
        nearer = abs(phi - mean[0]) < abs(phi - mean[1])
        right.append((nearer == member).mean())
    cells = 100 * 12 * 10
    assert np.mean(right) > binom.ppf(0.999, cells, 0.5) / cells + 0.03


def test_a_model_is_scored_without_itself_and_without_its_twin():
    phi, member = simulated(3, shift=1.0)
    before = pair_left_out(phi, member, pooled="example", who="test")
    for absurd in (4, 5):  # both of pair 2
        moved = phi.copy()
        moved[absurd] += 7.0
        after = pair_left_out(moved, member, pooled="example", who="test")
        assert (abs(after - before) > 1e-9)[[0, 1, 2, 3, 6, 7]].any(axis=1).all()
        twin = absurd ^ 1
        np.testing.assert_allclose(after[twin], before[twin], rtol=1e-9)


def test_the_numbers_are_those_of_the_attack_in_the_audits():
    phi, member = simulated(5, shift=1.5)
    found = attack(phi, member)
    other = audit.unlearned_lira(phi, member, rng=np.random.default_rng(0))
    assert (found.accuracy, found.auc) == (other.accuracy, other.auc)
    assert found.worst == other.examples.max() and found.tpr["0.1"] == other.tpr[0.1]
    assert found.tpr["0.001"] is None and found.tpr["0.01"] is None  # 60 cells never saw


def test_the_curve_is_kept_at_fixed_rates_and_never_rises_above_the_whole_one():
    phi, member = simulated(5, pairs=20, shift=1.0)
    found = attack(phi, member)
    scores = pair_left_out(phi, member, pooled=None, who="test")
    assert found.roc.fpr[0] == 0 and found.roc.fpr[1] >= 1 / 200
    for fpr, tpr in zip(*found.roc, strict=True):
        whole = audit.tpr_at_fpr(scores[member], scores[~member], fpr=fpr)
        assert tpr == pytest.approx(whole.item(), abs=1e-12)
    assert len(found.roc.fpr) < 170


# ------------------------------------------------------------------------------ the exact test


def test_few_pairs_are_relabelled_in_all_ways_and_fitted_anew_in_each():
    """By brute force over all 2^4 choices of pairs, each as a swap of the rows of `phi`."""

    def right(phi, member, choice):
        order = [2 * k + (twin ^ swap) for k, swap in enumerate(choice) for twin in (0, 1)]
        scores = pair_left_out(phi[order], member, pooled=None, who="test")
        return ((scores > 0) == member).mean()

    def without_a_fit(phi, member, choice):
        scores = pair_left_out(phi, member, pooled=None, who="test")
        return ((scores > 0) == member ^ np.repeat(choice, 2)[:, None].astype(bool)).mean()

    def share(accuracy, phi, member):
        choices = itertools.product([0, 1], repeat=4)
        values = [accuracy(phi, member, choice) for choice in choices]
        return np.mean([value >= values[0] - 1e-9 for value in values])

    runs = [simulated(seed, pairs=4, shift=0.3) for seed in range(12)]
    expected = [share(right, *run) for run in runs]
    for relabellings in (7, 999):  # 2^3 choices, the others are their mirror images
        rng = np.random.default_rng(0)
        found = [swap_test(*run, relabellings=relabellings, rng=rng) for run in runs]
        assert found == expected
    assert [share(without_a_fit, *run) for run in runs] != expected


def test_many_pairs_are_relabelled_by_chance_the_observed_way_among_them():
    phi, member = simulated(8, pairs=12, shift=3.0)
    p = swap_test(phi, member, relabellings=39, rng=np.random.default_rng(0))
    assert p == 1 / 40


@pytest.mark.parametrize("common", [0.0, 3.0])
def test_retraining_is_rejected_no_more_often_than_the_level_says(common):
    """Also where all targets of a model move together."""
    runs = 120
    rng = np.random.default_rng(0)
    made = (simulated(seed, common=common) for seed in range(runs))
    small = [swap_test(*each, relabellings=31, rng=rng) <= 0.125 for each in made]
    assert sum(small) <= binom.ppf(0.999, runs, 0.125)
    assert sum(small) >= binom.ppf(0.001, runs, 0.125 - 1 / 16)  # and hardly less often


def test_a_test_that_does_not_fit_anew_for_each_relabelling_rejects_retraining():
    """The mutant: fitted once, on all models, so every pair seems to be told apart."""
    runs, rejected = 60, 0
    signs = np.array(list(itertools.product([1, -1], repeat=6)))
    for seed in range(runs):
        phi, member = simulated(seed)
        worlds = [np.where(side, phi, np.nan) for side in (member, ~member)]
        nearer = np.abs(phi - np.nanmean(worlds[0], 0)) < np.abs(phi - np.nanmean(worlds[1], 0))
        more = (nearer == member).reshape(6, -1).mean(axis=1) - 0.5
        sums = signs @ more
        rejected += np.mean(sums >= sums[0] - 1e-9) <= 0.125
    assert rejected > binom.ppf(0.999, runs, 0.125)


def test_a_leak_of_one_deviation_is_found_with_eight_pairs():
    found = [attack(*simulated(s, pairs=8, shift=1.0), relabellings=39) for s in range(20)]
    assert np.mean([each.p_value <= 0.05 for each in found]) >= 0.8


def test_the_intervals_hold_the_expected_accuracy():
    """Expected over models and halves, of the same fixed means; 95 % are asked for."""
    values = [attack(*simulated(s, pairs=8, shift=1.0), relabellings=1) for s in range(150)]
    expected = np.mean([each.accuracy.value for each in values])
    covered = sum(each.accuracy.low <= expected <= each.accuracy.high for each in values)
    assert covered >= binom.ppf(0.001, 150, 0.93)
    narrower = sum(
        abs(each.accuracy.value - expected) < (each.accuracy.high - each.accuracy.low) / 8
        for each in values
    )
    assert narrower < covered - 15  # a quarter of the width would not do


# ------------------------------------------------------------------------------ bad input


def test_a_pair_with_a_broken_model_is_as_if_it_were_not_there():
    phi, member = simulated(2, pairs=7, shift=1.0)
    phi[4, 3] = np.nan
    found, other = (
        attack(phi, member),
        attack(np.delete(phi, (4, 5), 0), np.delete(member, (4, 5), 0)),
    )
    assert found.pairs == 6 and results.plain(found) == results.plain(other)


def test_fewer_than_four_whole_pairs_leave_everything_undefined():
    phi, member = simulated(2, pairs=LEAST_PAIRS)
    phi[0] = np.nan
    found = attack(phi, member)
    assert found.pairs == 3 and set(found.tpr.values()) == {None}
    numbers = (found.accuracy, found.auc, found.p_value, found.worst, found.examples, found.roc)
    assert all(number is None for number in numbers)
    with pytest.raises(TooFew, match="swap_test: expected at least 4 pairs, got 3"):
        swap_test(phi[2:], member[2:], rng=np.random.default_rng(0))


@pytest.mark.parametrize("margin", [0.0, 100.0, 1e9])
def test_margins_that_are_all_alike_are_guessing(margin):
    _, member = simulated(2)
    found = attack(np.full(member.shape, margin), member)
    assert found.accuracy.value == found.auc.value == 0.5 and found.p_value == 1.0


def test_the_order_of_twins_and_of_pairs_changes_nothing_but_the_groups_of_the_interval():
    phi, member = simulated(4, shift=1.0)
    order = np.arange(12).reshape(6, 2)[::-1, ::-1].ravel()
    found, other = attack(phi, member), attack(phi[order], member[order])
    np.testing.assert_allclose(found.examples, other.examples)
    assert found.auc.value == pytest.approx(other.auc.value) and found.p_value == other.p_value


@pytest.mark.parametrize("shape", [(7, 3), (8,), (8, 0)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected phi and member \(2 x pairs, targets\), got"):
        attack(np.zeros(shape), np.zeros(shape, bool))


def test_twins_that_are_not_opposite_are_refused():
    phi, member = simulated(2)
    with pytest.raises(ValueError, match=r"member\[2 k\] = ~member\[2 k \+ 1\], bool"):
        attack(phi, np.roll(member, 1, axis=0))
    with pytest.raises(ValueError, match="Put the two models of a pair next to each other"):
        attack(phi, member.astype(int))
