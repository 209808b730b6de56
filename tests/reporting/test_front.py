"""The front page of an audit: what it concludes, what it admits, and whether the words are right.

`audit_records.plausible` makes a record with numbers that hang together; nothing is trained. Each
rule is tried on a record that obeys it and on one that is changed to break it.
"""

import copy
import json
import re

import pytest

from jaxunlearn.reporting import badges, controls, front, page_names, reading, trust
from jaxunlearn.reporting.glossary import DIRECTIONS, FAMILIES, LIGHTS
from tests.reporting.audit_records import AUDITS, MEASURES, ROWS, plausible, row_of
from tests.reporting.page_reader import Page, cells_of, section


@pytest.fixture(scope="module")
def audit():
    return plausible()


@pytest.fixture(scope="module")
def page(audit):
    return front.front(audit)


def changed(label, **facts):
    """The plausible record with other facts for one row."""
    audit = plausible()
    row_of(audit, label).update(facts)
    return audit


def finding(flagged=(), verdict="indistinguishable from retraining", **facts):
    return {"verdict": verdict, "words": f"{verdict}: so it is.", "p_value": 0.3,
            "flagged": list(flagged), "came_back": []} | facts  # fmt: skip


# ------------------------------------------------------------------------------- what is concluded


def test_the_headline_names_every_method_under_its_verdict(audit, page):
    text = Page(page).text
    line = reading.headline(audit)
    assert line in text
    for row in reading.rows_of(audit, "method"):
        said = re.escape(row["finding"]["verdict"])
        assert re.search(rf"{said}: [^.]*{re.escape(row['label'])}", line, re.IGNORECASE)
    assert "head mask" not in line  # planted models are no methods


def test_every_method_has_its_verdict_p_value_and_the_audits_that_flagged_it(page):
    verdict, p, apart = cells_of(page, "ssd(alpha=5)")[0]
    assert verdict == "[not supported] came back" and p == "0.0005"
    assert apart.split() == "3 of 6 audits Relearning, Similarity of features, Linear probe".split()
    verdict, p, apart = cells_of(page, "retrain")[0]
    assert verdict == "[supported] indistinguishable from retraining" and apart == "0 of 6 audits"
    assert float(p) > 0.05


def test_a_p_value_too_small_to_write_is_a_bound_that_the_page_shows():
    page = front.front(changed("retrain", finding=finding(p_value=1e-7)))
    assert cells_of(page, "retrain")[0][1] == "< 0.0001" and ">&lt; 0.0001<" in page


def test_a_collapsed_method_is_undefined_and_not_unflagged(page):
    verdict, p, apart = cells_of(page, "gradient_ascent")[0]
    assert (verdict, p, apart) == ("[not supported] collapsed", "undefined", "undefined")


@pytest.mark.parametrize(
    ("found", "light"),
    [
        (finding(), "pass"),
        (finding(verdict="came back"), "fail"),
        (finding(verdict="forgotten traces remain"), "fail"),
        (finding(verdict="under-forgotten"), "fail"),
        (finding(verdict="collapsed"), "fail"),
        (finding(verdict="differs from retraining"), "caution"),
        (finding(verdict="over-forgotten"), "caution"),
        (finding(verdict="a verdict of tomorrow"), "unknown"),
        (finding(["cka"], verdict="a verdict of tomorrow"), "caution"),
        (finding(["cka"]), "caution"),
        (finding(came_back=["relearning"]), "caution"),
        (None, "unknown"),
    ],
)
def test_only_a_clean_verdict_of_a_known_kind_is_a_pass(found, light):
    assert reading.light({"finding": found}) == light


def test_every_level_is_told_by_its_shape_and_by_words_not_by_colour_alone():
    plain = {re.sub(r"#[0-9A-Fa-f]{3,6}", "", badges.mark(kind)) for kind in LIGHTS}
    assert len(plain) == len(LIGHTS)
    squares = [re.sub(r"#\w+", "", badges.mark(k)) for k in ("seen", "unseen", "came back")]
    assert len(set(squares)) == 3
    assert len({words for words, _ in LIGHTS.values()}) == len(LIGHTS)


def test_jargon_is_explained_before_it_is_used(page):
    text = Page(page).text
    for word, explained in (
        ("oracles", "They are called oracles"),
        ("originals", "They are called originals"),
        ("p-value", "The p-value is the share of deals"),
        ("flagged", "Whatever stays at or below 5 % is flagged"),
    ):
        first = re.search(rf"\b{word}\b", text[text.index("What was done") :])
        assert first and text.index(explained) <= text.index("What was done") + first.start()


def test_what_was_done_counts_models_methods_and_audits(page):
    text = section(page, "What was done")
    for words in (
        "32 models were trained anew",
        "16 models were trained on everything",
        "5 methods",
        "3 kinds of models were planted",
        "6 audits asked",
        "1999 times",
    ):
        assert words in text
    for title, family, _ in AUDITS.values():
        assert title in text and FAMILIES[family][1] in text


def test_a_family_that_nobody_explained_is_shown_under_its_own_name():
    audit = plausible()
    audit["audits"]["cka"]["family"] = "electricity"
    assert "Electricity." in Page(front.front(audit)).text


# --------------------------------------------------------------------------- can these audits see?


def test_where_all_planted_models_are_judged_rightly_that_is_said_first(page):
    text = Page(page).text
    said = text.index("judged every one of them as it must be")
    assert said < text.index("What was asked")
    for label, (_, _, expected, *_) in ROWS.items():
        if expected:
            what, must, was, _, held = cells_of(page, label)[0]
            assert (what, must, was, held) == (ROWS[label][1], expected, expected, "as it must be")


@pytest.mark.parametrize(
    ("label", "found", "said"),
    [
        ("head mask", finding(), "head mask must be flagged and was not flagged"),
        (
            "independent oracle",
            finding(["cka"], verdict="differs from retraining"),
            "independent oracle must be not flagged and was flagged",
        ),
        ("original", None, "original could not be judged"),
    ],
)
def test_a_planted_model_that_is_judged_wrongly_is_a_warning_before_everything(label, found, said):
    text = Page(front.front(changed(label, finding=found))).text
    assert "every one of them" not in text
    assert text.index(f"1 was not judged as they must be: {said}") < text.index("What was asked")


def test_without_planted_models_nothing_is_claimed_about_what_audits_can_see():
    audit = plausible(("oracle", "retrain"))
    text = Page(front.front(audit)).text
    assert "Nothing was planted in this audit" in text
    assert "must be flagged, and was" not in text


def test_the_matrix_shows_each_audits_own_p_value_and_mark(audit, page):
    rows = cells_of(page, "ssd(alpha=5)")[1]
    evidence = row_of(audit, "ssd(alpha=5)")["evidence"]
    words = {"relearning": "came back", "cka": "told apart", "probe": "told apart"}
    for cell, key in zip(rows, AUDITS, strict=True):
        p = reading.probability(evidence[key]["p_value"])
        assert cell == f"[{words.get(key, 'no difference found')}] {p}"
    assert cells_of(page, "gradient_ascent")[1] == ["undefined"] * len(AUDITS)


def test_planted_models_are_tallied_for_every_audit(audit, page):
    tally = dict(zip(AUDITS, cells_of(page, "must be flagged, and was")[0], strict=True))
    assert tally["outputs"] == "2 of 3" and tally["probe"] == "3 of 3"
    assert set(cells_of(page, "must not be, and was")[0]) == {"0 of 1"}
    blind = copy.deepcopy(audit)
    for label in ("original", "half-contaminated oracle"):
        row_of(blind, label)["finding"]["flagged"].remove("outputs")
    assert controls.noticed(blind, "outputs", "flagged") == (0, 3)
    row_of(blind, "head mask")["evidence"]["outputs"] = None
    assert controls.noticed(blind, "outputs", "flagged") == (0, 2)


def test_the_smallest_difference_is_the_resolution_over_the_originals_energy():
    audit = plausible()
    for row in audit["rows"]:  # those that differ are no measure of what sampling alone does
        for found in (row["evidence"] or {}).values():
            if found and row["label"] != "independent oracle":
                found["resolution"] *= 0.5
    for key in AUDITS:
        innocent = row_of(audit, "independent oracle")["evidence"][key]["resolution"]
        share = innocent / row_of(audit, "original")["evidence"][key]["energy"]
        assert controls.noticeable(audit, key) == pytest.approx(share, rel=1e-12)


def test_an_audit_that_could_not_even_see_the_original_says_so(audit):
    dull = copy.deepcopy(audit)
    for row in dull["rows"]:
        if (row["evidence"] or {}).get("cka"):
            row["evidence"]["cka"]["resolution"] = 5.0
    assert (
        "not even the original"
        in cells_of(front.front(dull), "smallest difference it could notice")[0]
    )
    row_of(dull, "original")["evidence"]["cka"]["energy"] = -0.01
    assert controls.noticeable(dull, "cka") is None


def test_a_row_without_finding_is_flagged_by_its_p_value_alone(audit):
    bare = copy.deepcopy(audit)
    row = row_of(bare, "ssd(alpha=5)")
    row["finding"] = None
    assert reading.flagged(bare, row, "cka") is True
    assert reading.flagged(bare, row, "outputs") is False
    bare["settings"]["level"] = 1e-4
    assert reading.flagged(bare, row, "cka") is False


# ---------------------------------------------------------------------------- what it does not show


def test_limits_name_the_request_the_level_and_the_sharpest_and_dullest_audit(audit, page):
    text = section(page, "What this does not show")
    for words in ("No audit proves", "class 3 of digits", "up to 5 % of runs", "no certificate"):
        assert words in text
    shares = {key: controls.noticeable(audit, key) for key in AUDITS}
    sharp, dull = min(shares, key=shares.get), max(shares, key=shares.get)
    assert f"{AUDITS[sharp][0]}, could notice {100 * shares[sharp]:.2g} %" in text
    assert f"{AUDITS[dull][0]}, {100 * shares[dull]:.2g} %" in text
    assert "gradient_ascent (every audit)" in text


def test_limits_follow_the_level_of_the_record():
    audit = plausible()
    audit["settings"]["level"] = 0.01
    assert "up to 1 % of runs" in Page(trust.limits(audit)).text


# -------------------------------------------------------------------------------------- the numbers


def test_every_measure_stands_below_its_floor_and_the_oracles_own_value(audit, page):
    numbers = page[page.index('<h2 id="numbers"') :]
    assert len(cells_of(numbers, "oracles, half against half")) == 4  # a table for each family
    for key, (title, *_) in MEASURES.items():
        assert title in Page(numbers).text, key
    first = numbers.index("oracles, half against half")
    assert first < numbers.index('scope="row">oracle<') < numbers.index('scope="row">original<')


def test_a_number_is_shown_in_its_unit_with_its_digits_and_interval(audit, page):
    numbers = page[page.index('<h2 id="numbers"') :]
    found = row_of(audit, "original")["measures"]["accuracy"]
    value, low, high = (f"{100 * found[key]:.1f}" for key in ("value", "low", "high"))
    assert cells_of(numbers, "original")[0][0].split() == [value, low, "to", high]
    assert cells_of(numbers, "gradient_ascent")[0] == ["undefined", "undefined"]
    assert cells_of(numbers, "oracles, half against half")[3][0] == "undefined"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_number_that_is_none_or_not_finite_is_undefined(value):
    audit = plausible(("original", "oracle", "retrain"), shadows=False)
    row_of(audit, "retrain")["measures"]["klom"] = {"value": value, "low": 0.0, "high": 1.0}
    row_of(audit, "retrain")["finding"]["p_value"] = value
    row_of(audit, "retrain")["evidence"]["cka"]["energy"] = value
    page = front.front(audit)
    assert cells_of(page[page.index('<h2 id="numbers"') :], "retrain")[0][1] == "undefined"
    assert cells_of(page, "retrain")[0][1] == "undefined"
    assert not {"nan", "inf", "None"} & set(Page(page).text.split())


def test_the_shadow_attack_has_a_line_for_each_row_and_a_column_for_each_rate(audit, page):
    own = next(row for row in audit["shadows"]["rows"] if row["label"] == "original")
    cells = cells_of(page, "original")[-1]
    assert cells[0].split()[0] == f"{100 * own['accuracy']['value']:.1f}"
    assert cells[2] == "undefined"  # at 0.1 % false alarms
    assert cells[3].split()[0] == f"{100 * own['tpr']['0.01']['value']:.1f}"
    few = copy.deepcopy(audit)
    few["shadows"]["rows"][0]["tpr"]["5e-05"] = None
    text = Page(front.front(few)).text
    rates = ("0.005", "0.1", "1", "10")  # in the order of numbers, not of letters
    heads = [f"recognised at {rate} % false alarms" for rate in rates]
    assert [text.index(head) for head in heads] == sorted(text.index(head) for head in heads)
    assert "64 pairs" in text


# ------------------------------------------------------------------------------- states of a record


def test_where_nothing_is_informative_the_reason_is_shown_and_no_result():
    audit = plausible()
    audit["status"] = "not informative: 4 oracles are too few"
    page, text = front.front(audit), front.audit_table(audit)
    for shown in (Page(page).text, text):
        assert "4 oracles are too few" in shown
        assert "0.0005" not in shown and "came back" not in shown
    assert "pages/" not in page


@pytest.mark.parametrize(
    "missing", ["finding", "evidence", "measures", "curves", "examples", "roc"]
)
def test_what_may_be_missing_may_be_missing_from_every_row(missing):
    audit = plausible(("original", "oracle", "ssd(alpha=5)", "independent oracle"), shadows=False)
    for row in audit["rows"]:
        row[missing] = None
    read = Page(front.front(audit))
    assert read.open == [] and "None" not in read.text.split()
    assert front.audit_table(audit)


def test_without_rows_and_audits_there_is_still_a_page():
    audit = plausible(())
    audit |= {"audits": {}, "measures": {}, "curves": {}, "floors": {}, "shadows": None}
    text = Page(front.front(audit)).text
    assert "No method was audited." in text and "No model was planted." in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "jaxunlearn compare"},
            "expected the kind 'jaxunlearn audit', got 'jaxunlearn co",
        ),
        ({"schema": 2}, "expected schema 1, got 2"),
        ({"audits": {}}, "row 'original' has evidence of 'outputs'"),
        ({"measures": {}}, "row 'original' has measures of 'accuracy'"),
        ({"curves": {}}, "row 'original' has curves of 'relearning'"),
    ],
)
def test_a_record_that_is_none_or_contradicts_itself_is_refused(change, message):
    for shown in (front.front, front.audit_table):
        with pytest.raises(ValueError, match=message):
            shown(plausible() | change)


def test_a_curve_that_does_not_fit_its_x_is_refused():
    audit = plausible()
    row_of(audit, "retrain")["curves"]["bits"]["low"].pop()
    with pytest.raises(ValueError, match="'low' of the curve 'bits' of row 'retrain': expected 4 "):
        front.front(audit)


# ------------------------------------------------------------------------------------- safe as text


def test_text_of_the_data_cannot_act_in_the_page():
    nasty = "<script>alert(1)</script><u>&\"'--> $x_1$"
    audit = plausible(("original", "oracle", "ssd(alpha=5)"))
    for row in audit["rows"]:
        row |= {"label": nasty + row["role"], "words": nasty}
        if row["finding"]:
            row["finding"] |= {"verdict": nasty, "words": nasty}
    for described in ("audits", "measures"):
        for told in audit[described].values():
            told |= {"title": nasty, "words": nasty, "family": nasty}
    for row in audit["shadows"]["rows"]:
        row["label"] = nasty
    audit["task"] = dict.fromkeys(("name", "words", "description", "source"), nasty)
    audit |= {"notes": [nasty], "command": nasty, "versions": {nasty: nasty}}
    audit["shadows"]["words"] = nasty
    audit["settings"][nasty] = nasty
    read = Page(front.front(audit))
    assert read.open == [] and not read.tags & {"script", "u"}
    assert read.text.count("<script>alert(1)</script>") >= 40
    links = [value for name, value in read.attributes if name == "href"]
    assert links and all(re.fullmatch(r"#\w+|pages/[a-z0-9._-]+", value) for value in links)


def test_equal_records_give_equal_text_and_the_record_is_left_alone(audit, page):
    before = copy.deepcopy(audit)
    assert front.front(json.loads(json.dumps(audit))) == page
    assert audit == before
    assert front.front(changed("retrain", models=17)) != page


# ------------------------------------------------------------------------------- names of the pages


@pytest.mark.parametrize(
    "label",
    ["../../etc/passwd", "..", "", "a/b\\c", "con", "CON.txt", ".hidden", "x" * 300, "ümlaut ☃",
     "a\0b", "%2e%2e%2f", "C:\\x", "-rf", "nul"],
)  # fmt: skip
def test_no_label_can_leave_the_folder_or_be_a_device(label):
    (name,) = page_names.file_names([label])
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name) and ".." not in name
    assert len(name) <= 60 and not re.match(r"(con|nul|prn|aux|com\d|lpt\d)(\.|$)", name)


def test_names_are_unique_in_any_letter_case_however_labels_collide():
    labels = ["ssd", "SSD", "ssd", "ssd-2", "ssd(a=1)", "ssd (a=1)", "s" * 99 + "a", "s" * 99 + "b"]
    labels += ["ssd"] * 120
    names = page_names.file_names(labels)
    assert len({name.lower() for name in names}) == len(labels)
    assert names[0] == "ssd" and max(map(len, names)) <= 60


def test_labels_that_differ_only_far_to_the_right_keep_names_of_their_own():
    long = "neggrad_plus(" + "alpha=0.123456789, " * 6
    first, second = page_names.file_names([long + "epochs=1)", long + "epochs=2)"])
    assert first != second and page_names.file_names([long + "epochs=2)"]) == [second]


def test_every_row_but_the_oracle_has_a_page(audit, page):
    names = dict(zip(ROWS, page_names.page_names(audit), strict=True))
    assert names.pop("oracle") is None and all(names.values())
    assert names["ssd(alpha=5)"] == "ssd-alpha-5.html"
    for name in names.values():
        assert f'href="pages/{name}"' in page


# ------------------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("width", [80, 116, 200])
def test_the_table_has_one_line_for_each_row_and_fits(audit, width):
    text = front.audit_table(audit, width)
    assert max(map(len, text.splitlines())) <= width
    methods, planted = text.split("Planted")
    for label, (role, _, expected, verdict, _) in ROWS.items():
        if role == "method":
            assert label in methods and verdict in methods
        if expected:
            assert re.search(rf"{label}\s+{expected}, as it must be", planted)


def test_the_table_names_the_audits_that_flagged_and_counts_the_rest(audit):
    lines = front.audit_table(audit, 200).splitlines()
    line = next(line for line in lines if line.startswith("ssd"))
    assert line.split("  ")[-1] == "Relearning, Similarity of features, Linear probe"
    assert next(li for li in lines if li.startswith("retrain")).endswith("none")
    assert next(li for li in lines if li.startswith("gradient")).endswith("undefined  -")
    narrow = next(li for li in front.audit_table(audit, 80).splitlines() if li.startswith("ssd"))
    assert narrow.endswith("3 audits")


def test_a_planted_model_that_is_judged_wrongly_stands_out_in_the_table():
    text = front.audit_table(changed("head mask", finding=finding()))
    assert re.search(r"head mask +not flagged: WRONG", text)
    text = front.audit_table(changed("head mask", finding=None, evidence=None))
    assert re.search(r"head mask +undefined +undefined  -", text)


def test_without_a_finding_the_audits_that_flag_a_row_are_still_named():
    text = front.audit_table(changed("head mask", finding=None), 200)
    assert re.search(r"head mask +undefined +undefined  Relearning, Similarity of features", text)


def test_a_verdict_of_many_words_does_not_break_the_table():
    found = finding(verdict="a verdict " + "that nobody expected " * 5)
    text = front.audit_table(changed("retrain", finding=found), 80)
    assert max(map(len, text.splitlines())) <= 80 and "a verdict that nobody" in text


def test_a_table_too_narrow_to_read_is_refused(audit):
    with pytest.raises(ValueError, match="width of at least 80 columns, got 79"):
        front.audit_table(audit, 79)


def test_the_words_of_the_glossary_are_all_said(page):
    text = Page(page).text
    assert all(words in text and said in text for words, said in LIGHTS.values())
    assert set(DIRECTIONS) == {"towards the original", "away from it", "aside"}
