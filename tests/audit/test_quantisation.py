"""Quantised weights: the laws of rounding, exact in bits, and the neighbours that round as well."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxunlearn.audit.codebooks import CODEBOOKS, fp4_levels, nf4_levels
from jaxunlearn.audit.leaves import norms_biases_embeddings
from jaxunlearn.audit.quantisation import codes, quantise
from jaxunlearn.model import from_nnx
from jaxunlearn.networks import SmallViT

SETTINGS = ("bits", "group", "scale", "levels", "keep")
quantised = jax.jit(quantise, static_argnames=SETTINGS)
coded = jax.jit(codes, static_argnames=SETTINGS)
KERNEL = "['kernel']"

HOWS = [
    {"bits": 4},
    {"bits": 8},
    {"bits": 3, "group": 5},
    {"bits": 8, "group": "tensor"},
    {"bits": 4, "scale": "paper"},
    {"levels": "nf4"},
    {"levels": "fp4", "group": 5},
]


@pytest.fixture
def kernel():
    """(12, 7): twelve inputs, seven output features of very different sizes."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 7)) * 10.0 ** np.arange(-3, 4)
    return jnp.asarray(w, jnp.float32)


def by_loop(w, bits, group="row", scale="symmetric"):
    """Codes and steps in float64, one group after another."""
    w = np.asarray(w, np.float64)
    top = 2 ** (bits - 1) - (scale == "symmetric")
    code, step = np.zeros(w.shape, int), np.zeros(w.shape)
    size = len(w) if group == "row" else group
    for column in range(w.shape[1]):
        for start in range(0, len(w), size):
            part = slice(start, start + size)
            delta = np.abs(w[part, column]).max() / top
            code[part, column] = np.round(w[part, column] / delta)
            step[part, column] = delta
    return code, step


# ------------------------------------------------------------------------------------ what it does


@pytest.mark.parametrize("how", HOWS[:3] + [HOWS[4]], ids=str)
def test_codes_and_steps_are_those_of_a_loop_over_groups(kernel, how):
    code, step = by_loop(kernel, **how)
    found = coded({"kernel": kernel}, **how)[KERNEL]
    np.testing.assert_array_equal(found.codes, code)
    np.testing.assert_allclose(found.scale, step, rtol=1e-6)
    np.testing.assert_allclose(
        quantised({"kernel": kernel}, **how)["kernel"], code * step, rtol=1e-6
    )


def test_a_row_is_one_output_feature_which_is_the_last_axis(kernel):
    louder = kernel.at[:, 3].multiply(1000.0)
    before, after = (coded({"kernel": w}, bits=4)[KERNEL].codes for w in (kernel, louder))
    np.testing.assert_array_equal(before, after)  # a feature's scale is its own affair
    # the mutants: rows of the first axis, or one scale for all, mix the features
    for mutant in (
        lambda w: by_loop(w.T, 4)[0].T,
        lambda w: coded({"kernel": w}, bits=4, group="tensor")[KERNEL].codes,
    ):
        assert (np.asarray(mutant(kernel)) != np.asarray(mutant(louder))).any()


def test_kernels_of_convolution_and_attention_have_their_features_last_too():
    rng = np.random.default_rng(1)
    conv = jnp.asarray(rng.normal(size=(3, 2, 2, 7)), jnp.float32)
    flat = coded({"kernel": conv.reshape(12, 7)}, bits=4)[KERNEL]
    found = coded({"kernel": conv}, bits=4)[KERNEL]
    np.testing.assert_array_equal(found.codes.reshape(12, 7), flat.codes)
    np.testing.assert_array_equal(found.scale.reshape(12, 7), flat.scale)


def test_a_leaf_of_one_axis_is_one_row_and_a_block_longer_than_the_fan_in_is_the_row(kernel):
    everything = {"keep": lambda path, leaf: False}
    line = quantised({"w": jnp.array([7.0, 3.4, 0.4])}, bits=4, **everything)["w"]
    np.testing.assert_array_equal(line, [7, 3, 0])
    np.testing.assert_array_equal(
        quantised({"kernel": kernel}, bits=4, group=1000)["kernel"],
        quantised({"kernel": kernel}, bits=4)["kernel"],
    )
    empty = quantised({"a": np.zeros((0, 3)), "b": np.ones((2, 3))}, bits=4)
    assert empty["a"].shape == (0, 3)


# ---------------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_quantising_twice_is_quantising_once_to_the_bit(kernel, how):
    rng = np.random.default_rng(2)
    many = rng.normal(size=(200, 12, 7)).astype(np.float32)
    twice = jax.jit(jax.vmap(lambda w: quantise(quantise({"kernel": w}, **how), **how)["kernel"]))
    once = jax.jit(jax.vmap(lambda w: quantise({"kernel": w}, **how)["kernel"]))
    np.testing.assert_array_equal(once(many), twice(many))
    assert not np.array_equal(once(many), many)


def test_without_the_exact_largest_weight_quantising_twice_would_move_bits():
    def mutant(w):  # Delta c and nothing more, in float32
        step = np.abs(w).max(0) * np.float32(1 / 127)
        return np.round(w / step) * step

    w = np.random.default_rng(2).normal(size=(12, 1400)).astype(np.float32)
    once = mutant(w)
    assert (mutant(once) != once).any()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", ["symmetric", "paper"])
def test_the_error_is_at_most_half_a_step_and_is_attained(bits, scale):
    w = jnp.asarray(np.random.default_rng(3).normal(size=(4000, 2)), jnp.float32)
    how = {"bits": bits, "scale": scale}
    step = np.asarray(coded({"kernel": w}, **how)[KERNEL].scale, np.float64)
    error = np.abs(np.asarray(quantised({"kernel": w}, **how)["kernel"], np.float64) - w) / step
    assert error.max() <= 0.5 + 2.0**bits * 2e-7
    assert error.max() > 0.49
    down = np.abs(np.trunc(w / step) - w / step)  # the mutant that cuts off instead of rounding
    assert down.max() > 0.9


def test_every_further_bit_halves_the_error():
    w = jnp.asarray(np.random.default_rng(4).normal(size=(2000, 1)), jnp.float32)
    every = jax.jit(jax.vmap(lambda bits: quantise({"kernel": w}, bits=bits)["kernel"]))
    error = np.abs(np.asarray(every(jnp.arange(4, 13))) - np.asarray(w)).mean((1, 2))
    expected = (2.0 ** np.arange(4, 12) - 1) / (2.0 ** np.arange(3, 11) - 1)  # of the steps
    np.testing.assert_allclose(error[:-1] / error[1:], expected, rtol=0.1)
    fine = jax.jit(partial(quantise, bits=16))({"kernel": w})["kernel"]
    np.testing.assert_allclose(fine, w, atol=float(jnp.abs(w).max()) / 2**15 / 2)


def test_signs_and_powers_of_two_pass_through(kernel):
    q = {s: quantised({"kernel": s * kernel}, bits=4)["kernel"] for s in (1.0, -1.0, 2.0)}
    np.testing.assert_array_equal(-q[1.0], q[-1.0])
    np.testing.assert_array_equal(2 * q[1.0], q[2.0])


def test_ties_go_to_the_even_code():
    w = jnp.array([[7.0], [2.5], [-2.5], [3.5], [0.5], [-0.5]])
    found = coded({"kernel": w}, bits=4)[KERNEL].codes
    np.testing.assert_array_equal(found[:, 0], [7, 2, -2, 4, 0, 0])  # away from zero: 3, -3, 4, 1


def test_the_scale_of_the_paper_uses_one_step_more_and_loses_nothing_at_the_top():
    w = jnp.array([[8.0], [-8.0], [3.2], [0.4]])
    found = coded({"kernel": w}, bits=4, scale="paper")[KERNEL]
    np.testing.assert_array_equal(found.codes[:, 0], [8, -8, 3, 0])
    np.testing.assert_array_equal(found.scale[:, 0], np.ones(4))
    np.testing.assert_allclose(coded({"kernel": w}, bits=4)[KERNEL].scale[:, 0], 8 / 7, rtol=1e-6)


# ------------------------------------------------------------------------ trees, dtypes, transforms


@pytest.mark.parametrize("how", [HOWS[0], HOWS[6]], ids=str)
def test_compiled_vmapped_and_plain_agree_to_the_bit(kernel, how):
    plain = quantise({"kernel": kernel}, **how)["kernel"]
    np.testing.assert_array_equal(plain, quantised({"kernel": kernel}, **how)["kernel"])
    stacked = {"kernel": np.stack([3 * kernel, kernel])}
    both = jax.jit(jax.vmap(lambda p: quantise(p, **how)))(stacked)
    np.testing.assert_array_equal(plain, both["kernel"][1])


def test_bits_may_be_traced(kernel):
    params = {"kernel": kernel}
    grid = jax.jit(jax.vmap(lambda bits: quantise(params, bits=bits)))(jnp.array([4, 8]))
    for i, bits in enumerate((4, 8)):
        np.testing.assert_array_equal(grid["kernel"][i], quantised(params, bits=bits)["kernel"])


def test_stacked_models_would_share_scales_without_vmap(kernel):
    stacked = np.stack([kernel, 1000 * kernel])
    apart = quantised({"kernel": kernel}, bits=4)["kernel"]  # as under vmap, see above
    assert (quantised({"kernel": stacked}, bits=4)["kernel"][0] != apart).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_in_float32_and_stays_half_precision(dtype):
    w = jnp.asarray(np.random.default_rng(5).normal(size=(300, 40)), dtype)
    for bits in (4, 8):
        once = quantised({"kernel": w}, bits=bits)["kernel"]
        assert once.dtype == dtype
        np.testing.assert_array_equal(once, quantised({"kernel": once}, bits=bits)["kernel"])
        wide = quantised({"kernel": np.asarray(w, np.float32)}, bits=bits)["kernel"]
        np.testing.assert_array_equal(once, np.asarray(wide).astype(dtype))
    w = np.asarray(w)
    in_half = np.round(w / (np.abs(w).max(0) / w.dtype.type(127)))  # the mutant: steps in half too
    assert (in_half.astype(int) != coded({"kernel": w}, bits=8)[KERNEL].codes).any()


def test_double_precision_stays_double(x64):
    w = np.random.default_rng(6).normal(size=(50, 3))
    once = quantised({"kernel": jnp.asarray(w)}, bits=8)["kernel"]
    assert once.dtype == jnp.float64
    code, step = by_loop(w, 8)
    np.testing.assert_allclose(once, code * step, rtol=1e-14)


def test_only_kernels_are_quantised_in_a_transformer():
    vit = partial(SmallViT, (4, 4, 1), 2, patch=2, depth=1, dim=4, num_heads=2, mlp_dim=4)
    params = jax.eval_shape(from_nnx(lambda rngs: vit(rngs=rngs)).init, jax.random.key(0))
    leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    stays = {path: norms_biases_embeddings(path, leaf) for path, leaf in leaves.items()}
    assert {path for path in stays if "'kernel'" in path} == {p for p in stays if not stays[p]}
    assert leaves["['positions'].value"].ndim > 1  # by name, since they have axes enough
    assert leaves["['blocks'][0]['attention']['query']['bias'].value"].ndim > 1


def test_statistics_tables_and_integers_stay_and_come_back_as_the_same_arrays(kernel):
    params = {
        "batch_stats": {"stem": {"kernel": kernel}},
        "norm1": {"weight": kernel},
        "pos_embedding": kernel,
        "cls": kernel,
        "steps": jnp.arange(6).reshape(2, 3),
        "gain": jnp.full(7, 0.3),
        "head": {"kernel": kernel},
    }
    out = quantise(params, bits=4)
    for name in ("pos_embedding", "cls", "steps", "gain"):
        assert out[name] is params[name]
    assert out["batch_stats"]["stem"]["kernel"] is kernel and out["norm1"]["weight"] is kernel
    assert list(codes(params, bits=4)) == ["['head']['kernel']"]
    spare = {"keep": lambda path, leaf: "head" in path, "bits": 4}
    assert "['head']['kernel']" not in codes(params, **spare)
    assert "['norm1']['weight']" in codes(params, **spare)


# ------------------------------------------------------------------------------------ bad weights


@pytest.mark.parametrize("how", [HOWS[0], HOWS[5]], ids=str)
def test_a_group_of_zeros_has_codes_of_zero(kernel, how):
    params = {"kernel": kernel.at[:, 2].set(0.0)}
    out = quantised(params, **how)["kernel"]
    assert (out[:, 2] == 0).all() and jnp.isfinite(out).all()
    found = coded(params, **how)[KERNEL]
    assert (found.scale[:, 2] == 0).all()
    zero = 0 if "bits" in how else CODEBOOKS["nf4"].tolist().index(0.0)
    assert (found.codes[:, 2] == zero).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", [HOWS[0], HOWS[6]], ids=str)
def test_a_weight_that_is_not_finite_makes_its_whole_group_nan_and_no_other(kernel, bad, how):
    clean = quantised({"kernel": kernel}, **how)["kernel"]
    out = quantised({"kernel": kernel.at[4, 2].set(bad)}, **how)["kernel"]
    rows = 5 if "group" in how else 12
    assert jnp.isnan(out[:rows, 2]).all()
    sound = np.ones(out.shape, bool)
    sound[:rows, 2] = False
    np.testing.assert_array_equal(np.asarray(out)[sound], np.asarray(clean)[sound])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"bits": 1}, "bits must be a finite number >= 2 and <= 16, got 1"),
        ({"bits": 17}, "bits must be a finite number"),
        ({"bits": 4.0}, "bits must be an integer from 2 to 16, got 4.0"),
        ({"bits": True}, "bits must be an integer from 2 to 16, got True"),
        ({"group": "column"}, "group must be 'row', 'tensor' or the size of blocks.* got 'column'"),
        ({"group": 0}, "at least 1, got 0"),
        ({"group": True}, "at least 1, got True"),
        ({"scale": "absmax"}, r"scale must be one of \('symmetric', 'paper'\), got 'absmax'"),
        ({"levels": "nf8"}, r"levels must be one of \('int', 'nf4', 'fp4'\), got 'nf8'"),
        ({"levels": "nf4", "bits": 8}, "levels='nf4' has 4 bits, got bits=8"),
        ({"levels": "fp4", "scale": "paper"}, "take no scale='paper'. Leave scale out"),
        ({"keep": lambda path, leaf: True}, "nothing to compress: keep holds all 1 leaves"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(how, words):
    for function in (quantise, codes):
        with pytest.raises(ValueError, match=words):
            function({"kernel": jnp.ones((2, 2))}, **how)


def test_keep_must_be_a_function_and_a_model_of_embeddings_alone_is_told_what_to_say():
    with pytest.raises(TypeError, match=r"must be a function \(path, leaf\) -> bool, got dict"):
        quantise({"kernel": jnp.ones((2, 2))}, keep={"kernel": True})
    tables = {"users": {"embedding": jnp.ones((3, 2))}}
    with pytest.raises(ValueError, match="for tables of embeddings say `keep=lambda path, leaf"):
        quantise(tables)
    assert list(coded(tables, bits=4, keep=lambda path, leaf: False)) == ["['users']['embedding']"]


# ------------------------------------------------------------------------------------- neighbours


def test_nf4_is_the_published_table():
    published = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036,
                 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684,
                 1.0]  # fmt: skip
    np.testing.assert_allclose(nf4_levels(), published, atol=2e-7)
    assert nf4_levels()[0] == -1 and nf4_levels()[-1] == 1 and nf4_levels()[7] == 0


def test_fp4_is_e2m1_but_for_its_smallest_level():
    patterns = np.arange(16, dtype=np.uint8).astype(ml_dtypes.int4).view(ml_dtypes.float4_e2m1fn)
    e2m1 = np.unique(patterns.astype(np.float64)) / 6
    assert e2m1.size == fp4_levels().size == 15
    differs = np.flatnonzero(np.abs(e2m1 - fp4_levels()) > 1e-12)
    assert differs.size == 2
    np.testing.assert_allclose(np.abs(e2m1[differs]), 1 / 12)
    np.testing.assert_allclose(np.abs(fp4_levels()[differs]), 1 / 192)


@pytest.mark.parametrize("levels", ["nf4", "fp4"])
def test_a_codebook_gives_the_nearest_level(levels):
    w = np.random.default_rng(7).normal(size=(500, 3)).astype(np.float32)
    largest = np.abs(w).max(0)
    nearest = np.abs((w / largest)[..., None] - CODEBOOKS[levels]).argmin(-1)
    found = coded({"kernel": jnp.asarray(w)}, levels=levels)[KERNEL]
    np.testing.assert_array_equal(found.codes, nearest)
    value = quantised({"kernel": jnp.asarray(w)}, levels=levels)["kernel"]
    np.testing.assert_allclose(value, largest * CODEBOOKS[levels][nearest], rtol=1e-6)


@pytest.mark.parametrize("group", ["row", 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_qwix_rounds_to_the_same_integers(bits, group):
    qwix = pytest.importorskip("qwix")
    w = jnp.asarray(np.random.default_rng(8).normal(size=(64, 32)), jnp.float32)
    top = 2 ** (bits - 1) - 1
    how = {"channelwise_axes": (1,), "tiled_axes": {} if group == "row" else {0: group}}
    # by default it stretches the range by half a step; with that taken back the two are the same
    theirs = qwix.quantize(
        w, f"int{bits}", calibration_method=f"absmax,{(top + 0.5) / top}", **how
    )  # fmt: skip
    ours = coded({"kernel": w}, bits=bits, group=group)[KERNEL]
    np.testing.assert_array_equal(ours.codes, theirs.qvalue.astype(jnp.int32))
    value = quantised({"kernel": w}, bits=bits, group=group)["kernel"]
    np.testing.assert_allclose(value, qwix.dequantize(theirs), atol=1e-6)
    stretched = qwix.quantize(w, f"int{bits}", **how).qvalue.astype(jnp.int32)
    assert (ours.codes != stretched).any()


def test_qwix_has_the_same_nf4():
    qwix = pytest.importorskip("qwix")
    w = jnp.asarray(np.random.default_rng(9).normal(size=(64, 32)), jnp.float32)
    theirs = qwix.quantize(w, "nf4", channelwise_axes=(1,))
    ours = coded({"kernel": w}, levels="nf4")[KERNEL]
    np.testing.assert_array_equal(ours.codes, theirs.qvalue.astype(jnp.int32))
    value = quantised({"kernel": w}, levels="nf4")["kernel"]
    np.testing.assert_allclose(value, qwix.dequantize(theirs), atol=1e-6)
