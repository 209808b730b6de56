"""The command line: what it writes, where it speaks, and how it says that something is wrong.

One small comparison is really run, with the network out of reach. Tests of what surrounds it hand
its results over again.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from unittest import mock

import jax
import pytest

from jaxunlearn import (
    auditing,
    calibration,
    cli,
    compare,
    compare_ratings,
    presets,
    rating_presets,
    results,
)
from jaxunlearn.cli import main, parser
from jaxunlearn.reporting import pages, report
from tests.reporting import audit_records

SMALL = ["--seeds", "3", "--oracles", "4", "--epochs", "4", "--methods", "ssd", "--rows", "100"]


def unreachable(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, exit status, standard output, standard error) of one small comparison."""
    folder = tmp_path_factory.mktemp("small") / "made" / "out"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for name in ("connect", "connect_ex", "sendto"):
            stack.enter_context(mock.patch.object(socket.socket, name, unreachable))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", unreachable))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        status = main(["compare", *SMALL, "--out", str(folder)])
    return folder, status, out.getvalue(), err.getvalue()


@pytest.fixture
def handed(small, monkeypatch):
    """`compare` that tells of one stage and hands over the results of `small`."""
    found = results.read(small[0] / "results.json")

    def again(task, methods, settings, *, cache, say):
        say("training in play", 1.0)
        return found

    monkeypatch.setattr(compare, "compare", again)
    return found


@pytest.fixture
def never(monkeypatch):
    """Fails if anything is trained."""
    monkeypatch.setattr(compare, "compare", unreachable)


def run(*words) -> int | str | None:
    """The exit status of a command line."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def refused(capsys, *words) -> str:
    """The one line that is said about a command line that is refused."""
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxunlearn: ") and err.count("\n") == 1, err
    return err


# --- What is written, and where it speaks -----------------------------------------------------


def test_a_comparison_writes_its_three_files_and_says_where(small):
    folder, status, out, _ = small
    assert status == 0
    assert sorted(os.listdir(folder)) == ["report.html", "report.png", "results.json"]
    assert out.endswith("wrote " + ", ".join(
        str(folder / name) for name in ("results.json", "report.html", "report.png")
    ) + "\n")  # fmt: skip
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (folder / "report.html").read_text(encoding="utf-8")
    record = results.read(folder / "results.json").record
    assert page.startswith("<!DOCTYPE html>") and record["headline"].split(",")[0] in page


def test_the_table_goes_to_standard_output_and_progress_to_standard_error(small):
    folder, _, out, err = small
    record = results.read(folder / "results.json").record
    said = " ".join(out.split())
    assert record["headline"] in said and "Verdicts" in out
    for row in record["rows"]:
        assert re.search(rf"^{re.escape(row['label'])}\b", out, re.M)
    assert re.search(r"^ +\d+\.\d s  training 3 originals$", err, re.M)
    assert "auditing" in err and "training 3" not in out and record["headline"] not in err


def test_notes_of_methods_are_shown(small):
    _, _, out, err = small
    assert re.search(r"^note: ssd.*effective_batch=64", out, re.M)
    assert "Warning" not in err


def test_what_was_asked_is_in_the_results_and_asks_for_the_same_again(small):
    record = results.read(small[0] / "results.json").record
    words = shlex.split(record["command"])
    assert words[0] == "jaxunlearn"
    again = parser().parse_args(words[1:])
    asked = parser().parse_args(["compare", *SMALL, "--forget", "class:3"])  # the default
    assert vars(again) == vars(asked)
    assert record["settings"]["seeds"] == 3 and record["settings"]["recipe"]["epochs"] == 4


def test_a_method_with_brackets_and_quotes_is_asked_for_again_word_by_word():
    asked = parser().parse_args(["compare", "--methods", "ssd(reference='retain'), finetune"])
    again = parser().parse_args(shlex.split(cli._command(asked))[1:])
    assert again.methods == asked.methods


def test_quiet_says_nothing_on_the_way(handed, tmp_path, capsys):
    assert run("compare", "--quiet", "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == "" and handed.record["headline"] in " ".join(out.split())


def test_loud_says_every_stage(handed, tmp_path, capsys):
    assert run("compare", "--out", tmp_path) == 0
    assert "   1.0 s  training in play\n" in capsys.readouterr().err


def test_on_a_terminal_one_line_is_rewritten_and_wiped(handed):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with mock.patch.dict(os.environ, {"COLUMNS": "40"}):
        say = cli._Progress(terminal, quiet=False)
        say("training " + "x" * 100, 1.0)
        say("auditing", 2.0)
        say.done()
    lines = terminal.getvalue().split("\r")
    assert "\n" not in terminal.getvalue()
    assert all(len(line) == 39 for line in lines[1:-1])
    assert lines[2].startswith("   2.0 s  auditing") and not lines[3].strip() and lines[-1] == ""


def test_results_that_are_there_are_replaced(handed, tmp_path):
    for name in ("results.json", "report.html", "report.png"):
        (tmp_path / name).write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    assert run("compare", "--quiet", "--out", tmp_path) == 0
    assert results.read(tmp_path / "results.json").rows == handed.rows
    assert sorted(os.listdir(tmp_path)) == [
        "mine.txt",
        "report.html",
        "report.png",
        "results.json",
    ]


def test_nothing_is_kept_without_cache_and_everything_below_it_with(monkeypatch, tmp_path, small):
    seen = []

    def again(task, methods, settings, *, cache, say):
        seen.append(cache)
        return results.read(small[0] / "results.json")

    monkeypatch.setattr(compare, "compare", again)
    asked = ["compare", "--quiet", "--out", tmp_path / "out"]
    assert run(*asked, "--no-cache") == 0
    assert run(*asked, "--cache-dir", tmp_path / "kept") == 0
    assert seen[0] is None and seen[1].root == tmp_path / "kept" / "models"


def test_the_options_reach_the_comparison(monkeypatch, tmp_path, small):
    seen = []

    def again(task, methods, settings, *, cache, say):
        seen.extend([task, methods, settings])
        return results.read(small[0] / "results.json")

    monkeypatch.setattr(compare, "compare", again)
    words = """compare --source digits:odd_even --forget subclass:3 --methods ssd(alpha=2),retrain
        --model cnn --optimizer sgd --learning-rate 0.5 --batch-size 7 --epochs 2 --seeds 5
        --oracles 6 --seed 9 --rows 11 --quiet --out""".split()
    assert run(*words, tmp_path) == 0
    task, methods, settings = seen
    assert (task.name, task.source.num_classes) == ("subclass:3", 2)
    assert [each.label for each in methods] == ["ssd(alpha=2)", "retrain"]
    assert settings == compare.Settings(presets.Recipe("cnn", "sgd", 0.5, 7, 2), 5, 6, 9, 11)


def test_calibrated_settings_are_what_is_compared(monkeypatch, tmp_path, small):
    seen = []

    def chosen(task, methods, settings, *, budget, cache, say):
        seen.extend([task, methods, settings, budget])
        return calibration.Calibrated(
            presets.parse_methods("ssd(alpha=7.0)"), [], ["class:5"], settings, 1.0
        )

    def again(task, methods, settings, *, cache, say):
        seen.append(methods)
        return results.read(small[0] / "results.json")

    monkeypatch.setattr(calibration, "calibrated", chosen)
    monkeypatch.setattr(compare, "compare", again)
    words = """compare --forget class:3 --methods ssd,retrain --calibrate --budget 0.1 --epochs 2
        --quiet --out""".split()
    assert run(*words, tmp_path) == 0
    task, asked, settings, budget, compared = seen
    assert task.name == "class:3" and [each.label for each in asked] == ["ssd", "retrain"]
    assert (settings.recipe.epochs, settings.seeds, budget) == (2, 8, 0.1)
    assert [each.label for each in compared] == ["ssd(alpha=7.0)"]
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert stored["calibration"]["proxies"] == ["class:5"]
    assert "--calibrate" in stored["command"] and "--budget 0.1" in stored["command"]


def test_the_defaults_are_those_of_the_library():
    options = parser().parse_args(["compare"])
    recipe = presets.Recipe(
        options.model, options.optimizer, options.learning_rate, options.batch_size, options.epochs
    )
    settings = compare.Settings(recipe, options.seeds, options.oracles, options.seed, options.rows)
    assert settings == compare.Settings()
    assert (options.source, options.forget, options.methods) == ("digits", None, None)
    made = rating_presets.Factorisation(rank=options.rank, sweeps=options.sweeps)
    assert made == rating_presets.Factorisation()
    settings = compare_ratings.Settings(
        made, options.seeds, options.oracles, options.seed, options.rows
    )
    assert settings == compare_ratings.Settings()


def test_a_source_of_ratings_is_compared_as_a_recommender(monkeypatch, tmp_path, small):
    seen = []

    def again(task, methods, settings, *, say):
        seen.append((task, methods, settings))
        return results.read(small[0] / "results.json")

    monkeypatch.setattr(compare, "compare", unreachable)
    monkeypatch.setattr(compare_ratings, "compare", again)
    words = """compare --source ratings --forget user:3 --rank 4 --regularisation 2 --sweeps 9
        --seeds 5 --oracles 6 --seed 7 --rows 11 --methods retrain,als(mode='rows') --quiet
        --out""".split()
    assert run(*words, tmp_path) == 0
    assert run("compare", "--source", "ratings:implicit", "--quiet", "--out", tmp_path) == 0
    (task, methods, settings), (other, usual, implicit) = seen
    assert (task.name, task.source.kind) == ("user:3", "explicit")
    assert [each.label for each in methods] == ["retrain", "als(mode='rows')"]
    recipe = rating_presets.Factorisation(4, 2.0, "explicit", 9)
    assert settings == compare_ratings.Settings(recipe, 5, 6, 7, 11)
    assert (other.name, implicit.recipe.feedback) == ("random:0.01:seed=0", "implicit")
    assert usual == rating_presets.parse_methods(rating_presets.DEFAULT_METHODS)
    asked = vars(parser().parse_args(words + ["out"]))
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["command"]
    assert "--feedback" not in stored and "--rank 8" in stored and "--model" not in stored
    assert asked["forget"] == "user:3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "ratings", "--epochs", "3"], "--epochs is for classifiers, and ratings is f"),
        (["--source", "ratings", "--learning-rate", "1"], "use --rank, --regularisation, --sweeps"),
        (["--rank", "3"], "--rank is for recommenders, and digits is classified; leave it out"),
        (["--sweeps", "3"], "--sweeps is for recommenders"),
        (["--budget", "0.1"], "--budget is for --calibrate; give both or neither"),
        (["--source", "ratings", "--calibrate"], "--calibrate is for classifiers"),
        (["--feedback", "ials"], "--feedback is for recommenders"),
        (["--source", "ratings", "--feedback", "ials"], "'ials' does not fit ratings, whose feed"),
        (["--source", "ratings", "--feedback", "x"], "feedback: 'x' is unknown"),
        (["--source", "ratings", "--forget", "class:3"], "no kind 'class'"),
        (["--source", "ratings", "--forget", "user:999"], "no user is called '999'"),
        (["--source", "ratings", "--methods", "ssd"], "method: 'ssd' is unknown"),
        (["--source", "rating"], "no ratings are called 'rating'. Did you mean 'ratings'"),
        (["--source", "movielense"], "no ratings are called 'movielense'. Did you mean 'movielens"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_of_the_other_kind_is_refused_and_not_ignored(
    capsys, never, monkeypatch, tmp_path, words, message
):
    monkeypatch.setattr(compare_ratings, "compare", unreachable)
    said = refused(capsys, "compare", "--out", tmp_path, "--quiet", *words)
    assert re.search(message, said), said
    assert not list(tmp_path.iterdir())


# --- Exit statuses ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_comparison_that_says_nothing_exits_with_3_and_writes_its_files(tmp_path):
    words = ["compare", *SMALL[:4], "--epochs", "0", "--methods", "ssd", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxunlearn", *words, "--cache-dir", "kept"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )
    assert done.returncode == cli.NOT_INFORMATIVE == 3, done.stderr
    said = " ".join(done.stdout.split())
    assert "NOT INFORMATIVE: " in said and "No score is shown" in said
    assert "Traceback" not in done.stderr and "training 3 originals" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.png",
        "results.json",
    ]
    status = results.read(tmp_path / "out" / "results.json").status
    assert re.match("not informative: .*chance", status)
    assert len(list((tmp_path / "kept" / "models").iterdir())) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "out"]


def test_the_program_refuses_in_one_line_and_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "jaxunlearn", "compare", "--oracle", "3"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "jaxunlearn: unknown option --oracle. Did you mean --oracles? See --help.\n"
    )


def test_an_interruption_is_no_error_of_the_program(monkeypatch, tmp_path, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", interrupted)
    assert run("compare", "--quiet", "--out", tmp_path) == 130
    assert "interrupted; the cache keeps what was trained" in capsys.readouterr().err


def test_nothing_to_forget_is_no_failure(small, monkeypatch, tmp_path, capsys):
    record = json.loads((small[0] / "results.json").read_text(encoding="utf-8"))
    empty = {"status": "nothing to forget", "headline": "There is nothing.", "floors": {}}
    rows = [row | {"verdict": None} for row in record["rows"] if row["role"] != "recipe"]
    found = results.Results(record | empty | {"rows": rows, "floor": {}})
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: found)
    assert run("compare", "--quiet", "--forget", "random:0", "--out", tmp_path) == 0
    assert "There is nothing." in capsys.readouterr().out


# --- Words that are not known -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--oracle", "3"], "unknown option --oracle. Did you mean --oracles"),
        (["compare", "--learning_rate=3"], "unknown option --learning_rate. Did you mean --learn"),
        (["compare", "--see", "3"], "unknown option --see. Did you mean --seed"),
        (["methods", "--quite"], "unknown option --quite. Did you mean --quiet"),
        (["compar"], r"unknown command 'compar'. Did you mean compare\? There are: compare, audi"),
        (["method"], "unknown command 'method'. Did you mean methods"),
        ([], "the following arguments are required: command"),
        (["compare", "digits"], "'digits' is one word too many"),
        (["methods", "ssd", "retrain"], "'retrain' is one word too many"),
        (["compare", "--seeds"], "--seeds: expected one argument"),
        (["methods", "sdd"], "method: 'sdd' is unknown. Did you mean 'ssd'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_word_is_refused_and_the_nearest_named(capsys, never, words, message):
    assert re.search(message, refused(capsys, *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "sdd"], "method: 'sdd' is unknown. Did you mean 'ssd'"),
        (["--methods", "ssd,ssd"], "ssd is listed 2 times"),
        (["--methods", ""], "expected at least one method"),
        (["--methods", "ssd(alpha=__import__('os'))"], "a value must be a number"),
        (["--source", "digit"], "no source is called 'digit'. Did you mean 'digits'"),
        (["--source", "digits:oddeven"], "Did you mean 'odd_even'"),
        (["--source", "../digits"], "expected a plain name .*not a path"),
        (["--source", "tfds:../../etc"], "expected a plain name .*not a path"),
        (["--source", "/etc/passwd"], "expected a plain name .*not a path"),
        (["--optimizer", "adan"], "optimizer: 'adan' is unknown. Did you mean 'adam'"),
        (["--forget", "clas:3"], "no kind 'clas'. Did you mean 'class'"),
        (["--forget", "class:11"], "digits has no class 11: they are numbered 0 to 9"),
        (["--forget", "class:../../etc/passwd"], "no class called '../../etc/passwd'"),
        (["--forget", "class:3:duplicate=keep"], "no option 'duplicate'. Did you mean 'dupl"),
        (["--forget", "class:0,1,2,3,4,5,6,7,8,9"], "forgets the whole training set of digits"),
        (["--forget", "random:__import__('os')"], r"expected a number, got '__import__\('os'\)'"),
        (["--forget", "random:nan"], r"expected a fraction of the training rows in \[0, 1\).* nan"),
        (["--forget", "random:inf"], r"expected a fraction of the training rows in \[0, 1\)"),
        (["--forget", "random:1"], r"expected a fraction of the training rows in \[0, 1\)"),
        (["--forget", "random:-0.1"], r"expected a fraction of the training rows in \[0, 1\)"),
        (["--forget", "random:0.1:seed=-1"], "expected an integer seed >= 0, got -1"),
        (["--forget", "ids:0,-1"], r"ids \[-1\] are negative"),
        (["--forget", "ids:0.5"], "expected an integer, got '0.5'"),
        (["--forget", "group:../x=3"], "digits has no integer column '../x'"),
        (["--forget", "subclass:3"], "digits has no label column 'fine'"),
        (["--forget", ""], "no kind ''"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_value_that_cannot_be_is_refused_before_training(capsys, never, tmp_path, words, message):
    assert re.search(message, refused(capsys, "compare", "--out", tmp_path, "--quiet", *words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["mpl", "resnet", "../mlp"])
def test_an_unknown_network_is_refused_before_training(capsys, tmp_path, model):
    words = ["compare", "--quiet", "--out", tmp_path, "--model", model]
    assert re.search(f"unknown network '{model}': did you mean '", refused(capsys, *words))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e999", "-1e-9", "abc", ""])
def test_a_learning_rate_is_a_finite_number_above_0(capsys, never, value):
    said = refused(capsys, "compare", f"--learning-rate={value}")
    assert f"--learning-rate: expected a finite number above 0, got '{value}'" in said


@pytest.mark.parametrize(
    ("option", "least"),
    [("seeds", 2), ("oracles", 4), ("epochs", 0), ("batch-size", 1), ("rows", 1), ("seed", 0)]
    + [("rank", 1), ("sweeps", 1)],
)
@pytest.mark.parametrize("value", ["too few", "nan", "inf", "1.5", "1e3", "", "99999999999", "x"])
def test_a_count_is_an_integer_that_is_large_enough(capsys, never, option, least, value):
    value = str(least - 1) if value == "too few" else value
    said = refused(capsys, "compare", f"--{option}={value}")
    assert f"--{option}: expected an integer of at least {least}" in said and repr(value) in said


def test_one_seed_is_refused(capsys, never):
    assert "--seeds: expected an integer of at least 2" in refused(
        capsys, "compare", "--seeds", "1"
    )


# --- Places -----------------------------------------------------------------------------------


def test_a_file_in_place_of_the_folder_is_refused_and_kept(capsys, never, tmp_path):
    path = tmp_path / "out"
    path.write_text("precious")
    assert f"--out {path} is a file; give a folder." in refused(capsys, "compare", "--out", path)
    assert path.read_text() == "precious"
    assert str(path / "below") in refused(capsys, "compare", "--out", path / "below")


def test_a_folder_that_cannot_be_written_to_is_refused_first(capsys, never, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert f"--out {tmp_path} cannot be written to" in refused(capsys, "compare", "--out", tmp_path)


def test_a_full_disk_leaves_the_old_results(handed, capsys, tmp_path, monkeypatch):
    assert run("compare", "--quiet", "--out", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run("compare", "--quiet", "--out", tmp_path) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_data_say_where_they_were_looked_for(capsys, never, tmp_path, monkeypatch):
    words = ["compare", "--source", "mnist", "--out", tmp_path / "out"]
    monkeypatch.delenv("JAXUNLEARN_DATA", raising=False)
    said = refused(capsys, *words)
    assert "no data for 'mnist'. Looked for: nowhere, since no folder was given" in said
    assert "--data-dir" in said and "JAXUNLEARN_DATA" in said
    said = refused(capsys, *words, "--data-dir", tmp_path / "given")
    assert f"Looked for: {tmp_path}/given/mnist/mnist.npz, {tmp_path}/given/mnist.npz" in said
    monkeypatch.setenv("JAXUNLEARN_DATA", str(tmp_path / "set"))
    assert f"Looked for: {tmp_path}/set/mnist/mnist.npz" in refused(capsys, *words)


# --- The list of methods ----------------------------------------------------------------------


def test_methods_are_listed_with_family_guarantee_needs_and_paper(capsys):
    assert run("methods") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0].split() == ["name", "family", "guarantee", "needs", "arXiv"]
    assert [line.split()[0] for line in lines[1 : 1 + len(presets.PRESETS)]] == list(
        presets.PRESETS
    )
    for name, entry in presets.catalogue().items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split() == [name, entry.family, entry.guarantee, *entry.needs, entry.paper]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_one_method_is_shown_in_full(capsys, name):
    assert run("methods", name) == 0
    out = capsys.readouterr().out
    assert presets.catalogue()[name].page in out
    assert f"Preset in comparisons: {presets.PRESETS[name].rule}." in out


def test_help_lists_every_option_with_its_default(capsys):
    assert run("compare", "--help") == 0
    out = capsys.readouterr().out
    for option in vars(parser().parse_args(["compare"])):
        assert option == "command" or f"--{option.replace('_', '-')}" in out
    assert "(default: 16)" in " ".join(out.split())


def test_methods_for_ratings_are_listed_and_shown(capsys):
    assert run("methods") == 0
    listed = capsys.readouterr().out.partition("For ratings:")[2]
    assert all(re.search(rf"^  {name} ", listed, re.M) for name in rating_presets.METHODS)
    assert run("methods", "als") == 0
    assert "mode='converged'" in capsys.readouterr().out


# --- The audit of a finished comparison -------------------------------------------------------


@pytest.fixture
def finished(small, tmp_path):
    """A folder with the files of `small`."""
    folder = tmp_path / "finished"
    shutil.copytree(small[0], folder)
    return folder


@pytest.fixture
def audited(monkeypatch):
    """An audit that tells of one stage and hands over a record; pages without pictures."""
    seen = {}

    def again(results, settings, **options):
        options["say"]("auditing in play", 1.0)
        seen.update(options, results=results, settings=settings)
        return audit_records.plausible(labels=("original", "oracle", "retrain", "head mask"))

    monkeypatch.setattr(auditing, "audit_comparison", again)
    monkeypatch.setattr(pages, "page", lambda audit, row: f"<p>{row['label']}")
    monkeypatch.setattr(report, "html", lambda record, audit: f"<p>{audit['command']}")
    return seen


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_audit_writes_its_files_beside_the_comparison_and_says_where(finished, audited, capsys):
    before = files(finished)
    assert run("audit", "--run", finished, "--no-cache") == 0
    out, err = capsys.readouterr()
    assert sorted(os.listdir(finished)) == [
        "audit.json", "pages", "report.html", "report.png", "results.json",
    ]  # fmt: skip
    assert before[finished / "results.json"] == (finished / "results.json").read_bytes()
    names = ", ".join(str(finished / name) for name in ("audit.json", "report.html"))
    assert out.endswith(f"wrote {names}, 3 pages in {finished / 'pages'}\n")
    assert "note: gradient_ascent: all models gave non-finite outputs." in out
    assert "   1.0 s  auditing in play\n" in err and "auditing in play" not in out


def test_an_audit_prints_a_line_for_each_row_with_its_verdict(finished, audited, capsys):
    assert run("audit", "--run", finished, "--quiet", "--no-cache") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^ *retrain\b.*indistinguishable from retraining", out, re.M)
    assert re.search(r"^ *head mask\b.*flagged, as it must be", out, re.M)


def test_the_options_reach_the_audit_and_its_command_asks_for_the_same(finished, audited):
    words = "--methods ssd --shadows 0 --steps 3 --rows 5 --permutations 99".split()
    assert run("audit", "--run", finished, *words, "--quiet", "--no-cache") == 0
    assert audited["settings"] == auditing.Settings(shadows=0, steps=3, rows=5, permutations=99)
    assert audited["methods"] == ["ssd"] and audited["cache"] is None
    assert audited["results"] == results.read(finished / "results.json")
    command = json.loads((finished / "audit.json").read_text(encoding="utf-8"))["command"]
    again = parser().parse_args(shlex.split(command)[1:])
    assert vars(again) == vars(parser().parse_args(["audit", "--run", str(finished), *words]))


def test_the_defaults_of_an_audit_are_those_of_the_library():
    options = parser().parse_args(["audit", "--run", "x"])
    settings = auditing.Settings(
        shadows=options.shadows,
        steps=options.steps,
        rows=options.rows,
        permutations=options.permutations,
    )
    assert settings == auditing.Settings() and options.methods is None


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_results_is_no_run(capsys, tmp_path, there):
    folder = tmp_path / "elsewhere"
    if there:
        folder.mkdir()
    err = refused(capsys, "audit", "--run", folder)
    assert "holds no results.json. Give the --out folder of a finished" in err
    assert folder.exists() == there  # nothing is made


def test_an_audit_needs_a_run(capsys):
    assert "the following arguments are required: --run" in refused(capsys, "audit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "sdd"], "'sdd' is unknown. Did you mean 'ssd'"),
        (["--methods", "retrain"], "this comparison has no such row: 'retrain' is unknown"),
        (["--shadows", "2"], "shadows: expected 0 or at least 4 pairs, got 2"),
        (["--rows", "3"], "--rows: expected an integer of at least 4, got '3'"),
        (["--steps", "0"], "--steps: expected an integer of at least 1, got '0'"),
        (["--permutations", "18"], "--permutations: expected an integer of at least 19"),
        (["--seeds", "4"], "unknown option --seeds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_audited_is_refused_before_any_model_is_made(
    capsys, monkeypatch, finished, words, message
):
    monkeypatch.setattr(compare, "ensembles_of", unreachable)
    before = files(finished)
    assert run("audit", "--run", finished, "--no-cache", "--quiet", *words) == 2
    assert message in capsys.readouterr().err
    assert files(finished) == before


def test_results_that_were_edited_are_not_audited(capsys, monkeypatch, finished):
    monkeypatch.setattr(auditing, "audit_comparison", unreachable)
    path = finished / "results.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"seeds": 3', '"seeds": 4'))
    assert "'settings' is not what was written: the file was edited" in refused(
        capsys, "audit", "--run", finished, "--no-cache"
    )


def test_a_comparison_that_says_nothing_is_not_audited_and_exits_with_3(
    capsys, monkeypatch, finished
):
    monkeypatch.setattr(compare, "ensembles_of", unreachable)
    record = results.read(finished / "results.json").record
    bare = results.Results(record | {"status": "not informative: the originals are at chance"})
    results.write(bare, finished / "results.json")
    assert run("audit", "--run", finished, "--no-cache", "--quiet") == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "the comparison itself says nothing (the originals are at chance)" in out
    stored = json.loads((finished / "audit.json").read_text(encoding="utf-8"))
    assert stored["status"].startswith("not informative") and stored["rows"] == []
    assert "wrote" in out and "pages" not in out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
    ],
    ids=["host", "device"],
)
def test_out_of_memory_suggests_fewer_rows_and_leaves_all_files(
    capsys, monkeypatch, finished, error
):
    def exhausted(*args, **kwargs):
        raise error

    monkeypatch.setattr(compare, "ensembles_of", exhausted)
    before = files(finished)
    err = refused(capsys, "audit", "--run", finished, "--no-cache", "--quiet", "--shadows", "0")
    assert "out of memory. Nothing was written." in err and "--rows" in err
    assert files(finished) == before


def test_another_failure_of_the_program_is_not_taken_for_one_of_memory(monkeypatch, finished):
    def broken(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(compare, "ensembles_of", broken)
    before = files(finished)
    with pytest.raises(RuntimeError, match="INTERNAL: a bug"):
        run("audit", "--run", finished, "--no-cache", "--quiet", "--shadows", "0")
    assert files(finished) == before


def test_models_of_the_run_come_from_the_cache_that_is_named(finished, audited, tmp_path):
    kept = tmp_path / "kept"
    assert run("audit", "--run", finished, "--quiet", "--cache-dir", kept) == 0
    assert audited["cache"].root == kept / "models"


@pytest.mark.slow
def test_an_audit_with_the_usual_settings_is_made_by_the_program(tmp_path):
    """In a process of its own, from the comparison on."""
    kept = ["--cache-dir", str(tmp_path / "kept")]
    asked = "--seeds 8 --oracles 16 --epochs 15 --methods retrain,finetune".split()
    folder = str(tmp_path / "out")
    for words in (["compare", *asked, "--out", folder], ["audit", "--run", folder]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "jaxunlearn", *words, *kept],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert re.search(r"^ *retrain\b.*indistinguishable from retraining", done.stdout, re.M)
    stored = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    found = {row["label"]: row for row in stored["rows"]}
    assert found["original"]["finding"]["flagged"]
    assert found["last layer masked"]["finding"]["flagged"]
    assert found["half-contaminated oracle"]["finding"]["flagged"]
    assert (
        stored["shadows"]["pairs"] == 16
        and {"outputs_forget", "relearning", "probes", "steering"} <= stored["audits"].keys()
    )
    assert len(list((tmp_path / "out" / "pages").iterdir())) == len(stored["rows"]) - 1


# --- Devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "flags", "chosen"),
    [
        (-1, "", os.cpu_count()),
        (3, "", None),
        (-1, "--xla_force_host_platform_device_count=2", None),
    ],
)
def test_all_cores_are_used_unless_somebody_chose(monkeypatch, devices, flags, chosen):
    jax = mock.Mock()
    jax.config.jax_num_cpu_devices = devices
    monkeypatch.setenv("XLA_FLAGS", flags)
    cli._use_all_cores(jax)
    expected = [] if chosen is None else [mock.call("jax_num_cpu_devices", chosen)]
    assert jax.config.update.call_args_list == expected


def test_a_jax_that_has_started_keeps_its_devices(monkeypatch):
    jax = mock.Mock()
    jax.config.jax_num_cpu_devices = -1
    jax.config.update.side_effect = RuntimeError("before backends are initialized")
    monkeypatch.setenv("XLA_FLAGS", "")
    cli._use_all_cores(jax)
    jax.config.update.assert_called_once()
