"""Bad teacher: its steps written out, its sample of the retained data, and where it leads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import jaxunlearn as ju
from jaxunlearn.methods.descent.bad_teacher import subset
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(4)


def linear(fresh):
    """Logits x W, with `fresh` as what every initialisation gives."""

    def outputs(w, batch):
        return batch["x"] @ w

    return dataclasses.replace(cases.by_hand(outputs, lambda key: fresh), features=None)


def softmax(z):
    return special.softmax(np.asarray(z, np.float64), axis=1)


def test_every_step_moves_towards_the_teacher_of_each_row(x64):
    """One batch of all rows: W <- W - rate/n sum_i x_i (softmax(x_i W) - softmax(t_i))'."""
    w_0 = np.random.default_rng(1).standard_normal((4, 3))
    w_d = np.random.default_rng(2).standard_normal((4, 3))
    request = cases.request(batch_size=32)
    x = np.asarray(cases.columns()["x"], np.float64)
    told = softmax(np.concatenate([x[:8] @ w_d, x[8:] @ w_0]))
    w = w_0
    for _ in range(3):
        w = w - 0.5 / 24 * x.T @ (softmax(x @ w) - told)
    method = ju.bad_teacher(optax.sgd(0.5), epochs=3, share=1.0)
    out = method.unlearn(linear(jnp.asarray(w_d)), jnp.asarray(w_0), request, KEY)
    np.testing.assert_allclose(out.params, w, rtol=1e-6, atol=1e-7)  # x is float32
    assert abs(w - w_0).max() > 0.1


def test_a_teacher_that_says_nothing_drives_what_is_forgotten_to_uniform():
    """Three kinds of rows, each an axis of its own; the first kind is to go."""
    y = np.repeat(np.arange(3), 4)
    data = ju.data.in_memory({"x": 2 * np.eye(4, dtype=np.float32)[y], "y": y}, 12)
    request = ju.Request(forget=data.take(y == 0), retain=data.take(y > 0))
    knows = 3 * jnp.eye(4, 3)
    method = ju.bad_teacher(optax.adam(0.05), epochs=150, share=1.0)
    out = method.unlearn(linear(jnp.zeros((4, 3))), knows, request, KEY).params
    before, after = (softmax(np.asarray(data["x"]) @ np.asarray(w)) for w in (knows, out))
    assert before[:4, 0].min() > 0.9
    np.testing.assert_allclose(after[:4], 1 / 3, atol=0.02)
    np.testing.assert_allclose(after[4:], before[4:], atol=0.02)


def test_a_share_of_the_retained_rows_is_drawn_once(case):
    retain = case.request.retain
    drawn = [np.asarray(subset(retain, 0.3, jax.random.key(k))["id"]) for k in (0, 0, 1)]
    assert len(set(drawn[0])) == 5 and set(drawn[0]) <= set(np.asarray(retain["id"]))  # ceil(4.8)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert set(drawn[0]) != set(drawn[2])
    assert set(np.asarray(subset(retain, 1.0, KEY)["id"])) == set(np.asarray(retain["id"]))
    assert subset(retain, 1e-6, KEY).num_examples == 1
    assert subset(retain.take(np.arange(10)), 0.3, KEY).num_examples == 3


def test_of_a_stream_whole_batches_are_drawn(case):
    stream = ju.data.from_batches(list(case.request.retain))
    part = subset(stream, 0.5, KEY)
    seen = [np.asarray(batch["id"])[np.asarray(batch["weight"]) > 0] for batch in part]
    assert (part.num_batches, len(seen)) == (2, 2)  # of three
    assert part.num_examples == sum(map(len, seen)) < 16
    again = [np.asarray(batch["id"])[np.asarray(batch["weight"]) > 0] for batch in part]
    for one, other in zip(seen, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_rows_of_the_retained_data_are_not_looked_at(case):
    """The losses of a share of one row do not change with the rows that were not drawn."""
    _, draw, _ = jax.random.split(KEY, 3)
    kept = int(subset(case.request.retain, 1e-6, draw)["id"][0])
    retain = case.request.retain
    other = np.where((np.asarray(retain["id"]) == kept)[:, None], retain["x"], 9.0)
    method = ju.bad_teacher(optax.sgd(0.1), share=1e-6, epochs=2)
    one = laws.run(method, case, KEY)
    assert one.info.losses.shape == (2 * 2,)  # passes over 8 + 1 rows in batches of 6
    changed = dataclasses.replace(
        case, request=case.request._replace(retain=retain.replace(x=other))
    )
    laws.bits(laws.run(method, changed, KEY).params, one.params)


def test_a_run_that_diverges_keeps_its_last_finite_params():
    method = ju.bad_teacher(optax.sgd(1e38), epochs=4)
    out = method.unlearn(linear(jnp.ones((4, 3))), jnp.eye(4, 3), cases.request(), KEY)
    assert out.info.status == Status.DIVERGED
    assert jnp.isfinite(out.params).all() and (out.params != jnp.eye(4, 3)).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "bad_teacher: share must be .*> 0.*got 0.0"),
        ({"share": 1.5}, "share must be .*<= 1.*got 1.5"),
        ({"temperature": -1.0}, "temperature must be .*> 0, got -1.0"),
        ({"epochs": -1}, "bad_teacher: epochs must be >= 0, got -1"),
    ],
)
def test_constants_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.bad_teacher(**given)
