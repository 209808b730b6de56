"""Blindspot: the six checks of what it promises, each by a second road."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import wasserstein_distance

import jaxunlearn as ju
from jaxunlearn.methods.descent.blindspot import attention, attention_gap, imitation
from jaxunlearn.objectives import mean_loss
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(8)
ELLS = ("l1", "l2", "kl")


def batch_of(case, forget, weight=None):
    """The case's 24 rows, those in `forget` flagged."""
    columns = {name: jnp.asarray(column) for name, column in cases.columns().items()}
    flags = jnp.zeros(24, bool).at[jnp.asarray(forget, int)].set(True)
    return columns | {"forget": flags, "weight": jnp.ones(24) if weight is None else weight}


def value(objective, params, batch):
    return objective.loss(params, {"data": batch}, objective.init(params), KEY)[0]


def built(case, ell="kl", beta=50.0, blind=None, model=None):
    blind = case.model.init(jax.random.key(1)) if blind is None else blind
    model = case.model if model is None else model
    return imitation(model, blind, ell=ell, activations=hidden(model), beta=beta)


def hidden(model):
    return lambda params, batch: (model.features(params, batch),)


@pytest.fixture
def wide(x64):
    """The case in double precision."""
    made = cases.dict_case()
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), made.params)
    init = made.model.init

    def widened(key):
        return jax.tree.map(lambda p: p.astype(jnp.float64), init(key))

    def outputs(params, batch):
        h = cases.mlp_features(params, batch)
        return h @ params["head"]["w"] + params["head"]["b"][None]

    model = dataclasses.replace(cases.by_hand(outputs, widened, cases.mlp_features))
    return cases.Case(model, params, made.request)


# ----------------------------------------------------------------------- 1. which rows read what


@pytest.mark.parametrize("ell", ELLS)
def test_without_forget_rows_it_is_plain_fine_tuning(ell, wide):
    batch = batch_of(wide, [])
    ours = jax.value_and_grad(lambda p: value(built(wide, ell), p, batch))(wide.params)
    plain = jax.value_and_grad(lambda p: value(mean_loss(wide.model), p, batch))(wide.params)
    chex.assert_trees_all_close(ours, plain, rtol=1e-12)


@pytest.mark.parametrize("ell", ELLS)
def test_with_forget_rows_alone_no_label_is_read(ell, wide):
    run = jax.value_and_grad(lambda p, batch: value(built(wide, ell), p, batch))
    batch = batch_of(wide, range(24))
    other = batch | {"y": (batch["y"] + 1) % 3}
    chex.assert_trees_all_equal(run(wide.params, batch), run(wide.params, other))
    mixed = batch_of(wide, range(8))
    changed = mixed | {"y": (mixed["y"] + 1) % 3}
    assert run(wide.params, mixed)[0] != run(wide.params, changed)[0]


def test_one_row_after_another_is_the_published_weighting_of_brackets(wide):
    """w [mean_F d + beta mean_F AT] + (1 - w) mean_R l, with uneven weights and padding."""
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 4, 24).astype(float))
    batch = batch_of(wide, range(3, 12), weight)
    blind = wide.model.init(jax.random.key(1))
    u, w = np.asarray(batch["forget"], float), np.asarray(weight)
    f, b = (np.asarray(wide.model.outputs(p, batch)) for p in (wide.params, blind))
    a, c = (np.asarray(wide.model.features(p, batch)) for p in (wide.params, blind))
    share = (w * u).sum() / w.sum()
    qa, qc = (v**2 / np.linalg.norm(v**2, axis=1, keepdims=True) for v in (a, c))
    copied = (((f - b) ** 2).sum(1) * w * u).sum() / (w * u).sum()
    looked = (((qa - qc) ** 2) * (w * u)[:, None]).sum() / ((w * u).sum() * a.shape[1])
    own = np.asarray(wide.model.loss(wide.params, batch))
    learnt = (own * w * (1 - u)).sum() / (w * (1 - u)).sum()
    expected = share * (copied + 7.0 * looked) + (1 - share) * learnt
    found = value(built(wide, "l2", beta=7.0, blind=blind), wide.params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert abs(expected - (copied + 7.0 * looked + learnt) / 2) > 1e-3  # the shares matter


# ------------------------------------------------------------------------------ 2. M = B at first


@pytest.mark.parametrize("ell", ELLS)
def test_a_student_that_is_the_blind_model_has_nothing_to_imitate(ell, wide):
    batch = batch_of(wide, range(24))
    run = jax.value_and_grad(
        lambda p, blind: value(built(wide, ell, blind=blind), p, batch), argnums=0
    )
    found, grads = run(wide.params, wide.params)
    assert abs(found) < 1e-14
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-14
    assert run(wide.params, wide.model.init(jax.random.key(1)))[0] > 1e-2


# ------------------------------------------------------------------------------ 3. attention maps


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5, 2)])
def test_a_map_has_unit_norm_and_does_not_know_its_scale(shape, x64):
    a = jnp.asarray(np.random.default_rng(2).standard_normal(shape))
    q = attention(a)
    assert q.shape == (3, 5 if len(shape) == 2 else 20) and (q >= 0).all()
    np.testing.assert_allclose(jnp.linalg.norm(q, axis=1), 1.0, rtol=1e-11)
    scaled = a * jnp.asarray([0.1, 3.0, 1e4]).reshape(3, *[1] * (a.ndim - 1))
    np.testing.assert_allclose(attention(scaled), q, rtol=1e-6)  # 0.1: the guard is 1e-8 of |v|^2


def test_maps_of_channels_are_the_mean_of_their_squares(x64):
    a = np.random.default_rng(3).standard_normal((2, 3, 4, 5))
    v = (a**2).mean(axis=3).reshape(2, 12)
    expected = v / np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(attention(jnp.asarray(a)), expected, rtol=1e-10)


def test_the_gap_is_zero_for_maps_alike_up_to_scale_and_bounded(x64):
    rng = np.random.default_rng(4)
    a, b = (jnp.asarray(rng.standard_normal((50, 6))) for _ in range(2))
    gap = attention_gap(a, b)
    assert (gap > 1e-4).all() and (gap <= 2 / 6).all()
    assert attention_gap(a, -3.0 * a).max() < 1e-20
    apart = attention_gap(jnp.eye(6)[:1], jnp.eye(6)[1:2])
    np.testing.assert_allclose(apart, 2 / 6, rtol=1e-9)  # which the bound reaches


def test_a_dead_map_is_zero_with_zero_gradient():
    dead, live = jnp.zeros((1, 4)), jnp.ones((1, 4))
    found, grad = jax.value_and_grad(lambda a: attention_gap(a, live).sum())(dead)
    np.testing.assert_allclose(found, 0.25, rtol=1e-5)
    assert (grad == 0).all() and (attention(dead) == 0).all()


# ------------------------------------------------------------------------------- 5. least squares


def test_linear_predictions_match_exactly_where_the_forget_rows_span_less_than_everything(x64):
    """Only the forget term: f = B on F, and theta moves within the span of the rows alone."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((3, 6)))
    start, blind = (jnp.asarray(rng.standard_normal((6, 1))) for _ in range(2))
    linear = ju.Model(
        outputs=lambda p, b: b["x"] @ p,
        loss=lambda p, b: ju.losses.squared_error(b["x"] @ p, b["y"]),
    )
    data = ju.data.in_memory({"x": x, "y": jnp.full((3, 1), 99.0), "forget": np.ones(3, bool)})
    objective = imitation(linear, blind, ell="l2", activations=None)
    rate = 3 / float(jnp.linalg.norm(x, 2) ** 2)
    out = ju.fit(objective, optax.sgd(0.5 * rate), start, data, key=KEY, epochs=1000)
    np.testing.assert_allclose(x @ out.params, x @ blind, atol=1e-10)
    outside = np.eye(6) - np.asarray(jnp.linalg.pinv(x) @ x)
    np.testing.assert_allclose(outside @ out.params, outside @ start, atol=1e-12)
    assert float(jnp.abs(out.params - blind).max()) > 0.1


# --------------------------------------------------------------------------------- 6. behaviour


def wave(params, batch):
    h = jnp.tanh(batch["x"] @ params["a"] + params["b"][None])
    return h @ params["c"] + params["d"][None]


def wave_init(key):
    one, two, three = jax.random.split(key, 3)
    return {
        "a": 1.5 * jax.random.normal(one, (1, 24)),
        "b": jax.random.normal(two, (24,)),
        "c": 0.2 * jax.random.normal(three, (24, 1)),
        "d": jnp.zeros(1),
    }


WAVE = ju.Model(
    outputs=wave,
    loss=lambda p, b: ju.losses.squared_error(wave(p, b), b["y"]),
    features=lambda p, b: jnp.tanh(b["x"] @ p["a"] + p["b"][None]),
    init=wave_init,
)


def test_a_regression_moves_towards_models_that_never_saw_the_range():
    """y = sin 3x + noise, x > 0.6 forgotten: W1 at least halves, retained error within 20 %."""
    rng = np.random.default_rng(6)
    x = rng.uniform(-1, 1, (120, 1)).astype(np.float32)
    y = (np.sin(3 * x) + 0.1 * rng.standard_normal((120, 1))).astype(np.float32)
    forgotten = x[:, 0] > 0.6
    data = ju.data.in_memory({"x": x, "y": y, "id": np.arange(120)}, 24)
    asked = ju.Request(data.take(forgotten), data.take(~forgotten))
    tx = optax.adam(0.02)
    method = ju.blindspot(tx, blind_tx=tx, blind_epochs=50, epochs=30)

    kept = jnp.stack([jnp.ones(120), jnp.asarray(~forgotten, jnp.float32)])

    def trained(weight, key):
        some = ju.data.InMemory(data.arrays | {"weight": weight}, 24)
        return ju.train(WAVE, tx, some, key=key, epochs=100).params

    def one(key):
        first, second = jax.random.split(key)
        both = jax.vmap(trained)(kept, jax.random.split(first))
        original, oracle = (jax.tree.map(lambda p: p[i], both) for i in (0, 1))  # noqa: B023
        ours = method.unlearn(WAVE, original, asked, second).params
        return [
            (WAVE.outputs(p, asked.forget.arrays)[:, 0], WAVE.loss(p, asked.retain.arrays).mean())
            for p in (original, oracle, ours)
        ]

    original, oracle, ours = jax.jit(jax.vmap(one))(jax.random.split(KEY, 8))
    before, after = (
        np.mean([wasserstein_distance(a, b) for a, b in zip(p[0], oracle[0], strict=True)])
        for p in (original, ours)
    )
    assert after <= before / 2, (before, after)
    assert abs(ours[1].mean() / original[1].mean() - 1) <= 0.2, (original[1], ours[1])


# --------------------------------------------------------------------------------- the whole method


def test_a_run_trains_the_blind_model_and_then_imitates_it(case):
    method = ju.blindspot(cases.TX, blind_tx=cases.TX, blind_epochs=2, epochs=2, beta=3.0)
    out = method.unlearn(case.model, case.params, case.request, KEY)
    first, second = jax.random.split(KEY)
    blind = ju.blind_model(cases.TX, epochs=2).unlearn(case.model, case.params, case.request, first)
    forget, retain = case.request.forget, case.request.retain
    flagged = [
        part.replace(forget=np.full(part.num_examples, flag))
        for part, flag in ((forget, True), (retain, False))
    ]
    objective = imitation(
        case.model, blind.params, ell="kl", activations=hidden(case.model), beta=3.0
    )
    data = ju.data.concatenate(*flagged)
    fitted = ju.fit(objective, cases.TX, case.params, data, key=second, epochs=2)
    np.testing.assert_allclose(out.info.losses, fitted.info.losses, rtol=1e-4)
    laws.close(out.params, fitted.params)
    np.testing.assert_allclose(out.info.blind.losses, blind.info.losses, rtol=1e-5)


def test_the_blind_model_is_training_on_what_is_retained(case):
    ours = ju.blind_model(cases.TX, epochs=1).unlearn(case.model, case.params, case.request, KEY)
    plain = ju.train(case.model, cases.TX, case.request.retain, key=KEY, epochs=1)
    laws.bits(ours.params, plain.params)


def test_classes_are_imitated_by_kl_and_numbers_by_squares(case):
    run = partial(ju.blindspot, cases.TX, blind_tx=cases.TX, blind_epochs=1)
    for some, usual in ((case, "kl"), (cases.suited("gaussian_amnesiac", case), "l2")):
        laws.bits(*(laws.run(run(ell=ell), some).params for ell in (None, usual)))


def test_activations_of_your_own_are_read_and_features_then_are_not(case):
    run = partial(ju.blindspot, cases.TX, blind_tx=cases.TX, blind_epochs=1)
    own = run(activations=lambda params, batch: (cases.mlp_features(params, batch),))
    assert "features" in run().needs and "features" not in own.needs
    featured, owned, none = (laws.run(m, case).params for m in (run(), own, run(activations=None)))
    laws.bits(featured, owned)
    laws.bits(none, laws.run(run(beta=0.0), case).params)
    assert laws.different(owned, none)


def test_beta_can_be_swept(case):
    def swept(beta):
        method = ju.blindspot(cases.TX, blind_tx=cases.TX, blind_epochs=1, beta=beta)
        return laws.run(method, case).params["head"]["w"]

    found = jax.vmap(swept)(jnp.asarray([0.0, 50.0]))
    laws.close(found[1], swept(50.0))
    assert laws.different(found[0], found[1])


def test_the_blind_model_has_statistics_of_its_own_and_the_student_keeps_its():
    case = cases.statistics_case()
    method = ju.blindspot(cases.TX, blind_tx=cases.TX, blind_epochs=1)
    out = laws.run(method, case)
    laws.bits(out.params["batch_stats"], case.params["batch_stats"])
    laws.traces_once(method, case)
    blind = laws.run(ju.blind_model(cases.TX, epochs=1), case)
    assert laws.different(blind.params["batch_stats"], case.params["batch_stats"])


@pytest.mark.slow
def test_the_best_candidate_is_kept(case):
    method = ju.blindspot(cases.TX, blind_tx=cases.TX, blind_epochs=1, epochs=2)
    kept = ju.keep_best(method, lambda model, params: -jnp.abs(params["body"]["b"]).sum())
    laws.keeps_tree_shapes_and_dtypes(kept, case)
    assert laws.run(kept, case).info.best_score > -jnp.inf


@pytest.mark.parametrize("which", ["tx", "blind_tx"])
def test_divergence_of_either_model_is_said(which, case):
    given = {"tx": cases.TX, "blind_tx": cases.TX} | {which: optax.sgd(1e38)}
    out = laws.run(ju.blindspot(**given, blind_epochs=2, epochs=2), case)
    assert out.info.status == Status.DIVERGED
    chex.assert_tree_all_finite(out.params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ell": "l3"}, "ell must be 'l1', 'l2', 'kl' or None, got 'l3'"),
        ({"activations": "logits"}, "activations must be 'features', a function .* got 'logits'"),
        ({"epochs": -1}, "blindspot: epochs must be >= 0, got -1"),
        ({"blind_epochs": -1}, "blindspot: blind_epochs must be >= 0, got -1"),
        ({"beta": -1.0}, "blindspot: beta must be a finite number >= 0, got -1"),
        ({"beta": float("nan")}, "blindspot: beta must be a finite number >= 0, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.blindspot(**given)


def test_a_blind_model_of_negative_length_is_refused():
    with pytest.raises(ValueError, match="blind_model: epochs must be >= 0, got -2"):
        ju.blind_model(epochs=-2)
