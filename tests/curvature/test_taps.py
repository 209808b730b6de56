"""The route through taps equals the reference, and says how each leaf is dealt with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.curvature import (
    absolute_moment,
    fisher_diagonal,
    folding,
    moments,
    routes,
    second_moment,
)
from jaxunlearn.data import in_memory

from .zoo import ZOO


def agree(got, expected, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        small = (1e-9 if rtol < 1e-3 else rtol) * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=small + 1e-16)


def ways(network):
    return {r.leaf: r.how for r in routes(network.loss_fn, network.params, network.columns)}


LARGE = ("resnet_group_norm", "resnet_batch_norm", "vit_cls")  # half a minute of compilation


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in ZOO]
)
def test_taps_equal_the_reference_on_every_network(name, x64):
    network = ZOO[name]()
    weight = np.array([1.0, 0.0, 2.0, 0.5, 1.0])
    data = in_memory(network.columns | {"weight": weight})

    @jax.jit
    def both(params):
        one = second_moment(network.loss_fn, params, data)
        two = second_moment(network.loss_fn, params, data, strategy="vmap")
        return one, two

    agree(*both(network.params), rtol=network.rtol)


@pytest.mark.parametrize("name", ["mlp", "decoder_tied", "conv_grouped", "recurrent"])
def test_absolute_values_agree_too(name, x64):
    network = ZOO[name]()
    data = in_memory(network.columns)

    @jax.jit
    def both(params):
        return [
            absolute_moment(network.loss_fn, params, data, strategy=s) for s in ("taps", "vmap")
        ]

    agree(*both(network.params))


@pytest.mark.parametrize("size", [1, 3])
def test_many_cotangents_agree_too(size, x64):
    """K columns, with one position and with several, with a table and with a shared weight."""
    rng = np.random.default_rng(0)
    params = {
        "table": jnp.asarray(rng.standard_normal((7, 4))),
        "w": jnp.asarray(rng.standard_normal((4, 4))),
        "b": jnp.asarray(rng.standard_normal(4)),
        "head": jnp.asarray(rng.standard_normal((4, 3))),
    }

    def outputs(p, batch):
        h = p["table"][batch["x"]]
        h = jnp.tanh(h @ p["w"] + p["b"][None, None])
        return jnp.tanh(h @ p["w"]).sum(axis=1) @ p["head"]

    x = rng.integers(0, 7, (5, size))
    data = in_memory({"x": x, "y": np.zeros(5, np.int32)})
    both = [
        fisher_diagonal(None, params, data, kind="exact", outputs=outputs, strategy=s)
        for s in ("taps", "vmap")
    ]
    agree(*both)


def test_many_cotangents_of_a_weight_used_in_every_step_of_a_scan_agree(x64):
    """Its squares may not be added up over the columns before they are over the steps."""
    rng = np.random.default_rng(2)
    w = jnp.asarray(rng.standard_normal((3, 3)))

    def outputs(p, batch):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p), None), batch["x"], length=3)[0]

    data = in_memory({"x": rng.standard_normal((4, 3)), "y": np.zeros(4, np.int32)})
    both = [
        fisher_diagonal(None, w, data, kind="exact", outputs=outputs, strategy=s)
        for s in ("taps", "vmap")
    ]
    agree(*both)


def test_each_kind_of_layer_takes_the_cheapest_way():
    assert set(ways(ZOO["mlp"]()).values()) == {"squares", "each"}
    assert ways(ZOO["conv_grouped"]())["['w']"] == "products"
    assert "rows" in ways(ZOO["embedding_repeated"]()).values()
    assert "examples" not in ways(ZOO["scan_over_layers"]()).values()
    assert "examples" not in ways(ZOO["recurrent"]()).values()
    assert "examples" not in ways(ZOO["transformer_fused_qkv"]()).values()
    assert ways(ZOO["recurrent"]())["['state']"] == "products"
    unused = {leaf for leaf, how in ways(ZOO["leaf_not_used"]()).items() if how == "unused"}
    assert unused == {"['spare']", "['stopped']"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("decoder_tied", "meets data in 2 places"),
        ("weight_normalisation", "made of several leaves"),
        ("scaled_weight", "computed from the leaf"),
    ],
)
def test_a_leaf_that_goes_the_long_way_says_why(name, reason):
    network = ZOO[name]()
    found = routes(network.loss_fn, network.params, network.columns)
    assert any(r.how == "examples" and reason in r.reason for r in found)


def test_a_result_that_no_data_reaches_goes_the_long_way(x64):
    def loss(params, batch):
        return jnp.broadcast_to((params**2).sum(), batch["x"].shape)

    columns = {"x": np.ones(4)}
    (route,) = routes(loss, jnp.ones(3), columns)
    assert (route.how, route.reason) == ("examples", "no data reaches the result")
    got = second_moment(loss, jnp.full(3, 0.5), in_memory(columns))
    np.testing.assert_allclose(got.square, np.ones(3))


def test_a_table_read_out_of_bounds_gets_what_the_gradient_gives_it(x64):
    """Below 0 they count from the end, others are filled or clipped: as `jax.grad` does."""
    columns = {"x": np.array([[0, -1], [5, 2], [9, 9]])}
    for mode in ("fill", "clip"):

        def loss(p, b, mode=mode):
            read = p.at[b["x"]].get(mode=mode, fill_value=0.0)
            return (read * jnp.array([1.0, 2.0])[None]).sum(axis=1)

        both = [
            second_moment(loss, jnp.ones(4), in_memory(columns), strategy=s)
            for s in ("taps", "vmap")
        ]
        agree(*both)


def test_taps_can_be_mapped_over_models(x64):
    network = ZOO["mlp"]()
    data = in_memory(network.columns)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), network.params)

    def moment(params):
        return second_moment(network.loss_fn, params, data).square

    many = jax.jit(jax.vmap(moment))(stacked)
    for i in (0, 1):
        one = moment(jax.tree.map(lambda p: p[i], stacked))  # noqa: B023
        agree(jax.tree.map(lambda m: m[i], many), one)  # noqa: B023


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_rows_taken_a_few_at_a_time_give_the_same(most, x64, monkeypatch):
    """The networks above are too small to be cut by themselves."""
    monkeypatch.setattr(moments, "_rows_at_once", lambda block, rows: most)
    seen = []
    whole = moments.capture
    monkeypatch.setattr(
        moments, "capture", lambda *a, **k: (seen.append(a[4].size), whole(*a, **k))[1]
    )
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.standard_normal((3, 4)))}
    x, weight = rng.standard_normal((6, 2, 3)), np.array([1.0, 0.0, 2.0, 0.5, 3.0, 1.0])
    data = in_memory({"x": x, "y": np.zeros(6, np.int32), "weight": weight})

    def outputs(p, batch):
        return jnp.tanh(batch["x"] @ p["w"]).sum(axis=1)

    def loss(p, batch):
        return outputs(p, batch).sum(axis=1)

    agree(*(second_moment(loss, params, data, strategy=s) for s in ("taps", "vmap")))
    drawn = {"kind": "mc", "outputs": outputs, "key": jax.random.key(0)}
    agree(*(fisher_diagonal(None, params, data, strategy=s, **drawn) for s in ("taps", "vmap")))
    assert set(seen) == {most}


@pytest.mark.parametrize(("n", "most", "size"), [(6, 4, 3), (7, 4, 1), (7, 5, 7), (6, 9, 6)])
def test_chunks_are_the_largest_that_divide_or_all(n, most, size):
    sizes = []

    def total(rows):
        sizes.append(rows.shape[0])
        return rows.sum(axis=0)

    rows = jnp.arange(2.0 * n).reshape(n, 2)
    np.testing.assert_allclose(folding.in_chunks(total, (rows,), most), rows.sum(axis=0))
    assert set(sizes) == {size}


def test_one_backward_pass_is_made_and_no_per_example_gradient():
    """No array of the compiled program has the size of examples x weights."""
    n, width = 16, 96
    params = {"w": jnp.ones((width, width)), "v": jnp.ones((width, 2))}

    def loss(p, b):
        return (jnp.tanh(b["x"] @ p["w"]) @ p["v"]).sum(axis=1)

    data = in_memory({"x": np.ones((n, width), np.float32)})

    def numbers(strategy):
        jaxpr = jax.make_jaxpr(
            lambda p: fisher_diagonal(loss, p, data, strategy=strategy, micro_batch=n)
        )(params)
        sizes = [v.aval.size for v in _variables(jaxpr.jaxpr)]
        return max(sizes)

    assert numbers("taps") <= width * width
    assert numbers("vmap") == n * width * width


def _variables(jaxpr):
    for eqn in jaxpr.eqns:
        yield from eqn.outvars
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _variables(inner)
