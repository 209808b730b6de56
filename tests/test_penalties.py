"""Penalties on parameters: zero at the anchor, EWC of 1 is L2, a full Hessian is joint training,
tasks accumulate exactly, new classes are free, and old tasks are forgotten less."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import objectives, penalties
from jaxunlearn.data import digits, in_memory
from jaxunlearn.losses import cross_entropy
from jaxunlearn.model import Model
from jaxunlearn.training import fit

KEY = jax.random.key(0)


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "body": (jnp.asarray(scale * rng.standard_normal((3, 2)), jnp.float32),),
        "head": {"w": jnp.asarray(scale * rng.standard_normal((2, 4)), jnp.float32)},
    }


def importances(seed):
    return jax.tree.map(jnp.square, tree(seed))


def flat(some):
    return jax.flatten_util.ravel_pytree(some)[0]


def value(objective, params):
    return objective.loss(params, {}, objective.init(params), KEY)[0]


def gradient(objective, params):
    return jax.grad(lambda p: value(objective, p))(params)


ANCHOR, THETA, FISHER = tree(0), tree(1), importances(2)


# Check 1


@pytest.mark.parametrize(
    "penalty", [penalties.l2_anchor(ANCHOR), penalties.ewc(ANCHOR, FISHER)], ids=["l2", "ewc"]
)
def test_at_the_anchor_a_penalty_is_zero_and_so_is_its_gradient(penalty):
    assert value(penalty, ANCHOR) == 0 and not flat(gradient(penalty, ANCHOR)).any()
    assert value(penalty, THETA) > 0 and flat(gradient(penalty, THETA)).all()


def test_the_value_and_the_gradient_are_those_of_the_formula():
    d, f = flat(THETA) - flat(ANCHOR), flat(FISHER)
    l2, ewc = penalties.l2_anchor(ANCHOR), penalties.ewc(ANCHOR, FISHER)
    np.testing.assert_allclose(value(l2, THETA), 0.5 * (d**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(value(ewc, THETA), 0.5 * (f * d**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(flat(gradient(l2, THETA)), d, rtol=1e-5)
    np.testing.assert_allclose(flat(gradient(ewc, THETA)), f * d, rtol=1e-5)
    np.testing.assert_allclose(penalties.quadratic(THETA, ANCHOR, FISHER), value(ewc, THETA))


# Check 2


def test_ewc_with_importances_of_one_is_l2():
    ones = jax.tree.map(jnp.ones_like, ANCHOR)
    ewc, l2 = penalties.ewc(ANCHOR, ones), penalties.l2_anchor(ANCHOR)
    assert value(ewc, THETA) == value(l2, THETA)
    assert value(penalties.ewc(ANCHOR, FISHER), THETA) != value(l2, THETA)


# Check 3


def test_a_strong_penalty_keeps_the_penalised_leaves_and_only_those():
    """Minimiser of 1/2 |theta - t|^2 + mu R, in closed form (t + mu theta_o) / (1 + mu)."""
    mask = {"body": (True,), "head": {"w": False}}
    target, mu = tree(3), 1e5

    def towards(params, batches, key):
        return penalties.quadratic(params, target)

    total = objectives.weighted_sum(
        (1.0, objectives.stateless(towards)), (mu, penalties.l2_anchor(ANCHOR, mask))
    )
    data, tx = in_memory({"x": np.ones(1)}), optax.sgd(1 / (1 + mu))
    out = fit(total, tx, target, data, key=KEY, steps=3)
    np.testing.assert_allclose(out.params["body"][0], ANCHOR["body"][0], atol=1e-4)
    np.testing.assert_array_equal(out.params["head"]["w"], target["head"]["w"])


# Check 4


def regression(seed, n, orthogonal=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4))
    x = np.linalg.qr(x)[0] * rng.uniform(1, 2, 4) if orthogonal else x
    return jnp.asarray(x), jnp.asarray(x @ rng.standard_normal(4) + rng.standard_normal(n))


def half_squares(w, x, y):
    return 0.5 * jnp.square(x @ w - y).sum()


def joint_gradient(x1, y1, x2, y2, curvature_of):
    """Gradient of (loss of task 2) + EWC of task 1, at the joint least-squares solution."""
    w1 = jnp.linalg.lstsq(x1, y1)[0]
    both = jnp.linalg.lstsq(jnp.concatenate([x1, x2]), jnp.concatenate([y1, y2]))[0]
    penalty = penalties.ewc(w1, curvature_of(w1))
    return jax.grad(lambda w: half_squares(w, x2, y2) + value(penalty, w))(both)


def test_ewc_with_the_full_hessian_is_joint_training_of_a_linear_regression(x64):
    (x1, y1), (x2, y2) = regression(0, 12), regression(1, 9)

    def product(w1):
        return lambda v: jax.jvp(jax.grad(lambda w: half_squares(w, x1, y1)), (w1,), (v,))[1]

    assert abs(joint_gradient(x1, y1, x2, y2, product)).max() < 1e-12
    assert abs(joint_gradient(x1, y1, x2, y2, lambda w: lambda v: 2 * product(w)(v))).max() > 0.1


def test_the_diagonal_is_joint_training_for_orthogonal_features_only(x64):
    def diagonal(x):
        return lambda w: jnp.square(x).sum(axis=0)

    (x1, y1), (x2, y2) = regression(0, 12, orthogonal=True), regression(1, 9)
    assert abs(joint_gradient(x1, y1, x2, y2, diagonal(x1))).max() < 1e-12
    x1, y1 = regression(0, 12)
    assert abs(joint_gradient(x1, y1, x2, y2, diagonal(x1))).max() > 0.1


def test_joint_training_from_mean_losses_needs_the_ratio_of_the_sizes(x64):
    (x1, y1), (x2, y2) = regression(0, 12), regression(1, 9)
    w1 = jnp.linalg.lstsq(x1, y1)[0]
    both = jnp.linalg.lstsq(jnp.concatenate([x1, x2]), jnp.concatenate([y1, y2]))[0]
    penalty = penalties.ewc(w1, lambda v: x1.T @ (x1 @ v) / 12)

    def slope(mu):
        return jax.grad(lambda w: half_squares(w, x2, y2) / 9 + mu * value(penalty, w))(both)

    assert abs(slope(12 / 9)).max() < 1e-12 < 1e-3 < abs(slope(1.0)).max()


# Check 7


def classifier(p, batch):
    return jnp.tanh(batch["x"] @ p["body"][0]) @ p["head"]["w"]


def fisher_of(x, y, kind):
    from jaxunlearn.curvature import fisher_diagonal

    def loss(p, batch):
        return cross_entropy(classifier(p, batch), batch["y"])

    return fisher_diagonal(loss, THETA, in_memory({"x": x, "y": y}), kind=kind, outputs=classifier)


def test_ewc_does_not_see_the_order_of_the_examples_nor_their_labels_if_exact():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.integers(0, 4, 8)
    order = rng.permutation(8)

    def penalty(x, y, kind):
        return float(value(penalties.ewc(ANCHOR, fisher_of(x, y, kind)), THETA))

    exact, empirical = penalty(x, y, "exact"), penalty(x, y, "empirical")
    assert penalty(x[order], y[order], "exact") == pytest.approx(exact, rel=1e-5)
    assert penalty(x[order], y[order], "empirical") == pytest.approx(empirical, rel=1e-5)
    assert penalty(x, (y + 1) % 4, "exact") == pytest.approx(exact, rel=1e-5)
    assert penalty(x, (y + 1) % 4, "empirical") != pytest.approx(empirical, rel=1e-2)


# Check 8


def test_columns_of_new_classes_get_no_penalty():
    old = ANCHOR | {"head": {"w": ANCHOR["head"]["w"][:, :2]}}
    anchor, mask = penalties.grown(old, THETA)
    np.testing.assert_array_equal(mask["head"]["w"], [[True, True, False, False]] * 2)
    assert mask["body"][0].all()
    for penalty in (penalties.l2_anchor(anchor, mask), penalties.ewc(anchor, FISHER, mask)):
        slope = gradient(penalty, THETA)["head"]["w"]
        assert slope[:, :2].all() and not slope[:, 2:].any()
        moved = THETA | {"head": {"w": THETA["head"]["w"].at[:, 2:].set(9.0)}}
        assert value(penalty, moved) == value(penalty, THETA)


def test_what_a_mask_leaves_out_may_even_be_undefined():
    anchor = ANCHOR | {"head": {"w": jnp.full((2, 4), jnp.nan)}}
    penalty = penalties.l2_anchor(anchor, {"body": True, "head": False})
    assert (
        jnp.isfinite(value(penalty, THETA)) and jnp.isfinite(flat(gradient(penalty, THETA))).all()
    )


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (
            {"w": jnp.ones((2, 5))},
            r"as long as before at \['w'\], got \(2, 4\) from \(2, 5",
        ),
        ({"w": jnp.ones(2)}, r"got \(2, 4\) from \(2,\)"),
        ({"v": jnp.ones(2)}, "`anchor` and params are different trees"),
    ],
)
def test_a_head_that_has_not_grown_is_refused(old, message):
    with pytest.raises(ValueError, match=message):
        penalties.grown(old, {"w": jnp.ones((2, 4))})


# Several tasks


def test_offline_ewc_is_the_sum_of_one_penalty_per_task():
    """Equal gradients everywhere; values differ by a constant."""
    tasks = [(tree(10 + k), importances(20 + k)) for k in range(3)]
    state = penalties.ewc_init(ANCHOR)
    for theta, fisher in tasks:
        state = penalties.ewc_update(state, theta, fisher, mode="offline", normalise=False)
    one = penalties.ewc(state.anchor, state.fisher)
    many = objectives.weighted_sum(*((1.0, penalties.ewc(*task)) for task in tasks))
    np.testing.assert_allclose(
        flat(gradient(one, THETA)), flat(gradient(many, THETA)), rtol=1e-4, atol=1e-5
    )
    others = [tree(30), tree(31)]
    offsets = [float(value(many, p) - value(one, p)) for p in (THETA, *others)]
    np.testing.assert_allclose(offsets, offsets[0], rtol=1e-4)
    assert state.tasks == 3


def test_online_ewc_is_anchored_at_the_latest_task_and_decays_the_older_ones():
    state = penalties.ewc_init(ANCHOR)
    for k in range(3):
        fisher = importances(20 + k)
        state = penalties.ewc_update(state, tree(10 + k), fisher, zeta=0.5, normalise=False)
    assert state.anchor is not ANCHOR
    np.testing.assert_array_equal(flat(state.anchor), flat(tree(12)))
    expected = sum(0.5 ** (2 - k) * flat(importances(20 + k)) for k in range(3))
    np.testing.assert_allclose(flat(state.fisher), expected, rtol=1e-6)


def test_after_one_task_both_modes_are_that_tasks_penalty():
    states = [
        penalties.ewc_update(penalties.ewc_init(ANCHOR), THETA, FISHER, mode=m, normalise=False)
        for m in ("online", "offline")
    ]
    for state in states:
        np.testing.assert_allclose(flat(state.anchor), flat(THETA), rtol=1e-6)
        np.testing.assert_array_equal(flat(state.fisher), flat(FISHER))


def test_no_task_yet_is_no_penalty():
    state = penalties.ewc_init(ANCHOR)
    assert value(penalties.ewc(state.anchor, state.fisher), THETA) == 0


def test_normalised_importances_have_mean_one_so_that_their_unit_does_not_matter():
    ours = penalties.normalised(FISHER)
    assert float(flat(ours).mean()) == pytest.approx(1)
    tiny = penalties.normalised(jax.tree.map(lambda f: 1e-25 * f, FISHER))
    np.testing.assert_allclose(flat(tiny), flat(ours), rtol=1e-4)
    nothing = jax.tree.map(jnp.zeros_like, FISHER)
    assert not flat(penalties.normalised(nothing)).any()
    state = penalties.ewc_init(ANCHOR)
    for k in range(2):
        state = penalties.ewc_update(state, THETA, importances(k))
    assert float(flat(state.fisher).mean()) == pytest.approx(2)


def test_tasks_accumulate_inside_a_scan_and_in_half_precision():
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), ANCHOR)

    def body(state, fisher):
        return penalties.ewc_update(state, halves, fisher, mode="offline"), None

    fishers = jax.tree.map(lambda f: jnp.stack([f, 2 * f]), FISHER)
    state, _ = jax.lax.scan(body, penalties.ewc_init(halves), fishers)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.anchor))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.fisher))
    penalty = penalties.l2_anchor(ANCHOR)
    assert value(penalty, halves).dtype == jnp.float32
    assert gradient(penalty, halves)["head"]["w"].dtype == jnp.bfloat16


def test_another_anchor_compiles_nothing():
    traces = []

    def noted(p):
        traces.append(1)
        return p

    def run(seed):
        penalty = penalties.ewc(tree(seed), importances(seed))
        state = penalty.init(THETA)
        return compiled(penalty.loss, THETA, state)

    compiled = jax.jit(lambda loss, p, s: loss(noted(p), {}, s, KEY)[0], static_argnums=0)
    assert run(5) != run(6)
    assert len(traces) == 1


# What bad input gets


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: penalties.l2_anchor({"w": 1}),
            ValueError,
            "are different trees",
        ),
        (
            lambda: penalties.l2_anchor(ANCHOR | {"head": {"w": jnp.ones((2, 3))}}),
            ValueError,
            r"`anchor` and params differ at \['head'\]\['w'\]: shapes \(2, 3\) and \(2, 4\).*grown",
        ),
        (
            lambda: penalties.ewc(ANCHOR, FISHER | {"head": {"w": jnp.ones(4)}}),
            ValueError,
            r"ewc: `fisher` and params differ at \['head'\]\['w'\]",
        ),
        (
            lambda: penalties.ewc(ANCHOR, jax.tree.map(jnp.negative, FISHER)),
            ValueError,
            r"importances must be finite and >= 0.*fisher\['body'\]\[0\]",
        ),
        (
            lambda: penalties.ewc(ANCHOR, FISHER | {"head": {"w": jnp.full((2, 4), jnp.nan)}}),
            ValueError,
            r"importances must be finite and >= 0.*fisher\['head'\]\['w'\]",
        ),
        (
            lambda: penalties.l2_anchor(ANCHOR, {"tail": True}),
            ValueError,
            "the mask is no prefix of the params",
        ),
        (
            lambda: penalties.l2_anchor(ANCHOR, {"body": 1.0, "head": True}),
            TypeError,
            r"mask\['body'\]\[0\] must be a bool or a bool array, got float",
        ),
        (
            lambda: penalties.l2_anchor(ANCHOR, {"body": True, "head": np.ones(4, bool)}),
            ValueError,
            r"mask\['head'\]\['w'\] has shape \(4,\), the leaf has \(2, 4\)",
        ),
    ],
)
def test_trees_that_do_not_fit_are_refused_by_the_name_of_the_leaf(build, error, message):
    with pytest.raises(error, match=message):
        build().init(THETA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode must be 'online' or 'offline', got 'both'"),
        ({"zeta": 0.0}, r"zeta must lie in \(0, 1\], got 0.0"),
        ({"zeta": 1.5}, r"zeta must lie in \(0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        penalties.ewc_update(penalties.ewc_init(ANCHOR), THETA, FISHER, **options)


# Behaviour


def test_l2_towards_the_old_task_forgets_less_of_it():
    """Digits 0-4, then 5-9, with the cross-entropy over all ten."""
    source = digits()
    first = (np.arange(10) < 5)[source.train["y"]]
    test = {k: v[(source.test["y"] < 5)] for k, v in source.test.items()}

    def outputs(p, batch):
        x = batch["x"].reshape(-1, 64)
        return jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]

    def loss(p, batch):
        return cross_entropy(outputs(p, batch), batch["y"])

    def data(rows):
        return in_memory({k: source.train[k][rows] for k in ("x", "y")}, batch_size=64)

    model = Model(outputs=outputs, loss=loss)
    shapes = {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}
    keys = dict(zip(shapes, jax.random.split(KEY, 4), strict=True))
    start = {k: 0.1 * jax.random.normal(keys[k], shape) for k, shape in shapes.items()}
    tx = optax.adam(2e-2)
    plain = objectives.mean_loss(model)
    before = fit(plain, tx, start, data(first), key=KEY, epochs=15).params

    def accuracy(p):  # among the old classes: what the body and the old columns still know
        return float((outputs(p, test)[:, :5].argmax(axis=1) == test["y"]).mean())

    def after(objective):
        return accuracy(fit(objective, tx, before, data(~first), key=KEY, epochs=15).params)

    kept = after(objectives.weighted_sum((1.0, plain), (0.1, penalties.l2_anchor(before))))
    lost = after(plain)
    assert accuracy(before) > 0.95
    assert kept > lost + 0.05, (kept, lost)
