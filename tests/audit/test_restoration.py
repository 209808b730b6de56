"""Restoration: steering by hand, what the arms and controls say, the trivial part, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import Model, from_nnx
from jaxunlearn.audit import TooFew, expert_features, restoration, restoration_rate, steer
from jaxunlearn.audit.sparse_autoencoder import Dictionary, SparseAutoencoder, encode, reconstruct
from jaxunlearn.audit.steering import latent_mask, random_latents
from jaxunlearn.losses import cross_entropy
from jaxunlearn.networks import SmallViT

KEY = jax.random.key(1)
D, CLASSES = 8, 3  # classes 0, 1 and 2 light the features (0, 1), (2, 3) and (4, 5)
EXPERTS = jnp.array([0, 1])
READS = np.zeros((D, CLASSES), np.float32)
READS[np.arange(6), np.arange(6) // 2] = 1.0


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def linear_model(reads_class_token=False):
    """hidden = x gate;  outputs = (mean of tokens, or the class token) head + bias."""

    def hidden(params, batch):
        return batch["x"] * params["gate"][None, None]

    def resume(params, h):
        pooled = h[:, 0] if reads_class_token else h.mean(axis=1)
        return pooled @ params["head"] + params["bias"][None]

    def outputs(params, batch):
        return resume(params, hidden(params, batch))

    return Model(
        outputs=outputs,
        loss=lambda p, b: cross_entropy(outputs(p, b), b["y"]),
        hidden=hidden,
        resume=resume,
    )


MODEL, READS_CLASS = linear_model(), linear_model(reads_class_token=True)
ORIGINAL = {"gate": jnp.ones(D), "head": jnp.asarray(READS), "bias": jnp.zeros(CLASSES)}
# The features of class 0 are no longer computed; what reads them is all there.
SUPPRESSED = ORIGINAL | {"gate": jnp.ones(D).at[:2].set(0.0)}
# They are computed and never read.
DELETED = ORIGINAL | {"head": jnp.asarray(READS).at[:2].set(0.0), "bias": jnp.array([-0.5, 0, 0])}
# Everything is there, and the answer forbidden.
FORBIDDEN = ORIGINAL | {"bias": jnp.array([-1e3, 0, 0])}


def batch(n=12, t=3):
    """Every class lights its two features in every token; small noise elsewhere."""
    y = np.arange(n) % CLASSES
    x = np.repeat((READS.T[y] * 2)[:, None], t, axis=1)
    return {
        "x": jnp.asarray(x + 0.05 * np.asarray(normal(0, n, t, D))),
        "y": jnp.asarray(y, jnp.int32),
        "weight": jnp.ones(n),
    }


def identity_sae(class_token=False, k=2):
    kinds, eye, zero = 1 + class_token, np.eye(D, dtype=np.float32), np.zeros(D, np.float32)
    dictionary = Dictionary(eye, eye, zero, zero)
    return SparseAutoencoder(
        dictionary, np.zeros((kinds, D), np.float32), np.ones(kinds, np.float32), k
    )


def random_sae(class_token=True, seed=3):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((D, D))
    weights = Dictionary(
        rng.standard_normal((D, D)),
        w / np.linalg.norm(w, axis=0),
        rng.standard_normal(D),
        np.ones(D),
    )
    kinds = 1 + class_token
    sae = SparseAutoencoder(
        weights, rng.standard_normal((kinds, D)), np.array([2.0, 0.5])[:kinds], 2
    )
    return jax.tree.map(np.float32, sae)


@partial(jax.jit, static_argnames=("model", "mode", "chunk", "draws"))
def restored(model, params, original, sae, rows, target, experts=EXPERTS, key=KEY, **how):
    how = {"alphas": (0.0, 1.0, 5.0), "draws": 2} | how
    return restoration(model, params, original, sae, rows, target, experts, key=key, **how)


move = jax.jit(steer, static_argnames=("arm", "mode"))
find = jax.jit(partial(expert_features, count=2))
ROWS = batch()
FIRST = ROWS["y"] == 0

# ---------------------------------------------------------------------------------------- steering


@pytest.mark.parametrize("arm", ["experts", "class_token", "both"])
def test_steering_is_the_equations_token_by_token(arm):
    sae, h, o = random_sae(), normal(0, 12, 3, D), normal(1, 12, 3, D)
    latents, alpha = latent_mask(jnp.array([7, 0, 4]), D), 2.5
    ours = move(sae, h, o, latents, alpha, arm=arm)
    E, W, before, _ = (np.asarray(v, np.float64) for v in sae.dictionary)
    mean, scale = np.asarray(sae.mean[1], np.float64), float(sae.scale[1])
    expected = np.array(h, np.float64)
    for i, t in np.ndindex(12, 3):
        a, b = np.asarray(h[i, t], np.float64), np.asarray(o[i, t], np.float64)
        if t == 0:
            expected[i, t] = a if arm == "experts" else a + alpha * (b - a)
        elif arm != "class_token":
            z, z_o = E @ ((a - mean) / scale - before), E @ ((b - mean) / scale - before)
            for j in (0, 4, 7):
                z[j] += alpha * (z_o[j] - z[j])
            expected[i, t] = scale * (W @ z + before) + mean
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_adding_strengthens_what_is_there_and_needs_no_original():
    sae, h = random_sae(), normal(0, 12, 3, D)
    latents = latent_mask(jnp.array([7, 0]), D)
    ours = move(sae, h, None, latents, 1.5, mode="add")
    E, W, before, _ = (np.asarray(v, np.float64) for v in sae.dictionary)
    x = (np.asarray(h, np.float64) - np.asarray(sae.mean[1])) / float(sae.scale[1])
    z = (x - before) @ E.T
    z[..., 1:7] = 0
    expected = np.asarray(h) + float(sae.scale[1]) * 1.5 * z @ W.T
    np.testing.assert_allclose(ours[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ours[:, 0], h[:, 0])
    np.testing.assert_array_equal(move(sae, h, None, latents, 0.0, mode="add"), h)


def test_at_strength_zero_only_the_error_of_the_dictionary_is_left():
    sae, h, o = random_sae(), normal(0, 12, 3, D), normal(1, 12, 3, D)
    none = jnp.zeros(D, bool)
    still = move(sae, h, o, latent_mask(jnp.array([7, 0, 4]), D), 0.0)
    np.testing.assert_array_equal(still, move(sae, h, o, none, 0.0))
    np.testing.assert_array_equal(still, move(sae, h, o, none, 5.0))  # no latent, no strength
    np.testing.assert_array_equal(still[:, 0], h[:, 0])
    assert np.abs(still[:, 1:] - h[:, 1:]).max() > 0.1
    # of a dictionary without error nothing is left; of the mutant with 1 - alpha, everything
    exact = move(identity_sae(True), h, o, latent_mask(EXPERTS, D), 0.0)
    np.testing.assert_allclose(exact, h, atol=1e-6)
    assert np.abs(move(identity_sae(True), h, o, latent_mask(EXPERTS, D), 1.0) - h).max() > 0.1


def test_an_original_that_is_the_unlearned_model_leaves_the_class_token_to_the_bit():
    sae, h = random_sae(), normal(0, 12, 3, D)
    for alpha in (1.0, 10.0):
        moved = move(sae, h, h, latent_mask(EXPERTS, D), alpha, arm="both")
        np.testing.assert_array_equal(moved[:, 0], h[:, 0])


def test_scale_and_mean_of_the_dictionary_do_not_change_what_is_injected():
    plain, h, o = random_sae(), normal(0, 12, 3, D), normal(1, 12, 3, D)
    other = SparseAutoencoder(plain.dictionary, plain.mean + 3, plain.scale * 7, plain.k)
    latents = latent_mask(EXPERTS, D)
    change = [
        move(sae, h, o, latents, 1.0) - move(sae, h, h, latents, 1.0) for sae in (plain, other)
    ]
    np.testing.assert_allclose(*change, rtol=1e-3, atol=1e-3)
    assert np.abs(change[0]).max() > 0.1


# ----------------------------------------------------------------------------------------- experts


def experts_by_hand(sae, hidden, target, weight):
    z = np.asarray(jax.jit(encode)(sae, hidden), np.float64)[:, 1:].mean(1)
    target, weight = np.asarray(target), np.asarray(weight)

    def mean(rows):
        return (weight[rows] @ z[rows]) / max(weight[rows].sum(), 1e-9)

    return np.argsort(mean(~target) - mean(target), kind="stable").tolist()


def test_experts_are_most_active_on_the_target_compared_with_the_rest():
    found = find(identity_sae(), ROWS["x"], FIRST)
    assert sorted(found.tolist()) == [0, 1]
    others = find(identity_sae(), ROWS["x"], ROWS["y"] == 2)
    assert sorted(others.tolist()) == [4, 5]
    # a feature that all classes share is the most active one, and no expert: the mutant's choice
    shared = ROWS["x"].at[:, :, 7].set(9.0)
    found = find(identity_sae(k=3), shared, FIRST)
    assert sorted(found.tolist()) == [0, 1]


def test_experts_of_any_rows_are_those_of_the_loop_over_latents():
    sae, hidden = random_sae(), 2 * normal(5, 9, 4, D)
    target = jnp.array([True, False, False, True, False, True, False, False, False])
    weight = jnp.array([1.0, 2, 0, 0.5, 1, 0, 1, 1, 3])
    four = jax.jit(partial(expert_features, count=4))
    expected = experts_by_hand(sae, hidden, target, weight)
    assert four(sae, hidden, target, weight=weight).tolist() == expected[:4]
    assert expected != experts_by_hand(sae, hidden, target, jnp.ones(9))
    moved = hidden.at[:, 0].multiply(-9.0)  # the class token is no patch
    assert four(sae, moved, target, weight=weight).tolist() == expected[:4]
    everything = jnp.ones(9, bool)
    expected = experts_by_hand(sae, hidden, everything, weight)
    assert four(sae, hidden, everything, weight=weight).tolist() == expected[:4]


def test_random_latents_are_as_many_others():
    excluded = latent_mask(jnp.array([0, 3, 5]), 12)
    drawn = np.asarray(random_latents(KEY, excluded, 3, 200))
    assert drawn.shape == (200, 12) and (drawn.sum(1) == 3).all()
    assert not drawn[:, np.asarray(excluded)].any()
    counts = drawn.sum(0)[~np.asarray(excluded)]
    assert counts.min() > 200 / 3 - 4 * np.sqrt(200 * 2 / 9)  # each in a third of the draws
    assert len({tuple(row) for row in drawn}) > 50


# ------------------------------------------------------------------------------------- restoration


def test_what_was_suppressed_below_comes_back_with_its_experts_and_not_with_others():
    found = restored(MODEL, SUPPRESSED, ORIGINAL, identity_sae(), ROWS, FIRST)
    assert found.unlearned.accuracy < 0.6 and found.original.accuracy == 1
    assert found.unlearned.retained == found.original.retained == 1
    np.testing.assert_allclose(found.rate["experts"], [0, 1, 1])
    np.testing.assert_allclose(found.steered["experts"].accuracy[1:], 1)
    np.testing.assert_allclose(found.rate["random"], 0)
    np.testing.assert_allclose(found.rate["reconstruction"], 0, atol=1e-6)
    confidence = found.steered["experts"].confidence
    assert confidence[0] < 0.5 < confidence[1] < confidence[2]
    assert set(found.rate) == {"experts", "random", "reconstruction"}  # there is no class token


@pytest.mark.parametrize("params", [DELETED, FORBIDDEN], ids=["deleted", "forbidden"])
def test_what_is_not_read_above_stays_away_whether_it_was_deleted_or_forbidden(params):
    found = restored(MODEL, params, ORIGINAL, identity_sae(), ROWS, FIRST)
    assert found.unlearned.accuracy == 0 and found.original.accuracy == 1
    for rate in found.rate.values():
        np.testing.assert_array_equal(rate, 0)
    # and yet nothing was deleted from the features of the forbidden: this audit cannot see it
    np.testing.assert_array_equal(MODEL.hidden(params, ROWS), MODEL.hidden(ORIGINAL, ROWS))


def test_against_itself_the_original_has_no_rate():
    found = restored(READS_CLASS, ORIGINAL, ORIGINAL, identity_sae(True), ROWS, FIRST)
    assert set(found.rate) == {"experts", "class_token", "both", "random", "reconstruction"}
    for name, rate in found.rate.items():
        assert np.isnan(rate).all(), name
    assert found.unlearned == found.original
    np.testing.assert_array_equal(
        found.steered["class_token"].confidence, found.original.confidence
    )
    assert np.isnan(restoration_rate(jnp.array(0.9), jnp.array(0.4), jnp.array(0.4)))


def test_every_number_is_an_average_over_rows_by_hand():
    sae, rows = random_sae(), batch()
    rows["weight"] = jnp.asarray([1.0, 2, 0, 1, 3, 1, 1, 0, 0.5, 1, 2, 1])
    rows["x"] = 3 * normal(8, 12, 3, D)
    target = jnp.asarray(np.arange(12) % 5 < 2)
    found = restored(READS_CLASS, SUPPRESSED, ORIGINAL, sae, rows, target)
    h, o = READS_CLASS.hidden(SUPPRESSED, rows), READS_CLASS.hidden(ORIGINAL, rows)
    w, y, inside = (np.asarray(v) for v in (rows["weight"], rows["y"], target))
    for arm in ("experts", "class_token", "both"):
        for a, alpha in enumerate((0.0, 1.0, 5.0)):
            tokens = move(sae, h, o, latent_mask(EXPERTS, D), alpha, arm=arm)
            logits = np.asarray(READS_CLASS.resume(SUPPRESSED, tokens), np.float64)
            correct = logits.argmax(1) == y
            said = np.exp(logits - logits.max(1, keepdims=True))
            said = (said / said.sum(1, keepdims=True))[np.arange(12), y]
            scores = found.steered[arm]
            for ours, values, kept in (
                (scores.accuracy, correct, inside),
                (scores.confidence, said, inside),
                (scores.retained, correct, ~inside),
            ):
                expected = (w * kept * values).sum() / (w * kept).sum()
                assert float(ours[a]) == pytest.approx(expected, abs=1e-5)
    assert float(found.steered["experts"].retained[2]) == float(found.unlearned.retained)


def test_steering_the_rest_costs_what_retained_says():
    rows = batch()
    all_lit = rows["x"].at[:, :, :2].set(5.0)  # the original sees class 0 everywhere
    found = restored(MODEL, SUPPRESSED, ORIGINAL, identity_sae(), {**rows, "x": all_lit}, FIRST)
    np.testing.assert_allclose(found.steered["experts"].retained, [1, 0, 0])
    assert found.unlearned.retained == 1


def test_the_class_token_alone_is_the_original_where_nothing_else_is_read():
    """The trivial part: lower layers drawn anew, an autoencoder of noise, and yet a rate of 1."""
    vit = from_nnx(
        lambda rngs: SmallViT(
            (4, 4, 1), 3, patch=2, dim=8, depth=1, num_heads=2, mlp_dim=8, pool="cls", rngs=rngs
        )
    )
    shapes = jax.eval_shape(vit.init, KEY)
    original, fresh = (
        jax.tree.map(lambda v, rng=rng: 0.5 * np.float32(rng.standard_normal(v.shape)), shapes)
        for rng in (np.random.default_rng(0), np.random.default_rng(1))
    )
    above = ("norm", "head")
    unlearned = nnx.merge_state(
        *[
            nnx.State({k: v for k, v in state.items() if (k in above) == (state is original)})
            for state in (fresh, original)
        ]
    )
    rows = {"x": 3 * normal(0, 30, 4, 4), "y": jnp.zeros(30, jnp.int32)}
    # the original is right by definition
    rows["y"] = jax.jit(vit.outputs)(original, rows).argmax(-1).astype(jnp.int32)
    target = jnp.arange(30) < 20
    found = restored(vit, unlearned, original, random_sae(), rows, target)
    assert found.original.accuracy > 0.999 and found.unlearned.accuracy < 0.8
    assert found.steered["class_token"].accuracy[1] == found.original.accuracy
    for arm in ("class_token", "both"):
        np.testing.assert_allclose(found.rate[arm][1], 1, rtol=1e-6)
    np.testing.assert_allclose(
        found.steered["class_token"].confidence[1], found.original.confidence, rtol=1e-4
    )
    np.testing.assert_array_equal(found.rate["experts"], 0)  # it reads patches of no consequence
    # with the layers above drawn anew as well, nothing comes back of itself
    assert restored(vit, fresh, original, random_sae(), rows, target).rate["class_token"][1] < 0.9


def test_without_an_original_adding_works_and_rates_are_undefined():
    half = ORIGINAL | {"gate": jnp.ones(D).at[:2].set(0.1)}
    found = restored(MODEL, half, None, identity_sae(), ROWS, FIRST, mode="add", alphas=(0.0, 50.0))
    assert set(found.rate) == {"experts", "random", "reconstruction"}
    assert np.isnan(found.original.accuracy) and np.isnan(found.rate["experts"]).all()
    added = found.steered["experts"].confidence
    assert added[0] == found.unlearned.confidence < 0.6 < 0.99 < added[1]
    np.testing.assert_array_equal(
        found.steered["reconstruction"].confidence, found.unlearned.confidence
    )
    shapes = restored.eval_shape(MODEL, half, ORIGINAL, identity_sae(True), ROWS, FIRST, mode="add")
    assert set(shapes.rate) == set(found.rate)  # a class token is left alone


@pytest.mark.parametrize(
    "chunk", [5, *(pytest.param(c, marks=pytest.mark.slow) for c in (1, 12, 40))]
)
def test_the_result_is_the_same_for_any_chunk(chunk):
    rows = {**ROWS, "weight": jnp.arange(12.0) % 4}
    whole, parts = (
        restored(MODEL, SUPPRESSED, ORIGINAL, random_sae(False), rows, FIRST, chunk=c)
        for c in (None, chunk)
    )
    leaves = zip(jax.tree.leaves_with_path(whole), jax.tree.leaves(parts), strict=True)
    for (path, a), b in leaves:
        # counts are the same to the bit; probabilities come from products of another shape
        rounding = {"rtol": 1e-5} if path[-1] == jax.tree_util.GetAttrKey("confidence") else {}
        np.testing.assert_allclose(a, b, **{"rtol": 0} | rounding)


def test_many_models_are_the_single_ones_in_one_program_traced_once():
    traces = 0

    def audit(params, original, sae, experts, key):
        nonlocal traces
        traces += 1
        how = {"alphas": (0.0, 1.0, 5.0), "draws": 2, "key": key}
        return restoration(MODEL, params, original, sae, ROWS, FIRST, experts, **how)

    many = jax.jit(jax.vmap(audit))
    params = [SUPPRESSED, DELETED, ORIGINAL]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *params)
    originals = jax.tree.map(lambda v: jnp.stack([v] * 3), ORIGINAL)
    saes = jax.tree.map(lambda *v: jnp.stack(v), *[random_sae(False, seed=s) for s in (3, 4, 5)])
    experts, keys = jnp.array([[0, 1], [2, 5], [7, 3]]), jax.random.split(KEY, 3)
    together = many(stacked, originals, saes, experts, keys)
    many(originals, stacked, saes, experts, keys)
    assert traces == 1
    for i in range(3):
        sae = random_sae(False, seed=3 + i)
        alone = restored(MODEL, params[i], ORIGINAL, sae, ROWS, FIRST, experts[i], keys[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------------------- bad input


def test_a_model_without_finite_outputs_is_undefined_and_minus_infinity_is_an_answer():
    broken = SUPPRESSED | {"bias": jnp.array([0.0, jnp.nan, 0.0])}
    found = restored(MODEL, broken, ORIGINAL, identity_sae(), ROWS, FIRST)
    numbers = (found.unlearned, found.steered, found.rate)
    assert all(np.isnan(v).all() for v in jax.tree.leaves(numbers))
    assert found.original.accuracy == 1
    masked = ORIGINAL | {"bias": jnp.array([-jnp.inf, 0.0, 0.0])}
    found = restored(MODEL, masked, ORIGINAL, identity_sae(), ROWS, FIRST)
    assert found.unlearned.accuracy == 0 and found.unlearned.retained == 1
    np.testing.assert_array_equal(found.rate["experts"], 0)


def test_without_other_rows_nothing_is_retained_and_without_target_all_is_undefined():
    everything = jnp.ones(12, bool)
    found = restored(MODEL, SUPPRESSED, ORIGINAL, identity_sae(), ROWS, everything)
    assert np.isnan(found.unlearned.retained) and np.isfinite(found.rate["experts"]).all()
    found = restored(MODEL, SUPPRESSED, ORIGINAL, identity_sae(), ROWS, ~everything)
    assert np.isnan(found.unlearned.accuracy) and np.isnan(found.rate["experts"]).all()
    assert np.isfinite(found.unlearned.retained)


def audit(
    model=MODEL, original=ORIGINAL, sae=None, rows=None, target=FIRST, experts=EXPERTS, **how
):
    sae, rows = identity_sae() if sae is None else sae, ROWS if rows is None else rows
    return restoration(
        model, SUPPRESSED, original, sae, rows, target, experts, **{"key": KEY} | how
    )


NO_HALVES = Model(outputs=MODEL.outputs, loss=MODEL.loss)
NOTHING = {"x": jnp.ones((0, 3, D)), "y": jnp.zeros(0, jnp.int32)}
TWO_LABELS = Model(MODEL.outputs, MODEL.loss, hidden=MODEL.hidden, resume=lambda p, h: h)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: audit(NO_HALVES), ValueError, r"cannot be split.*methods middle\(x\)"),
        (lambda: audit(TWO_LABELS), ValueError, r"expected outputs \(n, C\)"),
        (lambda: audit(rows=NOTHING), TooFew, "the batch has no rows"),
        (
            lambda: audit(rows={"x": ROWS["x"]}),
            ValueError,
            r"'y' as integer classes \(n,\), .*none",
        ),
        (
            lambda: audit(rows={**ROWS, "y": jnp.ones(12)}),
            ValueError,
            r"'y' as integer classes \(n,\), got float32 \(12,\)",
        ),
        (lambda: audit(target=FIRST & False), TooFew, "restoration: no row is a target"),
        (lambda: audit(target=FIRST[:5]), ValueError, r"bool \(12,\).*got bool \(5,\).*== c"),
        (lambda: audit(target=ROWS["y"]), ValueError, r"target as bool \(12,\).*got int32"),
        (lambda: audit(experts=jnp.ones(2)), ValueError, r"integers \(count,\), got float32"),
        (lambda: audit(experts=jnp.arange(5)), ValueError, "got 5 of 8 latents.*random control"),
        (lambda: audit(experts=jnp.arange(0)), ValueError, "got 0 of 8 latents. There must be"),
        (lambda: audit(experts=jnp.array([1, 1])), ValueError, r"distinct places in \[0, 8\)"),
        (lambda: audit(experts=jnp.array([1, 8])), ValueError, r"places in \[0, 8\), got \[1, 8\]"),
        (lambda: audit(alphas=()), ValueError, r"alphas \(A,\) with A >= 1, got shape \(0,\)"),
        (lambda: audit(alphas=2.0), ValueError, r"alphas \(A,\).*got shape \(\)"),
        (lambda: audit(draws=0), ValueError, "draws must be a finite number >= 1, got 0"),
        (lambda: audit(chunk=0), ValueError, "chunk must be a finite number >= 1, got 0"),
        (lambda: audit(key=3), TypeError, "restoration: expected one typed key"),
        (lambda: audit(mode="multiply"), ValueError, "a mode of .'inject', 'add'.*'multiply'"),
        (
            lambda: audit(original=None),
            ValueError,
            "mode 'inject' takes from an original, got None",
        ),
        (
            lambda: steer(identity_sae(), ROWS["x"], ROWS["x"], FIRST, 1.0, arm="both"),
            ValueError,
            "the arm 'both' moves a class token.*class_token=True",
        ),
        (
            lambda: steer(
                identity_sae(True), ROWS["x"], None, FIRST, 1.0, arm="class_token", mode="add"
            ),
            ValueError,
            "the arm 'class_token' takes from an original; mode 'add' has none",
        ),
        (
            lambda: steer(identity_sae(), ROWS["x"], ROWS["x"], FIRST, 1.0, arm="head"),
            ValueError,
            "an arm of .'experts', 'class_token', 'both'.*got 'head'",
        ),
        (
            lambda: expert_features(identity_sae(), ROWS["x"], FIRST, count=9),
            ValueError,
            "count must be a finite number >= 1 and <= 8, got 9",
        ),
        (
            lambda: expert_features(identity_sae(), ROWS["x"], FIRST & False),
            TooFew,
            "expert_features: no row is a target, so there is nothing to look for",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_dictionary_without_error_reconstructs():
    np.testing.assert_allclose(reconstruct(identity_sae(k=D), jnp.abs(ROWS["x"])), abs(ROWS["x"]))
