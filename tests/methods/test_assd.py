"""Adaptive SSD: the threshold against NumPy's percentile, and what it edits."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.edits.assd import adaptive_alpha, adaptive_share, assd
from jaxunlearn.methods.edits.moments import importance, moments_of
from tests.suite import cases, laws

KEY = jax.random.key(0)


def unlearn(case, **options):
    return assd(**options).unlearn(case.model, case.params, case.request, KEY)


def pooled(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def published(i_f, i_ref, forget, total):
    """The notebook's rule: pool everything, drop NaN and infinities, take one percentile."""
    with np.errstate(all="ignore"):
        ratio = pooled(i_f) / pooled(i_ref)
    percentile = 100 - np.log(1 + 100 * forget / total)
    return np.percentile(ratio[np.isfinite(ratio)], percentile)


def test_one_example_in_a_hundred_gives_the_percentile_of_the_card():
    assert round(100 - 100 * float(adaptive_share(1, 100)), 2) == 99.31
    assert float(adaptive_share(0, 50)) == 0
    np.testing.assert_allclose(adaptive_share(50, 50), np.log(101) / 100, rtol=1e-6)


def test_alpha_is_the_percentile_of_the_pooled_ratios(x64):
    rng = np.random.default_rng(0)
    i_f = {"a": rng.gamma(0.3, size=(40, 5)), "b": rng.gamma(0.3, size=60)}
    i_ref = {"a": rng.gamma(0.3, size=(40, 5)), "b": rng.gamma(0.3, size=60)}
    i_f["b"][:4], i_ref["b"][2:6] = 0, 0  # 0/x, 0/0 and x/0
    for forget in (1, 10, 70):
        got = adaptive_alpha(i_f, i_ref, adaptive_share(forget, 100))
        np.testing.assert_allclose(got, published(i_f, i_ref, forget, 100), rtol=1e-10)


def test_the_method_uses_the_retained_data_and_batches_of_1024(single):
    """Sets of at most 1024 examples are one batch: the square of their mean gradient."""
    forget, retain = (moments_of(single.model, single.params, d) for d in single.request[:2])
    i_f, i_r = (importance(m, 1024) for m in (forget, retain))
    chex.assert_trees_all_close(i_f, jax.tree.map(jnp.square, forget.mean), rtol=1e-6)
    alpha = published(i_f, i_r, 8, 24)
    out = unlearn(single)
    np.testing.assert_allclose(out.info.alpha, alpha, rtol=1e-3)
    expected = jax.tree.map(
        lambda p, f, r: np.where(f > alpha * r, p * np.minimum(r / f, 1), p),
        single.params,
        i_f,
        i_r,
    )
    chex.assert_trees_all_close(out.params, expected, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 8])
def test_the_share_that_is_edited_grows_with_the_forget_set(count):
    """Of 64 x 50 entries the rule selects the share that it names, up to one entry of each."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 64)).astype(np.float32)
    model = cases.by_hand(lambda p, b: b["x"] @ p, None)
    data = ju.data.in_memory({"x": x, "y": rng.integers(0, 50, 40).astype(np.int32)})
    rows = np.arange(40)
    request = ju.Request(data.take(rows[:count]), data.take(rows[count:]))
    params = 0.1 * jax.random.normal(KEY, (64, 50))
    out = assd(effective_batch=1).unlearn(model, params, request, KEY)
    expected = float(adaptive_share(count, 40))
    np.testing.assert_allclose(out.info.selected, expected, atol=1.5 / params.size)
    assert (np.asarray(out.params != params).mean() - expected) < 1.5 / params.size


def test_weights_only_shrink_and_the_floor_holds(single):
    for floor, least in ((0.0, 0.0), (0.75, 0.75)):
        out = unlearn(single, floor=floor).params
        for new, old in zip(jax.tree.leaves(out), jax.tree.leaves(single.params), strict=True):
            assert (jnp.abs(new) <= jnp.abs(old)).all() and (new * old >= 0).all()
            assert (jnp.abs(new) >= least * jnp.abs(old) * (1 - 1e-6)).all()
    assert laws.different(out, single.params)


def test_the_scale_of_the_loss_does_not_matter(single):
    model = dataclasses.replace(single.model, loss=lambda p, b: 8.0 * single.model.loss(p, b))
    scaled = unlearn(dataclasses.replace(single, model=model))
    laws.bits(scaled.params, unlearn(single).params)


def test_stored_moments_stand_in_for_the_retained_data(single):
    everything = ju.data.concatenate(*single.request[:2])
    stored = moments_of(single.model, single.params, everything)
    method = assd(effective_batch=4, stored=stored)
    assert method.needs == {"forget", "labels"}
    request = ju.Request(single.request.forget)
    out = method.unlearn(single.model, single.params, request, KEY)
    expected = unlearn(single, effective_batch=4)
    chex.assert_trees_all_close(out, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="assd: the stored moments are of 5 examples, and 8 are"):
        assd(stored=stored._replace(count=jnp.float32(5))).unlearn(
            single.model, single.params, request, KEY
        )


def test_the_full_set_as_reference_counts_the_forget_set_once(single):
    out = unlearn(single, reference="full", effective_batch=1)
    whole = moments_of(single.model, single.params, ju.data.concatenate(*single.request[:2]))
    forget = moments_of(single.model, single.params, single.request.forget)
    expected = published(forget.square, whole.square, 8, 24)
    np.testing.assert_allclose(out.info.alpha, expected, rtol=1e-3)


def test_without_any_finite_ratio_nothing_is_edited(single):
    """A retain set whose gradients all vanish: 0/0 and x/0 only."""
    still = single.request.retain.replace(x=np.zeros((16, 4), np.float32), flat=np.zeros(16))
    moving = single.request.forget.replace(flat=np.ones(8))

    def loss(p, b):
        return b["flat"] * single.model.loss(p, b)

    model = dataclasses.replace(single.model, loss=loss)
    case = dataclasses.replace(single, model=model, request=ju.Request(moving, still))
    out = unlearn(case)
    laws.bits(out.params, single.params)
    assert np.isnan(out.info.alpha) and float(out.info.selected) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dampening": -1.0}, "assd: expected alpha >= 0, dampening >= 0.*dampening=-1.0"),
        ({"floor": 2.0}, "assd: .*floor=2.0"),
        ({"effective_batch": 0}, "assd: batches must be >= 1"),
        ({"batching": "sorted"}, "assd: batching must be"),
        ({"reference": "forget"}, "assd: reference must be"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        assd(**options)


def test_the_reference_must_be_there(single):
    with pytest.raises(ValueError, match="assd needs request.retain, which is None"):
        assd().unlearn(single.model, single.params, ju.Request(single.request.forget), KEY)
