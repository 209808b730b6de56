"""Lipschitz unlearning: sequential SGD on slopes, written out; and what it does to two moons."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import make_moons

import jaxunlearn as ju
from jaxunlearn.flatness import directional_slopes, finite_slopes, slope_penalty
from jaxunlearn.training import Status
from tests.suite import laws

KEY = jax.random.key(6)
BUILDERS = {"jit_lipschitz": ju.jit_lipschitz, "info_theoretic": ju.info_theoretic}
BOTH = pytest.mark.parametrize("name", BUILDERS)


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


def wave(a, batch):
    """f(x) = sin(a x), one input and one output: |J u| = |a cos(a x)| for every direction u."""
    return jnp.sin(a * batch["x"])


WAVE = ju.Model(outputs=wave, loss=lambda a, batch: wave(a, batch)[:, 0])


def wave_request(x, batch_size):
    return ju.Request(forget=ju.data.in_memory({"x": np.asarray(x)[:, None]}, batch_size))


def sequential(a, batches, rate):
    """a <- a - rate sum_i d|a cos(a x_i)|/da, batch after batch, by hand."""
    for x in batches:
        sign = np.sign(a * np.cos(a * x))
        a = a - rate * np.sum(sign * (np.cos(a * x) - a * x * np.sin(a * x)))
    return a


# -------------------------------------------------------------------------- the published loop


def test_steps_are_sequential_sums_over_batches_in_stored_order(x64):
    x = np.array([0.3, 0.5, -0.4, 0.8, 1.1])
    method = ju.info_theoretic(optax.sgd(0.05), samples=2)
    run = lambda x: method.unlearn(WAVE, jnp.asarray(1.3), wave_request(x, 2), KEY)  # noqa: E731
    out = run(x)
    assert int(out.info.steps) == 3  # one pass
    expected = sequential(1.3, [x[:2], x[2:4], x[4:]], 0.05)
    np.testing.assert_allclose(out.params, expected, rtol=1e-12)
    backwards = sequential(1.3, [x[:2:-1], x[2:0:-1], x[:1]], 0.05)
    np.testing.assert_allclose(run(x[::-1]).params, backwards, rtol=1e-12)
    assert abs(expected - backwards) > 1e-4


def test_the_size_of_a_batch_scales_the_step_of_a_sum_and_not_of_a_mean(x64):
    x = np.array([0.3, 0.5, -0.4])
    step = {}
    for reduction in ("sum", "mean"):
        method = ju.info_theoretic(optax.sgd(0.05), samples=2, reduction=reduction)
        for copies in (1, 2):
            request = wave_request(np.tile(x, copies), 6)
            out = method.unlearn(WAVE, jnp.asarray(1.3), request, KEY)
            step[reduction, copies] = float(out.params) - 1.3
    np.testing.assert_allclose(step["sum", 2], 2 * step["sum", 1], rtol=1e-12)
    np.testing.assert_allclose(step["mean", 2], step["mean", 1], rtol=1e-12)
    np.testing.assert_allclose(step["sum", 1], 3 * step["mean", 1], rtol=1e-12)


@BOTH
def test_the_mean_with_a_rate_multiplied_by_the_batch_is_the_sum(name, case):
    build = partial(BUILDERS[name], samples=2)
    one = ju.Request(forget=dataclasses.replace(case.request.forget, batch_size=4))
    summed = unlearn(build(optax.sgd(0.01)), case, one)
    meant = unlearn(build(optax.sgd(0.04), reduction="mean"), case, one)
    laws.close(summed.params, meant.params)


@pytest.mark.parametrize(
    ("name", "slopes", "options"),
    [
        ("jit_lipschitz", finite_slopes, {"sigma": 0.3, "clip": False, "symmetric": True}),
        ("jit_lipschitz", finite_slopes, {}),
        ("info_theoretic", directional_slopes, {}),
    ],
)
def test_a_run_is_fit_of_the_penalty_without_shuffling(name, slopes, options, case):
    """Every option arrives; another order, or shuffling, is another result."""
    out = unlearn(
        BUILDERS[name](optax.sgd(0.1), samples=3, micro_batch=2, epochs=2, **options), case
    )
    objective = slope_penalty(case.model, slopes, samples=3, **options)
    forget = {"forget": case.request.forget.drop("y")}
    run = partial(ju.fit, objective, optax.sgd(0.1), case.params, forget, key=KEY, epochs=2)
    fitted = run(shuffle=False)
    np.testing.assert_allclose(out.info.losses, fitted.info.losses, rtol=1e-4)
    laws.close(out.params, fitted.params)
    assert not np.allclose(run(shuffle=True).info.losses, out.info.losses, rtol=1e-3)


def test_the_defaults_are_the_published_constants(case):
    """sigma 0.5, 25 clipped noises, constant noisy side, sum, plain SGD of 3e-4, one pass."""
    out = unlearn(ju.jit_lipschitz(), case)
    written = slope_penalty(
        case.model, finite_slopes, sigma=0.5, samples=25, clip=True, symmetric=False
    )
    forget = {"forget": case.request.forget.drop("y")}
    fitted = ju.fit(written, optax.sgd(3e-4), case.params, forget, key=KEY, epochs=1, shuffle=False)
    np.testing.assert_allclose(out.info.losses, fitted.info.losses, rtol=1e-5)
    chex.assert_trees_all_close(out.params, fitted.params, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------- the identities


@BOTH
def test_a_rate_of_zero_changes_not_one_bit(name, case):
    laws.bits(unlearn(BUILDERS[name](optax.sgd(0.0), samples=2), case).params, case.params)


@BOTH
def test_a_constant_function_is_left_alone(name, case):
    model = ju.Model(
        outputs=lambda p, b: jnp.ones((b["x"].shape[0], 3)) * p["head"]["b"].sum(),
        loss=case.model.loss,
    )
    out = BUILDERS[name](optax.sgd(1.0), samples=2).unlearn(model, case.params, case.request, KEY)
    laws.bits(out.params, case.params)
    assert (out.info.losses == 0).all()


def test_without_clipping_the_symmetric_steps_shrink_a_linear_map(single):
    method = ju.jit_lipschitz(optax.sgd(1e-3), clip=False, symmetric=True, epochs=5)
    out = unlearn(method, single)
    (before,), bias = single.params
    (after,), other = out.params
    assert jnp.linalg.norm(after) < jnp.linalg.norm(before)
    np.testing.assert_array_equal(other, bias)  # the same on both sides


@BOTH
def test_labels_are_neither_needed_nor_read(name, case):
    method = BUILDERS[name](optax.sgd(0.1), samples=2)
    assert method.needs == {"forget", "key"}
    unlabelled = ju.Request(forget=case.request.forget.drop("y"))
    wrong = case.request.forget.replace(y=np.full(8, 2, np.int32))
    out = unlearn(method, case)
    for request in (unlabelled, ju.Request(forget=wrong)):
        laws.bits(unlearn(method, case, request).params, out.params)


@BOTH
def test_rows_of_weight_zero_are_not_unlearnt(name, single):
    forget = single.request.forget
    weight = np.array([1, 1, 0, 1, 1, 0, 1, 1], np.float32)
    far = np.where(weight[:, None] > 0, forget["x"], 1e3)
    method = BUILDERS[name](optax.sgd(0.01), samples=2)
    one, other = (
        unlearn(method, single, ju.Request(forget=forget.replace(x=x, weight=weight)))
        for x in (forget["x"], far.astype(np.float32))
    )
    laws.bits(one.params, other.params)


@BOTH
def test_a_run_that_diverges_keeps_the_last_finite_params(name, single):
    """The first step makes weights of about 1e30, whose slopes overflow when squared."""
    out = unlearn(BUILDERS[name](optax.sgd(1e30), samples=2, epochs=4), single)
    assert out.info.status == Status.DIVERGED and out.info.steps == 1
    chex.assert_tree_all_finite(out.params)


# ------------------------------------------------------------------------------------- refusals


@BOTH
def test_tokens_have_no_neighbourhood(name):
    model = ju.Model(outputs=lambda p, b: p[b["x"]], loss=lambda p, b: p[b["x"]][:, 0])
    request = ju.Request(forget={"x": np.array([0, 1, 1], np.int32)})
    with pytest.raises(TypeError, match="must be float, got int32. Convert images to float"):
        BUILDERS[name]().unlearn(model, jnp.ones((2, 3)), request, KEY)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_of_no_or_infinite_size_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite number > 0.*is info_theoretic"):
        ju.jit_lipschitz(sigma=sigma)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples and micro_batch must be >= 1, got samples=0, micro_batch=None"),
        ({"micro_batch": 0}, "got samples=25, micro_batch=0"),
        ({"reduction": "max"}, "reduction must be 'sum' or 'mean', got 'max'"),
        ({"epochs": -1}, "the length of a run must be >= 0"),
    ],
)
def test_constants_outside_their_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}|{name}: {message}"):
        BUILDERS[name](**options)


# ------------------------------------------------------------------------------------ behaviour


@pytest.fixture(scope="module")
def moons():
    """Two moons, a small network, and the fifteen rows nearest its boundary in one place."""
    x, y = make_moons(300, noise=0.1, random_state=0)
    columns = {"x": x.astype(np.float32), "y": y.astype(np.int32)}

    def outputs(p, batch):
        hidden = jnp.tanh(batch["x"] @ p["w"] + p["b"][None])
        return jnp.tanh(hidden @ p["u"]) @ p["v"]

    def init(key):
        w, u, v = jax.random.split(key, 3)
        return {
            "w": jax.random.normal(w, (2, 16)),
            "b": jnp.zeros(16),
            "u": jax.random.normal(u, (16, 16)) / 4,
            "v": jax.random.normal(v, (16, 2)) / 4,
        }

    model = ju.Model(
        outputs=outputs,
        loss=lambda p, b: ju.losses.cross_entropy(outputs(p, b), b["y"]),
        init=init,
    )
    data = ju.data.in_memory(columns, 64)
    params = ju.train(model, optax.adam(1e-2), data, key=jax.random.key(0), epochs=40).params
    z = np.asarray(outputs(params, columns))
    centre = x[np.abs(z[:, 0] - z[:, 1]).argmin()]
    near = np.argsort(((x - centre) ** 2).sum(1))[:15]
    kept = np.setdiff1d(np.arange(300), near)
    return model, params, ju.Request(forget=data.take(near), retain=data.take(kept))


def local_slopes(model, params, x, step=0.05):
    """Mean difference quotient over a ring of sixteen directions, (n,): not our own estimate."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    z = np.asarray(model.outputs(params, {"x": x}))
    found = []
    for angle in angles:
        moved = x + step * np.array([np.cos(angle), np.sin(angle)], np.float32)[None]
        other = np.asarray(model.outputs(params, {"x": moved}))
        found.append(np.linalg.norm(other - z, axis=1) / step)
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    "method",
    [
        ju.jit_lipschitz(optax.sgd(3e-3), sigma=0.3, epochs=10),
        ju.jit_lipschitz(optax.sgd(3e-3), sigma=0.3, epochs=10, symmetric=True, clip=False),
        ju.info_theoretic(optax.sgd(3e-3), epochs=10),
    ],
    ids=["published", "symmetric", "info_theoretic"],
)
def test_on_two_moons_the_function_gets_flatter_where_it_forgets(method, moons):
    model, params, request = moons
    out = method.unlearn(model, params, request, KEY)
    assert out.info.status == Status.COMPLETED
    x = np.asarray(request.forget["x"])
    before, after = (local_slopes(model, p, x).mean() for p in (params, out.params))
    assert after < 0.9 * before, (before, after)
