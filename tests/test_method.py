"""The boundary and the verbs: chain, masked, keep_best."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn.method import Nothing, Unlearned, certified, check_disjoint, exact, method
from tests.suite import cases, laws

CASE = cases.dict_case()
MODEL, PARAMS, REQUEST = CASE.model, CASE.params, CASE.request
KEY = jax.random.key(1)


def scale(factor, name="scale", **options):
    def unlearn(model, params, request, key):
        del request, key
        done = jax.tree.map(lambda p: p * jnp.asarray(factor, p.dtype), params)
        return Unlearned(model, done, jnp.float32(factor))

    return method(unlearn, needs=(), name=name, **options)


def add_noise():
    def unlearn(model, params, request, key):
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            p + jax.random.normal(k, p.shape, p.dtype) for p, k in zip(leaves, keys, strict=True)
        ]
        return Unlearned(model, jax.tree.unflatten(tree, noisy), ())

    return method(unlearn, needs=["key"], name="noise")


# -------------------------------------------------------------------------------------- method


def test_an_unknown_need_is_refused():
    with pytest.raises(ValueError, match=r"needs must be among .*, got \['oracle'\] too"):
        method(lambda *a: None, needs=["oracle"], name="m")


def test_an_unknown_guarantee_is_refused():
    with pytest.raises(ValueError, match="guarantee must be one of .* got 'promised'"):
        method(lambda *a: None, needs=[], name="m", guarantee="promised")


def test_a_result_that_is_not_unlearned_is_refused():
    broken = method(lambda model, params, request, key: params, needs=[], name="m")
    with pytest.raises(TypeError, match="m must return Unlearned, got dict"):
        broken.unlearn(MODEL, PARAMS, REQUEST, KEY)


def result(change):
    return method(lambda m, p, r, k: Unlearned(m, change(p), ()), needs=[], name="m")


def test_a_result_with_another_tree_is_refused():
    with pytest.raises(TypeError, match="m returned params of another tree"):
        result(lambda p: {"body": p["body"]}).unlearn(MODEL, PARAMS, REQUEST, KEY)


def test_a_result_with_another_dtype_names_the_leaf():
    cast = result(lambda p: jax.tree.map(lambda a: a.astype(jnp.float16), p))
    with pytest.raises(TypeError, match=r"params\['body'\]\['b'\] from shape \(6,\), float32"):
        cast.unlearn(MODEL, PARAMS, REQUEST, KEY)


@pytest.mark.parametrize("what", ["retain", "adjacent", "forget"])
def test_a_field_that_is_not_needed_cannot_be_read(what):
    def unlearn(model, params, request, key):
        return Unlearned(model, params, len(getattr(request, what)["x"]))

    peek = method(unlearn, needs=["labels"], name="peek")
    with pytest.raises(ju.AccessError, match=rf"peek reads request.{what}, but its needs are"):
        peek.unlearn(MODEL, PARAMS, REQUEST, KEY)


def test_every_use_of_something_withheld_raises():
    def seen(model, params, request, key):
        for use in (
            lambda: request.retain.num_examples,
            lambda: list(request.retain),
            lambda: request.retain["x"],
            lambda: "x" in request.retain,
            lambda: len(request.retain),
            lambda: bool(request.retain),
            lambda: key.dtype,
            lambda: model.features(params, {}),
            lambda: model.init(KEY),
        ):
            with pytest.raises(ju.AccessError, match="Declare it in `needs`, or do not touch it"):
                use()
        return Unlearned(model, params, ())

    method(seen, needs=["forget"], name="m").unlearn(MODEL, PARAMS, REQUEST, KEY)


def test_a_method_without_labels_gets_no_labels():
    def unlearn(model, params, request, key):
        assert set(request.forget.arrays) == {"x", "id"}
        return Unlearned(model, params, request.forget["y"])

    with pytest.raises(ju.AccessError, match="m reads the labels 'y'"):
        method(unlearn, needs=["forget"], name="m").unlearn(MODEL, PARAMS, REQUEST, KEY)


def test_streams_lose_their_labels_too():
    def unlearn(model, params, request, key):
        for batch in request.forget:
            assert set(batch) == {"x", "id", "weight"}
        return Unlearned(model, params, ())

    request = ju.Request(forget=list(REQUEST.forget))
    method(unlearn, needs=["forget"], name="m").unlearn(MODEL, PARAMS, request, KEY)


def test_another_keyerror_is_left_alone():
    def unlearn(model, params, request, key):
        return Unlearned(model, {}["z"], ())

    with pytest.raises(KeyError, match="z"):
        method(unlearn, needs=["forget"], name="m").unlearn(MODEL, PARAMS, REQUEST, KEY)


def test_a_stacked_key_is_refused():
    with pytest.raises(TypeError, match=r"expected one typed key.*of shape \(2,\)"):
        scale(0.5).unlearn(MODEL, PARAMS, REQUEST, jax.random.split(KEY))


def test_an_integer_is_no_key():
    with pytest.raises(TypeError, match="expected one typed key.*got int"):
        scale(0.5).unlearn(MODEL, PARAMS, REQUEST, 0)


def test_an_empty_retain_set_is_refused_where_it_is_needed():
    request = REQUEST._replace(retain=REQUEST.retain.take([]))
    with pytest.raises(ValueError, match="finetune needs request.retain, which has no examples"):
        ju.finetune().unlearn(MODEL, PARAMS, request, KEY)


def test_a_model_without_init_cannot_be_retrained():
    model = ju.Model(outputs=MODEL.outputs, loss=MODEL.loss)
    with pytest.raises(ValueError, match="retrain needs model.init, which"):
        ju.retrain(optax.sgd(0.1), epochs=1).unlearn(model, PARAMS, REQUEST, KEY)


def test_data_without_labels_are_refused_where_they_are_needed():
    request = REQUEST._replace(forget=REQUEST.forget.drop("y"))
    with pytest.raises(ValueError, match=r"needs labels, .* no column 'y', only \['id', 'x'\]"):
        ju.gradient_ascent().unlearn(MODEL, PARAMS, request, KEY)


def test_a_loss_that_averages_is_refused():
    model = ju.Model(outputs=MODEL.outputs, loss=lambda p, b: MODEL.loss(p, b).mean())
    with pytest.raises(ValueError, match="must return one number per example"):
        ju.gradient_ascent().unlearn(model, PARAMS, REQUEST, KEY)


def test_a_label_out_of_range_in_a_stream_is_found_as_it_is_read():
    batches = [dict(b) for b in REQUEST.forget]
    batches[1]["y"] = jnp.full(6, -1)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\).*row 0 has -1"):
        ju.gradient_ascent(epochs=1).unlearn(MODEL, PARAMS, ju.Request(forget=batches), KEY)


def test_nothing_is_asked_of_rows_of_weight_zero():
    forget = REQUEST.forget.replace(
        y=np.where(np.arange(8) < 4, 0, 77).astype(np.int32),
        weight=(np.arange(8) < 4).astype(np.float32),
        id=np.where(np.arange(8) < 4, np.arange(8), 110),  # 110 is retained
    )
    out = ju.gradient_ascent(epochs=1).unlearn(MODEL, PARAMS, REQUEST._replace(forget=forget), KEY)
    chex.assert_tree_all_finite(out.params)


def test_a_forget_set_of_weight_zero_is_empty():
    forget = REQUEST.forget.replace(weight=np.zeros(8, np.float32))
    out = ju.finetune().unlearn(MODEL, PARAMS, REQUEST._replace(forget=forget), KEY)
    chex.assert_trees_all_equal(out.params, PARAMS)
    assert out.info == Nothing()


def test_rows_with_the_same_content_overlap_unless_ids_tell_them_apart():
    forget, retain = REQUEST.forget, REQUEST.retain
    copied = retain.replace(x=retain["x"].at[3].set(forget["x"][5]), y=retain["y"].at[3].set(0))
    check_disjoint(forget, copied)  # ids differ
    with pytest.raises(ValueError, match="row 3 of retain has the content of a forget row"):
        check_disjoint(forget.drop("id"), copied)
    check_disjoint(forget.drop("id"), retain)


def test_padding_rows_never_overlap_and_do_not_shift_the_row_that_does():
    forget, retain = REQUEST.forget.drop("id"), REQUEST.retain
    x = retain["x"].at[1].set(forget["x"][5]).at[3].set(forget["x"][6])
    copied = retain.replace(x=x, y=retain["y"].at[jnp.array([1, 3])].set(0))
    weight = jnp.ones(retain.num_examples)
    check_disjoint(forget, copied.replace(weight=weight.at[jnp.array([1, 3])].set(0)))
    with pytest.raises(ValueError, match="row 3 of retain has the content"):
        check_disjoint(forget, copied.replace(weight=weight.at[1].set(0)))


def test_values_cannot_be_checked_inside_jit_and_are_not():
    broken = jax.tree.map(lambda p: p.at[0].set(jnp.nan), PARAMS)
    out = jax.jit(scale(0.5).unlearn)(MODEL, broken, REQUEST, KEY)
    assert bool(jnp.isnan(out.params["body"]["b"][0]))


def test_the_warning_hook_sees_the_request_each_time():
    seen = []
    noisy = method(
        lambda m, p, r, k: Unlearned(m, p, ()), needs=["forget"], name="m", warn=seen.append
    )
    for _ in range(2):
        noisy.unlearn(MODEL, PARAMS, REQUEST, KEY)
    assert [r.forget.num_examples for r in seen] == [8, 8]


def test_concrete_params_may_be_closed_over_by_a_trace():
    def one(key):
        return cases.METHODS["retrain"].unlearn(MODEL, PARAMS, REQUEST, key).params

    many = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2))
    chex.assert_tree_all_finite(many)
    broken = jax.tree.map(lambda p: p.at[0].set(jnp.nan), PARAMS)
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        jax.jit(lambda key: scale(0.5).unlearn(MODEL, broken, REQUEST, key).params)(KEY)


# --------------------------------------------------------------------------------------- chain


def test_a_chain_is_its_parts_one_after_another():
    out = ju.chain(scale(0.5), scale(3.0)).unlearn(MODEL, PARAMS, REQUEST, KEY)
    chex.assert_trees_all_equal(out.params, jax.tree.map(lambda p: p * 0.5 * 3.0, PARAMS))
    assert [float(i) for i in out.info] == [0.5, 3.0]


def test_the_order_of_a_chain_matters():
    shift = method(
        lambda m, p, r, k: Unlearned(m, jax.tree.map(lambda a: a + 1, p), ()),
        needs=[],
        name="shift",
    )
    one = ju.chain(scale(0.5), shift).unlearn(MODEL, PARAMS, REQUEST, KEY).params
    other = ju.chain(shift, scale(0.5)).unlearn(MODEL, PARAMS, REQUEST, KEY).params
    assert laws.different(one, other)


def test_an_empty_chain_is_the_identity():
    out = ju.chain().unlearn(MODEL, PARAMS, REQUEST, KEY)
    chex.assert_trees_all_equal(out.params, PARAMS)
    assert ju.chain().guarantee == "empirical" and ju.chain().name == "identity"


def test_each_link_gets_its_own_key():
    both = ju.chain(add_noise(), add_noise()).unlearn(MODEL, PARAMS, REQUEST, KEY).params
    first = add_noise().unlearn(MODEL, PARAMS, REQUEST, jax.random.fold_in(KEY, 0)).params
    second = add_noise().unlearn(MODEL, first, REQUEST, jax.random.fold_in(KEY, 1)).params
    chex.assert_trees_all_equal(both, second)


def test_a_chain_needs_what_its_links_need_and_each_sees_only_its_own():
    made = ju.chain(cases.METHODS["ssd"], cases.METHODS["gradient_ascent"])
    assert made.needs == {"forget", "retain", "labels", "key"}
    assert made.name == "ssd > gradient_ascent"
    greedy = method(
        lambda m, p, r, k: Unlearned(m, p, r.retain["x"]), needs=["forget"], name="greedy"
    )
    with pytest.raises(ju.AccessError, match="greedy reads request.retain"):
        ju.chain(cases.METHODS["ssd"], greedy).unlearn(MODEL, PARAMS, REQUEST, KEY)


@pytest.mark.parametrize(
    ("levels", "weakest"),
    [
        (["exact-bitwise", exact(1e-6)], "exact(1e-06)"),
        ([exact(1e-6), exact(1e-3)], "exact(0.001)"),
        ([exact(1e-6), certified(1, 1e-5)], "certified(1, 1e-05)"),
        ([certified(1, 1e-5), certified(2, 1e-6)], "certified(2, 1e-06)"),
        (["exact-bitwise", "empirical", certified(1, 0)], "empirical"),
    ],
)
def test_a_chain_promises_what_its_weakest_link_promises(levels, weakest):
    assert ju.chain(*(scale(1.0, guarantee=g) for g in levels)).guarantee == weakest


VERBS = [ju.chain, lambda m: ju.masked(m, True), lambda m: ju.keep_best(m, sum)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_builder_that_was_not_called_is_refused(verb):
    with pytest.raises(TypeError, match="got function. Was a builder not called"):
        verb(ju.finetune)


# -------------------------------------------------------------------------------------- masked


def entries(rng):
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.5), PARAMS)


@pytest.mark.parametrize(
    ("mask", "full"),
    [
        ({"body": False, "head": True}, {"body": {"w": 0, "b": 0}, "head": {"w": 1, "b": 1}}),
        (
            lambda p: jax.tree_util.tree_map_with_path(lambda path, a: path[-1].key == "w", p),
            {"body": {"w": 1, "b": 0}, "head": {"w": 1, "b": 0}},
        ),
        (
            {"body": {"w": jnp.array(True), "b": np.bool_(False)}, "head": False},
            {"body": {"w": 1, "b": 0}, "head": {"w": 0, "b": 0}},
        ),
    ],
    ids=["prefix", "function", "scalars"],
)
def test_a_mask_may_be_a_prefix_or_a_function(mask, full):
    laws.leaves_masked_alone(
        ju.masked(cases.METHODS["finetune"], mask), CASE, jax.tree.map(bool, full)
    )


def test_a_mask_of_entries_moves_only_those():
    mask = entries(np.random.default_rng(0))
    for name in ("ssd", "neggrad_plus"):
        laws.leaves_masked_alone(ju.masked(cases.METHODS[name], mask), CASE, mask)


def test_a_mask_may_be_computed_from_the_params():
    def large(params):
        return jax.tree.map(lambda p: jnp.abs(p) > 0.3, params)

    laws.leaves_masked_alone(
        ju.masked(cases.METHODS["ssd"], large), CASE, jax.tree.map(np.asarray, large(PARAMS))
    )


@pytest.mark.parametrize("name", ["finetune", "ssd", "random_labels"])
def test_a_mask_that_lets_everything_move_is_the_method(name):
    each = cases.METHODS[name]
    laws.close(
        laws.run(ju.masked(each, True), CASE).params,
        laws.run(each, CASE).params,
    )


def test_a_mask_that_lets_nothing_move_is_the_identity():
    out = ju.masked(cases.METHODS["finetune"], False).unlearn(MODEL, PARAMS, REQUEST, KEY)
    chex.assert_trees_all_equal(out.params, PARAMS)
    assert out.info == Nothing()


def test_a_masked_method_is_empirical_and_needs_the_same():
    made = ju.masked(ju.retrain(optax.sgd(0.1), epochs=1), True)
    assert made.guarantee == "empirical" and "init" in made.needs
    assert made.name == "masked(retrain)"


def test_a_mask_that_does_not_fit_is_refused():
    for mask in ({"body": True}, {"body": True, "head": True, "tail": False}):
        with pytest.raises(ValueError, match="the mask is no prefix of the params"):
            laws.run(ju.masked(scale(0.5), mask), CASE)
    with pytest.raises(ValueError, match=r"mask\['body'\]\['b'\] has shape \(2,\)"):
        laws.run(ju.masked(scale(0.5), jnp.zeros(2, bool)), CASE)


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError, match=r"mask\['body'\]\['b'\] must be a bool.*got int"):
        laws.run(ju.masked(scale(0.5), 1), CASE)


TRANSFORMS = {
    "decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05)),
    "scheduled": optax.adamw(optax.cosine_decay_schedule(0.1, 4)),
    "averaged": optax.chain(optax.ema(0.9), optax.add_decayed_weights(0.1), optax.sgd(0.1)),
}


@settings(derandomize=True, max_examples=6, deadline=None, database=None)
@given(
    st.sampled_from(sorted(TRANSFORMS)),
    st.tuples(*[st.sampled_from(["all", "none", "some"])] * 4),
    st.integers(0, 99),
)
def test_frozen_leaves_stay_under_any_optimiser_and_any_mask(name, kinds, seed):
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(PARAMS)
    choice = {"all": lambda p: True, "none": lambda p: False}
    mask = [
        choice[k](p) if k in choice else rng.random(p.shape) < 0.5
        for k, p in zip(kinds, leaves, strict=True)
    ]
    mask = jax.tree.unflatten(tree, mask)
    each = ju.descent(ju.objectives.ascent, TRANSFORMS[name], steps=3, on=("forget",))
    out = laws.run(ju.masked(each, mask), CASE).params
    for m, new, old in zip(*(jax.tree.leaves(t) for t in (mask, out, PARAMS)), strict=True):
        frozen = np.broadcast_to(~np.asarray(m), old.shape)
        np.testing.assert_array_equal(np.float32(new)[frozen], np.float32(old)[frozen])


def test_a_frozen_leaf_does_not_count_in_the_clipped_norm():
    """The head's step is that of a model which has nothing but the head."""
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    each = ju.descent(ju.objectives.ascent, tx, steps=1, on=("forget",), shuffle=False)
    whole = REQUEST._replace(forget=REQUEST.forget.take(np.arange(6)))
    got = ju.masked(each, {"body": False, "head": {"w": True, "b": False}}).unlearn(
        MODEL, PARAMS, whole, KEY
    )
    moved = got.params["head"]["w"] - PARAMS["head"]["w"]
    np.testing.assert_allclose(jnp.linalg.norm(moved), 1e-3, rtol=1e-3)


def replaces_the_model():
    def unlearn(model, params, request, key):
        return Unlearned(ju.Model(outputs=model.outputs, loss=model.outputs), params, ())

    return method(unlearn, needs=["forget"], name="guard", whole=True)


def test_a_method_that_replaces_the_model_cannot_be_masked_or_scored():
    with pytest.raises(TypeError, match="masked.guard.: an inference-time method"):
        laws.run(ju.masked(replaces_the_model(), True), CASE)
    with pytest.raises(TypeError, match="keep_best.guard.: an inference-time method"):
        laws.run(ju.keep_best(replaces_the_model(), lambda m, p: 0.0), CASE)


# ----------------------------------------------------------------------------------- keep_best


def bias(model, params):
    return params["body"]["b"].sum()


@pytest.mark.parametrize(("factor", "kept"), [(2.0, 2.0), (0.5, 1.0), (1.0, 1.0)])
def test_the_better_of_before_and_after_is_kept(factor, kept):
    out = laws.run(ju.keep_best(scale(factor), bias), CASE)
    chex.assert_trees_all_equal(out.params, jax.tree.map(lambda p: p * kept, PARAMS))


def test_a_score_of_nan_never_wins():
    def score(model, params):
        return jnp.where(bias(model, params) > 1.0, jnp.nan, bias(model, params))

    out = laws.run(ju.keep_best(scale(4.0), score), CASE)  # 0.6 -> 2.4 would be better
    chex.assert_trees_all_equal(out.params, PARAMS)
    back = laws.run(ju.keep_best(scale(0.25), lambda m, p: score(m, scale_by(p, 4.0))), CASE)
    laws.close(back.params, scale_by(PARAMS, 0.25))


def scale_by(params, factor):
    return jax.tree.map(lambda p: p * jnp.asarray(factor, p.dtype), params)


def test_every_epoch_is_a_candidate_of_a_gradient_method():
    """By a score with an inner maximum; the epochs are made by hand, one run each."""

    def score(model, params):
        return -jnp.abs(model.loss(params, REQUEST.forget.arrays).mean() - target)

    tx = optax.sgd(0.3)
    ends = [laws.run(ju.gradient_ascent(tx, epochs=e), CASE).params for e in range(5)]
    target = MODEL.loss(ends[2], REQUEST.forget.arrays).mean()
    best = laws.run(ju.keep_best(ju.gradient_ascent(tx, epochs=4), score), CASE)
    laws.close(best.params, ends[2])
    assert abs(float(best.info.best_score)) < 1e-4


def test_the_score_sees_the_whole_model_behind_a_mask_and_behind_statistics():
    case = cases.statistics_case()
    seen = []

    def score(model, params):
        seen.append((model, jax.tree.structure(params)))
        return -model.loss(params, {"x": jnp.ones((1, 4)), "y": jnp.zeros(1, int)}).mean()

    for each in (
        ju.keep_best(cases.METHODS["finetune"], score),
        ju.keep_best(ju.masked(cases.METHODS["finetune"], True), score),
        ju.masked(ju.keep_best(cases.METHODS["ssd"], lambda m, p: 0.0), True),
    ):
        laws.leaves_statistics_alone(each, case)
    assert {model for model, _ in seen} == {case.model}
    assert {tree for _, tree in seen} == {jax.tree.structure(case.params)}


def test_a_chain_keeps_the_best_of_every_stage():
    best = ju.keep_best(ju.chain(scale(2.0), scale(0.5), scale(3.0)), bias)
    chex.assert_trees_all_equal(laws.run(best, CASE).params, scale_by(PARAMS, 6.0))
