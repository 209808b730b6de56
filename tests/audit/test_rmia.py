"""RMIA: the ratio table by loop, online and offline, the null, one reference, blocks, edges."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, auc, rmia


def log_probabilities(rng, *shape):
    return np.log(rng.uniform(0.05, 1, size=shape))


@pytest.fixture
def case():
    """Targets, population and references, of which half were trained on each target."""
    rng = np.random.default_rng(0)
    member = rng.permuted(np.tile(np.arange(4)[:, None] < 2, (1, 7)), axis=0)
    return (
        [log_probabilities(rng, 2, 7), log_probabilities(rng, 2, 11)]
        + [log_probabilities(rng, 4, 7), log_probabilities(rng, 4, 11)],
        member,
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("online", [True, False])
def test_the_score_is_the_share_of_the_population_with_a_ratio_of_at_least_gamma(
    case, gamma, online
):
    (x, z, own, theirs), member = case
    found = rmia(x, z, own, theirs, member=member if online else None, gamma=gamma)

    def average(p, seen):
        if seen.any():
            return (p[seen].mean() + p[~seen].mean()) / 2
        return 0.5 * (1.3 * p.mean() + 0.7)

    for m in range(2):
        for i in range(7):
            seen = member[:, i] if online else np.zeros(4, bool)
            p_x = average(np.exp(own[:, i]), seen)
            ratios = [
                (np.exp(x[m, i]) / p_x)
                / (np.exp(z[m, j]) / average(np.exp(theirs[:, j]), np.zeros(4, bool)))
                for j in range(11)
            ]
            assert found[m, i] == pytest.approx(np.mean(np.array(ratios) >= gamma))


def test_a_point_of_the_population_scores_one_half_on_average_at_gamma_one(case):
    (_, z, _, theirs), _ = case
    scores = rmia(z, z, theirs, theirs, gamma=1.0)
    np.testing.assert_allclose(scores.mean(axis=1), 0.5)
    np.testing.assert_allclose(np.sort(scores, axis=1), np.tile((np.arange(11) + 0.5) / 11, (2, 1)))
    assert (rmia(z, z, theirs, theirs, gamma=2.0).mean(axis=1) < 0.45).all()


def test_the_null_is_uniform_in_expectation_and_another_rule_for_the_population_is_not():
    rng = np.random.default_rng(1)
    # how easy an example is differs, and the attacked model is one of the references' law
    easy = rng.normal(1, 1.5, size=3000)
    log_p = -np.logaddexp(0, -(easy + 0.5 * rng.normal(size=(5, 3000))))
    x, z = log_p[:1, :1500], log_p[:1, 1500:]
    own, theirs = log_p[1:, :1500], log_p[1:, 1500:]
    score = np.sort(rmia(x, z, own, theirs, gamma=1.0)[0])
    assert np.abs(score - (np.arange(1500) + 0.5) / 1500).max() < 0.06  # Kolmogorov, two samples
    # the population averaged without a, targets with it: no longer exchangeable
    p_x, p_z = 0.65 * np.exp(own).mean(axis=0) + 0.35, np.exp(theirs).mean(axis=0)
    unequal = (np.exp(x[0]) / p_x)[:, None] >= np.exp(z[0]) / p_z
    assert abs(unequal.mean() - 0.5) > 0.05


def test_at_gamma_one_the_order_of_x_and_z_is_that_of_z_and_x(case):
    (x, z, own, theirs), _ = case
    for i in range(7):
        for j in range(11):
            a, b = slice(i, i + 1), slice(j, j + 1)
            forth = rmia(x[:1, a], z[:1, b], own[:, a], theirs[:, b], gamma=1)
            back = rmia(z[:1, b], x[:1, a], theirs[:, b], own[:, a], gamma=1)
            assert forth.item() + back.item() == 1


@pytest.mark.parametrize("references", [1, 4])
def test_members_are_found_with_few_references_where_the_plain_probability_fails(references):
    rng = np.random.default_rng(2)
    easy = rng.normal(0, 3, size=1200)  # examples differ more than membership does
    logits = easy + 0.5 * rng.normal(size=(1 + references, 1200))
    logits[0, :400] += 1.5  # members of the attacked model
    log_p = -np.logaddexp(0, -logits)
    parts = (slice(0, 400), slice(400, 800), slice(800, 1200))
    scores = [
        rmia(log_p[:1, p], log_p[:1, parts[2]], log_p[1:, p], log_p[1:, parts[2]], gamma=1.0)[0]
        for p in parts[:2]
    ]
    found, plain = auc(*scores), auc(log_p[0, parts[0]], log_p[0, parts[1]])
    assert found > plain + 0.05 and found > 0.65
    assert auc(*scores[::-1]) == pytest.approx(1 - found)  # members and strangers swapped


def test_any_chunk_gives_the_same_bits(case):
    rng = np.random.default_rng(3)
    arrays = [log_probabilities(rng, 2, 37), log_probabilities(rng, 2, 41)]
    arrays += [log_probabilities(rng, 19, 37), log_probabilities(rng, 19, 41)]
    member = rng.random((19, 37)) < 0.5
    whole = rmia(*arrays, member=member)
    for chunk in (1, 7, 1000):
        np.testing.assert_array_equal(rmia(*arrays, member=member, chunk=chunk), whole)


def test_saturated_impossible_and_broken_probabilities():
    flat = np.zeros((2, 5))
    np.testing.assert_array_equal(rmia(flat, flat, flat, flat, gamma=1), 0.5)
    np.testing.assert_array_equal(rmia(flat, flat, flat, flat, gamma=2), 0.0)
    never = np.full((2, 5), -np.inf)
    assert rmia(never, flat, never, flat).tolist() == [[0.0] * 5] * 2
    broken = flat.copy()
    broken[1, 2] = np.nan
    assert np.isnan(rmia(broken, flat, flat, flat)).all(axis=1).tolist() == [False, True]
    assert np.isnan(rmia(flat, broken, flat, flat)).all(axis=1).tolist() == [False, True]
    member = np.zeros((2, 5), bool)
    member[:, 3] = True  # every reference was trained on it
    found = rmia(flat, flat, flat, flat, member=member)
    assert np.isnan(found).all(axis=0).tolist() == [False, False, False, True, False]


def test_a_missing_reference_and_misfits_are_refused(case):
    (x, z, own, theirs), member = case
    with pytest.raises(TooFew, match="rmia: needs at least one reference model"):
        rmia(x, z, own[:0], theirs[:0])
    with pytest.raises(TooFew, match="the population is empty"):
        rmia(x, z[:, :0], own, theirs[:, :0])
    with pytest.raises(ValueError, match="4 references for the targets and 3 for the population"):
        rmia(x, z, own, theirs[:3])
    with pytest.raises(ValueError, match=r"got \(2, 7\), \(2, 11\), \(4, 6\), \(4, 11\)"):
        rmia(x, z, own[:, :6], theirs)
    with pytest.raises(ValueError, match="log_p must hold log probabilities, <= 0, got 0.5"):
        rmia(np.full_like(x, 0.5), z, own, theirs)
    with pytest.raises(ValueError, match=r"references of shape \(models, examples\), got \(4,\)"):
        rmia(x, z, own[:, 0], theirs)
    with pytest.raises(ValueError, match=r"references_population is NaN for models \[0, 1, 2, 3\]"):
        rmia(x, z, own, theirs * np.nan)
    for wrong in ({"gamma": 0.5}, {"gamma": np.nan}, {"offline_a": 1.5}):
        with pytest.raises(ValueError, match=r"a finite gamma >= 1 and offline_a in \[0, 1\]"):
            rmia(x, z, own, theirs, **wrong)
    with pytest.raises(ValueError, match="chunk >= 1 examples, or None, got 0"):
        rmia(x, z, own, theirs, chunk=0)
    with pytest.raises(TypeError, match="`member` must be boolean, got dtype int64"):
        rmia(x, z, own, theirs, member=member.astype(int))
    with pytest.raises(ValueError, match=r"expected member of shape \(4, 7\), got \(4, 6\)"):
        rmia(x, z, own, theirs, member=member[:, :6])
