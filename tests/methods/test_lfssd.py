"""Loss-free SSD: closed forms, brute force over batches, and that labels are not looked at."""

import dataclasses
import itertools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.edits.dampening import NothingSelectedWarning
from jaxunlearn.methods.edits.lfssd import lfssd, magnitude, output_moments, output_norm
from jaxunlearn.methods.edits.moments import Moments, load_moments, save_moments, union
from tests.suite import cases, laws

KEY = jax.random.key(0)


def unlearn(case, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSelectedWarning)
        return lfssd(**options).unlearn(case.model, case.params, case.request, KEY)


def gradients(case, data):
    """Leaves (n, ...): the gradient of |f(x_i)|^2, one at a time."""
    rows = [
        jax.tree.map(lambda c, i=i: c[i : i + 1], data.arrays) for i in range(data.num_examples)
    ]

    @jax.jit
    def gradient(row):
        return jax.grad(lambda p: (case.model.outputs(p, row) ** 2).sum())(case.params)

    return jax.tree.map(lambda *g: np.stack(g), *map(gradient, rows))


def test_the_importance_is_the_mean_absolute_gradient_of_the_squared_length(single):
    got = output_moments(single.model, single.params, single.request.forget)
    each = gradients(single, single.request.forget)
    expected = [jax.tree.map(f, each) for f in (
        lambda g: (g**2).mean(axis=0), lambda g: g.mean(axis=0), lambda g: np.abs(g).mean(axis=0)
    )]  # fmt: skip
    chex.assert_trees_all_close([got.square, got.mean, got.absolute], expected, rtol=1e-4)
    assert float(got.count) == 8
    chex.assert_trees_all_equal(magnitude(got, 1), got.absolute)


def test_one_linear_output_has_its_closed_form():
    """f = x . theta gives a_j = mean_i |2 f_i x_ij|."""
    rng = np.random.default_rng(5)
    x, theta = rng.standard_normal((30, 4)), np.array([1.0, -2.0, 0.5, 3.0])
    x[:6, 3] *= 20
    data = ju.data.in_memory({"x": x.astype(np.float32)})
    outputs = lambda p, b: b["x"] @ p  # noqa: E731
    model = ju.Model(outputs=outputs, loss=outputs)
    request = ju.Request(data.take(np.arange(6)), data.take(np.arange(6, 30)))
    each = np.abs(2 * (x @ theta)[:, None] * x)
    a_f, a_full = each[:6].mean(axis=0), each.mean(axis=0)
    alpha = float(np.sort(a_f / a_full)[1:3].mean())
    expected = np.where(a_f > alpha * a_full, theta * np.minimum(0.5 * a_full / a_f, 1), theta)
    assert (expected != theta).sum() == 2
    case = cases.Case(model, jnp.asarray(theta, jnp.float32), request)
    got = unlearn(case, alpha=alpha, dampening=0.5)
    np.testing.assert_allclose(got.params, expected, rtol=1e-4)
    np.testing.assert_allclose(got.info.largest_ratio, (a_f / a_full).max(), rtol=1e-4)
    assert float(got.info.selected) == 0.5


def test_outputs_with_positions_are_summed_over_all_of_them():
    norm = output_norm(lambda p, b: p * b["x"])
    x = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_allclose(norm(2.0, {"x": x}), 4 * (np.asarray(x) ** 2).sum(axis=(1, 2)))


@pytest.mark.parametrize("batch", [2, 4])
def test_batches_are_close_to_all_batches_of_the_set(single, batch):
    """Every subset of 8 examples by brute force; the normal shape is the only approximation."""
    data = single.request.forget
    each = gradients(single, data)
    subsets = list(itertools.combinations(range(8), batch))
    expected = jax.tree.map(
        lambda g: np.mean([np.abs(g[list(s)].mean(axis=0)) for s in subsets], axis=0), each
    )
    got = magnitude(output_moments(single.model, single.params, data), batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.2, atol=0.02 * b.max())


def test_of_normal_numbers_the_mean_absolute_value_is_exact(x64):
    """E|m + s z| by the trapezoidal rule over z, at means from none to many deviations."""
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    means = np.array([0.0, 0.3, -1.0, 5.0, -20.0])
    square = means**2 + 4 * 0.25  # v = 0.25 with B = 4 from very many
    got = magnitude(Moments(jnp.asarray(square), jnp.asarray(means), jnp.asarray(1e15)), 4)
    expected = [np.trapezoid(np.abs(m + 0.5 * z) * density, z) for m in means]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_a_batch_as_large_as_the_set_is_the_absolute_mean_gradient(single):
    moments = output_moments(single.model, single.params, single.request.forget)
    expected = jax.tree.map(jnp.abs, moments.mean)
    for batch in (8, 500):
        chex.assert_trees_all_equal(magnitude(moments, batch), expected)


def test_no_variance_is_no_approximation():
    moments = Moments(jnp.asarray([4.0, 0.0]), jnp.asarray([-2.0, 0.0]), jnp.asarray(100.0))
    np.testing.assert_array_equal(magnitude(moments, 16), [2.0, 0.0])


@pytest.mark.parametrize("batch", [1, 4])
def test_labels_are_not_read(case, batch):
    method = lfssd(alpha=1.1, effective_batch=batch)
    assert method.needs == {"forget", "retain"}
    plain = ju.Request(*(d.drop("y") for d in case.request[:2]))
    one = unlearn(case, alpha=1.1, effective_batch=batch)
    other = unlearn(dataclasses.replace(case, request=plain), alpha=1.1, effective_batch=batch)
    laws.bits(one.params, other.params)
    assert laws.different(one.params, case.params)


def test_a_threshold_at_the_bound_changes_not_one_bit(case):
    for alpha in (3.0, np.inf):
        laws.bits(unlearn(case, alpha=alpha).params, case.params)


def test_the_ratio_is_bounded_by_the_share_of_the_forget_set(single):
    parts = [output_moments(single.model, single.params, d) for d in single.request[:2]]
    both = union(*parts)
    for f, r in zip(*(jax.tree.leaves(m.absolute) for m in (parts[0], both)), strict=True):
        assert (f <= 3 * r * (1 + 1e-5)).all()


def test_what_cannot_work_is_said(case):
    with pytest.warns(NothingSelectedWarning, match="lfssd.*n/n_f = 3, and alpha = 5.*nothing can"):
        lfssd(alpha=5.0).unlearn(case.model, case.params, case.request, KEY)


@pytest.mark.parametrize("reference", ["full", "retain"])
def test_weights_only_shrink_and_the_others_keep_their_bits(case, reference):
    out = unlearn(case, alpha=1.1, reference=reference).params
    changed = total = 0
    for new, old in zip(jax.tree.leaves(out), jax.tree.leaves(case.params), strict=True):
        new, old = np.float32(new), np.float32(old)
        assert (np.abs(new) <= np.abs(old)).all() and (new * old >= 0).all()
        changed, total = changed + (new != old).sum(), total + old.size
    assert 0 < changed < total


def test_the_scale_of_the_outputs_does_not_matter(single):
    scaled = dataclasses.replace(single.model, outputs=lambda p, b: 4 * single.model.outputs(p, b))
    other = unlearn(dataclasses.replace(single, model=scaled), alpha=1.1)
    laws.bits(other.params, unlearn(single, alpha=1.1).params)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("reference", ["full", "retain"])
def test_stored_moments_stand_in_for_the_retained_data(single, batch, reference):
    """And then nothing is needed but the inputs to be forgotten."""
    everything = ju.data.concatenate(*single.request[:2])
    stored = output_moments(single.model, single.params, everything)
    options = {"alpha": 1.1, "effective_batch": batch, "reference": reference}
    method = lfssd(stored=stored, **options)
    assert method.needs == {"forget"}
    request = ju.Request(single.request.forget)
    out = unlearn(dataclasses.replace(single, request=request), stored=stored, **options)
    chex.assert_trees_all_close(out, unlearn(single, **options), rtol=1e-3, atol=1e-5)


def test_stored_moments_survive_the_disk(case, tmp_path):
    stored = output_moments(case.model, case.params, case.request.retain)
    path = save_moments(tmp_path / "moments", stored, case.params)
    laws.bits(load_moments(path, case.model, case.params), stored)


def test_moments_of_the_loss_have_no_absolute_values(single):
    stored = output_moments(single.model, single.params, single.request.retain)
    with pytest.raises(ValueError, match=r"no absolute at params\[0\]\[0\].*output_moments"):
        unlearn(single, stored=stored._replace(absolute=(), count=jnp.float32(24)))


def test_weights_count_as_repetitions(single):
    rows, weight = np.array([0, 1, 1, 1, 2, 2, 3, 4, 5, 6]), np.float32([1, 3, 2, 1, 1, 1, 1])
    twice = single.request.forget.take(rows)
    weighed = single.request.forget.take(np.arange(7)).replace(weight=weight)
    options = {"alpha": 1.1, "reference": "full"}
    outs = [
        unlearn(
            dataclasses.replace(single, request=single.request._replace(forget=forget)), **options
        )
        for forget in (twice, weighed)
    ]
    chex.assert_trees_all_close(*outs, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "lfssd: expected alpha >= 0"),
        ({"effective_batch": 0}, "lfssd: batches must be >= 1"),
        ({"reference": "forget"}, "lfssd: reference must be"),
        ({"stored": 3}, "lfssd: stored must be Moments.*got int"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        lfssd(**options)
