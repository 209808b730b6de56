"""The generated table of presets: rates and lengths in the terms of the recipe, and valid code."""

import json

from experiments import write_presets
from tests.experiments.test_calibration_benchmark import made


def test_choices_are_written_in_the_terms_of_the_recipe(tmp_path):
    record = made()
    record["tasks"]["class"]["tried"]["finetune"]["trials"][1]["settings"] = {
        "learning_rate": 0.01,
        "epochs": 3,
        "schedule": "cosine",
    }
    (tmp_path / "calibration.json").write_text(json.dumps(record), encoding="utf-8")
    out = tmp_path / "calibrated.py"
    assert write_presets.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    names: dict = {}
    exec(compile(out.read_text(encoding="utf-8"), "calibrated", "exec"), names)
    table = names["CALIBRATED"]
    chosen = {"learning_rate": 5.0, "epochs": 0.1, "schedule": "cosine"}
    assert table["class"]["finetune"] == chosen
    assert set(table["class"]) == {"finetune", "scrub", "ssd"}
    assert "class:3 of digits: class:5" in names["__doc__"]


def test_without_a_calibration_nothing_is_written(tmp_path):
    out = tmp_path / "calibrated.py"
    assert write_presets.main(["--results", str(tmp_path), "--out", str(out)]) == 2
    assert not out.exists()
