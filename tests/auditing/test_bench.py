"""What is measured of an ensemble: equal conditions, what is asked of one model, what is absent.

Most models here are drawn, not trained: what is asked is whether the bench measures what it says.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import audit, compare, data, presets
from jaxunlearn.auditing import Bench, blocks, representation, suite
from jaxunlearn.auditing.bench import _PLACES
from jaxunlearn.auditing.durability import QUANTISED, SHARES, has_head
from jaxunlearn.auditing.planted import mask_classes
from jaxunlearn.model import Model

RECIPE = presets.Recipe(epochs=1, batch_size=32, optimizer="sgd", learning_rate=0.1)
SETTINGS = compare.Settings(RECIPE, seeds=4, oracles=6, permutations=19, resamples=19)
STEPS = 4
RELEARNED = {"relearning", "few_examples", "fresh_head"}


@pytest.fixture(scope="module", autouse=True)
def short_dictionaries():
    """Steering is by whatever a few steps give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representation, "SAE_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def source():
    return data.thinned(data.digits(), 120)


def drawn(network, count, seed=0):
    return jax.device_get(jax.vmap(network.init)(jax.random.split(jax.random.key(seed), count)))


def chosen(params, models):
    return jax.tree.map(lambda leaf: leaf[np.asarray(models)], params)


@pytest.fixture(scope="module")
def bench(source):
    task = data.class_task(source, 3)
    made = Bench(compare.network_of(source, RECIPE), task, SETTINGS, rows=40, steps=STEPS)
    made.learn_steering(drawn(made.network, 4))
    return made


@pytest.fixture(scope="module")
def params(bench):
    """20 models: more than one block, less than two."""
    return drawn(bench.network, 20)


@pytest.fixture(scope="module")
def measured(bench, params):
    return bench(params)


def linear(source, **changes):
    """A Model by hand: softmax regression on flattened pixels, nothing but outputs and loss."""
    size, classes = int(np.prod(source.input_shape)), source.num_outputs

    def outputs(params, batch):
        return batch["x"].reshape(len(batch["x"]), -1) @ params["w"] + params["b"][None]

    def loss(params, batch):
        logits = outputs(params, batch)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    def some(count):
        keys = jax.random.split(jax.random.key(1), count)
        w = jax.vmap(lambda key: 0.3 * jax.random.normal(key, (size, classes)))(keys)
        return {"w": np.asarray(w), "b": np.zeros((count, classes), np.float32)}

    return Model(outputs=outputs, loss=loss, **changes), some


# --- Equal conditions -------------------------------------------------------------------------


def test_a_model_is_measured_the_same_among_others_and_in_any_place(bench, params, measured):
    """Models 0, 4, 8, ... keep the original that steers them: their number modulo 4."""
    models = [8, 16, 4, 12]
    places = np.arange(4) * 4
    turned = np.arange(16)
    turned[places] = models
    turned = [t if i % 4 == 0 else i for i, t in enumerate(turned)]
    again = bench(chosen(params, turned))
    for field in ("logits", "features", "places", "curves", "numbers"):
        for key, values in getattr(measured, field).items():
            np.testing.assert_allclose(
                getattr(again, field)[key], values[turned], rtol=1e-5, atol=1e-6, err_msg=key
            )
    assert np.unique(measured.places["relearning"][:, 0]).size == 20  # models that differ


def test_blocks_of_another_size_measure_the_same(bench, params, measured, monkeypatch):
    monkeypatch.setattr(blocks, "AT_ONCE", 8)
    monkeypatch.setattr(compare, "_ROWS_AT_ONCE", 7)
    bench = Bench(bench.network, bench.task, SETTINGS, rows=40, steps=STEPS)
    bench._attacks = {"relearning": bench._attacks["relearning"]}
    again = bench(chosen(params, range(9)))
    for part, logits in again.logits.items():
        np.testing.assert_allclose(logits, measured.logits[part][:9], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        again.curves["relearning"], measured.curves["relearning"][:9], rtol=1e-5, atol=1e-6
    )


def test_a_block_is_filled_up_and_the_filling_is_dropped():
    seen = []

    def double(x):
        seen.append(x.shape)
        return {"twice": 2 * x}

    x = np.arange(38.0).reshape(19, 2)
    np.testing.assert_array_equal(blocks.in_blocks(double, x)["twice"], 2 * x)
    assert seen == [(16, 2), (16, 2)]


def test_another_ensemble_compiles_nothing(bench, params, measured):
    programs = [*bench._attacks.values(), bench._featured, bench._steering]
    before = [run._cache_size() for run in programs]
    bench(chosen(params, range(3)))
    assert [run._cache_size() for run in programs] == before and min(before) > 0


def test_rows_are_chosen_by_the_seed_alone(source):
    task = data.class_task(source, 3)
    network = compare.network_of(source, RECIPE)
    one, two, more = (Bench(network, task, SETTINGS, rows=n, steps=STEPS) for n in (10, 10, 30))
    for name in ("taught", "test", "forget", "held"):
        np.testing.assert_array_equal(getattr(one, name).x, getattr(two, name).x)
        assert getattr(one, name).size == min(10, getattr(more, name).size)
    other = compare.Settings(RECIPE, seeds=4, oracles=6, seed=1)
    third = Bench(network, task, other, rows=10, steps=STEPS)
    assert (third.taught.x != one.taught.x).any() and (third.shown.x != one.shown.x).any()


# --- What is asked of one model ---------------------------------------------------------------


def test_relearning_is_the_curve_of_one_model_on_the_shown_half(bench, params, measured):
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[17]), params)
    curve = audit.relearning_curve(
        bench.network, one, bench.shown.batch, {"held": bench.held.batch},
        tx=RECIPE.tx, steps=STEPS, every=1, key=jax.random.key(SETTINGS.seed),
    )  # fmt: skip
    found = np.asarray(curve.watched["held"].confidence)
    np.testing.assert_allclose(measured.curves["relearning"][17], found, rtol=1e-5, atol=1e-6)
    assert found[-1] > found[0]  # there is something to see


def test_relearning_from_few_rows_is_watched_on_the_half_held_back(bench, params, measured):
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[2]), params)
    counts = tuple(bench.axes["few_examples"])
    assert counts == (1, 2, 4)  # of five shown rows
    curve = audit.relearning_by_examples(
        bench.network, one, bench.shown.batch, {"held": bench.held.batch},
        counts=counts, tx=RECIPE.tx, steps=STEPS // 2, key=jax.random.key(SETTINGS.seed),
    )  # fmt: skip
    np.testing.assert_allclose(
        measured.curves["few_examples"][2],
        curve.watched["held"].confidence[:, -1], rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_rows_held_back_are_never_shown(bench):
    forget = bench.task.columns("train", "forget")["x"]
    shown, held = ({row.tobytes() for row in rows.x} for rows in (bench.shown, bench.held))
    assert not shown & held and len(shown) == len(forget) // 2
    assert shown | held == {row.tobytes() for row in forget}
    seen = {row.tobytes() for row in bench.taught.x}
    assert not seen & held  # nor are they among the retained rows of a fresh last layer


def test_unseen_rows_are_of_the_test_split_and_the_kinds_are_apart(bench):
    assert set(bench.kind.y) == {3} and 3 not in bench.test.y
    test = {row.tobytes() for row in bench.task.columns("test", "all")["x"]}
    for rows in (bench.kind, bench.test):
        assert {row.tobytes() for row in rows.x} <= test


def test_nothing_pruned_and_32_bits_are_the_model_as_it_is(bench, measured):
    logits = measured.logits["forget"].astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    known = np.take_along_axis(p, bench.labels["forget"][None, :, None], axis=-1).mean(axis=(1, 2))
    assert SHARES[0] == 0.0 and bench.axes["quantisation"][0] == "32 bits"
    for key in ("pruning", "quantisation", "other_training"):
        np.testing.assert_allclose(measured.curves[key][:, 0], known, rtol=1e-4, err_msg=key)
        assert (measured.curves[key][:, -1] != measured.curves[key][:, 0]).all()


def test_curves_have_a_number_at_each_place_of_their_axis(bench, measured):
    for key, values in measured.curves.items():
        assert values.shape == (20, len(bench.axes[key])), key
        assert (values >= 0).all() and (values <= 1 + 1e-6).all()
    assert bench.axes["relearning"] == [0, 1, 2, 3, 4]
    assert bench.axes["quantisation"][1:] == list(QUANTISED)


@pytest.mark.parametrize(("steps", "places"), [(1, 2), (40, 21), (45, 23), (59, 30)])
def test_long_runs_are_recorded_now_and_then_and_to_their_end(source, steps, places):
    network, _ = linear(source)
    axes = Bench(network, data.class_task(source, 3), SETTINGS, rows=4, steps=steps).axes
    assert len(axes["relearning"]) == places
    assert steps - axes["relearning"][-1] < axes["relearning"][1]


def test_a_masked_last_layer_changes_outputs_and_nothing_that_features_show(
    bench, params, measured
):
    masked = bench(mask_classes(params, bench.classes))
    assert (masked.logits["forget"].argmax(-1) != 3).all()
    for key, values in measured.features.items():
        np.testing.assert_array_equal(masked.features[key], values)
    for key in ("probes", "fresh_head"):
        np.testing.assert_array_equal(masked.places[key], measured.places[key])
    for key in ("relearning", "other_training", "pruning", "membership", "steering"):
        assert (masked.places[key] != measured.places[key]).any(), key
    assert masked.places["relearning"].max() < 1e-6  # a bias of -1000 is not relearned


def test_model_i_is_steered_by_original_i_modulo_their_number(bench, params, measured):
    def steered(model, original):
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf[model]), params)
        guide = jax.tree.map(lambda leaf: jnp.asarray(leaf[original]), bench.guide)
        found = audit.restoration(
            bench.network, one, guide.params, guide.sae, bench.forget.batch,
            np.ones(bench.forget.size, bool), guide.experts,
            key=jax.random.key(SETTINGS.seed), alphas=representation.ALPHAS,
        )  # fmt: skip
        return np.stack([found.steered[arm].confidence for arm in representation.ARMS])

    np.testing.assert_allclose(measured.places["steering"][6], steered(6, 2), rtol=1e-4, atol=1e-6)
    assert abs(measured.places["steering"][6] - steered(6, 1)).max() > 1e-4
    for i, arm in enumerate(representation.ARMS):
        curve = measured.curves[f"steering_{arm}"]
        np.testing.assert_array_equal(curve, measured.places["steering"][:, i])


def test_numbers_that_place_models_are_those_of_each_model_alone(bench, measured):
    for name, keys in _PLACES.items():
        values = [measured.numbers[key] for key in keys if key in measured.numbers]
        np.testing.assert_array_equal(measured.places[name], np.stack(values, axis=1))
    loss = {
        part: audit.attack_signal(measured.logits[part], bench.labels[part], score="loss")
        for part in ("forget", "forget_test", "retain", "test")
    }
    auc = audit.auc(loss["forget"], loss["forget_test"])  # of the same kind, not all test rows
    np.testing.assert_array_equal(measured.numbers["forget_loss_auc"], auc)
    auc = audit.auc(loss["retain"], loss["test"])
    np.testing.assert_array_equal(measured.numbers["retain_loss_auc"], auc)
    assert bench.outsiders() == "forget_test"


def test_accuracies_are_those_of_the_outputs(bench, measured):
    found = bench.accuracies(measured)
    assert found.keys() == bench.parts.keys()
    right = (measured.logits["test"].argmax(-1) == bench.labels["test"]).mean(axis=1)
    np.testing.assert_allclose(found["test"], right)


def test_the_mean_roc_rises_from_one_corner_to_the_other(bench, measured):
    roc = bench.roc(measured)
    assert roc["fpr"][0] == 0 and roc["fpr"][-1] == roc["tpr"][-1] == 1
    assert (np.diff(roc["tpr"]) >= 0).all() and roc["tpr"].shape == (61,)


# --- Models that are broken -------------------------------------------------------------------


def test_a_broken_model_is_undefined_alone(bench, params, measured):
    broken = jax.tree.map(lambda leaf: leaf[:5].copy(), params)
    for leaf in jax.tree.leaves(broken):
        leaf[1] = np.nan
    found = bench(broken)
    assert bench.broken(found) == 1 and bench.broken(measured) == 0
    sound = [0, 2, 3, 4]
    for key, values in found.places.items():
        assert np.isnan(values[1].astype(float)).any(), key
        np.testing.assert_allclose(
            values[sound], measured.places[key][sound], rtol=1e-5, atol=1e-6, err_msg=key
        )
    assert np.isnan(bench.accuracies(found)["forget"][1])
    roc = bench.roc(found)
    assert np.isfinite(roc["tpr"]).all()
    assert bench.roc(bench(chosen(broken, [1, 1]))) is None


def test_broken_and_sound_ensembles_have_the_same_audits(bench, params, measured):
    """What is asked depends on the task, never on what a model answers: places can be joined."""
    nothing = jax.tree.map(lambda leaf: np.full_like(leaf[:2], np.nan), params)
    found = bench(nothing)
    assert found.places.keys() == measured.places.keys()
    for key, values in found.places.items():
        assert values.shape[1:] == measured.places[key].shape[1:]
    assert suite.distances([found, measured]).keys() == suite.distances([measured]).keys()


# --- Tasks and networks that lack something ---------------------------------------------------


def test_a_model_by_hand_has_no_features_no_fresh_layer_and_no_steering(source):
    network, some = linear(source)
    bench = Bench(network, data.class_task(source, 3), SETTINGS, rows=20, steps=2)
    bench.learn_steering(some(2))
    found = bench(some(3))
    assert bench.guide is None and found.features == {} and "neighbours" not in found.numbers
    assert found.places.keys() == {
        "relearning", "few_examples", "other_training", "pruning", "quantisation",
        "membership", "retained_membership", "margins",
    }  # fmt: skip
    audits = suite.distances([found, found]).keys()
    assert not audits & {"fresh_head", "features_forget", "features_test", "probes", "steering"}


def test_a_last_layer_is_fresh_only_where_there_is_one(source):
    network = compare.network_of(source, RECIPE)
    assert has_head(network, network.init(jax.random.key(0)))
    assert not has_head(network, None)
    assert not has_head(network, {"w": jnp.ones(2)})
    assert not has_head(network, {"head": jnp.ones(2)})  # nothing but a head


def features_only(source):
    """Cheap: the pixels are the features."""
    return linear(source, features=lambda p, batch: batch["x"].reshape(len(batch["x"]), -1))


def test_rows_chosen_at_random_have_no_kind(source):
    network, some = features_only(source)
    bench = Bench(network, data.random_task(source, 0.2, seed=0), SETTINGS, rows=20, steps=2)
    found = bench(some(3))
    assert bench.classes.size == 0 and bench.kind.size == 0 and bench.outsiders() == "test"
    assert "forget_test" not in found.logits
    assert not found.numbers.keys() & {"probe_recall", "probe_auc"}
    assert {"neighbours", "transfer", "probe_membership"} <= found.numbers.keys()
    assert found.places["probes"].shape == (3, 3)


def test_a_subclass_has_a_kind_and_neighbours_but_no_class_of_its_own():
    source = data.thinned(data.load("digits:odd_even"), 120)
    task = data.parse_task(source, "subclass:3")
    network, some = features_only(source)
    bench = Bench(network, task, SETTINGS, rows=30, steps=2)
    found = bench(some(3))
    assert bench.classes.size == 0 and bench.outsiders() == "forget_test"
    kind = {row.tobytes() for row in task.columns("test", "forget")["x"]}
    assert {row.tobytes() for row in bench.kind.x} <= kind and bench.kind.size >= 5
    assert not {row.tobytes() for row in bench.test.x} & kind
    assert {"outputs_adjacent", "outputs_remote"} <= suite.distances([found]).keys()
    rng = np.random.default_rng([SETTINGS.seed, 3])
    known = audit.membership_probe(found.features["forget"], found.features["kind"], rng=rng)
    np.testing.assert_array_equal(found.numbers["probe_membership"], known.auc)


def test_a_class_among_ids_is_found_in_the_test_rows(source):
    ids = source.train["id"][source.train["y"] == 3]
    network, _ = features_only(source)
    bench = Bench(network, data.index_task(source, ids), SETTINGS, rows=30, steps=2)
    assert bench.classes.tolist() == [3]
    assert set(bench.kind.y) == {3} and 3 not in bench.test.y


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_rows_to_forget_are_measured_as_far_as_they_go(source, count):
    network, some = features_only(source)
    task = data.index_task(source, source.train["id"][:count])
    bench = Bench(network, task, SETTINGS, rows=20, steps=2)
    found = bench(some(3))
    assert ("relearning" in found.places) == (count > 1)
    assert bench.axes["few_examples"] == [1] * (count > 1)
    assert "probe_membership" not in found.numbers
    matrices = suite.distances([found, found])
    assert "features_forget" not in matrices and "outputs_forget" in matrices
    assert all(np.isfinite(D).all() for D in matrices.values())


def test_four_rows_of_each_kind_are_enough_for_a_network_with_everything(source):
    """The fewest rows that the settings allow: not every class is among those that teach."""
    network, some = features_only(source)
    for task in (data.class_task(source, (3, 5)), data.random_task(source, 0.2, seed=0)):
        bench = Bench(network, task, SETTINGS, rows=4, steps=2)
        found = bench(some(2))
        assert set(bench.test.y) - set(bench.taught.y)
        assert max(values.shape[1] for values in found.features.values()) <= 4
        assert np.isfinite(found.places["probes"]).all()


def test_the_probe_of_a_class_that_was_not_drawn_is_left_out():
    labels = {name: np.array([0, 1, 0, 1]) for name in ("forget", "taught", "test")}
    labels["kind"] = np.array([2, 2])
    features = {
        name: np.random.default_rng(0).normal(size=(2, len(y), 3)) for name, y in labels.items()
    }
    found = representation.probes(features, labels, np.array([2]), seed=0)
    assert found.keys() == {"neighbours", "transfer"}
    assert (found["neighbours"] == 0).all()


def test_other_training_is_on_retained_rows_of_every_kind(source):
    network, _ = linear(source)
    task = data.parse_task(data.thinned(data.load("digits:odd_even"), 120), "subclass:3")
    columns = task.columns("train", "retain")
    retain = {row.tobytes() for row in columns["x"]}
    others = Bench(network, task, SETTINGS, rows=4, steps=2)._others()
    assert {row.tobytes() for row in others.x} <= retain
    assert others.size == min(64, len(retain))  # 2 steps of 32
    assert set(others.y) == set(columns["y"])
