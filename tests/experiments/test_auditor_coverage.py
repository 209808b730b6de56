"""The audit of the auditors: its worlds, its section from its record, a tiny run."""

import json

import numpy as np
import pytest

from experiments import auditor_coverage, auditor_coverage_section, benchmarks_md
from jaxunlearn import audit
from tests.experiments.records import record as comparison


def made(exceeded=0.01, refuted=0.04, covered=0.94):
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    epsilon = [
        {"world": "pure", "runs": 64, "how": how, "truth": 1.0, "delta": 0.0, "largest": 2.1,
         "exceeded": exceeded, "mean": mean}
        for how, mean in (("exact", 0.5), ("dkw", 0.4))
    ]  # fmt: skip
    claims = [
        {"scale": scale, "n": n, "claim": 1.16, "delta": 0.1, "mean": 0.9, "bound": bound,
         "noise": noise}
        for scale, bound, noise in (("2/3", 0.97, 1.0), ("1", 0.0, refuted), ("3/2", 0.0, 0.99))
        for n in (256, 4096)
    ]  # fmt: skip
    intervals = [
        {"law": "normal", "models": m, "how": how, "covered": covered if m == 8 else 0.95,
         "width": 1.0}
        for m in (8, 64)
        for how in ("percentile", "student")
    ]  # fmt: skip
    return facts | {
        "schema": auditor_coverage.SCHEMA, "kind": auditor_coverage.KIND, "confidence": 0.95,
        "trials": 2000, "command": "python -m experiments.auditor_coverage",
        "studies": {
            "epsilon": epsilon, "claims": claims, "intervals": intervals,
            "one_run": [{"canaries": 100, "how": "split", "truth": 1.5, "exceeded": 0.02,
                         "mean": 0.6}],
            "rates": [{"trials": 8, "clopper-pearson": 0.97, "wald": 0.08}],
            "areas": [{"members": 20, "nonmembers": 20, "truth": 0.5, "covered": 0.95,
                       "width": 0.3}],
            "exposure": [{"references": 31, "how": how, "mean": 1.3, "floor": 1.32, "beyond": 0.1,
                          "largest": 5.0} for how in ("rank", "extrapolated")],
        },
    }  # fmt: skip


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", auditor_coverage.WORLDS)
def test_the_worlds_have_the_epsilon_that_is_said(name):
    """Counted from many runs at the threshold that tells most: near the truth, hardly beyond."""
    a, b, delta, truth = auditor_coverage.worlds(name, 200_000, 1, np.random.default_rng(0))
    cuts = np.linspace(0, 4, 30)
    fpr, tpr = ((s >= cuts).mean(0) for s in (b, a))
    found = np.log(np.maximum(tpr - delta, 1e-9) / np.maximum(fpr, 1e-9))[fpr > 1e-3].max()
    assert found < truth + 0.1 and (found > 0.5 * truth - 0.1 or truth > 3)


def test_the_numbers_of_the_section_are_those_of_the_record():
    text = auditor_coverage_section.auditor_coverage(made())
    assert "| pure | 64 | 1.00 | 2.10 | 1 %, 0.50 | 1 %, 0.40 |" in text
    assert "| 2/3 | 4096 | 1.16 | 0.90 | 97 % | 100 % |" in text
    assert "| normal | 8 | 94 %, 1 | 94 %, 1 |" in text
    assert "| 8 | 97 % | 8 % |" in text and "| 0.50 | 20 | 20 | 95 % | 0.30 |" in text
    assert "| 31 | extrapolated | 1.30 | 1.32 | 10 % | - |" in text
    assert "| 100 | split | 1.50 | 2 % | 0.60 |" in text
    assert "*exact* in 1" in text


def test_findings_follow_the_record():
    good = words(auditor_coverage_section.auditor_coverage(made()))
    assert "kept everywhere: at most 1 % lie beyond, 5 % may" in good and "NOT" not in good
    assert "TOO OFTEN" not in good and "too few at" not in good
    near = words(auditor_coverage_section.auditor_coverage(made(exceeded=0.055)))
    assert "kept within the error of the simulation: 5.5 %" in near
    bad = words(auditor_coverage_section.auditor_coverage(made(0.2, 0.5, 0.85)))
    assert "NOT kept: 20 % lie beyond" in bad
    assert "The honest mechanism is refuted TOO OFTEN: 50 %" in bad
    assert "*percentile*: too few at 8 models (worst 85 %, normal, 8 models)" in bad


def test_without_jax_privacy_there_is_no_study_of_one_run(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("jax-privacy")

    monkeypatch.setattr(audit, "one_run_epsilon", missing)
    assert auditor_coverage.one_run_study(2, np.random.default_rng(0)) is None
    record = made()
    record["studies"]["one_run"] = None
    assert "one run" not in auditor_coverage_section.auditor_coverage(record)


def test_the_page_has_the_section_where_the_file_is_there(tmp_path):
    (tmp_path / "auditor_coverage.json").write_text(json.dumps(made()))
    page = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(page)]) == 0
    assert "## The auditors, audited" in page.read_text()


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "auditor_coverage.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="expected kind 'jaxunlearn auditor coverage'"):
        auditor_coverage_section.read(tmp_path / "auditor_coverage.json")


def test_the_command_says_what_it_does_not_take():
    with pytest.raises(SystemExit):
        auditor_coverage.main(["--trials", "1"])


@pytest.mark.slow
def test_a_tiny_run_writes_a_record_that_can_be_shown(tmp_path):
    assert auditor_coverage.main(["--trials", "20", "--out", str(tmp_path)]) == 0
    record = auditor_coverage_section.read(tmp_path / "auditor_coverage.json")
    assert record["command"].endswith("--trials 20")
    assert "### Noise of another scale" in auditor_coverage_section.auditor_coverage(record)
