"""Gaussian-Amnesiac: random targets, the mean they teach, and how often they are drawn."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxunlearn as ju
from jaxunlearn.data import InMemory, in_memory
from jaxunlearn.methods.descent.gaussian_amnesiac import redrawn, target_moments
from jaxunlearn.methods.descent.union import union
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(3)


def squared(params, batch):
    """An intercept and nothing else: it cannot memorise."""
    return ju.losses.squared_error(jnp.broadcast_to(params, batch["y"].shape), batch["y"])


def absolute(params, batch):
    return jnp.abs(params - batch["y"][:, 0])


def intercept(loss):
    return ju.Model(outputs=lambda p, batch: jnp.broadcast_to(p, batch["y"].shape), loss=loss)


def request(forgotten=40, retained=60, batch_size=100):
    rng = np.random.default_rng(0)
    y = rng.gamma(2.0, 3.0, (forgotten + retained, 1))
    data = in_memory({"x": y, "y": y, "id": np.arange(len(y))}, batch_size)
    parts = np.arange(forgotten), np.arange(forgotten, forgotten + retained)
    return ju.Request(*(data.take(rows) for rows in parts)), y


def run(method, loss, asked, start=0.0):
    return method.unlearn(intercept(loss), jnp.asarray([start]), asked, KEY)


# ------------------------------------------------------------------------------------ the targets


def test_mean_and_deviation_are_those_of_all_targets_and_weights_are_counts(x64):
    rng = np.random.default_rng(1)
    first, second = rng.normal(2.0, 3.0, (7, 2)), rng.normal(-1.0, 1.0, (5, 2))
    count = np.array([2, 0, 1, 1, 3])
    mean, deviation = target_moments(
        in_memory({"y": first}), in_memory({"y": second, "weight": count.astype(float)})
    )
    everything = np.concatenate([first, np.repeat(second, count, axis=0)])
    np.testing.assert_allclose(mean, everything.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(deviation, everything.std(axis=0), rtol=1e-14)


def test_streams_have_the_same_moments(x64):
    asked, y = request(batch_size=16)
    inside = target_moments(asked.forget, asked.retain)
    outside = target_moments(*(ju.data.as_data(list(part)) for part in asked[:2]))
    chex.assert_trees_all_close(inside, outside, rtol=1e-14)
    np.testing.assert_allclose(inside[0], y.mean(axis=0), rtol=1e-14)


def test_draws_are_gaussian_with_these_moments_and_not_clipped(x64):
    moments = jnp.asarray([5.0]), jnp.asarray([2.0])
    drawn = redrawn(InMemory({"y": jnp.ones((4000, 1))}, 8), moments, KEY)
    assert isinstance(drawn, InMemory)
    found = np.asarray(drawn["y"])[:, 0]
    assert stats.kstest(found, stats.norm(5.0, 2.0).cdf).pvalue > 0.01
    assert stats.kstest(found, stats.norm(5.0, 2.3).cdf).pvalue < 1e-3  # which sees a wrong one
    assert found.min() < 0


def test_a_stream_is_redrawn_alike_in_every_pass_and_each_batch_differently():
    batch = {"x": np.ones((3, 1), np.float32), "y": np.ones((3, 1), np.float32)}
    moments = jnp.zeros(1), jnp.ones(1)
    stream = redrawn(ju.data.from_batches([batch, batch]), moments, KEY)
    first, second = ([np.asarray(b["y"]) for b in stream] for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(*first)


# ------------------------------------------------------------------------- what the model learns


def test_an_intercept_learns_the_mean_of_all_targets_after_relabelling(x64):
    """Newton's step of the squared loss is a rate of 1/2: one full batch, the mean, exactly."""
    asked, y = request()
    out = run(ju.gaussian_amnesiac(optax.sgd(0.5)), squared, asked)
    moments = target_moments(asked.forget, asked.retain)
    drawn = redrawn(asked.forget, moments, jax.random.split(KEY)[0])
    relabelled = np.concatenate([np.asarray(drawn["y"]), y[40:]])
    np.testing.assert_allclose(out.params, relabelled.mean(axis=0), rtol=1e-12)
    assert abs(relabelled.mean() - y.mean()) > 1e-3  # other targets, another mean


@pytest.mark.parametrize("loss", [squared, absolute])
def test_forgotten_predictions_go_to_mu_under_either_loss(loss, x64):
    """Only forget rows, many of them: the mean and the median of the Gaussian are mu."""
    asked, y = request(forgotten=20_000, retained=20, batch_size=20_000)
    lone = dataclasses.replace(asked.retain, arrays=dict(asked.retain.arrays))
    lone = lone.replace(weight=np.full(20, 1e-9))
    asked = asked._replace(retain=dataclasses.replace(lone, batch_size=20_020))
    tx, epochs = (optax.sgd(0.5), 1) if loss is squared else (optax.sgd(4.0), 60)
    out = run(ju.gaussian_amnesiac(tx, epochs=epochs), loss, asked, 20.0)
    mu, sd = y[:20_000].mean(), y[:20_000].std()
    assert abs(float(out.params[0]) - mu) < 4 * 1.26 * sd / np.sqrt(20_000)
    assert abs(mu - np.median(y)) > 0.3  # the targets' own median is elsewhere


def losses(relabel):
    """Of a model that does not move, in two epochs of one batch."""
    asked, _ = request()
    return run(
        ju.gaussian_amnesiac(optax.sgd(0.0), epochs=2, relabel=relabel), squared, asked
    ).info.losses


def test_once_keeps_its_targets_and_each_epoch_draws_new_ones():
    first, second = losses("once")
    np.testing.assert_allclose(first, second, rtol=1e-5)
    first, second = losses("epoch")
    assert abs(first - second) > 1e-2 * first


def test_targets_of_each_epoch_are_drawn_for_forgotten_rows_alone(x64):
    """With one forget row among many, the loss differs by what that row can do."""
    asked, y = request(forgotten=1, retained=99)
    out = run(ju.gaussian_amnesiac(optax.sgd(0.0), epochs=40, relabel="epoch"), squared, asked)
    drawn = 100 * np.asarray(out.info.losses, np.float64) - (y[1:] ** 2).sum()
    mu, sd = y.mean(), y.std()
    assert (drawn > -0.1).all()  # a square, up to the float32 of the recorded losses
    assert abs(np.mean(drawn) - (mu**2 + sd**2)) < 4 * np.std(drawn) / np.sqrt(40)


# ------------------------------------------------------------------------------------------- union


def test_the_union_flags_what_is_forgotten_in_memory_and_streaming(case):
    forget, retain = case.request.forget, case.request.retain
    both = union(forget, retain)
    assert both["forget"].tolist() == [True] * 8 + [False] * 16 and both.batch_size == 6
    assert both["id"].tolist() == list(range(100, 124))
    flags = {
        int(i): bool(f)
        for batch in union(list(forget), retain)
        for i, f, w in zip(batch["id"], batch["forget"], batch["weight"], strict=True)
        if w > 0
    }
    assert flags == {i: i < 108 for i in range(100, 124)}


def test_relabelling_in_each_epoch_streams_too():
    small = cases.suited("gaussian_amnesiac", cases.dict_case())
    laws.streams(ju.gaussian_amnesiac(cases.TX, relabel="epoch"), small)


# ----------------------------------------------------------------------------------------- refusals


def test_classes_are_refused_and_the_method_for_them_is_named(case):
    with pytest.raises(TypeError, match="must be real numbers, got labels of int32.*random_labels"):
        ju.gaussian_amnesiac().unlearn(case.model, case.params, case.request, KEY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"relabel": "always"}, "relabel must be 'once' or 'epoch', got 'always'"),
        ({"epochs": -1}, "gaussian_amnesiac: epochs must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.gaussian_amnesiac(**given)


def test_divergence_keeps_the_last_finite_params():
    asked, _ = request()
    out = run(ju.gaussian_amnesiac(optax.sgd(1e38), epochs=5), squared, asked)
    assert out.info.status == Status.DIVERGED and jnp.isfinite(out.params).all()
