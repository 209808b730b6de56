"""Memorise to forget: one step is ascent, many are not; and every variant by a second road."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.extrapolation import distance, extrapolate, extrapolations
from jaxunlearn.memorisation import mean_divergence, memorising
from jaxunlearn.methods.descent.mox import _remembered, published_adamw
from jaxunlearn.training import Status
from tests.suite import laws

KEY = jax.random.key(4)
TX = optax.sgd(0.1)


def unlearn(method, case, request=None):
    return method.unlearn(case.model, case.params, request or case.request, KEY)


@pytest.fixture(scope="module")
def wanted(single):
    """Answers that theta' should prefer: the class after the true one."""
    return (np.asarray(single.request.forget["y"]) + 1) % 3


@pytest.fixture(scope="module")
def program(single, wanted):
    """(alpha, kl, eta, tau, clip) -> (params, info) of three full-batch steps: one compilation."""
    request = single.request._replace(forget=single.request.forget.replace(replacement=wanted))

    @jax.jit
    def compiled(alpha, kl, eta, tau, clip):
        method = ju.mox(TX, alpha=alpha, epochs=3, kl=kl, eta=eta, tau=tau, clip=clip)
        out = unlearn(method, single, request)
        return out.params, out.info

    def run(alpha=-1.0, kl=1.0, eta=1.0, tau=0.0, clip=10.0):
        return compiled(alpha, kl, eta, tau, clip)

    return run


@pytest.fixture(scope="module")
def stages(single, wanted):
    """(kl, tau, clip, npo) -> theta_mem after 0 .. 3 steps of gradient descent, by hand."""

    @jax.jit
    @jax.grad
    def slope(params, kl, tau, clip, npo):
        other = forget_losses(single, params, y=jnp.asarray(wanted))
        ratio = jnp.exp(forget_losses(single, single.params) - forget_losses(single, params))
        preference = -2 / 0.7 * jnp.log1p(ratio**0.7).mean()
        memorising = jnp.where(npo, preference, forget_losses(single, params).mean())
        pushed = jnp.where(other < clip, other, clip).mean()
        return memorising - tau * pushed + kl * held(single, params)

    def run(kl=1.0, tau=0.0, clip=10.0, npo=False):
        path = [single.params]
        for _ in range(3):
            grads = slope(path[-1], kl, tau, clip, npo)
            path.append(jax.tree.map(lambda p, g: p - 0.1 * g, path[-1], grads))
        return path

    return run


# -------------------------------------------------------------- least squares, in closed form

RNG = np.random.default_rng(5)
X, Y, THETA = RNG.standard_normal((12, 3)), RNG.standard_normal(12), RNG.standard_normal(3)
H = 2 * X.T @ X / 12
MINIMUM = np.linalg.solve(H, 2 * X.T @ Y / 12)
LINEAR = ju.Model(
    outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: jnp.square(b["x"] @ p - b["y"])
)
RATE = 0.5 / np.linalg.eigvalsh(H)[-1]


def test_one_step_is_ascent_and_many_stay_within_reach_of_the_minimum(x64):
    """One program of 60 steps, of which the first k have the rate s; then theta_mem - theta* is
    (I - s H)^k (theta_ref - theta*), while ascent grows as (I + s H)^k."""
    request = ju.Request(forget=ju.data.in_memory({"x": X, "y": Y}, 12))

    @jax.jit
    def reflected(k, alpha):
        tx = optax.sgd(lambda t: jnp.where(t < k, RATE, 0.0))
        method = ju.mox(tx, kl=None, alpha=alpha, epochs=60)
        out = method.unlearn(LINEAR, jnp.asarray(THETA), request, KEY)
        return out.params, out.info.displacement

    ascent = THETA + 3.0 * RATE * H @ (THETA - MINIMUM)
    np.testing.assert_allclose(reflected(1, 3.0)[0], ascent, rtol=1e-12)
    assert not np.allclose(reflected(2, 3.0)[0], ascent, rtol=1e-2)
    away = np.linalg.norm(THETA - MINIMUM)
    for k in (2, 7, 60):
        left = np.linalg.matrix_power(np.eye(3) - RATE * H, k) @ (THETA - MINIMUM)
        params, displacement = reflected(k, 1.0)
        np.testing.assert_allclose(params, 2 * THETA - (MINIMUM + left), rtol=1e-10)
        np.testing.assert_allclose(displacement, np.linalg.norm(MINIMUM + left - THETA), rtol=1e-9)
        assert displacement <= away
    ascended = THETA
    for _ in range(60):
        ascended = ascended + RATE * H @ (ascended - MINIMUM)
    grown = np.linalg.matrix_power(np.eye(3) + RATE * H, 60) @ (THETA - MINIMUM)
    np.testing.assert_allclose(ascended - MINIMUM, grown, rtol=1e-9)
    assert np.linalg.norm(ascended - THETA) > 1e6 * away


# ------------------------------------------------------------------------------- the algorithm


def kl(old, new):
    old, new = (log_softmax(np.asarray(z, np.float64), axis=-1) for z in (old, new))
    return (np.exp(old) * (old - new)).sum(-1)


def forget_losses(case, params, **other):
    return case.model.loss(params, case.request.forget.arrays | other)


def held(case, params):
    """mean KL(h_ref || h_theta) on R, written with exponentials."""
    old = jax.nn.softmax(case.model.outputs(case.params, case.request.retain.arrays))
    new = jax.nn.softmax(case.model.outputs(params, case.request.retain.arrays))
    return (old * jnp.log(old / new)).sum(axis=1).mean()


def test_the_copy_descends_the_forget_loss_and_is_held_on_what_is_retained(single, program, stages):
    expected = stages()[3]
    laws.close(program()[0], expected)
    params, info = program(alpha=3.0)
    laws.close(params, extrapolate(single.params, expected, 3.0))
    retain = single.request.retain.arrays
    old, new = (single.model.outputs(p, retain) for p in (single.params, params))
    np.testing.assert_allclose(info.retain_divergence, kl(old, new).mean(), rtol=1e-3)
    np.testing.assert_allclose(info.displacement, distance(single.params, expected), rtol=1e-4)
    assert forget_losses(single, params).mean() > forget_losses(single, single.params).mean()
    assert info.status == Status.COMPLETED and info.losses.shape == (3,)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_divergence_has_a_weight(program, stages, weight):
    laws.close(program(kl=weight)[0], stages(kl=weight)[3])


@pytest.fixture(scope="module")
def alone(single):
    """Without the KL term and without retained data: the negation of a task vector."""
    request = ju.Request(forget=single.request.forget)
    return unlearn(ju.mox(TX, alpha=1.0, epochs=3, kl=None), single, request)


def test_without_the_divergence_no_retained_data_are_read(single, alone, stages):
    assert ju.mox(kl=None).needs == {"forget", "labels", "key"} == ju.mox().needs - {"retain"}
    laws.close(alone.params, extrapolate(single.params, stages(kl=0.0)[3], 1.0))
    assert jnp.isnan(alone.info.retain_divergence)


def test_preference_form_is_minus_the_loss_of_npo(single, stages):
    """The sign of log sigmoid, the factor 2 / beta and the frozen reference."""
    out = unlearn(ju.mox(TX, alpha=-1.0, epochs=3, objective="npo", beta=0.7), single)
    laws.close(out.params, stages(npo=True)[3])


def test_preference_form_is_bounded_below_and_starts_as_cross_entropy(single):
    objective = memorising(single.model, "npo", 0.5)
    batches = {"forget": single.request.forget.arrays}
    state = objective.init(single.params)
    slope = jax.grad(lambda p: objective.loss(p, batches, state, KEY)[0])(single.params)
    laws.close(slope, jax.grad(lambda p: forget_losses(single, p).mean())(single.params))
    sure = ju.Model(outputs=single.model.outputs, loss=lambda p, b: p * single.model.loss(
        single.params, b))  # fmt: skip
    known = memorising(sure, "npo", 0.5)
    lowest = known.loss(jnp.float32(0.0), batches, jnp.float32(1.0), KEY)[0]
    bound = 4 * jax.nn.log_sigmoid(-0.5 * forget_losses(single, single.params))
    np.testing.assert_allclose(lowest, bound.mean(), rtol=1e-5)


def test_the_targeted_copy_unlearns_the_replacement_and_the_reflection_prefers_it(
    single, wanted, program, stages
):
    for clip in (10.0, 1.0):
        laws.close(program(tau=2.0, clip=clip)[0], stages(tau=2.0, clip=clip)[3])
    plain, targeted = (
        forget_losses(single, program(alpha=1.0, tau=tau)[0], y=jnp.asarray(wanted)).mean()
        for tau in (0.0, 2.0)
    )
    assert targeted < plain


def test_momentum_reflects_the_average_and_its_ends_are_none_and_nothing(single, program, stages):
    """An average of reflections by hand; `interval` is tried with the average itself."""
    bar = single.params
    for stage in stages()[1:]:
        raw = extrapolate(single.params, stage, 4.0)
        bar = jax.tree.map(lambda new, old: 0.675 * new + 0.325 * old, raw, bar)
    laws.close(program(alpha=4.0, eta=0.675)[0], bar)
    laws.bits(program(alpha=4.0, eta=0.0)[0], single.params)
    second = unlearn(ju.mox(TX, epochs=3, kl=None, eta=1.0, interval=2), single)
    laws.close(second.params, extrapolate(single.params, stages(kl=0.0)[2], 4.0))


# -------------------------------------------------------------------------------- the identities


def test_alphas_are_swept_without_training_again(single, program):
    alphas = (0.0, 0.5, 4.0)
    many = extrapolations(single.params, program(alpha=-1.0)[0], jnp.array(alphas))
    for place, alpha in enumerate(alphas):
        laws.close(jax.tree.map(lambda leaf: leaf[place], many), program(alpha=alpha)[0])  # noqa: B023
    laws.bits(program(alpha=0.0)[0], single.params)


@pytest.mark.slow
def test_leaves_that_do_not_train_are_the_references(single):
    frozen = optax.chain(optax.masked(optax.set_to_zero(), ((False,), True)), TX)
    out = unlearn(ju.mox(frozen, alpha=8.0, epochs=3, kl=None, eta=0.675), single)
    laws.bits(out.params[1], single.params[1])
    assert laws.different(out.params[0], single.params[0])


def test_outputs_are_cached_where_that_saves_work_and_are_those_of_the_frozen_copy(case):
    """One forget batch a pass and four retain batches: from four passes on it pays."""
    forget = ju.data.in_memory(case.request.forget.arrays, 8)
    retain = ju.data.in_memory(case.request.retain.arrays, 4)
    few = ju.Request(forget, retain)
    moved = jax.tree.map(lambda p: 1.5 * p, case.params)
    values = []
    for steps, cached in ((3, False), (4, True)):
        data, old, term = _remembered(case.model, case.params, retain, steps)
        assert ("old_outputs" in data) == cached == (old is None)
        batches = {"retain": data.batch(1)}
        values.append(term.loss(moved, batches, term.init(case.params), KEY)[0])
        seen = []
        model = ju.Model(
            outputs=lambda p, b: seen.append(sorted(b)) or case.model.outputs(p, b),  # noqa: B023
            loss=case.model.loss,
        )
        jax.eval_shape(lambda p: ju.mox(TX, epochs=steps).unlearn(model, p, few, KEY), case.params)  # noqa: B023
        assert any("old_outputs" in columns for columns in seen) == cached
    assert values[0] > 1e-3
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_the_divergence_is_the_same_with_cached_outputs_and_weights(single):
    rows = single.request.retain.replace(weight=np.array([0, 2] * 8, np.float32))
    moved = jax.tree.map(lambda p: 1.5 * p, single.params)
    expected = kl(*(single.model.outputs(p, rows.arrays) for p in (single.params, moved)))[1::2]
    for batch_size in (3, 16):
        data = ju.data.in_memory(rows.arrays, batch_size)
        found = mean_divergence(single.model, single.params, moved, data)
        np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    bare = ju.Model(outputs=single.model.outputs, loss=single.model.loss)
    cached = ju.distillation.with_old_outputs(bare, single.params, data)
    np.testing.assert_allclose(
        mean_divergence(bare, None, moved, cached), expected.mean(), rtol=1e-5
    )


@pytest.mark.slow
def test_keep_best_scores_reflections(single, alone):
    """The copy gets better on F by the epoch, its reflection worse: a score tells which is seen."""

    @jax.jit
    def best(sign):
        def score(model, params):
            return sign * forget_losses(single, params).mean()

        out = unlearn(ju.keep_best(ju.mox(TX, alpha=1.0, epochs=3, kl=None), score), single)
        return out.params, out.info.best_score

    laws.bits(best(-1.0)[0], single.params)
    params, value = best(1.0)
    laws.close(params, alone.params)
    np.testing.assert_allclose(value, forget_losses(single, params).mean(), rtol=1e-5)


# ------------------------------------------------------------------------- the default optimiser


def test_the_default_is_adamw_with_a_triangle_and_decay_towards_the_start(single):
    """Written with optax's own AdamW around 0, shifted to the start."""
    rates = [min((t + 1) / 2, (6 - t) / 5) * 1e-2 for t in range(6)]
    ours = published_adamw(3, 2, learning_rate=1e-2)
    theirs = optax.adamw(lambda t: jnp.asarray(rates)[t], weight_decay=0.01)
    start = jnp.array([3.0, -1.0])
    theta, shifted = start, jnp.zeros(2)
    state, other = ours.init(theta), theirs.init(shifted)
    step, shifted_step = jax.jit(ours.update), jax.jit(theirs.update)
    for t in range(6):
        grads = jnp.array([1.0, -0.3 * t])
        updates, state = step(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
        updates, other = shifted_step(grads, other, shifted)
        shifted = optax.apply_updates(shifted, updates)
        np.testing.assert_allclose(theta - start, shifted, atol=1e-6)
    out = unlearn(ju.mox(epochs=3), single)
    assert 1e-6 < out.info.displacement < 1e-3


@pytest.mark.slow
def test_decay_towards_zero_is_reflected_away_from_zero():
    """No gradient at all: the copy shrinks, theta' grows; around the start nothing happens."""
    flat = ju.Model(outputs=lambda p, b: b["x"], loss=lambda p, b: 0 * (b["x"] @ p))
    request = ju.Request(forget={"x": np.ones((4, 2), np.float32), "y": np.zeros(4, np.int32)})
    start = jnp.array([1.0, -2.0])

    def run(to):
        method = ju.mox(kl=None, weight_decay=1e3, decay_to=to)
        return method.unlearn(flat, start, request, KEY).params

    assert (jnp.abs(run("zero")) > 1.05 * jnp.abs(start)).all()
    laws.bits(run("reference"), start)


# -------------------------------------------------------------------------------------- refusals


def test_divergence_and_overflow_are_said_and_leave_finite_params(single):
    """A rate of inf makes a copy that is not finite; alpha of 3e38 a reflection that is not."""

    @jax.jit
    def run(rate, alpha):
        out = unlearn(ju.mox(optax.sgd(rate), alpha=alpha, epochs=2, kl=None), single)
        return out.params, out.info

    for rate, alpha, steps in ((jnp.inf, 1.0, 0), (10.0, 3e38, 2)):
        params, info = run(rate, alpha)
        assert info.status == Status.DIVERGED and info.steps == steps
        laws.bits(params, single.params)
    assert run(10.0, 1.0)[1].status == Status.COMPLETED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": float("inf")}, "mox: alpha must be a finite number, got inf"),
        ({"beta": 0.0}, "mox: beta must be .*> 0"),
        ({"kl": -1.0}, "mox: kl must be .*>= 0"),
        ({"eta": 1.5}, "mox: eta must be .*<= 1"),
        ({"tau": -0.1}, "mox: tau must be .*>= 0"),
        ({"clip": 0.0}, "mox: clip must be .*> 0"),
        ({"weight_decay": -1.0}, "mox: weight_decay must be .*>= 0"),
        ({"objective": "dpo"}, "objective must be 'ce' or 'npo', got 'dpo'"),
        ({"decay_to": "one"}, "decay_to must be 'reference' or 'zero', got 'one'"),
        ({"tx": TX, "weight_decay": 0.1}, "belong to the default optimiser.*transforms.anchor"),
        ({"tx": TX, "decay_to": "zero"}, "belong to the default optimiser"),
        ({"epochs": -1}, "epochs must be >= 0 and interval >= 1, got -1 and 1"),
        ({"interval": 0}, "got 10 and 0"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.mox(**given)
    with pytest.raises(ValueError, match="kind must be 'ce' or 'npo'"):
        memorising(LINEAR, "dpo")


def test_replacements_are_asked_for(single):
    targeted = ju.mox(TX, tau=1.0)
    with pytest.raises(ValueError, match="reads the column 'replacement'.*but it has"):
        unlearn(targeted, single)
    for forget in (single.request.forget, list(single.request.forget)):
        negative = np.full(8, -1)
        if isinstance(forget, list):
            forget = [dict(batch) | {"replacement": negative} for batch in forget]
        else:
            forget = forget.replace(replacement=negative)
        with pytest.raises(ValueError, match="has negative classes"):
            unlearn(targeted, single, single.request._replace(forget=forget))


# ------------------------------------------------------------------------------------ behaviour


@pytest.mark.slow
def test_forgetting_grows_with_alpha_and_costs_less_retained_loss_than_ascent():
    """Two Gaussians with a fifth of the labels wrong, learnt by heart; 20 of 200 are to go.

    Training, memorising, the sweep and ascent to compare with are one program. Ascent's retained
    loss is read off where its forget loss is the same.
    """
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 100)
    x = (rng.standard_normal((200, 6)) + y[:, None] - 0.5).astype(np.float32)
    labels = np.where(rng.random(200) < 0.2, 1 - y, y).astype(np.int32)
    data, chosen = ju.data.in_memory({"x": x, "y": labels}, 200), rng.permutation(200)
    request = ju.Request(data.take(chosen[:20]), data.take(chosen[20:]))
    alphas = jnp.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    start = {
        "w": jnp.asarray(rng.standard_normal((6, 64)) / 2, jnp.float32),
        "b": jnp.zeros(64),
        "v": jnp.asarray(rng.standard_normal((64, 2)) / 8, jnp.float32),
    }

    def outputs(p, batch):
        return jnp.tanh(batch["x"] @ p["w"] + p["b"][None]) @ p["v"]

    model = ju.Model(
        outputs=outputs, loss=lambda p, b: ju.losses.cross_entropy(outputs(p, b), b["y"])
    )

    def losses(p):
        return [model.loss(p, d.arrays).mean() for d in (request.forget, request.retain)]

    @jax.jit
    def everything(start):
        learnt = ju.fit(
            objectives.mean_loss(model), optax.adam(2e-2), start, data, key=KEY, steps=150
        ).params
        method = ju.mox(optax.sgd(0.3), alpha=-1.0, epochs=40)
        copy = method.unlearn(model, learnt, request, KEY).params
        swept = jax.vmap(losses)(extrapolations(learnt, copy, alphas))

        def step(p, _):
            grads = jax.grad(lambda q: losses(q)[0])(p)
            p = jax.tree.map(lambda a, g: a + 0.02 * g, p, grads)
            return p, losses(p)

        return swept, jax.lax.scan(step, learnt, None, length=200)[1]

    (forget, retain), (ga_forget, ga_retain) = jax.tree.map(np.asarray, everything(start))
    assert (np.diff(forget[:5]) > 0).all(), forget
    assert retain[5] > retain[0], "free of charge at alpha = 8"
    assert forget[7] < ga_forget[-1], "ascent never got as far: nothing is compared"
    matched = np.interp(forget[3:], ga_forget, ga_retain)
    assert (retain[3:] < matched).all(), (forget, retain, matched)
