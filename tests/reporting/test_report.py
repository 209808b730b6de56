"""The report: what it says, what it hides, that nothing of the data can act in it.

`plausible` makes a record like those that a comparison writes, with numbers that hang together
(energies, floors, verdicts), so that the pictures are those of a real case.
"""

import copy
import itertools
import json
import re
import struct
import xml.etree.ElementTree as ElementTree
from html import unescape

import numpy as np
import pytest

from jaxunlearn.audit.verdict import Verdict
from jaxunlearn.reporting import pictures, reading, report, tables
from jaxunlearn.reporting.drawing import folded
from jaxunlearn.reporting.glossary import METRICS, VERDICTS
from jaxunlearn.reporting.labels import Point, place_labels
from tests.reporting import audit_records
from tests.reporting.page_reader import Page

PARTS = {
    "forget": "training examples to forget",
    "retain": "retained training examples",
    "adjacent": "retained training examples that resemble them",
    "test": "test examples of other kinds",
    "forget_test": "test examples of the forgotten kind",
}
FLOORS = {"forget": 0.005, "retain": 0.006, "adjacent": 0.004, "test": 0.003, "forget_test": 0.01}
KINDS = (
    "indistinguishable from retraining",
    "under-forgotten",
    "within recipe noise",
    "over-forgotten",
    "elsewhere",
    "collapsed",
)
LABELS = (
    "retrain",
    "finetune",
    "gradient_ascent",
    "neggrad_plus(alpha=0.9, epochs=3)",
    "random_labels",
    "ssd",
    "ssd(alpha=5, effective_batch=1)",
    "neggrad_plus(alpha=0.99, epochs=12)",
    "finetune(learning_rate=0.01, epochs=10)",
    "ssd(alpha=10, dampening=1, effective_batch=64)",
    "gradient_ascent(learning_rate=10.0)",
    "random_labels(epochs=1)",
    "neggrad_plus",
    "finetune(epochs=1)",
)


def summary(rng, value, scale=0.01):
    value = float(np.clip(value, 0, None))
    half = scale * float(rng.uniform(0.2, 1))
    return {"value": value, "low": value - half, "high": value + half, "per_model": [value]}


def scores_of(rng, accuracy, far, reference):
    found = {"accuracy": {}, "loss": {}}
    for part in PARTS:
        found["accuracy"][part] = summary(rng, accuracy[part])
        found["loss"][part] = summary(rng, -np.log(max(accuracy[part], 1e-3)))
        if reference:
            continue
        for metric in ("jensen_shannon", "activation_distance", "prediction_agreement"):
            found.setdefault(metric, {})[part] = summary(rng, far * rng.uniform(0.1, 0.3))
        found.setdefault("klom", {})[part] = {"value": 1 + far, "quantile95": 3 + far}
    return found


def attacks(rng, centre):
    return {
        score: {name: summary(rng, centre) for name in ("auc", "accuracy", "tpr")}
        for score in ("loss", "confidence", "entropy")
    }


def judgement(rng, kind, forget, kept):
    """A verdict with energies in recipe floors: `forget` and at most `kept` on data that stays."""
    ratios = {"forget": forget, "retain": kept, "adjacent": 0.6 * kept, "test": 0.8 * kept}
    ratios["forget_test"] = 1.1 * forget  # forgetting, not damage: never collateral
    return {
        "verdict": kind,
        "words": f"{kind}: about {forget:.2g} floors from retraining on forget data (p = 0.001)",
        "p_value": 0.001,
        "energies": {part: ratio * FLOORS[part] for part, ratio in ratios.items()},
        "gap_closed": summary(rng, 1 - forget / 340, 0.02),
        "collateral": summary(rng, kept, 0.1 * abs(kept)),
    }


def row(rng, label, role, verdict, forget=0.5, far=0.1, **facts):
    accuracy = dict(zip(PARTS, (forget, 0.999, 0.993, 0.962, forget), strict=True))
    return {
        "label": label,
        "role": role,
        "models": 32 if role == "oracle" else 16,
        "scores": scores_of(rng, accuracy, far, role == "oracle"),
        "tug_of_war": summary(rng, 1 - far / 2),
        "membership": attacks(rng, 0.5 + far / 3),
        "verdict": verdict,
        "seconds": {"compile": 1.2, "run": 3.4, "of_retraining": None},
        **facts,
    }


def plausible(methods=6, undefined=0, seed=0):
    """A record with that many methods, the last `undefined` of them with non-finite outputs."""
    rng = np.random.default_rng(seed)
    rows = [
        row(rng, "original", "original", judgement(rng, "under-forgotten", 336, 164), 1.0, 0.9),
        row(rng, "oracle", "oracle", None, 0.0, 0.0),
    ]
    for label, forget in (("oracle, 38 epochs", 0.8), ("oracle, batch 96", 0.4)):
        found = judgement(rng, "reference", forget, 0.9)
        verdict = {key: found[key] for key in ("verdict", "energies")}
        verdict["words"] = "a recipe that nobody would call different"
        rows.append(row(rng, label, "recipe", verdict, 0.0, 0.05))
    for i, label in enumerate(LABELS[:methods]):
        kind = KINDS[i % len(KINDS)]
        forget = {"indistinguishable from retraining": 0.1, "within recipe noise": 0.7}.get(kind)
        forget = float(rng.lognormal(3, 1)) if forget is None else forget
        kept = 0.2 + 0.1 * i if forget < 1 else float(rng.lognormal(1.5, 1))
        verdict = judgement(rng, kind, forget, kept)
        made = row(
            rng, label, "method", verdict, float(rng.uniform()), 0.3, method=label.split("(")[0],
            family="descent", paper="2302.09880", needs=["retain"], guarantee="empirical",
            arguments={"epochs": 3}, preset="eta for a tenth of the epochs", info={},
        )  # fmt: skip
        made["seconds"] = {"compile": 1.5, "run": 0.3, "of_retraining": 0.083}
        if i >= methods - undefined:
            broken(made)
        rows.append(made)
    grid = np.linspace(0, 1, 51)
    return {
        "schema": 1,
        "kind": "jaxunlearn compare",
        "status": "informative",
        "headline": "Asked to forget class 3 of digits, none of 5 approximate methods matches true "
        "retraining; the nearest on forget data is neggrad_plus, which closes 93 % of the gap.",
        "task": {
            "name": "class:3",
            "words": "class 3",
            "description": "Forget class 3 of digits: 122 of 1200 training rows, 1078 retained.",
            "source": "digits",
            "digest": "d" * 64,
            "source_digest": "e" * 64,
            "classes": 10,
            "near_duplicates": {"train": 0, "test": 1, "radius": 0.05},
        },
        "settings": {
            "recipe": {"model": "mlp", "optimizer": "adam", "learning_rate": 2e-3}
            | {"batch_size": 64, "epochs": 30},
            "seeds": 16,
            "oracles": 32,
            "seed": 0,
            "rows": 10000,
        },
        "versions": {"jaxunlearn": "0.1.0", "jax": "0.10.2", "machine": "1 x cpu (cpu)"},
        "metrics": {"verdict": "1", "energy": "1"},
        "seconds": 41.5,
        "parts": {
            part: {"examples": 100 + i, "available": 1000 + i, "words": words}
            for i, (part, words) in enumerate(PARTS.items())
        },
        "floors": {
            part: {"value": value, "recipe": value, "resolution": value / 2}
            for part, value in FLOORS.items()
        },
        "floor": scores_of(rng, dict.fromkeys(PARTS, 0.9), 0.05, False)
        | {"tug_of_war": summary(rng, 0.98)},
        "rows": rows,
        "curves": {
            r["label"]: {"fpr": grid.tolist(), "tpr": (grid ** rng.uniform(0.3, 1)).tolist()}
            if r["membership"]["loss"]
            else None
            for r in rows
            if r["role"] != "recipe"
        },
        "notes": ["ssd: the preset changes almost nothing here."],
    }


def broken(made):
    """Turn a row into that of models with non-finite outputs."""
    words = "collapsed: 16 of 16 models gave non-finite outputs"
    made["verdict"] = {"verdict": "collapsed", "words": words, "p_value": None}
    made["verdict"] |= dict.fromkeys(("energies", "gap_closed", "collateral"))
    nothing = {"value": None, "low": None, "high": None, "per_model": [None]}
    made["scores"] = {
        name: dict.fromkeys(PARTS, nothing if name != "klom" else None) for name in made["scores"]
    }
    made["tug_of_war"] = nothing
    made["membership"] = dict.fromkeys(("loss", "confidence", "entropy"))


def not_informative():
    record = plausible()
    record["status"] = "not informative: the base model is at chance (0.1 on test data)"
    record["headline"] = "This comparison says nothing: the base model is at chance."
    return record


def nothing_to_forget():
    record = plausible(3)
    record["status"] = "nothing to forget"
    record["headline"] = "The request is empty: there is nothing to forget."
    words = "nothing to forget: there is no forget example"
    record["rows"] = [r for r in record["rows"] if r["role"] in ("original", "method")]
    for made in record["rows"]:
        broken(made)
        made["verdict"] |= {"verdict": "nothing to forget", "words": words}
        made["scores"] = {"accuracy": {"retain": made["scores"]["accuracy"]["retain"]}}
        made["scores"]["accuracy"]["retain"] = {"value": 0.9876, "low": 0.98, "high": 0.99}
        made["tug_of_war"] = made["membership"] = None
    record["floors"], record["floor"] = {}, {}
    record["parts"]["forget"] = {"examples": 0, "available": 0, "words": PARTS["forget"]}
    record["curves"] = dict.fromkeys(record["curves"])
    return record


@pytest.fixture(scope="module")
def record():
    return plausible(methods=14, undefined=3)


@pytest.fixture(scope="module")
def page(record):
    return report.html(record)


# -------------------------------------------------------------------------------------- the page


def test_the_page_names_every_row_with_its_verdict_and_sentence(record, page):
    text = Page(page).text
    assert record["headline"] in text
    for each in record["rows"]:
        assert each["label"] in text
        if each["verdict"]:
            assert each["verdict"]["words"].partition(": ")[2] in text
            assert each["verdict"]["verdict"] in text


def test_the_page_is_well_formed_and_no_id_stands_twice(page):
    read = Page(page)
    assert read.open == []
    assert read.ids and len(read.ids) == len(set(read.ids))


def test_references_inside_the_pictures_point_at_something(page):
    ids = set(Page(page).ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert used
    assert {a or b for a, b in used} <= ids


def test_the_page_fetches_nothing_and_runs_nothing(page):
    read = Page(page)
    assert not re.search(r"https?:|//[a-z]|@import|javascript:", page, flags=re.IGNORECASE)
    assert not read.tags & {"script", "link", "iframe", "img", "object", "a"}
    assert not [name for name, _ in read.attributes if name.startswith("on") or name == "src"]


def test_text_of_the_data_cannot_act_in_the_page():
    record = plausible(3)
    nasty = "<script>alert(1)</script><u>&\"'--> $x_1$"
    for each in (record["rows"][4], record["rows"][1]):
        record["curves"][nasty + each["role"]] = record["curves"].pop(each["label"])
        each["label"] = nasty + each["role"]
    record["rows"][4] |= {"guarantee": nasty, "preset": nasty, "paper": nasty}
    record["rows"][4]["verdict"] |= {"words": nasty, "verdict": nasty}
    record["rows"][5]["membership"] = {"undefined": nasty}
    record["headline"] = nasty
    record["notes"].append(nasty)
    record["task"] |= dict.fromkeys(("name", "words", "description", "source"), nasty)
    record["settings"] |= {nasty: nasty}
    record["versions"] |= {nasty: nasty}
    record["parts"]["retain"]["words"] = nasty
    made = report.html(record)
    read = Page(made)
    assert read.open == []
    assert not read.tags & {"script", "u"}
    assert read.text.count("<script>alert(1)</script>") >= 12


def test_undefined_numbers_are_said_to_be_undefined_and_never_0(record, page):
    for each in record["rows"][-3:]:
        (cells,) = rows_of(page, each["label"])[:1]
        assert cells[1:8] == ["undefined"] * 7
        for later in rows_of(page, each["label"])[1:]:
            assert not {"0", "0.0", "nan", "None"} & set(later)


def test_the_oracles_own_value_stands_beside_every_attack(record, page):
    held = next(r for r in record["rows"] if r["role"] == "oracle")["membership"]["loss"]["auc"]
    beside = f"oracle {tables.number(held['value'])}"
    for label in ("original", "retrain", "ssd"):
        cells = rows_of(page, label)[1]
        assert beside in cells[0]


def test_every_classical_metric_has_its_floor_above_it(page):
    text = Page(page).text
    for title, _ in METRICS.values():
        following = text[text.index(f"{title} ") :]
        assert following.index(" floor ") < following.index(" original ")
    assert len(rows_of(page, "floor")) == len(METRICS)


def test_the_glossary_explains_every_verdict(page):
    text = Page(page).text
    assert {verdict.value for verdict in Verdict} <= set(VERDICTS)
    assert all(words in text for words in VERDICTS.values())


def test_settings_versions_hashes_and_notes_are_on_the_page(record, page):
    text = Page(page).text
    for word in ("d" * 64, "e" * 64, "0.10.2", "1 x cpu (cpu)", "adam", *record["notes"]):
        assert word in text
    assert report.command(record) in text


def test_the_command_is_quoted_for_a_shell():
    made = report.command(plausible(4))
    quoted = "'retrain,finetune,gradient_ascent,neggrad_plus(alpha=0.9, epochs=3)'"
    assert made == (
        f"jaxunlearn compare --source digits --forget class:3 --methods {quoted} "
        "--model mlp --optimizer adam --learning-rate 0.002 --batch-size 64 --epochs 30 "
        "--seeds 16 --oracles 32 --seed 0 --rows 10000"
    )


def test_a_command_that_the_record_holds_is_shown_as_it_is():
    record = plausible(2) | {"command": "jaxunlearn compare --forget class:3 --quiet"}
    assert "command: jaxunlearn compare --forget class:3 --quiet" in Page(report.html(record)).text


def test_equal_records_give_equal_pages_and_the_record_is_left_alone(record, page):
    before = copy.deepcopy(record)
    again = json.loads(json.dumps(record))
    assert report.html(again) == page
    assert record == before


def test_another_result_gives_another_page(record, page):
    changed = copy.deepcopy(record)
    changed["rows"][0]["scores"]["accuracy"]["test"]["value"] = 0.123
    assert "12.3" in report.html(changed)
    assert report.html(changed) != page


def rows_of(page, label):
    """The cells of every table row of that label, as text."""
    found = re.findall(r'<th scope="row[^>]*>([^<]*)</th>(.*?)</tr>', page)
    return [
        [
            re.sub(r"<[^>]+>", " ", cell).strip()
            for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)
        ]
        for name, cells in found
        if unescape(name) == label
    ]


# ------------------------------------------------------------------------------ states of a record


def test_where_nothing_is_informative_the_reason_is_shown_and_no_score(tmp_path):
    record = not_informative()
    made, text = report.html(record), report.table(record)
    for shown in (Page(made).text, " ".join(text.split())):
        assert "the base model is at chance (0.1 on test data)" in shown
        assert "96.2" not in shown and "0.93" not in shown and "under-forgotten" not in shown
    assert "svg" not in Page(made).tags
    assert pictures.tradeoff(record) is None
    assert pictures.accuracies(record) is None
    assert size_of(report.png(record, tmp_path / "r.png")) == (1600, 1000)


def test_where_nothing_was_to_be_forgotten_accuracies_are_shown_and_distances_are_not(tmp_path):
    record = nothing_to_forget()
    read = Page(report.html(record))
    assert read.open == []
    assert "98.8" in read.text and "nothing to forget" in read.text
    assert pictures.tradeoff(record) is None and pictures.curves(record) is None
    assert "98.8" in report.table(record) and "undefined" in report.table(record)
    assert size_of(report.png(record, tmp_path / "r.png")) == (1600, 1000)


def test_attacks_that_are_undefined_give_their_reason():
    record = plausible(2)
    for each in record["rows"]:
        each["membership"] = {"undefined": "attack: 3 members, expected at least 5."}
    assert "attack: 3 members, expected at least 5." in Page(report.html(record)).text


# -------------------------------------------------------------------------------- behind an audit


def test_without_an_audit_there_is_no_trace_of_one(page):
    assert "<a " not in page and "svg.mark" not in page and "audit" not in Page(page).text


def test_the_front_page_of_an_audit_stands_first_and_the_comparison_behind_it():
    record, audit = nothing_to_forget(), audit_records.plausible()
    made, alone = report.html(record, audit), report.html(record)
    read = Page(made)
    assert read.open == [] and len(read.ids) == len(set(read.ids))
    assert read.text.index(reading.headline(audit)) < read.text.index(record["headline"])
    comparison = alone[alone.index("<body>") + 6 : alone.index("</body>")].strip()
    assert comparison in made  # unchanged
    links = re.findall(r'<a href="#(\w+)"', made)
    assert len(links) == 5 and set(links) <= set(read.ids)


def test_an_audit_of_another_request_is_refused(record):
    audit = audit_records.plausible()
    audit["task"]["name"] = "class:4"
    with pytest.raises(ValueError, match="of 'class:3' of 'digits', the audit of 'class:4'"):
        report.html(record, audit)


# -------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("width", [100, 116, 200])
def test_the_table_fits_its_width_and_names_everything(record, width):
    text = report.table(record, width)
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    for each in record["rows"]:
        assert each["label"] in text
        if each["role"] in ("original", "method"):
            assert f"{each['label']}: {each['verdict']['words']}" in joined
    for part, value in FLOORS.items():
        assert f"{part.replace('_', ' ')} {tables.number(value)}" in joined


def test_the_table_shows_the_numbers_of_the_record(record):
    made = record["rows"][5]
    shown = next(line for line in report.table(record).splitlines() if line.startswith("finetune "))
    for part in ("forget", "adjacent", "retain", "test"):
        assert tables.percent(made["scores"]["accuracy"][part]) in shown
    assert tables.interval(made["verdict"]["gap_closed"], tables.hundredths) in shown
    assert tables.interval(made["verdict"]["collateral"]) in shown
    assert "8.3 %" in shown


def test_without_retraining_the_time_is_in_seconds():
    record = plausible(2)
    for each in record["rows"]:
        each["seconds"]["of_retraining"] = None
    assert "0.30 s" in report.table(record)


def test_a_table_too_narrow_to_read_is_refused():
    with pytest.raises(ValueError, match="width of at least 80 columns, got 40"):
        report.table(plausible(), 40)


# ----------------------------------------------------------------------------------- the pictures


def size_of(path):
    """(width, height) in the header of a PNG file."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_the_picture_is_a_png_of_the_promised_size_and_the_same_every_time(record, tmp_path):
    first, second = (report.png(record, tmp_path / name) for name in ("a.png", "b.png"))
    assert size_of(first) == (1600, 1000)
    assert first.read_bytes() == second.read_bytes()
    image = pytest.importorskip("PIL.Image").open(first)
    assert len(image.convert("RGB").getcolors(1 << 20)) > 50  # something is drawn


def test_the_settings_of_the_user_neither_change_the_pictures_nor_are_changed(record):
    matplotlib = pytest.importorskip("matplotlib")
    plain = pictures.tradeoff(record)
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        assert pictures.tradeoff(record) == plain
        assert matplotlib.rcParams["font.size"] == 31


@pytest.mark.parametrize("name", ["tradeoff", "accuracies", "energies", "curves"])
def test_every_picture_is_one_svg_element(record, name):
    text = getattr(pictures, name)(record)
    root = ElementTree.fromstring(text.replace("xlink:href", "href"))
    assert root.tag == "svg" and root.get("viewBox")


@pytest.mark.parametrize("crowd", ["spread", "same place", "corner"])
def test_labels_do_not_overlap_each_other_or_leave_the_axes(crowd):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng(3)
    at = {
        "spread": rng.uniform(0, 1, (18, 2)),
        "same place": np.full((18, 2), 0.5),
        "corner": rng.uniform(0, 0.1, (18, 2)),
    }[crowd]
    names = [*LABELS, "original", "oracle", "oracle, 38 epochs", "oracle, batch 96"]
    figure = Figure(figsize=(7.6, 6), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    axes.set(xlim=(-0.05, 1), ylim=(-0.05, 1))
    points = [
        Point(folded(name, 26, 3), x, y, "k", "o") for name, (x, y) in zip(names, at, strict=True)
    ]
    texts = place_labels(axes, points, size=9, colour="k")
    boxes = [text.get_window_extent() for text in texts]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    frame = axes.get_window_extent()
    assert all(frame.contains(*b.min) and frame.contains(*b.max) for b in boxes)
    for box, (x, y) in itertools.product(boxes, axes.transData.transform(at)):
        assert not box.contains(x, y)


def test_what_has_no_energy_is_named_instead_of_drawn(record):
    *_, drawn, hidden = record["rows"]
    assert tables.in_floors(record, hidden)["forget"] is None
    moved = copy.deepcopy(record)
    moved["rows"][-1]["label"] = "renamed"
    moved["curves"]["renamed"] = None
    assert pictures.tradeoff(moved) != pictures.tradeoff(record)
    assert drawn["verdict"]["energies"] is None


def test_energies_are_counted_in_floors(record):
    found = tables.in_floors(record, record["rows"][0])
    assert found["forget"] == pytest.approx(336) and found["retain"] == pytest.approx(164)


def test_the_trade_off_draws_the_collateral_of_the_verdict(record):
    for line, each in zip(tables.lines(record), record["rows"], strict=True):
        collateral = (each["verdict"] or {}).get("collateral")
        if collateral:
            assert tables.kept_in_floors(line.energy) == pytest.approx(collateral["value"])
