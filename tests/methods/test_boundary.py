"""Boundary shrink and expand: closed forms of a linear classifier, and loops written by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.descent.boundary_expand import fresh_row, shadow_loss
from jaxunlearn.methods.descent.boundary_shrink import nearest_wrong, neighbour
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(8)
LINEAR = cases.by_hand(lambda w, b: b["x"] @ w, lambda key: jnp.zeros((4, 3)))


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


def rows(n=40, dtype=None):
    rng = np.random.default_rng(1)
    batch = {"x": rng.standard_normal((n, 4)), "y": rng.integers(0, 3, n).astype(np.int32)}
    return jax.tree.map(jnp.asarray, batch)


# ------------------------------------------------------------------- the neighbour and its label


def test_a_neighbour_is_a_step_against_the_label_inside_the_range(x64):
    """For logits x W the slope is W (softmax - onehot)."""
    w, batch = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3))), rows()
    ranges = ({}, {"low": -0.5}, {"low": -0.5, "high": 0.75, "rounding": 1 / 8})

    @jax.jit
    def all_of(w):
        return [neighbour(LINEAR, w, batch, size=0.25, **options) for options in ranges]

    x, y, w = (np.asarray(a) for a in (batch["x"], batch["y"], w))
    odds = np.exp(x @ w)
    residual = odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[y]
    moved = x + 0.25 * np.sign(residual @ w.T)
    free, clipped, bounded = all_of(w)
    np.testing.assert_allclose(free, moved, rtol=1e-12)
    np.testing.assert_allclose(clipped, np.clip(moved, -0.5, np.inf), rtol=1e-12)
    np.testing.assert_allclose(bounded, np.round(8 * np.clip(moved, -0.5, 0.75)) / 8, rtol=1e-12)


def test_the_true_class_is_excluded_where_the_published_label_would_rehearse_it():
    """A sure model and a small step: the published y' is y again on almost all rows."""
    w = 5 * jnp.eye(4, 3) + jnp.array([[0.0, 0.1, 0.2]])
    batch = {"x": jnp.eye(3, 4) + 0.01, "y": jnp.arange(3)}

    @jax.jit
    def labels(w):
        sizes, kinds = (0.1, 5.0), (False, True)
        return [
            nearest_wrong(LINEAR, w, batch, size=s, exclude_true=k) for s in sizes for k in kinds
        ]

    published, ours, published_across, across = labels(w)
    np.testing.assert_array_equal(published, batch["y"])
    assert (ours != batch["y"]).all() and ours.dtype == batch["y"].dtype
    logits = neighbour(LINEAR, w, batch, size=0.1) @ w
    np.testing.assert_array_equal(ours, np.argsort(logits, axis=1)[:, -2])
    np.testing.assert_array_equal(published_across, across)


def test_a_saturated_example_goes_to_the_runner_up():
    """Its gradient underflows to 0, so it is its own neighbour."""
    w = jnp.eye(4, 3) * jnp.array([[500.0, 100.0, 50.0]])
    batch = {"x": jnp.ones((1, 4)), "y": jnp.array([0])}
    both = jax.jit(lambda w: (neighbour(LINEAR, w, batch), nearest_wrong(LINEAR, w, batch)))
    moved, label = both(w)
    np.testing.assert_array_equal(moved, batch["x"])
    assert label == 1


def test_every_position_gets_a_label_of_its_own():
    model = cases.by_hand(lambda p, b: b["x"], None)
    x = jnp.array([[[3.0, 1.0, 2.0], [1.0, 3.0, 2.5]]])
    batch = {"x": x, "y": jnp.array([[0, 2]])}
    labels = jax.jit(lambda: nearest_wrong(model, (), batch, size=0.01))()
    np.testing.assert_array_equal(labels, [[2, 1]])


# ---------------------------------------------------------------------------------- shrink, whole


def test_a_run_trains_on_the_labels_of_the_first_model(single):
    """Three full batches by hand; with labels of the current model it would end elsewhere."""
    rows = cases.columns()
    request = ju.Request(forget=ju.data.in_memory(rows, 24))
    outputs, loss = single.model.outputs, single.model.loss

    @jax.jit
    def step(params, labeller):
        slope = jax.grad(lambda x: loss(labeller, {**rows, "x": x}).sum())(rows["x"])
        logits = outputs(labeller, {"x": rows["x"] + 0.3 * jnp.sign(slope)})
        labels = jnp.where(jnp.eye(3)[rows["y"]] > 0, -jnp.inf, logits).argmax(axis=1)
        grads = jax.grad(lambda p: loss(p, {**rows, "y": labels}).mean())(params)
        return jax.tree.map(lambda p, g: p - 5.0 * g, params, grads)

    fixed = moving = single.params
    for _ in range(3):
        fixed, moving = step(fixed, single.params), step(moving, moving)
    final = jax.jit(  # a traced size, as in a sweep
        lambda size: (
            unlearn(ju.boundary_shrink(optax.sgd(5.0), epochs=3, size=size), single, request).params
        )
    )
    chex.assert_trees_all_close(final(0.3), fixed, rtol=1e-4, atol=1e-5)
    assert abs(moving[0][0] - fixed[0][0]).max() > 0.1


def test_streams_are_relabelled_as_they_are_read(single):
    method = ju.boundary_shrink(optax.sgd(0.5), epochs=2)
    stream = ju.Request(forget=list(single.request.forget))
    laws.close(unlearn(method, single).params, unlearn(method, single, stream).params)


BUILDERS = {"boundary_shrink": ju.boundary_shrink, "boundary_expand": ju.boundary_expand}
BOTH = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def clouds():
    """Three clouds in four dimensions, and a network that knows them."""
    rng = np.random.default_rng(5)
    y = np.tile(np.arange(3), 32).astype(np.int32)
    x = (2.0 * np.eye(3, 4)[y] + 0.4 * rng.standard_normal((96, 4))).astype(np.float32)
    data, case = ju.data.in_memory({"x": x, "y": y}, 48), cases.dict_case()
    params = ju.train(case.model, optax.adam(0.05), data, key=KEY, epochs=30).params
    return cases.Case(case.model, params, ju.Request(data.take(y == 0), data.take(y != 0)))


@BOTH
def test_a_class_is_forgotten_without_retained_data(name, clouds):
    """Shrink leaves no confidence; expand about half of the margin, which its shadow took along."""
    method = BUILDERS[name](optax.adam(0.02), epochs=30)
    assert "retain" not in method.needs
    out = unlearn(method, clouds)
    forget, retain = clouds.request.forget.arrays, clouds.request.retain.arrays

    def margin(params):
        logits = np.asarray(clouds.model.outputs(params, forget))
        return (logits[:, 0] - logits[:, 1:].max(axis=1)).mean()

    before, after = margin(clouds.params), margin(out.params)
    assert before > 4 and (after < 0 if name == "boundary_shrink" else after < 0.6 * before)
    hits = clouds.model.outputs(out.params, retain).argmax(axis=1) == retain["y"]
    assert hits.mean() > 0.9


@BOTH
def test_a_run_that_diverges_keeps_the_last_finite_params(name, single):
    out = unlearn(BUILDERS[name](optax.sgd(float("inf")), epochs=2), single)
    assert out.info.status == Status.DIVERGED
    laws.bits(out.params, single.params)


# --------------------------------------------------------------------------------- expand, whole


def test_the_shadow_loss_is_the_cross_entropy_of_one_logit_more(x64):
    rng = np.random.default_rng(2)
    w, row, batch = (jnp.asarray(rng.standard_normal(s)) for s in ((4, 3), (5,), (7, 4)))
    batch = {"x": batch}

    def ours(both):
        return shadow_loss(LINEAR, *both, batch).sum()

    def wide(both):
        head, (v, b) = both
        logits = jnp.concatenate([batch["x"] @ head, (batch["x"] @ v + b)[:, None]], axis=1)
        return ju.losses.cross_entropy(logits, jnp.full(7, 3)).sum()

    both = w, (row[:4], row[4])
    both_of = jax.jit(lambda both: [jax.value_and_grad(f)(both) for f in (ours, wide)])
    (value, slope), (expected, theirs) = both_of(both)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    chex.assert_trees_all_close(slope, theirs, rtol=1e-10)


def test_a_run_is_a_wider_head_trained_and_cut_back(single):
    """One layer of four outputs by hand; removing the last one restores shapes and params."""
    forget = single.request.forget.arrays["x"]
    (w,), b = single.params
    v, c = fresh_row(jax.ShapeDtypeStruct((8, 4), jnp.float32), jax.random.split(KEY)[0])
    wide = jnp.concatenate([w, v[:, None]], axis=1), jnp.concatenate([b, c[None]])
    assert abs(v).max() <= 0.5 and wide[0].shape == (4, 4)

    @jax.jit
    def step(p):
        def loss(p):
            return ju.losses.cross_entropy(forget @ p[0] + p[1][None], jnp.full(8, 3)).mean()

        return jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p))

    for _ in range(4):
        wide = step(wide)
    out = unlearn(ju.boundary_expand(optax.sgd(0.5), epochs=4), single)
    expected = ((wide[0][:, :3],), wide[1][:3])
    chex.assert_trees_all_equal_shapes_and_dtypes(out.params, single.params)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-4, atol=1e-5)


def test_a_shadow_that_is_sure_stops_pushing():
    batch = {"x": jnp.ones((2, 4))}
    sure = jnp.zeros(4), jnp.asarray(200.0)
    total = jax.jit(jax.value_and_grad(lambda w: shadow_loss(LINEAR, w, sure, batch).sum()))
    value, slope = total(jnp.eye(4, 3))
    assert value == 0 and (slope == 0).all()


# ------------------------------------------------------------------------------------- refusals


def request(**columns):
    return ju.Request(forget={"x": np.ones((2, 4), np.float32), "y": np.array([0, 1])} | columns)


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        (-1.0, {"low": 0.0, "high": 1.0}, r"in \[low, high\] = \[0.0, 1.0\].*from -1 .*normalised"),
        (3.0, {"high": 1.0}, r"\[None, 1.0\], but the forget set has them from 1 to 3"),
    ],
)
def test_inputs_outside_the_range_are_refused_before_they_are_clipped(x, given, message):
    inputs = np.array([[1.0, 1, 1, 1], [1, 1, x, 1]], np.float32)
    with pytest.raises(ValueError, match=message):
        ju.boundary_shrink(**given).unlearn(LINEAR, jnp.zeros((4, 3)), request(x=inputs), KEY)


def test_what_has_no_wrong_class_is_refused():
    one = cases.by_hand(lambda w, b: b["x"] @ w, None)
    with pytest.raises(ValueError, match="at least 2 classes, got labels int32.* for 1 classes"):
        nearest_wrong(one, jnp.zeros((4, 1)), {"x": jnp.ones((2, 4)), "y": jnp.zeros(2, int)})
    with pytest.raises(ValueError, match="at least 2 classes, got labels float32.* no classes"):
        nearest_wrong(one, jnp.zeros((4, 3)), {"x": jnp.ones((2, 4)), "y": jnp.zeros((2, 3))})


def test_tokens_have_no_neighbours():
    tokens = {"x": jnp.array([0, 1]), "y": jnp.array([0, 1])}
    with pytest.raises(TypeError, match="moves the inputs .* must be float, got int32"):
        neighbour(LINEAR, jnp.zeros((4, 3)), tokens)


def test_a_shadow_needs_one_vector_of_features_and_one_of_logits():
    with pytest.raises(ValueError, match=r"features must return \(n, d\).*got \(2, 3, 4\)"):
        fresh_row(jax.ShapeDtypeStruct((2, 3, 4), jnp.float32), KEY)
    several = cases.by_hand(lambda p, b: jnp.zeros((2, 5, 3)), None)
    with pytest.raises(ValueError, match=r"logits \(n, C\), got shape \(2, 5, 3\)"):
        shadow_loss(several, (), (jnp.zeros(4), jnp.zeros(())), {"x": jnp.ones((2, 4))})


@pytest.mark.parametrize(
    ("builder", "given", "message"),
    [
        (ju.boundary_shrink, {"epochs": -1}, "boundary_shrink: epochs must be .* >= 0, got -1"),
        (ju.boundary_shrink, {"size": 0.0}, "boundary_shrink: size must be .* > 0, got 0.0"),
        (ju.boundary_shrink, {"low": 1.0, "high": 0.0}, "high must be .* > 1, got 0.0"),
        (ju.boundary_shrink, {"low": float("inf")}, "low must be a finite number, got inf"),
        (ju.boundary_shrink, {"rounding": 0.0}, "rounding must be .* > 0, got 0.0"),
        (ju.boundary_expand, {"epochs": -1}, "boundary_expand: epochs must be .* >= 0, got -1"),
    ],
)
def test_constants_outside_their_range_are_refused(builder, given, message):
    with pytest.raises(ValueError, match=message):
        builder(**given)
