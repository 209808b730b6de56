"""The joint test over all audits: exact level, adjusted p-values, directions, undefined numbers."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, permutation_test
from jaxunlearn.audit.evidence import evidence, vector_distances

METHOD, ORACLE, ORIGINAL = range(8), range(8, 24), range(24, 32)


def suite(rng, shift=0.0, audits=6, shifted=0):
    """Audits of 32 models; the last eight (originals) are far away on each, the first eight are
    moved by `shift` on one audit, "a0" unless said."""
    found = {}
    for a in range(audits):
        values = rng.normal(size=(32, 3))
        values[24:] += 6.0
        if a == shifted:
            values[:8] += shift
        found[f"a{a}"] = vector_distances(values)
    return found


def judged(distances, seed=0, **options):
    return evidence(
        distances, METHOD, ORACLE, ORIGINAL, permutations=199, resamples=20, seed=seed, **options
    )


def test_distances_of_numbers_are_those_of_standardised_vectors():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(7, 2, 3)) * np.array([1.0, 10.0, 100.0])
    D = vector_distances(v)
    s = (v / v.std(axis=0)).reshape(7, 6)
    by_hand = [[np.sqrt(((a - b) ** 2).sum() / 6) for b in s] for a in s]
    np.testing.assert_allclose(D, by_hand, atol=1e-7)
    np.testing.assert_allclose(D, vector_distances(v * 1e6 + 3.0), atol=1e-6)


def test_an_undefined_number_is_a_difference_of_its_own_and_a_constant_one_is_none():
    D = vector_distances([[1.0, 5.0], [2.0, 5.0], [np.nan, 5.0], [np.inf, 5.0]])
    assert np.isfinite(D).all()
    assert D[2, 3] == 0
    assert min(D[0, 2], D[1, 2]) > 0
    at_the_mean = vector_distances([1.0, 2.0, 1.5, np.nan])  # what is filled in is no disguise
    assert at_the_mean[2, 3] > 1
    assert not vector_distances(np.full((4, 2), 7.0)).any()
    assert not vector_distances(np.full((4, 2), np.nan)).any()


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros((4, 0)), 1.0])
def test_no_model_and_no_number_are_refused(values):
    with pytest.raises(ValueError, match="at least one of each"):
        vector_distances(values)


def test_the_suite_is_the_permutation_test_of_its_largest_audit():
    distances = suite(np.random.default_rng(1), shift=2.0)
    found = judged(distances)
    test = permutation_test(distances, METHOD, ORACLE, permutations=199, seed=[0, 0])
    assert found.p_value == test.p_value
    assert found.largest == test.largest == "a0"
    assert found.p_value == min(f.p_value for f in found.findings.values())
    for audit, finding in found.findings.items():
        assert finding.energy == pytest.approx(test.energies[audit], abs=1e-12)
        assert finding.resolution == pytest.approx(test.null_quantiles[audit], abs=1e-12)


def test_the_suite_listens_to_whichever_audit_stands_out():
    found = judged(suite(np.random.default_rng(9), shift=3.0, shifted=4))
    assert found.largest == "a4"
    assert found.p_value == found.findings["a4"].p_value == 1 / 200
    assert found.flagged() == ("a4",)


def test_a_displacement_within_its_interval_has_no_direction():
    """Of retrained models, half lie on the original's side by chance; few are said to."""
    rng = np.random.default_rng(10)
    said = [
        finding.direction
        for seed in range(10)
        for finding in judged(suite(rng), seed=seed).findings.values()
    ]
    assert np.mean([direction != "aside" for direction in said]) < 0.25


def test_an_adjusted_p_value_is_the_share_of_relabellings_with_any_audit_as_extreme():
    distances = suite(np.random.default_rng(2), shift=0.5, audits=3)
    found = judged(distances)
    pool = np.arange(24)
    labels = np.tile(np.arange(24) < 8, (200, 1)).astype(float)
    labels[1:] = np.random.default_rng([0, 0]).permuted(labels[1:], axis=1)

    def energy(D, chosen):
        a, b = pool[chosen > 0], pool[chosen == 0]

        def within(g):
            return D[np.ix_(g, g)].sum() / (g.size * (g.size - 1))

        return 2 * D[np.ix_(a, b)].mean() - within(a) - within(b)

    E = np.array([[energy(D, chosen) for chosen in labels] for D in distances.values()])
    z = (E - E.mean(axis=1, keepdims=True)) / E.std(axis=1, keepdims=True)
    for i, finding in enumerate(found.findings.values()):
        assert finding.p_value == pytest.approx(np.mean(z.max(axis=0) >= z[i, 0] - 1e-9))


def rejections(shift, trials=200):
    rng = np.random.default_rng(3)
    return np.array([judged(suite(rng, shift), seed=i).p_value <= 0.05 for i in range(trials)])


def test_six_audits_of_retrained_models_raise_a_false_alarm_in_one_of_twenty_at_most():
    rate = rejections(0.0).mean()
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_without_the_adjustment_six_audits_would_raise_many_more():
    rng = np.random.default_rng(3)
    alarms = 0
    for i in range(200):
        distances = suite(rng)
        alarms += any(
            permutation_test({a: D}, METHOD, ORACLE, permutations=99, seed=i).p_value <= 0.05
            for a, D in distances.items()
        )
    assert alarms / 200 > 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_one_shifted_audit_is_named_and_the_others_are_not():
    named = [judged(suite(np.random.default_rng(i), 3.0)).flagged() for i in range(30)]
    assert all("a0" in names for names in named)
    assert sum(len(names) > 1 for names in named) <= 5


def test_the_direction_is_towards_the_original_away_from_it_or_aside():
    rng = np.random.default_rng(5)
    assert judged(suite(rng, 3.0)).findings["a0"].direction == "towards the original"
    assert judged(suite(rng, -3.0)).findings["a0"].direction == "away from it"
    values = rng.normal(size=(32, 2))
    values[24:, 0] += 8.0
    values[:8, 1] += 8.0
    found = judged({"a0": vector_distances(values)}).findings["a0"]
    assert found.p_value <= 0.05
    assert found.direction == "aside"
    same = rng.normal(size=(32, 2))
    same[24:] = same[8:16]
    assert judged({"a0": vector_distances(same)}).findings["a0"].direction in (None, "aside")


def test_untouched_originals_are_flagged_towards_themselves():
    distances = suite(np.random.default_rng(6))
    found = evidence(distances, ORIGINAL, ORACLE, ORIGINAL, permutations=199, seed=0)
    assert set(found.flagged()) == set(distances)
    assert {f.direction for f in found.findings.values()} == {"towards the original"}


def test_groups_too_small_to_reject_are_refused_with_the_smallest_p_value():
    distances = suite(np.random.default_rng(7))
    with pytest.raises(TooFew, match="cannot give a p-value below 0.067"):
        evidence(distances, range(2), range(2, 6), ORIGINAL, seed=0)


def test_a_generator_is_no_seed_here():
    with pytest.raises(ValueError, match="must be integers"):
        judged(suite(np.random.default_rng(8)), seed=np.random.default_rng(0))
