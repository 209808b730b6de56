"""What makes the files behind BENCHMARKS.md: the comparisons, and the timing of an ensemble."""

import argparse
import copy
import importlib.util
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import comparisons, machine
from experiments.benchmarks import ensemble, plain_torch, section, speed_up
from experiments.benchmarks.floor import matmul_rate, training_flops
from jaxunlearn.cli import parser
from tests.experiments.records import benchmark


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_the_command_of_a_record_asks_for_the_same_comparison(name):
    chosen = comparisons.COMPARISONS[name]
    words = shlex.split(comparisons.command(chosen, methods="ssd,finetune(epochs=2)"))
    given = parser().parse_args(words[1:])
    assert given.methods == "ssd,finetune(epochs=2)"
    assert (given.source, given.forget) == (chosen.source, chosen.forget)
    for option, value in comparisons._options(chosen.settings).items():
        assert getattr(given, option) == value, option


def test_data_that_are_not_there_are_skipped_unless_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "use_all_cores", lambda: None)
    monkeypatch.setattr(comparisons, "COMPARISONS", {"mnist": comparisons.COMPARISONS["mnist"]})
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert comparisons.main(arguments) == 0
    assert comparisons.main([*arguments, "--only", "mnist"]) == 2
    assert "mnist: skipped: no data for 'mnist'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_summary_keeps_every_number_that_is_not_of_one_model():
    full = {"rows": [{"value": 1.5, "per_model": [1, 2], "info": {"steps": [3.0]}}], "curves": {}}
    kept = copy.deepcopy(full)
    assert comparisons.without_bulk(full) == {"rows": [{"value": 1.5}]}
    assert full == kept


def test_the_machine_is_described_without_its_name():
    found = machine.description()
    assert set(found) == {"cpu", "cores", "system"}
    assert found["cores"] >= 1 and found["cpu"]


def test_counted_flops_are_those_that_xla_counts():
    layers = ensemble.LAYERS
    weights = [jnp.ones(shape) for shape in zip(layers, layers[1:], strict=False)]

    def loss(weights, x):
        for w in weights[:-1]:
            x = jnp.maximum(x @ w, 0)
        return (x @ weights[-1]).sum()

    x = jnp.ones((64, layers[0]))
    counted = jax.jit(jax.grad(loss)).lower(weights, x).compile().cost_analysis()["flops"]
    # The value of the last product is not needed for the gradient of a sum.
    expected = training_flops(64, layers) - 2 * 64 * layers[-2] * layers[-1]
    assert counted == pytest.approx(expected, rel=0.03)


def test_a_matmul_rate_is_that_of_a_computer():
    assert 1e7 < matmul_rate(1, 64, 64, 64, repeats=2) < 1e16


def test_speed_up_is_against_the_fastest_rival_of_each_kind():
    made = [
        {"program": "p", "of": "ours", "seconds": 2.0, "compile": 3.0},
        {"program": "slow", "of": "plain torch", "seconds": 20.0},
        {"program": "fast", "of": "plain torch", "seconds": 10.0},
        {"program": "fused", "of": "tuned torch", "seconds": 8.0},
    ]
    found = speed_up.ratios(made)["p"]
    assert found["plain torch"] == {"against": "fast", "run": 5.0, "with_compile": 2.0}
    assert found["tuned torch"]["run"] == 4.0
    assert speed_up.ratios(made[:1]) == {}


@pytest.mark.parametrize(("rival", "same"), [(0.93, True), (0.70, False)])
def test_another_accuracy_is_another_job(rival, same):
    ours = {"of": "ours", "accuracy": 0.95, "standard_error": 0.006}
    torch = {"of": "plain torch", "accuracy": rival, "standard_error": 0.008}
    found = speed_up.same_job([ours, torch])
    assert found["standard_error"] == pytest.approx(0.01)
    assert found["same"] is same
    text = " ".join(section.many_models(benchmark() | {"same_job": found}).split())
    assert ("NOT the same job" in text) is not same


def test_without_pytorch_ours_is_timed_alone(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = argparse.Namespace(models=2, torch_models=1, epochs=1, repeats=1, how=["map:1"])
    made = ensemble.benchmark(options)
    assert "PyTorch is not installed" in capsys.readouterr().err
    assert made["ratios"] == {} and made["same_job"] is None
    assert "no ratio" in section.many_models(made)
    assert made["floor"]["flops"] == 2 * training_flops(1078, ensemble.LAYERS)
    only = made["programs"][0]
    assert 0.1 < only["accuracy"] < 1 and only["seconds"] > 0
    assert "ensemble, map:1" in ensemble.table(made)


def test_the_pytorch_loop_learns_what_can_be_learnt(clusters):
    pytest.importorskip("torch", reason="PyTorch is optional: the rival of a benchmark")
    run = plain_torch.plain_torch(
        clusters, clusters, layers=(4, 16, 3), learning_rate=0.02, batch_size=20, epochs=10,
        models=2, threads=1,
    )  # fmt: skip
    seconds, accuracies = run(0)
    assert seconds > 0
    assert accuracies.shape == (2,)
    assert (accuracies > 0.95).all()
    np.testing.assert_array_equal(run(0)[1], accuracies)
