"""BENCHMARKS.md: every number of it is in the files, nothing else is, and the sentences follow."""

import argparse
import copy
import importlib.util
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmarks_md, comparisons, machine, sections
from experiments.benchmarks import ensemble, plain_torch, section, speed_up
from experiments.benchmarks.floor import matmul_rate, training_flops
from experiments.markdown import grid
from jaxunlearn import compare, results
from jaxunlearn.cli import parser
from jaxunlearn.data import class_task, digits

PARTS = ("forget", "retain", "adjacent", "test", "forget_test")
FLOORS = ("forget", "retain", "adjacent", "test")
METRICS = ("jensen_shannon", "activation_distance", "prediction_agreement", "klom")
VERDICTS = {
    "retrain": "indistinguishable from retraining",
    "ssd": "under-forgotten",
    "finetune": "within recipe noise",
    "gradient_ascent(learning_rate=9.0)": "collapsed",
}
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"


def summary(rng, scale=1.0):
    value = scale * rng.uniform(0.2, 0.9)
    return {"value": value, "low": 0.83 * value, "high": 1.07 * value}


def row(rng, label, role, verdict):
    attack = {name: summary(rng) for name in ("auc", "accuracy", "tpr")}
    scores = {"accuracy": {part: summary(rng) for part in PARTS}}
    if role != "oracle":
        scores |= {metric: {part: summary(rng) for part in PARTS} for metric in METRICS}
        scores["klom"] = {p: {"value": rng.uniform(2, 9), "quantile95": 9.5} for p in PARTS}
    found = {"verdict": "reference", "words": "a recipe that nobody would call different"}
    if role in ("original", "method"):
        found = {
            "verdict": verdict,
            "words": f"{verdict}: said of {label}",
            "p_value": rng.uniform(0.1, 0.9),
            "gap_closed": summary(rng),
            "collateral": summary(rng, 5.0),
        }
    found["energies"] = {part: rng.uniform(0.1, 2) for part in FLOORS}
    facts = {
        "method": label.split("(")[0],
        "arguments": {"alpha": rng.uniform(1, 9), "epochs": int(rng.integers(10, 99))},
        "preset": "a rule",
        "needs": ["forget"],
        "guarantee": "empirical",
        "paper": "2308.07707",
    }
    return {
        "label": label,
        "role": role,
        "models": 32 if role == "oracle" else 16,
        "scores": scores,
        "tug_of_war": summary(rng),
        "membership": {"loss": attack},
        "verdict": None if role == "oracle" else found,
        "seconds": {"compile": 3.0, "run": 2.0, "of_retraining": rng.uniform(0.2, 0.9)},
        **(facts if role == "method" else {}),
    }


def record(seed=0, **changes):
    """A comparison with all kinds of rows and parts, and numbers that mean nothing."""
    rng = np.random.default_rng(seed)
    rows = [row(rng, "original", "original", "under-forgotten"), row(rng, "oracle", "oracle", "")]
    rows.append(row(rng, "oracle, 38 epochs", "recipe", ""))
    rows += [row(rng, label, "method", verdict) for label, verdict in VERDICTS.items()]
    keys = ("value", "recipe", "resolution")
    floor = {m: {part: summary(rng) for part in PARTS} for m in METRICS}
    settings = {"seeds": 16, "oracles": 32, "seed": 0, "rows": 10_000}
    recipe = {"model": "mlp", "optimizer": "adam", "learning_rate": 0.002}
    made = {
        "schema": results.SCHEMA,
        "kind": "jaxunlearn compare",
        "status": "informative",
        "headline": "What was found.",
        "command": "jaxunlearn compare --source digits --forget class:3",
        "date": "2026-01-31",
        "machine": {"cpu": "A Processor", "cores": 2, "system": "Linux x86_64"},
        "task": {"name": "class:3", "source": "digits", "description": "Forget class 3."},
        "settings": settings | {"recipe": recipe | {"batch_size": 64, "epochs": 30}},
        "versions": {"jaxunlearn": "0.1.0", "machine": "2 x cpu (cpu)"},
        "seconds": 61.0,
        "parts": {part: {"examples": 9, "available": 9, "words": part} for part in PARTS},
        "floors": {part: {key: rng.uniform(0.1, 2) for key in keys} for part in FLOORS},
        "floor": floor | {"tug_of_war": summary(rng)},
        "rows": rows,
        "notes": ["ssd: a warning of the run"],
    }
    return made | changes


def benchmark(seed=0):
    """A timing of two programs of ours and three of PyTorch."""
    rng = np.random.default_rng(seed)
    kinds = {
        "ensemble, shard": "ours",
        "ensemble, map": "ours",
        "torch, 1 thread": "plain torch",
        "torch, 2 threads": "plain torch",
        "torch, 1 thread, fused Adam": "tuned torch",
    }
    programs = [
        {
            "program": program,
            "of": kind,
            **({"compile": rng.uniform(1, 9)} if kind == "ours" else {}),
            "models": 32 if kind == "ours" else 8,
            "seconds": rng.uniform(1, 9),
            "accuracy": rng.uniform(0.5, 0.9),
            "standard_error": rng.uniform(0.01, 0.09),
        }
        for program, kind in kinds.items()
    ]
    return {
        **{key: record()[key] for key in ("date", "machine", "versions", "seconds")},
        "schema": ensemble.SCHEMA,
        "kind": ensemble.KIND,
        "command": "python -m experiments.benchmarks.ensemble",
        "job": {
            "task": "class:3 of digits", "models": 32, "layers": [64, 128, 64, 10], "rows": 1078,
            "epochs": 30, "batch_size": 64, "learning_rate": 0.002, "repeats": 5, "devices": 2,
        },
        "floor": {"flops": 8.9e10, "rates": {"a shape": 3e11}, "seconds": rng.uniform(0.1, 0.9)},
        "programs": programs,
        "ratios": speed_up.ratios(programs),
        "same_job": speed_up.same_job(programs),
    }  # fmt: skip


def tables_of(text):
    """Every Markdown table as {first cell: {head: cell}}."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        head, _, *body = [
            [cell.strip() for cell in line.strip("| \n").split(" | ")]
            for line in block.replace("|  |", "| _ |").strip().split("\n")
        ]
        found.append({cells[0].strip("`"): dict(zip(head, cells, strict=True)) for cells in body})
    return found


def numbers(text):
    return [float(found) for found in re.findall(NUMBER, text)]


def write(folder, **named):
    for name, each in named.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        results.write(results.Results(each), folder / name / "results.json")


# Numbers


def test_scores_are_those_of_the_record():
    made = record()
    scores = tables_of(benchmarks_md.markdown({"class": made}))[1]
    assert list(scores) == [row["label"] for row in made["rows"]]
    for each in made["rows"]:
        shown, verdict = scores[each["label"]], each["verdict"] or {}
        for part in PARTS:
            found = each["scores"]["accuracy"][part]
            half = found["value"] - found["low"]  # 17 % below, 7 % above: the larger one is shown
            expected = [100 * found["value"], 100 * half]
            np.testing.assert_allclose(numbers(shown[part].replace("±", "")), expected, atol=0.051)
        for head, key in (("gap closed", "gap_closed"), ("collateral", "collateral")):
            if key not in verdict:
                assert shown[head] == "-"
                continue
            expected = [verdict[key][end] for end in ("value", "low", "high")]
            np.testing.assert_allclose(numbers(shown[head]), expected, atol=0.0051)
        if "p_value" in verdict:
            assert float(shown["p"]) == pytest.approx(verdict["p_value"], abs=0.0051)
        if each["role"] == "method":
            assert shown["verdict"] == VERDICTS[each["label"]]
            share = 100 * each["seconds"]["of_retraining"]
            assert numbers(shown["time"]) == [pytest.approx(share, abs=0.51)]


def test_distances_and_floors_are_those_of_the_record():
    made = record()
    shown = tables_of(sections.comparison(made))[1]
    keys = {
        "one recipe floor": "value",
        "... between recipes": "recipe",
        "... by sampling": "resolution",
    }
    for part in FLOORS:
        for words, key in keys.items():
            value = made["floors"][part][key]
            assert float(shown[words][part]) == pytest.approx(value, abs=0.0051)
        for each in made["rows"]:
            if each["role"] != "oracle":
                value = each["verdict"]["energies"][part]
                assert float(shown[each["label"]][part]) == pytest.approx(value, abs=0.0051)


def test_classical_metrics_stand_beside_their_floor():
    made = record()
    shown = tables_of(sections.comparison(made))[2]
    sources = {"_": made["floor"]} | {r["label"]: r["scores"] for r in made["rows"]}
    heads = dict(zip(METRICS, list(shown["floor"])[1:5], strict=True))
    for label, scores in sources.items():
        cells = shown.get("floor" if label == "_" else label)
        if cells is None or label == "oracle":
            assert label in ("oracle", "oracle, 38 epochs")
            continue
        for metric, head in heads.items():
            value = scores[metric]["forget"]["value"]
            assert numbers(cells[head])[0] == pytest.approx(value, abs=0.0051), (label, metric)
    membership = [
        r["membership"]["loss"]["auc"]["value"] for r in made["rows"] if r["label"] == "oracle"
    ]
    assert numbers(shown["oracle"]["membership"])[0] == pytest.approx(membership[0], abs=0.0051)


def test_timings_are_those_of_the_record():
    made = benchmark()
    programs, speeds = tables_of(section.many_models(made))
    for each in made["programs"]:
        shown = programs[each["program"]]
        assert float(shown["run, s"]) == pytest.approx(each["seconds"], abs=0.0051)
        gap = each["seconds"] / made["floor"]["seconds"]
        assert float(shown["run / floor"]) == pytest.approx(gap, rel=0.01)
        if "compile" in each:
            assert float(shown["compile, s"]) == pytest.approx(each["compile"], abs=0.0051)
    assert set(speeds) == {"ensemble, shard", "ensemble, map"}


def test_other_files_give_other_numbers_in_every_cell():
    """What does not change with the files was not read from them."""
    same = ("models", "needs", "rule", "guarantee", "source", "verdict")

    def cells(seed):
        text = benchmarks_md.markdown({"class": record(seed)}, benchmark(seed))
        return [
            (number, name, head, cell)
            for number, table in enumerate(tables_of(text)[1:])
            for name, line in table.items()
            for head, cell in list(line.items())[1:]
            if head not in same and re.search(NUMBER, cell) and name != "floor" or number == 2
        ]

    first, second = cells(0), cells(1)
    assert len(first) == len(second) > 120
    constant = {"-", "", "1"}
    heads = [a[:3] for a, b in zip(first, second, strict=True) if a[3] == b[3] not in constant]
    allowed = [head for head in heads if head[2] == "against"]
    assert heads == allowed


# Sentences


def test_findings_name_who_matches_and_who_does_not():
    text = " ".join("\n".join(sections.findings(record())).split())
    assert "Not to be told from retraining beyond recipe noise: `finetune`." in text
    assert "Told from retraining: `ssd` and `gradient_ascent(learning_rate=9.0)`." in text
    assert "`retrain`, is indistinguishable from retraining, as it must be." in text
    assert "* `ssd`: under-forgotten: said of ssd." in text


def test_a_collapsed_method_is_never_the_nearest():
    made = record()
    made["rows"][-1]["verdict"]["gap_closed"]["value"] = 1.0
    made["rows"][-1]["verdict"]["collateral"]["value"] = 0.0
    text = " ".join(sections.findings(made))
    assert "Nearest on forget data: `gradient_ascent" not in text
    assert "Least collateral: `gradient_ascent" not in text
    made["rows"][-1]["verdict"]["verdict"] = "elsewhere"
    assert "Nearest on forget data: `gradient_ascent" in " ".join(sections.findings(made))


def test_a_control_that_fails_is_said_to_fail():
    made = record()
    control = next(r for r in made["rows"] if r["label"] == "retrain")
    control["verdict"]["verdict"] = "elsewhere"
    assert "read with care" in " ".join(sections.findings(made))


def test_the_page_says_that_settings_are_not_calibrated():
    text = " ".join(benchmarks_md.markdown({"class": record()}).split())
    assert "rules that were written down beforehand, in `jaxunlearn/presets.py`" in text
    assert "not calibrated" in text


def test_a_comparison_that_is_not_informative_shows_no_score():
    text = sections.comparison(record(status="not informative: the base is at chance"))
    assert "**Not informative:** the base is at chance." in text
    assert not tables_of(text)


def test_undefined_is_a_word():
    made = record()
    ssd = next(r for r in made["rows"] if r["label"] == "ssd")
    ssd["scores"]["accuracy"]["test"] = None
    ssd["verdict"] |= {"gap_closed": None, "collateral": None}
    text = sections.comparison(made)
    shown = tables_of(text)[0]["ssd"]
    assert [shown[h] for h in ("test", "gap closed", "collateral")] == ["undefined"] * 3
    assert "Least collateral: `ssd`" not in text


def test_a_part_that_a_task_has_not_gets_no_column():
    made = record()
    del made["parts"]["adjacent"], made["floors"]["adjacent"]
    assert "adjacent" not in tables_of(sections.comparison(made))[0]["ssd"]


def test_the_overview_has_a_column_for_every_task():
    second = record(1, status="not informative: nothing was learnt")
    second["task"] |= {"name": "random:0.05"}
    shown = tables_of(sections.overview([record(), second]))[0]
    assert shown["ssd"]["class:3 of digits"].startswith("under-forgotten (")
    assert shown["ssd"]["random:0.05 of digits"] == "not informative"


def test_a_label_cannot_break_a_table():
    assert grid(["", "n"], [["a|b", "1"]]).endswith("| a\\|b | 1 |")


# Files


def test_the_same_files_give_the_same_bytes_anywhere(tmp_path):
    write(tmp_path / "a", subclass=record(1), **{"class": record(0)})
    (tmp_path / "a" / "ensemble.json").write_text(json.dumps(benchmark()))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    pages = [tmp_path / "first.md", tmp_path / "second.md"]
    for folder, page in zip(("a", "elsewhere/b"), pages, strict=True):
        arguments = ["--results", str(tmp_path / folder), "--out", str(page)]
        assert benchmarks_md.main(arguments) == 0
        assert benchmarks_md.main([*arguments, "--check"]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert str(tmp_path) not in pages[0].read_text()


def test_check_notices_an_edit_by_hand(tmp_path, capsys):
    write(tmp_path, random=record())
    arguments = ["--results", str(tmp_path), "--out", str(tmp_path / "page.md")]
    assert benchmarks_md.main([*arguments, "--check"]) == 1
    assert benchmarks_md.main(arguments) == 0
    page = tmp_path / "page.md"
    page.write_text(page.read_text().replace("16", "17", 1))
    assert benchmarks_md.main([*arguments, "--check"]) == 1
    assert "page.md is not what" in capsys.readouterr().err


def test_sections_come_in_the_order_of_the_comparisons(tmp_path):
    write(tmp_path, **{name: record() for name in ("zebra", "mnist", "another", "class")})
    found, timed = benchmarks_md.read(tmp_path)
    assert list(found) == ["class", "mnist", "another", "zebra"]
    assert timed is None


def test_no_results_are_an_error(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"no results to tabulate.*experiments\.comparisons"):
        benchmarks_md.markdown(*benchmarks_md.read(tmp_path))
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert not (tmp_path / "page.md").exists()
    assert "no results to tabulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a results file"),
        ("[]", "expected kind 'jaxunlearn ensemble benchmark'"),
        ('{"kind": "jaxunlearn ensemble benchmark", "schema": 99}', "of schema 99. Make it anew"),
    ],
)
def test_a_foreign_timing_is_refused(tmp_path, text, message):
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks_md.read(tmp_path)


def test_a_record_as_comparisons_write_it_can_be_tabulated(tmp_path):
    """Not the record of this file but one that `results.assemble` made of random outputs."""
    task = class_task(digits(), 3)
    settings = compare.Settings(seeds=3, oracles=4, permutations=19, resamples=20)
    parts = results.parts_of(task, 40, 0)
    rng = np.random.default_rng(0)

    def group(label, role, models, **facts):
        logits = {
            part: (4 * np.eye(10)[each.columns["y"]] + rng.normal(size=(models, len(each.columns["y"]), 10)))
            .astype(np.float32)
            for part, each in parts.items()
        }  # fmt: skip
        return results.Group(label, role, logits, 1.0, 2.0, facts)

    facts = {"method": "ssd", "needs": ["forget"], "arguments": {"alpha": 5.0}, "preset": "a rule"}
    groups = [
        group("original", "original", 3),
        group("oracle", "oracle", 4),
        group("oracle, 38 epochs", "recipe", 2),
        group("ssd", "method", 3, **facts, guarantee="empirical", paper="2308.07707", info={}),
    ]
    made = results.assemble(task, settings, groups, parts, [], compare.versions(), 1.0).record
    extra = {key: record()[key] for key in ("command", "date", "machine")}
    slim = comparisons.without_bulk(made) | extra | {"status": "informative"}
    write(tmp_path, **{"class": slim})
    text = benchmarks_md.markdown(*benchmarks_md.read(tmp_path))
    accuracy = made["rows"][3]["scores"]["accuracy"]["test"]["value"]
    shown = tables_of(text)[1]["ssd"]["test"]
    assert numbers(shown)[0] == pytest.approx(100 * accuracy, abs=0.051)
    assert "per_model" not in json.dumps(slim)


# What makes the files


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_the_command_of_a_record_asks_for_the_same_comparison(name):
    chosen = comparisons.COMPARISONS[name]
    words = comparisons.command(chosen, methods="ssd,finetune(epochs=2)").split()
    given = parser().parse_args(
        [*words[1:6], "--methods", "ssd", *words[words.index("--methods") + 2 :]]
    )
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
