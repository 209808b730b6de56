"""Copies of forgotten rows: none is missed, and none is made up."""

import os
import time

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxunlearn.data import Source, mnist, random_task


@pytest.mark.parametrize("dimensions", [(4, 3), (40,)])
def test_near_duplicates_are_those_that_all_pairs_of_distances_find(dimensions):
    rng = np.random.default_rng(5)
    centres = rng.random((40, *dimensions))
    radius = 0.05 * 0.3
    splits, start = [], 0
    for rows in (400, 0, 300):
        spread = rng.choice([0, 0.5, 1.0, 1.5, 3.0], (rows, *[1] * len(dimensions))) * radius
        x = centres[rng.integers(0, 40, rows)] + spread * rng.standard_normal((rows, *dimensions))
        splits.append(
            {
                "x": x.astype(np.float32),
                "y": rng.integers(0, 2, rows).astype(np.int32),
                "id": np.arange(start, start + rows, dtype=np.int32),
            }
        )
        start += rows
    source = Source("near", *splits, label_names={"y": ("a", "b")})
    task = random_task(source, 0.1, seed=0, duplicates="keep")
    found = task.near_duplicates()
    forget = task.columns("train", "forget")["x"].reshape(40, -1).astype(np.float64)
    for x, equal, near in (
        (task.columns("train", "retain")["x"], found.retain_equal, found.retain_near),
        (source.test["x"], found.test_equal, found.test_near),
    ):
        distance = cdist(x.reshape(len(x), -1).astype(np.float64), forget).min(axis=1)
        assert equal == (distance == 0).sum() > 0
        rms = distance / np.sqrt(forget.shape[1])
        assert near == ((distance > 0) & (rms <= found.radius)).sum() > 0
    assert found.radius == pytest.approx(0.05 * source.train["x"].std())
    strict = task.near_duplicates(tolerance=0)
    assert (strict.retain_near, strict.test_near) == (0, 0)
    assert (strict.retain_equal, strict.test_equal) == (found.retain_equal, found.test_equal)


@pytest.mark.slow
def test_searching_copies_among_sixty_thousand_images_takes_seconds():
    rng = np.random.default_rng(0)
    prototypes = rng.random((200, 28, 28), np.float32)
    x = prototypes[rng.integers(0, 200, 60_000)]
    x += 0.3 * rng.random(x.shape, np.float32)
    columns = {
        "x": x,
        "y": rng.integers(0, 10, 60_000).astype(np.int32),
        "id": np.arange(60_000, dtype=np.int32),
    }
    none = {name: column[:0] for name, column in columns.items()}
    source = Source("large", columns, none, none, label_names={"y": tuple("0123456789")})
    start = time.monotonic()
    task = random_task(source, 0.1, seed=0)
    found = task.near_duplicates()
    assert found.retain_equal == 0
    assert time.monotonic() - start < 60  # all pairs would take many minutes


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("JAXUNLEARN_DATA"), reason="JAXUNLEARN_DATA names no folder of data files"
)
def test_mnist_has_no_copies_that_a_random_task_would_leave_behind():
    task = random_task(mnist(validation=0), 0.1, seed=0)
    assert task.near_duplicates()[:4] == (0, 0, 0, 0)
