"""k nearest neighbours by cosine: scikit-learn, a loop, ties, chunks, edits of the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import from_nnx
from jaxunlearn.audit import (
    TooFew,
    cka_matrix,
    fit_probe,
    knn_accuracy,
    knn_predictions,
    membership_probe,
    probe_logits,
)
from jaxunlearn.networks import MLP


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    train_y, test_y = rng.integers(0, 4, 60), rng.integers(0, 4, 25)
    centres = rng.normal(size=(3, 4, 6))
    train = centres[:, train_y] + rng.normal(size=(3, 60, 6))
    test = centres[:, test_y] + rng.normal(size=(3, 25, 6))
    return train, train_y, test, test_y


def loop_predictions(train, labels, test, k):
    """Vote by vote; the smallest label wins a tie."""
    found = []
    for x in test:
        near = [x @ t / np.linalg.norm(x) / np.linalg.norm(t) for t in train]
        held = labels[np.argsort(-np.array(near), kind="stable")[:k]].tolist()
        found.append(min(set(held), key=lambda c: (-held.count(c), c)))
    return np.array(found)


@pytest.mark.parametrize("k", [1, 5])
def test_predictions_equal_scikit_learn_and_the_loop(examples, k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, y, test, _ = examples
    found = knn_predictions(train, y, test, k=k)
    for model in range(3):
        reference = neighbors.KNeighborsClassifier(k, metric="cosine").fit(train[model], y)
        np.testing.assert_array_equal(found[model], reference.predict(test[model]))
        np.testing.assert_array_equal(
            found[model], loop_predictions(train[model], y, test[model], k)
        )
    euclidean = neighbors.KNeighborsClassifier(k).fit(train[0], y).predict(test[0])
    assert (euclidean != found[0]).any()  # another metric would be noticed


def test_accuracy_is_the_share_of_right_votes_for_every_model(examples):
    train, y, test, test_y = examples
    accuracy = knn_accuracy(train, y, test, test_y)
    models = zip(train, test, strict=True)
    expected = [(loop_predictions(a, y, b, 5) == test_y).mean() for a, b in models]
    np.testing.assert_allclose(accuracy, expected)
    assert len(set(expected)) > 1  # models are not mixed up
    assert (knn_accuracy(train, y, test, test_y, k=1) != accuracy).any()


def test_one_neighbour_on_the_training_examples_themselves_is_always_right(examples):
    train, y, _, _ = examples
    np.testing.assert_array_equal(knn_accuracy(train, y, train, y, k=1), 1)
    assert (knn_accuracy(train, y, train, y, k=5) < 1).all()
    assert (knn_accuracy(train, y, train[:, ::-1], y, k=1) < 1).all()  # swapped rows are noticed


def test_only_directions_count(examples):
    train, y, test, _ = examples
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    lengths = rng.uniform(0.01, 100, size=(3, 60, 1))
    found = knn_predictions(train, y, test)
    np.testing.assert_array_equal(knn_predictions(train * lengths @ turn, y, test @ turn), found)
    assert (knn_predictions(train + 3, y, test + 3) != found).any()


def test_ties_go_to_the_smallest_label_and_to_the_earlier_rows():
    east, north = [1.0, 0.0], [0.0, 1.0]
    train = np.array([[east, east, north, north, east]])
    y = np.array([7, 2, 5, 5, 2])
    assert knn_predictions(train, y, [[[1.0, 0.0]]], k=2).item() == 2  # 7 and 2, one vote each
    assert knn_predictions(train, y, [[[1.0, 0.0]]], k=1).item() == 7  # equally near: row 0
    assert knn_predictions(train, y, [[[1.0, 1.0]]], k=5).item() == 2  # two of 2, two of 5
    assert knn_predictions(train, y, [[[0.0, 0.0]]], k=1).item() == 7  # no direction: row 0


def test_the_answer_is_identical_for_any_chunk_with_ties_and_duplicates_too(examples):
    train, y, test, _ = examples
    train = np.concatenate([train, train[:, :20]], axis=1)  # duplicates with other labels
    y = np.concatenate([y, (y[:20] + 1) % 4])
    test = np.concatenate([test, train[:, :10]], axis=1)
    whole = knn_predictions(train, y, test, k=4)
    for chunk in (1, 8, 34, 99):
        np.testing.assert_array_equal(knn_predictions(train, y, test, k=4, chunk=chunk), whole)


def test_a_broken_model_is_nan_and_a_label_never_seen_is_missed(examples):
    train, y, test, test_y = examples
    broken = train.copy()
    broken[1, 3, 0] = np.inf
    accuracy = knn_accuracy(broken, y, test, test_y)
    assert np.isnan(accuracy[1]) and np.isfinite(accuracy[[0, 2]]).all()
    assert (knn_predictions(broken, y, test)[1] == -1).all()
    np.testing.assert_array_equal(knn_accuracy(train, y, test, np.full(25, 99)), 0)


def test_nothing_to_predict_is_none_and_bad_input_is_refused(examples):
    train, y, test, test_y = examples
    assert knn_predictions(train, y, test[:, :0]) is None
    assert knn_accuracy(train, y, test[:, :0], test_y[:0]) is None
    with pytest.raises(TooFew, match=r"5 neighbours asked of 4 training example\(s\)"):
        knn_predictions(train[:, :4], y[:4], test)
    with pytest.raises(ValueError, match="expected k >= 1, got 0"):
        knn_predictions(train, y, test, k=0)
    with pytest.raises(ValueError, match=r"want labels of shape \(60,\), got \(59,\)"):
        knn_predictions(train, y[:59], test)
    with pytest.raises(ValueError, match="integers >= 0, got float64"):
        knn_predictions(train, y.astype(float), test)
    with pytest.raises(ValueError, match=r"same width, got \(3, 60, 6\) and \(2, 25, 6\)"):
        knn_predictions(train, y, test[:2])


def test_an_edit_of_the_head_alone_leaves_every_audit_of_features_exactly_unchanged():
    model = from_nnx(lambda rngs: MLP(5, 3, hidden=(8,), rngs=rngs))
    params = model.init(jax.random.key(0))

    def edited(part):
        def edit(path, leaf):
            return leaf * 0 - 1 if ("head" in jax.tree_util.keystr(path)) == part else leaf

        return jax.tree_util.tree_map_with_path(edit, params)

    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    y = np.arange(40) % 3
    stack = [params, edited(True)]
    features = np.stack([model.features(p, {"x": x}) for p in stack])
    outputs = [model.outputs(p, {"x": x}) for p in stack]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 0.1  # the behaviour did change

    assert cka_matrix(features)[0, 1] == pytest.approx(1, abs=1e-12)
    first, second = knn_predictions(features[:, :30], y[:30], features[:, 30:])
    np.testing.assert_array_equal(first, second)
    first, second = probe_logits(fit_probe(features, y), features)
    np.testing.assert_array_equal(first, second)
    probe = membership_probe(features[:, :20], features[:, 20:], rng=np.random.default_rng(0))
    assert probe.auc[0] == probe.auc[1] and probe.accuracy[0] == probe.accuracy[1]

    other = np.asarray(model.features(nnx.clone(edited(False)), {"x": x}))
    assert not np.allclose(other, features[0])  # an edit below the head is another matter
