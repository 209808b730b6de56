"""Cells, crossings and recovery: exact where nothing crosses, binomial where something does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.audit.crossing import crossing, expected_crossing, recovery
from jaxunlearn.audit.quantisation import codes, quantise

SETTINGS = ("bits", "group", "scale", "levels", "keep")
crossed = jax.jit(crossing, static_argnames=SETTINGS)
quantised = jax.jit(quantise, static_argnames=SETTINGS)
coded = jax.jit(codes, static_argnames=SETTINGS)
KERNEL = "['kernel']"


def uniform_cells(rng, size=40_000, top=7):
    """A kernel with Delta = 1: uniform over inner cells, and one largest weight."""
    return np.concatenate([rng.uniform(1.5 - top, top - 1.5, size - 1), [top]])[:, None]


def logits(params, x):
    return x @ params["kernel"] + params["bias"][None]


# --------------------------------------------------------------------------- within cells, nothing


def test_a_model_and_itself_have_no_crossing_and_no_recovery():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(12, 7)), jnp.float32)}
    same = crossed(params, params, bits=4)
    assert same.overall == same.rescaled == same.leaves[KERNEL] == 0
    assert np.isnan(recovery(0.5, 0.5, 0.5))


def test_moves_within_the_cells_are_undone_bit_for_bit_and_all_knowledge_is_back():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(12, 7)).astype(np.float32)
    original = {"kernel": jnp.asarray(w), "bias": jnp.asarray(rng.normal(size=7), jnp.float32)}
    found = coded(original, bits=4)[KERNEL]
    step, code = np.asarray(found.scale), np.asarray(found.codes)
    room = step * (0.5 - np.abs(w / step - code))  # to the nearest boundary of the cell
    delta = 0.9 * room * rng.choice([-1, 1], size=w.shape)
    delta[np.abs(w) == np.abs(w).max(0)] = 0  # the largest weight of every row sets its scale
    unlearned = {**original, "kernel": jnp.asarray(w + delta, jnp.float32)}

    there = crossed(original, unlearned, bits=4)
    assert there.overall == 0 and there.rescaled == 0
    x = jnp.asarray(rng.normal(size=(20, 12)), jnp.float32)
    a, b = (np.asarray(logits(quantised(p, bits=4), x)) for p in (original, unlearned))
    np.testing.assert_array_equal(a, b)
    before, moved = np.asarray(logits(original, x)), np.asarray(logits(unlearned, x))
    assert np.abs(before - moved).max() > 0.1  # at full precision, the model did change
    np.testing.assert_array_equal(recovery(b.mean(0), moved.mean(0), a.mean(0)), np.ones(7))

    # 1.2 of the room instead of 0.9 crosses wherever it leads to the near side
    delta *= 1.2 / 0.9
    outside = crossed(original, {**original, "kernel": jnp.asarray(w + delta)}, bits=4)
    assert 0.3 < outside.overall < 0.7
    # and with 8 bits the small moves are kept
    assert crossed(original, unlearned, bits=8).overall > 0.7


def test_one_outlier_makes_every_small_move_vanish_and_its_own_move_rescales_the_row():
    rng = np.random.default_rng(2)
    w = np.concatenate([0.3 * rng.uniform(-1, 1, size=(11, 7)), np.full((1, 7), 7.0)])
    before = {"kernel": jnp.asarray(w, jnp.float32)}
    after = {"kernel": before["kernel"].at[:11].add(0.15)}
    assert crossed(before, after, bits=4).overall == 0
    step = coded(before, bits=4)[KERNEL].scale
    expected = expected_crossing(after["kernel"] - before["kernel"], step)
    assert expected[:11].mean() == pytest.approx(0.15, abs=1e-6)  # cells are not filled uniformly
    pulled = crossed(before, {"kernel": before["kernel"].at[11, 3].set(0.3)}, bits=4)
    assert pulled.rescaled == pytest.approx(1 / 7)
    assert 0.05 < pulled.overall <= 1 / 7


# ------------------------------------------------------------------------------ across boundaries


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 1.3])
def test_the_share_of_crossings_is_the_move_in_steps_within_binomial_error(share):
    rng = np.random.default_rng(3)
    w = uniform_cells(rng)
    delta = share * rng.choice([-1, 1], size=w.shape)
    delta[-1] = 0
    before, after = ({"kernel": jnp.asarray(v, jnp.float32)} for v in (w, w + delta))
    n, rate = w.size - 1, min(share, 1)
    error = 4 * np.sqrt(rate * (1 - rate) / n) + 2 / n
    assert crossed(before, after, bits=4).overall == pytest.approx(rate, abs=error)
    predicted = np.asarray(expected_crossing(delta, coded(before, bits=4)[KERNEL].scale))
    assert predicted.mean() == pytest.approx(rate * n / (n + 1), abs=1e-5)
    if share < 1:  # wrong steps would be noticed: those of 3 bits, of 5, or of the paper's scale
        for wrong in (7 / 3, 7 / 15, 7 / 8):
            assert abs(min(1, share / wrong) - rate) > error


def test_rounding_undoes_no_move_on_average_where_cells_are_filled_uniformly():
    rng = np.random.default_rng(4)
    w = uniform_cells(rng)
    for delta in (0.02, 0.3):
        moved = w + np.where(np.arange(w.size) < w.size - 1, delta, 0)[:, None]
        a, b = (
            np.asarray(quantised({"kernel": jnp.asarray(v, jnp.float32)}, bits=4)["kernel"])
            for v in (w, moved)
        )
        error = np.sqrt(delta * (1 - delta) / w.size)
        assert (b - a).mean() == pytest.approx(delta, abs=4 * error + 1e-4)


def test_crossing_is_symmetric_and_its_parts_add_up_to_the_whole():
    rng = np.random.default_rng(5)
    shapes = {"a": (12, 7), "b": (30, 2)}
    first, second = (
        {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    there, back = crossed(first, second, bits=4), crossed(second, first, bits=4)
    assert there.overall == back.overall > 0.5 and there.rescaled == 1
    parts = 84 * there.leaves["['a']"] + 60 * there.leaves["['b']"]
    assert there.overall == pytest.approx(float(parts) / 144)
    other = {**second, "a": first["a"]}
    assert crossed(first, other, bits=4).leaves["['a']"] == 0
    each = jax.jit(jax.vmap(partial(crossing, bits=4)))(
        *({k: np.stack([p[k], first[k]]) for k in p} for p in (second, first))
    )
    np.testing.assert_allclose(each.overall, [float(there.overall), 0])


def test_a_move_by_nothing_never_crosses_and_a_move_without_a_step_always_does():
    expected = jax.jit(expected_crossing)
    found = expected(jnp.array([0.0, 0.0, 2.0, np.nan]), jnp.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(found, [0, 0, 1, np.nan])
    half = jax.ShapeDtypeStruct((), jnp.bfloat16)
    assert jax.eval_shape(expected_crossing, half, half).dtype == jnp.float32


def test_a_weight_that_is_not_finite_makes_the_crossing_of_its_leaf_undefined():
    first = {"a": jnp.ones((12, 7)), "b": jnp.ones((30, 2))}
    broken = {**first, "a": first["a"].at[0, 0].set(jnp.inf)}
    for pair in ((first, broken), (broken, first)):
        found = crossed(*pair, bits=4)
        assert jnp.isnan(found.overall) and jnp.isnan(found.leaves["['a']"])
        assert found.leaves["['b']"] == 0
    empty = crossed({**first, "c": jnp.ones((0, 2))}, {**first, "c": jnp.ones((0, 2))}, bits=4)
    assert jnp.isnan(empty.leaves["['c']"]) and empty.overall == 0


def test_two_architectures_cannot_be_compared():
    with pytest.raises(ValueError, match="expected two models of one architecture"):
        crossing({"a": jnp.ones((2, 2))}, {"b": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"differ at \['a'\]: shapes \(2, 2\) and \(3, 2, 2\)"):
        crossing({"a": jnp.ones((2, 2))}, {"a": jnp.ones((3, 2, 2))})


# --------------------------------------------------------------------------------------- recovery


def test_recovery_is_the_share_of_the_way_back():
    np.testing.assert_allclose(recovery([0.2, 0.6, 1.0, 0.0], 0.2, 1.0), [0, 0.5, 1, -0.25])
    np.testing.assert_allclose(recovery(3.0, 4.0, 2.0), 0.5)  # a loss: less of it is knowing more


def test_recovery_of_what_was_never_forgotten_is_undefined_and_not_zero():
    nothing = recovery([0.5, 0.7, np.nan, 0.3, np.inf], [0.5, 0.5, 0.5, np.nan, 0.5], 0.5)
    assert np.isnan(nothing).all()
    assert np.isnan(recovery(0.51, 0.5, 0.505, least=0.01))
    assert recovery(0.51, 0.5, 0.52, least=0.01) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="least must be a finite number >= 0, got -1"):
        recovery(1, 0, 1, least=-1)


# -------------------------------------------------------------------------------- a whole attack


LEVELS = (1 / 32, 1 / 8, 3 / 16, 1 / 4, 1 / 2)  # mean |delta| in steps of 4 bits


def attack(key, bits, *, on_grid, n=48, forget=10, d=40, classes=3):
    """Memorise random labels, move against the forget labels, quantise. K = mean p_y on forget."""
    kx, ky = jax.random.split(key)
    x, y = jax.random.normal(kx, (n, d)), jax.random.randint(ky, (n,), 0, classes)
    is_forget = (jnp.arange(n) < forget).astype(jnp.float32)

    def loss(params, weight):
        p = jax.nn.log_softmax(logits(params, x))
        return -(jnp.take_along_axis(p, y[:, None], 1)[:, 0] * weight).sum() / weight.sum()

    def train(weight):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params, weight)), 0

        start = {"kernel": jnp.zeros((d, classes)), "bias": jnp.zeros(classes)}
        return jax.lax.scan(step, start, length=100)[0]

    def knowledge(params):
        p = jax.nn.softmax(logits(params, x))
        return (jnp.take_along_axis(p, y[:, None], 1)[:, 0] * is_forget).sum() / forget

    original, oracle = train(jnp.ones(n)), train(1 - is_forget)
    if on_grid:
        original = quantise(original, bits=4)
    w = original["kernel"]
    ascent = jax.grad(loss)(original, is_forget)["kernel"]
    ascent = jnp.where(jnp.abs(w) == jnp.abs(w).max(0)[None], 0, ascent)
    delta = codes(original, bits=4)[KERNEL].scale * ascent / jnp.abs(ascent).mean()
    rounded = partial(quantise, bits=bits)

    def at(level):
        unlearned = {**original, "kernel": w + level * delta}
        moved = crossing(original, unlearned, bits=bits).overall
        return knowledge(rounded(unlearned)), knowledge(unlearned), moved

    K_q, K_u, moved = jax.vmap(at)(jnp.array(LEVELS))
    full = knowledge(original), knowledge(oracle)
    return K_q, K_u, moved, knowledge(rounded(original)), knowledge(rounded(oracle)), *full


def mean_over_models(models, *, on_grid):
    """Knowledge averaged over models, then the ratio: single ratios of small numbers are noise."""
    keys = jax.random.split(jax.random.key(0), models)
    each = jax.vmap(jax.vmap(partial(attack, on_grid=on_grid), (0, None)), (None, 0))
    found = jax.jit(each)(keys, jnp.array([4, 8]))
    K_q, K_u, moved, K_0q, K_oq, K_0, K_o = (np.asarray(v).mean(1) for v in found)
    return recovery(K_q, K_u, K_0q[:, None]), moved, (K_0, K_0q), (K_o, K_oq)


def test_the_farther_unlearning_moved_the_less_comes_back_and_eight_bits_keep_what_four_lose():
    (R, R_8), (moved, moved_8), (K_0, K_0q), (K_o, K_oq) = mean_over_models(6, on_grid=True)
    assert R[0] == 1 and moved[0] == 0  # no weight left its cell
    assert (np.diff(R) <= 0).all() and (np.diff(moved) >= 0).all()
    assert R[1] > 0.8 > R[2] > 0.3 and abs(R[-1]) < 0.1
    assert np.abs(R_8[1:]).max() < 0.05 and moved_8[0] > 0.3
    assert K_0[0] == K_0q[0] > 0.8  # of the controls, 4 bits cost this original nothing,
    assert K_o[0] < 0.45 and K_oq.max() < 0.45  # and give the oracle no knowledge


@pytest.mark.slow
def test_of_an_original_with_generic_weights_little_comes_back():
    (R, _), (moved, _), *_ = mean_over_models(200, on_grid=False)
    assert (moved > 0.01).all()
    assert np.abs(R[1:]).max() < 0.1  # rounding is dither: what many weights agree on survives
