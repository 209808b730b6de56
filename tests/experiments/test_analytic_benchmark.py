"""The benchmark of analytic heads: it runs, its section shows its numbers, and judges by them."""

import json

import numpy as np
import pytest

from experiments import benchmarks_md
from experiments.benchmarks import analytic, analytic_section
from jaxunlearn.methods.exact.analytic import STATES


def record(seconds=1e-3, grown=1.0, drift=1e-7):
    slower = {"gram": 1.0, "cholesky": 2.0, "inverse": 0.5}
    return {
        "schema": analytic.SCHEMA,
        "kind": analytic.KIND,
        "command": "python -m experiments.benchmarks.analytic",
        "date": "2026-01-31",
        "machine": {"cpu": "A Processor", "cores": 2, "system": "Linux x86_64"},
        "versions": {"jaxunlearn": "0.1.0", "machine": "2 x cpu (cpu)"},
        "seconds": 61.0,
        "settings": {
            "features": 32, "learnt": [10, 100], "refit": 50, "repeats": 3, "drift_features": 8,
            "requests": 20, "seed": 0, "classes": 10, "gamma": 0.1,
        },
        "against": {"rows": 50, "seconds": 0.15, "disagreement": dict.fromkeys(STATES, 3e-6)},
        "requests": [
            {"learnt": n, "seconds": {s: seconds * f * slower[s] for s in STATES}}
            for n, f in ((10, 1.0), (100, grown))
        ],
        "drift": {
            kind: {s: drift * (1 + i) for i, s in enumerate(analytic.DRIFTING)}
            for kind in ("float32", "float64")
        },
    }  # fmt: skip


def test_the_numbers_of_the_section_are_those_of_the_record():
    text = analytic_section.analytic(record())
    words = " ".join(text.split())
    (line,) = [line for line in text.splitlines() if line.startswith("| `cholesky` | 2")]
    assert [float(cell) for cell in line.split("|")[2:5]] == pytest.approx([2, 2, 75])
    assert "| `gram, plain sums` | 2.0e-07 | 2.0e-07 |" in text
    assert "32 features" in words and "A Processor" in words


def test_goals_are_judged_by_the_record():
    good = analytic_section.findings(record())
    assert good[0].endswith(": `gram`, `inverse`.") and good[1].endswith(": none.")
    assert "as asked" in good[2]
    bad = analytic_section.findings(record(seconds=1.0, grown=2.0, drift=1e-5))
    assert bad[0].endswith(": none.") and "`gram` (2" in bad[1] and "MORE than asked" in bad[2]


def test_the_page_has_the_section_where_the_file_is_there(tmp_path):
    (tmp_path / "analytic.json").write_text(json.dumps(record()))
    page = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(page)]) == 0
    assert "## Deleting an example from an analytic head" in page.read_text()
    (tmp_path / "analytic.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="expected kind 'jaxunlearn analytic benchmark'"):
        analytic_section.read(tmp_path / "analytic.json")


def test_the_refit_is_ridge():
    x, y = analytic.rows(analytic.jax.random.key(0), 40, 5)
    expected = np.linalg.solve(np.float64(x.T @ x) + 0.1 * np.eye(5), x.T @ np.eye(10)[y])
    np.testing.assert_allclose(analytic.refit(x, y), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_small_run_measures_everything(tmp_path):
    small = ["--features", "16", "--learnt", "100", "200", "--refit", "200", "--repeats", "2",
             "--drift-features", "8", "--requests", "40", "--out", str(tmp_path)]  # fmt: skip
    assert analytic.main(small) == 0
    made = analytic_section.read(tmp_path / "analytic.json")
    assert [r["learnt"] for r in made["requests"]] == [100, 200]
    assert max(made["against"]["disagreement"].values()) < 1e-3
    assert max(made["drift"]["float64"].values()) < 1e-10 < 1e-3
    assert made["drift"]["float32"]["gram"] < 1e-6
