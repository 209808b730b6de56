"""Deliberately broken methods, and the law that catches each of them.

A law that no mutant breaks proves nothing; so does a mutant that is caught for another reason,
which is why each is first seen to obey the law once it is repaired.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.method import EMPIRICAL, Method, Unlearned, method
from tests.suite import cases, laws

CAUGHT = (AssertionError, ju.AccessError, TypeError)


@pytest.fixture(scope="module")
def case():
    return cases.dict_case()


def shrink(params, factor=0.5):
    return jax.tree.map(lambda p: p * jnp.asarray(factor, p.dtype), params)


def bare(unlearn, needs=("forget",)):
    """A Method without the boundary: nothing but the law stands in its way."""
    return Method(unlearn, frozenset(needs), EMPIRICAL, "mutant")


def honest(model, params, request, key):
    return Unlearned(model, shrink(params), ())


def peeks(model, params, request, key):
    next(iter(request.retain))
    return honest(model, params, request, key)


def reads_labels(model, params, request, key):
    return Unlearned(model, shrink(params, 1 / (1 + request.forget["y"].mean())), ())


def reads_labels_of_a_batch(model, params, request, key):
    next(iter(request.forget))["y"]
    return honest(model, params, request, key)


def uses_features(model, params, request, key):
    model.features(params, {"x": jnp.ones((1, 4))})
    return honest(model, params, request, key)


def draws(model, params, request, key):
    return Unlearned(model, shrink(params, jax.random.uniform(key)), ())


def casts(model, params, request, key):
    return Unlearned(model, jax.tree.map(lambda p: p.astype(jnp.float32) / 2, params), ())


def drops_a_leaf(model, params, request, key):
    return Unlearned(model, {"body": params["body"]}, ())


def mutates(model, params, request, key):
    params["head"]["b"] = params["head"]["b"] / 2
    return Unlearned(model, params, ())


class Clock:
    ticks = 0


def remembers(model, params, request, key):
    Clock.ticks += 1
    return Unlearned(model, shrink(params, 1 / (1 + Clock.ticks)), ())


def retraces(model, params, request, key):
    jax.jit(lambda p: model.outputs(p, {"x": jnp.ones((1, 4))}))(params)
    return honest(model, params, request, key)


def always_moves(model, params, request, key):
    return Unlearned(model, shrink(params), ())


def does_nothing(model, params, request, key):
    return Unlearned(model, params, ())


MUTANTS = {
    "reads retain, behind the boundary": (
        laws.reads_only_what_it_needs, method(peeks, needs=["forget"], name="peeks")),
    "reads retain, bare": (laws.reads_only_what_it_needs, bare(peeks)),
    "reads labels": (
        laws.reads_only_what_it_needs, method(reads_labels, needs=["forget"], name="reads")),
    "reads labels of a batch": (
        laws.reads_only_what_it_needs,
        method(reads_labels_of_a_batch, needs=["forget"], name="reads")),
    "uses features": (
        laws.reads_only_what_it_needs, method(uses_features, needs=["forget"], name="uses")),
    "draws without needing the key": (
        laws.obeys_its_key, method(draws, needs=["forget"], name="draws")),
    "draws without needing the key, bare": (laws.obeys_its_key, bare(draws)),
    "ignores its key": (
        laws.obeys_its_key, method(honest, needs=["forget", "key"], name="ignores")),
    "remembers": (laws.obeys_its_key, bare(remembers)),
    "casts a leaf, behind the boundary": (
        laws.keeps_tree_shapes_and_dtypes, method(casts, needs=["forget"], name="casts")),
    "casts a leaf, bare": (laws.keeps_tree_shapes_and_dtypes, bare(casts)),
    "drops a leaf, behind the boundary": (
        laws.keeps_tree_shapes_and_dtypes, method(drops_a_leaf, needs=["forget"], name="drops")),
    "drops a leaf, bare": (laws.keeps_tree_shapes_and_dtypes, bare(drops_a_leaf)),
    "retraces": (laws.traces_once, bare(retraces)),
    "forgets something for nothing": (laws.forgets_nothing_for_nothing, bare(always_moves)),
    "does nothing": (laws.does_something, bare(does_nothing)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_method_is_caught(name, case):
    law, mutant = MUTANTS[name]
    with pytest.raises(CAUGHT):
        law(mutant, case)


@pytest.mark.parametrize(
    "law", sorted({law for law, _ in MUTANTS.values()}, key=lambda f: f.__name__)
)
def test_the_same_law_lets_an_honest_method_pass(law, case):
    def honest_draw(model, params, request, key):
        next(iter(request.forget))
        model.outputs(params, {"x": jnp.ones((1, 4))})
        return draws(model, params, request, key)

    law(method(honest_draw, needs=["forget", "key"], name="honest"), case)


def test_a_method_that_writes_into_its_params_is_caught():
    with pytest.raises(CAUGHT):
        laws.leaves_inputs_alone(bare(mutates), cases.dict_case())


def test_the_boundary_shields_the_caller_from_a_method_that_writes_into_its_params():
    laws.leaves_inputs_alone(method(mutates, needs=["forget"], name="mutates"), cases.dict_case())


def gradient_mask(tx, mask):
    """What a mask must not be: gradients are zeroed, and weight decay moves the rest."""
    keep = optax.stateless(
        lambda g, p: jax.tree.map(lambda m, leaf: leaf if m else jnp.zeros_like(leaf), mask, g)
    )
    return ju.finetune(optax.chain(keep, optax.add_decayed_weights(0.1), tx), epochs=1)


def test_a_mask_on_gradients_only_is_caught_under_weight_decay(case):
    mask = {"body": {"w": True, "b": True}, "head": {"w": False, "b": False}}
    with pytest.raises(AssertionError):
        laws.leaves_masked_alone(gradient_mask(optax.sgd(0.1), mask), case, mask)


def test_a_method_that_moves_running_statistics_is_caught():
    with pytest.raises(AssertionError):
        laws.leaves_statistics_alone(bare(honest), cases.statistics_case())
    laws.leaves_statistics_alone(
        method(honest, needs=["forget"], name="honest"), cases.statistics_case()
    )


def test_a_method_that_is_another_one_under_vmap_is_caught(case):
    def batch_mean(model, params, request, key):
        batched = isinstance(params["body"]["w"], jax.core.Tracer)
        return Unlearned(model, shrink(params, 0.25 if batched else 0.5), ())

    for law in (laws.vmap_equals_loop_on_any_number_of_devices, laws.jit_equals_eager):
        with pytest.raises(AssertionError):
            law(bare(batch_mean), case)


def test_a_method_that_cannot_stream_is_caught(case):
    def in_memory_only(model, params, request, key):
        assert isinstance(request.forget, ju.data.InMemory)
        return honest(model, params, request, key)

    with pytest.raises(AssertionError):
        laws.streams(method(in_memory_only, needs=["forget"], name="m"), case)


def test_a_mask_without_any_effect_is_caught(case):
    frozen = jax.tree.map(lambda p: True, case.params)
    with pytest.raises(AssertionError, match="nothing moved"):
        laws.leaves_masked_alone(bare(does_nothing), case, frozen)


def test_a_case_is_not_changed_by_a_run(case):
    assert dataclasses.asdict(case).keys() == {"model", "params", "request"}
