"""The bound from the dual: true everywhere, tight at the optimum, and of the right constants."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.data import low_rank_ratings
from jaxunlearn.factorisation import optimality as module
from jaxunlearn.methods.exact.als import als

R = low_rank_ratings(users=14, items=11, rank=2, density=0.5, noise=0.2, seed=3)
COUNTS = dataclasses.replace(R, value=np.ones(len(R), np.float32))
STRONG = {  # so strong that the optimum has a rank below 6
    "explicit": {"regularisation": 2.5},
    "scaled": {"regularisation": 1.0, "exponent": 0.5},
    "biases": {"regularisation": 2.5, "biases": True},
    "implicit": {"regularisation": 3.0, "feedback": "implicit", "unobserved": 0.5},
    "ials": {"regularisation": 0.6, "feedback": "ials", "unobserved": 0.3},
}


def fitted(name, seed=0, sweeps=400, rank=6):
    data = COUNTS if name in ("implicit", "ials") else R
    learner = als(rank=rank, dtype=np.float64, **STRONG[name])
    state, _ = learner.fit(learner.init(data, jax.random.key(seed)), sweeps=sweeps, tolerance=1e-9)
    return learner, state, data


@pytest.mark.parametrize("name", STRONG)
def test_at_the_optimum_the_gap_closes_and_every_start_ends_there(x64, name):
    learner, state, data = fitted(name)
    found = learner.optimality(state)
    assert found.ratio == pytest.approx(1, abs=1e-4) or found.ratio < 1
    assert 0 <= found.gap < 1e-5 * found.objective
    assert found.objective == pytest.approx(float(learner.objective(state)), rel=1e-10)
    _, other, _ = fitted(name, seed=5)
    apart = learner.predict(other, data.user, data.item) - learner.predict(
        state, data.user, data.item
    )
    bound = found.distance + learner.optimality(other).distance
    assert float(np.sqrt(np.mean(np.asarray(apart) ** 2))) <= bound + 1e-9


@pytest.mark.parametrize("name", STRONG)
def test_away_from_the_optimum_the_bound_still_holds(x64, name):
    """Against the optimum itself; a bound of half the size would be broken."""
    learner, best, data = fitted(name)
    learner, early, _ = fitted(name, seed=1, sweeps=3)
    found, lowest = learner.optimality(early), float(learner.objective(best))
    assert found.bound <= lowest * (1 + 1e-9) < found.objective
    apart = learner.predict(early, data.user, data.item) - learner.predict(
        best, data.user, data.item
    )
    actual = float(np.sqrt(np.mean(np.asarray(apart) ** 2)))
    assert 0 < actual <= found.distance


def test_a_rank_that_is_too_small_is_noticed(x64):
    learner, state, _ = fitted("explicit", rank=1)
    found = learner.optimality(state)
    assert found.ratio > 1.05 and found.distance > 0.01


def test_the_deleted_are_no_part_of_it(x64):
    learner, state, data = fitted("explicit")
    after, _ = learner.forget(state, users=[2], accelerate=False)
    alone = als(rank=6, dtype=np.float64, **STRONG["explicit"])
    kept = data.without(np.flatnonzero(data.user == 2))
    fresh = alone.init(kept, jax.random.key(0))._replace(user=after.user, item=after.item)
    one, other = learner.optimality(after), alone.optimality(fresh)
    np.testing.assert_allclose(one[:3], other[:3], rtol=1e-9)
    empty, _ = learner.forget(state, users=np.arange(data.users), mode="rows")
    assert learner.optimality(empty) == (0, 0, 0, 0, 0)


def test_singular_values_by_iteration_are_those_of_the_dense_matrix(x64, monkeypatch):
    learner, state, _ = fitted("ials", sweeps=3)
    dense = learner.optimality(state)
    monkeypatch.setattr(module, "_DENSE", 0)
    assert learner.optimality(state).ratio == pytest.approx(dense.ratio, rel=1e-5)


def test_without_regularisation_there_is_no_bound(x64):
    learner = als(rank=2, regularisation=0.0, dtype=np.float64)
    with pytest.raises(ValueError, match="without regularisation no bound holds"):
        learner.optimality(learner.init(R, jax.random.key(0)))
