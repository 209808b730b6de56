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
from jaxunlearn.methods.edits.ssd import (
    Moments,
    NothingSelectedWarning,
    dampen,
    importance,
    moments_of,
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
    both = [moments_of(case.model, case.params, d, True) for d in case.request[:2]]
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
    chosen = []
    for alpha in (0.5, 1.0, 2.0, 4.0):
        out = unlearn(case, alpha=alpha).params
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
    sizes = [unlearn(case, dampening=d, **MODERATE).params for d in (0.0, 0.1, 1.0)]
    for less, more in itertools.pairwise(sizes):
        for a, b in zip(jax.tree.leaves(less), jax.tree.leaves(more), strict=True):
            assert (jnp.abs(a) <= jnp.abs(b)).all()


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
    got = importance(moments_of(single.model, single.params, data, False), 2)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-7)


def test_one_class_is_random_batches_of_an_infinite_population(single):
    moments = moments_of(single.model, single.params, single.request.forget, True)
    classes = importance(moments, 4, "class")
    infinite = importance(moments._replace(count=jnp.float32(1e12)), 4, "random")
    chex.assert_trees_all_close(classes, infinite, rtol=1e-4, atol=1e-8)


def test_class_batches_weigh_each_class_by_its_share(single):
    data = single.request.retain.take(np.arange(12))  # eight of class 1, four of class 2
    got = importance(moments_of(single.model, single.params, data, True), 4, "class")
    parts = [data.take(np.arange(8)), data.take(np.arange(8, 12))]
    each = [moments_of(single.model, single.params, part, False) for part in parts]
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
    parts = [moments_of(single.model, single.params, d, True) for d in (forget, retain)]
    whole = moments_of(single.model, single.params, ju.data.concatenate(forget, retain), True)
    chex.assert_trees_all_close(union(*parts), whole, rtol=1e-4, atol=1e-6)


def test_a_batch_as_large_as_the_set_is_the_squared_mean_gradient(single):
    moments = moments_of(single.model, single.params, single.request.forget, False)
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
