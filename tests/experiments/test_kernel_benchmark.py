"""The kernel benchmark: networks of finite width, a tiny run whole, its section from its record."""

import copy
import json

import jax
import numpy as np
import pytest

from experiments import benchmarks_md
from experiments.benchmarks import kernel, kernel_section, kernel_width
from tests.experiments.records import record as comparison

TINY = (
    "--sizes 12 --hinge-sizes 16 --forget 1 2 --turns 1 --widths 8 128 --seeds 2 --steps 60".split()
)


def made():
    """A record of numbers that mean nothing."""
    rng = np.random.default_rng(0)

    def some(*names):
        return {name: float(rng.uniform(0.1, 1)) for name in names}

    ridge = [
        {
            "n": 12, "forget": count, "agreement": dict.fromkeys(("leave_out", "forget"), 1e-13),
            "seconds": {"forget": 0.01, "refit": 0.02} | some("leave_out", "SciPy"),
        }
        for count in (1, 2)
    ]  # fmt: skip
    hinge = {
        "n": 16, "forget": 1, "support": 9, "events": 3, "gap": 1e-15, "agreement": 1e-9,
        "seconds": some("path", "ascent"),
    }  # fmt: skip
    widths = [{"width": w, "limit": 1 / w, "own": 1 / w, "seeds": 2} for w in (8, 128)]
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    return facts | {
        "schema": kernel.SCHEMA, "kind": kernel.KIND, "turns": 1, "seed": 0, "seeds": 2,
        "command": "python -m experiments.benchmarks.kernel --sizes 12", "ridge": ridge,
        "hinge": [hinge], "widths": {name: widths for name in kernel_width.LOSSES},
        "moved": some(*kernel_width.LOSSES),
    }  # fmt: skip


@pytest.mark.slow
def test_a_tiny_run_agrees_with_refits_and_becomes_a_section(tmp_path, monkeypatch):
    """Through the command line; the cores stay as the tests have them."""
    monkeypatch.setattr(kernel.machine, "use_all_cores", lambda: None)
    assert kernel.main(["--out", str(tmp_path), *TINY]) == 0
    record = kernel_section.read(tmp_path / "kernel.json")
    assert record.keys() >= made().keys()
    for row in record["ridge"]:
        assert max(row["agreement"].values()) < 1e-10 and min(row["seconds"].values()) > 0
    for row in record["hinge"]:
        assert row["agreement"] < 1e-6 and row["gap"] < 1e-13 and row["events"] >= 0
    assert record["command"].endswith(" ".join(["--seeds", "2", "--steps", "60"]))
    assert [(row["n"], row["forget"]) for row in record["ridge"]] == [(12, 1), (12, 2)]
    for name, rows in record["widths"].items():
        for key in ("limit", "own"):
            assert rows[0][key] > 1.5 * rows[1][key], (name, key)
        assert rows[1]["limit"] < record["moved"][name]
    assert "All weights agree with a fit" in kernel_section.kernels(record)


@pytest.mark.slow
@pytest.mark.parametrize("name", kernel_width.LOSSES)
def test_the_difference_falls_like_one_over_the_root_of_the_width(name):
    rows = kernel_width.table((64, 512, 4096), 5, 300, name)
    for key in ("limit", "own"):
        values = np.array([row[key] for row in rows])
        assert (np.diff(values) < 0).all()
        rates = np.diff(np.log(values)) / np.log(8)
        slowest, fastest = (-0.35, -0.65) if key == "limit" else (-0.35, -1.1)
        assert fastest < rates.mean() < slowest, rates
        assert (rates < -0.2).all(), rates
    assert values[-1] < 0.1 * kernel_width.moved(name, 300)


def test_a_network_that_forgot_other_rows_is_not_near():
    """The mutant: a network trained without six rows that are not F."""
    x, test, y = kernel_width.problem()
    theta = kernel_width.start(jax.random.key(3), 512)
    loss = kernel_width.LOSSES["squared"]

    @jax.jit
    def difference(x_seen, y_seen):
        trained = kernel_width.descend(theta, x_seen, y_seen, loss, 60)
        outputs = [kernel_width.outputs(p, {"x": test}) for p in (trained, theta)]
        return outputs[0] - outputs[1]

    machine = kernel_width.kernel_ridge(kernel=kernel_width._KERNEL, rho=24 * kernel_width.DECAY)
    predicted = machine.predict(machine.forget(machine.init(x, y), np.arange(6)), test)
    rows = np.arange(30)
    right, wrong = (difference(x[s], y[s]) - predicted for s in (rows[6:], rows[:-6]))
    assert np.abs(wrong).max() > 2 * np.abs(right).max()


def test_the_section_follows_from_the_record(tmp_path):
    record = made()
    (tmp_path / "kernel.json").write_text(json.dumps(record))
    text = kernel_section.kernels(kernel_section.read(tmp_path / "kernel.json"))
    assert text.startswith("## Leaving rows out of kernel machines")
    assert "All weights agree with a fit of what is left within 1e-13." in text
    assert "not faster than refitting at: none" in text
    assert "* hinge: the differences fall with every width" in text
    assert text in benchmarks_md.read_further(tmp_path)
    wrong = copy.deepcopy(record)
    wrong["ridge"][0]["agreement"]["forget"] = 1e-3
    wrong["ridge"][0]["seconds"] |= {"forget": 2.0, "refit": 1.0}
    wrong["widths"]["hinge"][1]["own"] = 9.0
    text = kernel_section.kernels(wrong)
    assert "**The weights DISAGREE** with a fit of what is left, by 1e-03" in text
    assert "not faster than refitting at: n = 12, F = 1" in text
    assert "* hinge: the differences **do NOT fall**" in text


def test_another_record_is_refused(tmp_path):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"kind": "something else", "schema": 1}))
    with pytest.raises(ValueError, match="expected kind 'jaxunlearn kernel benchmark'"):
        kernel_section.read(path)
