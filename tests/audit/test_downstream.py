"""The classes that a downstream data set resembles: loops, ties, planted resemblance."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, closest_classes, nearest_centroids


def test_classes_are_ranked_by_how_often_they_are_predicted():
    predictions = np.repeat([4, 1, 0, 2], [3, 9, 5, 5])
    np.testing.assert_array_equal(
        closest_classes(predictions, num_classes=6, count=4), [1, 0, 2, 4]
    )
    shuffled = np.random.default_rng(0).permutation(predictions).reshape(2, 11)  # of two models
    np.testing.assert_array_equal(closest_classes(shuffled, num_classes=6, count=3), [1, 0, 2])
    np.testing.assert_array_equal(closest_classes([0], num_classes=3, count=3), [0, 1, 2])


def test_a_centroid_is_the_mean_direction_of_its_class():
    rng = np.random.default_rng(1)
    x, reference = rng.normal(size=(2, 30, 4)), 5 * rng.normal(size=(2, 50, 4))
    y = rng.choice([2, 3, 7], size=50)

    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    found = nearest_centroids(x, reference, y)
    for model in range(2):
        means = [unit(reference[model])[y == c].mean(0) for c in (2, 3, 7)]
        expected = [
            (2, 3, 7)[np.argmax([v @ m / np.linalg.norm(m) for m in means])] for v in x[model]
        ]
        np.testing.assert_array_equal(found[model], expected)
    plain_means = np.stack([reference[0][y == c].mean(0) for c in (2, 3, 7)])
    undirected = np.array([2, 3, 7])[(x[0] @ plain_means.T).argmax(1)]
    assert (undirected != found[0]).any()  # lengths left in would be noticed


def test_a_planted_resemblance_is_found_by_centroids():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(10, 16))
    y = np.repeat(np.arange(10), 20)
    reference = centres[y] + 0.5 * rng.normal(size=(1, 200, 16))
    downstream = centres[rng.choice([3, 8], size=90, p=[0.7, 0.3])]
    downstream = downstream + 0.5 * rng.normal(size=(1, 90, 16))
    found = nearest_centroids(downstream, reference, y)
    np.testing.assert_array_equal(closest_classes(found, num_classes=10, count=2), [3, 8])


def test_a_broken_model_is_placed_nowhere():
    x = np.ones((2, 3, 2))
    x[1, 0, 0] = np.nan
    found = nearest_centroids(x, np.ones((2, 2, 2)), [0, 1])
    np.testing.assert_array_equal(found, [[0, 0, 0], [-1, -1, -1]])


def test_bad_input_is_refused():
    with pytest.raises(TooFew, match="no prediction to rank"):
        closest_classes([], num_classes=3, count=1)
    with pytest.raises(ValueError, match=r"integers in \[0, 3\), got int64 from -1 to 2"):
        closest_classes(np.array([-1, 2]), num_classes=3, count=1)
    with pytest.raises(ValueError, match=r"count in \[1, 3\], got 4"):
        closest_classes([0], num_classes=3, count=4)
    with pytest.raises(TooFew, match="the reference has no example"):
        nearest_centroids(np.ones((1, 3, 2)), np.ones((1, 0, 2)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"same width, got \(1, 3, 2\) and \(1, 3, 4\)"):
        nearest_centroids(np.ones((1, 3, 2)), np.ones((1, 3, 4)), [0, 1, 2])
