"""The entangled task: its parts, its judgement by hand, its section from its record, a tiny run."""

import json

import numpy as np
import pytest

from experiments import benchmarks_md, entangled, entangled_section
from experiments.entangled import PARTS, STAGES
from jaxunlearn.data import digits, subclass_task
from tests.experiments.records import record as comparison


def found(adjacent, forget, seeds=3):
    """(seeds, 3, 2) per stage; adjacent accuracies and forget losses are given."""
    noise = np.arange(seeds)[:, None, None] * 1e-4
    rows = {
        s: noise + [[0.5, loss], [a, 0.2], [0.99, 0.01]]
        for s, a, loss in zip(STAGES, (*adjacent, 0.97), (*forget, 0.9), strict=True)
    }
    return rows


def record(adjacent=(1.0, 0.7, 0.95), forget=(0.001, 0.8, 0.82)):
    def study(digit, split, stages):
        made = {s: v for s, v in found(adjacent, forget).items() if s in stages}
        scores = {
            s: {p: {"accuracy": v[:, j, 0].tolist(), "loss": v[:, j, 1].tolist()}
                for j, p in enumerate(PARTS)} for s, v in made.items()
        }  # fmt: skip
        return {
            "digit": digit, "held_out": split, "scores": {"train": scores, split: scores},
            "rows": {s: {"forget": 120, "adjacent": 480, "remote": 600} for s in ("train", split)},
            "outcome": entangled.outcome(made),
        }  # fmt: skip

    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    return facts | {
        "schema": entangled.SCHEMA, "kind": entangled.KIND, "seeds": 3, "preset": "a rule",
        "command": "python -m experiments.entangled", "arguments": {"epochs": 1},
        "studies": [study(3, "test", STAGES), study(5, "validation", STAGES[:3])],
    }  # fmt: skip


def words(text):
    return " ".join(text.split())


def test_remote_rows_are_the_other_label():
    cut = entangled.parts(subclass_task(digits("odd_even"), 3), "validation")
    assert set(cut["forget"]["fine"]) == {3}
    assert set(cut["adjacent"]["fine"]) == {1, 5, 7, 9}
    assert set(cut["remote"]["fine"]) == {0, 2, 4, 6, 8}


@pytest.mark.parametrize(
    ("adjacent", "forget", "holds"),
    [
        ((1.0, 0.7, 0.95), (0.0, 0.8, 0.82), True),
        ((1.0, 0.7, 0.84), (0.0, 0.8, 0.82), False),  # too little back
        ((1.0, 0.7, 0.95), (0.0, 0.8, 0.60), False),  # unforgotten
        ((1.0, 0.7, 0.95), (0.0, 0.8, 0.95), False),  # forgotten further
        ((1.0, 1.0, 1.0), (0.0, 0.8, 0.8), False),  # no drop to repair
    ],
)
def test_both_goals_must_hold(adjacent, forget, holds):
    made = entangled.outcome(found(adjacent, forget))
    assert made["holds"] == {"mean": holds, "seeds": [holds] * 3}
    if adjacent[0] > adjacent[1]:
        expected = (adjacent[2] - adjacent[1]) / (adjacent[0] - adjacent[1])
        assert made["share"]["mean"] == pytest.approx(expected)
    else:
        assert made["share"]["mean"] is None


def test_the_numbers_of_the_section_are_those_of_the_record():
    text = entangled_section.entangled(record())
    assert "| stage 1 | 50.0 ±0.0, 0.800 ±0.000 | 70.0 ±0.0, 0.200 ±0.000 |" in text
    assert text.count("| oracle |") == 2  # training and test data
    assert "| 5 | 30.0 points | 83 % | 1.02 | yes (3 of 3 seeds) |" in text


def test_findings_follow_the_record():
    good = words("\n".join(entangled_section.findings(record())))
    assert "30.0 points" in good and "gives 83 % of it back" in good and "+2.5 %" in good
    assert "It holds for the means, and for 3 of 3 seeds." in good
    assert "adjacent: accuracy 95.0 %, below the range of the oracles (97.0 to 97.0 %)" in good
    assert "remote: accuracy 99.0 %, within" in good
    bad = words("\n".join(entangled_section.findings(record(adjacent=(1.0, 1.0, 1.0)))))
    assert "undefined of it back" in bad and "does NOT hold" in bad and "above the range" in bad


def test_the_page_has_the_section_where_the_file_is_there(tmp_path):
    (tmp_path / "entangled.json").write_text(json.dumps(record()))
    page = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(page)]) == 0
    assert "## A forgotten digit among its like" in page.read_text()


@pytest.mark.slow
def test_a_tiny_run_writes_a_record_that_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(entangled.machine, "use_all_cores", lambda: None)
    out = tmp_path / "entangled.json"
    options = ["--seeds", "2", "--epochs", "1", "--proxies", "5", "--out", str(out)]
    assert entangled.main(options) == 0
    made = entangled_section.read(out)
    assert made["command"] == "python -m experiments.entangled --seeds 2 --epochs 1"
    assert [s["digit"] for s in made["studies"]] == [3, 5]
    assert "oracle" not in made["studies"][1]["scores"]["train"]
    assert "digit 3" in entangled_section.entangled(made)
