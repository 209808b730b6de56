"""Distances between models: against plain loops, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.audit import hellinger_matrix, prediction_matrix


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def loop_hellinger(logits, weight):
    models, examples, _ = logits.shape
    D = np.zeros((models, models))
    for i in range(models):
        for j in range(models):
            total = 0.0
            for x in range(examples):
                p, q = softmax(logits[i, x]), softmax(logits[j, x])
                total += weight[x] * 0.5 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()
            D[i, j] = np.sqrt(total / weight.sum())
    return D


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(scale=2, size=(5, 7, 4))


def test_hellinger_equals_the_loop_over_pairs_and_examples(logits):
    expected = loop_hellinger(logits, np.ones(7))
    np.testing.assert_allclose(hellinger_matrix(logits), expected, atol=1e-12)


def test_hellinger_weights_examples_and_padding_contributes_exactly_nothing(logits):
    weight = np.array([1, 2, 0, 0.5, 1, 0, 3.0])
    expected = loop_hellinger(logits, weight)
    np.testing.assert_allclose(hellinger_matrix(logits, weight=weight), expected, atol=1e-12)
    padded = logits.copy()
    padded[:, weight == 0] = np.nan
    np.testing.assert_array_equal(
        hellinger_matrix(padded, weight=weight), hellinger_matrix(logits, weight=weight)
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunk_size_never_changes_the_answer(logits, chunk):
    for matrix in (hellinger_matrix, prediction_matrix):
        np.testing.assert_allclose(matrix(logits, chunk=chunk), matrix(logits), atol=1e-12)


def test_distances_are_symmetric_with_an_exactly_zero_diagonal_and_within_one(logits):
    D = hellinger_matrix(logits * 100)
    assert (D == D.T).all() and (np.diag(D) == 0).all()
    assert D.max() <= 1 and D.dtype == np.float64
    assert hellinger_matrix(np.array([[[500.0, 0]], [[0, 500.0]]]))[0, 1] == 1


def test_tokens_are_examples(logits):
    tokens = logits.reshape(5, 7, 2, 2)
    flat = logits.reshape(5, 14, 2)
    np.testing.assert_array_equal(hellinger_matrix(tokens), hellinger_matrix(flat))


def test_equal_models_are_at_distance_zero_even_when_others_are_far(logits):
    twins = np.concatenate([logits[:1], logits[:1], logits[:1] + 1e-9, logits[1:] * 5])
    D = hellinger_matrix(twins)
    assert D[0, 1] < 1e-7 and D[0, 2] < 1e-7 < D[0, 3]


def test_nearly_equal_models_keep_their_relative_distances(logits):
    rng = np.random.default_rng(1)
    near = logits[:1] + 1e-5 * rng.normal(size=(4, 7, 4))
    np.testing.assert_allclose(hellinger_matrix(near), loop_hellinger(near, np.ones(7)), rtol=1e-5)


def test_half_precision_device_arrays_are_computed_in_double(logits):
    half = jnp.asarray(logits, dtype=jnp.bfloat16)
    expected = loop_hellinger(np.asarray(half).astype(np.float64), np.ones(7))
    np.testing.assert_allclose(hellinger_matrix(half), expected, atol=1e-12)
    assert isinstance(half, jax.Array)


def test_a_masked_class_is_probability_zero_and_a_non_finite_model_has_no_distance(logits):
    masked = logits.copy()
    masked[0, :, 2] = -np.inf
    expected = loop_hellinger(masked, np.ones(7))
    np.testing.assert_allclose(hellinger_matrix(masked), expected, atol=1e-12)
    for bad in (np.nan, np.inf):
        broken = logits.copy()
        broken[3, 2, 1] = bad
        D = hellinger_matrix(broken)
        assert np.isnan(D[3, [0, 1, 2, 4]]).all() and D[3, 3] == 0
        others = np.ix_([0, 1, 2, 4], [0, 1, 2, 4])
        np.testing.assert_allclose(D[others], hellinger_matrix(logits)[others], atol=1e-12)
    broken = logits.copy()
    broken[3, 2] = -np.inf
    assert np.isnan(hellinger_matrix(broken)[3, 0])


def test_no_example_has_no_distance():
    assert hellinger_matrix(np.zeros((3, 0, 2))) is None
    assert prediction_matrix(np.zeros((3, 0))) is None
    assert hellinger_matrix(np.zeros((3, 2, 2)), weight=[0, 0]) is None


def test_the_squares_are_euclidean(logits):
    squared = hellinger_matrix(logits) ** 2
    centring = np.eye(5) - 1 / 5
    assert np.linalg.eigvalsh(-centring @ squared @ centring / 2).min() > -1e-12


def test_prediction_matrix_equals_the_loop_and_scales():
    f = np.random.default_rng(2).normal(size=(4, 6, 3))
    D = prediction_matrix(f, scale=2.0)
    for i in range(4):
        for j in range(4):
            mean = np.mean([((f[i, x] - f[j, x]) ** 2).sum() for x in range(6)])
            assert D[i, j] == pytest.approx(np.sqrt(mean) / 2, abs=1e-12)
    np.testing.assert_allclose(prediction_matrix(10 * f, scale=20.0), D)
    one = prediction_matrix(f[..., 0], scale=1.0)
    np.testing.assert_array_equal(one, prediction_matrix(f[..., :1], scale=1.0))


def test_the_default_scale_is_the_median_deviation_so_one_diverged_model_changes_little():
    f = np.random.default_rng(3).normal(size=(9, 50))
    D = prediction_matrix(f)
    median = np.median(f.std(axis=1))
    np.testing.assert_allclose(D, prediction_matrix(f, scale=median))
    diverged = np.concatenate([f, 1e6 * f[:1]])
    np.testing.assert_allclose(prediction_matrix(diverged)[:9, :9], D, rtol=0.2)
    assert prediction_matrix(np.array([[1.0, 1], [3.0, 3]]))[0, 1] == 2  # no deviation: scale 1


def test_bad_shapes_weights_and_scales_are_refused_by_name(logits):
    with pytest.raises(ValueError, match=r"at least two\s+classes, got \(5, 7, 1\)"):
        hellinger_matrix(logits[..., :1])
    with pytest.raises(ValueError, match=r"got \(7, 4\)"):
        hellinger_matrix(logits[0])
    with pytest.raises(ValueError, match=r"expected weight of shape \(7,\), got \(3,\)"):
        hellinger_matrix(logits, weight=[1, 2, 3])
    with pytest.raises(ValueError, match="finite weights >= 0"):
        hellinger_matrix(logits, weight=[-1] * 7)
    with pytest.raises(ValueError, match="expected scale > 0 and finite, got 0"):
        prediction_matrix(logits, scale=0)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        prediction_matrix(np.zeros(4))
