"""What calibration buys: its roles, its section, its picture, and a tiny run whole."""

import json

import pytest

from experiments import benchmarks_md, calibration, calibration_section, frontier
from jaxunlearn.calibration import Calibration, Trial, choose
from tests.experiments.records import record as comparison


def tried(name, *settings):
    """(gap, collateral, cost) of each trial, in the order of its strength."""
    trials = [Trial({"epochs": i + 1}, [g, g], [c, c], k) for i, (g, c, k) in enumerate(settings)]
    return choose(name, trials, limit=3)


FOUND: dict[str, Calibration] = {
    "finetune": tried("finetune", (0.3, 1.0, 0.01), (0.8, 2.0, 0.09), (0.9, 2.5, 0.3)),
    "scrub": tried("scrub", (0.7, 9.0, 0.04), (0.9, 30.0, 0.08)),
    "ssd": tried("ssd", (0.5, 0.5, 0.015)),
}


def end(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def row(label, method, roles, gap, kept, verdict, share=0.1):
    return {
        "label": label, "role": "method", "method": method, "as": roles, "gap_closed": end(gap),
        "collateral": end(kept), "verdict": verdict, "damages": [], "p_value": 0.001,
        "accuracy": {"forget": 0.9}, "of_retraining": share,
    }  # fmt: skip


def made(**changes):
    """A record of two methods on one request."""
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    chosen = calibration.roles_of(FOUND, ["finetune", "scrub"], 3.0)
    rows = [
        row("finetune(preset='paper')", "finetune", ["paper"], 0.1, 4.0, "under-forgotten"),
        row("scrub(preset='paper')", "scrub", ["paper"], -3.0, 90.0, "collapsed"),
        row("finetune(epochs=2)", "finetune", chosen["finetune(epochs=2)"], 0.97, 0.9,
            "within recipe noise"),
        row("scrub(epochs=1)", "scrub", chosen["scrub(epochs=1)"], 0.6, 8.0, "over-forgotten"),
        row("ssd(epochs=1)", "ssd", chosen["ssd(epochs=1)"], 0.5, 0.4, "under-forgotten", 0.015),
    ]  # fmt: skip
    task = {
        "source": "digits", "forget": "class:3", "words": "class 3", "proxies": ["class:5"],
        "retraining": 0.3, "limit": 3.0, "seconds": {"proxies": 9.0, "request": 8.0},
        "status": "informative", "rows": rows,
        "tried": {name: calibration._plain(each, 3.0) for name, each in FOUND.items()},
        "notes": [],
    }  # fmt: skip
    return (
        facts
        | {
            "kind": calibration.KIND,
            "schema": calibration.SCHEMA,
            "command": "python -m experiments.calibration",
            "settings": {"seeds": 8, "oracles": 16},
            "budgets": list(calibration.BUDGETS),
            "limit": 3.0,
            "tasks": {"class": task},
        }
        | changes
    )


def test_the_choice_within_a_budget_takes_what_it_allows():
    found = FOUND["finetune"]
    assert calibration.within(found, 0.02, 3).chosen is found.trials[0]
    assert calibration.within(found, 0.10, 3).chosen is found.trials[1]
    assert calibration.within(found, 0.33, 3).chosen is found.trials[2]
    assert calibration.within(found, 0.001, 3).chosen is None
    assert calibration.within(found, 0.08, 3).chosen is found.trials[1]  # 0.09 is within the grace


def test_stored_trials_come_back_as_they_were():
    for name, found in FOUND.items():
        again = calibration._again(name, calibration._plain(found, 3.0))
        for budget in calibration.BUDGETS:
            first, second = (calibration.within(each, budget, 3.0) for each in (found, again))
            assert first.chosen == second.chosen


def test_the_best_of_a_budget_are_gentle_and_nearest_first():
    names = [each.name for each in calibration.best(FOUND, 0.10, 3, 3.0)]
    assert names == ["finetune", "ssd"]  # scrub damages more than the limit


def test_a_setting_that_is_chosen_twice_is_run_once():
    roles = calibration.roles_of(FOUND, ["finetune"], 3.0)
    assert roles["finetune(epochs=2)"] == ["calibrated", "best within 10 %"]
    assert roles["finetune(preset='paper')"] == ["paper"]
    assert roles["scrub(epochs=1)"] == ["calibrated"]
    assert roles["retrain"] == ["retrain"]


def test_the_section_shows_both_settings_and_says_what_matches():
    text = calibration_section.calibrated(made())
    lines = [line for line in text.splitlines() if line.startswith("| `finetune`")]
    assert "0.10" in lines[0] and "0.97" in lines[0] and "epochs=2" in lines[0]
    flat = " ".join(text.split())
    published, _, chosen = flat.partition("Of 3 methods calibrated")
    assert "Of 2 methods as published these * match" in published
    assert "within recipe noise): none. * come near" in published
    assert "past it): `scrub`. * break something" in published
    assert "ten times the limit): `scrub`. * hardly do anything" in published
    assert "a tenth of the gap): `finetune`." in published
    assert "within recipe noise): `finetune`. * come near" in chosen
    assert "past it): `scrub`. * break" in chosen
    assert "| 10 % | `finetune(epochs=2)` | 0.97" in text
    assert calibration_section.calibrated(made()) == text


def test_another_record_gives_another_section(tmp_path):
    other = made()
    other["tasks"]["class"]["rows"][2]["gap_closed"] = end(0.55)
    assert calibration_section.calibrated(other) != calibration_section.calibrated(made())


def test_the_section_stands_in_the_page(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(made()), encoding="utf-8")
    out = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    assert "## What calibration buys" in out.read_text(encoding="utf-8")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(made(schema=99)), encoding="utf-8")
    with pytest.raises(ValueError, match="expected kind .* of schema 1, got .* 99"):
        calibration_section.read(tmp_path / "calibration.json")
    assert frontier.main(["--results", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2


def test_the_picture_is_drawn_the_same_every_time(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(made()), encoding="utf-8")
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture in pictures:
        assert frontier.main(["--results", str(tmp_path), "--out", str(picture)]) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.slow
def test_a_tiny_run_is_whole_and_keeps_what_it_did_not_ask_for(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration.machine, "use_all_cores", lambda: None)
    monkeypatch.setattr(calibration, "_share_programs", lambda folder: None)
    (tmp_path / "calibration.json").write_text(json.dumps(made()), encoding="utf-8")
    words = "--keep --only random --methods finetune --epochs 2 --seeds 2 --oracles 4 --proxies 2"
    assert calibration.main([*words.split(), "--out", str(tmp_path)]) == 0
    record = calibration_section.read(tmp_path / "calibration.json")
    assert list(record["tasks"]) == ["class", "random"]
    task = record["tasks"]["random"]
    assert len(task["proxies"]) == 2 and set(task["tried"]) == {"finetune"}
    labels = [each["label"] for each in task["rows"] if each["role"] == "method"]
    assert "finetune(preset='paper')" in labels and "retrain" in labels
    assert "finetune" in calibration_section.calibrated(record)
    assert all(each["as"] for each in task["rows"] if each["role"] == "method")
