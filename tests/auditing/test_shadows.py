"""Shadow models: who is trained on what, one program a group, and an attack whose answer is known.

The data are made to be learnt by heart: labels by chance, more inputs than rows. So a model knows
exactly what it has seen, and the attack on models that unlearned nothing must find it.
"""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import compare, data, presets, results, training
from jaxunlearn.audit import TooFew
from jaxunlearn.audit.lira import pair_left_out
from jaxunlearn.auditing import shadows
from jaxunlearn.auditing.shadow_design import design, words
from jaxunlearn.auditing.shadows import shadow_lira, train_shadows, unlearn_shadows
from jaxunlearn.cache import Cache
from jaxunlearn.method import Request, Unlearned, method
from jaxunlearn.model import Model

RECIPE = presets.Recipe(learning_rate=0.05, batch_size=20, epochs=8)
METHODS = "gradient_ascent(epochs=4),neggrad_plus"
PAIRS = 6


def noise(rows=60, inputs=80):
    """Labels that have nothing to do with the inputs."""
    rng = np.random.default_rng(0)

    def split(rows, first):
        return {
            "x": rng.standard_normal((rows, inputs)).astype(np.float32),
            "y": rng.integers(0, 3, rows).astype(np.int32),
            "id": np.arange(first, first + rows, dtype=np.int32),
        }

    names = {"y": ("a", "b", "c")}
    return data.Source("noise", split(rows, 0), split(9, 100), split(9, 200), names)


def linear(inputs=80):
    def init(key):
        return {"head": {"w": 0.01 * jax.random.normal(key, (inputs, 3)), "b": jnp.zeros(3)}}

    def outputs(params, batch):
        return batch["x"] @ params["head"]["w"] + params["head"]["b"][None]

    def loss(params, batch):
        logp = jax.nn.log_softmax(outputs(params, batch))
        return -jnp.take_along_axis(logp, batch["y"][:, None], axis=1)[:, 0]

    return Model(outputs=outputs, loss=loss, init=init)


@pytest.fixture(scope="module")
def task():
    return data.random_task(noise(), 0.4, seed=0)


@pytest.fixture(scope="module")
def network():
    return linear()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("models"))


def attack(task, network, methods=METHODS, **changes):
    options = {"recipe": RECIPE, "pairs": PAIRS, "seed": 0, "resamples": 63} | changes
    chosen = presets.parse_methods(methods) if methods else []
    return shadow_lira(task, chosen, network=network, **options)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(task, network, cache, told):
    return attack(task, network, cache=cache, progress=told.append)


@pytest.fixture(scope="module")
def rows(found):
    return {row.label.split("(")[0]: row for row in found.rows}


@pytest.fixture(scope="module")
def made(task):
    return design(task, PAIRS, seed=0)


def without_seconds(found):
    record = results.plain(found)
    return record | {"rows": [row | {"seconds": None} for row in record["rows"]]}


def close(tree, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, other)


# ------------------------------------------------------------------------------------ the design


def test_every_target_was_seen_by_one_of_each_pair_and_by_its_twin_never(task, made):
    assert made.targets.size == 24 and set(made.targets) <= set(task.train_parts["forget"])
    assert (made.member[::2] ^ made.member[1::2]).all()
    assert (made.member.sum(axis=0) == PAIRS).all() and (made.member.sum(axis=1) == 12).all()


def test_each_model_is_trained_on_what_is_retained_and_on_what_it_will_unlearn(task, made):
    retain = task.train_parts["retain"]
    for mine, trained, forgotten in zip(made.member, made.trained, made.forgotten, strict=True):
        assert forgotten.tolist() == made.targets[mine].tolist()
        assert trained.tolist() == sorted([*retain, *forgotten])


def test_halves_are_drawn_anew_for_each_pair_and_more_pairs_keep_the_first_ones(task, made):
    assert len({tuple(half) for half in made.member}) == 2 * PAIRS
    more = design(task, PAIRS + 3, seed=0)
    np.testing.assert_array_equal(more.member[: 2 * PAIRS], made.member)
    np.testing.assert_array_equal(more.trained[: 2 * PAIRS], made.trained)
    assert (design(task, PAIRS, seed=1).member != made.member).any()


def test_forget_rows_that_are_no_targets_stay_in_every_forget_set(task):
    few = design(task, 4, targets=7, seed=0)
    others = np.setdiff1d(task.train_parts["forget"], few.targets)
    assert few.targets.size == 6 and others.size == 18
    assert all(np.isin(others, rows).all() for rows in few.forgotten)
    assert few.forgotten.shape == (8, 18 + 3)
    assert "6 of the 24" in words(task, few) and "other 18 stay" in words(task, few)


def test_an_odd_row_is_said():
    odd = data.random_task(noise(rows=50), 0.5, seed=0)
    assert odd.train_parts["forget"].size == 25
    made = design(odd, 4, seed=0)
    assert made.targets.size == 24 and made.forgotten.shape == (8, 13)
    assert "One row more stays in every forget set" in words(odd, made)


# ----------------------------------------------------------------- the programs, against one by one


@pytest.fixture(scope="module")
def trained(task, network, made, cache, found):
    return train_shadows(network, task, made, RECIPE, seed=0, cache=cache)[0]


def one(params, k):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[k], params)


@pytest.mark.parametrize("k", [0, 7])
def test_a_shadow_is_the_model_that_training_alone_on_its_rows_gives(
    task, network, made, trained, k
):
    key = compare.keys_of(0, "shadows training", 2 * PAIRS)[k]

    def alone(rows):
        own = task.train_data(RECIPE.batch_size).take(rows)
        return training.train(network, RECIPE.tx, own, key=key, epochs=RECIPE.epochs).params

    close(one(trained, k), alone(made.trained[k]), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):  # the twin's rows would be noticed
        close(one(trained, k), alone(made.trained[k ^ 1]), rtol=1e-4, atol=1e-5)


def test_an_unlearned_shadow_is_what_the_method_gives_on_its_own_forget_set(
    task, network, made, trained
):
    built = presets.build("gradient_ascent", {"epochs": 4}, "random", RECIPE, 3)
    keys = compare.keys_of(0, "by hand", 2 * PAIRS)
    out = unlearn_shadows(
        network, built, trained, task, made, keys=keys, batch_size=RECIPE.batch_size
    )[0]
    k, whole = 5, task.train_data(RECIPE.batch_size)

    def alone(rows):
        request = Request(forget=whole.take(rows), retain=task.oracle_data(RECIPE.batch_size))
        start = jax.tree.map(jnp.asarray, one(trained, k))
        return built.unlearn(network, start, request, keys[k]).params

    close(one(out, k), alone(made.forgotten[k]), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        close(one(out, k), alone(made.forgotten[k ^ 1]), rtol=1e-4, atol=1e-5)


def test_each_method_is_one_program_and_all_rows_are_read_by_one(
    task, network, cache, found, monkeypatch
):
    count = {"programs": 0, "reading": 0}
    timed = shadows._timed

    def counting(*arguments):
        count["programs"] += 1
        return timed(*arguments)

    def outputs(params, batch):  # Python runs this when a program is traced, not when it runs
        count["reading"] += batch["x"].shape == (24, 80)
        return network.outputs(params, batch)

    monkeypatch.setattr(shadows, "_timed", counting)
    watched = dataclasses.replace(network, outputs=outputs)
    attack(task, watched, "gradient_ascent(epochs=1)", cache=cache, resamples=7)
    assert count == {"programs": 1, "reading": 1}  # the trained ones are read from the cache


def test_little_room_trains_a_few_at_a_time_with_the_same_result(
    task, network, made, trained, monkeypatch
):
    monkeypatch.setattr(shadows, "_ROOM", 3 * 48 * (80 + 2) * 4)
    assert shadows._at_once(task, made.trained.shape[1]) == 3
    few = train_shadows(network, task, made, RECIPE, seed=0)[0]
    close(few, trained, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- the attack


def test_there_is_a_row_for_no_unlearning_for_retraining_and_for_each_method(found, told):
    assert [row.label for row in found.rows] == ["original", "oracle", *METHODS.split(",")]
    assert [text.split()[0] for text in told] == ["training", "retraining"] + 2 * ["shadow"]
    assert "24 of the 24 forgotten training examples are attacked." in found.words
    assert "6 models that unlearned it" in found.words


def test_what_was_learnt_by_heart_and_not_unlearned_is_found(rows):
    original = rows["original"]
    assert original.accuracy.low > 0.8 and original.auc.value > 0.95
    assert original.p_value == 1 / 32  # the smallest of 2^5 swaps
    assert original.worst == original.examples.max() and original.examples.shape == (24,)
    assert original.tpr["0.1"].value > 0.9 and original.tpr["0.001"] is None


def test_true_retraining_cannot_be_told_from_guessing(rows):
    row = rows["oracle"]
    cells = row.examples.size * 2 * PAIRS
    assert abs(row.accuracy.value - 0.5) < 4 * np.sqrt(0.25 / cells)
    assert row.accuracy.low < 0.5 < row.accuracy.high
    assert row.p_value > 0.05


def test_oracles_are_trained_on_what_is_retained_alone(task, network, cache, found, monkeypatch):
    """Not to be seen in their accuracy: 2K models of one and the same data are all alike."""
    asked, train_group = [], compare.train_group

    def recorded(*arguments):
        asked.append(arguments)
        return train_group(*arguments)

    monkeypatch.setattr(compare, "train_group", recorded)
    attack(task, network, "", cache=cache, resamples=7)
    ((_, _, part, recipe, name, count, seed, _),) = asked
    assert (part, recipe, count, seed) == ("retain", RECIPE, 2 * PAIRS, 0)
    assert name not in ("original", "oracle")  # keys of their own


def test_a_method_that_forgets_nothing_is_found_as_well(rows):
    assert rows["neggrad_plus"].accuracy.value > rows["oracle"].accuracy.high


def test_swapped_twins_make_right_calls_wrong_and_are_noticed(task, network, made, trained, rows):
    """Calls by Gaussians of the right worlds, judged by the wrong ones: 1 - p."""
    phi = shadows.reader(network, *(task.source.train[c][made.targets] for c in "xy"))(trained)
    scores = shadows.scored("", phi, made.member, relabellings=1, rng=np.random.default_rng(0))
    right = scores.accuracy.value
    assert right == pytest.approx(rows["original"].accuracy.value)
    calls = pair_left_out(phi, made.member, pooled=None, who="test") > 0
    assert (calls == made.member).mean() == pytest.approx(right)
    assert (calls == ~made.member).mean() == pytest.approx(1 - right)


def test_the_record_is_json_in_the_shape_that_the_pages_read(found):
    record = json.loads(json.dumps(results.plain(found), allow_nan=False))
    assert {"pairs", "words", "rows"} <= set(record) and record["pairs"] == PAIRS
    for row in record["rows"]:
        assert {"value", "low", "high"} <= set(row["accuracy"]) & set(row["auc"])
        assert set(row["tpr"]) == {"0.001", "0.01", "0.1"}
        assert len(row["examples"]) == 24 and row["worst"] == max(row["examples"])
        assert row["roc"]["fpr"][0] == 0 and row["roc"]["tpr"][-1] == 1
        assert set(row["seconds"]) == {"compile", "run"}
    assert sorted(record["targets"]) == record["targets"] and len(record["targets"]) == 24


def test_equal_seeds_give_equal_numbers_and_trained_models_come_from_the_cache(
    task, network, cache, found
):
    """And no row depends on which other methods there are."""
    again = attack(task, network, "neggrad_plus", cache=cache)
    assert [row.seconds["run"] for row in again.rows[:2]] == [0.0, 0.0]
    assert again.rows[2].seconds["run"] > 0
    before, after = without_seconds(found), without_seconds(again)
    others = [row for row in before["rows"] if "ascent" not in row["label"]]
    assert others == after["rows"]
    assert before | {"rows": None} == after | {"rows": None}


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"recipe": dataclasses.replace(RECIPE, epochs=1)}]
)
def test_another_seed_or_recipe_is_not_found_in_the_cache(
    task, network, made, cache, found, changes, monkeypatch
):
    def trains(*arguments):
        raise LookupError("trained anew")

    monkeypatch.setattr(shadows, "_timed", trains)
    options = {"seed": 0, "recipe": RECIPE}
    train_shadows(network, task, made, cache=cache, **options)
    with pytest.raises(LookupError, match="trained anew"):
        train_shadows(network, task, made, cache=cache, **options | changes)


def test_a_pair_with_a_model_that_is_not_finite_is_left_out_and_said(
    task, network, cache, found, monkeypatch
):
    reader = shadows.reader

    def broken(*arguments):
        margins = reader(*arguments)

        def read(params):
            phi = margins(params)
            phi[3] = np.nan
            return phi

        return read

    monkeypatch.setattr(shadows, "reader", broken)
    found = attack(task, network, "", cache=cache)
    assert [row.pairs for row in found.rows] == [5, 5] and found.rows[0].accuracy.value > 0.8
    assert found.notes[0].startswith("original: 1 of 6 pairs have a model that is not finite")


def test_what_a_method_warns_of_is_noted_once(task, network, cache, found, monkeypatch):
    def warn(request):
        warnings.warn("idle: nothing will happen.", stacklevel=2)

    def nothing(model, params, request, key):
        return Unlearned(model, params, ())

    idle = method(nothing, needs=(), name="idle", warn=warn)
    monkeypatch.setattr(presets, "build", lambda *arguments: idle)
    found = attack(task, network, "ssd", cache=cache, resamples=7)
    assert found.notes == ("ssd: idle: nothing will happen.",)
    original, _, unchanged = found.rows
    assert unchanged.accuracy.value == original.accuracy.value


@pytest.mark.slow
def test_a_network_of_flax_and_a_class_to_forget():
    """The road of the command line: a class, a network of the catalogue, its preset."""
    source = data.thinned(data.digits(), 120)
    recipe = presets.Recipe(epochs=1, batch_size=64)
    task = data.class_task(source, 3)
    chosen = presets.parse_methods("ssd")
    network = compare.network_of(source, recipe)
    found = shadow_lira(task, chosen, network=network, recipe=recipe, pairs=4, seed=0, resamples=7)
    assert [row.label for row in found.rows] == ["original", "oracle", "ssd"]
    assert all(0 <= row.accuracy.value <= 1 for row in found.rows)


# ------------------------------------------------------------------------------ what is refused


def test_too_few_pairs_are_refused(task, network):
    with pytest.raises(TooFew, match=r"expected at least 4 pairs, got 3: where a pair is left out"):
        attack(task, network, pairs=3)


@pytest.mark.parametrize("changes", [{"targets": 1}, {"seed": -1}])
def test_targets_and_seeds_that_cannot_be_are_refused(task, network, changes):
    with pytest.raises(ValueError, match=r"expected targets >= 2 \(or None\) and seed >= 0"):
        attack(task, network, **changes)


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_fewer_than_two_rows_to_forget_are_refused(network, share):
    task = data.random_task(noise(), share, seed=0)
    with pytest.raises(TooFew, match=r"training row\(s\); twins need at least 2 to share out"):
        attack(task, network)


def test_a_real_target_is_refused(network):
    real = data.random_task(data.diabetes(), 0.1, seed=0)
    with pytest.raises(ValueError, match="has a real target; the attack reads the margin"):
        attack(real, network)


def test_a_method_that_needs_what_the_task_has_not_is_refused_before_training(task, network):
    with pytest.raises(ValueError, match=r"entanglement needs adjacent data, of which task"):
        attack(task, network, "entanglement", progress=lambda text: pytest.fail(text))
