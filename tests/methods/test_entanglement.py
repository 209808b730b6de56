"""Entanglement: both stages by hand, the remote rows, and what it does to overlapping clouds."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.data.streams import as_data
from jaxunlearn.losses import cross_entropy, weighted_mean
from jaxunlearn.methods.descent import entangled_data, entanglement
from jaxunlearn.methods.descent.entangled_objectives import recovery
from jaxunlearn.training import Status
from jaxunlearn.transport import wasserstein2

KEY = jax.random.key(3)
SGD = optax.sgd(0.3)


def unlearn(method, case, request=None):
    return method.unlearn(case.model, case.params, request or case.request, KEY)


def flat(tree):
    return jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float32), tree))[0]


def close(one, other, atol=2e-5):
    np.testing.assert_allclose(flat(one), flat(other), atol=atol)


def remote(case):
    """The retained rows whose id no adjacent row has, taken out on the host."""
    retain, adjacent = case.request.retain, case.request.adjacent
    return retain.take(~np.isin(np.asarray(retain["id"]), np.asarray(adjacent["id"])))


def unstacked(tree, count):
    return [jax.tree.map(lambda leaf: leaf[i], tree) for i in range(count)]  # noqa: B023


def mean(case, params, data):
    return weighted_mean(case.model.loss(params, data.arrays), data.arrays)


# ------------------------------------------------------------------------------ both stages by hand


def test_a_run_is_the_two_loops_written_out(single):
    """3 primal-dual steps, then 2 projected ones with a dense least squares. Batches of 32 rows, so
    that every one is a whole set: 8 to forget, 6 adjacent, 10 remote among 16 retained."""
    alpha, beta, gamma, mu, punish = 0.3, 0.8, 0.7, 5.0, 0.01
    method = ju.entanglement(
        SGD, epochs=3, mu=mu, gamma=gamma, clip=1.5, small_punish=punish, recovery_rate=0.2,
        recovery_epochs=2, alpha=alpha, beta=beta, batches=3,
    )  # fmt: skip
    out = unlearn(method, single)
    theta, unravel = jax.flatten_util.ravel_pytree(single.params)
    forget, adjacent, far = single.request.forget, single.request.adjacent, remote(single)
    losses = lambda t, data: single.model.loss(unravel(t), data.arrays)  # noqa: E731
    level, multiplier = losses(theta, far).mean(), 0.0

    def pushed(t):
        each = losses(t, forget)
        stuck = jnp.where(each < 1.5, each, jax.lax.stop_gradient(each))
        return -gamma * (stuck - punish / (each + 1e-3)).mean()

    for _ in range(3):
        h, slope = jax.value_and_grad(lambda t: losses(t, far).mean() - level)(theta)
        step = jax.grad(pushed)(theta) + (multiplier + mu * h) * slope
        theta, multiplier = theta - 0.3 * step, multiplier + mu * h
    np.testing.assert_allclose(out.info.multiplier, multiplier, rtol=1e-4)
    np.testing.assert_allclose(out.info.level, level, rtol=1e-5)
    before, velocity = losses(theta, forget), jnp.zeros_like(theta)

    def held(t):
        each = losses(t, forget)
        spread = jnp.mean((jnp.sort(each) - jnp.sort(before)) ** 2)
        return (alpha - 1) * each.mean() + alpha * spread

    for _ in range(2):
        basis = [jax.grad(held)(theta), jax.grad(lambda t: losses(t, far).mean())(theta)]
        basis = np.stack(basis, 1)
        velocity = beta * velocity + jax.grad(lambda t: losses(t, adjacent).mean())(theta)
        velocity -= basis @ np.linalg.lstsq(basis, velocity, rcond=None)[0]
        theta = theta - 0.2 * velocity
    close(out.params, theta)


def test_the_first_step_is_clipped_ascent_and_without_weight_nothing_moves(single):
    """At theta_0 with full batches h = 0 and lambda = 0."""

    def clipped(params):
        losses = single.model.loss(params, single.request.forget.arrays)
        return jnp.minimum(losses, 1.0).mean()

    def first(gamma):
        return unlearn(ju.entanglement(SGD, gamma=gamma, clip=1.0, stages=1), single).params

    moved, still = unstacked(jax.jit(jax.vmap(first))(jnp.array([1.0, 0.0])), 2)
    slope = jax.grad(clipped)(single.params)
    close(moved, jax.tree.map(lambda p, g: p + 0.3 * g, single.params, slope))
    assert abs(flat(slope)).max() > 1e-2
    close(still, single.params, atol=1e-6)


def basis_at(case, alpha, params, frozen, sign=-1, rows=4):
    """(q_f, q_r) of stage 2, from the Objective's extras."""
    forget = entangled_data.with_losses(partial(case.model.loss, frozen), case.request.forget)
    far = remote(case)
    batches = {
        "forget": entangled_data.wide(dataclasses.replace(forget, batch_size=rows), 9).batch(0),
        "remote": far.batch(0),
    }

    @jax.jit
    def basis(params, batches):
        objective = recovery(case.model, alpha, sign, forget=rows, remote=far.batch_size)
        return objective.extras(params, batches, (), KEY)["basis"]

    return basis(params, batches)


def test_at_the_end_of_stage_one_the_transport_term_has_no_gradient(single):
    """q_f = -(1 - alpha) grad CE_f, summed over sub-batches; with alpha = 1 it is 0."""
    theta = single.params
    slope = jax.grad(lambda p: mean(single, p, single.request.forget))(theta)
    q_f, q_r = basis_at(single, 0.25, theta, theta)
    close(q_f, jax.tree.map(lambda g: -0.75 * 2 * g, slope))  # two sub-batches of four rows
    close(q_r, jax.grad(lambda p: mean(single, p, remote(single)))(theta))
    zero, _ = basis_at(single, 1.0, theta, theta)
    assert abs(flat(zero)).max() < 1e-5 * abs(flat(slope)).max()
    tilted = jax.tree.map(lambda p: p * 1.3, theta)
    assert abs(flat(basis_at(single, 1.0, tilted, theta)[0])).max() > 1e-3


def test_the_two_signs_span_different_planes_unless_alpha_is_0_or_1(single):
    theta = single.params
    now = jax.tree.map(lambda p: p * 1.5, theta)
    for alpha, parallel in ((0.0, True), (0.5, False), (1.0, True)):
        one, other = (flat(basis_at(single, alpha, now, theta, s)[0]) for s in (1, -1))
        cosine = abs(one @ other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other))
        assert (cosine > 1 - 1e-5) == parallel


def test_sub_batches_are_compared_each_with_its_own_losses_before(single):
    """q_f sums the gradients of the batches' own distances: not one large distance, and a short
    last batch is short."""
    theta = single.params
    now, forget = jax.tree.map(lambda p: p * 1.5, theta), single.request.forget
    before = single.model.loss(theta, forget.arrays)

    def parts(p, rows):
        new = single.model.loss(p, forget.arrays)
        return sum(wasserstein2(new[i : i + rows], before[i : i + rows]) for i in range(0, 8, rows))

    slopes = {rows: flat(jax.grad(parts)(now, rows)) for rows in (4, 5, 8)}
    for rows in (4, 5):
        close(basis_at(single, 1.0, now, theta, rows=rows)[0], slopes[rows])
    assert abs(slopes[4] - slopes[8]).max() > 1e-4


# ------------------------------------------------------------------------------------ the data


METHOD = ju.entanglement(SGD, epochs=2, recovery_rate=0.2, recovery_epochs=2, batches=2)
NOTHING = ju.entanglement(SGD, epochs=0, recovery_epochs=0)


def test_adjacent_rows_among_the_retained_are_not_remote(single):
    """Weight 0 for their ids is the same as leaving them out; keeping them is not."""
    out = unlearn(METHOD, single).params
    apart = single.request._replace(retain=remote(single))
    close(unlearn(METHOD, single, apart).params, out)
    unknown = single.request._replace(adjacent=single.request.adjacent.replace(id=np.arange(6)))
    assert abs(flat(unlearn(METHOD, single, unknown).params) - flat(out)).max() > 1e-3


def test_without_ids_all_of_retain_is_remote_and_it_is_said(single):
    nameless = ju.Request(*(d.drop("id") for d in single.request))
    with pytest.warns(UserWarning, match="have no 'id' columns to tell remote rows by.*Give ids"):
        out = unlearn(NOTHING, single, nameless)
    np.testing.assert_allclose(out.info.level, mean(single, single.params, nameless.retain), 1e-5)
    level = unlearn(NOTHING, single).info.level
    np.testing.assert_allclose(level, mean(single, single.params, remote(single)), 1e-5)
    assert abs(level - out.info.level) > 1e-3


def test_retain_of_adjacent_rows_only_is_refused_and_adjacent_is_needed(single):
    only = single.request._replace(retain=single.request.adjacent)
    with pytest.raises(ValueError, match="every retained row is adjacent, so nothing is remote"):
        unlearn(METHOD, single, only)
    with pytest.raises(ValueError, match="entanglement needs request.adjacent, which is None"):
        unlearn(METHOD, single, single.request._replace(adjacent=None))
    with pytest.raises(ValueError, match="needs request.adjacent, which has no examples"):
        unlearn(METHOD, single, single.request._replace(adjacent=only.adjacent.take([])))


def test_rows_of_weight_zero_count_nothing(single):
    def padded(data):
        some = {k: np.concatenate([v, v[:3]]) for k, v in data.arrays.items()}
        some["x"][-3:] = 1e6
        if data is single.request.forget:
            some["id"] = np.arange(11) + 500
        return ju.data.in_memory(some | {"weight": np.r_[np.ones(len(data["y"])), np.zeros(3)]}, 32)

    request = single.request._replace(
        forget=padded(single.request.forget), adjacent=padded(single.request.adjacent)
    )
    close(unlearn(METHOD, single, request).params, unlearn(METHOD, single).params)


def test_streams_of_whole_batches_give_what_arrays_give(single):
    """One batch each, so no order can differ."""
    lists = ju.Request(*(list(d) for d in single.request))
    out, inside = (unlearn(METHOD, single, r) for r in (lists, None))
    close(out.params, inside.params)
    np.testing.assert_allclose(out.info.level, inside.info.level, rtol=1e-5)


def test_streams_are_read_in_groups_with_their_losses(single):
    rows = single.request.retain
    stream = as_data(list(dataclasses.replace(rows, batch_size=6)))  # 6, 6, 4
    loss = partial(single.model.loss, single.params)
    for data in (stream, dataclasses.replace(rows, batch_size=6)):
        marked = entangled_data.with_losses(loss, data)
        grouped = list(entangled_data.wide(marked, 2))
        weight = np.concatenate([b["weight"] for b in grouped])
        found = np.concatenate([b[entangled_data.BEFORE] for b in grouped])[weight > 0]
        np.testing.assert_allclose(found, loss(rows.arrays), rtol=1e-5)
        assert [b["y"].shape for b in grouped] == [(12,), (12,)]
        expected = loss(rows.arrays).mean()
        np.testing.assert_allclose(entangled_data.mean_before(marked), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------- endings


@pytest.fixture(scope="module")
def swept(single):
    """One program: (rate of stage 1 from its second step on, rate of stage 2, alpha)."""

    def run(first, second, alpha):
        tx = optax.sgd(lambda step: jnp.where(step < 1, 0.3, first))
        method = ju.entanglement(
            tx, epochs=2, recovery_rate=second, recovery_epochs=2, alpha=alpha, batches=2
        )
        return unlearn(method, single)._replace(model=None)

    settings = {
        "default": (0.3, 0.2, 0.5), "mean": (0.3, 0.2, 0.0), "shape": (0.3, 0.2, 1.0),
        "no second": (0.3, 0.0, 0.5), "wild first": (jnp.inf, 0.2, 0.5),
        "wild first, no second": (jnp.inf, 0.0, 0.5), "wild second": (0.3, jnp.inf, 0.5),
    }  # fmt: skip
    columns = (jnp.array(c) for c in zip(*settings.values(), strict=True))
    outs = jax.jit(jax.vmap(run))(*columns)
    return dict(zip(settings, unstacked(outs, len(settings)), strict=True))


def test_rates_and_weights_can_be_swept_in_one_program(swept, single):
    """Traced floats pass the builder; both ends of alpha are finite, and matter."""
    close(swept["default"].params, unlearn(METHOD, single).params)
    for name in ("mean", "shape"):
        assert swept[name].info.status == Status.COMPLETED
        assert abs(flat(swept[name].params) - flat(swept["default"].params)).max() > 1e-4


def test_divergence_in_either_stage_is_told_and_ends_finite(swept):
    for name, stage in (("wild first", "ascent"), ("wild second", "recovery")):
        out = swept[name]
        assert out.info.status == Status.DIVERGED == getattr(out.info, stage).status
        assert np.isfinite(flat(out.params)).all()
    assert swept["wild second"].info.ascent.status == Status.COMPLETED


def test_a_run_that_diverged_in_stage_one_is_not_repaired(swept):
    close(swept["wild first"].params, swept["wild first, no second"].params, atol=0)


def test_one_stage_ends_where_the_second_begins(swept, single):
    out = unlearn(ju.entanglement(SGD, epochs=2, stages=1), single)
    close(out.params, swept["no second"].params)
    assert out.info.recovery.losses.shape == (0,) and out.info.status == Status.COMPLETED


def test_the_best_epoch_of_either_stage_is_kept(swept, single):
    """Low forget loss is best at the start, high forget loss or low adjacent loss later on."""

    def losses(p):
        return jnp.stack(
            [mean(single, p, d) for d in (single.request.forget, single.request.adjacent)]
        )

    def best(c):
        kept = ju.keep_best(METHOD, lambda model, p: c @ losses(p))
        return unlearn(kept, single).params

    start, first, end = single.params, swept["no second"].params, swept["default"].params
    choices = jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    kept = unstacked(jax.jit(jax.vmap(best))(choices), 3)
    table = np.stack([losses(p) for p in (start, first, end)])
    assert table[0, 0] < table[1:, 0].min() and table[2, 1] < table[:2, 1].min()
    close(kept[0], start, atol=0)
    assert losses(kept[1])[0] >= table[:, 0].max() - 1e-5
    close(kept[2], end)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 3}, "stages must be 1 or 2 .*got stages=3"),
        ({"forget_sign": 0}, r"forget_sign \+1 or -1, got .*forget_sign=0"),
        ({"epochs": -1}, "epochs and recovery_epochs must be >= 0.*epochs=-1"),
        ({"batches": 0}, "batches >= 1.*batches=0"),
        ({"mu": 0.0}, "mu must be a finite number > 0, got 0"),
        ({"gamma": -1.0}, "gamma must be a finite number >= 0"),
        ({"clip": 0.0}, "clip must be a finite number > 0"),
        ({"small_punish": -1.0}, "small_punish must be a finite number >= 0"),
        ({"recovery_rate": -1.0}, "recovery_rate must be a finite number >= 0"),
        ({"alpha": 1.5}, "alpha must be a finite number >= 0 and <= 1, got 1.5"),
        ({"beta": 1.0}, "beta must be a finite number >= 0 and < 1"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=f"entanglement: .*{words}"):
        entanglement(**options)


# ---------------------------------------------------------------------------------- behaviour


def clouds(rng, rows, spread=0.35):
    """3 superclasses of 3 sub-clusters each on a 3 x 3 grid; superclass = row of the grid."""
    fine = np.tile(np.arange(9), rows)
    centres = np.stack([2.0 * (np.arange(9) % 3), 2.0 * (np.arange(9) // 3)], 1) - 2.0
    x = centres[fine] + spread * rng.standard_normal((len(fine), 2))
    return {"x": x.astype(np.float32), "y": (fine // 3).astype(np.int32), "fine": fine}


def mlp(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["w"] + params["b"][None])
    return hidden @ params["v"] + params["c"][None]


def mlp_init(key):
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (2, 64)), "b": jnp.zeros(64),
        "v": jax.random.normal(second, (64, 3)) / 8, "c": jnp.zeros(3),
    }  # fmt: skip


@pytest.mark.slow
def test_stage_one_forgets_at_the_neighbours_cost_and_stage_two_gives_it_back():
    """2-D mixture, MLP 2-64-3: forget falls below 0.3, remote stays within 3 points, adjacent
    drops; then at least half of the drop comes back with the mean forget loss within 10 %."""
    model = ju.Model(mlp, lambda p, b: cross_entropy(mlp(p, b), b["y"]), init=mlp_init)
    columns = clouds(np.random.default_rng(0), 60)
    fine = columns.pop("fine")
    columns["id"] = np.arange(len(fine))
    data = ju.data.in_memory(columns, 32)
    request = ju.Request(
        forget=data.take(fine == 0),
        retain=data.take(fine != 0),
        adjacent=data.take((fine == 1) | (fine == 2)),
    )
    far = data.take(fine > 2)
    options = {"epochs": 2, "recovery_epochs": 10, "batches": 4}

    def measure(params):
        def of(part):
            z = mlp(params, part.arrays)
            right = (z.argmax(1) == part["y"]).mean()
            return jnp.stack([right, cross_entropy(z, part["y"]).mean()])

        return jnp.stack([of(part) for part in (request.forget, request.adjacent, far)])

    @jax.jit
    def run(key):
        start = ju.train(model, optax.adam(1e-2), data, key=key, epochs=15).params

        def after(rate):  # at rate 0 stage 2 stays where it begins
            method = ju.entanglement(optax.adam(3e-3), recovery_rate=rate, **options)
            return measure(method.unlearn(model, start, request, key).params)

        return measure(start), jax.vmap(after)(jnp.array([0.0, 0.006]))

    before, (ascended, repaired) = jax.tree.map(np.asarray, run(KEY))
    assert before[:, 0].min() > 0.95
    assert ascended[0, 0] < 0.3
    assert abs(ascended[2, 0] - before[2, 0]) < 0.03
    drop = before[1, 0] - ascended[1, 0]
    assert drop > 0.05
    assert repaired[1, 0] - ascended[1, 0] >= drop / 2
    np.testing.assert_allclose(repaired[0, 1], ascended[0, 1], rtol=0.1)
    assert abs(repaired[2, 0] - before[2, 0]) < 0.03
