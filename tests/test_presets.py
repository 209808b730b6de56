"""Methods by name: what a command line may say, what it may not, and what the catalogue knows."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Method, Request, methods, presets
from jaxunlearn.model import Model
from jaxunlearn.naming import nearest
from jaxunlearn.presets import PRESETS, Recipe, build, catalogue, parse_methods
from jaxunlearn.specification import parse

RECIPE = Recipe()
KINDS = ("class", "subclass", "random", "group", "ids")


def made(name, kind="class", recipe=RECIPE, classes=10, **changes) -> Method:
    return build(name, changes, kind, recipe, classes)


# --- Reading ----------------------------------------------------------------------------------


def test_a_list_of_methods_is_read_as_names_and_changed_arguments():
    found = parse_methods(" ssd , neggrad_plus(alpha=.9, epochs=3), ssd(reference='retain') ")
    assert [each.name for each in found] == ["ssd", "neggrad_plus", "ssd"]
    assert [each.changes for each in found] == [
        {},
        {"alpha": 0.9, "epochs": 3},
        {"reference": "retain"},
    ]
    assert found[1].label == "neggrad_plus(alpha=0.9, epochs=3)"


def test_a_label_reads_as_the_same_method_again():
    for each in parse_methods("finetune(epochs=2),random_labels(wrong_only=True),ssd(alpha=-1)"):
        assert parse_methods(each.label) == [each]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-2", -2),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("1_000", 1000),
        ("'x'", "x"),
        ('"x"', "x"),
        ("True", True),
        ("False", False),
        ("None", None),
    ],
)
def test_numbers_strings_booleans_and_none_are_values(written, value):
    (found,) = parse(f"m(a={written})", ["m"])
    assert found.changes == {"a": value} and type(found.changes["a"]) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "lambda: 0",
        "[1, 2]",
        "(1, 2)",
        "{'a': 1}",
        "{[]: 1}",
        "{1}",
        "b'x'",
        "1j",
        "1 + 2j",
        "...",
        "f'{1}'",
        "nan",
        "inf",
        "2 ** 9999999999",
        "'a' * 10",
        "open",
        "x.y",
        "x[0]",
        "[i for i in (1,)]",
        "(y := 1)",
        "1 if 1 else 2",
        "await f",
    ],
)
def test_any_other_value_is_refused(value):
    with pytest.raises(ValueError, match="a value must be a number, a string, True, False or None"):
        parse_methods(f"ssd(alpha={value})")


@pytest.mark.parametrize(
    "text",
    [
        "ssd(5)",
        "ssd(*a)",
        "methods.ssd",
        "methods.ssd(alpha=5)",
        "ssd()()",
        "(lambda: 0)()",
        "lambda: 0",
        "'ssd'",
        "3",
        "ssd[0]",
        "-ssd",
        "*ssd",
        "[ssd]",
        "ssd if 1 else 2",
        "ssd == ssd",
        "None",
        "(ssd, retrain)",
    ],
)
def test_only_a_name_with_arguments_by_name_is_a_method(text):
    with pytest.raises(ValueError, match=r"is not a method; arguments are given by name, as in"):
        parse_methods(text)


def test_a_keyword_splat_is_refused():
    with pytest.raises(ValueError, match="a value must be a number"):
        parse_methods("ssd(**{'alpha': 5})")


@pytest.mark.parametrize(
    "text",
    [
        "ssd retrain",
        "ssd(",
        "ssd,,retrain",
        "import os",
        "x = 1",
        "ssd\0",
        "ssd] + [retrain",
        "ssd for ssd in (1,)",
        "ssd]; [retrain",
        "1" * 5000,
        "ssd, " * 5000,
        "ssd(alpha=" + "(" * 3000 + "1" + ")" * 3000 + ")",
        "ssd(alpha=" + "-" * 9000 + "1)",
        "ssd" + ".a" * 4900,
        "ssd(alpha=" + "[" * 150 + "]" * 150 + "," * 2,
        "ssd(alpha=1" + "+1" * 4900 + ")",
    ],
    ids=lambda text: f"{text[:14]!r} of {len(text)}",
)
def test_what_is_no_list_or_nested_without_end_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"methods: cannot read '.*names separated by commas") as e:
        parse_methods(text)
    assert len(str(e.value)) < 300


def test_reading_runs_nothing_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("open('made', 'w')", "ssd(alpha=open('made', 'w'))", "exec(\"open('made','w')\")"):
        with pytest.raises(ValueError):
            parse_methods(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_no_method_at_all_is_refused(text):
    with pytest.raises(ValueError, match="methods: expected at least one method"):
        parse_methods(text)


@pytest.mark.parametrize("text", ["ssd,ssd", "ssd(alpha=5),ssd(alpha=5.0)", "ssd,retrain,ssd()"])
def test_the_same_entry_twice_is_refused(text):
    with pytest.raises(ValueError, match=r"methods: ssd.* is listed 2 times"):
        parse_methods(text)


def test_one_method_with_other_arguments_is_another_entry():
    assert len(parse_methods("ssd,ssd(alpha=5),ssd(alpha=6)")) == 3


def test_an_argument_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"ssd\(alpha=1, alpha=2\)': alpha is given twice"):
        parse_methods("ssd(alpha=1, alpha=2)")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("sdd", "ssd"), ("fine_tune", "finetune"), ("neggrad", "neggrad_plus"), ("re", "retrain")],
)
def test_an_unknown_method_names_the_nearest(written, meant):
    with pytest.raises(ValueError, match=f"'{written}' is unknown. Did you mean '{meant}'"):
        parse_methods(written)


def test_no_word_is_too_strange_for_a_nearest_name():
    assert "There are: a, b." in nearest("", ["a", "b"])
    assert "Did you mean" in nearest("\N{SNOWMAN}" * 50, PRESETS)


# --- Building ---------------------------------------------------------------------------------


def test_every_builder_but_the_primitive_has_a_preset():
    builders = {name for name, value in vars(methods).items() if re.match("[a-z]", name)
                and callable(value)}  # fmt: skip
    assert "ssd" in builders
    assert set(PRESETS) == builders - {"descent"}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", [RECIPE, Recipe("cnn", "sgd", 0.1, 8, 0)], ids=["adam", "none"])
def test_every_preset_builds_for_every_task(name, kind, recipe):
    method = made(name, kind, recipe, classes=2)
    assert isinstance(method, Method) and method.name == name


def test_the_default_methods_are_all_that_have_a_preset():
    usual = [each.name for each in parse_methods(",".join(presets.DEFAULT_METHODS))]
    assert usual == [name for name in PRESETS if name != "gaussian_amnesiac"]


def test_every_method_is_for_classes_or_for_numbers_and_says_so():
    assert set(presets.DEFAULT_METHODS) | set(presets.REGRESSION_METHODS) == set(PRESETS)
    for name in PRESETS:
        for real, fitting in (
            (True, presets.REGRESSION_METHODS),
            (False, presets.DEFAULT_METHODS),
        ):
            if name in fitting:
                presets.check_target([name], real=real)
            else:
                with pytest.raises(ValueError, match=f"method {name} "):
                    presets.check_target([name], real=real)


def linear(scale=1.0) -> tuple[Model, Request]:
    """A model whose loss is linear in its one parameter, so that one step shows the arguments."""
    model = Model(
        outputs=lambda p, b: b["x"] * p, loss=lambda p, b: b["x"] * p * scale, init=lambda key: 0.0
    )
    ones = np.ones(4, np.float32)
    data = {"x": ones, "y": np.zeros(4, np.int32)}
    return model, Request(
        forget=data | {"id": np.arange(4)}, retain=data | {"id": np.arange(4) + 10}
    )


def test_learning_rate_and_optimizer_name_the_transformation():
    model, request = linear()
    step = made(
        "gradient_ascent", learning_rate=0.25, optimizer="sgd", epochs=1, stop_at_chance=None
    )
    out = step.unlearn(model, jnp.float32(1.0), request, jax.random.key(0))
    np.testing.assert_allclose(out.params, 1.25)  # one batch, gradient 1, ascent


def test_a_preset_is_a_rule_on_the_recipe():
    long = dataclasses.replace(RECIPE, learning_rate=8e-3, epochs=300)
    for name, preset in PRESETS.items():
        one, other = (preset.arguments("class", recipe, 10) for recipe in (RECIPE, long))
        assert one.keys() == other.keys()
        for argument in {"learning_rate", "epochs"} & one.keys():
            factor = 4 if argument == "learning_rate" else 10
            assert other[argument] == pytest.approx(factor * one[argument]), (name, argument)
    retrain = PRESETS["retrain"].arguments("class", RECIPE, 10)
    assert retrain == {"learning_rate": RECIPE.learning_rate, "epochs": RECIPE.epochs}


def test_a_preset_knows_the_kind_of_task_and_the_number_of_classes():
    alpha = {k: PRESETS["neggrad_plus"].arguments(k, RECIPE, 10)["alpha"] for k in KINDS}
    assert alpha["random"] == alpha["ids"] < alpha["class"] == alpha["subclass"] == alpha["group"]
    assert PRESETS["gradient_ascent"].arguments("class", RECIPE, 7)["stop_at_chance"] == 7


@pytest.mark.parametrize("name", ["jit_lipschitz", "info_theoretic"])
def test_a_preset_that_names_sgd_reads_the_rate_of_an_sgd_recipe_as_one(name):
    """Adam of 2e-3 and SGD of 0.05 train alike, and the method takes the same steps after both."""
    recipes = (Recipe(learning_rate=2e-3), Recipe(optimizer="sgd", learning_rate=0.05))
    adam, sgd = (PRESETS[name].arguments("class", recipe, 10) for recipe in recipes)
    assert adam["optimizer"] == sgd["optimizer"] == "sgd"
    assert adam["learning_rate"] == pytest.approx(sgd["learning_rate"])


def test_a_preset_never_shortens_a_run_to_nothing():
    short = dataclasses.replace(RECIPE, epochs=1)
    for preset in PRESETS.values():
        assert preset.arguments("class", short, 10).get("epochs", 1) == 1


def test_changes_override_the_preset_and_leave_the_rest(monkeypatch):
    seen, real = {}, methods.ssd

    def ssd(*, alpha: float = 1.0, effective_batch: int = 64, floor: float = 0.0) -> Method:
        seen.update(alpha=alpha, effective_batch=effective_batch, floor=floor)
        return real()

    monkeypatch.setattr(methods, "ssd", ssd)
    made("ssd", floor=0.5)
    assert seen == {"alpha": 5.0, "effective_batch": 1, "floor": 0.5}


def test_an_unknown_method_is_refused_by_build_too():
    with pytest.raises(ValueError, match="method: 'sd' is unknown. Did you mean 'ssd'"):
        made("sd")


@pytest.mark.parametrize(
    ("name", "argument", "meant"),
    [
        ("ssd", "alpa", "alpha"),
        ("ssd", "learning_rate", "alpha"),
        ("finetune", "lr", "learning_rate"),
        ("finetune", "tx", "epochs"),
    ],
)
def test_an_unknown_argument_names_a_known_one(name, argument, meant):
    with pytest.raises(ValueError, match=f"method {name}: argument '{argument}' is unknown") as e:
        made(name, **{argument: 1})
    assert meant in str(e.value) and "Did you mean" in str(e.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ssd", {"alpha": "five"}, "ssd: alpha must be a number, got 'five'"),
        ("ssd", {"alpha": None}, "ssd: alpha must be a number, got None"),
        ("ssd", {"alpha": True}, "ssd: alpha must be a number, got True"),
        ("ssd", {"alpha": 10**400}, r"alpha must be below 2\*\*31 in size, got about 10\*\*400"),
        ("ssd", {"effective_batch": 2.5}, "effective_batch must be an integer, got 2.5"),
        ("ssd", {"micro_batch": 1.5}, "micro_batch must be an integer or None, got 1.5"),
        ("ssd", {"reference": 1}, "reference must be a string, got 1"),
        ("neggrad_plus", {"epochs": 1.5}, "neggrad_plus: epochs must be an integer, got 1.5"),
        ("random_labels", {"wrong_only": 1}, "wrong_only must be True or False, got 1"),
        ("finetune", {"learning_rate": "x"}, "learning_rate must be a number, got 'x'"),
        ("finetune", {"optimizer": 3}, "optimizer must be a string, got 3"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_before_anything_runs(name, changes, message):
    with pytest.raises(ValueError, match=message):
        made(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ssd", {"alpha": -1}, "expected alpha >= 0"),
        ("ssd", {"alpha": float("nan")}, "expected alpha >= 0"),
        ("ssd", {"reference": "half"}, "reference must be 'full' or 'retain', got 'half'"),
        ("neggrad_plus", {"alpha": 1.5}, "alpha must be a finite number >= 0 and <= 1, got 1.5"),
        ("finetune", {"epochs": -1}, "finetune: the length of a run must be >= 0, got -1"),
        (
            "finetune",
            {"learning_rate": -0.1},
            "finetune: recipe: learning_rate must be a finite .*got -0.1",
        ),
        ("finetune", {"learning_rate": float("inf")}, "learning_rate must be a finite .*got inf"),
        ("finetune", {"optimizer": "adan"}, "finetune: optimizer: 'adan' .*Did you mean 'adam'"),
        ("random_labels", {"order": "any"}, "order must be 'union' or 'sequential', got 'any'"),
        ("retrain", {"epochs": -1}, "retrain: epochs must be >= 0, got -1"),
    ],
)
def test_a_value_that_the_method_refuses_is_said_in_its_words(name, changes, message):
    with pytest.raises(ValueError, match=message):
        made(name, **changes)


# --- The recipe -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "optimizer: 'lion' is unknown.*There are: adam, sgd"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite .*got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite .*got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite .*got inf"),
        ({"batch_size": 0}, "expected batch_size >= 1 and epochs >= 0, got 0 and 30"),
        ({"epochs": -1}, "expected batch_size >= 1 and epochs >= 0, got 64 and -1"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


@pytest.mark.parametrize(("optimizer", "second"), [("adam", -0.1), ("sgd", -0.19)])
def test_the_optimizers_are_adam_and_momentum(optimizer, second):
    tx = Recipe(optimizer=optimizer, learning_rate=0.1).tx
    state, one = tx.init(jnp.zeros(())), jnp.ones(())
    first, state = tx.update(one, state)
    again, _ = tx.update(one, state)
    np.testing.assert_allclose([first, again], [-0.1, second], rtol=1e-4)


def test_the_variants_train_longer_and_on_larger_batches():
    longer, wider = Recipe().variants().values()
    assert (longer.epochs, wider.batch_size) == (38, 96)
    assert dataclasses.replace(longer, epochs=30) == RECIPE
    assert dataclasses.replace(wider, batch_size=64) == RECIPE


@pytest.mark.parametrize(("epochs", "batch_size"), [(0, 1), (1, 1), (3, 7), (30, 64)])
def test_no_variant_is_the_recipe_itself_where_something_is_trained(epochs, batch_size):
    recipe = Recipe(epochs=epochs, batch_size=batch_size)
    variants = recipe.variants()
    assert len(variants) == 2
    assert recipe not in list(variants.values())[0 if epochs else 1 :]


# --- The catalogue ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_the_catalogue_knows_family_needs_guarantee_and_paper(name):
    entry = catalogue()[name]
    assert entry.name == name
    assert entry.family in ("exact", "descent", "edits")
    assert entry.family == entry.builder.__module__.split(".")[-2]
    assert entry.needs == tuple(sorted(made(name).needs)) and entry.needs
    assert entry.guarantee == made(name).guarantee != ""
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.paper)


@pytest.mark.parametrize("name", PRESETS)
def test_a_page_opens_with_words_and_the_equation_and_ends_with_an_example(name):
    page = catalogue()[name].page
    assert re.search(r"^    .*theta", page, re.M), "no equation"
    for expected in ("Args:", "Returns:", "Cost", "Example:", f"arXiv:{catalogue()[name].paper}"):
        assert expected in page
    assert catalogue()[name].signature in page


def test_a_signature_shows_names_and_defaults_without_types():
    signature = catalogue()["neggrad_plus"].signature
    assert signature == "neggrad_plus(tx=None, *, alpha=0.95, epochs=5)"


# ------------------------------------------------------------------------- what proxies chose


@pytest.fixture
def chosen(monkeypatch):
    table = {
        "class": {
            "finetune": {"learning_rate": 5.0, "epochs": 0.1},
            "hamu": {"learning_rate": 3.0, "radius": 10.0, "epochs": 0.1},
            "ssd": {"alpha": 7.0},
        },
        "random": {"finetune": {"learning_rate": 2.0, "epochs": 1 / 30}},
    }
    monkeypatch.setattr(presets, "CALIBRATED", table)


def test_what_proxies_chose_stands_over_the_rule_in_the_terms_of_the_recipe(chosen):
    long = dataclasses.replace(RECIPE, learning_rate=8e-3, epochs=300)
    for recipe, factor in ((RECIPE, 1), (long, 10)):
        made = presets.settings("finetune", {}, "class", recipe, 10)
        assert made["learning_rate"] == pytest.approx(5 * recipe.learning_rate)
        assert made["epochs"] == 3 * factor
    assert presets.settings("ssd", {}, "class", RECIPE, 10) == {"alpha": 7.0, "effective_batch": 1}


def test_every_kind_of_task_has_its_own_choice_or_that_of_its_like(chosen):
    rates = {
        kind: presets.settings("finetune", {}, kind, RECIPE, 10)["learning_rate"]
        for kind in (*KINDS, "range")
    }
    assert rates["group"] == rates["class"] and rates["ids"] == rates["random"] != rates["class"]
    rule = PRESETS["finetune"].arguments("subclass", RECIPE, 10)["learning_rate"]
    assert rates["subclass"] == rates["range"] == rule


def test_rates_of_plain_sgd_are_those_of_an_sgd_recipe_scaled(chosen):
    sgd = Recipe(optimizer="sgd", learning_rate=25 * RECIPE.learning_rate)
    first, other = (presets.settings("hamu", {}, "class", r, 10) for r in (RECIPE, sgd))
    assert first == pytest.approx(other)


def test_what_is_asked_for_stands_over_both_and_the_paper_under_neither(chosen):
    made = presets.settings("finetune", {"epochs": 9}, "class", RECIPE, 10)
    assert made["epochs"] == 9
    assert presets.settings("finetune", {"preset": "paper"}, "class", RECIPE, 10) == {}
    built = presets.build("finetune", {"preset": "paper", "epochs": 1}, "class", RECIPE, 10)
    assert built.name == "finetune"
    with pytest.raises(ValueError, match="preset must be 'small' .* or 'paper' .* got 'large'"):
        presets.settings("finetune", {"preset": "large"}, "class", RECIPE, 10)


def test_a_choice_is_told_in_words(chosen):
    words = presets.rule_of("finetune", "class", 10)
    assert words == "chosen on proxies of digits: learning_rate 5 eta, epochs 0.1 E"
    assert presets.rule_of("finetune", "class", 1) == PRESETS["finetune"].rule
    assert presets.rule_of("assd", "class", 10) == PRESETS["assd"].rule


def test_the_table_of_choices_names_methods_and_arguments_that_there_are():
    for kind, table in presets.CALIBRATED.items():
        for name in table:
            presets.build(name, {}, kind, RECIPE, 10)
