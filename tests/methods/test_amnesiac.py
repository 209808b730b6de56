"""Amnesiac: wrong labels that stay, and a ledger against training without the batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.methods.descent.amnesiac import Ledger, Recorded, wrongly_labelled
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(9)


# ---------------------------------------------------------------------------------- wrong labels


def counting(classes):
    """A model of so many classes, with labels of its data."""
    return ju.Model(outputs=lambda p, b: jnp.zeros((b["y"].shape[0], classes)) + p, loss=None)


def test_labels_are_wrong_and_uniform_over_the_others():
    data = ju.data.in_memory({"x": np.zeros(4000), "y": np.full(4000, 2, np.uint8)})
    drawn = wrongly_labelled(counting(5), jnp.zeros(()), data, KEY)["y"]
    assert drawn.dtype == np.uint8
    counts = np.bincount(drawn, minlength=5)
    assert counts[2] == 0 and counts.sum() == 4000
    others = np.delete(counts, 2)
    assert ((others - 1000) ** 2 / 1000).sum() < 16.3  # 0.1 % level, 3 degrees of freedom


def test_of_two_classes_every_example_gets_the_other():
    y = np.array([0, 1, 1, 0], np.int32)
    data = ju.data.in_memory({"x": np.zeros(4), "y": y})
    drawn = wrongly_labelled(counting(2), jnp.zeros(()), data, KEY)
    np.testing.assert_array_equal(drawn["y"], 1 - y)


def test_a_stream_gets_the_same_wrong_labels_in_every_pass(case):
    stream = ju.data.from_batches(list(case.request.forget))
    wrong = wrongly_labelled(case.model, case.params, stream, KEY)
    passes = [np.concatenate([np.asarray(batch["y"]) for batch in wrong]) for _ in range(2)]
    np.testing.assert_array_equal(*passes)
    true = np.concatenate([np.asarray(batch["y"]) for batch in stream])
    assert (passes[0] != true).all() and set(passes[0]) <= {0, 1, 2}
    assert wrong.num_examples == 8


def labels_seen(method):
    """{id: the labels with which the loss saw it, epoch after epoch}."""
    seen = {}

    def note(ids, labels, weight):
        for i, y, w in zip(ids, labels, weight, strict=True):
            seen.setdefault(int(i), []).extend([int(y)] * int(w > 0))

    def loss(params, batch):
        jax.debug.callback(note, batch["id"], batch["y"], batch["weight"], ordered=True)
        return jnp.sum(params**2) * jnp.ones(batch["id"].shape)

    model = ju.Model(outputs=lambda p, b: jnp.zeros((b["id"].shape[0], 3)) + p.sum(), loss=loss)
    request = cases.request()
    jax.block_until_ready(method.unlearn(model, jnp.ones(3), request, KEY).params)
    jax.effects_barrier()
    return {i: y for i, y in seen.items() if y}


def test_a_wrong_label_stays_for_the_whole_run():
    """Fresh ones each time, as `random_labels` draws them, would be seen to change."""
    truth = dict(zip(cases.columns()["id"].tolist(), cases.columns()["y"].tolist(), strict=True))
    seen = labels_seen(ju.amnesiac(optax.sgd(0.1), epochs=6))
    assert set(seen) == set(truth) and all(len(y) == 6 for y in seen.values())
    assert all(len(set(y)) == 1 for y in seen.values())
    wrong = {i for i, y in seen.items() if y[0] != truth[i]}
    assert wrong == set(range(100, 108))
    fresh = labels_seen(ju.random_labels(optax.sgd(0.1), epochs=6, wrong_only=True))
    assert any(len(set(fresh[i])) == 2 for i in wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ju.amnesiac(epochs=-1), "amnesiac: epochs must be >= 0, got -1"),
        (lambda: wrongly_labelled(counting(1), jnp.zeros(()), rows(np.int32), KEY), "2 of them"),
        (lambda: wrongly_labelled(counting(3), jnp.zeros(()), rows(float), KEY), "integer classes"),
    ],
)
def test_what_has_no_wrong_label_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def rows(dtype):
    return ju.data.in_memory({"x": np.zeros(3), "y": np.zeros(3, dtype)})


# ------------------------------------------------------------------------------- recorded updates

X = np.random.default_rng(0).standard_normal((10, 3))
DATA = {"x": X, "id": np.arange(10) + 50}
RATE = 0.1


def order_noted(step):
    """A loss whose gradient on a batch is `step(params, x)`, and the batches that it has seen."""
    batches = []

    def value(params, streams, key):
        batch = streams["data"]
        jax.debug.callback(
            lambda i, w: batches.append([int(a) for a, b in zip(i, w, strict=True) if b > 0]),
            batch["id"], batch["weight"], ordered=True,
        )  # fmt: skip
        pull = jax.lax.stop_gradient(step(params, (batch["weight"] @ batch["x"])))
        return pull @ params

    return objectives.stateless(value), batches


def linear(params, total):
    return total


def curved(params, total):
    return total + 3 * params


def train_by_hand(step, batches, without=(), momentum=0.0):
    """SGD over the same batches in order, those that hold somebody of `without` left out."""
    w, v = np.ones(3), np.zeros(3)
    for held in batches:
        if not set(held) & set(without):
            v = momentum * v + step(w, X[[i - 50 for i in held]].sum(axis=0))
            w = w - RATE * v
    return w


def record(step, ids, momentum=None, data=DATA):
    objective, batches = order_noted(step)
    data = ju.data.in_memory(data, batch_size=3)
    tx = optax.sgd(RATE, momentum=momentum)
    out = ju.record_updates(objective, tx, jnp.ones(3), data, ids=ids, key=KEY, epochs=3)
    jax.block_until_ready(out.params)
    jax.effects_barrier()
    return out, batches


def subtract(recorded, ids=None):
    return ju.subtract_updates(recorded.params, recorded.ledger, ids)


def test_for_a_linear_loss_and_sgd_it_is_training_without_the_batches(x64):
    recorded, batches = record(linear, ids=[58, 51, 57])
    np.testing.assert_allclose(recorded.params, train_by_hand(linear, batches), rtol=1e-12)
    for ids in ([57], [51, 58], None):
        expected = train_by_hand(linear, batches, [51, 57, 58] if ids is None else ids)
        np.testing.assert_allclose(subtract(recorded, ids)[0], expected, rtol=1e-12)
        assert abs(expected - np.asarray(recorded.params)).max() > 0.05
    ledger, steps = recorded.ledger, [t for t, b in enumerate(batches) if {51, 57, 58} & set(b)]
    np.testing.assert_array_equal(ledger.steps[: len(steps)], steps)
    assert (np.asarray(ledger.steps[len(steps) :]) == -1).all()
    held = [[i in batches[t] for i in (51, 57, 58)] for t in steps]
    np.testing.assert_array_equal(ledger.members[: len(steps)], held)
    assert np.sum(held, axis=1).max() > 1  # a batch with two of them, which was undone once


@pytest.mark.parametrize(("step", "momentum"), [(curved, 0.0), (linear, 0.9)])
def test_for_any_other_loss_or_optimiser_it_is_not(step, momentum, x64):
    recorded, batches = record(step, ids=[57], momentum=momentum)
    trained, left_out = (train_by_hand(step, batches, ids, momentum=momentum) for ids in ([], [57]))
    np.testing.assert_allclose(recorded.params, trained, rtol=1e-10)
    assert abs(subtract(recorded)[0] - left_out).max() > 1e-2


def test_all_updates_together_lead_back_to_the_start():
    """For any optimiser and loss; params of any dtype, and the same bits as without a ledger."""

    def curve(p, streams, key):
        batch = streams["data"]
        return batch["weight"] @ jnp.square(batch["x"] @ p["w"] - p["b"].astype(jnp.float32))

    start = {"w": jnp.ones(3), "b": jnp.bfloat16(0.5)}
    objective, tx, run = objectives.stateless(curve), optax.adam(0.05), {"key": KEY, "epochs": 2}
    data = ju.data.in_memory(DATA, 4)
    recorded = ju.record_updates(objective, tx, start, data, ids=DATA["id"], **run)
    laws.bits(recorded.params, ju.fit(objective, tx, start, data, **run).params)
    assert laws.different(recorded.params, start)
    back, ledger = subtract(recorded)
    np.testing.assert_allclose(back["w"], 1, rtol=1e-5)
    assert back["b"] == start["b"] and back["b"].dtype == jnp.bfloat16
    assert not any(np.any(c) for c in jax.tree.leaves(ledger.changes))  # nothing of them is kept


def test_what_was_undone_cannot_be_undone_again(x64):
    """Two requests, one after the other, are one request for both."""
    recorded, _ = record(linear, ids=[51, 57])
    first, ledger = subtract(recorded, [51])
    second, ledger = ju.subtract_updates(first, ledger, [57])
    np.testing.assert_allclose(second, subtract(recorded)[0], rtol=1e-12)
    again, _ = ju.subtract_updates(second, ledger)
    np.testing.assert_array_equal(again, second)
    assert not ledger.members.any() and (ledger.steps == -1).all()


def test_a_watched_row_of_weight_zero_was_not_in_the_batch(x64):
    weight = np.where(np.arange(10) == 7, 0.0, 1.0)
    recorded, batches = record(linear, ids=[51, 57], data=DATA | {"weight": weight})
    assert not any(57 in batch for batch in batches)
    np.testing.assert_array_equal(subtract(recorded, [57])[0], recorded.params)
    assert recorded.ledger.steps.shape == (3,)  # one batch an epoch can hold a watched row


@pytest.mark.slow
def test_a_stream_is_recorded_too_and_many_runs_are_one_program(x64):
    batches = [{k: np.asarray(v)[i : i + 3] for k, v in DATA.items()} for i in (0, 3, 6)]
    steady = objectives.stateless(lambda p, b, key: p @ (b["data"]["weight"] @ b["data"]["x"]))
    run = partial(ju.record_updates, steady, optax.sgd(RATE), ids=[51, 57], key=KEY, epochs=2)
    streamed = run(jnp.ones(3), batches)
    expected = np.ones(3) - 2 * RATE * X[3:6].sum(axis=0)
    np.testing.assert_allclose(subtract(streamed)[0], expected, rtol=1e-12)
    assert streamed.ledger.steps.tolist() == [0, 2, 3, 5]

    def forgotten(start):
        return subtract(run(start, ju.data.in_memory(DATA, 10)))[0]

    starts = jnp.stack([jnp.ones(3), jnp.zeros(3)])
    np.testing.assert_allclose(jax.vmap(forgotten)(starts), starts, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_few_epochs_of_fine_tuning_repair_what_the_others_lost(case):
    """The whole of the method: record, subtract, fine-tune on what is retained."""
    model, data = case.model, ju.data.in_memory(cases.columns(), 6)
    recorded = ju.record_updates(
        objectives.training(model), optax.adam(0.05), case.params, data,
        ids=[100, 103], key=KEY, epochs=20,
    )  # fmt: skip
    params, _ = subtract(recorded)
    gone = np.isin(data["id"], [100, 103])
    request = ju.Request(forget=data.take(gone), retain=data.take(~gone))

    def loss(p):
        return float(model.loss(p, request.retain.arrays).mean())

    tuned = ju.finetune(optax.adam(0.05), epochs=3).unlearn(model, params, request, KEY).params
    assert loss(params) > 5 * loss(recorded.params) and loss(tuned) < 0.5 * loss(params)


def test_a_run_that_diverges_is_recorded_as_far_as_it_went(x64):
    data = ju.data.in_memory(DATA, 10)
    wild = objectives.stateless(lambda p, b, key: -jnp.sum(p**4))
    out = ju.record_updates(wild, optax.sgd(1e60), jnp.ones(3), data, ids=[50], key=KEY, epochs=6)
    assert out.info.status == Status.DIVERGED
    np.testing.assert_allclose(subtract(out)[0], 1.0, atol=1e50)
    assert (out.ledger.steps >= 0).sum() == out.info.steps > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: record(linear, ids=[99]), "none of the 1 ids is in the data"),
        (lambda r: record(linear, ids=[]), "none of the 0 ids is in the data"),
        (lambda r: record(linear, ids=[51], data={"x": X}), r"a column 'id', got \['x'\]"),
        (lambda r: subtract(r, [51, 52]), "id 52 was not watched"),
        (lambda r: ju.subtract_updates(jnp.ones(4), r.ledger), "different trees or shapes"),
        (
            lambda r: ju.subtract_updates({"params": r.params, "batch_stats": {}}, r.ledger),
            r"with running statistics give params\['params'\]",
        ),
    ],
)
def test_what_cannot_be_recorded_or_undone_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(unused())


def unused():
    """A ledger of one slot, for a watched id that no batch held."""
    ledger = Ledger(jnp.zeros((1, 3)), jnp.zeros((1, 1), bool), jnp.full(1, -1), jnp.array([51]), 0)
    return Recorded(jnp.ones(3), ledger, None)
