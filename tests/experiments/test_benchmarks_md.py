"""BENCHMARKS.md: every number of it is in the files, nothing else is, and the sentences follow."""

import json
import re
import shutil

import numpy as np
import pytest

from experiments import benchmarks_md, comparisons, sections
from experiments.benchmarks import section
from experiments.markdown import grid
from jaxunlearn import compare, results
from jaxunlearn.data import class_task, digits
from tests.experiments.records import FLOORS, METRICS, PARTS, VERDICTS, benchmark, record

NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"


def tables_of(text):
    """Every Markdown table as {first cell: {head: cell}}."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        head, _, *body = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.strip().split("\n")
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
    sources = {"floor": made["floor"]} | {r["label"]: r["scores"] for r in made["rows"]}
    heads = dict(zip(METRICS, list(shown["floor"])[1:5], strict=True))
    for label, scores in sources.items():
        cells = shown.get(label)
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
    text = section.many_models(made)
    programs, speeds = tables_of(text)
    for each in made["programs"]:
        shown = programs[each["program"]]
        assert float(shown["run, s"]) == pytest.approx(each["seconds"], abs=0.0051)
        gap = each["seconds"] / made["floor"]["seconds"]
        assert float(shown["run / floor"]) == pytest.approx(gap, rel=0.01)
        if "compile" in each:
            assert float(shown["compile, s"]) == pytest.approx(each["compile"], abs=0.0051)
    assert set(speeds) == {"ensemble, shard", "ensemble, map"}
    times = {each["program"]: each["seconds"] for each in made["programs"]}
    plain = min(times["torch, 1 thread"], times["torch, 2 threads"])
    found = re.findall(r"^\| (ensemble.*) \| plain torch: .* \| (.*) \| .* \|$", text, re.MULTILINE)
    assert len(found) == 2
    for program, ratio in found:
        assert float(ratio) == pytest.approx(plain / times[program], abs=0.051)


def test_other_files_give_other_numbers_in_every_cell():
    """What does not change with the files was not read from them."""

    def cells(seed):
        text = benchmarks_md.markdown({"class": record(seed)}, benchmark(seed))
        return {
            (i, name, head): cell
            for i, table in enumerate(tables_of(text))
            for name, line in table.items()
            for head, cell in list(line.items())[1:]
            if head not in ("models", "source", "against") and re.search(NUMBER, cell)
        }

    first, *others = (cells(seed) for seed in range(4))  # two may agree by chance in a cell
    assert len(first) > 130
    assert all(each.keys() == first.keys() for each in others)
    same = [cell for place, cell in first.items() if all(o[place] == cell for o in others)]
    assert same == ["1"]  # the floor in floors


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


def test_the_page_says_where_settings_come_from():
    text = " ".join(benchmarks_md.markdown({"class": record()}).split())
    assert "Where settings come from" in text and "rules in `jaxunlearn/presets.py`" in text
    assert "never the oracles of the request itself" in text


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
        logits = {}
        for part, each in parts.items():
            noise = rng.normal(size=(models, len(each.columns["y"]), 10))
            logits[part] = (4 * np.eye(10)[each.columns["y"]] + noise).astype(np.float32)
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
