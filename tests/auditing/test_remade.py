"""A record back to its task, settings, methods and models; what is refused."""

import copy
import re

import pytest

from jaxunlearn import compare, data, results
from jaxunlearn.auditing import remade
from jaxunlearn.presets import Recipe, parse_methods

RECIPE = Recipe(epochs=2, batch_size=256, optimizer="sgd", learning_rate=0.1)
SETTINGS = compare.Settings(RECIPE, seeds=2, oracles=4, seed=3, permutations=19, resamples=19)
METHODS = "finetune(epochs=1),retrain"


@pytest.fixture(scope="module")
def task():
    return data.class_task(data.thinned(data.digits(), 150), 3)


@pytest.fixture(scope="module")
def record(task, tmp_path_factory):
    found = compare.compare(task, parse_methods(METHODS), SETTINGS)
    path = results.write(found, tmp_path_factory.mktemp("run") / "results.json")
    return results.read(path).record


def changed(record, *path, to):
    other = copy.deepcopy(record)
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return other


def test_the_task_of_a_thinned_source_comes_back(record, task):
    again = remade.task_of(record)
    assert again.digest == task.digest
    assert again.source.name == "digits (150 rows)"


def test_settings_and_methods_come_back(record):
    assert remade.settings_of(record) == SETTINGS
    assert remade.methods_of(record) == parse_methods(METHODS)
    assert [m.label for m in remade.methods_of(record, ["retrain"])] == ["retrain"]
    assert remade.methods_of(record, []) == []


def test_the_models_come_back_bit_by_bit(record, task):
    network = compare.network_of(task.source, RECIPE)
    evaluator = compare.Evaluator(network, task, SETTINGS)
    labels = {part: entry.columns["y"] for part, entry in evaluator.parts.items()}
    for made in compare.ensembles_of(network, task, parse_methods(METHODS), SETTINGS, timed=False):
        logits = evaluator(made.params)
        accuracies = {p: (z.argmax(-1) == labels[p]).mean(axis=1) for p, z in logits.items()}
        remade.check_models(record, made.label, accuracies)
        accuracies["test"] = accuracies["test"] + 1e-3
        with pytest.raises(
            ValueError, match=re.escape(f"models of '{made.label}' cannot be made again")
        ):
            remade.check_models(record, made.label, accuracies)
        with pytest.raises(ValueError, match="cannot be made again"):
            remade.check_models(record, made.label, {p: a[:1] for p, a in accuracies.items()})


def test_other_data_and_other_rows_are_refused(record):
    with pytest.raises(ValueError, match="the data of digits .* are not those of the comparison"):
        remade.task_of(changed(record, "task", "source_digest", to="0" * 64))
    with pytest.raises(ValueError, match="the rows of class:4 are not those"):
        remade.task_of(changed(record, "task", "name", to="class:4"))


def test_recommenders_and_regressions_are_refused(record):
    other = copy.deepcopy(record)
    del other["task"]["classes"]
    with pytest.raises(ValueError, match="audits of models, .* are for classifiers"):
        remade.task_of(other)


def test_unknown_settings_and_rows_are_named(record):
    with pytest.raises(ValueError, match=r"settings: \['rank'\] are unknown"):
        remade.settings_of(changed(record, "settings", "rank", to=3))
    with pytest.raises(ValueError, match="no such row: 'retrian' is unknown.*'retrain'"):
        remade.methods_of(record, ["retrian"])
