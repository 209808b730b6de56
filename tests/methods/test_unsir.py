"""UNSIR: noise whose loss is stationary in closed form, then two passes written out by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.data.streams import as_data
from jaxunlearn.methods.descent.unsir import (
    _some,
    error_maximising_noise,
    labels_in_proportion,
)
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(4)
SMALL = {"samples": 4, "copies": 2, "noise_steps": 5}
METHOD = ju.unsir(optax.sgd(0.2), **SMALL)  # compiled once for the file


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


# ------------------------------------------------------------------------------------ the noise


def test_the_noise_is_where_its_pull_meets_its_energy(x64):
    """For logits N W: 2 energy N = dl/dN = (softmax(N W) - onehot(y)) W'."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    model = cases.by_hand(lambda p, b: b["x"] @ p, None)
    labels = jnp.array([0, 0, 2])
    out = error_maximising_noise(
        model, w, {"x": jnp.zeros((1, 4))}, labels, optax.sgd(0.5), key=KEY, steps=200, energy=0.3
    )
    noise = out.params
    residual = jax.nn.softmax(noise @ w) - jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(2 * 0.3 * noise, residual @ w.T, atol=1e-9)
    assert (jnp.argmax(noise @ w, axis=1) != labels).all()
    losses = model.loss(w, {"x": noise, "y": labels})
    at_zero = model.loss(w, {"x": jnp.zeros((3, 4)), "y": labels})
    assert (losses > at_zero).all()
    expected = (0.3 * jnp.square(noise).sum(axis=1) - losses).mean()
    np.testing.assert_allclose(out.info.losses[-1], expected, rtol=1e-6)


def test_the_noise_starts_as_standard_normal_and_looks_like_an_input():
    like = {"x": jnp.zeros((1, 5, 4), jnp.bfloat16)}
    model = cases.by_hand(lambda p, b: b["x"].sum(axis=1).astype(jnp.float32) @ p, None)
    out = error_maximising_noise(
        model, jnp.ones((4, 3)), like, jnp.zeros(300, jnp.int32), optax.sgd(0.1), key=KEY, steps=0
    )
    assert out.params.shape == (300, 5, 4) and out.params.dtype == jnp.bfloat16
    assert abs(float(out.params.astype(jnp.float32).std()) - 1) < 0.05


def test_noise_has_the_labels_of_the_forget_set_in_proportion():
    data = ju.data.in_memory({"y": np.array([5, 5, 5, 7]), "x": np.zeros(4, np.float32)}, 3)
    counts = np.bincount(labels_in_proportion(data, 40), minlength=8)
    assert counts[5] == 30 and counts[7] == 10
    np.testing.assert_array_equal(labels_in_proportion(as_data(list(data)), 40),
                                  labels_in_proportion(data, 40))  # fmt: skip
    weighted = data.replace(weight=np.array([0, 1, 0, 2], np.float32), y=np.array([1, 5, 3, 7]))
    counts = np.bincount(labels_in_proportion(weighted, 30), minlength=8)
    assert counts[5] == 10 and counts[7] == 20


def test_a_sample_has_so_many_distinct_rows_and_of_a_stream_the_first(case):
    retain = case.request.retain
    some = _some(retain, 7, KEY)
    ids = np.asarray(some["id"])
    assert len(set(ids)) == 7 and set(ids) < set(np.asarray(retain["id"]))
    assert _some(retain, 16, KEY) is retain
    stream = as_data(list(retain))
    first = _some(stream, 7, KEY)
    assert (first.num_batches, first.num_examples) == (2, 12)
    seen = np.concatenate([b["id"] for b in first])
    np.testing.assert_array_equal(seen, np.asarray(retain["id"])[:12])
    assert _some(stream, 16, KEY) is stream


# ---------------------------------------------------------------------------------- the two passes


def by_hand(case, key, impair_rate, repair_rate):
    """The three phases for a problem of one batch, with plain gradient steps."""
    _, noise_key, *_ = jax.random.split(key, 4)
    retain = case.request.retain.arrays
    labels = jnp.zeros(4, jnp.int32)
    noise = error_maximising_noise(
        case.model, case.params, retain, labels, optax.adam(0.1), key=noise_key, steps=5
    ).params
    mixed = {
        "x": jnp.concatenate([noise, noise, retain["x"]]),
        "y": jnp.concatenate([labels, labels, retain["y"]]),
    }
    params, after = case.params, []
    for batch, rate in ((mixed, impair_rate), (retain, repair_rate)):
        grads = jax.jit(jax.grad(lambda p: case.model.loss(p, batch).mean()))(params)  # noqa: B023
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)  # noqa: B023
        after.append(params)
    return after


def test_a_run_is_learn_impair_repair(single):
    """The repair pass has half the rate of the impair pass unless it is given its own."""
    out = unlearn(METHOD, single)
    impaired, expected = by_hand(single, KEY, 0.2, 0.1)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-4, atol=1e-5)
    assert abs(impaired[0][0] - expected[0][0]).max() > 1e-2  # as much as a full rate would add
    assert [int(part.steps) for part in out.info[:3]] == [5, 1, 1]


def test_without_impairing_it_is_fine_tuning_on_a_sample(single):
    method = ju.unsir(optax.sgd(7.0), repair_tx=optax.sgd(0.1), impair_epochs=0, **SMALL)
    plain = unlearn(ju.finetune(optax.sgd(0.1), epochs=1), single)
    chex.assert_trees_all_close(unlearn(method, single).params, plain.params, rtol=1e-5, atol=1e-6)


def test_the_forget_inputs_are_never_read_and_the_labels_are(single):
    forget = single.request.forget
    other = forget.replace(x=np.full((8, 4), 1e6, np.float32))
    changed = unlearn(METHOD, single, single.request._replace(forget=other))
    laws.bits(unlearn(METHOD, single).params, changed.params)
    relabelled = single.request._replace(forget=forget.replace(y=np.full(8, 1, np.int32)))
    assert laws.different(unlearn(METHOD, single, relabelled).params, changed.params)


def test_the_candidates_are_the_start_and_both_passes(single):
    """Far from the origin is where the impair pass leads with this rate, and repairing back."""
    tx = optax.sgd(20.0)
    method = ju.unsir(tx, repair_tx=optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)),
                      **SMALL)  # fmt: skip
    out = unlearn(ju.keep_best(method, lambda m, p: jnp.linalg.norm(p[0][0])), single)
    assert out.info.impair.best_score > jnp.linalg.norm(single.params[0][0])
    best = max(out.info.impair.best_score, out.info.repair.best_score)
    np.testing.assert_allclose(jnp.linalg.norm(out.params[0][0]), best, rtol=1e-5)


def test_a_run_that_diverges_says_so_and_keeps_the_last_finite_params(single):
    huge = jax.tree.map(lambda p: p * 1e38, single.params)
    out = METHOD.unlearn(single.model, huge, single.request, KEY)
    assert out.info.status == out.info.impair.status == Status.DIVERGED
    chex.assert_tree_all_finite(out.params)


def test_a_class_is_forgotten_and_the_others_are_kept(clusters):
    """Three clouds, a small network; class 0 goes, and repairing gives the others back."""
    data = ju.data.in_memory(clusters, 16)
    gone = clusters["y"] == 0
    request = ju.Request(forget=data.take(gone), retain=data.take(~gone))
    case = cases.tuple_case()
    params = ju.train(case.model, optax.adam(0.03), data, key=KEY, epochs=20).params

    @jax.jit
    def scores(params, part):
        hits = case.model.outputs(params, part.arrays).argmax(axis=1) == part["y"]
        return hits.mean(), case.model.loss(params, part.arrays).mean()

    method = ju.unsir(optax.adam(0.05), samples=16, copies=2, impair_epochs=3, repair_epochs=3)
    out = method.unlearn(case.model, params, request, KEY)
    assert out.info.status == Status.COMPLETED
    (knew, little), (_, much) = (scores(p, request.forget) for p in (params, out.params))
    assert knew > 0.9 and much > 3 * little
    assert scores(out.params, request.retain)[0] > 0.9


# ------------------------------------------------------------------------------------- refusals


def test_tokens_cannot_be_learnt_by_descent():
    model = ju.Model(
        outputs=lambda p, b: p[b["x"]],
        loss=lambda p, b: ju.losses.cross_entropy(p[b["x"]], b["y"]),
    )
    rows = {"x": np.array([0, 1], np.int32), "y": np.array([0, 1], np.int32)}
    request = ju.Request(forget=rows, retain={"x": rows["x"], "y": rows["y"][::-1].copy()})
    with pytest.raises(TypeError, match="unsir learns inputs .* must be float, got int32"):
        ju.unsir().unlearn(model, jnp.ones((2, 3)), request, KEY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 0}, "samples, copies and retain_per_class must be >= 1.*samples=0"),
        ({"copies": 0}, "copies=0"),
        ({"retain_per_class": 0}, "retain_per_class=0"),
        ({"noise_steps": -1}, "noise_steps and epochs >= 0.*noise_steps=-1"),
        ({"impair_epochs": -1}, "impair_epochs=-1"),
        ({"repair_epochs": -1}, "repair_epochs=-1"),
        ({"energy": 0.0}, "unsir: energy must be a finite number > 0, got 0.0"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.unsir(**given)


@pytest.mark.slow
def test_the_defaults_are_the_published_constants(single):
    """Adam 0.02 then 0.01, 256 noises by 40 steps of Adam 0.1, twenty copies."""
    written = ju.unsir(
        optax.adam(0.02),
        repair_tx=optax.adam(0.01),
        noise_tx=optax.adam(0.1),
        samples=256,
        copies=20,
        noise_steps=40,
        energy=0.1,
    )
    big = dataclasses.replace(single.request.retain, batch_size=4096)
    request = single.request._replace(retain=big)
    ours, theirs = (unlearn(m, single, request) for m in (ju.unsir(), written))
    laws.close(ours.params, theirs.params)
    assert [len(part.losses) for part in ours.info[:3]] == [40, 2, 1]
