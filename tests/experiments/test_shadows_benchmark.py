"""The benchmark of shadow models: a tiny run whole, the loop in PyTorch, its section's words."""

import json

import numpy as np
import pytest

from experiments import benchmarks_md
from experiments.benchmarks import shadows, shadows_section
from experiments.benchmarks.shadows_torch import REBUILT, torch_protocol
from jaxunlearn import presets
from tests.experiments.records import record as comparison

SAME = {"ours": 8.2, "torch": 8.1, "standard_error": 0.2, "same": True}


def interval(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "count": 128}


def row(label, compiling, run):
    return {
        "label": label,
        "pairs": 64,
        "accuracy": interval(0.568),
        "auc": interval(0.623),
        "tpr": {"0.001": None, "0.01": interval(0.095), "0.1": interval(0.213)},
        "p_value": 0.001,
        "worst": 0.99,
        "seconds": {"compile": compiling, "run": run},
    }


def made(same=SAME, **changes):
    """A record of numbers that mean nothing."""
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    torch = {
        "task": "random:0.1:seed=0", "version": "2.0", "models": 4, "threads": 1, "tried": [1, 2],
        "measured": {"training": 2.0, "finetune": 0.5},
        "extrapolated": {"training": 64.0, "finetune": 16.0},
        "same_job": {"training": SAME, "finetune": same},
    }  # fmt: skip
    study = {
        "task": "random:0.1:seed=0",
        "description": "Forget a tenth.",
        "targets": 120,
        "seconds": 35.2,
        "notes": ["ssd: said something."],
        "rows": [row("original", 3.0, 4.0), row("oracle", 3.0, 4.0), row("finetune", 1.0, 1.0)],
    }
    record = facts | {
        "schema": shadows.SCHEMA,
        "kind": shadows.KIND,
        "command": "python -m experiments.benchmarks.shadows --pairs 64",
        "job": {
            "pairs": 64, "layers": [64, 128, 64, 10], "epochs": 30, "batch_size": 64,
            "learning_rate": 2e-3, "methods": ["finetune"], "relabellings": 999,
        },
        "studies": [study],
        "torch": torch,
        "ratios": shadows.ratios(study, torch),
    }  # fmt: skip
    return record | changes


def said(record):
    return " ".join(shadows_section.attacks(record).split())


def test_a_ratio_is_of_the_stages_that_both_sides_ran():
    found = made()["ratios"]
    assert (found["torch"], found["ours"], found["compile"]) == (80.0, 5.0, 4.0)  # no oracle
    assert found["run"] == 16.0 and found["with_compile"] == pytest.approx(80 / 9)


def test_the_section_says_what_the_record_says_and_what_was_not_run(tmp_path):
    text = said(made())
    assert "| original | 56.8 (54.8 to 58.8) | 62.3 (60.3 to 64.3) | 9.5 (7.5 to 11.5) |" in text
    assert "1 methods: 35 s in all, compilation, intervals and tests included" in text
    assert "4 of the 128 shadows" in text and "were trained one after another" in text
    assert "times 128 / 4, and was not run" in text
    assert "16.0 times faster, 8.9 times with compilation" in text and "It is the same job" in text
    assert "Note: ssd: said something." in text
    (tmp_path / "shadows.json").write_text(json.dumps(made()))
    assert benchmarks_md.read_further(tmp_path) == [shadows_section.attacks(made())]


def test_a_loop_that_does_another_job_is_said():
    text = said(made(same=SAME | {"same": False}))
    assert "NOT the same job at finetune, so the ratio means nothing" in text


def test_without_pytorch_there_is_no_ratio():
    assert "PyTorch was not installed" in said(made(torch=None, ratios=None))


def test_undefined_numbers_are_the_word_undefined():
    record = made()
    broken = dict.fromkeys(("accuracy", "auc", "p_value", "worst"))
    record["studies"][0]["rows"][2] |= broken | {"tpr": {"0.01": None}}
    assert "| finetune | undefined | undefined | undefined | undefined | undefined |" in said(
        record
    )


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "shadows.json"
    path.write_text(json.dumps(made() | {"kind": "other"}))
    with pytest.raises(ValueError, match=r"Make it anew with `python -m experiments.benchmarks.sh"):
        shadows_section.read(path)


# ------------------------------------------------------------------------- the loop in PyTorch


def protocol(**changes):
    rng = np.random.default_rng(0)
    columns = {
        "x": rng.standard_normal((40, 5)).astype(np.float32),
        "y": rng.integers(0, 3, 40).astype(np.int32),
    }
    trained = np.stack([np.arange(30), np.arange(10, 40)])
    forgotten = np.stack([np.arange(20, 30)] * 2)
    settings = {
        "finetune": {"learning_rate": 0.0, "epochs": 1},
        "neggrad_plus": {"learning_rate": 0.05, "epochs": 2, "alpha": 0.0},
        "gradient_ascent": {"learning_rate": 0.05, "epochs": 9, "stop_at_chance": 3},
        "random_labels": {"learning_rate": 0.02, "epochs": 9},
    }
    options = {
        "layers": (5, 16, 3), "learning_rate": 0.05, "batch_size": 10, "epochs": 30,
        "settings": settings, "threads": 1, "seed": 0,
    } | changes  # fmt: skip
    return torch_protocol(columns, trained, forgotten, np.arange(20, 30), **options)


def test_the_loop_does_to_the_forgotten_what_each_method_says():
    pytest.importorskip("torch")
    seconds, margins = protocol()
    assert set(seconds) == {"training", *REBUILT} and min(seconds.values()) > 0
    loss = {stage: np.logaddexp(0, -phi).mean() for stage, phi in margins.items()}
    assert margins["training"].shape == (2, 10)
    np.testing.assert_array_equal(margins["finetune"], margins["training"])  # of rate 0
    assert min(loss[name] for name in REBUILT[1:]) > 1.5 * loss["training"]
    kept = {"neggrad_plus": {"learning_rate": 0.05, "epochs": 2, "alpha": 1.0}}
    gentle = protocol(settings=kept)[1]["neggrad_plus"]  # fine-tuning, while alpha 0 is ascent
    assert np.logaddexp(0, -gentle).mean() < loss["neggrad_plus"] / 1.2


def test_ascent_stops_at_chance_and_would_go_on_without():
    pytest.importorskip("torch")
    ascent = {"learning_rate": 0.05, "epochs": 30}
    stopped, on = (
        protocol(settings={"gradient_ascent": ascent | {"stop_at_chance": classes}})[1]
        for classes in (3, 10**9)
    )
    loss, further = (np.logaddexp(0, -m["gradient_ascent"]).mean() for m in (stopped, on))
    assert np.log(3) < loss < 0.5 * further


def test_what_is_rebuilt_has_the_arguments_that_the_presets_give():
    """An argument that the loop does not know would make another job of it."""
    for kind in ("random", "class"):
        for name in REBUILT:
            given = set(presets.settings(name, {}, kind, presets.Recipe(), 10))
            known = {"learning_rate", "epochs", "alpha", "stop_at_chance"}
            assert given <= known, name


@pytest.mark.slow
def test_a_tiny_run_writes_a_record_that_becomes_a_section(tmp_path, monkeypatch):
    monkeypatch.setattr(shadows.machine, "use_all_cores", lambda: None)
    options = "--pairs 4 --epochs 1 --relabellings 7 --torch-models 2 --methods finetune"
    words = [*options.split(), "--tasks", "random:0.02", "--out", str(tmp_path)]
    assert shadows.main(words) == 0
    record = shadows_section.read(tmp_path / "shadows.json")
    (study,) = record["studies"]
    assert [found["label"] for found in study["rows"]] == ["original", "oracle", "finetune"]
    assert "## The attack with shadow models" in shadows_section.attacks(record)
