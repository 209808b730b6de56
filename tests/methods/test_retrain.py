"""Retraining: bitwise what training without the forget set gives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.suite import cases, laws

KEY = jax.random.key(4)
TX = optax.adam(0.05)


def unlearn(case, epochs=2, key=KEY, tx=TX):
    return ju.retrain(tx, epochs=epochs).unlearn(case.model, case.params, case.request, key)


@pytest.mark.parametrize("make", [cases.dict_case, cases.statistics_case])
def test_retraining_has_the_bits_of_training_on_what_is_retained(make):
    case = make()
    trained = ju.train(case.model, TX, case.request.retain, key=KEY, epochs=2)
    laws.bits(unlearn(case).params, trained.params)


def test_the_bits_are_those_of_data_in_which_the_forgotten_never_were(case):
    rows = cases.columns()
    never = ju.data.in_memory({k: v[8:] for k, v in rows.items()}, 6)
    trained = ju.train(case.model, TX, never, key=KEY, epochs=2)
    laws.bits(unlearn(case).params, trained.params)


def test_one_step_fewer_or_another_seed_is_noticed(case):
    right = unlearn(case).params
    assert laws.different(right, unlearn(case, epochs=1).params)
    assert laws.different(right, unlearn(case, key=jax.random.key(5)).params)


def test_every_leaf_is_made_anew():
    case = cases.statistics_case()
    out = unlearn(case, epochs=0)
    fresh = case.model.init(jax.random.split(KEY)[0])
    laws.bits(out.params, fresh)


def test_the_old_params_and_the_forget_set_are_not_read(case):
    other = jax.tree.map(lambda p: p * 7, case.params)
    garbage = case.request.forget.replace(x=np.full((8, 4), 1e6, np.float32))
    request = case.request._replace(forget=garbage)
    out = ju.retrain(TX, epochs=2).unlearn(case.model, other, request, KEY)
    laws.bits(out.params, unlearn(case).params)


def test_running_statistics_are_those_of_the_retained_data_alone():
    case = cases.statistics_case()
    out = unlearn(case, epochs=30, tx=optax.sgd(0.0))
    kernel = out.params["params"]["dense"]["kernel"][...]
    bias = out.params["params"]["dense"]["bias"][...]
    inputs = np.asarray(case.request.retain["x"]) @ np.asarray(kernel) + np.asarray(bias)
    mean = np.asarray(out.params["batch_stats"]["norm"]["mean"][...])
    # 90 steps of momentum 0.99 from zero, batches of 6 drawn from these rows
    np.testing.assert_allclose(mean, inputs.mean(axis=0) * (1 - 0.99**90), atol=0.1)


def test_the_guarantee_is_the_strongest():
    assert ju.retrain(TX, epochs=1).guarantee == "exact-bitwise"


def test_negative_epochs_are_refused():
    with pytest.raises(ValueError, match="retrain: epochs must be >= 0, got -1"):
        ju.retrain(TX, epochs=-1)


def test_an_oracle_can_be_retrained_in_many_copies_at_once(case):
    keys = jax.random.split(KEY, 3)

    def one(key):
        return ju.retrain(TX, epochs=2).unlearn(case.model, case.params, case.request, key).params

    many = jax.jit(ju.ensemble(one, how="vmap"))(keys)
    for i in range(3):
        laws.close(jax.tree.map(lambda p: p[i], many), one(keys[i]))  # noqa: B023
    chex.assert_tree_all_finite(many)
    assert jnp.std(many["head"]["w"], axis=0).min() > 0
