"""Selective synaptic dampening: what its equations imply, and what it does to a network."""

import dataclasses
import itertools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxunlearn as ju
from jaxunlearn.checkpoint import save
from jaxunlearn.curvature import second_moment
from jaxunlearn.methods.edits import dampening
from jaxunlearn.methods.edits.dampening import NothingSelectedWarning, dampen
from jaxunlearn.methods.edits.moments import (
    Moments,
    importance,
    load_moments,
    moments_of,
    remainder,
    save_moments,
    union,
)
from tests.suite import cases, laws

KEY = jax.random.key(0)
MODERATE = {"alpha": 1.2, "effective_batch": 64}


def unlearn(case, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSelectedWarning)
        return ju.ssd(**options).unlearn(case.model, case.params, case.request, KEY)


def importances(case, batch=1, batching="random"):
    both = [moments_of(case.model, case.params, d, by_class=True) for d in case.request[:2]]
    return importance(both[0], batch, batching), importance(union(*both), batch, batching)


# ------------------------------------------------------------------------ the nine exact checks


@pytest.mark.parametrize("options", [{"alpha": np.inf}, {"alpha": 3.0, "effective_batch": 1}])
def test_a_threshold_at_the_bound_changes_not_one_bit(case, options):
    """n/n_f = 3 here: with per-example importances and the full set nothing can exceed it."""
    laws.bits(unlearn(case, **options).params, case.params)
    laws.bits(unlearn(case, alpha=3.0, batching="class").params, case.params)


def test_forgetting_everything_selects_nothing(case):
    both, _ = importances(case)
    laws.bits(dampen(case.params, both, both, alpha=1.0), case.params)


@pytest.mark.parametrize("reference", ["full", "retain"])
def test_weights_only_shrink_and_the_others_keep_their_bits(case, reference):
    out = unlearn(case, reference=reference, **MODERATE).params
    changed = total = 0
    for new, old in zip(jax.tree.leaves(out), jax.tree.leaves(case.params), strict=True):
        new, old = np.float32(new), np.float32(old)
        assert (np.abs(new) <= np.abs(old)).all() and (new * old >= 0).all()
        changed, total = changed + (new != old).sum(), total + old.size
    assert 0 < changed < total


def test_a_higher_threshold_selects_a_subset(case):
    i_f, i_full = importances(case, 64)
    chosen = []
    for alpha in (0.5, 1.0, 2.0, 4.0):
        out = dampen(case.params, i_f, i_full, alpha)
        chosen.append(
            np.concatenate([
                np.float32(a).ravel() != np.float32(b).ravel()
                for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(case.params), strict=True)
            ])
        )  # fmt: skip
    for lower, higher in itertools.pairwise(chosen):
        assert not (higher & ~lower).any()
    assert chosen[0].sum() > chosen[-1].sum()


def test_more_dampening_constant_shrinks_less(case):
    i_f, i_full = importances(case, 64)
    sizes = [dampen(case.params, i_f, i_full, 1.2, d) for d in (0.0, 0.1, 1.0)]
    for less, more in itertools.pairwise(sizes):
        for a, b in zip(jax.tree.leaves(less), jax.tree.leaves(more), strict=True):
            assert (jnp.abs(a) <= jnp.abs(b)).all()
    assert laws.different(sizes[0], sizes[1]) and laws.different(sizes[1], sizes[2])


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_the_scale_of_the_loss_does_not_matter(case, factor):
    """Powers of two, so that not even rounding may differ."""
    model = dataclasses.replace(case.model, loss=lambda p, b: factor * case.model.loss(p, b))
    scaled = unlearn(dataclasses.replace(case, model=model), **MODERATE)
    laws.bits(scaled.params, unlearn(case, **MODERATE).params)


@pytest.mark.parametrize("batching", ["random", "class"])
def test_order_and_micro_batches_do_not_matter(single, batching):
    options = {"alpha": 0.8, "effective_batch": 8, "batching": batching}
    expected = unlearn(single, **options).params
    order = np.random.default_rng(0).permutation
    shuffled = ju.Request(*(d.take(order(d.num_examples)) for d in single.request[:2]))
    other = unlearn(dataclasses.replace(single, request=shuffled), micro_batch=5, **options)
    chex.assert_trees_all_close(other.params, expected, rtol=1e-3, atol=1e-5)


def test_one_linear_layer_has_its_closed_form():
    """I_S,j = mean_i (r_i x_ij)^2 up to the factor 4 of the squared error, which cancels."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((30, 4)).astype(np.float32) * [1, 1, 1, 0.2]
    x[:6, 3] *= 20
    y, theta = rng.standard_normal(30).astype(np.float32), np.array([1.0, -2.0, 0.5, 3.0])
    data = ju.data.in_memory({"x": x, "y": y})
    model = ju.Model(
        outputs=lambda p, b: b["x"] @ p,
        loss=lambda p, b: ju.losses.squared_error(b["x"] @ p, b["y"]),
    )
    request = ju.Request(data.take(np.arange(6)), data.take(np.arange(6, 30)))
    squares = ((x @ theta - y)[:, None] * x) ** 2
    i_f, i_full = squares[:6].mean(axis=0), squares.mean(axis=0)
    alpha = float(np.sort(i_f / i_full)[1:3].mean())
    beta = np.minimum(0.5 * i_full / i_f, 1)
    expected = np.where(i_f > alpha * i_full, theta * beta, theta)
    assert (expected != theta).sum() == 2
    case = cases.Case(model, jnp.asarray(theta, jnp.float32), request)
    got = unlearn(case, alpha=alpha, dampening=0.5, effective_batch=1)
    np.testing.assert_allclose(got.params, expected, rtol=1e-4)
    np.testing.assert_allclose(got.info.selected, (expected != theta).mean())
    np.testing.assert_allclose(got.info.largest_ratio, (i_f / i_full).max(), rtol=1e-4)


def test_random_batches_equal_all_fifteen_pairs(single):
    data = single.request.retain.take(np.arange(6))
    rows = [jax.tree.map(lambda c, i=i: c[i : i + 1], data.arrays) for i in range(6)]
    grads = [jax.grad(lambda p, r=r: single.model.loss(p, r)[0])(single.params) for r in rows]
    pairs = list(itertools.combinations(grads, 2))
    assert len(pairs) == 15
    squares = [jax.tree.map(lambda a, b: ((a + b) / 2) ** 2, *pair) for pair in pairs]
    expected = jax.tree.map(lambda *s: np.mean(s, axis=0), *squares)
    got = importance(moments_of(single.model, single.params, data), 2)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-7)


def test_one_class_is_random_batches_of_an_infinite_population(single):
    moments = moments_of(single.model, single.params, single.request.forget, by_class=True)
    classes = importance(moments, 4, "class")
    infinite = importance(moments._replace(count=jnp.float32(1e12)), 4, "random")
    chex.assert_trees_all_close(classes, infinite, rtol=1e-4, atol=1e-8)


def test_class_batches_weigh_each_class_by_its_share(single):
    data = single.request.retain.take(np.arange(12))  # eight of class 1, four of class 2
    got = importance(moments_of(single.model, single.params, data, by_class=True), 4, "class")
    parts = [data.take(np.arange(8)), data.take(np.arange(8, 12))]
    each = [moments_of(single.model, single.params, part) for part in parts]
    terms = [
        jax.tree.map(lambda f, g: share * (f / 4 + 0.75 * g**2), m.square, m.mean)  # noqa: B023
        for share, m in zip((2 / 3, 1 / 3), each, strict=True)
    ]
    chex.assert_trees_all_close(got, jax.tree.map(jnp.add, *terms), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("batch", "batching"), [(1, "random"), (64, "class")])
def test_the_ratio_is_bounded_by_the_share_of_the_forget_set(case, batch, batching):
    i_f, i_full = importances(case, batch, batching)
    for f, r in zip(jax.tree.leaves(i_f), jax.tree.leaves(i_full), strict=True):
        assert (f <= 3 * r * (1 + 1e-5)).all()


def test_random_batches_are_not_bounded_so(case):
    """Which is why they are the default; the bound above is a property, not an accident."""
    i_f, i_full = importances(case, 64, "random")
    ratios = [jnp.max(f / r) for f, r in zip(*map(jax.tree.leaves, (i_f, i_full)), strict=True)]
    assert max(ratios) > 3.1


def test_the_union_of_two_sets_has_the_moments_of_all_rows(single):
    forget, retain = single.request[:2]
    parts = [moments_of(single.model, single.params, d, by_class=True) for d in (forget, retain)]
    everything = ju.data.concatenate(forget, retain)
    whole = moments_of(single.model, single.params, everything, by_class=True)
    chex.assert_trees_all_close(union(*parts), whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(remainder(whole, parts[0]), parts[1], rtol=1e-4, atol=1e-5)


def test_a_batch_as_large_as_the_set_is_the_squared_mean_gradient(single):
    moments = moments_of(single.model, single.params, single.request.forget)
    got = importance(moments, 8)
    chex.assert_trees_all_close(got, jax.tree.map(jnp.square, moments.mean), rtol=1e-6)


# ------------------------------------------------------------------------------------- the edges


def test_entries_without_importance_stay_and_the_floor_holds():
    theta = jnp.asarray([1.0, 2.0, -3.0])
    i_f, i_ref = jnp.asarray([0.0, 1.0, 1.0]), jnp.asarray([0.0, 0.0, 0.01])
    np.testing.assert_array_equal(dampen(theta, i_f, i_ref, 1.0), [1.0, 0.0, np.float32(-0.03)])
    np.testing.assert_array_equal(dampen(theta, i_f, i_ref, 1.0, floor=0.5), [1.0, 1.0, -1.5])


def test_equality_is_not_selected():
    np.testing.assert_array_equal(
        dampen(jnp.ones(1), jnp.full(1, 2.0), jnp.ones(1), 2.0, dampening=0.1), [1.0]
    )


def test_importances_of_another_model_are_refused():
    with pytest.raises(ValueError, match="`forget` and params are different trees"):
        dampen({"a": jnp.ones(1)}, {"b": jnp.ones(1)}, {"a": jnp.ones(1)}, 1.0)
    with pytest.raises(
        ValueError, match=r"`reference` and params differ at \['a'\]: shapes \(2,\)"
    ):
        dampen({"a": jnp.ones(1)}, {"a": jnp.ones(1)}, {"a": jnp.ones(2)}, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "expected alpha >= 0, dampening >= 0 and floor in"),
        ({"alpha": float("nan")}, "got alpha=nan"),
        ({"dampening": -1.0}, "dampening=-1.0"),
        ({"floor": 2.0}, "floor=2.0"),
        ({"effective_batch": 0}, "batches must be >= 1, got effective_batch=0"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"batching": "sorted"}, "batching must be 'random' or 'class', got 'sorted'"),
        ({"reference": "forget"}, "reference must be 'full' or 'retain', got 'forget'"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ju.ssd(**options)


def test_what_cannot_work_is_said(case):
    method = ju.ssd(alpha=10, effective_batch=1)
    for _ in range(2):  # a compiled method says it again
        with pytest.warns(
            NothingSelectedWarning, match=r"n/n_f = 3, and alpha = 10.*so nothing can"
        ):
            method.unlearn(case.model, case.params, case.request, KEY)
    with pytest.warns(NothingSelectedWarning, match="so little can be dampened"):
        ju.ssd(alpha=2, batching="class").unlearn(case.model, case.params, case.request, KEY)


@pytest.mark.parametrize("options", [{}, {"effective_batch": 1, "reference": "retain"}])
def test_what_may_work_is_not_warned_of(case, options):
    ju.ssd(alpha=10, **options).unlearn(case.model, case.params, case.request, KEY)


def test_moments_are_a_pytree():
    assert len(jax.tree.leaves(Moments(jnp.ones(1), jnp.ones(1), jnp.ones(())))) == 3


def test_what_is_not_finite_is_left_alone_and_counted():
    theta, bad = jnp.ones(4), jnp.asarray([jnp.nan, jnp.inf, 4.0, 4.0])
    np.testing.assert_array_equal(dampen(theta, bad, jnp.ones(4), 2.0), [1, 1, 0.25, 0.25])
    np.testing.assert_array_equal(dampen(theta, jnp.full(4, 8.0), bad, 1.0), [1, 1, 0.5, 0.5])
    info = dampening.describe(bad, jnp.ones(4), 2.0)
    np.testing.assert_allclose(info, [0.5, 4.0, 2.0, 0.5])


@pytest.mark.parametrize("alpha", [jnp.inf, jnp.nan])
def test_a_traced_threshold_of_infinity_or_nan_selects_nothing(alpha):
    i_f, i_ref = jnp.asarray([1.0, 0.0, 5.0]), jnp.asarray([0.0, 0.0, 1.0])
    edit = jax.jit(dampen)
    np.testing.assert_array_equal(edit(jnp.ones(3), i_f, i_ref, alpha), jnp.ones(3))
    np.testing.assert_allclose(edit(jnp.ones(3), i_f, i_ref, 2.0), [0, 1, 0.2], rtol=1e-6)


def test_a_sweep_over_alpha_is_one_vmap(single):
    def swept(alpha):
        return ju.ssd(alpha=alpha).unlearn(single.model, single.params, single.request, KEY)

    alphas = jnp.asarray([0.5, 1.5, 4.0])
    out = jax.jit(jax.vmap(swept))(alphas)
    np.testing.assert_array_equal(out.info.alpha, alphas)
    for i, alpha in enumerate((0.5, 1.5, 4.0)):
        row = jax.tree.map(lambda p: p[i], out.params)  # noqa: B023
        chex.assert_trees_all_close(row, unlearn(single, alpha=alpha).params, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------- stored importances


def whole_moments(case, by_class=False):
    everything = ju.data.concatenate(*case.request[:2])
    return moments_of(case.model, case.params, everything, by_class=by_class)


def without_retain(case):
    return dataclasses.replace(case, request=ju.Request(case.request.forget))


@pytest.mark.parametrize("reference", ["full", "retain"])
@pytest.mark.parametrize("batching", ["random", "class"])
def test_stored_moments_stand_in_for_the_retained_data(single, reference, batching):
    options = {"alpha": 0.8, "effective_batch": 4, "batching": batching, "reference": reference}
    stored = whole_moments(single, by_class=True)
    method = ju.ssd(stored=stored, **options)
    assert method.needs == {"forget", "labels"}
    expected = unlearn(single, **options)
    assert 0 < float(expected.info.selected) < 1
    out = unlearn(without_retain(single), stored=stored, **options)
    chex.assert_trees_all_close(out, expected, rtol=1e-3, atol=1e-5)


def test_a_second_moment_is_good_enough_as_stored(single):
    everything = ju.data.concatenate(*single.request[:2])
    second = second_moment(single.model.loss, single.params, everything)
    one, other = (unlearn(single, stored=s) for s in (second, Moments(*second)))
    laws.bits(one.params, other.params)


def test_stored_moments_survive_the_disk(case, tmp_path):
    for by_class in (False, True):
        stored = whole_moments(case, by_class)
        path = save_moments(tmp_path / f"moments-{by_class}", stored, case.params)
        laws.bits(load_moments(path, case.model, case.params), stored)
    with pytest.raises(FileExistsError):
        save_moments(path, stored, case.params)


def test_stored_moments_of_a_model_with_statistics_are_those_of_its_weights(tmp_path):
    case = cases.statistics_case()
    stored = whole_moments(case)
    path = save_moments(tmp_path / "moments", stored, case.params)
    loaded = load_moments(path, case.model, case.params)
    out = unlearn(without_retain(case), stored=loaded, **MODERATE)
    laws.close(out.params, unlearn(case, **MODERATE).params)
    laws.bits(out.params["batch_stats"], case.params["batch_stats"])
    moved = case.params | {"batch_stats": jax.tree.map(jnp.add, *[case.params["batch_stats"]] * 2)}
    with pytest.raises(ValueError, match="computed at other parameters than these"):
        load_moments(path, case.model, moved)


def test_moments_of_other_parameters_are_not_loaded(single, tmp_path):
    path = save_moments(tmp_path / "moments", whole_moments(single), single.params)
    later = jax.tree.map(lambda p: p + 1e-3, single.params)
    with pytest.raises(ValueError, match="other parameters.*again with moments_of"):
        load_moments(path, single.model, later)
    with pytest.raises(ValueError, match="holds no moments. save_moments writes them"):
        load_moments(save(tmp_path / "params", single.params), single.model, single.params)


def test_a_mask_finds_its_part_of_stored_moments(case):
    mask = {"body": True, "head": {"w": True, "b": False}}
    stored = whole_moments(case)
    masked = [ju.masked(ju.ssd(**MODERATE, **o), mask) for o in ({}, {"stored": stored})]
    expected, out = (laws.run(m, case) for m in masked)
    laws.close(out.params, expected.params)
    laws.bits(out.params["head"]["b"], case.params["head"]["b"])


def test_stored_moments_that_do_not_fit_are_refused(single):
    stored, case = whole_moments(single), without_retain(single)
    with pytest.raises(TypeError, match="ssd: stored must be Moments.*got dict"):
        ju.ssd(stored={"square": 1})
    with pytest.raises(ValueError, match=r"no class_mean at params\[0\]\[0\].*by_class"):
        unlearn(case, stored=stored, alpha=0.1, batching="class")
    other = stored._replace(square=((jnp.ones((4, 2)),), stored.square[1]))
    with pytest.raises(ValueError, match=r"square.*params\[0\]\[0\]: shapes \(4, 2\) and \(4, 3\)"):
        unlearn(case, stored=other)
    for count in (8.0, 3.0):
        with pytest.raises(ValueError, match=f"moments are of {count:g} examples, and 8 are to"):
            unlearn(case, stored=stored._replace(count=jnp.float32(count)))


def test_when_nothing_is_left_nothing_is_edited(single):
    """Inside a trace it cannot be refused: NaN importances leave every entry alone."""
    stored = whole_moments(single)._replace(count=jnp.float32(8))

    def run(stored):
        method = ju.ssd(stored=stored, reference="retain", alpha=1.0)
        return method.unlearn(single.model, single.params, ju.Request(single.request.forget), KEY)

    out = jax.jit(run)(stored)
    laws.bits(out.params, single.params)
    assert float(out.info.unusable) == 1


def test_stored_moments_are_bounded_by_their_own_count(single):
    stored = whole_moments(single)
    with pytest.warns(NothingSelectedWarning, match="n/n_f = 3, and alpha = 10"):
        ju.ssd(effective_batch=1, stored=stored).unlearn(
            single.model, single.params, ju.Request(single.request.forget), KEY
        )


# --------------------------------------------------------------------------------- the behaviour


def network(inputs, hidden, classes):
    from jaxunlearn.networks import MLP

    return ju.from_nnx(lambda rngs: MLP(inputs, classes, hidden=(hidden,), rngs=rngs))


def trained(columns, model, tx, epochs, batch_size=64):
    data = ju.data.in_memory(columns, batch_size)
    params = ju.train(model, tx, data, key=KEY, epochs=epochs).params
    member = columns["y"] == 0
    request = ju.Request(data.take(np.flatnonzero(member)), data.take(np.flatnonzero(~member)))
    return cases.Case(model, params, request)


def accuracy(case, params, data):
    return float((case.model.outputs(params, data.arrays).argmax(-1) == data["y"]).mean())


@pytest.fixture(scope="module")
def gaussian():
    def make(classes):
        rng = np.random.default_rng(0)
        y = np.arange(6000 * classes // 40) % classes
        centres = 2.5 * rng.standard_normal((classes, 20))
        x = centres[y] + rng.standard_normal((len(y), 20))
        columns = {"x": x.astype(np.float32), "y": y.astype(np.int32)}
        tx = optax.sgd(0.02, momentum=0.9)
        return trained(columns, network(20, 96, classes), tx, epochs=30)

    return make


def test_a_class_of_forty_is_forgotten_and_the_others_are_kept(gaussian):
    case = gaussian(40)
    out = ju.ssd(alpha=10, batching="class").unlearn(case.model, case.params, case.request, KEY)
    assert accuracy(case, case.params, case.request.forget) > 0.9
    assert accuracy(case, out.params, case.request.forget) < 0.1
    assert accuracy(case, out.params, case.request.retain) > 0.9


def test_a_class_of_ten_is_beyond_the_published_threshold(gaussian):
    case = gaussian(10)
    out = unlearn(case, alpha=10, effective_batch=1)
    assert float(out.info.selected) < 0.05
    assert accuracy(case, out.params, case.request.forget) > 0.8


def test_on_digits_the_default_forgets_a_class_and_the_per_example_one_says_that_it_cannot():
    digits = load_digits()
    x, y = (digits.data[:1000] / 16).astype(np.float32), digits.target[:1000].astype(np.int32)
    y = np.where(y == 3, 0, np.where(y == 0, 3, y)).astype(np.int32)  # class 0 is forgotten
    case = trained({"x": x, "y": y}, network(64, 64, 10), optax.adam(5e-3), epochs=15)
    with pytest.warns(NothingSelectedWarning):
        nothing = ju.ssd(alpha=10, dampening=1, effective_batch=1, reference="full").unlearn(
            case.model, case.params, case.request, KEY
        )
    assert float(nothing.info.selected) < 1e-3
    assert accuracy(case, nothing.params, case.request.forget) > 0.95
    out = ju.ssd(alpha=10, effective_batch=64).unlearn(case.model, case.params, case.request, KEY)
    assert accuracy(case, out.params, case.request.forget) < 0.2
    assert accuracy(case, out.params, case.request.retain) > 0.8
