"""The one loop: whatever way it is driven, the same numbers come out, and every row has its say."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxunlearn as ju
from jaxunlearn import losses, objectives
from jaxunlearn.data.streams import Stream, from_batches, in_memory
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective
from jaxunlearn.training import FitState, Status, Step, fit, train

KEY = jax.random.key(0)
N, BATCH_SIZE = 10, 4  # 3 steps an epoch, the last one of 2 rows


def rows(n=N, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2)).astype(np.float32)
    return {"x": x, "y": (x @ np.float32([1, -2]) + 0.5).astype(np.float32)}


def predict(p, batch):
    return batch["x"] @ p["w"] + p["b"]


LINEAR = Model(
    outputs=predict,
    loss=lambda p, batch: losses.squared_error(predict(p, batch), batch["y"]),
    init=lambda key: {"w": jax.random.normal(key, (2,)), "b": jnp.zeros(())},
)
MEAN = objectives.mean_loss(LINEAR)
START = {"w": jnp.array([0.3, 0.1]), "b": jnp.zeros(())}
ADAM = optax.adam(0.1)
DATA = in_memory(rows(), BATCH_SIZE)


def noisy_loss(params, batches, key):
    """A loss that draws numbers, so that a stale or repeated key would show."""
    noise = jax.random.normal(key, (2,))
    return losses.weighted_mean(LINEAR.loss(params, batches["data"]), batches["data"]) + (
        noise @ params["w"]
    )


NOISY = objectives.stateless(noisy_loss)


def run(objective=NOISY, tx=ADAM, params=START, data=DATA, key=KEY, **options):
    return fit(objective, tx, params, data, key=key, **({"epochs": 4} | options))


def seen_rows(losses_of_step, stream="data"):
    """An objective that writes down the ids of the rows it is shown, per step: (steps, rows)."""
    total, width = losses_of_step

    def loss(params, batches, state, key):
        seen, place = state
        batch = batches[stream]
        ids = jnp.where(batch["weight"] > 0, batch["id"], -1)
        return 0.0 * params.sum(), (seen.at[place].set(ids), place + 1)

    return Objective(lambda p: (jnp.full((total, width), -1), 0), loss)


def orders(data, epochs, stream="data", width=BATCH_SIZE, **options):
    streams = data if isinstance(data, dict) else {"data": data}
    first = next(iter(streams.values()))
    objective = seen_rows((epochs * first.num_batches, width), stream)
    out = fit(objective, optax.sgd(0.0), jnp.zeros(1), data, key=KEY, epochs=epochs, **options)
    return np.asarray(out.state.objective[0])


# --------------------------------------------------------------------- one run, driven in many ways


def test_compiled_eager_chunked_and_resumed_runs_have_the_same_bits():
    whole = run(score=lambda p: -p["b"])
    compiled = jax.jit(lambda key: run(key=key, score=lambda p: -p["b"]))(KEY)
    chunked = run(score=lambda p: -p["b"], progress=lambda step: None)
    half = run(score=lambda p: -p["b"], epochs=2)
    resumed = run(score=lambda p: -p["b"], params=None, resume=half.state)
    for other in (compiled, chunked, resumed):
        chex.assert_trees_all_equal(other.params, whole.params)
        chex.assert_trees_all_equal(other.state, whole.state)
    chex.assert_trees_all_equal(compiled.info, whole.info)
    joined = np.concatenate([half.info.losses, resumed.info.losses])
    np.testing.assert_array_equal(joined, whole.info.losses)
    assert whole.info.losses.shape == (12,) and int(whole.info.steps) == 12


def test_a_run_resumed_in_mid_epoch_has_the_same_bits():
    whole, part = run(steps=8, epochs=None), run(steps=5, epochs=None)
    resumed = run(steps=8, epochs=None, resume=part.state)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    one_short = run(steps=7, epochs=None)  # the control: one step fewer is not the same run
    assert (one_short.params["w"] != whole.params["w"]).all()


def test_a_state_saved_as_numpy_arrays_resumes_too():
    part = run(epochs=2)
    saved = FitState(*jax.tree.map(np.asarray, tuple(part.state)))
    chex.assert_trees_all_equal(run(resume=saved).params, run().params)


def test_runs_vmapped_over_params_and_keys_are_the_runs_one_by_one():
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(LINEAR.init)(keys)
    together = jax.jit(jax.vmap(lambda p, k: run(params=p, key=k)))(params, keys)
    for i in range(3):
        alone = run(params=jax.tree.map(lambda a, i=i: a[i], params), key=keys[i])
        ours = jax.tree.map(lambda a, i=i: a[i], (together.params, together.info))
        chex.assert_trees_all_close(ours, (alone.params, alone.info), rtol=1e-5, atol=1e-6)


def test_a_learning_rate_may_be_vmapped_over():
    rates = jnp.array([0.01, 0.1])
    swept = jax.vmap(lambda rate: run(tx=optax.sgd(rate), epochs=1).params["w"])(rates)
    for rate, w in zip(rates, swept, strict=True):
        alone = run(tx=optax.sgd(float(rate)), epochs=1).params["w"]
        np.testing.assert_allclose(w, alone, rtol=1e-5)


def test_a_list_of_batches_trains_like_the_same_rows_in_memory():
    stored = run(shuffle=False)
    columns = rows()
    batches = [{k: v[i : i + 4] for k, v in columns.items()} for i in (0, 4, 8)]
    for streamed in (run(data=batches), run(data=from_batches(list(DATA)))):
        chex.assert_trees_all_close(streamed.params, stored.params, rtol=1e-6)
        np.testing.assert_allclose(streamed.info.losses, stored.info.losses, rtol=1e-5)


def test_a_streaming_run_resumes_with_the_same_bits():
    data = from_batches(list(DATA))
    whole, part = run(data=data), run(data=data, steps=5, epochs=None)
    chex.assert_trees_all_equal(run(data=data, resume=part.state).state, whole.state)


def test_a_repeated_run_traces_nothing():
    traced = []

    def counting(params, batch):
        traced.append(1)
        return LINEAR.loss(params, batch)

    model = Model(outputs=predict, loss=counting, init=LINEAR.init)
    for data in (DATA, from_batches(list(DATA))):
        first = fit(objectives.mean_loss(model), ADAM, START, data, key=KEY, epochs=2)
        count = len(traced)
        again = fit(objectives.mean_loss(model), ADAM, START, data, key=KEY, epochs=2)
        assert len(traced) == count > 0
        chex.assert_trees_all_equal(first, again)
    shown = []
    fit(objectives.mean_loss(model), ADAM, START, DATA, key=KEY, epochs=9, progress=shown.append)
    assert len(shown) == 9 and len(traced) <= count + 2  # one chunk serves all epochs


def test_inside_jit_a_step_is_traced_once():
    loss = chex.assert_max_traces(lambda p, b, key: noisy_loss(p, b, key), n=1)
    compiled = jax.jit(lambda key: run(objectives.stateless(loss), key=key).params)
    chex.assert_trees_all_equal(compiled(KEY), compiled(KEY))


def test_the_inputs_of_a_run_are_left_as_they_were():
    before = jax.tree.map(np.array, (START, DATA.arrays))
    state = run(epochs=1).state
    kept = jax.tree.map(np.array, state)
    run(resume=state)
    chex.assert_trees_all_equal(jax.tree.map(np.array, (START, DATA.arrays)), before)
    chex.assert_trees_all_equal(jax.tree.map(np.array, state), kept)


def test_the_same_key_gives_the_same_bits_and_another_key_others(no_tracer_leaks):
    for objective in (MEAN, NOISY):  # through the order of the rows alone, and through draws
        chex.assert_trees_all_equal(run(objective).params, run(objective).params)
        other = run(objective, key=jax.random.key(1))
        assert (run(objective).params["w"] != other.params["w"]).any()


def test_rows_spread_over_eight_devices_train_like_rows_on_one():
    mesh = Mesh(np.array(jax.devices()).reshape(8), ("rows",), axis_types=(AxisType.Auto,))
    data = in_memory(rows(32), 16)
    spread = jax.device_put(data, NamedSharding(mesh, PartitionSpec("rows")))
    assert len(spread["x"].sharding.device_set) == 8
    one, eight = run(data=data, epochs=2), run(data=spread, epochs=2)
    chex.assert_trees_all_close(eight.params, one.params, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- which rows, and when


def with_ids(n=N, batch_size=BATCH_SIZE, first=0):
    return in_memory({"id": first + np.arange(n)}, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_every_row_is_seen_exactly_once_an_epoch_and_the_last_short_batch_too(batch_size):
    data = with_ids(batch_size=batch_size)
    width = min(batch_size, N)
    seen = orders(data, 2, width=width).reshape(2, -1)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.arange(N))
    assert not np.array_equal(seen[0], seen[1])
    if N % width:  # the mutant that drops the short last batch is found out
        dropped = seen[0][: N // width * width]
        assert len(np.unique(dropped)) < N


def test_without_shuffling_rows_come_in_stored_order():
    seen = orders(with_ids(), 2, shuffle=False)
    np.testing.assert_array_equal(seen[seen >= 0], [*range(N), *range(N)])


def test_a_function_decides_the_order_of_every_epoch():
    backwards = lambda key, n: jnp.arange(n)[::-1]  # noqa: E731
    seen = orders(with_ids(), 1, shuffle=backwards)
    np.testing.assert_array_equal(seen[seen >= 0], np.arange(N)[::-1])
    with pytest.raises(ValueError, match=r"permutation of shape \(10,\), got \(3,\) .* 'data'"):
        orders(with_ids(), 1, shuffle=lambda key, n: jnp.arange(3))


def test_an_epoch_is_a_pass_over_the_first_stream_and_the_others_cycle():
    streams = {"retain": with_ids(), "forget": with_ids(3, 2, first=100)}
    seen = orders(streams, 2, "forget", width=2)  # 6 steps of 2 batches: three passes
    passes = seen.reshape(3, -1)
    for one in passes:
        np.testing.assert_array_equal(np.sort(one[one >= 0]), [100, 101, 102])


def test_another_stream_does_not_reorder_the_first():
    retain, forget = with_ids(), with_ids(3, 2)
    alone = orders({"retain": retain}, 2, "retain")
    both = orders({"retain": retain, "forget": forget}, 2, "retain")
    np.testing.assert_array_equal(alone, both)
    own = orders({"forget": forget}, 1, "forget", width=2)
    assert own.shape == (2, 2)


def test_rows_in_memory_keep_their_order_beside_a_stream():
    forget = with_ids(3, 2)
    stored = orders({"retain": with_ids(), "forget": forget}, 2, "retain")
    mixed = orders({"retain": with_ids(), "forget": from_batches(list(forget))}, 2, "retain")
    np.testing.assert_array_equal(stored, mixed)
    assert not np.array_equal(stored[stored >= 0][:N], np.arange(N))


def test_a_weight_of_two_is_the_row_twice_and_of_zero_no_row():
    columns = rows(4)
    weighted = in_memory(columns | {"weight": np.float32([2, 0, 1, 1])}, 4)
    repeated = in_memory({k: v[[0, 0, 2, 3]] for k, v in columns.items()}, 4)
    ours, theirs = (run(MEAN, data=d, epochs=6, tx=optax.sgd(0.1)) for d in (weighted, repeated))
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-5)
    blind = objectives.stateless(lambda p, b, key: LINEAR.loss(p, b["data"]).mean())
    mutant = run(blind, data=weighted, epochs=6, tx=optax.sgd(0.1))
    assert not np.allclose(mutant.params["w"], theirs.params["w"], rtol=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_row_of_weight_zero_with_a_singular_loss_contributes_exactly_nothing(stream):
    root = objectives.stateless(
        lambda p, b, key: losses.weighted_mean(jnp.sqrt(p * b["data"]["x"]), b["data"])
    )
    x, weight = np.float32([4, 0, 1, 9]), np.float32([1, 0, 1, 1])
    columns = {"x": x, "weight": weight}  # at x = 0 the gradient of the root is 0 * inf = NaN
    data = from_batches([columns]) if stream else in_memory(columns, 4)
    out = fit(root, optax.sgd(0.1), jnp.float32(1), data, key=KEY, steps=1)
    np.testing.assert_allclose(out.params, 1 - 0.1 * (2 + 1 + 3) / 3 / 2, rtol=1e-6)
    kept = fit(root, optax.sgd(0.1), jnp.float32(1), {"x": x[weight > 0]}, key=KEY, steps=1)
    np.testing.assert_allclose(out.params, kept.params, rtol=1e-6)
    raw = jax.grad(lambda p: losses.weighted_mean(jnp.sqrt(p * x), columns))(1.0)
    assert jnp.isnan(raw)  # the mutant that hands the row to the model as it is


def test_full_batch_descent_finds_the_solution_of_the_normal_equations():
    columns = rows(30)
    columns["y"] = columns["y"] + np.sin(np.arange(30)).astype(np.float32)
    out = run(MEAN, optax.sgd(0.2), data=in_memory(columns, 30), epochs=200)
    design = np.column_stack([columns["x"], np.ones(30)])
    exact = np.linalg.solve(design.T @ design, design.T @ columns["y"])
    np.testing.assert_allclose([*out.params["w"], out.params["b"]], exact, atol=1e-5)


def test_a_transformation_that_asks_for_the_loss_gets_it():
    out = run(MEAN, optax.lbfgs(), data=in_memory(rows(), N), epochs=10)
    np.testing.assert_allclose(out.params["w"], [1, -2], atol=1e-4)


# ---------------------------------------------------------------------------------- how a run ends


def test_a_run_of_length_zero_changes_nothing():
    for options in ({"epochs": 0}, {"steps": 0, "epochs": None}):
        for data in (DATA, from_batches(list(DATA))):
            out = run(data=data, **options)
            chex.assert_trees_all_equal(out.params, START)
            assert out.info.losses.shape == (0,) and int(out.info.status) == Status.COMPLETED


@pytest.mark.parametrize("drive", ["scan", "host", "stream", "compiled"])
def test_stop_freezes_the_run_after_the_step_that_fires(drive):
    stop = lambda step: step.step >= 5  # noqa: E731
    data = from_batches(list(DATA)) if drive == "stream" else DATA
    go = functools.partial(run, MEAN, data=data, shuffle=False)
    if drive == "compiled":
        out = jax.jit(lambda key: go(key=key, stop=stop))(KEY)
    else:
        out = go(stop=stop, progress=(lambda step: None) if drive == "host" else None)
    expected = go(steps=5, epochs=None)
    chex.assert_trees_all_close(out.params, expected.params, rtol=1e-6)
    assert int(out.info.status) == Status.STOPPED and int(out.info.steps) == 5
    np.testing.assert_array_equal(np.isnan(out.info.losses), np.arange(12) >= 5)
    again = go(stop=stop, resume=out.state)
    chex.assert_trees_all_equal(again.params, out.params)
    assert again.info.losses.shape == (0,)


def bursting(at):
    """x^2 until step `at`, where the loss or the update bursts."""

    def loss(params, batches, state, key):
        burst = jnp.where(state == at["step"], at["factor"], 1.0)
        return (params**2).sum() * burst, state + 1

    return Objective(lambda p: jnp.int32(0), loss)


@pytest.mark.parametrize("factor", [jnp.nan, jnp.inf, 1e38])
@pytest.mark.parametrize("drive", ["scan", "stream"])
def test_a_run_that_diverges_keeps_its_last_finite_params(factor, drive):
    data = DATA if drive == "scan" else from_batches(list(DATA))
    tx = optax.sgd(30.0)  # with 1e38 the loss is finite, and the params overflow
    start = jnp.float32([0.1, 0.2])
    out = fit(bursting({"step": 4, "factor": factor}), tx, start, data, key=KEY, epochs=4)
    before = fit(bursting({"step": 99, "factor": 1}), tx, start, data, key=KEY, steps=4)
    chex.assert_trees_all_equal(out.params, before.params)
    chex.assert_tree_all_finite(out.params)
    assert int(out.info.status) == Status.DIVERGED and int(out.info.steps) == 4
    np.testing.assert_array_equal(np.isnan(out.info.losses), np.arange(12) >= 4)


def test_a_state_of_the_objective_that_overflows_is_a_divergence_too():
    objective = Objective(lambda p: jnp.float32(1), lambda p, b, s, k: ((p**2).sum(), s * 1e20))
    out = fit(objective, optax.sgd(0.1), jnp.ones(2), DATA, key=KEY, steps=4)
    assert int(out.info.status) == Status.DIVERGED and int(out.info.steps) == 1
    assert float(out.state.objective) == pytest.approx(1e20)


def test_of_vmapped_runs_only_the_one_that_diverges_is_stopped():
    out = jax.vmap(lambda p: fit(MEAN, optax.sgd(0.1), p, DATA, key=KEY, epochs=2))(
        {"w": jnp.array([[0.3, 0.1], [1e30, 1]]), "b": jnp.zeros(2)}
    )
    np.testing.assert_array_equal(out.info.status, [Status.COMPLETED, Status.DIVERGED])
    np.testing.assert_array_equal(out.params["w"][1], jnp.array([1e30, 1]))


def test_a_score_brings_back_the_best_epoch_and_not_the_last():
    grow = Objective(lambda p: (), lambda p, b, s, k: (-p, s))
    score = lambda p: -jnp.abs(p - 6.2)  # noqa: E731
    out = fit(grow, optax.sgd(1.0), jnp.float32(0), DATA, key=KEY, epochs=4, score=score)
    assert float(out.params) == 6 and float(out.state.params) == 12  # epochs end at 3, 6, 9, 12
    assert float(out.info.best_score) == pytest.approx(-0.2, abs=1e-5)
    worse = fit(grow, optax.sgd(1.0), jnp.float32(0), DATA, key=KEY, epochs=2, score=lambda p: -p)
    assert float(worse.params) == 0  # the start competes
    assert float(run(score=lambda p: jnp.nan).info.best_score) == -np.inf


# ---------------------------------------------------------------------------------------- progress


def test_progress_is_reported_after_every_epoch_on_the_host_and_from_a_trace():
    for data in (DATA, from_batches(list(DATA))):
        told = []
        out = run(MEAN, data=data, progress=told.append)
        assert all(isinstance(step, Step) for step in told)
        assert [(int(s.step), int(s.total)) for s in told] == [(3, 12), (6, 12), (9, 12), (12, 12)]
        np.testing.assert_array_equal([s.loss for s in told], out.info.losses[2::3])
    told = []
    out = jax.jit(lambda key: run(MEAN, key=key, progress=told.append))(KEY)
    jax.effects_barrier()
    assert sorted(int(s.step) for s in told) == [3, 6, 9, 12]
    by_step = {int(s.step): float(s.loss) for s in told}
    np.testing.assert_array_equal([by_step[s] for s in (3, 6, 9, 12)], out.info.losses[2::3])


def test_progress_inside_jit_is_called_with_numbers_even_if_nothing_given_is_traced():
    told = []
    jax.jit(lambda: run(MEAN, progress=lambda step: told.append(int(step.step))).params)()
    jax.effects_barrier()
    assert sorted(told) == [3, 6, 9, 12]


def test_a_run_that_has_ended_is_not_watched_any_longer():
    told = []
    run(MEAN, stop=lambda step: step.step >= 4, progress=told.append)
    assert [int(s.step) for s in told] == [3, 6] and np.isnan(told[-1].loss)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": None}, ValueError, "exactly one of epochs, steps and turns, got epochs=None"),
        (
            {"epochs": None, "turns": (("data",), ("dta",))},
            ValueError,
            r"every turn must be a tuple of names among \['data'\]",
        ),
        ({"epochs": None, "turns": ((),)}, ValueError, "every turn must be a tuple of names"),
        ({"steps": 3}, ValueError, "exactly one of epochs, steps and turns, got epochs=4, steps=3"),
        ({"epochs": -1}, ValueError, "integer >= 0, got epochs=-1"),
        ({"epochs": 1.5}, ValueError, "integer >= 0, got epochs=1.5"),
        ({"epochs": True}, ValueError, "integer >= 0, got epochs=True"),
        ({"data": {}}, ValueError, "at least one stream of data, got an empty mapping"),
        ({"data": DATA.take([])}, ValueError, "the stream 'data' has no examples"),
        (
            {"data": {"a": DATA, "b": DATA.take([])}},
            ValueError,
            "the stream 'b' has no examples. Leave it out",
        ),
        ({"data": iter([])}, TypeError, "can be read only once"),
        ({"data": {"a": None}}, TypeError, "expected Data: .* got NoneType"),
        ({"key": 0}, TypeError, "expected one typed key, .* got int"),
        ({"key": np.zeros(2, np.uint32)}, TypeError, r"got uint32 of shape \(2,\)"),
        ({"key": jax.random.split(KEY, 3)}, TypeError, r"key<fry> of shape \(3,\).*ensemble"),
        ({"score": lambda p: p["w"]}, ValueError, r"score must return a scalar, got shape \(2,\)"),
        ({"stop": lambda s: jnp.ones(2) > 0}, ValueError, r"stop must return a scalar, got shape"),
        (
            {"objective": Objective(lambda p: (), lambda p, b, s, k: (p["w"], s))},
            ValueError,
            r"the objective's loss must return a scalar, got shape \(2,\)",
        ),
    ],
)
def test_a_run_that_makes_no_sense_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


# ------------------------------------------------------------------------------------------- turns

TURNS = (("a", "b"), ("b",), ("a", "b"))
TWO = {"a": in_memory(rows(3, seed=1), 2), "b": DATA}  # 2 and 3 batches


def noisy_turn(params, batches, key):
    """Ascends on "a" and descends on "b", whichever has its turn."""
    (name,) = batches
    noise = jax.random.normal(key, (2,)) @ params["w"]
    mean = losses.weighted_mean(LINEAR.loss(params, batches[name]), batches[name])
    return (mean if name == "b" else -0.1 * mean) + 0.1 * noise


def record_turns(params, batches, state, key):
    """The state counts the rows of "a" and of "b" that were seen, and sums their first entries."""
    (name,) = batches
    weight = batches[name]["weight"]
    seen = jnp.stack([weight.sum(), weight @ batches[name]["x"][:, 0]])
    return params["w"].sum() * 0, state | {name: state[name] + seen}


def run_turns(**options):
    return run(**({"objective": objectives.stateless(noisy_turn), "data": TWO, "epochs": None,
                   "turns": TURNS} | options))  # fmt: skip


def test_in_every_turn_each_row_of_that_stream_is_seen_once():
    counter = Objective(lambda p: {"a": jnp.zeros(2), "b": jnp.zeros(2)}, record_turns)
    out = run_turns(objective=counter)
    assert out.info.losses.shape == (2 * 2 + 3 * 3,)
    for name, passes in (("a", 2), ("b", 3)):
        column = TWO[name]["x"][:, 0]
        expected = passes * np.array([len(column), column.sum()])
        np.testing.assert_allclose(out.state.objective[name], expected, rtol=1e-5)


def test_turns_are_runs_of_one_stream_after_another_with_one_optimiser():
    """By hand: the same objective on each stream alone, in stored order, plain SGD."""
    tx, plain = optax.sgd(0.05), objectives.stateless(lambda p, b, k: noisy_turn(p, b, KEY))
    expected = START
    for name in (name for epoch in TURNS for name in epoch):
        expected = run(plain, tx, expected, {name: TWO[name]}, epochs=1, shuffle=False).params
    out = run_turns(objective=plain, tx=tx, shuffle=False).params
    chex.assert_trees_all_close(out, expected, rtol=1e-5)


def test_turns_do_not_depend_on_how_they_are_driven():
    whole = run_turns().params
    jitted = jax.jit(lambda p, k: run_turns(params=p, key=k).params)(START, KEY)
    chex.assert_trees_all_close(jitted, whole, rtol=1e-5)
    watched = []
    chex.assert_trees_all_equal(run_turns(progress=watched.append).params, whole)
    assert [int(step.step) for step in watched] == [5, 8, 13]  # where epochs end
    streamed = {name: from_batches([b for b in data]) for name, data in TWO.items()}
    chex.assert_trees_all_close(
        run_turns(data=streamed).params, run_turns(shuffle=False).params, rtol=1e-5
    )
    half = run_turns(turns=TURNS[:2])
    chex.assert_trees_all_equal(run_turns(resume=half.state).params, whole)


def test_turns_of_one_stream_are_its_epochs_each_in_an_order_of_its_own():
    turned = run(epochs=None, turns=(("data",),) * 4)
    chex.assert_trees_all_equal(turned.params, run().params)
    np.testing.assert_array_equal(turned.info.losses, run().info.losses)


def test_turns_of_stacked_models_stay_separate():
    starts = jax.tree.map(lambda p: jnp.stack([p, p + 1]), START)
    both = jax.jit(jax.vmap(lambda p: run_turns(params=p).params))(starts)
    second = run_turns(params=jax.tree.map(lambda p: p[1], starts)).params
    chex.assert_trees_all_close(jax.tree.map(lambda p: p[1], both), second, rtol=1e-5)


def test_no_turns_no_change():
    chex.assert_trees_all_equal(run_turns(turns=()).params, START)
    traced = jax.jit(lambda p: run_turns(params=p, turns=()).params)(START)
    chex.assert_trees_all_equal(traced, START)


def test_the_best_params_are_looked_for_where_epochs_end():
    scores = []

    def score(params):
        jax.debug.callback(lambda w: scores.append(float(w)), params["w"][0])
        return params["w"][0]

    run_turns(score=score)
    jax.effects_barrier()
    assert len(scores) == 1 + len(TURNS)


# ------------------------------------------------------------------------------------------ extras


def test_extras_reach_the_transformation_with_the_params_and_the_state_before_the_step():
    def update(updates, state, params=None, *, second, **others):
        del others
        chex.assert_trees_all_equal_shapes(updates, params)
        return jax.tree.map(lambda u, s: u - s, updates, second), state

    tx = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    objective = Objective(
        lambda p: jnp.float32(1),
        lambda p, b, s, k: (0.5 * jnp.sum(p["w"] ** 2) + 0 * p["b"], s + 1),
        extras=lambda p, b, s, k: {"second": jax.tree.map(lambda leaf: s * leaf, p)},
    )
    out = run(objective, tx, steps=2, epochs=None).params["w"]
    # w <- w + (w - 1 w) = w, then w <- w + (w - 2 w) = 0
    np.testing.assert_allclose(out, 0, atol=1e-7)


def test_a_state_beyond_the_end_of_the_run_is_refused():
    with pytest.raises(ValueError, match="cannot resume at step 12, the run has 3 steps in all"):
        run(epochs=1, resume=run().state)


def test_inside_a_trace_streams_and_resuming_are_refused():
    stream, state = from_batches(list(DATA)), run(epochs=1).state
    with pytest.raises(TypeError, match="streaming data cannot be read inside jit or vmap"):
        jax.jit(lambda: run(data=stream).params)()
    with pytest.raises(TypeError, match="resume works outside jit and vmap only"):
        jax.jit(lambda s: run(resume=s).params)(state)


def test_a_stream_that_runs_dry_is_named():
    passes = iter([[DATA.gather(jnp.arange(4))], []])
    once = Stream(lambda: iter(next(passes)), 4, 1, 4)
    with pytest.raises(ValueError, match="'data' yields no batch in pass 2, .* 4 examples"):
        run(data=once, epochs=2)


# ------------------------------------------------------------------------------------------- train


CLASSES = ju.from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
LABELLED = {"x": rows()["x"], "y": np.arange(N) % 3}


def test_training_is_fitting_from_fresh_params():
    init_key, fit_key = jax.random.split(KEY)
    ours = train(CLASSES, ADAM, LABELLED, key=KEY, epochs=2)
    start = CLASSES.init(init_key)
    theirs = fit(objectives.mean_loss(CLASSES), ADAM, start, LABELLED, key=fit_key, epochs=2)
    chex.assert_trees_all_equal(ours, theirs)
    other = train(CLASSES, ADAM, LABELLED, key=jax.random.key(1), epochs=0)
    assert (other.params["kernel"][...] != start["kernel"][...]).any()


@pytest.mark.parametrize("wrap", [in_memory, lambda columns: from_batches([columns])])
@pytest.mark.parametrize("label", [3, -1])
def test_training_on_a_label_that_is_no_class_is_refused(wrap, label):
    columns = LABELLED | {"y": np.append(LABELLED["y"][:-1], label)}
    with pytest.raises(ValueError, match=rf"train: labels must lie in \[0, 3\).*row 9 has {label}"):
        train(CLASSES, ADAM, wrap(columns), key=KEY, epochs=1)


def test_training_a_model_whose_loss_is_an_average_is_refused():
    average = Model(predict, lambda p, b: LINEAR.loss(p, b).mean(), init=LINEAR.init)
    with pytest.raises(ValueError, match="one number per example"):
        train(average, ADAM, rows(), key=KEY, epochs=1)


def test_training_a_model_without_init_is_refused():
    bare = Model(predict, LINEAR.loss)
    with pytest.raises(ValueError, match="this model has no `init`, so it cannot be trained"):
        train(bare, ADAM, rows(), key=KEY, epochs=1)


# ---------------------------------------------------------------------------------------- ensemble


def member(key, shift):
    return {"w": run(key=key, epochs=1).params["w"] + shift, "n": jnp.int32(1)}


@pytest.mark.parametrize(
    "options",
    [
        {"how": "auto"},
        {"how": "map"},
        {"how": "map", "chunk": 2},
        {"how": "vmap", "chunk": 3},
        {"how": "shard", "devices": jax.devices("cpu")[:2]},
        {"how": "shard", "devices": jax.devices("cpu")[:3], "chunk": 1},
    ],
    ids=str,
)
def test_an_ensemble_does_not_depend_on_how_it_is_run(options):
    keys, shifts = jax.random.split(KEY, 5), jnp.arange(5.0)  # 5 is no multiple of 2, 3 or 8
    reference = jax.tree.map(lambda *a: jnp.stack(a), *map(member, keys, shifts))
    out = jax.jit(ju.ensemble(member, **options))(keys, shifts)
    chex.assert_trees_all_close(out, reference, rtol=1e-5, atol=1e-6)
    assert len({float(w) for w in reference["w"][:, 0] - shifts}) == 5


@pytest.mark.parametrize("size", [1, 8, 11])
def test_an_ensemble_of_any_size_is_spread_over_eight_devices(size):
    where = jax.jit(ju.ensemble(lambda x: x**2, how="shard"))
    np.testing.assert_array_equal(where(jnp.arange(size)), np.arange(size) ** 2)
    if size == 8:
        assert len(where(jnp.arange(size)).sharding.device_set) == 8


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"how": "pmap"}, (KEY,), "how must be 'auto', .* got 'pmap'"),
        ({"chunk": 0}, (KEY,), "chunk must be >= 1 or None, got 0"),
        ({}, (jnp.ones(2), jnp.ones(3)), r"the same leading axis .* \[\(2,\), \(3,\)\]"),
        ({}, (KEY,), r"of length >= 1, got the shapes \[\(\)\]"),
        ({}, (jnp.ones((0, 2)),), r"of length >= 1, got the shapes \[\(0, 2\)\]"),
        ({}, (), r"of length >= 1, got the shapes \[\]"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(options, args, message):
    with pytest.raises(ValueError, match=message):
        ju.ensemble(lambda *a: a, **options)(*args)
