"""KLoM: against a naive loop, the published defect, saturation, floors."""

import numpy as np
import pytest

from jaxunlearn.audit import KLOM_CEILING, TooFew, klom, klom_floor, klom_null, klom_summary


def loop_klom(p_side, q_side):
    """The definition, example by example, with numpy.histogram (whose last bin is closed)."""
    values = []
    for a, b in zip(np.clip(p_side, -100, 100).T, np.clip(q_side, -100, 100).T, strict=True):
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        edges = np.linspace(low, high if high > low else low + 1, 21)
        p = np.histogram(a, edges)[0] / len(a)
        q = np.histogram(b, edges)[0] / len(b)
        q = np.where(p > 0, np.maximum(q, 1e-5), q)
        q = q / q.sum()
        values.append(sum(x * np.log(x / y) for x, y in zip(p, q, strict=True) if x > 0))
    return np.array(values)


@pytest.fixture
def ensembles():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 30)), rng.normal(0.7, 1.5, size=(25, 30))


def test_klom_equals_the_naive_loop_in_both_directions_with_unequal_sizes(ensembles):
    oracle, method = ensembles
    np.testing.assert_allclose(klom(oracle, method), loop_klom(oracle, method), atol=1e-12)
    reverse = klom(oracle, method, direction="method||oracle")
    np.testing.assert_allclose(reverse, loop_klom(method, oracle), atol=1e-12)
    assert np.abs(reverse - klom(oracle, method)).max() > 0.1


def test_the_default_direction_is_that_of_the_published_runner(ensembles):
    oracle, method = ensembles
    np.testing.assert_array_equal(
        klom(oracle, method), klom(oracle, method, direction="oracle||method")
    )
    np.testing.assert_array_equal(
        klom(oracle, method), klom(method, oracle, direction="method||oracle")
    )


def test_no_mass_is_lost_at_the_last_edge_where_the_published_binning_loses_it():
    oracle = np.r_[np.zeros(90), np.full(10, 100.0)][:, None]
    method = np.r_[np.zeros(50), np.full(50, 100.0)][:, None]

    def published(a, b):
        edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), 21)
        p, q = (np.bincount(np.digitize(v[:, 0], edges), minlength=22)[1:21] for v in (a, b))
        p, q = p / p.sum(), q / q.sum()
        q = np.where(p > 0, np.maximum(q, 1e-5), q)
        return np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))

    assert published(oracle, method) == 0
    exact = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert klom(oracle, method)[0] == pytest.approx(exact)


def test_the_same_ensemble_scores_exactly_zero(ensembles):
    oracle = ensembles[0]
    assert (klom(oracle, oracle) == 0).all()
    assert (klom(oracle, oracle[::-1]) == 0).all()
    assert (klom(np.full((5, 2), 3.0), np.full((9, 2), 3.0)) == 0).all()


def test_saturated_margins_are_finite_and_meet_the_ceiling():
    up, down = np.full((10, 3), 150.0), np.full((10, 3), -np.inf)
    np.testing.assert_allclose(klom(down, up), KLOM_CEILING)
    assert (klom(up, np.full((10, 3), np.inf)) == 0).all()
    assert KLOM_CEILING == pytest.approx(np.log(1e5), abs=1e-4)
    rng = np.random.default_rng(0)
    wide = klom(rng.uniform(0, 1, (50, 20)), rng.uniform(5, 6, (50, 20)))
    assert (0 <= wide).all() and (wide <= KLOM_CEILING).all() and wide.min() > 9


def test_a_common_affine_map_changes_nothing(ensembles):
    oracle, method = ensembles
    mapped = klom(4 * oracle - 3, 4 * method - 3)  # a power of two: no rounding at bin edges
    np.testing.assert_allclose(mapped, klom(oracle, method), atol=0.1)
    assert np.median(np.abs(mapped - klom(oracle, method))) < 1e-12


def test_the_null_is_that_of_two_identical_gaussians_and_falls_with_more_models():
    means = [klom_null(n, n, seed=0).mean for n in (50, 100, 200)]
    assert means == pytest.approx([0.84, 0.33, 0.14], rel=0.1)
    assert klom_null(100, 100, seed=1).quantile95 == pytest.approx(0.65, rel=0.1)
    assert klom_null(32, 16, seed=0).mean != klom_null(16, 32, seed=0).mean


def test_shifts_score_above_the_null():
    rng = np.random.default_rng(1)
    oracle = rng.normal(size=(100, 400))
    for shift, expected in ((0.5, 0.56), (1, 1.25), (2, 3.6)):
        method = rng.normal(shift, 1, size=(100, 400))
        assert klom(oracle, method).mean() == pytest.approx(expected, rel=0.15)


def test_the_floor_compares_two_halves_of_the_oracles(ensembles):
    oracle = ensembles[0]
    np.testing.assert_array_equal(klom_floor(oracle), klom(oracle[20:], oracle[:20]))
    summary = klom_summary(klom_floor(oracle))
    assert 0 < summary.mean < summary.quantile95


def test_the_floor_has_the_direction_that_is_asked_for(ensembles):
    oracle = ensembles[0]
    reverse = klom_floor(oracle, direction="method||oracle")
    np.testing.assert_array_equal(reverse, klom(oracle[:20], oracle[20:]))
    assert (reverse != klom_floor(oracle)).any()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_any_chunk_gives_the_same_bits(ensembles, chunk):
    oracle, method = (side.astype(np.float32) for side in ensembles)
    for direction in ("oracle||method", "method||oracle"):
        whole, parts = (klom(oracle, method, direction=direction, chunk=c) for c in (None, chunk))
        np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(klom_floor(oracle, chunk=chunk), klom_floor(oracle))


def test_the_order_of_the_models_does_not_count_and_that_of_the_examples_does(ensembles):
    oracle, method = ensembles
    np.testing.assert_array_equal(klom(oracle[::-1], method[::-1]), klom(oracle, method))
    assert (klom(oracle, method[:, ::-1]) != klom(oracle, method)).any()
    assert (klom(oracle[:-1], method) != klom(oracle, method)).any()  # one seed fewer


def test_the_summary_is_mean_percentile_and_worst(ensembles):
    values = klom(*ensembles)
    summary = klom_summary(values)
    assert summary == (values.mean(), np.quantile(values, 0.95), values.max())


def test_nothing_is_undefined_and_bad_ensembles_are_refused(ensembles):
    oracle, method = ensembles
    assert klom(oracle[:, :0], method[:, :0]) is None and klom_summary(None) is None
    with pytest.raises(TooFew, match=r"method_margins holds 1 model\(s\), needs at least 2"):
        klom(oracle, method[:1])
    with pytest.raises(TooFew, match=r"klom_floor: .* holds 3 model\(s\), needs at least 4"):
        klom_floor(oracle[:3])
    with pytest.raises(ValueError, match="same examples on both sides, got 30 and 29"):
        klom(oracle, method[:, :29])
    with pytest.raises(ValueError, match=r"direction must be one of .* got 'forward'"):
        klom(oracle, method, direction="forward")
    with pytest.raises(ValueError, match=r"oracle_margins of shape \(models, n\), got \(40,\)"):
        klom(oracle[:, 0], method)
    broken = oracle.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"oracle_margins is NaN for models \[7\]"):
        klom(broken, method)
    with pytest.raises(ValueError, match="klom: expected chunk >= 1 examples, or None, got 0"):
        klom(oracle, method, chunk=0)
    with pytest.raises(ValueError, match="examples >= 1, got 0"):
        klom_null(5, 5, examples=0, seed=0)
