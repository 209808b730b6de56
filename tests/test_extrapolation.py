"""Extrapolation: an affine map, exact where it says so; and averages that commute with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.extrapolation import averaged, distance, extrapolate, extrapolations
from jaxunlearn.objectives import stateless
from tests.suite import laws

RNG = np.random.default_rng(0)


def tree(dtype=jnp.float32):
    return {
        "w": jnp.asarray(RNG.standard_normal((3, 2)), dtype),
        "b": (jnp.asarray(RNG.standard_normal(4), dtype), jnp.asarray(-0.0, dtype)),
    }


REF, MEM = tree(), tree()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_alpha_zero_is_the_reference_and_minus_one_the_memorised_to_the_bit(dtype):
    ref, mem = tree(dtype), tree(dtype)
    for alpha in (0.0, jnp.float32(0)):
        laws.bits(extrapolate(ref, mem, alpha), ref)
        laws.bits(extrapolate(ref, mem, alpha - 1), mem)
    zero = extrapolate(ref, mem, 0.0)["b"][1]
    assert jnp.signbit(zero), "minus zero has become zero"


def test_the_map_is_affine_in_alpha(x64):
    ref, mem = tree(jnp.float64), tree(jnp.float64)
    f = lambda alpha: extrapolate(ref, mem, alpha)  # noqa: E731
    a, b = 0.7, 2.9
    one = jax.tree.map(lambda x, y, z: x + y - z, f(a), f(b), f(0.0))
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-13, atol=1e-14), one, f(a + b)
    )
    written = jax.tree.map(lambda r, m: (1 + a) * r - a * m, ref, mem)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-13), f(a), written)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 4.0, 1e30])
def test_what_did_not_move_is_not_extrapolated(alpha):
    laws.bits(extrapolate(REF, REF, alpha), REF)
    half = MEM | {"w": REF["w"].at[0].add(1.0)}
    out = extrapolate(REF, half, alpha)
    laws.bits(out["w"][1:], REF["w"][1:])
    assert (out["w"][0] != REF["w"][0]).all()


def test_half_precision_weights_are_reflected_in_single_precision():
    """In bfloat16 (8 bits) 1 + 4 * 2^-10 would be lost beside 1; in float32 it adds up."""
    ref = jnp.ones(3, jnp.bfloat16)
    mem = jnp.full(3, 1 - 2.0**-10, jnp.float32)  # a copy that was trained in float32
    out = extrapolate(ref, mem, 16.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(out), 1 + 2.0**-6)
    lost = ref + jnp.bfloat16(16) * (ref - mem.astype(jnp.bfloat16))
    np.testing.assert_array_equal(np.float32(lost), 1.0)


def test_counters_and_keys_pass_through():
    ref = {"n": jnp.int32(3), "key": jax.random.key(0), "on": jnp.array(True), "w": jnp.ones(2)}
    mem = {"n": jnp.int32(9), "key": jax.random.key(1), "on": jnp.array(False), "w": jnp.zeros(2)}
    out = extrapolate(ref, mem, 2.0)
    assert out["n"] == 3 and out["on"] and out["key"] == ref["key"]
    np.testing.assert_array_equal(out["w"], 3.0)
    many = extrapolations(ref, mem, jnp.array([0.0, 2.0]))
    np.testing.assert_array_equal(many["n"], [3, 3])
    np.testing.assert_array_equal(many["w"], [[1, 1], [3, 3]])
    assert distance(ref, mem) == pytest.approx(np.sqrt(2))


def test_extrapolating_a_merged_adapter_is_negating_its_scale(x64):
    w, a, b = (RNG.standard_normal(s) for s in ((5, 4), (2, 4), (5, 2)))
    for alpha in (0.5, 4.0):
        out = extrapolate(jnp.asarray(w), jnp.asarray(w + b @ a), alpha)
        np.testing.assert_allclose(out, w - alpha * b @ a, rtol=1e-12, atol=1e-13)


def test_a_sweep_is_a_loop_over_alpha():
    alphas = jnp.array([-1.0, 0.0, 0.5, 8.0])
    many = jax.jit(extrapolations)(REF, MEM, alphas)
    for place, alpha in enumerate(alphas):
        row = jax.tree.map(lambda leaf: leaf[place], many)  # noqa: B023
        laws.close(row, extrapolate(REF, MEM, alpha))


def test_running_statistics_are_the_references_however_large_alpha_is():
    """A variance that grew by a quarter would be negative at alpha = 8."""
    ref = {"params": REF, "batch_stats": {"mean": jnp.ones(2), "var": jnp.full(2, 0.5)}}
    mem = {"params": MEM, "batch_stats": jax.tree.map(lambda s: 1.25 * s, ref["batch_stats"])}
    out = extrapolate(ref, mem, 8.0)
    laws.bits(out["batch_stats"], ref["batch_stats"])
    laws.bits(out["params"], extrapolate(REF, MEM, 8.0))
    assert (extrapolate(ref["batch_stats"], mem["batch_stats"], 8.0)["var"] < 0).all()
    many = extrapolations(ref, mem, jnp.array([1.0, 8.0]))
    laws.bits(jax.tree.map(lambda s: s[1], many["batch_stats"]), ref["batch_stats"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extrapolate(REF, MEM, float("nan")), "alpha must be a finite number, got nan"),
        (
            lambda: extrapolate(REF, MEM, jnp.ones(2)),
            r"one number, got shape \(2,\).*extrapolations",
        ),
        (lambda: extrapolate(REF, {"w": MEM["w"]}, 1.0), "`memorised` and params are different"),
        (lambda: extrapolate(REF, MEM | {"w": jnp.ones(2)}, 1.0), r"differ at \['w'\]"),
        (lambda: extrapolations(REF, MEM, jnp.float32(1)), r"must have shape \(k,\), got \(\)"),
        (lambda: distance(REF, {}), "`other` and params are different trees"),
    ],
)
def test_what_cannot_be_extrapolated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------- averages

FALLING = stateless(lambda p, batches, key: (p["w"] ** 2).sum() + 0 * p["frozen"].sum())
START = {"w": jnp.array([1.0, -2.0]), "frozen": jnp.asarray(RNG.random(50), jnp.float32)}
DATA = {"x": np.zeros((1, 1), np.float32)}
TX = optax.sgd(0.1)  # theta_t = 0.8^t theta_0


def run(rate, interval=1, steps=6, objective=FALLING):
    objective = averaged(objective, rate, interval)
    return ju.fit(objective, TX, START, DATA, key=jax.random.key(0), steps=steps)


@pytest.fixture(scope="module")
def six():
    """rate -> the average of six steps, and the last params: one program."""

    @jax.jit
    def both(rate):
        plain = ju.fit(FALLING, TX, START, DATA, key=jax.random.key(0), steps=6)
        return run(rate).params, plain.params

    return both


@pytest.mark.parametrize(("interval", "steps"), [(1, 6), (3, 7)])
def test_the_average_is_the_recursion_and_a_convex_combination(interval, steps, six):
    rate, bar, weights = 0.675, np.array([1.0, -2.0]), {0: 1.0}
    for t in range(1, steps + 1):
        if t % interval == 0:
            bar = rate * 0.8**t * np.array([1.0, -2.0]) + (1 - rate) * bar
            weights = {k: (1 - rate) * v for k, v in weights.items()} | {t: rate}
    assert sum(weights.values()) == pytest.approx(1)
    convex = sum(v * 0.8**k for k, v in weights.items()) * np.array([1.0, -2.0])
    out = six(rate)[0]["w"] if interval == 1 else run(rate, interval, steps).params["w"]
    np.testing.assert_allclose(out, bar, rtol=1e-5)
    np.testing.assert_allclose(out, convex, rtol=1e-5)


def test_rate_one_is_the_last_and_rate_zero_the_first_to_the_bit(six):
    laws.bits(*six(1.0))
    laws.bits(six(0.0)[0], START)
    laws.bits(run(0.3, steps=0).params, START)


def test_what_never_moves_is_averaged_to_itself(six):
    """0.675 x + 0.325 x is not x in floating point; the average knows."""
    frozen = START["frozen"]
    assert (jnp.float32(0.675) * frozen + jnp.float32(0.325) * frozen != frozen).any()
    laws.bits(six(0.675)[0]["frozen"], frozen)


def test_the_average_of_extrapolations_is_the_extrapolation_of_the_average(six):
    rate, alpha, raw = 0.675, 4.0, np.array([1.0, -2.0])
    bar = raw
    for t in range(1, 7):
        bar = rate * (1 + alpha * (1 - 0.8**t)) * raw + (1 - rate) * bar
    out = extrapolate(START, six(rate)[0], alpha)
    np.testing.assert_allclose(out["w"], bar, rtol=1e-5)


def test_the_arguments_for_the_optimiser_are_passed_through():
    halting = FALLING._replace(extras=lambda p, batches, state, key: {"stopped": state})
    average = averaged(halting._replace(init=lambda p: jnp.array(True)), 0.5)
    extras = average.extras(START, {}, average.init(START), jax.random.key(0))
    assert extras.keys() == {"stopped"} and extras["stopped"]
    assert averaged(FALLING, 0.5).extras is None


@pytest.mark.parametrize(
    ("given", "message"),
    [((1.1, 1), "averaged: rate must be .*<= 1"), ((0.5, 0), "interval must be >= 1 steps, got 0")],
)
def test_rates_and_intervals_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        averaged(FALLING, *given)
