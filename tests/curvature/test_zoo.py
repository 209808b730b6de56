"""The zoo keeps its promises: otherwise a test over it would prove less than it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.curvature.zoo import CLASSES, ROWS, ZOO, Network


def test_a_network_knows_its_name():
    assert len(ZOO) >= 16
    network = ZOO["mlp"]()
    assert isinstance(network, Network) and network.name == "mlp"


@pytest.mark.parametrize("name", ZOO)
def test_every_network_is_small_and_in_the_dtype_in_force(name, x64):
    for dtype in (jnp.float64, jnp.float32):
        with jax.enable_x64(dtype == jnp.float64):
            network = ZOO[name]()
            losses = jax.eval_shape(network.loss_fn, network.params, network.columns)
            assert losses.shape == (ROWS,) and losses.dtype == dtype
            leaves = jax.tree.leaves(network.params)
            expected = jnp.bfloat16 if "bfloat16" in name else dtype
            assert {leaf.dtype for leaf in leaves} == {jnp.dtype(expected)}
            assert sum(leaf.size for leaf in leaves) < 3000
            assert set(network.columns) == {"x", "y"}
            assert network.columns["y"].max() < CLASSES
            assert all(len(column) == ROWS for column in network.columns.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_rows_are_on_their_own_and_every_leaf_counts_unless_it_says_not(name, x64):
    network = ZOO[name]()

    def alone(params, row):
        return network.loss_fn(params, {k: v[None] for k, v in row.items()})[0]

    def program(params, columns):
        together = network.loss_fn(params, columns)
        return together, jax.vmap(jax.value_and_grad(alone), (None, 0))(params, columns)

    quick = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(program, compiler_options=quick)
    together, (each, gradients) = compiled(network.params, network.columns)
    assert np.isfinite(each).all() and np.ptp(each) > 0
    np.testing.assert_allclose(together, each, rtol=1e-10)

    paths = jax.tree_util.tree_leaves_with_path(gradients)
    assert all(np.isfinite(g.astype(float)).all() for _, g in paths)
    zero = [jax.tree_util.keystr(path) for path, g in paths if not np.any(g)]
    assert set(zero) == set(network.unused)
