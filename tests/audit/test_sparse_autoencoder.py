"""The sparse autoencoder: k latents and no more, the loss by hand, a planted dictionary, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.audit import TooFew, train_sparse_autoencoder
from jaxunlearn.audit.sparse_autoencoder import (
    Dictionary,
    SparseAutoencoder,
    encode,
    linear_codes,
    reconstruct,
    standardise,
    top_k,
    unstandardise,
)
from jaxunlearn.audit.sparse_training import _optimiser, sparse_objective, unit_columns
from jaxunlearn.training import Status

KEY = jax.random.key(3)
D, M, K = 4, 6, 2
_train = jax.jit(
    lambda hidden, key, weight, **how: train_sparse_autoencoder(
        hidden, key=key, weight=weight, **how
    ),
    static_argnames=("k", "latents", "steps", "batch_size", "class_token"),
)


def train(hidden, key, weight=None, **how):
    return _train(
        hidden, key, np.ones(hidden.shape[0], np.float32) if weight is None else weight, **how
    )


SMALL = {"k": 2, "steps": 3, "batch_size": 5}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dictionary(seed=0, d=D, m=M):
    decoder = normal(seed, d, m)
    return Dictionary(
        normal(seed + 1, m, d),
        decoder / jnp.linalg.norm(decoder, axis=0, keepdims=True),
        normal(seed + 2, d),
        normal(seed + 3, m),
    )


def with_class_token(seed=0):
    return SparseAutoencoder(dictionary(seed), normal(9, 2, D), jnp.array([2.0, 0.5]), K)


def codes_by_hand(w, x, k):
    """Sparse codes of one standardised token, latent by latent."""
    E, before, latent = (np.asarray(v, np.float64) for v in (w.encoder, w.before, w.latent))
    pre = np.array([max(0.0, float(E[j] @ (x - before)) + latent[j]) for j in range(len(latent))])
    kept = sorted(range(len(pre)), key=lambda j: (-pre[j], j))[:k]
    return np.array([pre[j] if j in kept else 0.0 for j in range(len(pre))])


@pytest.fixture(scope="module")
def planted():
    """Tokens made of 2 of 8 directions in 6 dimensions, and an autoencoder trained on them."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((8, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((400, 8))
    for row in codes:
        row[rng.choice(8, 2, replace=False)] = rng.uniform(1, 2, 2)
    hidden = jnp.asarray((codes @ directions).reshape(200, 2, 6) * 5 + 3, jnp.float32)
    long = partial(train_sparse_autoencoder, k=2, latents=12, steps=800, batch_size=64)
    sae, info = jax.jit(lambda h: long(h, key=KEY, dead_after=20, learning_rate=5e-3))(hidden)
    return hidden, sae, info


# ------------------------------------------------------------------------------------ what it says


def test_at_most_k_latents_are_active_however_many_are_equal():
    values = jnp.array([[1.0, 3, 3, 3, 0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]])
    kept = np.asarray(top_k(values, 2))
    np.testing.assert_array_equal(kept, [[0, 3, 3, 0, 0], [2, 2, 0, 0, 0], [0] * 5])
    # the mutant that keeps what reaches the k-th largest value keeps more
    threshold = np.sort(np.asarray(values), axis=1)[:, -2:-1]
    assert ((np.asarray(values) >= threshold) & (np.asarray(values) > 0)).sum(1).max() == 5


def test_codes_and_reconstruction_are_the_equations_token_by_token():
    sae, hidden = with_class_token(), 2 * normal(5, 3, 3, D) + 1
    z, back, there = jax.jit(
        lambda s, h: (encode(s, h), reconstruct(s, h), unstandardise(s, standardise(s, h)))
    )(sae, hidden)
    w = sae.dictionary
    for i, t in np.ndindex(3, 3):
        kind = 0 if t == 0 else 1  # the first token is of its own type
        mean, scale = np.asarray(sae.mean)[kind], float(sae.scale[kind])
        x = (np.asarray(hidden[i, t], np.float64) - mean) / scale
        expected = codes_by_hand(w, x, K)
        np.testing.assert_allclose(z[i, t], expected, rtol=1e-4, atol=1e-5)
        said = np.asarray(w.decoder, np.float64) @ expected + np.asarray(w.before)
        np.testing.assert_allclose(back[i, t], scale * said + mean, rtol=1e-4, atol=1e-4)
    assert (np.asarray(z) > 0).sum(-1).max() == K and (np.asarray(z) < 0).sum() == 0
    np.testing.assert_allclose(there, hidden, atol=1e-5)


def test_linear_codes_know_neither_bias_nor_sparsity():
    w, x = dictionary(), normal(6, 5, D)
    expected = (np.asarray(x) - np.asarray(w.before)) @ np.asarray(w.encoder).T
    np.testing.assert_allclose(linear_codes(w, x), expected, rtol=1e-4, atol=1e-5)
    other = w._replace(latent=w.latent + 7)
    np.testing.assert_array_equal(linear_codes(other, x), linear_codes(w, x))
    assert (np.asarray(linear_codes(w, x)) < 0).any()


def test_activations_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"expected hidden \(n, t, 4\).*got \(2, 3, 5\)"):
        encode(with_class_token(), jnp.ones((2, 3, 5)))
    with pytest.raises(ValueError, match=r"got \(3, 4\). Is it another network's"):
        reconstruct(with_class_token(), jnp.ones((3, 4)))


# ---------------------------------------------------------------------------------------- training


def test_before_any_step_the_encoder_is_the_transposed_decoder_of_unit_columns():
    hidden, how = normal(0, 12, 2, D), {"k": 1, "latents": M, "steps": 0}
    sae, info = train(hidden, KEY, **how)
    w = sae.dictionary
    np.testing.assert_array_equal(w.encoder, w.decoder.T)
    np.testing.assert_allclose(np.linalg.norm(w.decoder, axis=0), 1, atol=1e-6)
    assert not np.any(w.before) and not np.any(w.latent) and info.losses.shape == (0,)
    other = train(hidden, jax.random.key(4), **how)[0]
    assert np.abs(other.dictionary.decoder - w.decoder).max() > 0.1


def test_after_every_step_the_columns_have_length_one_and_only_they_are_moved_back():
    w = dictionary()
    grads = Dictionary(*(normal(20 + i, *leaf.shape) for i, leaf in enumerate(w)))

    @jax.jit
    def steps(w, grads):
        both = _optimiser(0.1), optax.adam(0.1)
        updates = [tx.update(grads, tx.init(w), w)[0] for tx in both]
        return [optax.apply_updates(w, update) for update in updates]

    after, mutant = steps(w, grads)
    np.testing.assert_allclose(np.linalg.norm(after.decoder, axis=0), 1, atol=1e-6)
    lengths = np.linalg.norm(mutant.decoder, axis=0)
    assert np.abs(lengths - 1).max() > 0.05  # the mutant without the projection
    np.testing.assert_allclose(after.decoder, mutant.decoder / lengths[None], atol=1e-6)
    for name in ("encoder", "before", "latent"):
        np.testing.assert_allclose(getattr(after, name), getattr(mutant, name), rtol=1e-6)


def test_a_column_of_length_zero_stays_finite():
    w = jnp.zeros((2, 1))
    update, _ = unit_columns().update(jnp.zeros((2, 1)), optax.EmptyState(), w)
    assert not np.any(update)


def test_the_loss_is_what_is_left_over_and_what_dead_latents_leave_of_it():
    w, x = dictionary(), normal(7, 5, D)
    age = jnp.array([0, 9, 3, 12, 9, 0])
    batch = {"data": {"x": x, "weight": jnp.array([1.0, 1, 2, 1, 0])}}
    objective = sparse_objective(K, dead_after=9, auxiliary=0.25)
    loss, after = jax.jit(objective.loss)(w, batch, age, KEY)
    decoder, before = np.asarray(w.decoder, np.float64), np.asarray(w.before, np.float64)
    total, fired = 0.0, np.zeros(M, bool)
    for token, weight in zip(np.asarray(x, np.float64), (1, 1, 2, 1, 0), strict=True):
        z = codes_by_hand(w, token, K)
        error = token - (decoder @ z + before)
        pre = codes_by_hand(w, token, M) * (np.asarray(age) >= 9)
        spare = np.zeros(M)
        best = np.argsort(-pre, kind="stable")[: D // 2]
        spare[best] = pre[best]
        left = error - decoder @ spare
        total += weight * ((error**2).mean() + 0.25 * (left**2).mean())
        fired |= (z > 0) & (weight > 0)
    assert loss == pytest.approx(total / 5, rel=1e-5)
    np.testing.assert_array_equal(after, np.where(fired, 0, np.asarray(age) + 1))
    assert fired.any() and not fired.all()
    alive = jax.jit(objective.loss)(w, batch, jnp.zeros(M, int), KEY)[0]
    plain = jax.jit(sparse_objective(K, auxiliary=0.0).loss)(w, batch, age, KEY)[0]
    assert alive == pytest.approx(float(plain)) and loss > plain


def test_only_the_dead_are_taught_by_what_is_left_over():
    w, x = dictionary(), normal(7, 30, D)
    age = jnp.array([0, 9, 0, 0, 9, 0])
    batch = {"data": {"x": x}}

    def gradient(auxiliary):
        objective = sparse_objective(K, dead_after=9, auxiliary=auxiliary)
        return jax.jit(jax.grad(lambda w: objective.loss(w, batch, age, KEY)[0]))(w)

    # b_pre too is moved, through the codes of the dead; the columns of the living are not
    change = jax.tree.map(lambda a, b: np.abs(a - b), gradient(0.5), gradient(0.0))
    alive = np.asarray(age) == 0
    np.testing.assert_allclose(change.decoder[:, alive], 0, atol=1e-6)
    np.testing.assert_allclose(change.encoder[alive], 0, atol=1e-6)
    assert change.decoder[:, ~alive].max() > 1e-3


def test_a_planted_dictionary_is_found(planted):
    hidden, sae, info = planted
    tokens = np.asarray(hidden, np.float64).reshape(-1, 6)
    left = tokens - np.asarray(reconstruct(sae, hidden), np.float64).reshape(-1, 6)
    explained = 1 - (left**2).sum() / ((tokens - tokens.mean(0)) ** 2).sum()
    assert float(info.explained) == pytest.approx(explained, abs=1e-4)
    assert explained > 0.9
    # two fixed directions, the best there are, explain less than two of twelve
    spectrum = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False) ** 2
    assert spectrum[:2].sum() / spectrum.sum() < 0.8
    np.testing.assert_allclose(np.linalg.norm(sae.dictionary.decoder, axis=0), 1, atol=1e-5)
    assert int(info.status) == Status.COMPLETED and info.losses[-1] < 0.2 * info.losses[0]
    active = np.asarray(encode(sae, hidden) > 0)
    assert active.sum(-1).max() <= 2
    assert float(info.dead) == pytest.approx(1 - active.any((0, 1)).mean())


def test_each_type_of_token_has_statistics_of_its_own_and_patches_alone_are_read():
    hidden = np.concatenate([100 + 9 * normal(0, 12, 1, D), 2 + 3 * normal(1, 12, 3, D)], axis=1)
    sae, info = train(hidden, KEY, **SMALL, class_token=True)
    assert sae.class_token and sae.mean.shape == (2, D)
    for kind, tokens in enumerate((hidden[:, :1], hidden[:, 1:])):
        a = np.asarray(tokens, np.float64).reshape(-1, D)
        np.testing.assert_allclose(sae.mean[kind], a.mean(0), rtol=1e-4)
        spread = np.sqrt(((a - a.mean(0)) ** 2).mean())
        np.testing.assert_allclose(sae.scale[kind], spread, rtol=1e-4)
    moved = np.concatenate([7 * hidden[:, :1], hidden[:, 1:]], axis=1)
    again, same = train(moved, KEY, **SMALL, class_token=True)
    for a, b in zip(again.dictionary, sae.dictionary, strict=True):
        np.testing.assert_array_equal(a, b)
    assert same.explained == info.explained
    plain = jax.eval_shape(partial(train, **SMALL), hidden, KEY)[0]
    assert not plain.class_token and plain.mean.shape == (1, D)


def test_rows_of_weight_zero_count_for_nothing():
    hidden, weight = normal(0, 12, 2, D), jnp.array([1.0, 0, 1] * 4)
    garbage = jnp.where(weight[:, None, None] > 0, hidden, jnp.nan)
    one, info = train(hidden, KEY, weight, **SMALL)
    other, same = train(garbage, KEY, weight, **SMALL)
    for a, b in zip(jax.tree.leaves((one, info)), jax.tree.leaves((other, same)), strict=True):
        np.testing.assert_array_equal(a, b)
    kept = np.asarray(hidden)[np.asarray(weight) > 0].reshape(-1, D)
    np.testing.assert_allclose(one.mean[0], kept.mean(0), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_activations_explain_nothing_and_break_nothing(value):
    hidden = np.full((12, 2, D), value, np.float32)
    sae, info = train(hidden, KEY, **SMALL)
    assert float(sae.scale[0]) == 1 and np.isnan(info.explained)
    assert int(info.status) == Status.COMPLETED
    np.testing.assert_allclose(reconstruct(sae, hidden), hidden, rtol=1e-3, atol=0.1)


def test_many_autoencoders_are_the_single_ones_in_one_program():
    hidden, keys = normal(0, 3, 12, 2, D), jax.random.split(KEY, 3)
    together = jax.vmap(partial(train, **SMALL))(hidden, keys)
    assert together[0].k == 2 and together[0].mean.shape == (3, 1, D)
    for i in range(3):
        alone = jax.tree.leaves(train(hidden[i], keys[i], **SMALL))
        for a, b in zip(jax.tree.leaves(together), alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


def test_inside_a_trace_activations_that_are_not_finite_end_the_run():
    info = train(normal(0, 12, 2, D).at[3, 0, 1].set(jnp.nan), KEY, **SMALL)[1]
    assert int(info.status) == Status.DIVERGED and np.isnan(info.explained)


@pytest.mark.parametrize(
    ("hidden", "how", "error", "message"),
    [
        (jnp.ones((0, 2, D)), {}, TooFew, "no example of positive weight"),
        (jnp.ones((3, 2, D)), {"weight": jnp.zeros(3)}, TooFew, "nothing to learn from"),
        (jnp.ones((3, 2, D)), {"weight": jnp.ones(2)}, ValueError, r"weight of shape \(3,\)"),
        (jnp.ones((3, 0, D)), {}, ValueError, r"at least one token, got \(3, 0, 4\)"),
        (jnp.ones((3, 1, D)), {"class_token": True}, ValueError, "a class token and at least one"),
        (jnp.ones(3), {}, ValueError, r"expected hidden \(n, t, d\).*model.hidden"),
        (jnp.array([[1.0, jnp.inf]]), {"k": 1}, ValueError, "NaN or Inf. Leave this model out"),
        (jnp.ones((3, D)), {"k": 5}, ValueError, "k must be a finite number >= 1 and <= 4, got 5"),
        (jnp.ones((3, D)), {"k": 1, "latents": 0}, ValueError, "latents must be .* >= 1, got 0"),
        (jnp.ones((3, D)), {"k": 1, "dead_after": 0}, ValueError, "dead_after must be"),
        (jnp.ones((3, D)), {"k": 1, "auxiliary": -1.0}, ValueError, "auxiliary must be"),
        (jnp.ones((3, D)), {"k": 1, "learning_rate": 0.0}, ValueError, "learning_rate must be"),
        (jnp.ones((3, D)), {"k": 1, "batch_size": 0}, ValueError, "batch_size must be"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(hidden, how, error, message):
    with pytest.raises(error, match=message):
        train_sparse_autoencoder(hidden, key=KEY, **{"k": 2, "steps": 1} | how)


def test_half_precision_activations_are_learnt_in_single_precision():
    hidden = jax.ShapeDtypeStruct((6, 1, D), jnp.bfloat16)
    sae, _ = jax.eval_shape(partial(train, **SMALL), hidden, KEY)
    assert sae.mean.dtype == sae.dictionary.decoder.dtype == jnp.float32
    assert jax.eval_shape(reconstruct, sae, hidden).dtype == jnp.float32
