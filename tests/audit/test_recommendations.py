"""How good recommendations are and how alike, against scikit-learn, sets, and numbers by hand."""

import numpy as np
import pytest
from sklearn import metrics

from jaxunlearn import audit


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_rmse_is_that_of_scikit_learn(rng):
    predictions, ratings = rng.normal(size=(3, 40)), rng.normal(size=40)
    expected = [metrics.root_mean_squared_error(ratings, p) for p in predictions]
    np.testing.assert_allclose(audit.rmse(predictions, ratings), expected, rtol=1e-14)


def test_the_explained_share_is_r2_where_the_variance_is_that_of_the_entries(rng):
    predictions, ratings = rng.normal(size=(3, 40)), rng.normal(size=40)
    expected = [metrics.r2_score(ratings, p) for p in predictions]
    found = audit.explained(predictions, ratings, variance=ratings.var())
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_who_always_rates_alike_is_still_explained_by_who_knows_it():
    always = np.full(5, 3.5)
    near = audit.explained([always + 0.1, always - 2], always, variance=1.0)
    np.testing.assert_allclose(near, [0.99, -3])


def test_pair_accuracy_is_the_area_under_the_curve_of_one_user(rng):
    own, others = rng.normal(size=(2, 6)), np.repeat(rng.normal(size=(2, 1, 30)), 6, axis=1)
    labels = np.repeat([1, 0], [6, 30])
    expected = [
        metrics.roc_auc_score(labels, np.append(o, t[0])) for o, t in zip(own, others, strict=True)
    ]
    np.testing.assert_allclose(audit.pair_accuracy(own, others), expected, rtol=1e-12)


def test_a_model_that_says_the_same_of_all_guesses():
    assert audit.pair_accuracy(np.zeros((1, 4)), np.zeros((1, 4, 9))) == 0.5


def test_recall_counts_what_the_places_can_hold():
    lists = [[[5, 3, 8, 1], [0, 1, 2, 3]], [[9, 9, 9, 9], [7, 6, 5, 4]]]
    held_out = [[3, 8, 77], [4]]
    # model 0: 1 of the first 2 places, of min(2, 3) = 2; none of 1. Model 1: none; none.
    np.testing.assert_allclose(audit.recall_at_k(lists, held_out, k=2), [0.25, 0])
    np.testing.assert_allclose(audit.recall_at_k(lists, held_out, k=4), [1 / 3, 0.5])


def test_ndcg_is_that_of_scikit_learn(rng):
    items, k = 30, 10
    scores = rng.permutation(items).astype(float)[None]
    gains = np.zeros((1, items))
    gains[0, rng.choice(items, 14, replace=False)] = 1
    lists = np.argsort(-scores, axis=1)[None, :, :k]
    found = audit.ndcg_at_k(lists, [np.flatnonzero(gains[0])], k=k)
    np.testing.assert_allclose(found, [metrics.ndcg_score(gains, scores, k=k)], rtol=1e-12)


def test_people_without_a_held_out_item_do_not_count():
    lists = [[[1, 2], [3, 4]]]
    for measure in (audit.recall_at_k, audit.ndcg_at_k):
        np.testing.assert_array_equal(
            measure(lists, [[1], []], k=2), measure([[lists[0][0]]], [[1]], k=2)
        )
        assert measure(lists, [[], []], k=2) is None


def test_an_empty_place_is_never_a_hit():
    assert audit.recall_at_k([[[-1, 4]]], [[4, -1]], k=2)[0] == 0.5
    assert audit.overlap_at_k([[[-1, 4]]], [[[-1, 5]]], k=2)[0] == 0


def test_overlap_is_the_size_of_the_common_set(rng):
    lists = np.stack([[rng.permutation(20)[:8] for _ in range(5)] for _ in range(3)])
    references = np.stack([[rng.permutation(20)[:8] for _ in range(5)] for _ in range(4)])
    expected = [
        np.mean([
            len(set(one[u, :6]) & set(other[u, :6])) / 6 for other in references for u in range(5)
        ])
        for one in lists
    ]  # fmt: skip
    np.testing.assert_allclose(audit.overlap_at_k(lists, references, k=6), expected, rtol=1e-12)


def test_overlap_knows_no_order_and_is_1_with_itself(rng):
    lists = np.stack([[rng.permutation(20)[:6] for _ in range(5)]])
    assert audit.overlap_at_k(lists, lists[..., ::-1], k=6) == 1


def test_short_lists_are_compared_in_the_length_of_the_longer():
    assert audit.overlap_at_k([[[1, -1, -1]]], [[[1, 2, -1]]], k=3)[0] == 0.5
    assert audit.overlap_at_k([[[-1, -1]]], [[[-1, -1]]], k=2)[0] == 1


def test_nothing_is_undefined_and_never_0():
    assert audit.rmse(np.zeros((2, 0)), []) is None
    assert audit.explained(np.zeros((2, 0)), [], variance=1.0) is None
    assert audit.explained(np.zeros((2, 1)), [1.0], variance=0.0) is None
    assert audit.pair_accuracy(np.zeros((2, 0)), np.zeros((2, 0, 3))) is None
    assert audit.pair_accuracy(np.zeros((2, 3)), np.zeros((2, 3, 0))) is None
    empty = np.zeros((2, 0, 5), int)
    assert audit.recall_at_k(empty, [], k=5) is None
    assert audit.overlap_at_k(empty, empty, k=5) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_the_model_with_a_bad_prediction_is_undefined(bad):
    predictions = np.array([[1.0, bad], [1.0, 2.0]])
    for found in (
        audit.rmse(predictions, [1.0, 2.0]),
        audit.explained(predictions, [1.0, 2.0], variance=1.0),
        audit.pair_accuracy(predictions, np.zeros((2, 2, 1))),
    ):
        assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audit.rmse([1.0], [1.0]), "rmse: expected predictions .models, entries."),
        (lambda: audit.explained([[1.0]], [1.0, 2.0], variance=1.0), r"got \(1, 1\) and \(2,\)"),
        (lambda: audit.explained([[1.0]], [1.0], variance=-1.0), "finite variance >= 0, got -1"),
        (lambda: audit.pair_accuracy([[1.0]], [[1.0]]), r"others \(models, entries, c\)"),
        (lambda: audit.recall_at_k([[[1, 2]]], [[1]], k=3), "at least k = 3 places"),
        (lambda: audit.recall_at_k([[[1, 2]]], [[1]], k=0), "at least k = 0 places"),
        (lambda: audit.recall_at_k([[[1, 2]]], [], k=1), "items of 1 people, got 0"),
        (lambda: audit.ndcg_at_k([[[1.0, 2.0]]], [[1]], k=1), "expected integer lists"),
        (lambda: audit.overlap_at_k([[[1]]], [[[1], [2]]], k=1), "for the same people"),
        (lambda: audit.overlap_at_k([[[1]]], np.zeros((0, 1, 1), int), k=1), "no reference"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
