"""The benchmark of the linear autoencoder: a tiny run whole, its section from its record."""

import json

import numpy as np
import pytest

from experiments import benchmarks_md
from experiments.benchmarks import autoencoder, autoencoder_section
from experiments.benchmarks.autoencoder import REFITS
from jaxunlearn.reporting.tables import number
from tests.experiments.records import record as comparison


def made(error=1e-14, slow=False, dtypes=("float64", "float32")):
    """A record of numbers that mean nothing."""
    rng = np.random.default_rng(0)

    def spread(scale):
        value = float(scale * rng.uniform(1, 2))
        return {"value": value, "low": value / 2, "high": value * 2}

    sizes = [
        {
            "items": items, "users": 3 * items, "entries": 40 * items, "dtype": dtype,
            "seconds": {name: spread(1e-2) for name in ("1", "16", *REFITS)},
            "compile": {"1": 1.0, "16": 1.0}, "gram_seconds": 0.01, "fastest_refit": "Cholesky",
            "ratio": {m: spread(0.1 if slow else 50) for m in ("1", "16")},
            "error": dict.fromkeys(("1", "16", *REFITS, "1 not forgotten"), error),
            "residual": 1e-15, "bytes": 16 * items**2,
        }
        for items in (1000, 2000) for dtype in dtypes
    ]  # fmt: skip
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    return facts | {
        "schema": autoencoder.SCHEMA, "kind": autoencoder.KIND, "seed": 0, "repeats": 7,
        "command": "python -m experiments.benchmarks.autoencoder", "regularisation": 100.0,
        "sizes": sizes,
    }  # fmt: skip


@pytest.mark.slow
def test_a_tiny_run_writes_a_record_that_becomes_a_section(tmp_path, capsys):
    options = ["--items", "80", "--dtypes", "float64", "--repeats", "2", "--out", str(tmp_path)]
    assert autoencoder.main(options) == 0
    record = autoencoder_section.read(tmp_path / "autoencoder.json")
    (size,) = record["sizes"]
    assert size["users"] == 240 and size["dtype"] == "float64"
    assert max(size["error"][name] for name in ("1", "16", *REFITS)) < 1e-10
    assert size["error"]["16 not forgotten"] > size["error"]["1 not forgotten"] > 1e-6
    assert all(s["low"] <= s["value"] <= s["high"] for s in size["seconds"].values())
    assert "to 1e-10" in autoencoder_section.autoencoder(record)
    assert "80 items, float64" in capsys.readouterr().out


def test_too_few_items_or_repeats_are_refused(tmp_path, capsys):
    assert autoencoder.main(["--items", "20", "--out", str(tmp_path)]) == 2
    assert "expected --repeats >= 1 and --items >= 64, got 7 and 20" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_feedback_is_ones_for_as_many_people_as_asked():
    data = autoencoder.feedback(100, 0)
    assert (data.users, data.items, len(data)) == (300, 100, 12_000)
    assert (data.value == 1).all()


def test_the_section_shows_the_numbers_of_the_record():
    record = made()
    lines = [line for line in autoencoder_section.autoencoder(record).splitlines() if "|" in line]
    for size in record["sizes"]:
        rows = [line for line in lines if f"| {size['items']} | {size['dtype']} |" in line]
        assert len(rows) == 2
        assert number(1e3 * size["seconds"]["1"]["value"]) in rows[0]
        assert f"{number(size['ratio']['16']['value'])} [" in rows[0]
        assert "1.0e-14" in rows[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "In float64 the downdate equals the refit to 1e-10"),
        ({"error": 1e-9}, "**does NOT equal** the refit to 1e-10 (largest difference 1.0e-09)"),
        ({"slow": True}, "**NOT faster** than a refit in 4 of 4 settings"),
    ],
)
def test_the_sentences_follow_from_the_record(changes, words):
    assert words in " ".join(autoencoder_section.autoencoder(made(**changes)).split())


def test_without_double_precision_nothing_is_said_about_it():
    assert "In float64" not in autoencoder_section.autoencoder(made(dtypes=("float32",)))


def test_the_page_has_the_section_where_the_file_is_there(tmp_path):
    (tmp_path / "autoencoder.json").write_text(json.dumps(made()))
    page = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(page)]) == 0
    assert "## Deleting people from a linear autoencoder" in page.read_text()


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "autoencoder.json").write_text('{"kind": "other"}')
    with pytest.raises(ValueError, match="expected kind 'jaxunlearn linear autoencoder benchmark'"):
        autoencoder_section.read(tmp_path / "autoencoder.json")
