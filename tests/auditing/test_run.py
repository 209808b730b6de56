"""From the record of a comparison to `audit.json` and the pages, on a small run of digits."""

import copy
import dataclasses
import json
import sys
import types

import jax
import pytest

from jaxunlearn import audit, compare, data, presets, results
from jaxunlearn.auditing import Settings, audit_comparison, representation, run, write
from jaxunlearn.cache import Cache
from jaxunlearn.reporting import pages, reading, report

RECIPE = presets.Recipe(epochs=6, batch_size=64, learning_rate=5e-3)
COMPARED = compare.Settings(RECIPE, seeds=3, oracles=7, seed=2, permutations=99, resamples=49)
SETTINGS = Settings(permutations=99, resamples=19, rows=40, steps=4, shadows=0)
METHODS = "finetune(epochs=1),retrain"
PLANTED = ["last layer masked", "half-contaminated oracle", "oracle again"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A comparison, read back from its file."""
    assert audit.smallest_p_value(COMPARED.seeds, COMPARED.oracles) <= SETTINGS.level
    task = data.class_task(data.thinned(data.digits(), 200), 3)
    found = compare.compare(task, presets.parse_methods(METHODS), COMPARED, cache=cache)
    folder = tmp_path_factory.mktemp("finished")
    return results.read(results.write(found, folder / "results.json"))


@pytest.fixture(scope="module", autouse=True)
def short_dictionaries():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representation, "SAE_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def found(finished, cache, said):
    return audit_comparison(
        finished, SETTINGS, cache=cache, say=lambda text, seconds: said.append((text, seconds))
    )


@pytest.fixture
def untrained(monkeypatch):
    """Fails if any model is made."""

    def made(*args, **kwargs):
        raise AssertionError("a model was made")

    monkeypatch.setattr(compare, "ensembles_of", made)


def row(found, label):
    return next(each for each in found["rows"] if each["label"] == label)


def changed(finished, **fields):
    return results.Results(copy.deepcopy(finished.record) | fields)


# --- The record -------------------------------------------------------------------------------


def test_every_group_of_the_comparison_is_audited_and_the_planted_ones(found):
    assert [each["label"] for each in found["rows"]] == [
        "original", "oracle", "finetune(epochs=1)", "retrain", *PLANTED,
    ]  # fmt: skip
    assert [each["models"] for each in found["rows"]] == [3, 7, 3, 3, 3, 3, 3]
    assert [each["expected"] for each in found["rows"]] == [
        "flagged", None, None, None, "flagged", "flagged", "not flagged",
    ]  # fmt: skip


def test_the_record_is_one_that_can_be_shown_and_survives_json(found):
    assert reading.checked(found) is found
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert reading.not_informative(found) is None
    assert found["metrics"] == audit.METRIC_VERSIONS and found["shadows"] is None


def test_the_original_and_its_mask_are_flagged_and_retraining_is_not(found):
    for label in ("original", "last layer masked"):
        assert row(found, label)["finding"]["flagged"], label
    for label in ("retrain", "oracle again"):
        finding = row(found, label)["finding"]
        assert finding["verdict"] == "indistinguishable from retraining", finding
    masked, original = (
        row(found, label)["evidence"] for label in ("last layer masked", "original")
    )
    assert masked["features_forget"]["energy"] == pytest.approx(
        original["features_forget"]["energy"]
    )


def test_all_audits_ask_every_row(found):
    assert len(found["audits"]) == 17  # all but those of adjacent and remote rows
    for each in found["rows"]:
        expected = set() if each["role"] == "oracle" else set(found["audits"])
        assert set(each["evidence"]) == expected
        for evidence in each["evidence"].values():
            assert 1 / 100 <= evidence["p_value"] <= 1 and evidence["recipe"] is not None
    curves = {"pruning", "quantisation", "relearning", "few_examples", "fresh_head"}
    curves |= {"other_training", "steering_experts", "steering_random", "steering_reconstruction"}
    assert set(found["curves"]) == curves


def test_models_are_paired_with_what_they_were_made_from(finished, cache, monkeypatch):
    seen = {}

    class Book:
        def __init__(self, *args):
            pass

        def add(self, row):
            seen[row.label] = row

        def doubt(self):
            return "enough was seen"

    monkeypatch.setattr(run, "Book", Book)
    monkeypatch.setattr(run, "Bench", lambda *a, **k: Recorded())
    monkeypatch.setattr(run.remade, "check_models", lambda *a: None)
    found = audit_comparison(finished, SETTINGS, cache=cache)
    assert found["status"] == "not informative: enough was seen"
    paired = {label for label, each in seen.items() if each.paired}
    assert paired == {"finetune(epochs=1)", "last layer masked"}
    assert {each.role for each in seen.values()} == {
        "original", "oracle", "recipe", "method", "control",
    }  # fmt: skip


class Recorded:
    """In the place of a bench: measures nothing."""

    def learn_steering(self, originals):
        self.learnt = jax.tree.leaves(originals)[0].shape[0]

    def __call__(self, params):
        return None

    def accuracies(self, measured):
        return {}


def test_the_record_says_of_which_run_it_is(finished, found):
    assert found["run"] == {"results": "results.json", "digest": run.digest(finished.record)}
    other = changed(finished, headline="another")
    assert run.digest(other.record) != found["run"]["digest"]
    assert found["comparison"]["settings"]["seeds"] == 3
    assert found["settings"]["seed"] == 2 and found["settings"]["steps"] == 4
    assert found["task"]["name"] == "class:3" and "thinned" not in found["task"]


def test_progress_is_told_in_order_with_rising_seconds(found, said):
    texts = [text for text, _ in said]
    steer = texts.index("learning what to steer by")
    assert texts[steer + 1] == "auditing original" and texts[-1] == "writing it down"
    assert "auditing oracle again" in texts and "unlearning with retrain" in texts
    times = [seconds for _, seconds in said]
    assert times == sorted(times) and 0 < times[-1] <= found["seconds"]


def test_equal_seeds_give_equal_rows_whatever_else_is_audited(finished, found, cache):
    some = audit_comparison(finished, SETTINGS, methods=["retrain"], cache=cache)
    labels = [each["label"] for each in some["rows"]]
    assert labels == ["original", "oracle", "retrain", *PLANTED]
    for label in labels:
        assert row(some, label) == row(found, label)
    apart = ("rows", "seconds")
    assert {k: v for k, v in some.items() if k not in apart} == {
        k: v for k, v in found.items() if k not in apart
    }


def test_shadow_models_are_asked_for_with_the_settings(finished, cache, monkeypatch):
    seen = {}

    def shadow_lira(task, methods, **options):
        seen.update(options, labels=[each.label for each in methods], task=task.name)
        return {"pairs": 4, "words": "w", "rows": []}

    monkeypatch.setitem(
        sys.modules, "jaxunlearn.auditing.shadows", types.SimpleNamespace(shadow_lira=shadow_lira)
    )
    monkeypatch.setattr(run, "Book", Quiet)
    monkeypatch.setattr(run, "Bench", lambda *a, **k: Recorded())
    monkeypatch.setattr(run.remade, "check_models", lambda *a: None)
    settings = dataclasses.replace(SETTINGS, shadows=4)
    told = audit_comparison(finished, settings, methods=["retrain"], cache=cache)["shadows"]
    assert told == {"pairs": 4, "words": "w", "rows": []}
    assert (seen["pairs"], seen["seed"], seen["recipe"]) == (4, 2, RECIPE)
    assert seen["labels"] == ["retrain"] and seen["task"] == "class:3"
    assert seen["resamples"] == 19 and seen["cache"] is cache


class Quiet:
    """In the place of a book: judges nothing."""

    def __init__(self, *args):
        pass

    def add(self, row):
        pass

    def doubt(self):
        return None

    def told(self):
        return {}


# --- What is not audited ----------------------------------------------------------------------


def test_a_comparison_that_says_nothing_is_not_audited(finished, untrained):
    bare = changed(finished, status="not informative: the originals are at chance")
    found = audit_comparison(bare, SETTINGS)
    reason = "the comparison itself says nothing (the originals are at chance)"
    assert found["status"] == f"not informative: {reason}"
    assert found["rows"] == [] and reading.checked(found) is found
    assert reading.not_informative(found) == reason


def test_an_empty_request_is_not_audited(finished, untrained):
    found = audit_comparison(changed(finished, status="nothing to forget"), SETTINGS)
    assert "nothing to forget" in found["status"]


def test_too_few_models_are_refused_before_any_is_made(finished, untrained):
    settings = dataclasses.replace(SETTINGS, level=0.001, permutations=1999)
    with pytest.raises(audit.TooFew, match=r"3 models against 7 oracles .* below 0.0083, so noth"):
        audit_comparison(finished, settings)


def test_regressions_and_recommenders_are_refused(finished, untrained):
    task = {k: v for k, v in finished.record["task"].items() if k != "classes"}
    with pytest.raises(ValueError, match="audits of models, .* are for classifiers"):
        audit_comparison(changed(finished, task=task), SETTINGS)


def test_an_unknown_row_is_refused_before_anything_is_made(finished, untrained):
    with pytest.raises(ValueError, match="no such row: 'retrian' is unknown.*'retrain'"):
        audit_comparison(finished, SETTINGS, methods=["retrian"])


def test_models_that_are_not_those_of_the_record_are_refused(finished, cache, monkeypatch):
    other = changed(finished)
    scores = other.row("original")["scores"]["accuracy"]["test"]
    scores["per_model"][0] += 0.01
    with pytest.raises(ValueError, match="models of 'original' cannot be made again as they were"):
        audit_comparison(other, SETTINGS, cache=cache)


def test_oracles_in_doubt_are_no_reference(finished, cache, monkeypatch):
    monkeypatch.setattr(run, "Book", type("Doubting", (Quiet,), {"doubt": lambda self: "why"}))
    monkeypatch.setattr(run, "Bench", lambda *a, **k: Recorded())
    monkeypatch.setattr(run.remade, "check_models", lambda *a: None)
    found = audit_comparison(finished, SETTINGS, cache=cache)
    assert found["status"] == "not informative: why" and found["rows"] == []


def test_a_single_row_to_forget_is_audited_without_shadow_models(finished, monkeypatch):
    """There is nothing to share out between twins."""
    source = data.thinned(data.digits(), 200)
    task = data.index_task(source, source.train["id"][:1])
    monkeypatch.setattr(run.remade, "task_of", lambda *a, **k: task)
    monkeypatch.setattr(run, "Book", Quiet)
    monkeypatch.setattr(run, "Bench", lambda *a, **k: Recorded())
    monkeypatch.setattr(run.remade, "check_models", lambda *a: None)
    monkeypatch.setattr(compare, "ensembles_of", lambda *a, **k: iter(()))
    monkeypatch.setattr(run.planted, "planted", lambda *a, **k: iter(()))
    monkeypatch.setitem(
        sys.modules, "jaxunlearn.auditing.shadows", None
    )  # importing it would raise
    found = audit_comparison(finished, dataclasses.replace(SETTINGS, shadows=4))
    assert found["shadows"] is None and found["status"] == "informative"


# --- What is written --------------------------------------------------------------------------


@pytest.fixture
def plain_pages(monkeypatch):
    """Pages without pictures, which take a second each."""
    monkeypatch.setattr(pages, "page", lambda audit, row: f"<p>{row['label']} {audit['notes']}")
    monkeypatch.setattr(report, "html", lambda record, audit: f"<p>{audit['status']}")


def test_the_audit_the_report_and_a_page_for_each_row_are_written(finished, found, tmp_path):
    found = found | {"rows": found["rows"][:3]}
    paths = write(found, finished, tmp_path)
    assert paths[:2] == [tmp_path / "audit.json", tmp_path / "report.html"]
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert len(names) == 2 == len(paths) - 2  # all rows but the oracles
    assert run.read(tmp_path / "audit.json") == found

    front = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in names:
        assert f'href="pages/{name}"' in front
        assert (tmp_path / "pages" / name).read_text(encoding="utf-8").endswith("</html>\n")


def test_pages_of_rows_that_are_gone_are_removed_and_nothing_else(
    finished, found, tmp_path, plain_pages
):
    write(found, finished, tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "pages" / "notes.txt").write_text("mine")
    fewer = found | {"rows": [each for each in found["rows"] if each["role"] != "control"]}
    write(fewer, finished, tmp_path)
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert len([name for name in names if name.endswith(".html")]) == 3
    assert "notes.txt" in names and (tmp_path / "mine.html").read_text() == "mine"


def test_an_audit_that_says_nothing_has_no_pages_and_removes_old_ones(
    finished, found, tmp_path, plain_pages
):
    write(found, finished, tmp_path)
    bare = audit_comparison(changed(finished, status="not informative: chance"), SETTINGS)
    assert write(bare, finished, tmp_path) == [tmp_path / "audit.json", tmp_path / "report.html"]
    assert list((tmp_path / "pages").iterdir()) == []
    assert "chance" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_made_leaves_everything_as_it_was(finished, found, tmp_path):
    broken = copy.deepcopy(found)
    broken["rows"][-1]["evidence"]["unheard of"] = {}
    with pytest.raises(ValueError, match="evidence of 'unheard of', which 'audits' does not"):
        write(broken, finished, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_no_json_leaves_everything_as_it_was(
    finished, found, tmp_path, plain_pages
):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(found | {"seconds": float("nan")}, finished, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["rows"][0].update(models=99), "'rows' is not what was written"),
        (lambda r: r.update(schema=99), "schema 99 is newer than 1"),
        (lambda r: r.update(kind="jaxunlearn compare"), "not the record of a jaxunlearn audit"),
    ],
)
def test_an_audit_that_was_edited_or_is_none_is_not_read(
    finished, found, plain_pages, tmp_path, change, message
):
    path, *_ = write(found, finished, tmp_path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        run.read(path)


def test_memory_that_ends_in_the_last_page_leaves_everything_as_it_was(
    finished, found, tmp_path, plain_pages, monkeypatch
):
    def exhausted(audit, row):
        if row["label"] == found["rows"][-1]["label"]:
            raise MemoryError
        return "<p>"

    monkeypatch.setattr(pages, "page", exhausted)
    with pytest.raises(MemoryError):
        write(found, finished, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_leaves_old_or_new_files_each_whole(
    finished, found, tmp_path, plain_pages
):
    """The k-th file fails, for every k."""
    write(found, finished, tmp_path)
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    before = {path: path.read_text() for path in files}
    newer = copy.deepcopy(found) | {"notes": ["newer"], "status": "informative: newer"}
    for last in range(len(files)):
        count = 0

        def failing(path, text, last=last):
            nonlocal count
            count += 1
            if count > last:
                raise OSError("disk full")
            return run.publish_text(path, text)

        with pytest.raises(OSError, match="disk full"):
            write(newer, finished, tmp_path, publish=failing)
        now = {path: path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
        assert now.keys() == before.keys()
        fresh = {path for path in files if "newer" in now[path]}
        assert len(fresh) == last  # each is old or new, and none is missing
        assert all(now[path] == before[path] for path in files if path not in fresh)
