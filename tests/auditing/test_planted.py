"""Planted groups: what is changed in them, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import compare, data, presets
from jaxunlearn.auditing import planted

RECIPE = presets.Recipe(epochs=1, batch_size=256)


@pytest.fixture(scope="module")
def source():
    return data.thinned(data.digits(), 200)


@pytest.fixture(scope="module")
def made(source):
    task = data.class_task(source, 3)
    network = compare.network_of(source, RECIPE)
    originals = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    said = []
    groups = list(
        planted.planted(network, task, RECIPE, originals, seeds=2, seed=0, progress=said.append)
    )
    return task, network, originals, groups, said


def test_there_are_two_positives_and_one_negative_beside_the_original(made):
    groups = made[3]
    assert [(c.label, c.expected) for c in groups] == [
        ("last layer masked", "flagged"),
        ("half-contaminated oracle", "flagged"),
        ("oracle again", "not flagged"),
    ]
    assert all(jax.tree.leaves(c.params)[0].shape[0] == 2 for c in groups)
    assert len(made[4]) == 2


def test_the_mask_changes_one_logit_and_no_feature(made):
    task, network, originals, groups, _ = made
    batch = {"x": jnp.asarray(task.columns("test", "retain")["x"][:4])}
    before, after = (
        jax.vmap(network.outputs, in_axes=(0, None))(p, batch)
        for p in (originals, groups[0].params)
    )
    assert (after.argmax(-1) != 3).all()
    kept = np.delete(np.arange(10), 3)
    np.testing.assert_array_equal(before[..., kept], after[..., kept])
    np.testing.assert_allclose(after[..., 3] - before[..., 3], planted.MASK, rtol=1e-6)
    features = jax.vmap(network.features, in_axes=(0, None))
    np.testing.assert_array_equal(features(originals, batch), features(groups[0].params, batch))


def test_the_contaminated_oracle_is_trained_on_half_of_the_forget_rows(made, monkeypatch):
    task, network, originals, _, _ = made
    seen = {}
    monkeypatch.setattr(
        planted,
        "train_rows",
        lambda network, task, rows, recipe, name, count, *rest: (seen.update(rows=rows), None),
    )
    monkeypatch.setattr(planted, "train_group", lambda *a: (None, None))
    list(planted.planted(network, task, RECIPE, originals, seeds=2, seed=0))
    forget, retain = task.train_parts["forget"], task.train_parts["retain"]
    assert np.isin(retain, seen["rows"]).all()
    assert np.isin(seen["rows"], forget).sum() == forget.size // 2
    assert np.unique(seen["rows"]).size == retain.size + forget.size // 2


def test_the_negative_is_not_the_oracles_themselves(made):
    task, network, _, groups, _ = made
    oracles, _ = compare.train_group(network, task, "retain", RECIPE, "oracle", 2, 0, None)
    pairs = zip(jax.tree.leaves(oracles), jax.tree.leaves(groups[-1].params), strict=True)
    assert all((a != b).any() for a, b in pairs if a.ndim > 2)


def test_rows_are_trained_as_the_part_that_holds_them_is(source):
    task = data.class_task(source, 3)
    network = compare.network_of(source, RECIPE)
    part, _ = compare.train_group(network, task, "retain", RECIPE, "a", 2, 0, None)
    rows = task.train_parts["retain"]
    same, _ = compare.train_rows(network, task, rows, RECIPE, "a", 2, 0, None)
    jax.tree.map(np.testing.assert_array_equal, part, same)


def test_a_request_of_rows_has_no_class_to_mask(source):
    task = data.random_task(source, 0.1, seed=0)
    assert planted.forgotten_classes(task).size == 0
    network = compare.network_of(source, RECIPE)
    groups = planted.planted(network, task, RECIPE, None, seeds=2, seed=0)
    assert next(groups).label == "half-contaminated oracle"


def test_a_network_without_a_head_cannot_be_masked():
    with pytest.raises(ValueError, match="exactly one leaf 'bias' of a layer 'head', found 0"):
        planted.mask_classes({"w": jnp.ones((2, 3))}, np.array([1]))
