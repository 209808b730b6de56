"""The step that gains B and costs least: against random search, the optimality conditions, and what
follows from them; then the same as a transformation, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.transforms import hamu_step, two_objective_step
from jaxunlearn.transforms.hamu_step import Branch

ONE = jax.jit(hamu_step, static_argnames="fallback")
MANY = jax.jit(jax.vmap(hamu_step))
DIMENSION = 3


def problems(n=400):
    """n random (g_r, g_f, R, B), 0 <= B <= 1.2 R |g_f|: every branch but the degenerate ones."""
    rng = np.random.default_rng(1)
    g_r, g_f = rng.standard_normal((2, n, DIMENSION)) * rng.lognormal(size=(2, n, 1))
    radius = rng.lognormal(size=n)
    bound = rng.uniform(0, 1.2, n) * radius * np.linalg.norm(g_f, axis=1)
    return g_r, g_f, radius, bound


def dots(a, b):
    return np.sum(np.asarray(a) * np.asarray(b), axis=-1)


def norms(a):
    return np.sqrt(dots(a, a))


@pytest.fixture
def solved(x64):
    given = problems()
    d, info = MANY(*given)
    return *given, np.asarray(d), info


def of(info, branch):
    chosen = np.asarray(info.branch) == branch
    assert chosen.sum() > 20, "the problems do not reach this branch"
    return chosen


# What a step is


def test_feasible_steps_keep_to_the_radius_and_gain_the_bound(solved):
    _, g_f, radius, bound, d, info = solved
    ok = np.asarray(info.feasible)
    np.testing.assert_array_equal(ok, bound <= radius * norms(g_f))
    assert (norms(d)[ok] <= radius[ok] * (1 + 1e-12)).all()
    assert (dots(g_f, d)[ok] >= bound[ok] * (1 - 1e-12)).all()


def test_a_rectified_step_is_as_long_as_allowed_and_gains_exactly_the_bound(solved):
    _, g_f, radius, bound, d, info = solved
    some = of(info, Branch.RECTIFIED)
    np.testing.assert_allclose(norms(d)[some], radius[some], rtol=1e-12)
    np.testing.assert_allclose(dots(g_f, d)[some], bound[some], rtol=1e-10, atol=1e-12)


def test_no_feasible_direction_of_ten_thousand_costs_less(solved):
    """Twenty problems of each branch, their random rivals made feasible by scaling and lifting."""
    g_r, g_f, radius, bound, d, info = solved
    rng = np.random.default_rng(2)
    for branch in (Branch.RECTIFIED, Branch.DIRECT):
        for i in np.flatnonzero(of(info, branch))[:20]:
            along = g_f[i] / norms(g_f[i])
            least = bound[i] / norms(g_f[i])
            rivals = rng.standard_normal((10_000, DIMENSION))
            across = rivals - dots(rivals, along[None])[:, None] * along[None]
            height = rng.uniform(least, radius[i], 10_000)[:, None]
            room = np.sqrt(radius[i] ** 2 - height**2)
            rivals = height * along[None] + rng.uniform(0, 1, (10_000, 1)) * room * (
                across / norms(across)[:, None]
            )
            assert (dots(rivals, g_f[i][None]) >= bound[i] * (1 - 1e-9)).all()
            assert (norms(rivals) <= radius[i] * (1 + 1e-9)).all()
            assert dots(g_r[i], d[i]) <= dots(rivals, g_r[i][None]).min()


def test_a_step_solves_the_optimality_conditions(solved):
    """g_r + nu d - mu g_f = 0 with nu, mu >= 0, found by least squares; mu (g_f . d - B) = 0."""
    g_r, g_f, _, bound, d, info = solved
    for i in np.flatnonzero(np.asarray(info.feasible)):
        system = np.stack([-d[i], g_f[i]], axis=1)
        (nu, mu), *_ = np.linalg.lstsq(system, g_r[i], rcond=None)
        np.testing.assert_allclose(system @ [nu, mu], g_r[i], atol=1e-8 * norms(g_r[i]))
        assert nu > 0 and mu >= -1e-9
        slack = dots(g_f[i], d[i]) - bound[i]
        assert mu * slack <= 1e-9 * norms(g_r[i]) * norms(d[i])


def test_the_conditions_notice_a_step_of_the_wrong_sign(solved):
    """Mutant: + root in the place of - root also has |d| = R and gains B."""
    g_r, g_f, _, bound, d, info = solved
    i = np.flatnonzero(of(info, Branch.RECTIFIED))[0]
    along = bound[i] / dots(g_f[i], g_f[i]) * g_f[i]
    mutant = 2 * along - d[i]
    np.testing.assert_allclose(norms(mutant), norms(d[i]), rtol=1e-10)
    np.testing.assert_allclose(dots(mutant, g_f[i]), bound[i], rtol=1e-9, atol=1e-12)
    (nu, _), *_ = np.linalg.lstsq(np.stack([-mutant, g_f[i]], axis=1), g_r[i], rcond=None)
    assert nu < 0


def test_without_a_bound_the_step_is_descent_or_orthogonal(x64):
    g_r, g_f, radius, _ = problems()
    d, info = MANY(g_r, g_f, radius, np.zeros_like(radius))
    opposed = dots(g_r, g_f) <= 0
    assert (np.asarray(info.branch) == np.where(opposed, Branch.DIRECT, Branch.RECTIFIED)).all()
    steepest = -radius[:, None] * g_r / norms(g_r)[:, None]
    across = g_r - (dots(g_r, g_f) / dots(g_f, g_f))[:, None] * g_f
    orthogonal = -radius[:, None] * across / norms(across)[:, None]
    np.testing.assert_allclose(d, np.where(opposed[:, None], steepest, orthogonal), rtol=1e-9)


def test_the_formulas_meet_at_the_threshold(x64):
    """cos = -B / (R |g_f|), approached from both sides."""
    g_r, g_f = jnp.array([1.0, 0.0, 0.0]), 2 * jnp.array([-0.6, 0.8, 0.0])
    (before, first), (after, second) = (ONE(g_r, g_f, 0.5, 0.6 * (1 + e)) for e in (-1e-9, 1e-9))
    assert (first.branch, second.branch) == (Branch.DIRECT, Branch.RECTIFIED)
    np.testing.assert_allclose(before, after, atol=1e-8)
    far, _ = ONE(g_r, g_f, 0.5, 0.9)
    assert abs(far - before).max() > 0.05


def test_the_free_gain_is_where_the_cost_changes_sign(solved):
    """g_r . d <= 0 iff B <= R |g_f| sin; for obtuse angles iff B <= R |g_f|, that is always."""
    g_r, g_f, radius, bound, d, info = solved
    ok = np.asarray(info.feasible)
    cosine = dots(g_r, g_f) / norms(g_r) / norms(g_f)
    sine = np.sqrt(1 - cosine**2)
    free = radius * norms(g_f) * np.where(cosine > 0, sine, 1)
    np.testing.assert_allclose(info.free_gain, free, rtol=1e-9)
    np.testing.assert_allclose(info.cosine, cosine, rtol=1e-9)
    np.testing.assert_array_equal((dots(g_r, d) <= 0)[ok], (bound <= free)[ok])
    assert 20 < (bound > free)[ok].sum() < ok.sum() - 20
    published = radius * norms(g_f) * sine  # departure: calls some free gains hard
    assert ((bound > published) & (dots(g_r, d) <= 0))[ok].any()


@pytest.mark.parametrize("s", [1e-6, 3.0, 1e6])
def test_a_factor_of_a_loss_changes_nothing(solved, s):
    g_r, g_f, radius, bound, d, info = solved
    firm = np.abs(bound - radius * norms(g_f)) > 1e-9  # rounding may decide otherwise
    for given in ((s * g_r, g_f, radius, bound), (g_r, s * g_f, radius, s * bound)):
        np.testing.assert_allclose(MANY(*given)[0][firm], d[firm], rtol=1e-8, atol=1e-10)


# Degenerate gradients


@pytest.mark.parametrize(
    ("g_r", "g_f", "bound", "fallback", "branch", "expected"),
    [
        ([3.0, 4.0], [0.0, 0.0], 0.0, False, Branch.FLAT, [-0.6, -0.8]),
        ([3.0, 4.0], [0.0, 0.0], 0.1, True, Branch.INFEASIBLE, [0.0, 0.0]),
        ([3.0, 4.0], [2.0, 0.0], 2.1, False, Branch.INFEASIBLE, [0.0, 0.0]),
        ([3.0, 4.0], [2.0, 0.0], 2.2, True, Branch.INFEASIBLE, [1.1, 0.0]),
        ([3.0, 4.0], [6.0, 8.0], 5.0, False, Branch.COLINEAR, [0.3, 0.4]),
        ([3.0, 4.0], [-6.0, -8.0], 5.0, False, Branch.DIRECT, [-0.6, -0.8]),
        ([0.0, 0.0], [2.0, 0.0], 1.0, False, Branch.COLINEAR, [0.5, 0.0]),
        ([0.0, 0.0], [2.0, 0.0], 0.0, False, Branch.DIRECT, [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0], 0.0, False, Branch.FLAT, [0.0, 0.0]),
    ],
)
def test_gradients_that_vanish_or_agree_have_a_step_too(
    g_r, g_f, bound, fallback, branch, expected
):
    """R = 1, in single precision."""
    d, info = ONE(jnp.array(g_r), jnp.array(g_f), 1.0, bound, fallback=fallback)
    assert info.branch == branch
    assert bool(info.feasible) == (branch != Branch.INFEASIBLE)
    np.testing.assert_allclose(d, expected, atol=1e-6)


def test_agreement_is_seen_through_rounding():
    """Of gradients that agree nothing is left across; rounding noise must not become a step."""
    g = jnp.asarray(np.random.default_rng(3).standard_normal(1000), jnp.float32)
    d, info = ONE(g, g / 3, 1.0, 0.01)
    assert info.branch == Branch.COLINEAR and info.free_gain == 0
    np.testing.assert_allclose(d, 0.03 * g / jnp.linalg.norm(g) ** 2, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_whose_squares_do_not_exist_are_no_trouble(size):
    g_r, g_f = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
    expected, _ = ONE(g_r, g_f, 5.0, 1.0)
    d, info = ONE(size * g_r, size * g_f, 5.0, size)
    np.testing.assert_allclose(d, expected, rtol=1e-5)
    assert info.branch == Branch.RECTIFIED


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_gives_a_step_that_is_not(bad, x64):
    for g_r, g_f in (([bad, 1.0], [1.0, 0.0]), ([1.0, 0.0], [bad, 1.0])):
        d, _ = ONE(jnp.array(g_r), jnp.array(g_f), 1.0, 0.1)
        assert jnp.isnan(d).all()
        tx = two_objective_step(1.0, 0.1)
        updates, after = tx.update(jnp.array(g_r), tx.init(d), forget_grads=jnp.array(g_f))
        assert jnp.isnan(updates).all() and not after.stopped


def test_a_tree_is_one_vector_in_its_own_dtypes(x64):
    g_r, g_f, radius, bound = (each[0] for each in problems(1))
    bound = 0.5 * radius * norms(g_f)

    def tree(g):
        return {"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:], jnp.float32)}

    d, _ = hamu_step(tree(g_r), tree(g_f), radius, bound)
    assert d["b"].dtype == jnp.float32
    whole, _ = ONE(g_r, g_f, radius, bound)
    np.testing.assert_allclose(np.concatenate([d["a"], d["b"]]), whole, rtol=1e-5)


# As a transformation

SHAPES = {"body": (3,), "head": (3,), "bias": ()}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(scale * rng.standard_normal(s)) for k, s in SHAPES.items()}


def leaves(*trees):
    return zip(*(jax.tree.leaves(t) for t in trees), strict=True)


def update(tx, g_r, g_f, state=None):
    return tx.update(g_r, tx.init(g_r) if state is None else state, forget_grads=g_f)


def inner(a, b):
    return float(sum(jnp.vdot(x, y) for x, y in leaves(a, b)))


def length(a):
    return inner(a, a) ** 0.5


def test_the_global_step_is_one_problem_and_no_longer_than_the_radius(x64):
    """Mutant: normalising across g_f leaf by leaf, as published, is longer."""
    g_r, g_f = tree(4), tree(5)
    bound = 0.5 * length(g_f)
    d, state = update(two_objective_step(1.0, bound, blocks="global"), g_r, g_f)
    expected = hamu_step(g_r, g_f, 1.0, bound)[0]
    for a, b in leaves(d, expected):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose([length(d), inner(g_f, d)], [1, bound], rtol=1e-10)
    assert state.branches.sum() == 1

    factor = inner(g_r, g_f) / inner(g_f, g_f)
    across = jax.tree.map(lambda r, f: r - factor * f, g_r, g_f)
    root = np.sqrt(1 - bound**2 / inner(g_f, g_f))
    published = jax.tree.map(
        lambda f, a: bound / inner(g_f, g_f) * f - root * a / jnp.linalg.norm(a), g_f, across
    )
    assert length(published) > 1.2


@pytest.mark.parametrize("distribute", ["norms", "softmax", "uniform"])
def test_every_leaf_solves_its_own_problem_with_its_share(distribute, x64):
    g_r, g_f = tree(4), tree(5)
    tx = two_objective_step(2.0, 0.3, distribute=distribute, infeasible="fallback")
    d, state = update(tx, g_r, g_f)
    pairs = [(np.ravel(a), np.ravel(b)) for a, b in leaves(g_r, g_f)]
    weights = {
        "norms": [norms(a) * norms(b) for a, b in pairs],
        "softmax": [np.exp(-dots(a, b)) for a, b in pairs],
        "uniform": [1.0, 1.0, 1.0],
    }[distribute]
    shares = 0.3 * np.array(weights) / sum(weights)
    for (a, b), share, ours in zip(pairs, shares, jax.tree.leaves(d), strict=True):
        expected, _ = ONE(a, b, 2.0, share, fallback=True)
        np.testing.assert_allclose(np.ravel(ours), expected, rtol=1e-9, atol=1e-12)
    assert state.count == 1 and state.branches.sum() == 3


def test_with_a_relative_radius_all_blocks_are_feasible_or_none_is(x64):
    """Both sides of B = R sum_b |g_r||g_f|, shares by norms."""
    g_r, g_f = tree(4), tree(5)
    most = 0.1 * sum(norms(np.ravel(a)) * norms(np.ravel(b)) for a, b in leaves(g_r, g_f))
    for factor, blocks in ((0.999, 0), (1.001, 3)):
        _, state = update(two_objective_step(0.1, factor * most, relative=True), g_r, g_f)
        assert state.branches[Branch.INFEASIBLE] == blocks
        assert bool(state.stopped) == (blocks > 0)


def test_a_relative_radius_is_a_learning_rate(x64):
    """B = 0 and orthogonal gradients: SGD on the retain loss, block by block."""
    g_r = tree(4)
    g_f = jax.tree.map(jnp.zeros_like, g_r)
    d, state = update(two_objective_step(0.1, 0.0, relative=True), g_r, g_f)
    for ours, g in leaves(d, g_r):
        np.testing.assert_allclose(ours, -0.1 * g, rtol=1e-12)
    assert state.branches[Branch.FLAT] == 3


@pytest.mark.parametrize("blocks", ["leaf", "global"])
@pytest.mark.parametrize("relative", [False, True])
def test_the_other_variant_is_this_one_of_opposite_gradients(blocks, relative, x64):
    g_r, g_f = tree(4), tree(5)
    options = {"blocks": blocks, "relative": relative}
    ours, state = update(two_objective_step(0.5, 0.02, variant="U", **options), g_r, g_f)
    negative = [jax.tree.map(jnp.negative, g) for g in (g_f, g_r)]
    theirs, _ = update(two_objective_step(0.5, 0.02, variant="Q", **options), *negative)
    for a, b in leaves(ours, theirs):
        np.testing.assert_array_equal(a, b)
    assert inner(g_r, ours) <= -0.02 * (1 - 1e-9) and not state.stopped
    same, _ = update(two_objective_step(0.5, 0.02, **options), g_r, g_f)
    assert abs(ours["body"] - same["body"]).max() > 1e-3


def test_clipping_scales_both_gradients_down_and_never_up(x64):
    g_r, g_f = tree(4, 30.0), tree(5, 0.01)
    clipped = jax.tree.map(lambda g: 2 * g / length(g_r), g_r)
    ours, _ = update(two_objective_step(0.1, 1e-4, clip=2.0, relative=True), g_r, g_f)
    theirs, _ = update(two_objective_step(0.1, 1e-4, relative=True), clipped, g_f)
    for a, b in leaves(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-9)


# Where to stop


def test_an_infeasible_step_is_not_made_and_none_after_it(x64):
    tx = two_objective_step(0.1, 1.0)
    g_r, small, large = tree(4), tree(5, 1e-3), tree(5, 100.0)
    d, state = update(tx, g_r, small)
    assert state.stopped and state.count == 0 and state.branches[Branch.INFEASIBLE] == 3
    again, later = update(tx, g_r, large, state)
    for zero in (*jax.tree.leaves(d), *jax.tree.leaves(again)):
        assert not np.any(zero)
    for a, b in leaves(state, later):
        np.testing.assert_array_equal(a, b)
    assert np.any(update(tx, g_r, large)[0]["body"])


def test_the_fallback_gains_the_bound_beyond_the_radius(x64):
    g_r, g_f = tree(4), tree(5, 1e-2)
    d, state = update(two_objective_step(0.1, 1.0, infeasible="fallback"), g_r, g_f)
    np.testing.assert_allclose(inner(d, g_f), 1.0, rtol=1e-9)
    assert length(d) > 0.3 and not state.stopped and state.count == 1


def test_agreeing_gradients_are_hard_and_opposed_ones_are_not(x64):
    """Two quadratics |theta - a|^2 / 2 and |theta - b|^2 / 2 from theta = 0."""
    a = np.array([1.0, 0.0])
    tx = two_objective_step(0.1, 0.05, stop_when_hard=True)
    for angle, hard in ((0.0, True), (0.3, True), (0.6, False), (np.pi, False)):
        b = np.array([np.cos(angle), np.sin(angle)])
        d, state = update(tx, jnp.asarray(-a), jnp.asarray(-b))
        assert bool(state.stopped) == hard == (state.slack < 0)
        np.testing.assert_allclose(state.cosine, np.cos(angle), rtol=1e-6)
        assert np.any(d) != hard
    assert np.sin(0.3) < 0.5 < np.sin(0.6)
    _, state = update(tx, jnp.asarray(-a), jnp.asarray(-a))
    np.testing.assert_allclose(state.slack, -0.05, rtol=1e-6)  # nothing is free


def run(tx, theta, a, b, steps):
    def body(carry, _):
        theta, state = carry
        d, state = tx.update(theta - a, state, forget_grads=theta - b)
        return (theta + d, state), theta

    (theta, state), path = jax.lax.scan(body, (theta, tx.init(theta)), None, length=steps)
    return np.concatenate([path, theta[None]]), state


def test_on_two_quadratics_the_angle_at_the_start_sets_the_trade_off(x64):
    """The retain loss paid for the same gain grows with the cosine; orthogonal is nearly free."""
    theta, a = jnp.zeros(2), jnp.array([1.0, 0.0])
    paid = []
    for angle in (1.5, 0.9, 0.3, 0.0):
        b = jnp.array([np.cos(angle), np.sin(angle)])
        path, state = run(two_objective_step(0.05, 0.02), theta, a, b, 10)
        gains = np.diff(0.5 * norms(path - np.asarray(b)[None]) ** 2)
        assert (gains >= 0.02).all() and not state.stopped  # a convex loss gains more than asked
        paid.append(0.5 * norms(path[-1] - np.asarray(a)) ** 2 - 0.5)
    assert sorted(paid) == paid and paid[0] < -0.2 < 0.2 <= paid[-1]


# It composes


def test_radius_and_bound_may_be_schedules_or_traced(x64):
    g_r, g_f = tree(4)["body"], tree(5)["body"]
    tx = two_objective_step(lambda count: 0.1 + 0.1 * count, lambda count: 0.01 * (count + 1))
    _, state = update(tx, g_r, g_f)
    second, _ = update(tx, g_r, g_f, state)
    sweep = jax.jit(jax.vmap(lambda r, b: update(two_objective_step(r, b), g_r, g_f)[0]))
    swept = sweep(jnp.array([0.1, 0.2]), jnp.array([0.01, 0.02]))
    np.testing.assert_allclose(second, swept[1], rtol=1e-9)
    assert abs(swept[1] - swept[0]).max() > 0.01


def test_leaves_that_optax_masks_are_no_blocks(x64):
    g_r, g_f = tree(4), tree(5)
    mask = {"body": True, "head": True, "bias": False}
    tx = optax.masked(two_objective_step(0.1, 0.01), mask)
    d, _ = update(tx, g_r, g_f)
    assert d["bias"] is g_r["bias"]
    part = [{k: g[k] for k in ("body", "head")} for g in (g_r, g_f)]
    alone, _ = update(two_objective_step(0.1, 0.01), *part)
    np.testing.assert_allclose(d["body"], alone["body"], rtol=1e-6)


def test_half_precision_stays_half_precision():
    half = jax.tree.map(lambda g: g.astype(jnp.bfloat16), tree(4))
    for variant in ("Q", "U"):
        tx = two_objective_step(0.1, 0.01, variant=variant, clip=1.0)
        d, _ = jax.eval_shape(lambda g: update(tx, g, g), half)  # noqa: B023
        assert {leaf.dtype for leaf in jax.tree.leaves(d)} == {jnp.dtype(jnp.bfloat16)}


def test_an_optimiser_behind_it_breaks_the_promise(x64):
    """Why it must stand last: after Adam the step gains another amount."""
    g_r, g_f = tree(4), tree(5)
    behind = optax.chain(two_objective_step(0.1, 0.05), optax.scale_by_adam())
    alone, _ = update(two_objective_step(0.1, 0.05), g_r, g_f)
    assert inner(alone, g_f) >= 0.05 * (1 - 1e-9)
    assert inner(update(behind, g_r, g_f)[0], g_f) > 1


# What bad input gets


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_objective_step(-1.0, 0.1), "radius must be a finite number >= 0, got -1.0"),
        (lambda: two_objective_step(1.0, float("nan")), "bound must be a finite number >= 0"),
        (lambda: two_objective_step(1.0, 0.1, clip=0.0), "clip must be a finite number > 0"),
        (lambda: two_objective_step(1.0, 0.1, variant="V"), "variant must be one of .'Q', 'U'"),
        (lambda: two_objective_step(1.0, 0.1, blocks="all"), "blocks must be one of"),
        (lambda: two_objective_step(1.0, 0.1, distribute="equal"), "distribute must be one of"),
        (lambda: two_objective_step(1.0, 0.1, infeasible="skip"), "infeasible must be one of"),
        (
            lambda: update(two_objective_step(1.0, 0.1), jnp.ones(2), None),
            "update needs the gradient of the forget loss.*forget_grads=",
        ),
        (
            lambda: update(two_objective_step(1.0, 0.1), {"a": jnp.ones(2)}, {"a": jnp.ones(3)}),
            r"forget_grads\['a'\] has shape \(3,\), the retain gradient \(2,\)",
        ),
        (
            lambda: update(two_objective_step(1.0, 0.1), {"a": jnp.ones(2)}, {"b": jnp.ones(2)}),
            "are different trees",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
