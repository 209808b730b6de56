"""The page of one row: that it shows what the record holds, and that its pictures are drawn."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxunlearn.reporting import attack_pictures, audit_pictures, pages
from jaxunlearn.reporting.audit_pictures import ORACLE, ORIGINAL, ROW
from tests.reporting.audit_records import AUDITS, CURVES, MEASURES, ROWS, plausible, row_of
from tests.reporting.page_reader import Page, cells_of

SHOWN = ("original", "oracle", "ssd(alpha=5)", "gradient_ascent")


@pytest.fixture(scope="module")
def audit():
    return plausible(SHOWN)


@pytest.fixture(scope="module")
def made(audit):
    return pages.pages(audit)


@pytest.fixture(scope="module")
def page(made):
    return made["pages/ssd-alpha-5.html"]


# -------------------------------------------------------------------------------------- the pages


def test_every_row_but_the_oracle_has_a_page_of_its_own(made):
    names = ["original", "ssd-alpha-5", "gradient_ascent"]
    assert list(made) == [f"pages/{name}.html" for name in names]
    for label, text in zip((s for s in SHOWN if s != "oracle"), made.values(), strict=True):
        assert f"<h1>{label}</h1>" in text
        assert ROWS[label][1] in text and ROWS[label][3] in text


def test_pages_are_well_formed_and_no_id_stands_twice(made):
    for text in made.values():
        read = Page(text)
        assert read.open == [] and len(read.ids) == len(set(read.ids))
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
        assert {a or b for a, b in used} <= set(read.ids)


def test_a_page_fetches_nothing_runs_nothing_and_links_back_to_the_report(made):
    for text in made.values():
        read = Page(text)
        assert not re.search(r"https?:|//[a-z]|@import|javascript:", text, flags=re.IGNORECASE)
        assert not read.tags & {"script", "link", "iframe", "img", "object"}
        assert not [name for name, _ in read.attributes if name.startswith("on") or name == "src"]
        links = [v for n, v in read.attributes if n == "href" and not v.startswith("#")]
        assert set(links) == {"../report.html"} and len(links) >= 2


def test_each_audit_has_its_p_value_direction_energy_and_resolution(audit, page):
    row = row_of(audit, "ssd(alpha=5)")
    for key, (title, _, words) in AUDITS.items():
        found = row["evidence"][key]
        said, p, direction, _, resolution, share = cells_of(page, title)[0]
        flagged = key in row["finding"]["flagged"]
        back = key in row["finding"]["came_back"]
        assert said == ("came back" if back else "told apart" if flagged else "no difference found")
        assert float(p) == pytest.approx(found["p_value"], rel=0.1)
        assert direction == (found["direction"] or "-")
        assert float(resolution) == pytest.approx(found["resolution"], rel=0.01)
        energy = row_of(audit, "original")["evidence"][key]["energy"]
        assert float(share.split()[0]) == pytest.approx(
            100 * found["resolution"] / energy, rel=0.06
        )
        assert words in Page(page).text


def test_a_page_shows_every_measure_and_curve_of_the_record(page):
    text = Page(page).text
    for title, *_ in [*MEASURES.values(), *CURVES.values()]:
        assert title in text
    for title, *_ in CURVES.values():
        assert f'aria-label="{title}"' in page


def test_the_worst_example_is_named_beside_what_oracles_give_for_it(audit, page):
    for part in ("forget", "retain"):
        panel = row_of(audit, "ssd(alpha=5)")["examples"][part]
        at = int(np.argmax(panel["score"]))
        assert (
            f"Most exposed of the {part} data: example {at} (counted from 0), recognised with "
            f"accuracy {panel['score'][at]:.2f}; oracles against oracles give "
            f"{panel['floor'][at]:.2f} on it." in Page(page).text
        )


def test_a_row_without_numbers_says_undefined_wherever_one_would_stand(made):
    page = made["pages/gradient_ascent.html"]
    text = Page(page).text
    assert "p = undefined; told apart by undefined" in text
    for title, *_ in CURVES.values():
        assert f"{title} undefined" in re.sub(r"\s+", " ", text)
    for title, *_ in AUDITS.values():
        assert cells_of(page, title)[0][0] == "undefined"
    assert "Accuracy of the attack on each example undefined" in text
    assert "True against false positives undefined" in text
    assert not {"nan", "None", "inf"} & set(text.split())


@pytest.mark.parametrize(
    ("flagged", "words"),
    [
        (["cka"], "It must be flagged, and was judged so"),
        ([], "It must be flagged, but was judged otherwise: these audits cannot be trusted here."),
        (None, "It must be flagged, but was not judged."),
    ],
)
def test_a_planted_row_says_whether_it_was_judged_as_it_must_be(flagged, words):
    audit = plausible(("oracle", "head mask"), shadows=False)
    row = audit["rows"][1] | {"curves": None, "measures": None, "examples": None, "roc": None}
    if flagged is None:
        row["finding"] = None
    else:
        row["finding"]["flagged"] = flagged
    assert words in Page(pages.page(audit, row)).text


def test_text_of_the_data_cannot_act_in_a_page():
    nasty = "<script>alert(1)</script><u>&\"'--> $x_1$"
    audit = plausible(("oracle", "ssd(alpha=5)"))
    audit["rows"][1] |= {"label": nasty, "words": nasty}
    audit["rows"][1]["finding"] |= {"verdict": nasty, "words": nasty}
    audit["rows"][1]["examples"] = {nasty: audit["rows"][1]["examples"]["forget"]}
    audit["rows"][1]["evidence"]["cka"]["direction"] = nasty
    audit["shadows"]["rows"][1]["label"] = audit["shadows"]["words"] = nasty
    audit["task"] = dict.fromkeys(("name", "words", "description", "source"), nasty)
    for described in ("audits", "measures", "curves"):
        for told in audit[described].values():
            told |= {"title": nasty, "words": nasty, "family": nasty}
    ((name, text),) = pages.pages(audit).items()
    read = Page(text)
    assert re.fullmatch(r"pages/[a-z0-9._-]+\.html", name)
    assert read.open == [] and not read.tags & {"script", "u"}
    assert read.text.count("<script>alert(1)</script>") >= 30


def test_an_audit_that_says_nothing_has_no_pages(audit):
    assert pages.pages(audit | {"status": "not informative: too few"}) == {}


def test_only_the_record_of_an_audit_has_pages(audit):
    with pytest.raises(ValueError, match="expected the kind 'jaxunlearn audit', got None"):
        pages.pages({key: value for key, value in audit.items() if key != "kind"})


def test_equal_records_give_equal_pages_and_the_record_is_left_alone(audit, made):
    before = copy.deepcopy(audit)
    row = row_of(json.loads(json.dumps(audit)), "ssd(alpha=5)")
    assert pages.page(audit, row) == made["pages/ssd-alpha-5.html"]
    assert audit == before


# ------------------------------------------------------------------------------------- the pictures


def root_of(svg):
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg" and root.get("viewBox")
    return root


def lines_of(svg, colour):
    """The points (x, y) of every unfilled path in that colour, in pixels; y grows downwards."""
    found = []
    for path in re.findall(r"<path d=\"([^\"]*)\"[^>]*style=\"fill: none;([^\"]*)\"", svg):
        if f"stroke: {colour.lower()}" in path[1]:
            numbers = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path[0])
            found.append(np.array(numbers, float))
    return found


def longest(svg, colour):
    return max(lines_of(svg, colour), key=len)


def test_a_curve_is_drawn_beside_the_oracles_and_the_originals(audit):
    row = row_of(audit, "ssd(alpha=5)")
    drawn = audit_pictures.curve(audit, row, "relearning")
    root_of(drawn)
    own, oracle, original = (longest(drawn, look.colour) for look in (ROW, ORACLE, ORIGINAL))
    assert len(own) == len(oracle) == len(original) == 7
    assert (own[:-1, 1] < oracle[:-1, 1]).all()  # it comes back sooner than the oracles learn it
    assert np.diff(own[:, 0]).min() > 10  # 0 has a place on the logarithmic axis


def test_undefined_points_of_a_curve_are_gaps_and_a_curve_of_none_is_no_picture(audit):
    row = copy.deepcopy(row_of(audit, "ssd(alpha=5)"))
    row["curves"]["relearning"]["value"][3] = None
    drawn = audit_pictures.curve(audit, row, "relearning")
    assert len(longest(drawn, ROW.colour)) == 6
    assert drawn.count("M ") > 0
    row["curves"]["relearning"]["value"] = [None, float("nan")] + [None] * 5
    assert audit_pictures.curve(audit, row, "relearning") is None
    row["curves"]["relearning"] = None
    assert audit_pictures.curve(audit, row, "relearning") is None


def test_named_ticks_stand_at_equal_steps_in_their_order(audit):
    drawn = audit_pictures.curve(audit, row_of(audit, "ssd(alpha=5)"), "bits")
    steps = np.diff(longest(drawn, ROW.colour)[:, 0])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)


def test_the_original_is_not_drawn_twice_on_its_own_page(audit):
    looks = [look for _, look in audit_pictures.shown_rows(audit, row_of(audit, "original"))]
    assert looks == [ORIGINAL, ORACLE]
    looks = [look for _, look in audit_pictures.shown_rows(audit, row_of(audit, "ssd(alpha=5)"))]
    assert looks == [ROW, ORACLE, ORIGINAL]


def test_rows_are_told_apart_by_line_and_marker_and_not_by_colour_alone():
    assert len({look.line for look in (ROW, ORACLE, ORIGINAL)}) == 3
    assert len({look.marker for look in (ROW, ORACLE, ORIGINAL)}) == 3


def test_measures_stand_in_strips_and_what_is_undefined_everywhere_is_left_out(audit):
    row = row_of(audit, "ssd(alpha=5)")
    both = audit_pictures.strips(audit, row, ["accuracy", "klom"])
    tall = float(root_of(both).get("viewBox").split()[3])
    bare = copy.deepcopy(audit)
    for each in bare["rows"]:
        each["measures"]["klom"] = None
    one = audit_pictures.strips(bare, row_of(bare, "ssd(alpha=5)"), ["accuracy", "klom"])
    assert float(root_of(one).get("viewBox").split()[3]) < 0.6 * tall
    assert audit_pictures.strips(bare, row_of(bare, "ssd(alpha=5)"), ["klom"]) is None


@pytest.mark.parametrize("value", [0.0, 1e9, -3.0])
def test_a_strip_of_one_constant_is_drawn_without_a_warning(audit, value):
    flat = copy.deepcopy(audit)
    for each in flat["rows"]:
        each["measures"]["klom"] = {"value": value, "low": value, "high": value}
    flat["floors"]["klom"] = {"value": value, "low": None, "high": None}
    root_of(audit_pictures.strips(flat, row_of(flat, "ssd(alpha=5)"), ["klom"]))


def test_examples_are_sorted_from_the_most_exposed_on():
    score = [0.5, 0.9, None, 0.6, float("nan")]
    drawn = attack_pictures.exposed({"forget": {"score": score, "floor": [0.5] * 5}})
    own, floor = longest(drawn, ROW.colour), longest(drawn, ORACLE.colour)
    assert len(own) == 3 and len(floor) == 5  # undefined ones have no place
    assert (np.diff(own[:, 1]) > 0).all()  # downwards in pixels
    assert (np.diff(own[:, 0]) > 0).all()
    assert attack_pictures.worst(score) == 1


def test_the_order_of_the_examples_does_not_change_the_curve_only_the_name_of_the_worst():
    rng = np.random.default_rng(0)
    score = rng.uniform(0.4, 1, 40)
    first, second = (
        attack_pictures.exposed({"forget": {"score": s.tolist(), "floor": None}})
        for s in (score, score[::-1])
    )
    np.testing.assert_array_equal(longest(first, ROW.colour), longest(second, ROW.colour))
    assert attack_pictures.worst(score[::-1].tolist()) == 39 - int(score.argmax())


def test_panels_without_any_score_are_no_picture():
    panels = {"forget": {"score": [None, None], "floor": [0.5, 0.5]}, "retain": {"score": None}}
    assert attack_pictures.exposed(panels) is None
    assert attack_pictures.exposed({}) is None and attack_pictures.worst([]) is None


def test_one_example_alone_is_drawn():
    root_of(attack_pictures.exposed({"forget": {"score": [0.9], "floor": [0.5]}}))


def test_a_roc_curve_is_drawn_linear_and_logarithmic():
    fpr = np.concatenate([[0.0], np.geomspace(1e-3, 1, 31)])
    mine = {"fpr": fpr.tolist(), "tpr": np.sqrt(fpr).tolist()}
    drawn = attack_pictures.roc([("mine", mine, ROW), ("oracle", None, ORACLE)])
    linear, logarithmic = [line for line in lines_of(drawn, ROW.colour) if np.ptp(line[:, 1])]
    slopes = np.diff(logarithmic[:, 1]) / np.diff(logarithmic[:, 0])
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-3)  # a power is a line there
    slopes = np.diff(linear[:, 1]) / np.diff(linear[:, 0])
    assert slopes.min() < 3 * slopes.max() < 0
    assert "mathdefault" not in drawn


@pytest.mark.parametrize(
    "own", [None, {}, {"fpr": [], "tpr": []}, {"fpr": [0.0, None], "tpr": [None, 1.0]}]
)
def test_a_row_without_a_roc_has_no_picture_though_the_oracles_have_one(own):
    theirs = {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]}
    assert attack_pictures.roc([("mine", own, ROW), ("oracle", theirs, ORACLE)]) is None
    assert attack_pictures.roc([]) is None


@pytest.mark.parametrize("rates", [[0.0, 1.0], [0.0, 1e-9, 1.0], [0.0, 0.0, 0.0]])
def test_degenerate_rates_are_drawn_without_a_warning(rates):
    root_of(attack_pictures.roc([("mine", {"fpr": rates, "tpr": rates}, ROW)]))


def test_a_certain_attack_shows_at_the_end_of_the_logarithmic_axis():
    certain = {"fpr": [0.0, 0.0, 0.01, 1.0], "tpr": [0.0, 0.4, 0.4, 1.0]}
    drawn = attack_pictures.roc([("mine", certain, ROW)])
    linear, logarithmic = [line for line in lines_of(drawn, ROW.colour) if np.ptp(line[:, 1])]
    assert len(linear) == 4 and len(logarithmic) == 3
