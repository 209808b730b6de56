"""Places of models become distances between models, one matrix for each audit."""

import numpy as np
import pytest

from jaxunlearn import audit
from jaxunlearn.auditing import suite
from jaxunlearn.auditing.measures import CURVES
from tests.auditing import made_up


@pytest.fixture(scope="module")
def groups():
    return made_up.measured(4, 0), made_up.measured(5, 1, far=1.0)


def test_every_audit_that_was_measured_has_a_matrix_over_all_models(groups):
    found = suite.distances(groups)
    absent = {"outputs_adjacent", "outputs_remote"}  # the task has no such parts
    assert list(found) == [key for key in suite.AUDITS if key not in absent]
    for D in found.values():
        assert D.shape == (9, 9) and np.isfinite(D).all()
        np.testing.assert_allclose(D, D.T, atol=1e-12)
        assert (np.diagonal(D) == 0).all() and (D >= 0).all()
        assert D[:4, 4:].min() > D[:4, :4].max()  # the two groups are far apart


def test_each_family_is_placed_by_its_own_numbers(groups):
    found = suite.distances(groups)
    both = np.concatenate([g.places["probes"] for g in groups])
    np.testing.assert_array_equal(found["probes"], audit.vector_distances(both))
    both = np.concatenate([g.logits["retain"] for g in groups])
    np.testing.assert_array_equal(found["outputs_retain"], audit.hellinger_matrix(both))
    both = np.concatenate([g.features["forget"] for g in groups])
    np.testing.assert_array_equal(
        found["features_forget"], audit.cka_distance(audit.cka_matrix(both))
    )


def test_an_audit_that_one_group_lacks_is_absent(groups):
    first, second = groups
    fewer = second._replace(
        places={k: v for k, v in second.places.items() if k != "steering"}, features={}
    )
    lost = suite.distances([first, second]).keys() - suite.distances([first, fewer]).keys()
    assert lost == {"steering", "features_forget", "features_test"}


def test_no_relearning_counts_and_too_few_rows_are_absent_not_zero(groups):
    first, second = (
        g._replace(
            places={**g.places, "few_examples": np.zeros((len(g.places["probes"]), 0))},
            features={"forget": g.features["forget"][:, :3], "test": g.features["test"]},
        )
        for g in groups
    )
    found = suite.distances([first, second])
    assert "few_examples" not in found and "features_forget" not in found
    assert "features_test" in found


def test_a_model_without_finite_outputs_has_no_distance_to_others(groups):
    first, second = groups
    broken = first._replace(logits={p: z.copy() for p, z in first.logits.items()})
    broken.logits["forget"][2] = np.nan
    D = suite.distances([broken, second])["outputs_forget"]
    assert np.isnan(D[2, [0, 1, *range(3, 9)]]).all()
    assert np.isfinite(np.delete(np.delete(D, 2, 0), 2, 1)).all()


def test_dead_features_are_alike_and_as_far_as_can_be_from_living_ones(groups):
    first, second = groups
    dead = first._replace(features={p: f.copy() for p, f in first.features.items()})
    dead.features["forget"][[0, 3]] = 0.0
    D = suite.distances([dead, second])["features_forget"]
    assert D[0, 3] == 0 and np.isfinite(D).all()
    assert (np.delete(D[0], [0, 3]) == np.sqrt(2)).all()
    alive = suite.distances(groups)["features_forget"]
    kept = np.ix_([1, 2, *range(4, 9)], [1, 2, *range(4, 9)])
    np.testing.assert_allclose(D[kept], alive[kept], atol=1e-12)


def test_audits_without_a_number_for_some_model_are_named(groups):
    first, second = groups
    assert suite.undefined(first) == set()
    dead = first._replace(
        features={"forget": first.features["forget"], "test": 0 * first.features["test"]},
        places=first.places | {"probes": first.places["probes"] + np.array([[np.nan], *[[0]] * 3])},
    )
    assert suite.undefined(dead) == {"probes", "features_test"}


def test_audits_are_told_in_words_and_durable_ones_have_curves():
    told = suite.described(["probes", "pruning"])
    assert told["probes"]["title"] == "Probes" and told["pruning"]["family"] == "durability"
    assert all(each.title and each.words for each in suite.AUDITS.values())
    assert set(suite.DURABLE) == set(made_up.CURVES)
    assert set(suite.DURABLE) <= set(CURVES)
