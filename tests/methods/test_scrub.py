"""SCRUB: its passes written out by hand, its special cases, and where it rewinds to."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.distillation import prediction_distillation
from jaxunlearn.methods.descent.rewind import Remembered, error_rates, remembering, rewound
from jaxunlearn.methods.descent.scrub import LARGE_SCALE, SMALL_SCALE
from jaxunlearn.training import FitInfo, FitState, Fitted, Status
from tests.suite import cases, laws

KEY = jax.random.key(8)
TX = optax.sgd(0.3)
COLUMNS = cases.columns()
START = np.random.default_rng(5).standard_normal((4, 3))


def softmax(z):
    return special.softmax(z, axis=1)


def outputs(w, batch):
    return batch["x"] @ w


LINEAR = cases.by_hand(outputs, None)
SINGLE = cases.Case(LINEAR, jnp.asarray(START, jnp.float32), cases.request())


def by_hand(w, epochs, msteps, gamma, alpha, t, rates, decay=0.0):
    """SGD on x W with one batch of each part; gradients of T^2 KL and CE in closed form."""
    w_0, x, y = w, np.asarray(COLUMNS["x"], np.float64), np.eye(3)[COLUMNS["y"]]
    forget, retain = slice(0, 8), slice(8, 24)

    def away(w, part):
        difference = softmax(x[part] @ w / t) - softmax(x[part] @ w_0 / t)
        return t * x[part].T @ difference / len(x[part])

    def wrong(w, part):
        return x[part].T @ (softmax(x[part] @ w) - y[part]) / len(x[part])

    for e in range(epochs):
        if e < msteps:
            w = w + rates[e] * (away(w, forget) - decay * w)
        w = w - rates[e] * (gamma * wrong(w, retain) + alpha * away(w, retain) + decay * w)
    return w


# ------------------------------------------------------------------------------- what it computes


def test_each_epoch_maximises_over_forget_and_then_minimises_over_retain(x64):
    """With a rate that falls after epochs 1 and 3, weight decay, and a teacher that stays."""
    options = {"epochs": 4, "msteps": 2, "gamma": 0.7, "alpha": 0.4}
    tx = optax.chain(optax.add_decayed_weights(0.05), TX)
    method = ju.scrub(tx, temperature=2.0, decay_after=(1, 3), decay=0.5, **options)
    out = method.unlearn(LINEAR, jnp.asarray(START), cases.request(32), KEY)
    hand = partial(by_hand, START, t=2.0, rates=(0.3, 0.15, 0.15, 0.075), decay=0.05)
    np.testing.assert_allclose(out.params, hand(**options), rtol=1e-6, atol=1e-7)
    assert abs(hand(**options) - hand(**options | {"msteps": 1})).max() > 1e-3
    assert abs(hand(**options) - by_hand(START, t=2.0, rates=(0.3,) * 4, **options)).max() > 1e-3


def test_batches_come_in_turns_and_in_sizes_of_their_own():
    """8 rows to forget in batches of 3, 16 to retain in batches of 6: where it ascends is < 0."""
    method = ju.scrub(TX, epochs=3, msteps=2, gamma=1.0, alpha=0.5, forget_batch=3)
    losses = np.asarray(laws.run(method, SINGLE).info.losses)
    turns = ["F"] * 3 + ["R"] * 3 + ["F"] * 3 + ["R"] * 3 + ["R"] * 3
    assert losses.shape == (len(turns),)
    np.testing.assert_allclose(losses[:3], 0, atol=1e-6)  # theta_0 agrees with itself: not moved
    assert all(
        (loss < 0) == (turn == "F") for loss, turn in list(zip(losses, turns, strict=True))[3:]
    )


@pytest.mark.parametrize("rows", [8, 1000])
def test_a_forget_batch_larger_than_the_forget_set_is_all_of_it(rows):
    method = ju.scrub(TX, epochs=1, msteps=1, forget_batch=rows)
    out = jax.eval_shape(lambda w: method.unlearn(LINEAR, w, SINGLE.request, KEY), SINGLE.params)
    assert out.info.losses.shape == (1 + 3,)


def test_without_maximising_it_is_distillation_fine_tuning_and_never_reads_forget():
    method = ju.scrub(TX, epochs=2, msteps=0, gamma=0.9, alpha=0.3, temperature=3.0)
    assert method.needs == {"retain", "labels", "key"}
    model, params, request = SINGLE.model, SINGLE.params, SINGLE.request
    objective = objectives.weighted_sum(
        (0.9, objectives.mean_loss(model, "retain")),
        (0.3, prediction_distillation(model, params, temperature=3.0, on="retain")),
    )
    fitted = ju.fit(objective, TX, params, {"retain": request.retain}, key=KEY, epochs=2)
    laws.close(laws.run(method, SINGLE, KEY).params, fitted.params)


def test_without_a_teacher_either_it_is_fine_tuning():
    method = ju.scrub(TX, epochs=2, msteps=0, gamma=1.0, alpha=0.0)
    tuned = laws.run(ju.finetune(TX, epochs=2), SINGLE, KEY)
    laws.close(laws.run(method, SINGLE, KEY).params, tuned.params)


@pytest.mark.slow
def test_last_epochs_over_retain_alone_repair_what_the_first_ones_break(case):
    """Every fourth example is to go: R gets worse while F is pushed, and better afterwards."""
    model, data = case.model, ju.data.in_memory(COLUMNS, 24)
    gone = np.arange(24) % 4 == 0
    request = ju.Request(forget=data.take(gone), retain=data.take(~gone))
    learnt = ju.fit(
        objectives.mean_loss(model), optax.adam(0.05), case.params, data, key=KEY, epochs=60
    ).params
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(0.1))

    def losses(params):
        return [float(model.loss(params, part.arrays).mean()) for part in request[:2]]

    def after(epochs):
        method = ju.scrub(tx, epochs=epochs, msteps=4, decay_after=())
        return losses(method.unlearn(model, learnt, request, KEY).params)

    known, broken, repaired = losses(learnt), after(4), after(12)
    assert broken[1] > 1.2 * known[1] and repaired[1] < 0.8 * broken[1], (known, broken, repaired)
    assert repaired[0] > 20 * known[0], (known, broken, repaired)


# ------------------------------------------------------------------------------ published settings


def test_the_defaults_are_the_small_scale_setting():
    signature = inspect.signature(ju.scrub).parameters
    for name, value in SMALL_SCALE.items():
        assert name == "tx" or signature[name].default == value
    assert set(LARGE_SCALE) <= set(signature)


def test_the_optimisers_of_the_two_settings():
    """Adam's first step divides g + 0.1 theta by its own size; SGD adds momentum to the second."""
    theta, g = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
    small, large = (setting["tx"] for setting in (SMALL_SCALE, LARGE_SCALE))
    update, _ = small.update(g, small.init(theta), theta)
    np.testing.assert_allclose(update, -5e-4 * np.sign([0.4, -0.1]), rtol=1e-5)
    update, state = large.update(g, large.init(theta), theta)
    first = g + 5e-4 * theta
    np.testing.assert_allclose(update, -5e-4 * first, rtol=1e-5)
    update, _ = large.update(g, state, theta)
    np.testing.assert_allclose(update, -5e-4 * 1.9 * first, rtol=1e-5)


@pytest.mark.slow
def test_constants_can_be_swept_as_one_program():
    def run(gamma, alpha, t, decay):
        given = {"gamma": gamma, "alpha": alpha, "temperature": t, "decay": decay}
        method = ju.scrub(TX, epochs=2, msteps=1, decay_after=(1,), **given)
        return laws.run(method, SINGLE).params

    grid = [jnp.array(v) for v in ([1.0, 0.5], [0.1, 0.9], [2.0, 4.0], [0.1, 0.7])]
    together = jax.jit(jax.vmap(run))(*grid)
    laws.close(jax.tree.map(lambda p: p[1], together), run(0.5, 0.9, 4.0, 0.7))


# --------------------------------------------------------------------------------------- rewinding


def test_the_epoch_whose_forget_error_is_that_of_held_out_data_is_returned(x64):
    """Params after every epoch by hand: the last one is not the one that is returned."""
    known = 2.0 * np.eye(4, 3)
    hand = {"msteps": 8, "gamma": 0.3, "alpha": 0.1, "t": 1.0, "rates": (1.0,) * 8}
    after = [by_hand(known - 0.3 * START, epochs=e, **hand) for e in range(1, 9)]
    method = ju.scrub(optax.sgd(1.0), epochs=8, msteps=8, gamma=0.3, alpha=0.1, temperature=1.0,
                      decay_after=(), rewind=True)  # fmt: skip
    request = cases.request(32)
    out = method.unlearn(LINEAR, jnp.asarray(known - 0.3 * START), request, KEY)

    def error(w, data):
        return np.mean(np.argmax(data["x"] @ w, axis=1) != data["y"])

    errors, target = [error(w, request.forget) for w in after], error(after[-1], request.held_out)
    np.testing.assert_allclose(out.info.forget_errors, errors, atol=1e-6)
    np.testing.assert_allclose(out.info.target, target, atol=1e-6)
    nearest = 7 - int(np.argmin(np.abs(np.array(errors) - target)[::-1]))
    assert int(out.info.epoch) == nearest + 1 < 8, (errors, target)
    np.testing.assert_allclose(out.params, after[nearest], rtol=1e-6, atol=1e-6)


LABELS = ju.Model(outputs=lambda p, b: b["x"] - p * b["y"][:, None] * jnp.array([[0.0, 1.0]]),
                  loss=lambda p, b: b["x"][:, 0])  # fmt: skip


def errs(count, weight=None):
    """Four rows of which params = 1 get `count` wrong and params = 0 none."""
    x = np.tile(np.array([[0.0, 0.5]], np.float32), (4, 1))
    y = np.array([1] * count + [1] * (4 - count), np.int32)
    x[count:, 1] = 2.0
    return ju.data.in_memory({"x": x, "y": y} | ({} if weight is None else {"weight": weight}), 3)


def fitted(after, steps, status=Status.COMPLETED):
    """A run of four epochs of two steps each, with these params after them."""
    kept = jnp.asarray(after[:-1], jnp.float32)
    remembered = Remembered((), jnp.int32(steps), kept)
    state = FitState(jnp.int32(steps), None, None, remembered, jnp.int32(status), (), 0)
    info = FitInfo(jnp.zeros(8), jnp.int32(status), jnp.int32(steps), jnp.float32(0))
    return Fitted(jnp.float32(after[-1]), info, state)


def test_errors_are_weighted_and_positions_averaged():
    several = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(error_rates(LABELS, several, errs(1)), [0, 0.25])
    weighted = errs(1, np.array([3.0, 1.0, 0.0, 1.0], np.float32))
    np.testing.assert_allclose(error_rates(LABELS, several, weighted), [0, 0.6])
    spread = ju.Model(outputs=lambda p, b: p * b["x"], loss=LABELS.loss)
    rows = {"x": jnp.eye(2)[None], "y": jnp.zeros((1, 2), jnp.int32)}  # two positions, one missed
    np.testing.assert_allclose(error_rates(spread, jnp.ones(1), ju.data.in_memory(rows)), [0.5])


@pytest.mark.parametrize(
    ("after", "steps", "held_out", "epoch"),
    [
        ([0.0, 1.0, 1.0, 1.0], 8, 3, 4),  # the nearest, and of equals the last
        ([1.0, 0.0, 0.0, 1.0], 8, 0, 3),
        ([1.0, 0.0, 0.0, 1.0], 5, 0, 2),  # epoch 3 was never finished: its slot says nothing
        ([0.0, 0.0, 0.0, 1.0], 1, 3, 4),  # where it ended is always a candidate
    ],
)
def test_of_the_epochs_reached_the_nearest_is_taken(after, steps, held_out, epoch):
    starts = (0, 2, 4, 6)
    params, info = rewound(LABELS, fitted(after, steps), starts, errs(4), errs(held_out))
    assert int(info.epoch) == epoch and float(params) == after[epoch - 1]
    reached = np.array([steps > 2, steps > 4, steps > 6, True])
    np.testing.assert_array_equal(np.isnan(info.forget_errors), ~reached)


def test_what_is_remembered_is_what_each_epoch_ended_with():
    """theta grows by 1 a step; epochs start at steps 0, 3 and 4."""
    growing = objectives.stateless(lambda p, batches, key: -p)
    data = ju.data.in_memory({"x": np.zeros(1, np.float32)})
    out = ju.fit(
        remembering(growing, (0, 3, 4)), optax.sgd(1.0), jnp.zeros(()), data, key=KEY, steps=6
    )
    np.testing.assert_array_equal(out.state.objective.epochs, [3.0, 4.0])
    assert out.params == 6


@pytest.mark.slow
def test_rewinding_works_on_streams_and_needs_held_out_data():
    case, method = SINGLE, ju.scrub(TX, epochs=2, msteps=1, rewind=True)
    assert method.needs == {"forget", "retain", "held_out", "labels", "key"}
    assert method.scored is None  # it has chosen its epoch already
    lists = ju.Request(*(list(data) for data in case.request))
    out = method.unlearn(case.model, case.params, lists, KEY)
    chosen = jax.tree.map(lambda p: p[None], out.params)
    found = error_rates(case.model, chosen, case.request.forget)[0]
    np.testing.assert_allclose(out.info.forget_errors[int(out.info.epoch) - 1], found)
    with pytest.raises(ValueError, match="scrub needs request.held_out, which is None"):
        method.unlearn(case.model, case.params, case.request._replace(held_out=None), KEY)
    none = laws.run(ju.scrub(epochs=0, rewind=True), case).params
    laws.bits(none, case.params)


# -------------------------------------------------------------------------------------- bad input


def test_a_run_that_diverges_keeps_its_last_finite_params():
    method = ju.scrub(optax.sgd(1e38), epochs=4)
    out = method.unlearn(LINEAR, jnp.eye(4, 3), cases.request(32), KEY)
    assert out.info.status == Status.DIVERGED and jnp.isfinite(out.params).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": -1.0}, "scrub: gamma must be .*>= 0, got -1.0"),
        ({"alpha": float("inf")}, "scrub: alpha must be a finite"),
        ({"temperature": 0.0}, "temperature must be .*> 0, got 0.0"),
        ({"decay": 2.0}, "decay must be .*<= 1, got 2.0"),
        ({"epochs": -1}, "epochs, msteps and decay_after must be >= 0.*epochs=-1"),
        ({"msteps": -1}, "must be >= 0.*msteps=-1"),
        ({"decay_after": (-3,)}, "must be >= 0.*decay_after"),
        ({"forget_batch": 0}, "forget_batch >= 1, got.*forget_batch=0"),
    ],
)
def test_constants_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.scrub(**given)
