"""The adapter to a deep model: its head is ridge on frozen features, and nothing else moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import jaxunlearn as ju
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact.acu import acu_state
from tests.suite import cases, laws

KEY = jax.random.key(0)


def run(case, request=None, **options):
    method = ju.acu(**({"gamma": 0.5} | options))
    return method.unlearn(case.model, case.params, request or case.request, KEY)


def only_forget(case):
    return ju.Request(case.request.forget)


@pytest.fixture(scope="module")
def whole(single):
    return ju.data.concatenate(*single.request[:2])


@pytest.fixture(scope="module")
def stored(single, whole):
    return acu_state(single.model, single.params, whole, per_class=True)


def expected(data, weight=None, gamma=0.5):
    """(W, b) by scikit-learn, the bias penalised as the weight of a feature of ones."""
    x, y = np.asarray(data["x"], np.float64), np.eye(3)[np.asarray(data["y"])]
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return Ridge(alpha=gamma, fit_intercept=False).fit(x, y, sample_weight=weight).coef_.T


def head(params):
    (w,), b = params
    return np.concatenate([w, b[None]])


def test_the_head_is_ridge_on_the_retained_features(single):
    out = run(single)
    np.testing.assert_allclose(head(out.params), expected(single.request.retain), atol=1e-6)
    assert float(out.info.rows) == 16 and int(out.info.status) == Solved.CONVERGED
    assert float(out.info.residual) < 1e-6 and float(out.info.mismatch) < 1e-6


def test_in_double_precision_it_is_exact_to_1e_10(x64):
    data = {
        k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in cases.columns().items()
    }
    data = ju.data.in_memory(data, 32)
    made = cases.tuple_case()
    params = jax.tree.map(lambda p: p.astype(jnp.float64), made.params)
    request = ju.Request(data.take(np.arange(8)), data.take(np.arange(8, 24)))
    state = acu_state(made.model, params, data)
    for options in ({}, {"state": state}):
        out = ju.acu(gamma=0.5, **options).unlearn(made.model, params, request, KEY)
        np.testing.assert_allclose(
            head(out.params), expected(request.retain), rtol=1e-10, atol=1e-10
        )


def test_a_stored_state_stands_in_for_the_retained_data(single, stored):
    method = ju.acu(gamma=0.5, state=stored)
    assert method.needs == {"forget", "labels", "features"} and method.guarantee == "empirical"
    out = run(single, only_forget(single), state=stored)
    np.testing.assert_allclose(head(out.params), expected(single.request.retain), atol=1e-6)
    np.testing.assert_array_equal(head(out.params)[:, 0], 0)  # class 0 is what is forgotten


def test_requests_one_after_another_are_one(single, stored):
    forget = single.request.forget
    first = run(single, ju.Request(forget.take(np.arange(3))), state=stored)
    second = run(single, ju.Request(forget.take(np.arange(3, 8))), state=first.info.state)
    once = run(single, only_forget(single), state=stored)
    laws.close(second.params, once.params)
    with pytest.raises(ValueError, match="acu: the head is INDEFINITE"):
        run(single, ju.Request(forget.take(np.arange(3))), state=first.info.state)  # twice


def test_forgetting_everything_leaves_a_head_of_zeros(single, stored, whole):
    out = run(single, ju.Request(whole), state=stored)
    np.testing.assert_array_equal(head(out.params), 0)


def test_balanced_classes_weigh_the_same(single, stored):
    y = np.asarray(single.request.retain["y"])
    some = single.request.retain.take(np.flatnonzero((y == 1) | (np.arange(16) > 12)))
    forget = single.request._replace(retain=some)
    count = np.bincount(some["y"], minlength=3)
    omega = (count > 0) / np.maximum(count, 1)
    omega = omega / omega[omega > 0].mean()
    out = run(single, forget, balanced=True)
    np.testing.assert_allclose(
        head(out.params), expected(some, omega[np.asarray(some["y"])]), atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"balanced needs a Gram of each class.*acu_state\(per_class=True"
    ):
        ju.acu(balanced=True, state=acu_state(single.model, single.params, some))
    run(single, only_forget(single), state=stored, balanced=True)


def test_everything_but_the_head_keeps_its_bits(case):
    out = run(case)
    laws.bits(out.params["body"], case.params["body"])
    assert laws.different(out.params["head"], case.params["head"])
    assert out.params["head"]["b"].dtype == jnp.bfloat16


def test_the_head_is_found_by_shape_or_by_name(case):
    laws.bits(run(case, head="head").params, run(case).params)
    with pytest.raises(ValueError, match=r"one leaf \(6, 3\).*found 0 and 0 with head='body'"):
        run(case, head="body")
    twin = case.params | {"other": {"w": case.params["head"]["w"]}}
    with pytest.raises(ValueError, match=r"found 2 and 1 with head=None.*\['other'\]\['w'\]"):
        ju.acu().unlearn(case.model, twin, case.request, KEY)


def test_outputs_that_are_not_a_linear_head_of_the_features_are_refused(single):
    bent = dataclasses.replace(
        single.model, outputs=lambda p, b: jnp.tanh(single.model.outputs(p, b))
    )
    with pytest.raises(ValueError, match=r"the outputs are not features W \+ b .*head= names"):
        ju.acu().unlearn(bent, single.params, single.request, KEY)
    out = jax.jit(ju.acu().unlearn)(bent, single.params, single.request, KEY)
    assert int(out.info.status) == Solved.FOREIGN
    laws.bits(out.params, single.params)


def test_a_state_of_another_head_or_of_other_rows_is_refused(single, case, stored):
    with pytest.raises(ValueError, match="the state is of 5 features and 3 classes, .* reads 7"):
        run(case, only_forget(case), state=stored)
    foreign = ju.data.in_memory({"x": 99 * np.ones((1, 4), np.float32), "y": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match="the head is INDEFINITE.*made of other rows"):
        run(single, ju.Request(foreign), state=stored)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"tolerance": 0.0}])
def test_a_constant_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="acu: expected gamma > 0 and tolerance > 0"):
        ju.acu(**options)


def test_a_model_without_features_is_refused(single):
    bare = dataclasses.replace(single.model, features=None)
    with pytest.raises(ValueError, match="acu_state needs model.features"):
        acu_state(bare, single.params, single.request.retain)
    with pytest.raises(ValueError, match="acu needs model.features"):
        ju.acu().unlearn(bare, single.params, single.request, KEY)


def test_outputs_with_positions_are_refused(single):
    deep = dataclasses.replace(
        single.model,
        outputs=lambda p, b: single.model.outputs(p, b)[:, None],
        loss=lambda p, b: single.model.loss(p, b),
    )
    data = single.request.retain
    with pytest.raises(ValueError, match=r"expected features \(n, d\) and outputs \(n, C\), got"):
        acu_state(deep, single.params, data)
