"""The study of false alarms and power: its section from its record, its pieces, a tiny run."""

import copy
import json

import numpy as np
import pytest

from experiments import audit_errors, audit_errors_section, benchmarks_md
from jaxunlearn import compare, presets
from jaxunlearn.auditing import Measured
from jaxunlearn.auditing.suite import AUDITS, described
from tests.experiments.records import record as comparison


def judged(p, direction, expected, usual=0.5):
    audits = {
        "outputs_forget": {"p_value": p, "direction": direction},
        "probes": {"p_value": max(p, 0.2), "direction": "aside"},
    }
    names = ("accuracy on forget rows", "AUC of the loss attack")
    return {
        "p_value": p,
        "audits": audits,
        "expected": expected,
        "usual": dict.fromkeys(names, usual),
    }


def made():
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    alarms = {"trials": 200, "flagged": 9, "any_alone": 60}
    alarms |= {
        "by": {"probes": 4, "outputs_forget": 0},
        "alone": {"probes": 11, "outputs_forget": 8},
    }
    return facts | {
        "schema": audit_errors.SCHEMA, "kind": audit_errors.KIND, "level": 0.05,
        "permutations": 1999, "command": "python -m experiments.audit_errors",
        "small": {"rows": 400, "epochs": 10, "models": 8, "oracles": 16},
        "large": {"models": 16, "oracles": 32},
        "audits": described(["outputs_forget", "probes"]),
        "quiet": {"class:3": alarms},
        "loud": {"class:3": {
            "original": judged(0.0005, "towards the original", "flagged", 0.001),
            "last layer masked": judged(0.0005, "away from it", "flagged", 1.0),
            "oracle again": judged(0.4, "aside", "not flagged"),
        }},
    }  # fmt: skip


def words(record):
    return " ".join(audit_errors_section.audit_errors(record).split())


def test_rates_have_exact_intervals_and_each_audit_a_line():
    text = words(made())
    assert "| class:3 | 200 | 9 | 4.5 [2.1, 8.4] | 30.0 |" in text
    assert "| Probes | 5.5 | 2.0 |" in text
    assert "within its sampling error" in text


def test_too_many_false_alarms_are_said():
    record = made()
    record["quiet"]["class:3"]["flagged"] = 25
    assert "More than 5 % of trials raise an alarm on class:3" in words(record)


def test_flagged_cells_are_bold_with_the_direction_and_the_others_are_not():
    text = words(made())
    assert "| Outputs on forget rows | **0.0005 <** | **0.0005 >** | 0.4 |" in text
    assert "| Probes | 0.2 | 0.2 | 0.4 |" in text
    assert "| *by itself: accuracy on forget rows* | **0.001** | 1 | 0.5 |" in text
    assert "Every group that must be flagged is" in text


@pytest.mark.parametrize(
    ("label", "p", "said"),
    [("last layer masked", 0.3, "last layer masked"), ("oracle again", 0.01, "oracle again")],
)
def test_a_group_that_is_judged_wrongly_is_named(label, p, said):
    record = copy.deepcopy(made())
    record["loud"]["class:3"][label]["p_value"] = p
    assert f"Not judged as they must be: {said} (class:3)" in words(record)


def test_the_section_is_among_those_of_the_page(tmp_path):
    (tmp_path / "audit_errors.json").write_text(json.dumps(made()))
    (text,) = benchmarks_md.read_further(tmp_path)
    assert text.startswith("## How often the audits are wrong")


def test_parts_of_an_ensemble_put_together_are_the_ensemble():
    rng = np.random.default_rng(0)
    whole = Measured(*({"a": rng.normal(size=(6, 2)), "b": rng.normal(size=6)} for _ in range(5)))
    parts = [audit_errors.some(whole, np.arange(a, b)) for a, b in ((0, 2), (2, 6))]
    for field, again in zip(whole, audit_errors.together(parts), strict=True):
        for key in field:
            np.testing.assert_array_equal(field[key], again[key])


def test_equal_oracles_raise_alarms_at_the_level_and_others_always():
    """`alarms` on made-up models: places of one law in all trials, or shifted in one group."""
    rng = np.random.default_rng(1)
    size = audit_errors.METHOD + audit_errors.ORACLES
    trials = 40

    def measured(values):
        return Measured({}, {}, {"probes": values}, {}, {})

    originals = measured(rng.normal(5, 1, (audit_errors.ORIGINALS, 2)))
    quiet = rng.normal(size=(trials * size, 2))
    loud = quiet.reshape(trials, size, 2).copy()
    loud[:, : audit_errors.METHOD] += 4
    silent = lambda text: None  # noqa: E731
    found = audit_errors.alarms(originals, measured(quiet), trials, 99, silent)
    assert found["flagged"] == found["by"]["probes"] <= 6
    found = audit_errors.alarms(originals, measured(loud.reshape(-1, 2)), trials, 99, silent)
    assert found["flagged"] == found["alone"]["probes"] == found["any_alone"] == trials


@pytest.mark.slow
def test_a_tiny_run_makes_a_record_that_the_section_reads(monkeypatch):
    monkeypatch.setattr(audit_errors, "LOUD", {"class:3": ("digits", "class:3")})
    monkeypatch.setattr(audit_errors, "QUIET", ("class:3",))
    recipe = presets.Recipe(epochs=2)
    record = audit_errors.run(
        2, 99, compare.Settings(recipe, seeds=4, oracles=8), lambda text: None
    )
    assert set(record["audits"]) <= set(AUDITS)
    assert record["quiet"]["class:3"]["trials"] == 2
    assert record["loud"]["class:3"]["original"]["p_value"] <= 0.05
    assert "### Power" in audit_errors_section.audit_errors(made() | dict(record))
