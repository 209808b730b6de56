"""Forsaken: proximal steps written out, what it aims at, when it stops, and what it does."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

import jaxunlearn as ju
from jaxunlearn import nonmembers
from jaxunlearn.audit import auc, forgetting_rate, membership_threshold
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(0)
ETA = 0.5


@pytest.fixture(scope="module")
def three():
    """Float32 leaves, and batches of 3: eight rows of F are three chunks, the last one padded."""
    made = cases.tuple_case()
    return dataclasses.replace(made, request=cases.request(batch_size=3))


@pytest.fixture(scope="module")
def one_step(three):
    """penalty -> what one step gives, in one program."""

    def run(penalty):
        method = ju.forsaken(learning_rate=ETA, penalty=penalty, steps=1)
        out = method.unlearn(three.model, three.params, three.request, KEY)
        return out.params, out.info

    return jax.jit(run)


def target_posteriors(case):
    """q, row by row of the held-out data, in NumPy."""
    held_out = case.request.held_out.arrays
    p = softmax(np.asarray(case.model.outputs(case.params, held_out), np.float64), axis=-1)
    return np.stack([p[np.asarray(held_out["y"]) == c].mean(axis=0) for c in range(3)])


def divergence(case, q, params):
    """mean_i KL(q_{y_i} || p(. | x_i)) over F, written out."""
    forget = case.request.forget.arrays
    q = q[forget["y"]]
    log_p = jax.nn.log_softmax(case.model.outputs(params, forget))
    return (q * (jnp.log(q) - log_p)).sum(axis=1).mean()


@pytest.fixture(scope="module")
def gap(three):
    """params -> the divergence."""
    return jax.jit(partial(divergence, three, jnp.asarray(target_posteriors(three), jnp.float32)))


@pytest.fixture(scope="module")
def slope(gap):
    return jax.jit(jax.grad(gap))


def soft(x, tau):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - tau, 0)


# -------------------------------------------------------------------------------------- the step


def test_without_a_penalty_it_is_gradient_descent_on_the_divergence(three, one_step, gap, slope):
    expected = jax.tree.map(lambda p, g: p - ETA * g, three.params, slope(three.params))
    params, info = one_step(0.0)
    laws.close(params, expected)
    assert info.moved == 1
    np.testing.assert_allclose(info.losses[0], gap(three.params), rtol=1e-5)


def test_with_a_huge_penalty_nothing_moves(three, one_step):
    params, info = one_step(1e30)
    laws.bits(params, three.params)
    assert info.moved == 0 and jnp.isnan(info.nonmembers)


def test_entries_with_small_gradients_do_not_move_to_the_bit(three, one_step, slope):
    grads = slope(three.params)
    sizes = np.sort(np.concatenate([np.abs(np.ravel(g)) for g in jax.tree.leaves(grads)]))
    shares = [1.0]
    for place in (3, 8, 12):
        lam = float(sizes[place - 1] + sizes[place]) / 2  # between two entries
        params, info = one_step(lam)
        pairs = zip(*(jax.tree.leaves(t) for t in (grads, params, three.params)), strict=True)
        for g, new, old in pairs:
            np.testing.assert_array_equal(np.abs(g) > lam, new != old)
        expected = jax.tree.map(lambda p, g: p - soft(ETA * g, ETA * lam), three.params, grads)  # noqa: B023
        laws.close(params, expected)
        np.testing.assert_allclose(info.moved, 1 - place / sizes.size, rtol=1e-6)
        shares.append(float(info.moved))
    assert (np.diff(shares) < 0).all()


def test_a_share_of_the_entries_moves_and_mask_gradients_may_be_solved_further(three, slope):
    """Two mask gradients of two proximal steps each, against the same loop by hand."""
    method = ju.forsaken(learning_rate=ETA, share=0.4, steps=2, inner=2)
    out = method.unlearn(three.model, three.params, three.request, KEY)
    first = [np.ravel(ETA * g) for g in jax.tree.leaves(slope(three.params))]
    tau = np.quantile(np.abs(np.concatenate(first)), 0.6)
    theta = three.params
    for _ in range(2):
        d = jax.tree.map(jnp.zeros_like, theta)
        for _ in range(2):
            grads = slope(jax.tree.map(jnp.subtract, theta, d))
            d = jax.tree.map(lambda d, g: soft(d + ETA * g, tau), d, grads)
        theta = jax.tree.map(jnp.subtract, theta, d)
    laws.close(out.params, theta)
    assert out.info.losses.shape == (4,) and 0.3 < out.info.moved < 1


def test_it_rests_where_it_already_says_what_it_says_of_others(three, one_step):
    """A model of biases alone says the same of every row: q = p, and the divergence is 0."""
    (w,), b = three.params
    case = dataclasses.replace(three, params=((jnp.zeros_like(w),), b + jnp.arange(3.0)))
    method = ju.forsaken(learning_rate=ETA, penalty=1e-6, steps=1)
    out = method.unlearn(case.model, case.params, case.request, KEY)
    laws.bits(out.params, case.params)
    np.testing.assert_allclose(out.info.losses, 0, atol=1e-6)
    assert one_step(1e-6)[1].losses[0] > 1e-3, "the divergence is 0 elsewhere too"


def test_a_set_of_posteriors_has_the_gradient_of_its_mean():
    """mean_j KL(q_j || p) = KL(mean q_j || p) + constant in p."""
    rng = np.random.default_rng(0)
    q = softmax(2 * rng.standard_normal((7, 4)), axis=1)

    def gap(z):
        log_p = log_softmax(z)
        each = (q * (np.log(q) - log_p)).sum(axis=1).mean()
        return each - (q.mean(0) * (np.log(q.mean(0)) - log_p)).sum()

    gaps = [gap(3 * rng.standard_normal(4)) for _ in range(5)]
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-10)
    assert gaps[0] > 0.1


def test_a_sweep_over_the_learning_rate_is_one_program(three, one_step):
    assert ju.forsaken().needs == {"forget", "held_out", "labels"}  # and no key
    rates = jnp.array([0.1, 0.5])
    swept = jax.vmap(
        lambda rate: (
            ju.forsaken(learning_rate=rate, penalty=0.01, steps=1)
            .unlearn(three.model, three.params, three.request, KEY)
            .params
        )
    )(rates)
    expected = one_step(0.01)[0]
    laws.close(jax.tree.map(lambda p: p[1], swept), expected)


# --------------------------------------------------------------------------------- what it aims at


def test_posteriors_are_class_means_in_memory_weighted_and_streamed(three):
    q = partial(nonmembers.posteriors, three.model, three.params)
    data, expected = three.request.held_out, target_posteriors(three)
    np.testing.assert_allclose(q(data), expected, rtol=1e-5)
    np.testing.assert_allclose(q(ju.data.as_data(list(data))), expected, rtol=1e-5)
    poisoned = {
        "x": np.concatenate([data["x"], 1e3 * np.ones((2, 4), np.float32)]),
        "y": np.append(data["y"], [0, 1]).astype(np.int32),
        "weight": np.append(np.ones(6), [0, 0]).astype(np.float32),
    }
    np.testing.assert_allclose(q(ju.data.in_memory(poisoned, 3)), expected, rtol=1e-5)


def test_a_class_nobody_was_held_out_of_is_given_the_mean_of_all(three):
    held_out = three.request.held_out.take(np.asarray(three.request.held_out["y"]) != 0)
    found = nonmembers.posteriors(three.model, three.params, held_out)
    p = softmax(np.asarray(three.model.outputs(three.params, held_out.arrays)), axis=-1)
    np.testing.assert_allclose(found[0], p.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_positions_of_a_sequence_are_counted_each():
    model = ju.Model(outputs=lambda p, b: p[b["x"]], loss=lambda p, b: p[b["x"]][:, 0, 0])
    table = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    x, y = np.array([[0, 1], [2, 3], [4, 4]]), np.array([[0, 1], [1, 2], [2, 2]], np.int32)
    p = softmax(np.asarray(table)[x], axis=-1)
    expected = [p[y == c].mean(axis=0) for c in range(3)]
    found = nonmembers.posteriors(model, table, ju.data.in_memory({"x": x, "y": y}, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------------------------- when it stops


def test_the_threshold_is_the_best_of_all():
    """Ties and rows that do not count included; equally good ones differ by rounding only."""
    rng = np.random.default_rng(1)
    found = jax.jit(nonmembers.loss_threshold)
    for _ in range(20):
        known = rng.integers(0, 6, 7).astype(np.float32)
        unknown = rng.integers(0, 6, 5).astype(np.float32) + 1
        for weight in (np.ones(7, np.float32), np.array([1, 1, 1, 0, 1, 0, 1], np.float32)):

            def advantage(t):
                return np.average(known <= t, weights=weight) - (unknown <= t).mean()  # noqa: B023

            best = max(advantage(t) for t in np.arange(8))
            assert advantage(found(known, weight, unknown, np.ones(5))) == pytest.approx(best)


def test_the_run_ends_at_the_first_params_with_which_the_oracle_is_content(three, slope):
    """A step at a time without a target, until half of F has a loss above 1 nat."""

    def oracle(logits, labels):
        log_p = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0] >= -level

    loss = lambda p: -np.sort(-np.asarray(three.model.loss(p, three.request.forget.arrays)))  # noqa: E731
    run = jax.jit(
        lambda target: ju.forsaken(
            learning_rate=ETA, penalty=0.0, steps=12, target=target, oracle=oracle
        ).unlearn(three.model, three.params, three.request, KEY)
    )
    path = [three.params]
    for _ in range(12):
        path.append(jax.tree.map(lambda p, g: p - ETA * g, path[-1], slope(path[-1])))
    level = float((loss(path[5])[3] + loss(path[6])[3]) / 2)  # half of F passes between the two
    assert loss(path[5])[3] < level < loss(path[6])[3], [loss(p)[3] for p in path]
    out = run(0.5)
    assert out.info.status == Status.STOPPED and out.info.nonmembers >= 0.5
    laws.close(out.params, path[6])
    assert out.info.steps == 7 and np.isnan(np.asarray(out.info.losses)[7:]).all()
    at_once = run(0.0)
    assert at_once.info.status == Status.STOPPED
    laws.bits(at_once.params, three.params)


def test_the_threshold_made_here_is_asked(three):
    """At the start it calls non-members whom NumPy calls so; a share of 1 is not reached."""
    method = ju.forsaken(learning_rate=1e-6, steps=1, target=1.0)
    params = three.model.init(jax.random.key(1))
    known, unknown = (
        np.asarray(three.model.loss(params, d.arrays))
        for d in (three.request.forget, three.request.held_out)
    )
    strangers = (known > -membership_threshold(-known, -unknown)).mean()
    assert 0 < strangers < 1
    out = method.unlearn(three.model, params, three.request, KEY)
    assert out.info.nonmembers == pytest.approx(strangers)
    assert out.info.status == Status.COMPLETED


@pytest.mark.slow
def test_streamed_losses_give_the_same_threshold(three):
    found = [
        nonmembers.losses_and_weights(three.model, three.params, data)
        for data in (three.request.forget, ju.data.as_data(list(three.request.forget)))
    ]
    (losses, weights), (streamed, counted) = found
    np.testing.assert_array_equal(weights, counted)
    real = np.asarray(weights) > 0  # padding repeats whichever row is at hand
    assert 0 < real.sum() < len(real)
    np.testing.assert_allclose(losses[real], streamed[real], rtol=1e-5)
    thresholds = [nonmembers.loss_threshold(nats, w, nats + 0.5, w) for nats, w in found]
    np.testing.assert_allclose(*thresholds, rtol=1e-5)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.slow
def test_a_run_that_diverges_keeps_the_last_finite_params(three):
    out = ju.forsaken(learning_rate=1e38, penalty=0.0, steps=6).unlearn(
        three.model, three.params, three.request, KEY
    )
    assert out.info.status == Status.DIVERGED
    chex.assert_tree_all_finite(out.params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 0.0}, "forsaken: learning_rate must be .*> 0"),
        ({"penalty": -1.0}, "forsaken: penalty must be .*>= 0"),
        ({"share": 1.1}, "forsaken: share must be .*<= 1"),
        ({"target": 2.0}, "forsaken: target must be .*<= 1"),
        ({"steps": -1}, "steps must be >= 0 and inner >= 1, got -1 and 1"),
        ({"inner": 0}, "got 50 and 0"),
        ({"oracle": lambda z, y: y > 0}, "an oracle is asked only with a target"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.forsaken(**given)


def test_held_out_examples_must_cover_what_is_forgotten(three):
    held_out = three.request.held_out
    others = held_out.take(np.asarray(held_out["y"]) != 0)
    run = lambda **fields: ju.forsaken().unlearn(  # noqa: E731
        three.model, three.params, three.request._replace(**fields), KEY
    )
    for data in (others, list(others)):
        with pytest.raises(ValueError, match=r"no held-out example of the forgotten classes \[0\]"):
            run(held_out=data)
    with pytest.raises(ValueError, match="forsaken needs request.held_out, which is None"):
        run(held_out=None)
    squares = ju.Model(
        outputs=three.model.outputs,
        loss=lambda p, b: ju.losses.squared_error(three.model.outputs(p, b), b["y"]),
    )
    real = {f: getattr(three.request, f).replace(y=np.ones((n, 3), np.float32))
            for f, n in (("forget", 8), ("held_out", 6))}  # fmt: skip
    with pytest.raises(ValueError, match="labels must be integers, got float32"):
        ju.forsaken().unlearn(squares, three.params, ju.Request(**real), KEY)


# ------------------------------------------------------------------------------------ behaviour


@pytest.mark.slow
def test_an_overfitted_network_forgets_fifty_examples_and_keeps_its_accuracy():
    """500 points, a tenth of the labels wrong, learnt by heart; 50 of them are to go.

    The loss attack on F falls towards 1/2, test accuracy by less than 5 points, and a larger lambda
    trades forgetting for accuracy. In 100 dimensions, where examples are learnt one by one; in 10
    to 20 the steps that move F move its neighbours as far, and accuracy falls by 15 points before
    the attack does. One program.
    """
    rng = np.random.default_rng(0)

    def draw(n):
        y = rng.integers(0, 2, n)
        x = rng.standard_normal((n, 100)) + 3 * (2 * y[:, None] - 1) * np.eye(100)[:1]
        flipped = np.where(rng.random(n) < 0.1, 1 - y, y)
        return {"x": x.astype(np.float32), "y": flipped.astype(np.int32)}, y

    train, _ = draw(500)
    test, truth = draw(1000)
    half, unseen = (
        {k: v[rows] for k, v in test.items()} for rows in (slice(500), slice(500, None))
    )

    def outputs(p, batch):
        return jax.nn.relu(batch["x"] @ p["w"] + p["b"][None]) @ p["v"]

    model = ju.Model(
        outputs=outputs, loss=lambda p, b: ju.losses.cross_entropy(outputs(p, b), b["y"])
    )
    data = ju.data.in_memory(train, 500)
    request = ju.Request(forget=data.take(np.arange(50)), held_out=ju.data.in_memory(half, 500))
    start = {
        "w": jnp.asarray(rng.standard_normal((100, 128)) / 10, jnp.float32),
        "b": jnp.zeros(128),
        "v": jnp.asarray(rng.standard_normal((128, 2)) / 12, jnp.float32),
    }
    penalties = jnp.array([0.0, 3e-3, 1e-2, 3e-2])

    @jax.jit
    def everything(start):
        learnt = ju.fit(
            ju.objectives.mean_loss(model), optax.adam(1e-2), start, data, key=KEY, steps=200
        ).params

        def forget(penalty):
            method = ju.forsaken(learning_rate=0.006, penalty=penalty, steps=50)
            return method.unlearn(model, learnt, request, KEY).params

        return learnt, jax.vmap(forget)(penalties)

    learnt, forgotten = everything(start)
    models = [learnt] + [jax.tree.map(lambda p: p[i], forgotten) for i in range(4)]  # noqa: B023
    known = np.stack([-model.loss(p, request.forget.arrays) for p in models])
    strangers = np.stack([-model.loss(p, unseen) for p in models])
    attack = auc(known, strangers)
    right = [(np.asarray(outputs(p, unseen)).argmax(1) == truth[500:]).mean() for p in models]
    judged = known >= membership_threshold(known[0], strangers[0])
    rate = forgetting_rate(np.broadcast_to(judged[0], (4, 50)), judged[1:])
    assert 0.5 < attack[1] < attack[0] - 0.03, attack
    assert min(right[1:]) > right[0] - 0.05, right
    assert rate[0] > 0.4 and (np.diff(rate) <= 0).all() and rate[3] < rate[0] - 0.05, rate
    assert right[4] >= right[1], right
