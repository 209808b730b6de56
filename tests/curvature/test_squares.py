"""Products summed over positions, then squared: brute force, the counter-example, every route."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.curvature import squares
from jaxunlearn.curvature.pallas_squares import block_size, squared_products_kernel
from jaxunlearn.curvature.squares import sum_of_squared_products

POWERS: dict[Any, Any] = {"square": np.square, "abs": np.abs}
ROUTES: list[Any] = [None, "scan", "einsum", "pallas"]

# x (n, [G,] T, I) and the O of d: odd sizes, remainders of loops and of tiles, single everything.
SHAPES = {
    "one of each": ((1, 1, 1), 1),
    "T = 1": ((7, 1, 3), 5),
    "T = 2": ((3, 2, 4), 3),
    "odd": ((7, 5, 3), 11),
    "tiles and blocks": ((3, 33, 65), 130),
    "one example": ((1, 6, 4), 2),
    "groups": ((5, 3, 4, 2), 7),
    "groups, T = 1": ((5, 3, 1, 2), 7),
    "depthwise": ((5, 4, 6, 9), 1),
}


def operands(shape, out, dtype: Any = np.float64):
    rng = np.random.default_rng(sum(shape) + out)
    x, d = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], out))
    return jnp.asarray(x, dtype), jnp.asarray(d, dtype)


def brute_force(x, d, power="square"):
    """One example at a time, NumPy float64: all positions, then phi."""
    total = 0.0
    for x_n, d_n in zip(np.asarray(x, np.float64), np.asarray(d, np.float64), strict=True):
        total = total + POWERS[power](np.swapaxes(x_n, -1, -2) @ d_n)
    return total


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", SHAPES)
def test_every_route_and_power_equals_brute_force(name, route, x64):
    x, d = operands(*SHAPES[name])

    @jax.jit
    def both(x, d):
        return {p: sum_of_squared_products(x, d, power=p, implementation=route) for p in POWERS}

    for power, got in both(x, d).items():
        assert got.dtype == jnp.float64
        assert got.shape == (*x.shape[1:-2], x.shape[-1], d.shape[-1])
        np.testing.assert_allclose(got, brute_force(x, d, power), rtol=1e-12)


X_1 = jnp.asarray([[[1.0, -2.0, 3.0, 4.0]], [[-5.0, 1.0, 2.0, -3.0]]])  # whole numbers: exact sums
D_1 = jnp.asarray([[[2.0, 3.0, -1.0]], [[1.0, -4.0, 5.0]]])


@pytest.mark.parametrize("route", ROUTES)
def test_positions_that_cancel_leave_nothing(route):
    """x_1 = -x_2, d_1 = d_2: the gradient is 0, and squares of flattened positions would not be."""
    x, d = jnp.concatenate([X_1, -X_1], axis=1), jnp.concatenate([D_1, D_1], axis=1)
    np.testing.assert_array_equal(sum_of_squared_products(x, d, implementation=route), 0)
    flattened = jnp.square(x.reshape(-1, 4)).T @ jnp.square(d.reshape(-1, 3))
    assert flattened.min() > 0


@pytest.mark.parametrize("route", ROUTES)
def test_examples_do_not_cancel(route):
    """The same rows as examples of their own: the sum over n comes after the square."""
    x, d = jnp.concatenate([X_1, -X_1]), jnp.concatenate([D_1, D_1])
    x, d = (jnp.pad(a, ((0, 0), (0, 1), (0, 0))) for a in (x, d))  # T = 2, the second one empty
    got = sum_of_squared_products(x, d, implementation=route)
    np.testing.assert_array_equal(got, 2 * brute_force(X_1, D_1))
    assert got.min() > 0


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("length", [1, 4])
def test_weights_are_the_callers_and_enter_through_d(length, power, x64):
    x, d = operands((6, length, 3), 2)
    w = jnp.asarray([0.0, 1.0, 2.0, 0.5, 3.0, 0.0])[:, None, None]
    scaled = d * (jnp.sqrt(w) if power == "square" else w)
    each = [brute_force(x[i : i + 1], d[i : i + 1], power) for i in range(6)]
    expected = sum(float(w[i, 0, 0]) * each[i] for i in range(6))
    np.testing.assert_allclose(
        sum_of_squared_products(x, scaled, power=power), expected, rtol=1e-12
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (0, 1, 2), (0, 3, 4, 2), (2, 3, 0, 2)])
def test_no_examples_or_no_positions_give_zeros(shape, route):
    x, d = jnp.ones(shape), jnp.ones((*shape[:-1], 5))
    got = sum_of_squared_products(x, d, implementation=route)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.zeros((*shape[1:-2], 2, 5)))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("length", [1, 6])
def test_narrow_floats_are_multiplied_squared_and_summed_in_float32(length, route, tolerance):
    """A mutant that squares or adds up in bfloat16 is wrong by 1e-2; this one to 1e-6."""
    x, d = operands((40, length, 3), 4, jnp.bfloat16)
    got = sum_of_squared_products(x, d, implementation=route)
    assert got.dtype == jnp.float32
    expected = brute_force(x, d)
    np.testing.assert_allclose(got, expected, **tolerance(jnp.float32))
    in_bf16 = jnp.square(jnp.einsum("nti,nto->nio", x, d)).sum(axis=0)
    assert not np.allclose(in_bf16.astype(np.float32), expected, rtol=1e-4)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float16", "bfloat16")])
def test_two_dtypes_meet_in_the_wider_one(dtypes, tolerance):
    x, d = (a.astype(t) for a, t in zip(operands((3, 4, 2), 3, np.float32), dtypes, strict=True))
    for route in ROUTES:
        got = sum_of_squared_products(x, d, implementation=route)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, brute_force(x, d), **tolerance(jnp.float32))


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 1, 3), (5, 2, 4, 3)])
@pytest.mark.parametrize("route", ROUTES)
def test_stacked_models_and_jit_give_the_same(route, shape, x64):
    pairs = [operands(shape, 2), operands(shape, 2)]
    xs, ds = (
        jnp.stack(a) * jnp.arange(1.0, 3).reshape(2, *[1] * len(shape))
        for a in zip(*pairs, strict=True)
    )

    def f(x, d):
        return sum_of_squared_products(x, d, implementation=route)

    got = jax.jit(jax.vmap(f))(xs, ds)
    for i in range(2):
        np.testing.assert_allclose(got[i], brute_force(xs[i], ds[i]), rtol=1e-12)


def equations(function, *arrays):
    """Every equation in the jaxpr of `function`, those inside loops included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    yield from walk(value.jaxpr)

    return list(walk(jax.make_jaxpr(lambda *a: function(*a))(*arrays).jaxpr))


def names(function, *arrays):
    return [equation.primitive.name for equation in equations(function, *arrays)]


@pytest.mark.parametrize("shape", [(6, 1, 3), (6, 2, 1, 3)])
@pytest.mark.parametrize("route", ROUTES)
def test_one_position_costs_one_matmul_and_no_loop(route, shape):
    x, d = operands(shape, 4, np.float32)
    found = names(lambda x, d: sum_of_squared_products(x, d, implementation=route), x, d)
    assert found.count("dot_general") == 1
    assert not {"scan", "while", "pallas_call"} & set(found)


@pytest.mark.parametrize(
    ("x", "out", "bound"),
    [
        ((1000, 4, 64), 64, squares._CHUNK_ON_CPU),  # in chunks
        ((64, 4, 300), 300, 300 * 300),  # one by one
        ((50, 3, 4, 300), 300, 300 * 300),  # group by group
        ((500, 1000, 2, 9), 1, squares._CHUNK_ON_CPU),  # depthwise
    ],
)
def test_per_example_products_are_never_all_in_memory(x, out, bound):
    """The einsum over all examples, which writes n G I O numbers, is far beyond every bound."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, (*x[:-1], out))]

    def largest(function):
        found = [e for e in equations(function, *shapes) if e.primitive.name == "dot_general"]
        return max(variable.aval.size for e in found for variable in e.outvars)

    assert bound / 2 < largest(sum_of_squared_products) <= bound
    assert largest(lambda x, d: jnp.einsum("...ti,...to->...io", x, d)) > 10 * bound


@pytest.mark.parametrize("examples", [1, 2, 12, 13, 14, 29])
def test_chunks_and_their_remainder_cover_every_example_once(examples, monkeypatch, x64):
    monkeypatch.setattr(squares, "_CHUNK_ON_CPU", 60)  # 5 examples of 3 x 4
    x, d = operands((examples, 2, 3), 4)
    np.testing.assert_allclose(sum_of_squared_products(x, d), brute_force(x, d), rtol=1e-12)


@pytest.mark.parametrize("shape", [(9, 2, 3), (9, 2, 2, 3)])
def test_large_weights_on_a_cpu_are_taken_one_example_at_a_time(shape, monkeypatch, x64):
    x, d = operands(shape, 4)
    assert "scan" not in names(sum_of_squared_products, x, d)
    monkeypatch.setattr(squares, "_LARGE_ON_CPU", 11)
    loops = names(sum_of_squared_products, x, d).count("scan")
    assert loops == len(shape) - 2  # one more over the groups
    np.testing.assert_allclose(sum_of_squared_products(x, d), brute_force(x, d), rtol=1e-12)


def test_an_accelerator_gets_larger_chunks(monkeypatch, x64):
    x, d = operands((9, 2, 3), 4)
    monkeypatch.setattr(squares, "_LARGE_ON_CPU", 11)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in names(sum_of_squared_products, x, d)
    np.testing.assert_allclose(sum_of_squared_products(x, d), brute_force(x, d), rtol=1e-12)
    monkeypatch.setattr(squares, "_CHUNK", 60)
    assert "scan" in names(sum_of_squared_products, x, d)
    np.testing.assert_allclose(sum_of_squared_products(x, d), brute_force(x, d), rtol=1e-12)


# --------------------------------------------------------------------------------- the GPU kernel


def test_a_block_is_the_power_of_two_that_pads_least():
    assert [block_size(s, 64) for s in (1, 16, 27, 64, 65, 128, 144)] == [
        16,
        16,
        32,
        64,
        16,
        64,
        16,
    ]
    assert block_size(1024, 128) == 128


@pytest.mark.parametrize(("examples", "programs"), [(7, 1), (7, 3), (7, 7), (7, 100), (2, 5)])
def test_segments_of_examples_add_up(examples, programs, monkeypatch, x64):
    monkeypatch.setattr("jaxunlearn.curvature.pallas_squares.PROGRAMS", programs)
    x, d = operands((examples, 2, 3, 4), 5)
    got = squared_products_kernel(x, d, jnp.square, interpret=True)
    np.testing.assert_allclose(got, brute_force(x, d), rtol=1e-12)


# jax 0.12 announces the end of Pallas' Triton backend whenever something is lowered to it.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_kernel_lowers_for_a_gpu(dtype, stacked):
    """To Triton, without a GPU in sight: a shape or an operation it cannot take raises here."""
    device = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    x, d = operands((4, 2, 65, 130), 20, dtype)
    if stacked:
        x, d = jnp.stack([x, x]), jnp.stack([d, d])

    def kernel(x, d):
        return squared_products_kernel(x, d, jnp.square)

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.vmap(kernel) if stacked else kernel).trace(x, d)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text and "sum_of_squared_products" in text


# --------------------------------------------------------------------------------------- refusals


def test_a_backend_without_the_kernel_says_so(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match="default backend is 'tpu'. Leave implementation=None"):
        sum_of_squared_products(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 4)), implementation="pallas")


def test_unknown_names_are_refused():
    x = jnp.ones((2, 2, 3))
    with pytest.raises(ValueError, match="expected power 'square' or 'abs', got 'cube'"):
        sum_of_squared_products(x, x, power="cube")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'scan', 'einsum' or 'pallas', got 'loop'"):
        sum_of_squared_products(x, x, implementation="loop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (2, 3)),
        ((2, 2, 3), (2, 3, 3)),
        ((2, 2, 3), (3, 2, 3)),
        ((2, 2, 3), (2, 1, 2, 3)),
        ((2, 2, 2, 2, 3), (2, 2, 2, 2, 3)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected x \(n, T, I\).*Reshape all positions"):
        sum_of_squared_products(*(jnp.ones(s) for s in shapes))


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_only_floats_are_taken(dtype):
    x, wrong = jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3), dtype)
    with pytest.raises(TypeError, match=f"d is {dtype}"):
        sum_of_squared_products(x, wrong)
    with pytest.raises(TypeError, match=f"x is {dtype}"):
        sum_of_squared_products(wrong, x)
