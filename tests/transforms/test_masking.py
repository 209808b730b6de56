"""Frozen entries: the same bits after any number of steps of any optimiser, and an empty memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.transforms import anchor, mask_updates

MASKS, STEPS = 12, 4
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {"w": jax.random.normal(KEYS[0], (3, 2)), "b": jnp.array([-0.0, 0.0, 1e-30])}
RANDOM = {
    "w": jax.random.bernoulli(KEYS[1], 0.5, (MASKS, 3, 2)),
    "b": jax.random.bernoulli(KEYS[2], 0.5, (MASKS, 3)),
}  # a dozen masks, mixed within leaves

OPTIMISERS = {
    "sgd with decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    "adamw": optax.adamw(0.1, weight_decay=0.3),
    "clipped nesterov": optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "moving average": optax.chain(optax.adam(0.1), optax.ema(0.9)),
    "anchored": optax.chain(anchor(jax.tree.map(jnp.ones_like, PARAMS)), optax.sgd(0.1)),
    "restarting": optax.adam(optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 2, "warmup_steps": 1}] * 2
    )),
}  # fmt: skip


def train(build, mask):
    """(params, state at the start, state) after some steps of a loss that depends on everything."""
    tx = build(mask)

    def loss(p):
        return sum(jnp.sum(jnp.square(leaf - 2.0)) for leaf in jax.tree.leaves(p))

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    begun = tx.init(PARAMS)
    params, state = jax.lax.scan(body, (PARAMS, begun), None, length=STEPS)[0]
    return params, begun, state


def together(build):
    return jax.jit(jax.vmap(lambda mask: train(build, mask)))(RANDOM)


def bits(array):
    return np.asarray(array).view(np.int32)


def frozen_bits_kept(params):
    return all(
        np.array_equal(
            bits(params[k])[~np.asarray(RANDOM[k])],
            np.broadcast_to(bits(PARAMS[k]), RANDOM[k].shape)[~np.asarray(RANDOM[k])],
        )
        for k in PARAMS
    )


def free_entries_moved(params):
    moved = {k: np.asarray(params[k]) != np.asarray(PARAMS[k])[None] for k in PARAMS}
    return all(moved[k][np.asarray(RANDOM[k])].all() for k in PARAMS)


def slots_of_frozen_entries(state):
    """Every array of the state that is shaped like a leaf, where the mask is False; no masks."""
    found = []
    for leaf in jax.tree.leaves(state):
        for k in PARAMS:
            if leaf.shape == RANDOM[k].shape and leaf.dtype != bool:
                found.append(np.asarray(leaf)[~np.asarray(RANDOM[k])])
    return found


@pytest.mark.parametrize("name", OPTIMISERS)
def test_frozen_entries_are_bit_identical_and_leave_no_trace_in_the_optimiser(name):
    inner = OPTIMISERS[name]
    params, begun, state = together(lambda mask: mask_updates(mask, inner))
    assert frozen_bits_kept(params) and free_entries_moved(params)
    slots = slots_of_frozen_entries((begun, state))
    for before, after in zip(slots[: len(slots) // 2], slots[len(slots) // 2 :], strict=True):
        np.testing.assert_array_equal(after, before)


def test_last_in_a_chain_keeps_the_parameters_but_fills_the_slots():
    params, _, state = together(lambda m: optax.chain(OPTIMISERS["adamw"], mask_updates(m)))
    assert frozen_bits_kept(params) and free_entries_moved(params)
    assert any((slot != 0).any() for slot in slots_of_frozen_entries(state))


def test_first_in_a_chain_is_the_trap():
    """Zeroed gradients alone: weight decay moves what is frozen."""
    params, _, _ = together(lambda m: optax.chain(mask_updates(m), OPTIMISERS["adamw"]))
    assert not frozen_bits_kept(params)


def test_an_ordinary_zero_would_lose_the_sign_of_a_zero():
    """Why the zero is negative: -0.0 + 0.0 is 0.0."""
    theta = jnp.array([-0.0, 0.0])
    tx = mask_updates(False)
    kept = optax.apply_updates(theta, tx.update(jnp.ones(2), tx.init(theta), theta)[0])
    np.testing.assert_array_equal(bits(kept), bits(theta))
    lost = optax.apply_updates(theta, jnp.zeros(2))
    assert not np.array_equal(bits(lost), bits(theta))


def test_what_is_frozen_may_have_no_gradient_and_is_in_no_norm():
    grads, theta = jnp.array([3.0, jnp.nan, 4.0]), jnp.ones(3)
    tx = mask_updates(jnp.array([True, False, True]), optax.clip_by_global_norm(1.0))
    updates, _ = tx.update(grads, tx.init(theta), theta)
    np.testing.assert_allclose(updates, [0.6, 0.0, 0.8], rtol=1e-6)


def test_a_mask_of_ones_is_what_is_inside():
    grads = jax.tree.map(jnp.sin, PARAMS)
    inner = OPTIMISERS["adamw"]
    for mask in (True, jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)):
        tx = mask_updates(mask, inner)
        ours = tx.update(grads, tx.init(PARAMS), PARAMS)[0]
        theirs = inner.update(grads, inner.init(PARAMS), PARAMS)[0]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_masks_are_prefixes_functions_or_entries():
    grads = jax.tree.map(jnp.ones_like, PARAMS)

    def updates(mask):
        tx = mask_updates(mask)
        return tx.update(grads, tx.init(PARAMS))[0]

    for mask in ({"w": True, "b": False}, lambda p: {"w": p["w"].ndim == 2, "b": False}):
        np.testing.assert_array_equal(updates(mask)["w"], 1)
        np.testing.assert_array_equal(updates(mask)["b"], 0)
    entries = updates({"w": False, "b": np.array([True, False, True])})
    np.testing.assert_array_equal(entries["b"], [1, 0, 1])
    hidden = optax.masked(mask_updates({"w": False, "b": True}), {"w": True, "b": False})
    out = hidden.update(grads, hidden.init(PARAMS))[0]
    np.testing.assert_array_equal(out["w"], 0)


def test_half_precision_and_the_arguments_of_what_is_inside_pass_through():
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: (), update)
    theta = jnp.ones(2, jnp.bfloat16)
    tx = mask_updates(jnp.array([True, False]), inner)
    out = tx.update(theta, tx.init(theta), theta, factor=jnp.bfloat16(3))[0]
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [3, 0])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"tail": True}, ValueError, "mask_updates: the mask is no prefix of the params"),
        ({"w": np.ones(2, bool), "b": True}, ValueError, r"mask\['w'\] has shape \(2,\)"),
        ({"w": 1.0, "b": True}, TypeError, r"mask\['w'\] must be a bool or a bool array"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_by_name(mask, error, message):
    with pytest.raises(error, match=message):
        mask_updates(mask).init(PARAMS)
