"""CKA: brute force over quadruples, invariances, the biased trap, all pairs at once, ceilings."""

import itertools

import numpy as np
import pytest

from jaxunlearn.audit import (
    TooFew,
    cka,
    cka_distance,
    cka_matrix,
    hellinger_matrix,
    mean_cka,
    permutation_test,
)
from jaxunlearn.audit import similarity as similarity_module


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, size=(40, 6))
    return x, np.tanh(x[:, :4] @ rng.normal(size=(4, 9))) + 0.5 * rng.normal(size=(40, 9))


def hsic_by_quadruples(K, L):
    """Unbiased HSIC as it is defined: averages over distinct indices."""
    n = len(K)
    pairs = [K[i, j] * L[i, j] for i, j in itertools.permutations(range(n), 2)]
    triples = [K[i, j] * L[i, q] for i, j, q in itertools.permutations(range(n), 3)]
    quadruples = [K[i, j] * L[q, r] for i, j, q, r in itertools.permutations(range(n), 4)]
    return np.mean(pairs) + np.mean(quadruples) - 2 * np.mean(triples)


def textbook(x, y, debiased):
    """By Gram matrices: double centring, or diagonals removed (Song et al., 2012)."""
    n = len(x)
    K, L = x @ x.T, y @ y.T
    if not debiased:
        H = np.eye(n) - 1 / n
        return np.trace(K @ H @ L @ H)
    K, L = (M - np.diag(np.diag(M)) for M in (K, L))
    one = np.ones(n)
    first = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def textbook_cka(x, y, debiased=True):
    own = textbook(x, x, debiased) * textbook(y, y, debiased)
    return textbook(x, y, debiased) / np.sqrt(own)


def test_debiased_cka_is_the_ratio_of_hsic_averaged_over_distinct_quadruples():
    rng = np.random.default_rng(1)
    x, y = rng.normal(2, 1, size=(7, 3)), rng.normal(-1, 2, size=(7, 2))
    K, L = x @ x.T, y @ y.T
    own = hsic_by_quadruples(K, K) * hsic_by_quadruples(L, L)
    assert cka(x, y) == pytest.approx(hsic_by_quadruples(K, L) / np.sqrt(own), abs=1e-12)
    assert textbook(x, y, True) == pytest.approx(hsic_by_quadruples(K, L), abs=1e-10)


@pytest.mark.parametrize("debiased", [True, False])
def test_the_feature_form_and_the_gram_form_are_the_textbook_value(pair, debiased):
    x, y = pair
    assert cka(x, y, debiased=debiased) == pytest.approx(textbook_cka(x, y, debiased), abs=1e-12)
    few = x[:5], y[:5]  # fewer examples than features: Gram matrices
    assert cka(*few, debiased=debiased) == pytest.approx(
        textbook_cka(*few, debiased=debiased), abs=1e-12
    )


def test_biased_in_place_of_debiased_would_be_noticed(pair):
    x, y = pair
    assert abs(cka(x, y, debiased=False) - cka(x, y)) > 0.05
    forgot_the_diagonal = np.trace((x - x.mean(0)) @ (x - x.mean(0)).T) > 0
    assert forgot_the_diagonal and cka(x, y) != pytest.approx(textbook_cka(x, y, False), abs=0.01)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_is_blind_to_rotation_scale_and_shift_and_not_to_a_general_map(pair, debiased):
    x, y = pair
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    value = cka(x, y, debiased=debiased)
    for same in (x @ turn, -7e-5 * x, x + 1000.0, 3 * x @ turn - 2):
        assert cka(same, y, debiased=debiased) == pytest.approx(value, abs=1e-9)
        assert cka(x, same, debiased=debiased) == pytest.approx(1, abs=1e-9)
    stretched = x * np.array([10, 1, 1, 1, 1, 0.1])[None, :]
    assert cka(x, stretched, debiased=debiased) < 0.9
    assert abs(cka(stretched, y, debiased=debiased) - value) > 0.01
    assert cka(x, y, debiased=debiased) == pytest.approx(cka(y, x, debiased=debiased), abs=1e-15)


def test_independent_gaussians_score_p_over_n_plus_p_biased_and_zero_debiased():
    rng = np.random.default_rng(0)
    n, p = 128, 512  # the ratio of 512 rows of 2048 features
    batches = rng.normal(size=(6, 2, n, p))
    published = np.mean([cka(x, y, debiased=False) for x, y in batches])  # the average over batches
    assert published == pytest.approx(p / (n + p), abs=0.01)
    assert np.mean([cka(x, y) for x, y in batches]) == pytest.approx(0, abs=0.03)
    small = [cka(x[:32], y[:32], debiased=False) for x, y in batches]
    assert np.mean(small) == pytest.approx(p / (32 + p), abs=0.01)  # another batch, another number


def test_the_debiased_numerator_is_zero_on_average_and_the_biased_one_is_not():
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(2000, 2, 6, 3))
    debiased = np.array([textbook(x, y, True) for x, y in draws])
    signs = np.array([cka(x, y) for x, y in draws])
    error = debiased.std() / np.sqrt(len(draws))
    assert abs(debiased.mean()) < 3.5 * error
    assert (np.sign(signs) == np.sign(debiased)).all()
    biased = np.array([textbook(x, y, False) for x, y in draws]) / 36
    assert biased.mean() > 30 * biased.std() / np.sqrt(len(draws))


def test_debiased_values_stay_within_plus_and_minus_one_and_do_go_below_zero():
    rng = np.random.default_rng(4)
    values = [cka(*rng.normal(size=(2, 4, 3))) for _ in range(300)]
    assert -1 <= min(values) < -0.9 and 0.9 < max(values) <= 1
    biased = [cka(*rng.normal(size=(2, 4, 3)), debiased=False) for _ in range(300)]
    assert min(biased) >= 0 and max(biased) <= 1


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("n", "d"), [(30, 4), (9, 20)])
def test_the_matrix_holds_the_value_of_every_pair_by_either_route(n, d, debiased, monkeypatch):
    x = np.random.default_rng(5).normal(1, 1, size=(5, n, d))
    expected = [[cka(a, b, debiased=debiased) for a in x] for b in x]
    np.testing.assert_allclose(cka_matrix(x, debiased=debiased), expected, atol=1e-12)
    unit, _ = similarity_module._normalise(x)
    gram = similarity_module._gram_products(unit, None)
    np.testing.assert_allclose(gram, similarity_module._cross_products(unit), atol=1e-14)
    taken = []
    for route in ("_gram_products", "_cross_products"):
        monkeypatch.setattr(
            similarity_module, route, lambda *a, route=route: taken.append(route) or gram
        )
    cka_matrix(x)
    assert taken == ["_gram_products" if d > n else "_cross_products"]  # the cheaper one


def test_the_matrix_is_the_same_for_any_chunk_and_nearly_so_in_single_precision():
    x = np.random.default_rng(6).normal(size=(4, 23, 40)).astype(np.float32)
    whole = cka_matrix(x)
    for chunk in (1, 7, 22, 23, 500):
        np.testing.assert_allclose(cka_matrix(x, chunk=chunk), whole, atol=1e-13)
    single = cka_matrix(x, dtype=np.float32)
    np.testing.assert_allclose(single, whole, atol=1e-5)
    assert (single != whole).any()


def test_the_matrix_is_symmetric_with_a_diagonal_of_one_and_more_axes_are_flattened():
    x = np.random.default_rng(7).normal(size=(3, 10, 2, 3))
    D = cka_matrix(x)
    np.testing.assert_array_equal(D, D.T)
    np.testing.assert_array_equal(np.diag(D), 1)
    np.testing.assert_array_equal(D, cka_matrix(x.reshape(3, 10, 6)))


def test_the_order_of_the_models_and_of_the_examples_does_not_matter():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(5, 20, 3))
    order, rows = rng.permutation(5), rng.permutation(20)
    np.testing.assert_allclose(
        cka_matrix(x[order][:, rows]), cka_matrix(x)[np.ix_(order, order)], atol=1e-12
    )
    unaligned = x.copy()
    unaligned[0] = unaligned[0][rows]  # rows of one model shuffled: another question
    assert abs(cka_matrix(unaligned)[0] - cka_matrix(x)[0]).max() > 0.05


def test_broken_and_collapsed_models_are_undefined_and_leave_the_others_alone():
    x = np.random.default_rng(9).normal(size=(5, 12, 3)).astype(np.float32)
    x[1, 4, 0] = np.nan
    x[3] = np.float32(0.1)  # constant
    D = cka_matrix(x)
    np.testing.assert_array_equal(D[np.ix_([0, 2, 4], [0, 2, 4])], cka_matrix(x[[0, 2, 4]]))
    assert np.isnan(D[[1, 3]]).all() and np.isnan(D[:, [1, 3]]).all()
    assert cka(x[0], x[1]) is None and cka(x[3], x[0]) is None
    distance = cka_distance(D)
    assert (np.diag(distance) == 0).all() and np.isnan(distance[1, [0, 2, 3, 4]]).all()
    assert cka_matrix(x[[1, 3]]).shape == (2, 2) and np.isnan(cka_matrix(x[[1, 3]])).all()


def test_a_spread_that_is_rounding_of_the_dtype_is_no_feature():
    rng = np.random.default_rng(10)
    noise = np.float32(5) + np.float32(3e-7) * rng.normal(size=(12, 3)).astype(np.float32)
    x = rng.normal(size=(12, 3))
    assert noise.std() > 0 and cka(noise, x) is None
    assert cka(noise.astype(np.float64), x) is not None  # the same numbers, meant


def test_equally_distant_examples_have_no_likeness_to_compare():
    x = np.random.default_rng(11).normal(size=(8, 3))
    assert cka(np.eye(8), x) is None
    assert np.isnan(cka_matrix(np.stack([np.eye(8), np.eye(8)[::-1]]))).all()
    assert cka(np.eye(8), np.eye(8), debiased=False) == pytest.approx(1)


def test_huge_and_tiny_features_do_not_overflow():
    x = np.random.default_rng(12).normal(size=(2, 12, 3))
    np.testing.assert_allclose(
        cka_matrix(x * np.array([1e200, 1e-200])[:, None, None]), cka_matrix(x), atol=1e-12
    )


def test_the_distance_is_euclidean_so_that_equal_features_are_at_zero():
    x = np.random.default_rng(13).normal(size=(6, 15, 4))
    x[5] = 2 * x[0] + 1
    D = cka_distance(cka_matrix(x))
    assert D[0, 5] < 1e-7 and D.max() <= np.sqrt(2)
    np.testing.assert_allclose(cka_distance([[1, -0.44], [-0.44, 1]]), [[0, 1.2], [1.2, 0]])
    centred = np.eye(6) - 1 / 6
    spectrum = np.linalg.eigvalsh(-centred @ D**2 @ centred)  # Schoenberg: positive semidefinite
    assert spectrum.min() > -1e-12
    way = np.array([0, 0.1, 0.2])[:, None, None]
    matrix = cka_matrix(x[:1] + way * (x[1:2] - x[:1]))  # three models on a line
    D, unrooted = cka_distance(matrix), 1 - matrix
    assert D[0, 2] < D[0, 1] + D[1, 2]
    assert unrooted[0, 2] > unrooted[0, 1] + unrooted[1, 2]  # the mutant without the root


def test_the_ceiling_is_the_mean_over_the_other_oracles_only():
    x = np.random.default_rng(14).normal(size=(5, 12, 3))
    D = cka_matrix(x)
    expected = [
        np.mean([D[i, j] for j in (1, 2, 4) if i != j]) for i in range(5)
    ]  # itself left out: 1 would raise it
    np.testing.assert_allclose(mean_cka(D, [1, 2, 4]), expected, atol=1e-15)
    assert mean_cka(D, [1, 2, 4])[1] < D[1, [1, 2, 4]].mean()
    D[2], D[:, 2] = np.nan, np.nan
    values = mean_cka(D, [1, 2, 4])
    assert np.isnan(values[2]) and values[0] == pytest.approx((D[0, 1] + D[0, 4]) / 2)
    assert np.isnan(mean_cka(D, [3])[3])


def test_features_that_kept_a_class_are_told_from_retrained_ones_whatever_their_basis():
    """Every model has its own rotation; the first eight know a direction that the rest do not."""

    def models(rng, known):
        signal = np.random.default_rng(0).normal(size=(60, 4))
        kept = np.repeat([1.0, 0.0], [known, 24 - known])[:, None, None] * [[1, 1, 1, 3]]
        x = signal * (np.array([1, 1, 1, 0]) + kept) + 0.5 * rng.normal(size=(24, 60, 4))
        return np.stack([m @ np.linalg.qr(rng.normal(size=(4, 4)))[0] for m in x])

    def p_value(x, measure):
        return permutation_test({"forget": measure(x)}, range(8), range(8, 24), seed=0).p_value

    x = models(np.random.default_rng(1), known=8)
    assert p_value(x, lambda x: cka_distance(cka_matrix(x))) == 0.001
    null = [
        p_value(models(np.random.default_rng(s), 0), lambda x: cka_distance(cka_matrix(x)))
        for s in range(2, 8)
    ]
    assert min(null) > 0.01
    assert hellinger_matrix(np.zeros((24, 3, 2))).max() == 0  # while their outputs may be equal


def test_bad_input_is_refused_with_the_reason():
    x = np.zeros((6, 2))
    with pytest.raises(TooFew, match=r"cka: 3 example\(s\); the debiased CKA needs at least 4"):
        cka(x[:3], x[:3])
    with pytest.raises(
        TooFew, match=r"cka_matrix: 1 example\(s\); the biased CKA needs at least 2"
    ):
        cka_matrix(x[None, :1], debiased=False)
    with pytest.raises(ValueError, match=r"same examples, got \(6, 2\) and \(5, 2\)"):
        cka(x, x[:5])
    with pytest.raises(ValueError, match=r"features of shape \(models, examples, d\)"):
        cka_matrix(x)
    with pytest.raises(ValueError, match="dtype float64 or float32, got int32"):
        cka_matrix(x[None], dtype=np.int32)
    with pytest.raises(ValueError, match=r"square matrix of CKA values, got \(6, 2\)"):
        cka_distance(x)
    with pytest.raises(TooFew, match="the group is empty"):
        mean_cka(np.eye(3), [])
    with pytest.raises(ValueError, match=r"must be in \[0, 3\), got 3 to 3"):
        mean_cka(np.eye(3), [3])
