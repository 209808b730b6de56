"""Pruned weights: exact in number, stable in ties, the same as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.audit.pruning import prune

pruned = jax.jit(prune, static_argnames=("scope", "keep"))  # the share is traced


@pytest.fixture
def params():
    """Two kernels of different size and scale, and what is not pruned."""
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), "bias": jnp.zeros(4)},
        "b": {"kernel": jnp.asarray(0.1 * rng.normal(size=(5, 6)), jnp.float32)},
        "norm": {"scale": jnp.full(6, 1e-9)},
    }


def kernels(params):
    return {name: np.asarray(params[name]["kernel"]) for name in ("a", "b")}


def flat(params):
    return np.concatenate([w.ravel() for w in kernels(params).values()])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_exactly_the_smallest_weights_are_gone_and_the_others_have_the_same_bits(params, share):
    before, after = flat(params), flat(pruned(params, share))
    gone = np.argsort(np.abs(before))[: round(share * 50)]
    expected = before.copy()
    expected[gone] = 0
    np.testing.assert_array_equal(after, expected)
    assert np.abs(before[gone]).max() < np.abs(np.delete(before, gone)).min()
    # the mutants: the largest go, or signed values are ranked
    assert not np.array_equal(after == 0, np.argsort(np.argsort(-np.abs(before))) < share * 50)
    assert not np.array_equal(after == 0, np.argsort(np.argsort(before)) < share * 50)


def test_leaf_by_leaf_every_leaf_loses_its_share_but_globally_the_small_leaf_pays(params):
    each = {n: (w == 0).sum() for n, w in kernels(pruned(params, 0.5, scope="leaf")).items()}
    assert each == {"a": 10, "b": 15}
    together = {n: (w == 0).sum() for n, w in kernels(pruned(params, 0.5)).items()}
    assert sum(together.values()) == 25 and together["b"] > 20


def test_biases_and_normalisation_are_neither_pruned_nor_counted(params):
    after = pruned(params, 0.9)
    for name, leaf in (("norm", "scale"), ("a", "bias")):
        np.testing.assert_array_equal(after[name][leaf], params[name][leaf])
    assert (flat(after) == 0).sum() == 45
    head = pruned(params, 1.0, keep=lambda path, leaf: "'a'" in path)
    np.testing.assert_array_equal(head["a"]["kernel"], params["a"]["kernel"])
    assert (head["b"]["kernel"] == 0).all() and (head["norm"]["scale"] == 0).all()


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_share_nothing_keeps_all_bits_and_share_all_leaves_nothing(params, scope):
    params["a"]["kernel"] = params["a"]["kernel"].at[0, 0].set(-0.0)
    none, every = pruned(params, 0.0, scope=scope), pruned(params, 1.0, scope=scope)
    np.testing.assert_array_equal(flat(none).view(np.uint32), flat(params).view(np.uint32))
    assert (flat(every).view(np.uint32) == 0).all()  # +0 everywhere


def test_of_equal_weights_the_first_go_first_and_their_number_is_exact():
    equal = {"a": jnp.full((2, 3), -2.0), "b": jnp.full((1, 4), 2.0)}
    after = pruned(equal, 0.7)
    np.testing.assert_array_equal(after["a"], np.zeros((2, 3)))
    np.testing.assert_array_equal(after["b"], [[0, 2, 2, 2]])
    each = pruned(equal, 0.5, scope="leaf")
    np.testing.assert_array_equal(each["a"], [[0, 0, 0], [-2, -2, -2]])
    np.testing.assert_array_equal(each["b"], [[0, 0, 2, 2]])
    below = np.abs(equal["a"]) <= np.quantile(np.abs(equal["a"]), 0.5)  # the mutant: a threshold
    assert below.all()


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_a_grid_of_traced_shares_is_nested_and_equals_the_single_ones(params, scope):
    shares = jnp.array([0.0, 0.1, 0.42, 0.9, 1.0])
    grid = jax.jit(jax.vmap(lambda s: prune(params, s, scope=scope)))(shares)
    for i, share in enumerate(shares):
        for name, w in kernels(pruned(params, share, scope=scope)).items():
            np.testing.assert_array_equal(grid[name]["kernel"][i], w)
    gone = np.asarray(grid["a"]["kernel"]) == 0
    assert (gone[:-1] <= gone[1:]).all() and gone[-1].all() and not gone[0].any()


def test_a_number_and_a_traced_number_prune_alike_and_a_traced_one_stops_at_the_ends(params):
    number = kernels(prune(params, 0.42))
    for name, w in kernels(pruned(params, 0.42)).items():
        np.testing.assert_array_equal(number[name], w)
    np.testing.assert_array_equal(flat(pruned(params, -1.0)), flat(params))
    assert (flat(pruned(params, 2.0)) == 0).all()


def test_stacked_models_are_pruned_apart_under_vmap_and_would_compete_without(params):
    louder = jax.tree.map(lambda w: 100 * w, params)
    stacked = jax.tree.map(lambda a, b: np.stack([a, b]), louder, params)
    apart = jax.jit(jax.vmap(lambda p: prune(p, 0.5)))(stacked)
    for i, one in enumerate((louder, params)):
        alone = kernels(pruned(one, 0.5))
        np.testing.assert_array_equal(apart["a"]["kernel"][i], alone["a"])
    mixed = np.asarray(pruned(stacked, 0.5)["b"]["kernel"])
    assert (mixed[1] == 0).all() and (mixed[0] == 0).mean() < 0.2


def test_a_weight_that_is_not_finite_stays(params):
    for bad in (np.nan, np.inf):
        params["a"]["kernel"] = params["a"]["kernel"].at[1, 1].set(bad)
        for share in (0.9, 1.0):
            after = kernels(pruned(params, share))["a"]
            assert not np.isfinite(after[1, 1])
            assert np.isfinite(after).sum() == 19
    assert (np.delete(after.ravel(), 5) == 0).all()


def test_half_precision_stays_half_precision_and_is_ranked_with_the_rest(params):
    params["b"]["kernel"] = params["b"]["kernel"].astype(jnp.bfloat16)
    after = pruned(params, 0.3)
    assert after["b"]["kernel"].dtype == jnp.bfloat16
    wide = {**params, "b": {"kernel": params["b"]["kernel"].astype(jnp.float32)}}
    np.testing.assert_array_equal(after["b"]["kernel"], pruned(wide, 0.3)["b"]["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_pytorch_prunes_the_same_weights(params, scope, share):
    torch = pytest.importorskip("torch")
    pruner = pytest.importorskip("torch.nn.utils.prune")
    layers = {n: torch.nn.Linear(*w.shape) for n, w in kernels(params).items()}
    for name, w in kernels(params).items():
        layers[name].weight = torch.nn.Parameter(torch.tensor(w))
    if scope == "global":
        pruner.global_unstructured(
            [(layer, "weight") for layer in layers.values()],
            pruning_method=pruner.L1Unstructured,
            amount=share,
        )
    else:
        for layer in layers.values():
            pruner.l1_unstructured(layer, "weight", amount=share)
    for name, w in kernels(pruned(params, share, scope=scope)).items():
        np.testing.assert_array_equal(layers[name].weight.detach().numpy(), w)


def test_arguments_that_cannot_be_right_are_refused(params):
    with pytest.raises(ValueError, match="share must be a finite number >= 0 and <= 1, got 30"):
        prune(params, 30)
    with pytest.raises(ValueError, match=r"scope must be one of \('global', 'leaf'\), got 'layer'"):
        prune(params, 0.5, scope="layer")
    with pytest.raises(ValueError, match="prune: nothing to compress: keep holds all 1 leaves"):
        prune({"bias": jnp.zeros(3)}, 0.5)
    huge = {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
    with pytest.raises(ValueError, match="up to 2147483647 entries, got 2147483648"):
        jax.eval_shape(lambda p: prune(p, 0.5), huge)
