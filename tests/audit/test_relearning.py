"""Relearning curves: a loop written by hand, `fit`, closed forms, and every way of running them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import losses, objectives
from jaxunlearn.audit import margins, part_scores
from jaxunlearn.audit.came_back import CAME_BACK, NO_MORE, came_back
from jaxunlearn.audit.knowledge import as_watched, knowledge
from jaxunlearn.audit.relearn_time import anamnesis_index, relearn_time
from jaxunlearn.audit.relearning import (
    recorded_steps,
    relearning_by_examples,
    relearning_curve,
    with_fresh_layer,
)
from jaxunlearn.data import in_memory
from jaxunlearn.data.streams import from_batches
from jaxunlearn.model import Model
from jaxunlearn.training import Status, fit

KEY = jax.random.key(3)
SGD = optax.sgd(0.5, momentum=0.9)


def logits(p, batch):
    return batch["x"] @ p["w"] + p["b"][None]


LINEAR = Model(
    outputs=logits,
    loss=lambda p, batch: losses.cross_entropy(logits(p, batch), batch["y"]),
    init=lambda key: {"w": 0.3 * jax.random.normal(key, (4, 3)), "b": jnp.zeros(3)},
)
SQUARED = Model(
    outputs=lambda p, batch: batch["x"] @ p,
    loss=lambda p, batch: losses.squared_error(batch["x"] @ p, batch["y"]),
)
run = jax.jit(relearning_curve, static_argnames=("tx", "steps", "every"))
look = jax.jit(knowledge)
by_examples = jax.jit(relearning_by_examples, static_argnames=("counts", "tx", "steps", "every"))


def rows(n, seed=0, spread=0.7):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n).astype(np.int32)
    return {"x": (np.eye(3, 4)[y] + spread * rng.normal(size=(n, 4))).astype(np.float32), "y": y}


DATA, TEST = rows(10), rows(7, seed=1)
START = LINEAR.init(jax.random.key(0))


def curve(params=START, data=None, watch=None, tx=SGD, steps=6, every=1, key=KEY, model=LINEAR):
    data = in_memory(DATA, 16) if data is None else data
    watch = {"test": TEST} if watch is None else watch
    return run(model, params, data, watch, tx=tx, steps=steps, every=every, key=key)


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_the_first_record_is_the_model_as_it_is_by_the_metrics_of_finished_outputs():
    found = curve().watched["test"]
    z = np.asarray(logits(START, TEST))[None]
    theirs = part_scores(z, TEST["y"])
    assert found.loss[0] == pytest.approx(theirs.loss[0], rel=1e-5)
    assert found.accuracy[0] == pytest.approx(theirs.accuracy[0])
    p = 1 / (1 + np.exp(-margins(z, TEST["y"])))
    assert found.confidence[0] == pytest.approx(p.mean(), rel=1e-5)


def by_hand(x, y, steps, rate=0.5, momentum=0.9):
    """Softmax regression by gradient descent with momentum, NumPy float64: params after each."""
    w, b = np.asarray(START["w"], np.float64), np.zeros(3)
    moved, path = (0 * w, 0 * b), [(w, b)]
    for _ in range(steps):
        p = np.exp(x @ w + b)
        push = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
        moved = (momentum * moved[0] + x.T @ push, momentum * moved[1] + push.sum(axis=0))
        w, b = w - rate * moved[0], b - rate * moved[1]
        path.append((w, b))
    return path


def losses_by_hand(path, batch):
    z = np.stack([batch["x"] @ w + b for w, b in path])
    return part_scores(z, batch["y"]).loss


def test_the_steps_are_those_of_a_descent_written_by_hand():
    expected = losses_by_hand(by_hand(DATA["x"], DATA["y"], 6), TEST)
    found = curve().watched["test"].loss
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (abs(np.diff(expected)) > 1e-4).all()  # a curve one record late would show


def test_minibatches_come_as_in_fit_with_the_same_key():
    watch = {"test": TEST}
    data = in_memory(DATA, 4)
    found = curve(data=data, watch=watch, steps=5, every=5).watched["test"]
    out = fit(objectives.training(LINEAR), SGD, START, data, key=KEY, steps=5)
    assert_same(known_of(TEST, params=out.params), jax.tree.map(lambda v: v[1], found), rtol=1e-6)
    other = curve(data=data, watch=watch, steps=5, every=5, key=jax.random.key(4)).watched["test"]
    assert not np.allclose(other.loss, found.loss)  # the key has its say


def test_another_grid_gives_the_same_values_at_common_steps_and_so_does_no_compilation():
    fine, data = curve().watched, in_memory(DATA, 16)
    loose = relearning_curve(LINEAR, START, data, {"test": TEST}, tx=SGD, steps=6, every=2, key=KEY)
    assert_same(loose.watched, jax.tree.map(lambda v: v[::2], fine), rtol=1e-5, atol=1e-6)
    assert recorded_steps(6, 2).tolist() == [0, 2, 4, 6]


def test_no_step_leaves_the_first_record_alone():
    found = curve(steps=0)
    assert_same(found.watched, jax.tree.map(lambda v: v[:1], curve().watched), rtol=1e-6)
    assert found.status == Status.COMPLETED and recorded_steps(0).tolist() == [0]


def test_many_models_at_once_are_each_one_alone_and_equal_ones_have_an_index_of_exactly_one():
    keys = jax.random.split(jax.random.key(8), 2)[jnp.array([0, 1, 0])]
    params = jax.vmap(LINEAR.init)(keys)
    many = jax.jit(jax.vmap(lambda p, key: curve(p, key=key)))(params, keys)
    for i in range(2):
        alone = curve(jax.tree.map(lambda v, i=i: v[i], params), key=keys[i])
        assert_same(jax.tree.map(lambda v, i=i: v[i], many), alone, rtol=1e-4, atol=1e-6)
    loss = many.watched["test"].loss
    times = relearn_time(loss, [loss[0, 4]], recorded_steps(6), margin=0.0)
    index = anamnesis_index(times[:1], times[2:], cap=6, seed=0)
    assert 0 < times[0] <= 4 and index.ratio.value == 1.0 and index.bound == "="
    assert not np.array_equal(loss[0], loss[1])


def test_divergence_is_nan_from_there_on_and_leaves_other_models_alone():
    x = np.ones((4, 1), np.float32)
    data = in_memory({"x": x, "y": np.zeros(4, np.float32)}, 4)
    starts = jnp.array([[1e10], [1.0], [0.0]])
    tx = optax.sgd(5e9)  # every step multiplies by -1e10
    many = jax.vmap(lambda p: run(SQUARED, p, data, {"rows": data}, tx=tx, steps=3, key=KEY))
    found = many(starts)
    known = found.watched["rows"]
    assert known.confidence is None and known.accuracy is None
    inf, nan = np.inf, np.nan  # a loss beyond float32 is Inf; the step from there is never made
    expected = [[1e20, inf, nan, nan], [1, 1e20, inf, nan], [0, 0, 0, 0]]
    np.testing.assert_allclose(known.loss, expected, rtol=1e-5)
    assert found.status.tolist() == [Status.DIVERGED, Status.DIVERGED, Status.COMPLETED]


def test_a_model_without_finite_outputs_knows_nothing_rather_than_the_first_class():
    broken = START | {"b": jnp.array([jnp.nan, 0.0, 0.0])}
    found = curve(broken)
    for known in found.watched.values():
        assert np.isnan(known.accuracy).all() and np.isnan(known.confidence).all()
    assert found.status == Status.DIVERGED


def known_of(batch, model=LINEAR, params=START):
    return look(model, params, as_watched("here", "rows", model, params, batch))


def test_nothing_to_watch_is_undefined_and_rows_of_weight_zero_are_left_out():
    spoilt = {
        "x": np.concatenate([TEST["x"], np.full((2, 4), 1e30, np.float32)]),
        "y": np.concatenate([TEST["y"], np.zeros(2, np.int32)]),
        "weight": np.float32([1] * 7 + [0] * 2),
    }
    assert_same(known_of(spoilt), known_of(TEST), rtol=1e-6)
    empty = {name: column[:0] for name, column in TEST.items()}
    for nothing in (empty, spoilt | {"weight": np.zeros(9, np.float32)}):
        assert all(np.isnan(v) for v in known_of(nothing))
    loss = np.asarray(LINEAR.loss(START, TEST), np.float64)
    weight = np.float32([2, 1, 1, 0, 3, 1, 1])
    assert known_of(TEST | {"weight": weight}).loss == pytest.approx(weight @ loss / 9, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_watched_set_larger_than_memory_gives_the_same_numbers_in_batches_of_any_size(size):
    whole = known_of(TEST)
    assert_same(known_of(in_memory(TEST, size)), whole, rtol=2e-7)
    average = np.mean([LINEAR.loss(START, b).mean() for b in in_memory(TEST, 3)])
    assert not np.isclose(average, whole.loss, rtol=1e-4)  # the mean of unequal batches is wrong


def test_positions_of_a_sequence_are_averaged():
    sequence = Model(
        outputs=lambda p, batch: batch["x"] * p,
        loss=lambda p, batch: losses.cross_entropy(batch["x"] * p, batch["y"]),
    )
    x = np.log(np.array([[[0.8, 0.2], [0.4, 0.6]]], np.float32))
    batch = {"x": x, "y": np.zeros((1, 2), np.int32)}
    p = jnp.ones((1, 1, 1))
    np.testing.assert_allclose(
        known_of(batch, sequence, p), [0.6, 0.5, -np.log(0.8 * 0.4)], rtol=1e-6
    )


def centred(p, x, mean):
    return (x - mean[None]) @ p["params"]["w"] + p["params"]["b"][None]


def centred_training(p, batch, key):
    del key
    mean = batch["x"].mean(axis=0)  # of all rows, padding included, as a normalisation layer has it
    moved = {"mean": 0.5 * p["batch_stats"]["mean"] + 0.5 * mean}
    return losses.cross_entropy(centred(p, batch["x"], mean), batch["y"]), p | {
        "batch_stats": moved
    }


def centred_outputs(p, batch):
    return centred(p, batch["x"], p["batch_stats"]["mean"])


CENTRED = Model(
    outputs=centred_outputs,
    loss=lambda p, batch: losses.cross_entropy(centred_outputs(p, batch), batch["y"]),
    train=centred_training,
    statistics=True,
)
CENTRED_START = {"params": START, "batch_stats": {"mean": jnp.zeros(4)}}


def centred_by_hand(places, steps):
    """Loss on TEST: rows centred by their mean in training, by the running mean when watched."""
    x, mean = DATA["x"][places], DATA["x"][places].mean(axis=0)
    path = by_hand(x - mean, DATA["y"][places], steps)
    moved = [(w, b - (1 - 0.5**t) * mean @ w) for t, (w, b) in enumerate(path)]
    return losses_by_hand(moved, TEST)


def test_running_statistics_move_with_every_step_and_are_what_the_watched_rows_meet():
    found = curve(CENTRED_START, model=CENTRED, steps=2).watched["test"]
    np.testing.assert_allclose(found.loss, centred_by_hand(np.arange(10), 2), rtol=1e-5)


def few_examples(data, counts, model=LINEAR, start=START):
    return by_examples(model, start, data, {"test": TEST}, counts=counts, tx=SGD, steps=2, key=KEY)


def chosen_rows(key, n):
    return np.asarray(jax.random.permutation(jax.random.split(key)[0], n))


def test_the_first_c_rows_of_one_order_are_relearned_and_no_others():
    counts = (1, 3, 4)
    found = by_examples(
        LINEAR, START, DATA, {"test": TEST}, counts=counts, tx=SGD, steps=2, key=KEY
    )
    assert found.watched["test"].loss.shape == (3, 2) and found.status.shape == (3,)
    order = chosen_rows(KEY, 10)
    for count, loss in zip(counts, found.watched["test"].loss, strict=True):
        few = order[:count]
        expected = losses_by_hand(by_hand(DATA["x"][few], DATA["y"][few], 2)[::2], TEST)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert len(set(np.round(np.asarray(found.watched["test"].loss[:, 1]), 5))) == 3


def test_a_normalisation_layer_sees_only_the_rows_that_are_relearned():
    found = few_examples(DATA, (2, 4), CENTRED, CENTRED_START)
    expected = centred_by_hand(chosen_rows(KEY, 10)[:2], 2)[::2]
    np.testing.assert_allclose(found.watched["test"].loss[0], expected, rtol=1e-5)


def test_rows_of_weight_zero_are_never_chosen_and_weights_count():
    weight = np.zeros(10, np.float32)
    weight[[2, 5]] = 1, 3
    found = few_examples(DATA | {"weight": weight}, (1, 3, 4)).watched["test"].loss
    first = [p for p in chosen_rows(KEY, 10) if weight[p]][:1]
    both = [2, 5, 5, 5]  # a row of weight 3 is the same row three times
    for loss, places in zip(found, (first, both, both), strict=True):
        expected = losses_by_hand(by_hand(DATA["x"][places], DATA["y"][places], 2)[::2], TEST)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def hidden(p, batch):
    return jnp.tanh(batch["x"] @ p["in"]) @ p["head"]["w"] + p["head"]["b"][None]


NET = Model(
    outputs=hidden,
    loss=lambda p, batch: losses.cross_entropy(hidden(p, batch), batch["y"]),
    init=lambda key: {
        "in": jax.random.normal(key, (4, 8)),
        "head": {"w": jnp.zeros((8, 3)), "b": jnp.zeros(3)},
    },
)


@pytest.fixture(scope="module")
def groups():
    """Six originals, oracles and second oracles; class 2 is to be forgotten. Relearns any of them.

    `curves(params)` are confidences on unseen rows of class 2 while all classes are relearned.
    """
    everything, unseen = rows(60, seed=5, spread=0.25), rows(40, seed=6, spread=0.25)
    unseen = {k: v[unseen["y"] == 2] for k, v in unseen.items()}

    @jax.jit
    @jax.vmap
    def trained(key, weight):
        data, tx = in_memory(everything | {"weight": weight}, 64), optax.adam(0.05)
        objective = objectives.training(NET)
        return fit(objective, tx, NET.init(key), data, key=key, steps=60, shuffle=False).params

    def six(seed, weight):
        keys = jax.random.split(jax.random.key(seed), 6)
        return trained(keys, jnp.broadcast_to(jnp.float32(weight), (6, 60)))

    @jax.jit
    @jax.vmap
    def curves(p):
        data, watch = in_memory(everything, 64), {"unseen": unseen}
        found = relearning_curve(NET, p, data, watch, tx=optax.sgd(0.3), steps=20, every=2, key=KEY)
        return found.watched["unseen"].confidence

    kept = everything["y"] != 2
    return six(0, np.ones(60)), six(1, kept), six(2, kept), lambda p: np.asarray(curves(p))


def fresh(params):
    return jax.vmap(lambda p: with_fresh_layer(p, NET.init(KEY)))(params)


def test_originals_are_said_to_come_back_and_second_oracles_are_not(groups):
    originals, oracles, again, curves = groups
    judged = partial(came_back, oracle=curves(oracles), original=curves(originals), seed=0)
    assert judged(curves(originals)).verdict == CAME_BACK
    assert judged(curves(again)).verdict == NO_MORE


def test_a_masked_class_comes_back_from_the_features_though_its_output_stays_low(groups):
    originals, oracles, again, curves = groups
    head = originals["head"]
    masked = originals | {"head": head | {"b": head["b"].at[:, 2].add(-1000.0)}}
    assert curves(masked).max() < 1e-6  # twenty steps do not undo a thousand nats
    known = {"oracle": curves(fresh(oracles)), "original": curves(fresh(originals))}
    found = came_back(curves(fresh(masked)), **known, seed=0)
    assert found.verdict == CAME_BACK and found.effect.value == pytest.approx(1.0)
    assert came_back(curves(fresh(again)), **known, seed=0).verdict == NO_MORE


@pytest.mark.parametrize("layer", ["tail", ""])
def test_a_fresh_layer_must_exist_and_not_be_everything(layer):
    params = NET.init(KEY)
    with pytest.raises(ValueError, match=f"some leaves below '{layer}'.*found 0 of 3"):
        with_fresh_layer(params, params, layer)
    with pytest.raises(ValueError, match="found 2 of 2"):
        with_fresh_layer({"head": params["head"]}, {"head": params["head"]})
    with pytest.raises(ValueError, match="trees of one structure"):
        with_fresh_layer(params, params["head"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be an integer >= 0, got -1"),
        ({"steps": True}, ValueError, "steps must be an integer >= 0, got True"),
        ({"every": 0}, ValueError, "every must be an integer >= 1, got 0"),
        ({"steps": 5, "every": 2}, ValueError, "multiple of every.*steps=5 and every=2"),
        ({"data": {k: v[:0] for k, v in DATA.items()}}, ValueError, "nothing to relearn from"),
        ({"data": from_batches([DATA])}, TypeError, "relearning_curve: data streams from the host"),
        ({"watch": {}}, ValueError, "watch must map at least one name to a Batch"),
        ({"watch": {"t": [TEST]}}, TypeError, r"watch\['t'\] streams from the host"),
        ({"watch": {"t": {"x": np.zeros((2, 4)), "y": np.zeros(3, int)}}}, ValueError, r"\['t'\]"),
        ({"data": DATA | {"y": np.full(10, 7)}}, ValueError, r"data: labels must lie in \[0, 3\)"),
        ({"key": jax.random.split(KEY)}, TypeError, "relearning_curve: expected one typed key"),
        (
            {"model": Model(logits, lambda p, b: LINEAR.loss(p, b).mean())},
            ValueError,
            "one number per example",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"model": LINEAR, "params": START, "data": DATA, "watch": {"test": TEST}}
    with pytest.raises(error, match=message):
        relearning_curve(**(good | {"tx": SGD, "steps": 2, "key": KEY} | change))


@pytest.mark.parametrize("counts", [(), (0, 1), (11,), (1.5,), (True,)])
def test_counts_outside_the_rows_are_refused(counts):
    with pytest.raises(ValueError, match=r"counts must be integers in \[1, 10\]"):
        relearning_by_examples(
            LINEAR, START, DATA, {"test": TEST}, counts=counts, tx=SGD, steps=1, key=KEY
        )
    weighted = DATA | {"weight": np.float32([1] * 3 + [0] * 7)}
    with pytest.raises(ValueError, match=r"in \[1, 3\].*got \(4,\)"):
        relearning_by_examples(
            LINEAR, START, weighted, {"test": TEST}, counts=(4,), tx=SGD, steps=1, key=KEY
        )
