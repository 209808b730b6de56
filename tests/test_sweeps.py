"""Sweeps: every point is what the method gives alone, and as few programs as there can be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import presets, sweeps
from jaxunlearn.sweeps import grid, sweep
from tests.suite import cases, laws


@pytest.fixture(scope="module")
def problem():
    case = cases.dict_case()
    keys = jax.random.split(jax.random.key(1), 2)
    params = jax.tree.map(lambda p: jnp.stack([p, p * 1.1]), case.params)
    return case, params, keys


def alone(method, problem, n):
    case, params, keys = problem
    one = jax.tree.map(lambda p: p[n], params)
    return method.unlearn(case.model, one, case.request, keys[n]).params


def neggrad(rate, alpha, epochs):
    return ju.neggrad_plus(optax.sgd(rate), alpha=alpha, epochs=epochs)


POINTS = grid(rate=[0.01, 0.1], alpha=[0.5, 0.9], epochs=[1])


@pytest.fixture(scope="module")
def swept(problem):
    case, params, keys = problem
    return sweep(neggrad, POINTS, case.model, params, case.request, keys)


@pytest.mark.parametrize("place", [0, 3])
def test_a_point_of_a_sweep_is_what_the_method_gives_alone(place, swept, problem):
    single = alone(neggrad(**POINTS[place]), problem, 1)
    laws.close(jax.tree.map(lambda p: p[1], swept.params[place]), single)


def test_points_differ_by_their_settings_and_numbers_are_carried(swept):
    assert swept.carried == ("rate", "alpha")
    assert swept.points == POINTS
    heads = [np.float32(p["head"]["w"]) for p in swept.params]
    assert len({h.tobytes() for h in heads}) == len(POINTS)
    assert all(second > 0 for second in swept.seconds)


def test_points_that_do_not_fit_at_once_are_run_in_turn(swept, problem, monkeypatch):
    case, params, keys = problem
    monkeypatch.setattr(sweeps, "_MODELS_AT_ONCE", 6)  # three points of two models, then one
    parts = sweep(neggrad, POINTS, case.model, params, case.request, keys)
    for own, other in zip(parts.params, swept.params, strict=True):
        laws.close(own, other)


def test_what_a_builder_must_know_is_a_program_of_its_own(problem):
    case, params, keys = problem
    seen = []

    def build(rate, strength):
        seen.append(strength)
        if strength > 0.2:  # asks for the value: cannot be carried
            return ju.finetune(optax.sgd(rate), epochs=1)
        return ju.finetune(optax.sgd(0.0 * rate), epochs=1)

    found = sweep(
        build, grid(rate=[0.1], strength=[0.1, 0.3]), case.model, params, case.request, keys
    )
    assert found.carried == ()
    assert {s for s in seen if isinstance(s, float)} == {0.1, 0.3}
    still, moved = (p["body"]["w"] for p in found.params)
    np.testing.assert_array_equal(still, params["body"]["w"])
    assert not np.array_equal(moved, still)


def test_presets_can_be_swept_by_name(problem):
    case, params, keys = problem

    def build(**changes):
        return presets.build("neggrad_plus", changes, "class", presets.Recipe(epochs=1), 3)

    points = grid(learning_rate=[1e-3, 1e-1])
    found = sweep(build, points, case.model, params, case.request, keys)
    assert found.carried == ("learning_rate",)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "at least one point"),
        ([{"rate": 1.0}, {"alpha": 1.0}], r"the same arguments, got \['rate'\] and \['alpha'\]"),
    ],
)
def test_points_that_are_none_are_refused(points, message, problem):
    case, params, keys = problem
    with pytest.raises(ValueError, match=message):
        sweep(neggrad, points, case.model, params, case.request, keys)


def test_an_axis_without_values_is_refused():
    with pytest.raises(ValueError, match=r"none for \['alpha'\]"):
        grid(alpha=[], epochs=[1])


def test_a_stream_is_refused(problem):
    case, params, keys = problem
    request = case.request._replace(forget=list(case.request.forget))
    with pytest.raises(TypeError, match="in-memory data, got a stream"):
        sweep(neggrad, POINTS, case.model, params, request, keys)
