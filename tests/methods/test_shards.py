"""Shards: what is forgotten leaves no bit behind, in memory or on disk, whatever kills it."""

import contextlib
import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.data.streams import InMemory
from jaxunlearn.manifest import CheckpointError, read_manifest
from jaxunlearn.methods.exact import shard_ledger as ledger
from jaxunlearn.methods.exact.shard_ledger import DamagedStageWarning
from jaxunlearn.methods.exact.shard_plan import expected_cost, hashes, seed_of, stages
from jaxunlearn.methods.exact.shard_rows import pad
from jaxunlearn.methods.exact.shard_runs import stage_runs
from jaxunlearn.methods.exact.shard_trainer import Trainer, gradient_trainer
from jaxunlearn.methods.exact.shards import shards, vote
from jaxunlearn.model import Model
from tests.methods.shards_child import (
    IDS,
    SEED,
    columns,
    learner,
    learnt,
    model,
    trainer,
    without,
)

KEY = jax.random.key(SEED)


def bits(state) -> str:
    """Hash of all that was learnt: states, optimiser included, and who votes."""
    leaves = jax.tree.leaves((state.states, state.voting))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def run(directory, data, **options) -> tuple:
    made = learner(directory, **options)
    return made.learn(made.init(KEY), data)


def stage_paths(directory) -> list[Path]:
    return sorted(Path(directory).glob("shard-*/*"))


def names(directory) -> set[str]:
    """Everything below a directory but the parts of checkpoints; temporaries included."""
    return {str(p.relative_to(directory)) for p in Path(directory).glob("*/*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory after learning; copy it."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, learnt(directory)[1]


@pytest.fixture(scope="module")
def never(tmp_path_factory):
    """A run that was never given the rows of `IDS`: its directory and state."""
    directory = tmp_path_factory.mktemp("never")
    return directory, run(directory, without(columns(), IDS))[0]


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "d")
    return tmp_path / "d"


# ------------------------------------------------------------------------------------- exactness


def test_forgetting_equals_never_having_learnt_bit_for_bit(copy, whole, never):
    made = learner(copy)
    state, info = made.forget(whole[1], IDS)
    assert bits(state) == bits(never[1]) != bits(whole[1])
    assert {p.name for p in stage_paths(copy)} == {p.name for p in stage_paths(never[0])}
    assert info.forgotten == len(IDS) and info.removed > 0
    batch = {"x": columns()["x"]}
    np.testing.assert_array_equal(made.predict(state, batch), made.predict(never[1], batch))


def test_with_lanes_side_by_side_the_bits_are_those_of_never_having_learnt_too(tmp_path):
    lanes, few = {"num_shards": 3, "num_slices": 2, "together": 2}, columns(24)
    made = learner(tmp_path / "a", **lanes)
    state, info = made.learn(made.init(KEY), few)
    assert set(info.stages) == {(s, r) for s in range(3) for r in range(1, 3)}
    alone, _ = run(tmp_path / "c", few, **lanes | {"together": 1})
    np.testing.assert_allclose(
        state.states.fit.params, alone.states.fit.params, rtol=1e-4, atol=1e-5
    )
    state, info = made.forget(state, [IDS[0]])
    assert len({s for s, _ in info.stages}) == 1
    assert bits(state) == bits(run(tmp_path / "b", without(few, IDS[:1]), **lanes)[0])


def test_learning_in_parts_and_in_any_order_equals_learning_at_once(tmp_path, whole):
    data, parts = columns(), np.array_split(np.random.default_rng(1).permutation(48), 3)
    made = learner(tmp_path)
    state = made.init(KEY)
    for part in parts:
        state, info = made.learn(state, {k: v[part] for k, v in data.items()})
    assert bits(state) == bits(whole[1])
    assert {p.name for p in stage_paths(tmp_path)} == {p.name for p in stage_paths(whole[0])}


def test_another_seed_gives_other_bits(tmp_path, whole):
    other = learner(tmp_path)
    state, _ = other.learn(other.init(jax.random.key(SEED + 1)), columns())
    assert bits(state) != bits(whole[1])


def test_a_shard_is_the_training_of_its_slices_one_after_the_other(whole):
    """A second road: plain optax steps over the rows of the plan, with `fit`'s order of epochs."""
    data = columns() | {"weight": np.ones(48, np.float32)}
    plan = stages(data, "seed", 1, 2)
    assert [len(s.rows) for s in plan[0]] == [len(plan[0][0].rows), 48]
    tx, loss = optax.adam(0.1), model().loss
    how = gradient_trainer(model(), tx, epochs=1)
    state, train = how.init(KEY), jax.jit(how.train)
    params, opt = state.fit.params, tx.init(state.fit.params)

    @jax.jit
    def step(params, opt, batch):
        grads = jax.grad(lambda p: loss(p, batch).mean())(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    for stage in plan[0]:
        # One batch an epoch: the order of the rows cannot matter beyond rounding.
        arrays = {k: data[k][stage.rows] for k in ("x", "y", "weight")}
        padded = {k: jnp.asarray(pad(column, 48)) for k, column in arrays.items()}
        state = train(state, InMemory(padded, 48), KEY)
        params, opt = step(params, opt, arrays)
    np.testing.assert_allclose(state.fit.params, params, rtol=1e-5, atol=1e-6)
    assert int(optax.tree.get(state.fit.opt_state, "count")) == 2


# -------------------------------------------------------------------------------- where rows go


def test_the_place_of_an_example_depends_on_its_id_and_the_seed_alone():
    ids = np.array([5, -7, 2**40, 3])
    np.testing.assert_array_equal(hashes(ids, "a")[1:3], hashes(ids[1:3], "a"))
    assert (hashes(ids, "a") != hashes(ids, "b")).all()
    data = {"id": np.arange(4000), "x": np.zeros(4000)}
    sizes = [len(own[-1].rows) for own in stages(data, "a", 8, 5)]
    assert sum(sizes) == 4000 and max(abs(n - 500) for n in sizes) < 5 * 500**0.5


def test_a_missing_row_changes_only_the_stages_from_its_slice_on():
    data = {"id": np.arange(200), "x": np.arange(200.0)}
    before, after = stages(data, "a", 4, 5), stages(without(data, [17]), "a", 4, 5)
    for own, new in zip(before, after, strict=True):
        knows = [17 in data["id"][stage.rows] for stage in own]
        same = [a.content == b.content for a, b in zip(own, new, strict=True)]
        assert same == [not k for k in knows]


def test_the_cost_of_a_deletion_is_what_the_paper_expects():
    for s, r in [(1, 1), (4, 1), (1, 3), (5, 20)]:
        full = s * sum(range(1, r + 1))
        mean = Fraction(sum(sum(range(first, r + 1)) for first in range(1, r + 1)), r * full)
        assert expected_cost(s, r) == pytest.approx(float(mean), rel=1e-12)


def test_the_info_counts_examples_times_epochs(copy, whole):
    made, data = learner(copy), columns() | {"weight": np.ones(48, np.float32)}
    plan = stages(data, seed_of(KEY), 2, 3)
    x = int(data["id"][plan[1][2].rows[-1]])  # in the last slice of shard 1
    state, info = made.forget(whole[1], [x])
    assert info.stages == ((1, 3),)
    assert info.examples == 2 * (len(plan[1][2].rows) - 1)
    assert info.full == 2 * (sum(len(s.rows) for own in plan for s in own) - 1)
    assert info.cost == info.examples / info.full < info.expected


# --------------------------------------------------------------------------------- edge cases


def test_forgetting_several_at_once_retrains_each_stage_once_in_any_order(copy, whole, never):
    made = learner(copy)
    state, info = made.forget(whole[1], np.array([*IDS[::-1], IDS[0]]))
    assert bits(state) == bits(never[1])
    assert len(set(info.stages)) == len(info.stages)


def test_forgetting_twice_or_nothing_is_a_no_op(copy, whole):
    made = learner(copy)
    once, _ = made.forget(whole[1], IDS)
    before = names(copy)
    for ids in (IDS, IDS[:1], [], np.zeros(0, np.int32)):
        again, info = made.forget(once, ids)
        assert bits(again) == bits(once)
        assert (info.examples, info.forgotten, info.removed, info.stages) == (0, 0, 0, ())
    assert names(copy) == before


def test_an_unknown_id_is_an_error_that_names_it_and_does_nothing(copy, whole):
    with pytest.raises(ValueError, match="1 of 2 ids were never learnt, the first is 999"):
        learner(copy).forget(whole[1], [999, IDS[0]])
    assert ledger.forgotten(copy) == frozenset()


def test_a_forgotten_id_stays_out(copy, whole, never):
    made = learner(copy)
    made.forget(whole[1], IDS)
    state, info = made.learn(made.init(KEY), columns())
    assert info.left_out == len(IDS) and info.examples == 0
    assert bits(state) == bits(never[1])


def test_a_deletion_at_a_time_until_nothing_is_left(tmp_path):
    """Batches, slices and shards run empty one after another: no NaN, no step for nothing."""
    data = columns(10)
    made = learner(tmp_path)
    predict = jax.jit(made.predict)
    state, _ = made.learn(made.init(KEY), data)
    for i, x in enumerate(data["id"]):
        state, info = made.forget(state, [x])
        p = np.asarray(predict(state, {"x": data["x"]}))
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        alive = [ids for path in stage_paths(tmp_path) if (ids := known(path))]
        assert all(x not in ids for ids in alive) and len(alive) <= 6
        assert len(os.listdir(tmp_path / "forgotten")) == 1
        if i == 5:
            left = {k: v[6:] for k, v in data.items()}
            assert bits(state) == bits(run(tmp_path / "fresh", left)[0])
            shutil.rmtree(tmp_path / "fresh")
    assert not state.voting.any() and info.full == info.cost == 0
    np.testing.assert_allclose(p, 1 / 3, rtol=1e-6)
    assert bits(state) == bits(made.init(KEY))


def test_rows_of_weight_0_are_padding(tmp_path, whole):
    data = columns()
    extra = {"x": np.full((2, 4), 7.0, np.float32), "y": np.zeros(2, np.int32)}
    extra |= {"id": np.array([1, 2]), "weight": np.zeros(2, np.float32)}
    both = {k: np.concatenate([data.get(k, np.ones(48, np.float32)), extra[k]]) for k in extra}
    state, _ = run(tmp_path, both)
    assert bits(state) == bits(whole[1]) and len(state.columns["id"]) == 48


def test_shards_vote_by_mean_softmax_or_by_majority():
    share = [[[0.6, 0.4]], [[0.6, 0.4]], [[0.05, 0.95]], [[0.9, 0.1]]]
    logits, voting = np.log(np.float32(share)), np.array([True, True, True, False])
    of = jax.jit(vote, static_argnums=2)
    np.testing.assert_allclose(of(logits, voting, "mean"), [[1.25 / 3, 1.75 / 3]], rtol=1e-6)
    np.testing.assert_allclose(of(logits, voting, "majority"), [[2 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(of(logits, np.zeros(4, bool), "mean"), [[0.5, 0.5]])


def test_predict_is_traceable_and_learn_says_why_it_is_not(whole, copy):
    made, batch = learner(copy), {"x": columns()["x"]}
    np.testing.assert_allclose(
        jax.jit(made.predict)(whole[1], batch), made.predict(whole[1], batch), rtol=1e-6
    )
    with pytest.raises(TypeError, match="shards.forget reads and writes files"):
        jax.jit(lambda state: made.forget(state, IDS)[0].voting)(whole[1])


def class_means(factor=1.0) -> Trainer:
    """A trainer in closed form: a mean of the rows of each class, times a constant."""

    def train(state, data, key):
        w = data["weight"][:, None] * jax.nn.one_hot(data["y"], 3)
        means = (w.T @ data["x"]) / jnp.maximum(w.sum(axis=0), 1)[:, None]
        return {"means": factor * means}

    return Trainer(
        init=lambda key: {"means": jnp.zeros((3, 4))},
        train=train,
        outputs=lambda state, b: b["x"] @ state["means"].T,
        diverged=lambda state: ~jnp.isfinite(state["means"]).all(),
    )


def test_any_three_functions_are_a_trainer(tmp_path):
    """Class means in closed form: a deletion is a mean without the row."""
    made = shards(class_means(), tmp_path, num_shards=1, num_slices=2, batch_size=16)
    state, _ = made.forget(made.learn(made.init(KEY), columns())[0], IDS)
    left = without(columns(), IDS)
    by_hand = [left["x"][left["y"] == c].mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(state.states["means"][0], by_hand, rtol=1e-5, atol=1e-6)


def test_a_stage_that_diverges_is_not_stored_and_what_was_asked_is_kept(tmp_path):
    """Rows so large that the loss overflows, then a request that finds no way to be met."""
    data = columns()
    with pytest.raises(FloatingPointError, match="shard 0 diverged in slice 1; .*Lower the learn"):
        run(tmp_path, data | {"x": np.float32(1e38) * data["x"]})
    assert stage_paths(tmp_path) == []
    made = learner(tmp_path)
    state, _ = made.learn(made.init(KEY), data)
    huge = {name: column.copy() for name, column in state.columns.items()}
    huge["x"][huge["id"] == 104] = 3e38
    with pytest.raises(FloatingPointError, match="requests to forget stay written down"):
        made.forget(state._replace(columns=huge), [111])
    assert ledger.forgotten(tmp_path) == {111}
    assert not any(111 in known(path) for path in stage_paths(tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"id": None}, ValueError, "expected a column 'id' of 48 integers"),
        ({"id": np.arange(48.0)}, ValueError, "got float64"),
        ({"id": np.zeros(48, int)}, ValueError, "the id 0 comes more than once"),
        ({"x": np.full((48, 4), np.nan)}, ValueError, "holds NaN or Inf"),
        ({"x": np.zeros((3, 4))}, ValueError, "share their leading axis"),
    ],
)
def test_data_that_cannot_be_right_are_refused(tmp_path, change, error, words):
    data = {k: v for k, v in (columns() | change).items() if v is not None}
    with pytest.raises(error, match=words):
        run(tmp_path, data)
    assert not any(tmp_path.iterdir())


def test_rows_must_fit_what_was_learnt_before(whole, copy):
    made, more = learner(copy), columns(2)
    with pytest.raises(ValueError, match="the id 100 comes more than once, or was learnt before"):
        made.learn(whole[1], more)
    with pytest.raises(ValueError, match="expected the columns learnt before"):
        made.learn(whole[1], more | {"x": np.zeros((2, 5), np.float32), "id": np.arange(2)})
    with pytest.raises(TypeError, match="expected columns in memory, got list"):
        made.learn(whole[1], [more])
    with pytest.raises(TypeError, match=r"For a mask give data\['id'\]\[mask\]"):
        made.forget(whole[1], np.ones(48, bool))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_shards": 0}, "num_shards must be an integer >= 1, got 0"),
        ({"num_slices": 1.5}, "num_slices must be an integer"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"together": 3}, "together must be at most 2 shards, got 3"),
        ({"aggregate": "median"}, "'mean' or 'majority', got 'median'"),
    ],
)
def test_a_constant_outside_its_range_is_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        learner(tmp_path, **options)


def test_a_trainer_needs_a_model_that_can_be_made_anew():
    with pytest.raises(ValueError, match="this model has no `init`"):
        gradient_trainer(Model(outputs=lambda p, b: 0, loss=lambda p, b: 0), None, epochs=1)
    with pytest.raises(ValueError, match="epochs must be >= 0, got -1"):
        trainer(epochs=-1)


# ------------------------------------------------- five defects of the published code, and the disk


def known(path: Path) -> set[int]:
    return set(read_manifest(path)["metadata"]["ids"])


def planned(data, key=KEY, how=None, batch_size=16, num_shards=2, together=1) -> set[str]:
    """Names of all checkpoints of a run; nothing is trained for them."""
    made = stage_runs(how or trainer(), Path(), num_shards, 3, batch_size, together)
    return {name for own in made.plan(data, key) for name in own}


@pytest.mark.parametrize(
    "what", ["rate", "epochs", "scale", "constant", "seed", "batch_size", "num_shards", "together"]
)
def test_defect_1_whatever_decides_the_result_is_in_the_name(whole, what):
    """Rate, epochs, initialisation: found in the program itself, nobody has to declare them."""
    data, options = whole[1].columns, {}
    if what in ("rate", "epochs", "scale"):
        options["how"] = trainer(**{what: {"rate": 0.1001, "epochs": 3, "scale": 1.001}[what]})
    elif what == "constant":  # an array that the program closes over
        schedule = jnp.linspace(0.1, 0.2, 500)
        makes = [lambda i, s=s: s[i] for s in (schedule, schedule.at[400].add(1e-6))]
        hows = [gradient_trainer(model(), optax.sgd(make), epochs=1) for make in makes]
        assert not planned(data, how=hows[0]) & planned(data, how=hows[1])
        return
    else:
        options |= {"seed": {"key": jax.random.key(SEED + 1)}}.get(what) or {
            what: {"batch_size": 8, "num_shards": 3, "together": 2}[what]
        }
    assert planned(data) == {p.name for p in stage_paths(whole[0])}
    assert not planned(data, **options) & planned(data)


@pytest.mark.parametrize("what", ["x", "y", "id", "weight"])
def test_defect_1_every_value_of_every_row_is_in_the_names_of_the_stages_that_saw_it(whole, what):
    data = {name: column.copy() for name, column in whole[1].columns.items()}
    place = (data["id"] == 104).argmax()  # shard 0, slice 2
    data[what][place] = 1000 if what == "id" else data[what][place] + 1
    same = planned(data) & planned(whole[1].columns)
    assert len(same) < 5 if what == "id" else len(same) == 4


def test_defect_1_another_constant_in_the_same_directory_is_trained_anew(tmp_path):
    one, other = class_means(), class_means(1.001)
    before, _ = run(tmp_path / "d", columns(), how=one)
    state, info = run(tmp_path / "d", columns(), how=other)
    assert info.cost == 1
    assert bits(state) == bits(run(tmp_path / "e", columns(), how=other)[0])
    assert bits(state) != bits(before)


def test_a_run_that_was_complete_trains_nothing(copy, whole):
    state, info = run(copy, columns())
    assert info.examples == 0 and bits(state) == bits(whole[1])


@pytest.mark.parametrize("damage", ["empty", "truncated", "pickle"])
def test_defects_2_and_5_what_exists_is_not_believed_for_it(copy, whole, damage):
    path = stage_paths(copy)[-1]
    victim = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        shutil.rmtree(path)
        path.mkdir() if damage == "empty" else path.write_bytes(pickle.dumps(Bomb()))
    made = learner(copy)
    with pytest.warns(DamagedStageWarning, match="it is removed and the stage trained again"):
        found = ledger.load_stage(path, jax.tree.map(lambda leaf: leaf[0], whole[1].states))
    assert found is None and not path.exists()
    state, info = made.learn(made.init(KEY), columns())
    assert info.examples > 0 and bits(state) == bits(whole[1])
    assert names(copy) == names(whole[0])


class Bomb:
    def __reduce__(self):
        return os._exit, (1,)


def test_defect_3_a_resumed_stage_starts_from_optimiser_state_and_key_of_its_own(
    copy, whole, monkeypatch
):
    def resumed():
        for path in stage_paths(copy):
            if path.name.startswith("slice-003"):
                shutil.rmtree(path)
        return run(copy, columns())

    state, info = resumed()
    assert info.stages == ((0, 3), (1, 3)) and bits(state) == bits(whole[1])

    def amnesiac(*args, original=ledger.load_stage):
        """Control: the moments of Adam are forgotten, as in the published code."""
        if (found := original(*args)) is None:
            return None
        moments = jax.tree.map(np.zeros_like, found.fit.opt_state)
        return found._replace(fit=found.fit._replace(opt_state=moments))

    monkeypatch.setattr(ledger, "load_stage", amnesiac)
    state, info = resumed()
    assert info.stages == ((0, 3), (1, 3)) and bits(state) != bits(whole[1])


def test_every_stage_draws_from_a_key_of_its_own(tmp_path):
    drawn = Trainer(
        init=lambda key: {"u": jax.random.uniform(key)},
        train=lambda state, data, key: {"u": jax.random.uniform(key)},
        outputs=lambda state, b: b["x"],
        diverged=lambda state: jnp.isnan(state["u"]),
    )
    run(tmp_path, columns(), how=drawn)
    found = [ledger.load_stage(p, {"u": np.float32(0)}) for p in stage_paths(tmp_path)]
    assert len({float(stage["u"]) for stage in found}) == len(found) == 6


def test_defect_4_no_batch_is_empty_and_none_is_counted(tmp_path):
    """Of 2 x 16 rows all but one of a batch are forgotten: steps follow the rows that are left."""
    one = {"num_shards": 1, "num_slices": 1}
    made = learner(tmp_path, **one)
    state, _ = made.learn(made.init(KEY), columns(32))
    assert int(optax.tree.get(state.states.fit.opt_state, "count")[0]) == 2 * 2
    for left, steps in ((17, 2), (16, 1), (9, 1)):
        gone = state.columns["id"][: len(state.columns["id"]) - left]
        state, _ = made.forget(state, gone)
        assert int(optax.tree.get(state.states.fit.opt_state, "count")[0]) == 2 * steps
    assert np.isfinite(state.states.fit.params).all()


def test_all_batches_but_the_last_are_full_whatever_the_padding():
    """The mean over a batch of m rows moves the entry of each of its rows by 1/m."""
    linear = Model(
        outputs=lambda p, b: b["x"] @ p[:, None],
        loss=lambda p, b: b["x"] @ p,
        init=lambda key: jnp.zeros(19),
    )
    how = gradient_trainer(linear, optax.sgd(1.0), epochs=1)
    weight = jnp.asarray(np.arange(24) < 19, jnp.float32)
    data = InMemory({"x": jnp.asarray(np.eye(24, 19, dtype=np.float32)), "weight": weight}, 8)
    moved = -jax.jit(how.train)(how.init(KEY), data, KEY).fit.params
    np.testing.assert_allclose(np.sort(np.asarray(moved)), [1 / 8] * 16 + [1 / 3] * 3, rtol=1e-6)


def test_after_a_deletion_nothing_on_disk_knows_the_rows(copy, whole, tmp_path):
    def hashes_of(path):
        leaves = read_manifest(path)["leaves"].values()
        return {leaf["sha256"] for leaf in leaves if leaf["shape"]}  # weights, moments

    stale = [p for p in stage_paths(copy) if known(p) & set(IDS)]
    kept = [p for p in stage_paths(copy) if not known(p) & set(IDS)]
    old = set().union(*(hashes_of(p) for p in stale)) - set().union(*(hashes_of(p) for p in kept))
    assert stale and len(old) == 3 * len(stale)  # weights and two moments of Adam
    bomb = copy / "shard-0000" / f".x.tmp-deadbeef-1-{'0' * 8}"  # left by a killed process
    bomb.mkdir()
    os.utime(bomb, (0, 0))
    state, info = learner(copy).forget(whole[1], IDS)
    assert info.removed == len(stale)
    for path in stage_paths(copy):
        assert not known(path) & set(IDS) and not hashes_of(path) & old
    assert not any("tmp" in name for name in names(copy))


def test_a_stage_that_cannot_say_what_it_knows_is_removed_with_those_that_know(copy):
    (stage_paths(copy)[0] / "manifest.json").write_text("{}")
    assert ledger.remove_forgotten(copy, frozenset([999])) == 1
    assert len(stage_paths(copy)) == 5


def test_a_damaged_request_is_an_error_and_never_ignored(copy, whole):
    learner(copy).forget(whole[1], IDS)
    (request,) = (copy / "forgotten").iterdir()
    (request / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged"):
        run(copy, columns())


# ----------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def test_interrupted_before_any_rename_the_same_calls_end_in_the_same_bits(
    whole, tmp_path, monkeypatch
):
    """Every point at which something becomes visible or invisible, one after another."""
    x = [104]
    uninterrupted, _ = run(tmp_path / "never", without(columns(), x))
    expected = {p.name for p in stage_paths(tmp_path / "never")}
    moment = 0
    while True:
        moment += 1
        directory = tmp_path / str(moment)
        shutil.copytree(whole[0], directory)
        left = moment

        def rename(*args, original=os.rename):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return original(*args)

        made = learner(directory)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            try:
                made.forget(whole[1], x)
                break
            except Killed:
                pass
        asked = ledger.forgotten(directory)
        assert asked == (frozenset() if moment == 1 else frozenset(x))
        state, _ = run(directory, columns())
        assert bits(state) == bits(whole[1] if moment == 1 else uninterrupted)
        if moment == 1:
            state, _ = made.forget(state, x)
        assert bits(state) == bits(uninterrupted)
        assert {p.name for p in stage_paths(directory)} == expected
        assert not any("tmp" in name for name in names(directory))
    assert moment > 4


def test_two_processes_forget_at_once_and_no_request_is_lost(copy, whole, never, monkeypatch):
    """The second asks in the middle of the first one's training, and answers first."""
    first, second, seen = learner(copy), learner(copy), []

    def save(*args, original=ledger.save_stage):
        original(*args)
        if not seen:
            seen.append(None)
            seen.append(second.forget(whole[1], IDS[2:])[0])

    monkeypatch.setattr(ledger, "save_stage", save)
    state, info = first.forget(whole[1], IDS[:2])
    assert bits(state) == bits(seen[1]) == bits(never[1])
    assert ledger.forgotten(copy) == frozenset(IDS)
    assert not any(known(path) & set(IDS) for path in stage_paths(copy))
    caught_up, info = second.forget(whole[1], ())
    assert bits(caught_up) == bits(never[1]) and info.examples == 0


def test_a_set_that_is_read_while_it_is_joined_is_read_again(tmp_path, monkeypatch):
    for i in range(3):
        ledger.ask_to_forget(tmp_path, [i])
    real, calls = ledger._entries, []

    def entries(folder):
        found = real(folder)
        if not calls:
            calls.append(None)
            ledger.join(tmp_path)
        return found

    monkeypatch.setattr(ledger, "_entries", entries)
    assert ledger.forgotten(tmp_path) == {0, 1, 2}
    assert len(os.listdir(tmp_path / "forgotten")) == 1


def kill_while_forgetting(whole, never, tmp_path, kills: int, seed: int) -> None:
    """SIGKILL at random moments of a deletion; what resumes is the uninterrupted run."""
    moments, asked, finished = random.Random(seed), 0, 0
    command = [sys.executable, "-m", "tests.methods.shards_child"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "started\n"
        longest = None
        for number in range(kills + 1):
            directory = tmp_path / str(number)
            shutil.copytree(whole[0], directory)
            process.stdin.write(f"{directory}\n")
            process.stdin.flush()
            said = {process.stdout.readline(), process.stdout.readline()}
            (pid,) = (int(line) for line in said - {"ready\n"})
            begin = time.perf_counter()
            if longest is None:  # The first one lives, and says how long it takes.
                assert process.stdout.readline() == "done\n"
                longest = time.perf_counter() - begin
            else:
                time.sleep(moments.uniform(0, longest))
                with contextlib.suppress(ProcessLookupError):  # It was faster.
                    os.kill(pid, signal.SIGKILL)
            while process.stdout.readline() != "dead\n":
                finished += 1
            asked += ledger.forgotten(directory) == frozenset(IDS)
            made, state = learnt(directory)
            state, _ = made.forget(state, IDS)
            assert bits(state) == bits(never[1])
            assert {p.name for p in stage_paths(directory)} == {
                p.name for p in stage_paths(never[0])
            }
            assert not any("tmp" in name for name in names(directory))
        process.stdin.close()
    assert asked > 1 and finished <= kills  # Control: kills fell between request and end.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_a_killed_deletion_is_finished_to_the_same_bits(whole, never, tmp_path):
    kill_while_forgetting(whole, never, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_fifty_killed_deletions_are_finished_to_the_same_bits(whole, never, tmp_path):
    kill_while_forgetting(whole, never, tmp_path, kills=50, seed=1)
