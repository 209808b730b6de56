"""Displacement and detectable contamination: against coordinates, and by simulation."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, detectable_contamination, displacement


def points(x):
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def groups(rng, method_mean, *, n=12, sd=0.3, dim=4):
    """Oracles around 0, originals around e_1, the method around a given mean."""
    mean = np.zeros((3 * n, dim))
    mean[n : 2 * n, 0] = 1
    mean[2 * n :, : len(method_mean)] = method_mean
    x = mean + sd * rng.normal(size=mean.shape)
    return x, range(n), range(n, 2 * n), range(2 * n, 3 * n)


def test_displacement_equals_the_inner_product_in_coordinates_where_groups_have_no_scatter():
    rng = np.random.default_rng(0)
    o, g, m = rng.normal(size=(3, 5))
    x = np.stack([o, o, g, g, m, m])
    result = displacement(points(x), [4, 5], [0, 1], [2, 3], seed=0)
    t = (m - o) @ (g - o) / ((g - o) @ (g - o))
    sideways = np.linalg.norm(m - o - t * (g - o)) / np.linalg.norm(g - o)
    assert result.along.value == pytest.approx(t, abs=1e-9)
    assert result.sideways == pytest.approx(sideways, abs=1e-7)


def test_scatter_within_groups_does_not_move_the_numerator_or_the_denominator():
    ours, naive = [], []
    for seed in range(400):
        x, o, g, m = groups(np.random.default_rng(seed), [0.5], n=4, sd=0.2, dim=16)
        ours.append(displacement(points(x), m, o, g, resamples=1, seed=0).along.value)
        mean_o, mean_g, mean_m = x[list(o)].mean(0), x[list(g)].mean(0), x[list(m)].mean(0)
        line = mean_g - mean_o
        naive.append([(mean_m - mean_o) @ line, line @ line])
    assert np.median(ours) == pytest.approx(0.5, abs=0.05)
    # the mutant with plain group means is biased: E|g-o|^2 = 1 + 2 dim sd^2 / n = 1.32
    assert np.mean(naive, axis=0) == pytest.approx([0.66, 1.32], abs=0.05)


@pytest.mark.parametrize("t", [-0.6, 0.0, 0.4, 1.0])
def test_the_interval_covers_the_place_where_the_method_is(t):
    x, o, g, m = groups(np.random.default_rng(1), [t, 0.7], n=40, sd=0.1)
    result = displacement(points(x), m, o, g, seed=0)
    assert result.along.low < t < result.along.high
    assert result.along.value == pytest.approx(t, abs=0.1)
    assert result.sideways == pytest.approx(0.7, abs=0.1)


def test_swapping_original_and_oracle_mirrors_the_displacement():
    x, o, g, m = groups(np.random.default_rng(2), [0.2])
    there = displacement(points(x), m, o, g, seed=0).along.value
    back = displacement(points(x), m, g, o, seed=0).along.value
    assert there + back == pytest.approx(1, abs=1e-9)
    # and a method on the far side changes its sign when groups are swapped
    x, o, g, m = groups(np.random.default_rng(2), [-0.5])
    assert displacement(points(x), m, o, g, seed=0).along.high < 0
    assert displacement(points(x), m, g, o, seed=0).along.low > 0


def test_the_untouched_original_is_displaced_by_exactly_one():
    x, o, g, _ = groups(np.random.default_rng(3), [0.0])
    itself = displacement(points(x), g, o, g, seed=0)
    assert itself.along.value == itself.along.low == itself.along.high == pytest.approx(1)
    assert itself.sideways == pytest.approx(0, abs=1e-6)


def test_paired_models_are_not_taken_for_independent_ones():
    rng = np.random.default_rng(4)
    x, o, g, _ = groups(rng, [0.0], n=6, sd=0.5)
    copies = np.concatenate([x[:12], x[6:12]])  # an original and its exact copy, six times
    D, m = points(copies), range(12, 18)
    assert displacement(D, m, o, g, paired=True, seed=0).along.value == pytest.approx(1)
    assert displacement(D, m, o, g, paired=False, seed=0).along.value > 1.01


def test_one_model_alone_has_a_displacement_but_no_sideways():
    x, o, g, m = groups(np.random.default_rng(5), [0.5], sd=0.05)
    alone = displacement(points(x), [m[0]], o, g, seed=0)
    assert alone.sideways is None and alone.along.value == pytest.approx(0.5, abs=0.15)


def test_without_a_distance_between_original_and_oracle_there_is_no_displacement():
    x = np.zeros((6, 2))
    assert displacement(points(x), [4, 5], [0, 1], [2, 3], seed=0) is None


def test_displacement_refuses_groups_it_cannot_use():
    D = points(np.arange(8.0)[:, None])
    with pytest.raises(TooFew, match="group 'oracle' has 1 model, needs at least 2"):
        displacement(D, [4, 5], [0], [2, 3], seed=0)
    with pytest.raises(ValueError, match="got 3 models of the method and 2 originals"):
        displacement(D, [4, 5, 6], [0, 1], [2, 3], paired=True, seed=0)
    with pytest.raises(ValueError, match="'oracle' and 'original' and 'method' share models"):
        displacement(D, [1, 2], [0, 1], [3, 4], seed=0)


def hidden(seed, far, n=16, oracles=32, originals=16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + oracles + originals, 4))
    x[n + oracles :, 0] += far
    return {"forget": points(x)}, range(n), range(n, n + oracles), range(n + oracles, len(x))


def test_contamination_is_found_sooner_when_the_original_is_farther():
    far = detectable_contamination(*hidden(0, 8.0), seed=0)
    near = detectable_contamination(*hidden(0, 2.0), seed=0)
    assert far is not None and near is not None
    assert 1 <= far.count < near.count <= 16
    assert far.size == 16 and far.fraction == far.count / 16 and far.power >= 0.5


def test_the_reported_contamination_is_what_a_direct_simulation_finds():
    from jaxunlearn.audit import permutation_test

    found = detectable_contamination(*hidden(1, 5.0), trials=40, seed=0)

    def power(k):
        flagged = 0
        for seed in range(40):
            D, m, o, g = hidden(seed + 100, 5.0)
            models = list(g)[:k] + list(m)[k:]
            flagged += permutation_test(D, models, o, permutations=99, seed=seed).p_value <= 0.05
        return flagged / 40

    assert power(found.count + 1) > 0.5 and power(max(found.count - 2, 0)) < 0.5


def test_originals_like_the_oracles_are_never_found():
    assert detectable_contamination(*hidden(2, 0.0, n=6, oracles=8, originals=4), seed=0) is None
