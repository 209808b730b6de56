"""The benchmark of shards: its counts by another road, a tiny run whole, its section's words."""

import json
import signal

import numpy as np
import pytest

from experiments import benchmarks_md
from experiments.benchmarks import shards, shards_section
from jaxunlearn.methods.exact.shard_plan import expected_cost
from tests.experiments.records import record as comparison


def made(**kills):
    """A record of numbers that mean nothing."""
    rng = np.random.default_rng(0)
    studies = [
        {
            "shards": s,
            "accuracy": {how: rng.uniform(0.8, 0.99, 3).tolist() for how in ("mean", "majority")},
            "expected": expected_cost(s, 3),
            "planned": 0.9 * expected_cost(s, 3),
            "measured": rng.uniform(0.1, 0.5, 4).tolist(),
            "forget": [0.1, 0.2, 0.2, 0.3],
            "retrain": [0.5, 1.0, 1.0, 1.5],
        }
        for s in (1, 4)
    ]
    hit = {"before the request": 1, "between request and end": 47, "after the end": 2}
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    return facts | {
        "schema": shards.SCHEMA,
        "kind": shards.KIND,
        "command": "python -m experiments.benchmarks.shards --slices 3",
        "job": {
            "rows": 1200, "test": 300, "slices": 3, "epochs": 20, "batch_size": 64,
            "learning_rate": 2e-3, "seeds": 3,
        },
        "studies": studies,
        "kills": {"kills": 50, "passed": 50, "hit": hit, "shards": 4, "rows": 12, "seconds": 1.0}
        | kills,
    }  # fmt: skip


@pytest.mark.parametrize("num_shards", [1, 8])
def test_the_planned_cost_is_near_the_expected_one_and_falls_with_shards(num_shards):
    costs = [shards.planned_cost(num_shards, 3, seed) for seed in range(8)]
    assert np.mean(costs) == pytest.approx(expected_cost(num_shards, 3), rel=0.1)
    assert len(set(costs)) == 8  # sizes are binomial


def test_the_section_says_what_the_record_says(tmp_path):
    text = " ".join(shards_section.sharding(made()).split())
    assert "| 4 |" in text and "| 19.4 |" in text  # (1/4)(2/3 + 1/9)
    assert "| 0.200 | 1.000 | 5.0 |" in text
    assert "1 before the request, 47 between request and end, 2 after the end" in text
    assert "After the same calls again all of them" in text
    (tmp_path / "shards.json").write_text(json.dumps(made()))
    assert benchmarks_md.read_further(tmp_path) == [shards_section.sharding(made())]


def test_a_kill_that_was_not_survived_is_said():
    assert "again ONLY 49 of them" in " ".join(shards_section.sharding(made(passed=49)).split())


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "shards.json"
    path.write_text(json.dumps(made() | {"kind": "other"}))
    with pytest.raises(ValueError, match=r"Make it anew with `python -m experiments.benchmarks.sh"):
        shards_section.read(path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills forks")
def test_a_tiny_run_writes_a_record_that_becomes_a_section(tmp_path):
    options = "--shards 2 --slices 2 --epochs 1 --seeds 1 --deletions 1 --kills 2 --killed-rows 2"
    assert shards.main([*options.split(), "--out", str(tmp_path)]) == 0
    record = shards_section.read(tmp_path / "shards.json")
    assert record["kills"]["passed"] == 2 == sum(record["kills"]["hit"].values())
    (study,) = record["studies"]
    assert 0 < study["measured"][0] < 1 and study["planned"] == pytest.approx(5 / 12, rel=0.05)
    assert "## Sharded training" in shards_section.sharding(record)
