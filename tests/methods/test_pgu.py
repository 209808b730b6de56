"""Projected-gradient unlearning: a loop written by hand, layers that keep their answers, Grams that
stand in for retained data, and the rules by which a run ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.methods.descent import subspaces
from jaxunlearn.methods.descent.pgu import Ending, pgu
from jaxunlearn.methods.descent.stored_grams import load_grams, save_grams
from jaxunlearn.methods.descent.subspaces import (
    core_rank,
    core_spaces,
    grams_of,
    without,
)
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(2)
RNG = np.random.default_rng(5)


def unlearn(method, case, request=None, params=None):
    params = case.params if params is None else params
    return method.unlearn(case.model, params, request or case.request, KEY)


def data(x, y, size=64):
    ids = RNG.integers(1 << 30, size=len(x))
    return ju.data.in_memory({"x": x, "y": y.astype(np.int32), "id": ids.astype(np.int32)}, size)


def everything_of(case):
    return ju.data.concatenate(case.request.forget, case.request.retain)


# ------------------------------------------------------------------------------- core spaces


def test_the_rank_counts_directions_up_to_a_share_of_either_convention():
    s = np.array([5.0, 3.0, 1.5, 0.4, 0.1])
    for energy, weights in (("singular", s), ("squared", s**2)):
        share = np.cumsum(weights) / weights.sum()
        for rho in (0.0, 0.3, 0.7, 0.9, 0.99):
            ours = core_rank(jnp.asarray(s**2, jnp.float32), rho, energy)
            assert ours == (share <= rho).sum(), (energy, rho)
        assert core_rank(jnp.asarray(s**2), 1.0, energy) == 5
    assert core_rank(jnp.asarray(s**2), 0.97) > core_rank(jnp.asarray(s**2), 0.97, "squared")
    assert core_rank(jnp.zeros(3), 1.0) == 0  # nothing enters: nothing is kept
    swept = jax.vmap(lambda rho: core_rank(jnp.asarray(s**2), rho))(jnp.array([0.0, 0.85, 1.0]))
    np.testing.assert_array_equal(swept, [0, 2, 5])


def test_a_core_space_is_that_of_the_leading_right_singular_vectors_of_the_inputs(x64):
    """Of the matrix of inputs itself, by SciPy; leaves without a Gram are kept as a whole."""
    linalg = pytest.importorskip("scipy.linalg")
    x = RNG.standard_normal((9, 5)) * np.array([4.0, 2.0, 1.0, 0.5, 0.1])
    params = {"w": jnp.ones((5, 2)), "b": jnp.ones(2)}
    model = ju.Model(outputs=lambda p, b: b["x"] @ p["w"] + p["b"][None], loss=None)
    grams = grams_of(model, params, ju.data.in_memory({"x": x}))
    core = core_spaces(grams, params, 0.8)
    s, vt = linalg.svd(x)[1:]
    k = int((np.cumsum(s) / s.sum() <= 0.8).sum())
    assert core.ranks == {"['w']": k} and core.deficits["['w']"] < 1e-12
    kept = core.basis["w"].within(jnp.eye(5))
    np.testing.assert_allclose(kept, vt[:k].T @ vt[:k], atol=1e-10)
    frozen = ju.transforms.project_out(core.basis).update(params, optax.EmptyState())[0]
    np.testing.assert_array_equal(frozen["b"], 0)
    assert jnp.abs(frozen["w"]).max() > 0


def test_groups_share_one_space(x64):
    """Two layers in one leaf: what enters either of them is kept for both."""
    weights = jnp.asarray(0.3 * RNG.standard_normal((2, 6, 6)))
    x = np.zeros((2, 6))
    x[:, :2] = RNG.standard_normal((2, 2))

    def outputs(params, batch):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch["x"], params)[0]

    model = ju.Model(outputs=outputs, loss=None)
    grams = grams_of(model, weights, ju.data.in_memory({"x": x}))
    assert grams[""].matrix.shape == (2, 6, 6)
    core = core_spaces(grams, weights, 1.0)
    assert core.ranks[""] == 4  # two inputs of each of two layers
    step = jnp.asarray(RNG.standard_normal((2, 6, 6)))
    step = ju.transforms.project_out(core.basis).update(step, optax.EmptyState())[0]
    assert jnp.abs(step).max() > 0.1
    before = outputs(weights, {"x": x})
    np.testing.assert_allclose(outputs(weights + step, {"x": x}), before, atol=1e-9)


# ------------------------------------------------------------------- the run, written by hand


OPTIONS = {"epochs": 20, "rho": 0.6, "decay": 0.2}
RATES = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 200.0, np.inf)


def padded(part, garbage=9.0):
    """The rows, and three of weight 0."""
    n = len(part["y"])
    x = np.concatenate([part["x"], np.full((3, 4), garbage, np.float32)])
    y = np.concatenate([part["y"], [2, 2, 2]]).astype(np.int32)
    return ju.data.in_memory({"x": x, "y": y, "weight": np.r_[np.ones(n), np.zeros(3)]}, 64)


@pytest.fixture(scope="module")
def known():
    """A linear model that knows its forget set, and held-out examples a little worse."""
    model = cases.tuple_case().model
    columns = cases.columns()
    noise = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    held = {"x": columns["x"][np.arange(40) % 8] + 1.5 * noise, "y": np.zeros(40, np.int32)}
    start = ((0.1 * jnp.ones((4, 3)),), jnp.zeros(3))
    everything = ju.data.in_memory(columns, 64)
    fitted = ju.fit(
        ju.objectives.mean_loss(model), optax.adam(0.1), start, everything, key=KEY, epochs=60
    )
    request = ju.Request(
        forget=padded({k: v[:8] for k, v in columns.items()}),
        retain=padded({k: v[8:] for k, v in columns.items()}),
        held_out=padded(held),
    )
    return cases.Case(model, fitted.params, request)


def counting(part):
    rows = np.asarray(part["weight"]) > 0
    return np.float64(part["x"])[rows], np.asarray(part["y"])[rows]


def by_hand(case, rate, epochs=20, weights=(1.0, 0.2, 0.05)):
    """w after 0 .. epochs full-batch steps: a dense projector, NumPy in float64."""
    (forget, labels), (retain, _) = counting(case.request.forget), counting(case.request.retain)
    values, vectors = np.linalg.eigh(retain.T @ retain)
    s, vectors = np.sqrt(values[::-1].clip(0)), vectors[:, ::-1]
    u = vectors[:, : (np.cumsum(s) / s.sum() <= OPTIONS["rho"]).sum()]
    dense = np.eye(len(u)) - u @ u.T
    assert 0 < u.shape[1] < 4

    def slope(w, b):
        """d/dz of the loss in closed form, then the chain rule."""
        z = forget @ w + b[None]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        own = np.eye(3)[labels]
        q = (p * own).sum(axis=1, keepdims=True)
        gain = -(p * np.log(p)).sum(axis=1, keepdims=True)
        unlikely = q * (own - p) / (1 - q + weights[2])
        uncertain = -p * (np.log(p) + gain)
        return forget.T @ (weights[0] * unlikely - weights[1] * uncertain) / len(forget)

    (w,), b = jax.tree.map(np.float64, case.params)
    path = [w]
    for e in range(epochs):
        rate_now = rate * OPTIONS["decay"] ** (e / epochs)
        path.append(path[-1] - rate_now * dense @ slope(path[-1], b))
    return path


def accuracy(w, b, part):
    x, y = counting(part)
    return float(((x @ np.float64(w) + np.float64(b)).argmax(axis=1) == y).mean())


@pytest.fixture(scope="module")
def program(known):
    """request -> the run at each of `RATES`: every strength is an argument of one program."""
    strengths = {"decay": 0.2, "rho": 0.6, "offset": 0.05, "entropy_weight": 0.2}

    def one(rate, strengths, request):
        method = pgu(optax.scale(-rate), epochs=OPTIONS["epochs"], **strengths)
        out = method.unlearn(known.model, known.params, request, KEY)
        return out.params, out.info

    many = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    swept = {name: jnp.full(len(RATES), value) for name, value in strengths.items()}
    return lambda request: many(jnp.array(RATES), swept, request)


@pytest.fixture(scope="module")
def runs(program, known):
    params, info = program(known.request)
    return [jax.tree.map(lambda a: a[i], (params, info)) for i in range(len(RATES))]  # noqa: B023


def test_it_is_the_loop_written_by_hand_up_to_the_rule_that_ends_it(known, runs):
    """Projection, schedule, loss, accuracies; the nearer of the two models at the crossing."""
    kept, bias = [], known.params[1]
    for rate, (params, info) in zip(RATES[:6], runs, strict=False):
        path = by_hand(known, rate)
        curves = {
            field: np.array([accuracy(w, bias, getattr(known.request, field)) for w in path])
            for field in ("forget", "held_out")
        }
        gap = curves["held_out"] - curves["forget"]
        if gap.max() <= 0:
            assert info.ending == Ending.COMPLETED and info.epoch == 20
            np.testing.assert_allclose(params[0][0], path[-1], rtol=1e-3, atol=1e-3)
            continue
        fired = int(np.argmax(gap > 0))
        back = bool(abs(gap[fired - 1]) < abs(gap[fired]))
        kept.append(back)
        assert info.ending == Ending.STOPPED and info.status == Status.STOPPED and fired > 1
        assert info.epoch == fired - back and info.steps == fired
        for field, curve in curves.items():
            ours = np.asarray(info.accuracies[field])
            np.testing.assert_allclose(ours[: fired + 1], curve[: fired + 1], atol=1e-6)
            assert np.isnan(ours[fired + 1 :]).all()
        np.testing.assert_allclose(params[0][0], path[fired - back], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(params[1], bias)
    assert set(kept) == {True, False}, "both sides of a crossing should be seen"


def test_a_rule_that_fires_after_one_epoch_says_so(runs):
    _, info = runs[RATES.index(200.0)]
    assert info.ending == Ending.TOO_FAST and info.steps == 1
    assert info.accuracies["forget"][1] < info.accuracies["held_out"][1]


def test_a_run_that_diverges_keeps_the_last_finite_params(runs, known):
    params, info = runs[RATES.index(np.inf)]
    assert info.status == Status.DIVERGED and info.steps == 0
    assert info.ending == Ending.COMPLETED
    laws.bits(params, known.params)


def test_where_nothing_has_to_be_forgotten_nothing_is_done(program, known):
    """Forget examples with labels that the model never believed."""
    forget, held = known.request.forget, known.request.held_out
    wrong = forget.replace(y=np.ones(11, np.int32))
    believed = known.model.outputs(known.params, held.arrays).argmax(axis=1).astype(jnp.int32)
    request = known.request._replace(forget=wrong, held_out=held.replace(y=believed))
    params, info = program(request)
    assert (info.ending == Ending.AT_ONCE).all() and (info.epoch == 0).all()
    laws.bits(jax.tree.map(lambda a: a[0], params), known.params)


def test_rows_of_weight_zero_count_nowhere(program, known, runs):
    """Neither in the loss, nor in the Grams, nor in the accuracies that end a run."""

    def changed(part):
        n = part.num_examples - 3
        return padded({c: np.asarray(part[c])[:n] for c in ("x", "y")}, garbage=-50.0)

    request = ju.Request(*(None if d is None else changed(d) for d in known.request))
    params, info = program(request)
    laws.bits(jax.tree.map(lambda a: a[3], params), runs[3][0])
    np.testing.assert_array_equal(info.epoch[3], runs[3][1].epoch)


def test_the_rate_falls_epoch_by_epoch_and_not_batch_by_batch(known):
    """Two batches an epoch, updates all ones: the way is the sum of the schedule."""
    forget = ju.data.in_memory(known.request.forget.arrays, 8)
    ones = optax.stateless(lambda g, p: jax.tree.map(jnp.ones_like, g))
    method = pgu(ones, epochs=2, rho=0.0, decay=0.01, stop=None)
    out = unlearn(method, known, known.request._replace(forget=forget))
    np.testing.assert_allclose(
        out.params[0][0] - known.params[0][0], np.full((4, 3), 2 + 2 * 0.1), rtol=1e-5
    )
    assert out.info.losses.shape == (4,) and out.info.epoch == 2 and out.info.accuracies == {}


@pytest.mark.parametrize("field", ["retain", pytest.param("held_out", marks=pytest.mark.slow)])
def test_a_class_is_forgotten_until_the_rest_suffers(known, field):
    """The last model whose accuracy had not dropped by more than the allowance, on either data."""
    x, y = (np.concatenate([known.request.forget[c][:8], known.request.retain[c][:16]])
            for c in ("x", "y"))  # fmt: skip
    mixed = np.arange(24) % 3 == 0  # of all classes, so that the rest must suffer
    rest = padded({"x": x[~mixed], "y": y[~mixed]})
    near = rest.replace(x=rest["x"] + 1e-3)
    request = ju.Request(padded({"x": x[mixed], "y": y[mixed]}), rest, held_out=near)
    method = pgu(optax.sgd(1.0), stop=field, drop=0.15, epochs=20, rho=0.0)
    assert method.needs == {"forget", "retain", "labels", "key", field}
    out = unlearn(method, known, request)
    (curve,) = out.info.accuracies.values()
    fired = int(out.info.steps)
    assert out.info.ending == Ending.STOPPED and out.info.epoch == fired - 1 > 0
    assert (curve[0] - curve[:fired] <= 0.15 + 1e-6).all() and curve[0] - curve[fired] > 0.15
    (w,), b = out.params
    np.testing.assert_allclose(accuracy(w, b, getattr(request, field)), curve[fired - 1], atol=1e-6)


# ------------------------------------------------------------------- what must not move, does not


@pytest.fixture
def plane(x64):
    """A linear layer in six dimensions; retained inputs fill a plane, forget inputs leave it."""
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    retain = rng.standard_normal((12, 2)) @ axes[:, :2].T
    inside = rng.standard_normal((8, 2)) @ axes[:, :2].T
    outside = inside + rng.standard_normal((8, 3)) @ axes[:, 2:5].T
    labels = rng.integers(3, size=12)
    params = {"w": jnp.asarray(rng.standard_normal((6, 3))), "b": jnp.asarray([-0.0, 0.1, 0.2])}

    def case(forget):
        request = ju.Request(forget=data(forget, labels[:8]), retain=data(retain, labels))
        return cases.Case(LINEAR, params, request)

    return case(outside), case(inside)


def affine(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


LINEAR = cases.by_hand(affine, None)


@functools.cache
def descending(adam):
    """(params, request) -> the run with rho = 1, and with rho = 0, in one program."""
    tx = optax.adam(0.1) if adam else optax.sgd(1.0)

    def one(rho, params, request):
        method = pgu(tx, rho=rho, epochs=10, stop=None, decay=1.0)
        out = method.unlearn(LINEAR, params, request, KEY)
        return out.params, out.info

    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


def kept_and_free(case, adam=False):
    params, info = descending(adam)(jnp.array([1.0, 0.0]), case.params, case.request)
    return [jax.tree.map(lambda a: a[i], (params, info)) for i in (0, 1)]  # noqa: B023


@pytest.mark.parametrize("adam", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_predictions_inside_the_kept_span_do_not_move_while_the_forget_loss_falls(plane, adam):
    """And without the projection they do: rho = 0 keeps no direction."""
    case, inside = plane
    (params, info), (free, other) = kept_and_free(case, adam)
    assert info.ranks["['w']"] == 2 and other.ranks["['w']"] == 0
    for part in (case.request.retain, inside.request.forget):  # any input of the span
        before, after, moved = (affine(p, part.arrays) for p in (case.params, params, free))
        np.testing.assert_allclose(after, before, atol=1e-9)
        assert jnp.abs(moved - before).max() > 0.1
    assert info.losses[-1] < info.losses[0] - 0.1
    np.testing.assert_array_equal(params["b"], case.params["b"])


def test_what_looks_like_the_rest_to_a_linear_layer_cannot_be_forgotten_there(plane):
    _, inside = plane
    (params, _), (free, _) = kept_and_free(inside)
    np.testing.assert_allclose(params["w"], inside.params["w"], atol=1e-9)
    assert jnp.abs(free["w"] - inside.params["w"]).max() > 0.1


def test_a_core_space_of_nothing_is_plain_descent(plane):
    case, _ = plane
    weight, forget = case.params["w"], case.request.forget.arrays

    def loss(w):
        logits = affine(case.params | {"w": w}, forget)
        unlikely = ju.losses.unlikelihood(logits, forget["y"], 0.05)
        return (unlikely - 0.2 * ju.losses.entropy(logits)).mean()

    step = jax.jit(lambda w: w - jax.grad(loss)(w))
    for _ in range(10):
        weight = step(weight)
    np.testing.assert_allclose(kept_and_free(case)[1][0]["w"], weight, rtol=1e-9)


# ------------------------------------------------------------------------------ Grams in store


def test_stored_grams_stand_in_for_the_retained_data(known, stored, retain_free):
    """The loop by hand measures the retained rows themselves; the run never holds them."""
    matrices = {p: g.matrix for p, g in stored.items()}
    params, info = retain_free(known.params, known.request.forget, matrices, jnp.float32(24), 0.6)
    path = by_hand(known, 1.0, epochs=3)
    np.testing.assert_allclose(params[0][0], path[-1], rtol=1e-4, atol=1e-4)
    assert info.ending == Ending.COMPLETED and max(map(float, info.deficits.values())) < 1e-5


@pytest.mark.slow
def test_stored_grams_stand_in_for_the_retained_data_of_a_network(case):
    stored = grams_of(case.model, case.params, everything_of(case))
    measured = pgu(optax.sgd(0.5), rho=0.7, epochs=2, stop=None)
    kept = pgu(optax.sgd(0.5), rho=0.7, epochs=2, stop=None, grams=stored)
    assert measured.needs == {"forget", "retain", "labels", "key"}
    assert kept.needs == {"forget", "labels", "key"}
    one, other = unlearn(measured, case), unlearn(kept, case)
    laws.close(one.params, other.params)
    for path, gram in one.info.grams.items():
        ours = other.info.grams[path]
        np.testing.assert_allclose(ours.matrix, gram.matrix, rtol=1e-4, atol=1e-4)
        assert ours.count == 16 and float(other.info.deficits[path]) < 1e-5
    assert set(one.info.ranks) == {"['body']['w']", "['head']['w']"}


def test_a_difference_of_grams_is_the_gram_of_the_difference_in_chunks_too(plane):
    case, _ = plane
    whole, gone, rest = (
        grams_of(case.model, case.params, part, micro_batch=size)
        for part, size in (
            (everything_of(case), 5),
            (case.request.forget, None),
            (case.request.retain, 3),
        )
    )
    left, rest = without(whole, gone)["['w']"], rest["['w']"]
    assert left.count == rest.count == 12
    np.testing.assert_allclose(left.matrix, rest.matrix, rtol=1e-8, atol=1e-10)
    values = np.linalg.eigvalsh(left.matrix)
    assert values[0] > -1e-10 * values[-1]
    retain = np.asarray(case.request.retain["x"])
    np.testing.assert_allclose(rest.matrix, retain.T @ retain, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def stored(known):
    return grams_of(known.model, known.params, everything_of(known))


@pytest.fixture(scope="module")
def retain_free(known, stored):
    """(params, request, matrices in store, rho) -> a run from stored Grams, in one program."""

    def one(params, forget, matrices, counts, rho):
        grams = {p: g._replace(matrix=matrices[p], count=counts) for p, g in stored.items()}
        method = pgu(optax.sgd(1.0), rho=rho, epochs=3, decay=0.2, stop=None, grams=grams)
        out = method.unlearn(known.model, params, ju.Request(forget), KEY)
        return out.params, out.info

    return jax.jit(one)


def test_a_request_leaves_the_grams_of_the_next(known, stored, retain_free):
    """Of a linear model they do not depend on what the first request changed."""
    columns = {c: np.asarray(known.request.forget[c])[:8] for c in ("x", "y")}
    first, second = (
        padded({c: v[rows] for c, v in columns.items()}) for rows in (slice(4), slice(4, 8))
    )
    matrices = {p: g.matrix for p, g in stored.items()}
    params, info = retain_free(known.params, first, matrices, jnp.float32(24), 0.6)
    assert laws.different(params, known.params)
    left = {p: g.matrix for p, g in info.grams.items()}
    params, info = retain_free(params, second, left, jnp.float32(20), 0.6)
    retain = counting(known.request.retain)[0]
    for gram in info.grams.values():
        np.testing.assert_allclose(gram.matrix, retain.T @ retain, rtol=1e-4, atol=1e-3)
        assert gram.count == 16


def test_a_rank_that_is_full_leaves_every_bit(known, stored, retain_free):
    matrices = {p: g.matrix for p, g in stored.items()}
    for rho, moves in ((1.0, False), (0.6, True)):
        params, info = retain_free(
            known.params, known.request.forget, matrices, jnp.float32(24), rho
        )
        assert laws.different(params, known.params) == moves
        assert (info.ranks["[0][0]"] == 4) != moves
    method = pgu(stop=None, grams=stored)
    later = pgu(stop=None, grams=info.grams)  # after a trip through a compiled program
    assert method.needs == later.needs


def test_grams_of_different_things_are_indefinite_and_nothing_is_done(known, stored, retain_free):
    """As if the data had been darker when the full Gram was measured."""
    dark = {p: g._replace(matrix=0.05 * g.matrix) for p, g in stored.items()}
    matrices = {p: g.matrix for p, g in dark.items()}
    params, info = retain_free(known.params, known.request.forget, matrices, jnp.float32(24), 0.6)
    assert info.ending == Ending.INDEFINITE and max(map(float, info.deficits.values())) > 0.1
    laws.bits(params, known.params)
    gone = grams_of(known.model, known.params, known.request.forget)
    with pytest.raises(ValueError, match="is indefinite, down to -.*no augmentation"):
        without(dark, gone)


def test_stored_grams_survive_the_disk_and_serve_their_own_params_only(known, stored, tmp_path):
    path = save_grams(tmp_path / "grams", stored, known.params)
    back = load_grams(path, known.params)
    assert {p: g.axes for p, g in back.items()} == {p: g.axes for p, g in stored.items()}
    arrays = [[(g.matrix, g.count) for g in grams.values()] for grams in (back, stored)]
    laws.bits(*arrays)
    with pytest.raises(FileExistsError):
        save_grams(path, stored, known.params)
    other = jax.tree.map(lambda p: p + 1, known.params)
    with pytest.raises(ValueError, match="for other parameters than these. Compute them again"):
        load_grams(path, other)
    with pytest.raises(ValueError, match="holds no Grams. save_grams writes them"):
        load_grams(checkpoint.save(tmp_path / "other", known.params), known.params)


@pytest.mark.slow
def test_a_mask_finds_its_part_of_stored_grams(case):
    stored = grams_of(case.model, case.params, everything_of(case))
    mask = {"body": False, "head": True}
    options = {"rho": 0.7, "epochs": 1, "stop": None}
    one, other = (
        unlearn(ju.masked(pgu(optax.sgd(0.5), **options, **o), mask), case)
        for o in ({}, {"grams": stored})
    )
    laws.close(one.params, other.params)
    laws.bits(one.params["body"], case.params["body"])


@pytest.mark.slow
def test_streams_end_by_the_same_rule(known, runs):
    lists = ju.Request(*(None if d is None else [dict(d.arrays)] for d in known.request))
    for i in (0, 3):
        out = unlearn(pgu(optax.sgd(RATES[i]), **OPTIONS), known, lists)
        assert out.info.epoch == runs[i][1].epoch and out.info.ending == runs[i][1].ending
        laws.close(out.params, runs[i][0])


@pytest.mark.slow
def test_a_score_of_ones_own_chooses_among_the_epochs(known):
    """The first epochs are the best where the score is nearness to the start."""
    start = known.params[0][0]
    near = ju.keep_best(
        pgu(optax.sgd(1.0), epochs=2, stop=None), lambda m, p: -jnp.abs(p[0][0] - start).max()
    )
    out = unlearn(near, known)
    laws.bits(out.params, known.params)
    assert out.info.best_score == 0


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 1.5}, "pgu: rho must be .* <= 1, got 1.5"),
        ({"rho": float("nan")}, "pgu: rho must be a finite number"),
        ({"decay": 0.0}, "pgu: decay must be .*> 0, got 0"),
        ({"offset": 0.0}, "pgu: offset must be .*> 0"),
        ({"entropy_weight": -1.0}, "pgu: entropy_weight must be .*>= 0"),
        ({"unlikelihood_weight": -1.0}, "pgu: unlikelihood_weight must be .*>= 0"),
        ({"drop": 2.0}, "pgu: drop must be .*<= 1"),
        ({"energy": "sum"}, r"pgu: energy must be among \('singular', 'squared'\), got 'sum'"),
        ({"stop": "chance"}, "pgu: stop must be among .*'gap', 'retain', 'held_out'.* 'chance'"),
        ({"epochs": -1}, "pgu: the length of a run must be >= 0, got epochs=-1"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pgu(**options)


def test_stored_grams_that_do_not_fit_are_refused(known, stored):
    with pytest.raises(TypeError, match=r"pgu: grams must be those of the whole.*got list"):
        pgu(grams=[1])
    with pytest.raises(TypeError, match="grams must be those of the whole"):
        pgu(grams={"w": np.eye(2)})
    few = {p: g._replace(count=jnp.float32(8)) for p, g in stored.items()}
    with pytest.raises(ValueError, match="pgu: the grams hold 8 examples, no more than the 8 to"):
        unlearn(pgu(grams=few, stop=None), known)
    with pytest.raises(ValueError, match=r"there is none for params\[0\]\[0\], only \[\]"):
        unlearn(pgu(grams={}, stop=None), known)
    small = {p: g._replace(matrix=jnp.eye(3)) for p, g in stored.items()}
    with pytest.raises(ValueError, match=r"has shape \(3, 3\).*expected \(4, 4\) over \(0,\)"):
        unlearn(pgu(grams=small, stop=None), known)
    with pytest.raises(ValueError, match="core_spaces: energy must be among"):
        subspaces.core_spaces(stored, known.params, 0.5, "sum")


# ------------------------------------------------------------------------------------- behaviour


def blobs(overlap):
    """Four clusters in thirty dimensions; 3 is to go, half of its directions its own, or all."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    labels = np.repeat(np.arange(4), 60)
    inner = rng.standard_normal((240, 10))
    inner[labels < 3] += 4 * np.eye(10)[labels[labels < 3]]
    x = inner @ basis[:, :10].T
    own = slice(5, 15) if overlap else slice(10, 20)
    x[labels == 3] = (rng.standard_normal((60, 10)) + 4 * np.eye(10)[9]) @ basis[:, own].T
    return x.astype(np.float32), labels.astype(np.int32)


def hidden_layer(params, batch):
    return jax.nn.relu(batch["x"] @ params["w"] + params["b"][None]) @ params["v"]


@functools.cache
def learner():
    """What both cases share, and so compile once."""
    model = cases.by_hand(hidden_layer, None)
    keys = jax.random.split(jax.random.key(0))
    start = {
        "w": jax.random.normal(keys[0], (30, 64)) / 30**0.5,
        "b": jnp.zeros(64),
        "v": jax.random.normal(keys[1], (64, 4)) / 8,
    }
    method = pgu(optax.sgd(0.1), rho=0.95, epochs=100, decay=1.0, stop=None)
    return model, start, ju.objectives.mean_loss(model), optax.adam(0.01), method


@pytest.mark.parametrize("overlap", [False, True], ids=["apart", "overlapping"])
def test_a_cluster_is_forgotten_and_the_rest_keeps_its_loss(overlap):
    """In overlapping directions only the forgetting is promised."""
    model, start, objective, tx, method = learner()
    x, y = blobs(overlap)
    whole = ju.data.in_memory({"x": x, "y": y}, 240)
    params = ju.fit(objective, tx, start, whole, key=KEY, epochs=25).params
    forget, retain = whole.take(y == 3), whole.take(y < 3)
    out = method.unlearn(model, params, ju.Request(forget, retain), KEY)

    def right(p):
        return float((hidden_layer(p, forget.arrays).argmax(axis=1) == 3).mean())

    before, after = (float(model.loss(p, retain.arrays).mean()) for p in (params, out.params))
    print("retain", before, after, "forget", right(params), right(out.params), out.info.ranks)
    assert right(params) > 0.98
    assert right(out.params) < 0.05
    if not overlap:
        assert abs(after - before) < 1e-4
