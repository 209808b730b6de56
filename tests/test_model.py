"""Models: three doors to the same functions, and statistics that only training moves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxunlearn as ju
from jaxunlearn import losses
from jaxunlearn.data.streams import from_batches, in_memory
from jaxunlearn.model import (
    Model,
    freeze_statistics,
    from_linen,
    from_nnx,
    join_statistics,
    rebase,
    split_statistics,
)

MOMENTUM = 0.8
EPSILON = 1e-5
BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)) * 2 + 1, jnp.float32),
    "y": jnp.array([0, 1, 1, 0, 1, 0]),
}
KEY = jax.random.key(5)


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def features(self, x):
        return jnp.tanh(self.hidden(x))

    def __call__(self, x):
        return self.head(self.features(x))


class LinenPerceptron(linen.Module):
    def setup(self):
        self.hidden = linen.Dense(4)
        self.head = linen.Dense(2)

    def features(self, x):
        return jnp.tanh(self.hidden(x))

    def __call__(self, x):
        return self.head(self.features(x))


class Normalised(nnx.Module):
    def __init__(self, rngs, momentum=MOMENTUM):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=momentum, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.norm(self.hidden(x))))


class LinenNormalised(linen.Module):
    momentum: float = MOMENTUM

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(4, name="hidden")(x)
        norm = linen.BatchNorm(not train, momentum=self.momentum, epsilon=EPSILON, name="norm")
        return linen.Dense(2, name="head")(jax.nn.relu(norm(x)))


class Dropping(nnx.Module):
    """Two dropout layers of the same shape, and one stream that is not called "dropout"."""

    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)
        self.third = nnx.Dropout(0.5, rngs=rngs, rng_collection="noise")
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.scale * jnp.stack([self.first(x), self.second(x), self.third(x)], axis=1)


def normalised(kind, momentum=MOMENTUM):
    if kind == "nnx":
        return from_nnx(lambda rngs: Normalised(rngs, momentum))
    module = LinenNormalised(momentum)
    return from_linen(
        module, BATCH["x"][:1], train_kwargs={"train": True}, eval_kwargs={"train": False}
    )


def plain(params):
    """A tree of params of either Flax API as nested dicts of NumPy arrays."""
    pure = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
    return jax.tree.map(np.asarray, pure)


def by_hand(params, x, statistics=None):
    """(outputs, batch mean, batch variance) of the normalised network, written out in NumPy."""
    w = plain(params["params"])
    hidden = np.asarray(x) @ w["hidden"]["kernel"] + w["hidden"]["bias"]
    mean, var = hidden.mean(axis=0), hidden.var(axis=0)
    used = (mean, var) if statistics is None else statistics
    normed = (hidden - used[0]) / np.sqrt(used[1] + EPSILON) * w["norm"]["scale"]
    active = np.maximum(normed + w["norm"]["bias"], 0)
    return active @ w["head"]["kernel"] + w["head"]["bias"], mean, var


def moving(params):
    statistics = plain(params["batch_stats"])["norm"]
    return statistics["mean"], statistics["var"]


def with_statistics(model, params, mean, var):
    leaves, tree = jax.tree.flatten(split_statistics(model, params)[1])
    assert len(leaves) == 2  # mean and var, in this order
    new = jax.tree.unflatten(tree, [jnp.asarray(mean), jnp.asarray(var)])
    return join_statistics(model, params["params"], new)


# ---------------------------------------------------------------------------------- the three doors


def test_the_three_doors_give_the_same_functions_of_the_same_weights():
    nnx_model = from_nnx(lambda rngs: Perceptron(rngs))
    linen_model = from_linen(LinenPerceptron(), BATCH["x"][:1])

    def outputs(p, batch):
        hidden = jnp.tanh(batch["x"] @ p["hidden"]["kernel"] + p["hidden"]["bias"][None])
        return hidden @ p["head"]["kernel"] + p["head"]["bias"][None]

    hand_model = Model(
        outputs=outputs, loss=lambda p, b: losses.cross_entropy(outputs(p, b), b["y"])
    )
    params = nnx_model.init(KEY)
    same = nnx.to_pure_dict(params)
    chex.assert_trees_all_equal_shapes(same, linen_model.init(KEY))
    for function in ("outputs", "loss"):
        ours = getattr(nnx_model, function)(params, BATCH)
        for model in (linen_model, hand_model):
            np.testing.assert_allclose(getattr(model, function)(same, BATCH), ours, rtol=1e-5)
    assert nnx_model.loss(params, BATCH).shape == (6,)
    np.testing.assert_allclose(
        nnx_model.features(params, BATCH), linen_model.features(same, BATCH), rtol=1e-5
    )
    assert hand_model.features is hand_model.init is hand_model.train is None
    assert nnx_model.train is linen_model.train is None and not nnx_model.statistics


def test_a_number_called_features_is_no_features_function():
    assert from_linen(linen.Dense(2), BATCH["x"]).features is None
    assert from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs)).features is None


class Halves(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def middle(self, x):
        return self.norm(self.hidden(x))[:, None]

    def resume(self, h):
        return self.head(jax.nn.relu(h[:, 0]))

    def __call__(self, x):
        return self.resume(self.middle(x))


class LinenHalves(linen.Module):
    def setup(self):
        self.hidden, self.head = linen.Dense(4), linen.Dense(2)

    def middle(self, x):
        return self.hidden(x)[:, None]

    def resume(self, h):
        return self.head(jax.nn.relu(h[:, 0]))

    def __call__(self, x):
        return self.resume(self.middle(x))


class FirstHalf(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x)

    def middle(self, x):
        return x[:, None]


@pytest.mark.parametrize(
    "model", [from_nnx(Halves), from_linen(LinenHalves(), BATCH["x"][:1])], ids=["nnx", "linen"]
)
def test_a_model_resumed_from_its_hidden_activations_is_the_model(model):
    params = model.init(KEY)
    if model.statistics:
        mean, var = jnp.arange(4.0), 1 + jnp.arange(4.0)
        params = with_statistics(model, params, mean, var)
    hidden = model.hidden(params, BATCH)
    assert hidden.shape == (6, 1, 4)
    expected = model.outputs(params, BATCH)
    np.testing.assert_array_equal(model.resume(params, hidden), expected)
    assert not np.allclose(model.resume(params, hidden + 1), expected)
    smaller = rebase(model, lambda q: q[0], lambda p: (p,))
    np.testing.assert_array_equal(smaller.hidden((params,), BATCH), hidden)
    np.testing.assert_array_equal(smaller.resume((params,), hidden), expected)
    weights, statistics = split_statistics(model, params)
    frozen = freeze_statistics(model, statistics)
    np.testing.assert_array_equal(frozen.resume(weights, frozen.hidden(weights, BATCH)), expected)


def test_half_of_a_split_is_no_split():
    for model in (from_linen(FirstHalf(), BATCH["x"]), from_nnx(Perceptron)):
        assert model.hidden is model.resume is None
        smaller = rebase(model, lambda q: q, lambda p: p)
        assert smaller.hidden is smaller.resume is None


def test_the_module_given_is_never_changed_and_has_no_init():
    module = Normalised(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(module))
    model = from_nnx(module)
    params = {
        "params": nnx.state(module, nnx.Param),
        "batch_stats": nnx.state(module, nnx.BatchStat),
    }
    model.train(params, BATCH, KEY)
    model.outputs(params, BATCH)
    chex.assert_trees_all_equal(jax.tree.map(np.array, nnx.state(module)), before)
    assert module.norm.use_running_average is False
    assert model.init is None
    with pytest.raises(ValueError, match="this model has no `init`"):
        ju.train(model, optax.sgd(0.1), BATCH, key=KEY, epochs=1)


def test_init_gives_the_same_bits_for_the_same_key_and_others_for_another():
    for model in (normalised("nnx"), normalised("linen")):
        chex.assert_trees_all_equal(model.init(KEY), model.init(KEY))
        one, other = (jax.tree.leaves(model.init(jax.random.key(s))) for s in (0, 1))
        assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_jit_takes_a_model_as_an_argument_and_traces_once():
    model = from_nnx(lambda rngs: Perceptron(rngs))
    params = model.init(KEY)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(model, params, batch):
        return model.loss(params, batch)

    first = loss(model, params, BATCH)
    chex.assert_trees_all_equal(first, loss(model, params, BATCH))
    assert jax.tree.leaves(model) == []
    one_by_one = jax.tree.map(lambda a: a[:, None], BATCH)
    vmapped = jax.vmap(lambda model, batch: model.loss(params, batch), (None, 0))(model, one_by_one)
    np.testing.assert_allclose(vmapped[:, 0], first, rtol=1e-6)


class Counting(linen.Module):
    @linen.compact
    def __call__(self, x):
        self.variable("counts", "seen", jnp.zeros, ())
        return linen.Dense(2)(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_nnx(LinenPerceptron()), TypeError, "Linen module goes through from_linen"),
        (lambda: from_nnx(3), TypeError, "expected a factory .* got int"),
        (lambda: from_nnx(lambda rngs: 3), TypeError, "must return an nnx.Module, it returned int"),
        (
            lambda: from_linen(Perceptron(nnx.Rngs(0)), BATCH["x"]),
            TypeError,
            "expected a linen.Module, got Perceptron. An NNX module goes through from_nnx",
        ),
        (
            lambda: from_linen(Counting(), BATCH["x"]),
            ValueError,
            r"Counting has the variable collections \['counts', 'params'\]",
        ),
    ],
)
def test_what_no_door_understands_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_params_without_their_statistics_are_refused():
    model = normalised("linen")
    with pytest.raises(
        ValueError, match=r"\{'params': ..., 'batch_stats': ...\}, got \['kernel'\]"
    ):
        split_statistics(model, {"kernel": 1})
    with pytest.raises(ValueError, match="got list"):
        split_statistics(model, [1])


# --------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_evaluation_reads_the_stored_statistics_and_training_the_batch(kind):
    model = normalised(kind)
    mean, var = np.array([0.1, -1, 2, 0], np.float32), np.array([1, 2, 0.5, 3], np.float32)
    params = with_statistics(model, model.init(KEY), mean, var)
    expected, batch_mean, batch_var = by_hand(params, BATCH["x"], (mean, var))
    np.testing.assert_allclose(model.outputs(params, BATCH), expected, rtol=1e-4, atol=1e-5)
    train_losses, after = model.train(params, BATCH, KEY)
    in_training = losses.cross_entropy(jnp.asarray(by_hand(params, BATCH["x"])[0]), BATCH["y"])
    np.testing.assert_allclose(train_losses, in_training, rtol=1e-4)
    for new, old, seen in zip(moving(after), (mean, var), (batch_mean, batch_var), strict=True):
        np.testing.assert_allclose(new, MOMENTUM * old + (1 - MOMENTUM) * seen, rtol=1e-4)
    chex.assert_trees_all_equal(after["params"], params["params"])
    assert not np.allclose(moving(after)[0], mean)  # the mutant that evaluates in training mode


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_model_with_statistics_is_pretrained_and_its_statistics_move(kind):
    model = normalised(kind)
    data = in_memory(BATCH, 4)
    out = ju.train(model, optax.adam(0.05), data, key=KEY, epochs=30)
    fresh = model.init(jax.random.split(KEY)[0])
    chex.assert_trees_all_equal_shapes(out.params, fresh)
    assert float(model.loss(out.params, BATCH).mean()) < float(model.loss(fresh, BATCH).mean())
    assert not np.allclose(moving(out.params)[0], moving(fresh)[0])


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_one_step_of_training_is_the_step_written_out_by_hand(kind):
    model = normalised(kind)
    data = in_memory(BATCH, 6)
    out = ju.train(model, optax.sgd(0.1), data, key=KEY, epochs=1, shuffle=False)
    start = model.init(jax.random.split(KEY)[0])
    loss = lambda w: model.train({**start, "params": w}, BATCH, KEY)[0].mean()  # noqa: E731
    gradient = jax.grad(loss)(start["params"])
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, start["params"], gradient)
    chex.assert_trees_all_close(out.params["params"], expected, atol=1e-6)
    statistics = model.train(start, BATCH, KEY)[1]["batch_stats"]
    chex.assert_trees_all_close(out.params["batch_stats"], statistics, atol=1e-6)


def test_an_ensemble_of_models_with_statistics_is_the_models_one_by_one():
    model, data = normalised("nnx"), in_memory(BATCH, 4)
    one = lambda key: ju.train(model, optax.sgd(0.1), data, key=key, epochs=2).params  # noqa: E731
    keys = jax.random.split(KEY, 2)
    together = jax.jit(ju.ensemble(one, how="vmap"))(keys)
    for i in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), one(keys[i]), atol=1e-5
        )


def test_a_score_is_given_the_statistics_of_the_same_epoch():
    model, data = normalised("nnx"), in_memory(BATCH, 6)
    score = lambda p: -(jax.tree.leaves(p["batch_stats"])[0].sum() ** 2)  # noqa: E731
    out = ju.train(model, optax.sgd(0.1), data, key=KEY, epochs=2, score=score)
    # The moving mean starts at 0 and leaves it, so the start scores best: all of it comes back.
    chex.assert_trees_all_equal(out.params, model.init(jax.random.split(KEY)[0]))


def test_a_model_that_never_says_it_trains_keeps_its_statistics():
    model = from_linen(LinenNormalised(), BATCH["x"][:1], eval_kwargs={"train": False})
    out = ju.train(model, optax.sgd(0.1), in_memory(BATCH), key=KEY, epochs=1)
    chex.assert_trees_all_equal(out.params["batch_stats"], model.init(KEY)["batch_stats"])
    chex.assert_tree_all_finite(out.params)


def test_frozen_statistics_are_out_of_reach():
    model = normalised("nnx")
    params = model.init(KEY)
    frozen = freeze_statistics(model, params["batch_stats"])
    assert frozen.train is None and not frozen.statistics
    chex.assert_trees_all_equal(
        frozen.outputs(params["params"], BATCH), model.outputs(params, BATCH)
    )
    chex.assert_trees_all_equal(frozen.init(KEY), params["params"])
    stateless = from_nnx(lambda rngs: Perceptron(rngs))
    assert freeze_statistics(stateless, None) is stateless


def test_a_rebased_model_trains_over_the_smaller_params():
    model = normalised("nnx")
    full = model.init(KEY)
    wrapped = rebase(model, lambda q: q[0], lambda p: (p,))
    ours, after = wrapped.train((full,), BATCH, KEY)
    theirs, expected = model.train(full, BATCH, KEY)
    chex.assert_trees_all_equal((ours, after), (theirs, (expected,)))


# ----------------------------------------------------------------------------- refreshed statistics


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_refreshed_statistics_are_the_average_of_the_batches_whatever_the_momentum(kind, momentum):
    model = normalised(kind, momentum)
    params = with_statistics(model, model.init(KEY), jnp.full(4, 7.0), jnp.full(4, 9.0))
    refreshed = ju.refresh_batch_stats(model, params, in_memory(BATCH, 4))
    first, second = (by_hand(params, BATCH["x"][rows]) for rows in (slice(4), slice(4, 6)))
    for index, ours in enumerate(moving(refreshed), start=1):
        expected = (4 * first[index] + 2 * second[index]) / 6
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal(refreshed["params"], params["params"])


def test_refreshing_leaves_out_rows_of_weight_zero():
    model = normalised("nnx")
    params = model.init(KEY)
    weighted = BATCH | {"weight": jnp.array([1.0, 0, 1, 1, 1, 0])}
    kept = in_memory(BATCH, 6).take(np.array([0, 2, 3, 4]))
    chex.assert_trees_all_close(
        ju.refresh_batch_stats(model, params, from_batches([weighted])),
        ju.refresh_batch_stats(model, params, kept),
        atol=1e-5,
    )


def test_refreshing_changes_nothing_where_there_is_nothing_to_refresh():
    stateless = from_nnx(lambda rngs: Perceptron(rngs))
    params = stateless.init(KEY)
    assert ju.refresh_batch_stats(stateless, params, BATCH) is params
    model = normalised("nnx")
    params = model.init(KEY)
    assert ju.refresh_batch_stats(model, params, in_memory(BATCH).take([])) is params
    still = normalised("nnx", momentum=1.0)
    chex.assert_trees_all_equal(ju.refresh_batch_stats(still, params, BATCH), params)


def test_refreshing_inside_a_trace_is_refused():
    model = normalised("nnx")
    with pytest.raises(TypeError, match="call it outside jit and vmap"):
        jax.jit(lambda p: ju.refresh_batch_stats(model, p, BATCH))(model.init(KEY))


# -------------------------------------------------------------------------------------- randomness


def dropping():
    each = lambda f, y: jnp.square(f - y[:, None, None]).sum(axis=(1, 2))  # noqa: E731
    return from_nnx(Dropping, loss=each)


def test_dropout_is_off_in_evaluation_and_follows_the_key_in_training():
    model, batch = dropping(), {"x": jnp.ones((5, 40)), "y": jnp.zeros(5)}
    params = model.init(KEY)
    np.testing.assert_array_equal(model.outputs(params, batch), jnp.ones((5, 3, 40)))
    one, again, other = (model.train(params, batch, jax.random.key(s))[0] for s in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    assert (one != other).any()
    assert model.train(params, batch, KEY)[1] is not None and not model.statistics


def test_every_random_stream_of_a_module_draws_its_own_numbers():
    shown = lambda f, y: f.reshape(f.shape[0], -1)  # noqa: E731
    model = from_nnx(Dropping, loss=shown)
    batch = {"x": jnp.ones((1, 200)), "y": jnp.zeros(1)}
    masks = [
        np.asarray(model.train(model.init(KEY), batch, jax.random.key(s))[0]).reshape(3, 200) > 0
        for s in (0, 1)
    ]
    for one in range(3):
        assert (masks[0][one] != masks[1][one]).any()  # "noise" too is not the same for ever
        for other in range(one):
            assert (masks[0][one] != masks[0][other]).any()


def test_a_linen_module_with_dropout_trains_with_keys():
    class Dropped(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(x))

    model = from_linen(Dropped(), BATCH["x"][:1], train_kwargs={"train": True})
    params = model.init(KEY)
    one, again, other = (model.train(params, BATCH, jax.random.key(s))[0] for s in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    assert (one != other).any()
    out = ju.train(model, optax.sgd(0.1), in_memory(BATCH, 4), key=KEY, epochs=2)
    chex.assert_tree_all_finite(out.params)


def test_a_module_with_dropout_is_trained_with_a_fresh_mask_at_every_step():
    model = dropping()
    data = in_memory({"x": np.ones((4, 8)), "y": np.zeros(4)}, 4)
    out = ju.train(model, optax.sgd(0.0), data, key=KEY, epochs=3)
    assert len(set(np.asarray(out.info.losses).tolist())) == 3
