"""HAMU as a method: every step against the closed form in NumPy, where it stops, what it costs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.descent.hamu import retain_beside_forget
from jaxunlearn.training import Status
from jaxunlearn.transforms.hamu_step import Branch
from tests.suite import laws

KEY = jax.random.key(3)


def unlearn(method, case, request=None):
    return method.unlearn(case.model, case.params, request or case.request, KEY)


def mean(case, params, data):
    return case.model.loss(params, data.arrays).mean()


def by_hand(g_r, g_f, radius, bound):
    """The closed form as it stands in the paper, one array, NumPy."""
    shape = np.shape(g_r)
    g_r, g_f = (np.float64(g).ravel() for g in (g_r, g_f))
    dot, ff, length = g_r @ g_f, g_f @ g_f, np.sqrt(g_r @ g_r)
    assert radius**2 >= bound**2 / ff, "infeasible"
    if dot <= -bound * length / radius:
        return (-radius * g_r / length).reshape(shape)
    across = g_r - dot / ff * g_f
    root = np.sqrt(radius**2 - bound**2 / ff)
    return (bound / ff * g_f - root * across / np.linalg.norm(across)).reshape(shape)


@pytest.mark.parametrize("variant", ["Q", pytest.param("U", marks=pytest.mark.slow)])
def test_one_step_is_the_closed_form_of_both_full_gradients(variant, single):
    """eta = 0.1, rho = 0.1, both gradients clipped at 0.3, every array by itself."""
    method = ju.hamu(learning_rate=0.1, ratio=0.01, clip=0.3, variant=variant, epochs=1)
    out = unlearn(method, single)
    both = []
    for data in (single.request.retain, single.request.forget):
        grads = jax.jit(jax.grad(lambda p: mean(single, p, data)))(single.params)  # noqa: B023
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        assert norm > 0.3
        both.append([np.asarray(g) * 0.3 / norm for g in jax.tree.leaves(grads)])
    first, second = both if variant == "Q" else ([-g for g in both[1]], [-g for g in both[0]])
    sizes = np.array([np.linalg.norm(a) for a in first])
    products = sizes * [np.linalg.norm(b) for b in second]
    shares = 0.001 * products / products.sum()
    moved = jax.tree.leaves(jax.tree.map(jnp.subtract, out.params, single.params))
    for d, a, b, size, share in zip(moved, first, second, sizes, shares, strict=True):
        np.testing.assert_allclose(d, by_hand(a, b, 0.1 * size, share), rtol=1e-3, atol=2e-6)
    assert (out.info.status, out.info.steps) == (Status.COMPLETED, 1)
    assert out.info.branches.sum() == 2 and out.info.branches[Branch.INFEASIBLE] == 0
    np.testing.assert_allclose(
        out.info.losses, [mean(single, single.params, single.request.retain)], rtol=1e-5
    )


@pytest.mark.slow
def test_a_fixed_radius_is_the_length_of_every_step_of_every_array(single):
    out = unlearn(ju.hamu(learning_rate=1e-3, radius=0.05, epochs=1), single)
    for d in jax.tree.leaves(jax.tree.map(jnp.subtract, out.params, single.params)):
        np.testing.assert_allclose(jnp.linalg.norm(d), 0.05, rtol=1e-4)


def test_the_forget_gradient_is_taken_where_the_step_is_made(case):
    """The extras of the objective: the gradient on the forget batch, and rows of weight 0 are not
    there."""
    forget = case.request.forget.arrays
    padded = {k: np.concatenate([v, v[:2]]) for k, v in forget.items()}
    padded["x"][8:] = 1e3
    padded["weight"] = np.repeat([1.0, 0.0], [8, 2]).astype(np.float32)
    extras = retain_beside_forget(case.model).extras
    ours = jax.jit(lambda p: extras(p, {"forget": padded}, (), KEY)["forget_grads"])(case.params)
    laws.close(ours, jax.jit(jax.grad(lambda p: mean(case, p, case.request.forget)))(case.params))


# Where it stops


def test_a_sweep_of_rates_is_one_program_in_which_each_run_ends_as_it_must(single):
    """No rate, a bound out of reach, a rate that overflows, and one that works."""

    def run(rate, ratio):
        return unlearn(ju.hamu(learning_rate=rate, ratio=ratio, epochs=3), single)

    out = jax.jit(jax.vmap(run))(
        jnp.array([0.0, 0.1, 3.4e38, 0.1]), jnp.array([0.5, 50.0, 0.0, 0.01])
    )
    ends = [Status.COMPLETED, Status.STOPPED, Status.DIVERGED, Status.COMPLETED]
    assert (out.info.status == jnp.array(ends)).all()
    np.testing.assert_array_equal(out.info.steps, [3, 0, 1, 3])
    rows = [jax.tree.map(lambda p: p[i], out.params) for i in range(4)]  # noqa: B023
    laws.bits(rows[0], single.params)
    laws.bits(rows[1], single.params)
    chex.assert_tree_all_finite(out.params)
    assert laws.different(rows[3], single.params)
    assert np.isnan(out.info.losses[1]).all() and np.isnan(out.info.losses[2, 1:]).all()
    assert out.info.branches[1, Branch.INFEASIBLE] == 2  # seen once, in both arrays


def test_a_run_stops_where_gradients_have_become_too_small_and_keeps_what_it_had(single):
    """The retained loss must fall by B in every step, until there is no B left in its gradient."""
    method = ju.hamu(learning_rate=0.5, ratio=0.1, variant="U", clip=None, epochs=50)
    out = unlearn(method, single)
    steps = int(out.info.steps)
    assert out.info.status == Status.STOPPED and 0 < steps < 50
    assert np.isfinite(out.info.losses[:steps]).all() and np.isnan(out.info.losses[steps:]).all()
    assert out.info.losses[steps - 1] < 0.1 < out.info.losses[0]
    reached = mean(single, out.params, single.request.retain)
    assert 0 < reached < out.info.losses[steps - 1]  # that of the last step, and not undone


@pytest.mark.slow
def test_it_can_stop_where_forgetting_starts_to_cost(single):
    """The forget set repeats retained rows: the gradients agree, and no gain is free."""
    rows = single.request.retain
    request = ju.Request(rows.replace(id=np.arange(16) + 500), rows)
    method = ju.hamu(learning_rate=0.1, ratio=0.01, stop_when_hard=True, epochs=3)
    out = unlearn(method, single, request)
    assert (out.info.status, out.info.steps) == (Status.STOPPED, 0)
    np.testing.assert_allclose([out.info.cosine, out.info.slack], [1.0, -0.001], rtol=1e-4)


@pytest.mark.slow
def test_the_best_candidate_can_be_kept(single):
    """By nearness to the start, which is therefore what comes back."""

    def nearness(model, params):
        return -sum(jnp.abs(a - b).sum() for a, b in zip(params[0], single.params[0], strict=True))

    kept = unlearn(ju.keep_best(ju.hamu(learning_rate=0.1, epochs=2), nearness), single)
    laws.bits(kept.params, single.params)
    assert kept.info.best_score == 0 and kept.info.steps == 2


# What it costs


def test_for_the_same_gain_it_costs_less_than_the_difference_of_gradients():
    """Two overlapping clouds, a small network trained on both: raise the loss of one by a nat.

    Retain loss of HAMU-Q and of descent on L_R - L_F, at every forget loss that both pass.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 2)) + np.repeat([[1.0, 0.0], [-1.0, 0.0]], 30, axis=0)
    y = np.repeat([0, 1], 30)
    columns = {"x": x.astype(np.float32), "y": y.astype(np.int32)}
    forget = {k: jnp.asarray(v[:10]) for k, v in columns.items()}
    retain = {k: jnp.asarray(v[10:]) for k, v in columns.items()}

    def loss(p, batch):
        logits = jnp.tanh(batch["x"] @ p["w"] + p["b"][None]) @ p["v"]
        return ju.losses.cross_entropy(logits, batch["y"]).mean()

    w, v = rng.standard_normal((2, 2, 8))
    start = {"w": jnp.float32(w), "b": jnp.zeros(8), "v": jnp.float32(0.5 * v.T)}

    def path(params, tx, steps, sign):
        """(L_F, L_R) before each step; the updates are the gradient of L_R + sign L_F."""

        def body(carry, _):
            params, state = carry
            l_r, g_r = jax.value_and_grad(loss)(params, retain)
            l_f, g_f = jax.value_and_grad(loss)(params, forget)
            both = jax.tree.map(lambda a, b: a + sign * b, g_r, g_f)
            d, state = tx.update(both, state, params, forget_grads=g_f)
            return (optax.apply_updates(params, d), state), (l_f, l_r)

        (params, _), seen = jax.lax.scan(body, (params, tx.init(params)), None, length=steps)
        return params, seen

    @jax.jit
    def both(start):
        sgd = optax.with_extra_args_support(optax.sgd(0.05))
        trained, _ = path(start, optax.with_extra_args_support(optax.sgd(0.5)), 300, 0.2)
        ours = ju.transforms.two_objective_step(0.02, 0.01, infeasible="fallback")
        return path(trained, ours, 150, 0.0)[1], path(trained, sgd, 300, -1.0)[1]

    ours, theirs = (np.asarray(run) for run in both(start))
    before, after = ours[0, 0], ours[0, -1]
    assert after > before + 1 and theirs[0].max() > before + 1
    levels = before + np.linspace(0.1, 1, 10)
    cost = [np.interp(levels, np.maximum.accumulate(run[0]), run[1]) for run in (ours, theirs)]
    assert (cost[0] <= cost[1]).all(), cost


# What bad input gets


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": -0.1}, "hamu: learning_rate must be a finite number >= 0, got -0.1"),
        ({"ratio": -1.0}, "hamu: ratio must be a finite number >= 0, got -1.0"),
        ({"radius": 0.0}, "hamu: radius must be a finite number > 0, got 0.0"),
        ({"epochs": -1}, "hamu: epochs must be >= 0, got -1"),
        ({"variant": "R"}, "variant must be one of .'Q', 'U'.*got 'R'"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.hamu(**given)
