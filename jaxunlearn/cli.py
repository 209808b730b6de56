"""The command line: `jaxunlearn compare`, `audit` and `methods`. Parsing and printing only.

| status | meaning                                                                             |
|--------|-------------------------------------------------------------------------------------|
| 0      | done; for `compare`, the comparison is informative (or there was nothing to forget) |
| 2      | the command line or an input was wrong: one message says what and what to do        |
| 3      | the comparison is not informative: no score, the reason is printed and stored       |
| 130    | interrupted                                                                         |

Progress and warnings go to standard error, what was found to standard output. A source of ratings
is compared as a recommender; an option of the other kind of comparison is refused, not ignored.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxunlearn.naming import closest

NOT_INFORMATIVE = 3


class _Parser(argparse.ArgumentParser):
    """argparse that names the nearest option or command, and exits with 2 in one line."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown[0].split("=")[0]))
        return found

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} is one word too many. See --help."
        return f"unknown option {word}. Did you mean {closest(word, _options(self))}? See --help."

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near, known = closest(str(value), action.choices), ", ".join(map(str, action.choices))
            self.error(
                f"unknown {action.metavar} {value!r}. Did you mean {near}? There are: {known}."
            )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jaxunlearn: {message}\n")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    found = []
    for action in parser._actions:
        found += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            found += [option for sub in action.choices.values() for option in _options(sub)]
    return found


def parser() -> argparse.ArgumentParser:
    """The command line as an argparse parser."""
    top = _Parser(
        prog="jaxunlearn",
        description="Machine unlearning in JAX, audited against true retraining.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    compare = commands.add_parser(
        "compare",
        help="train, forget, and say with evidence whether it was forgotten",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = compare.add_argument
    sources = "digits, digits:odd_even, digits:loop, mnist, cifar10, cifar100, tfds:NAME; "
    sources += "regression: diabetes; of "
    sources += (
        "ratings: ratings, movielens, movielens:100k, tfds:movielens/NAME, each :implicit too"
    )
    tasks = "class:3 | subclass:3 | random:0.05 | group:COLUMN=VALUE | ids:1,2,3; of a "
    tasks += "regression range:200:350 in the place of classes; of ratings: user:42 | item:7 | "
    tasks += "random:0.01 | entries:1,2,3; default class:3, range:200:inf, or random:0.01"
    methods = "such as ssd,neggrad_plus(alpha=0.9,epochs=3) or als(mode='rows'); see "
    methods += "`jaxunlearn methods`"
    strengths = "choose the settings of methods that are named without arguments on proxy requests"
    kept = "where trained ensembles and compiled programs are kept"
    add("--source", default="digits", help=sources)
    add("--forget", default=None, help=tasks)
    add("--methods", default=None, help=methods)
    add("--calibrate", action="store_true", help=strengths)
    add("--budget", type=_number, default=None, help="of calibrated settings: share of retraining")
    add("--model", default="mlp", help="mlp, cnn, resnet18, resnet18_gn, vit")
    add("--optimizer", default="adam", help="adam or sgd")
    add("--learning-rate", type=_number, default=2e-3)
    add("--batch-size", type=_integer(1), default=64)
    add("--epochs", type=_integer(0), default=30)
    add("--rank", type=_integer(1), default=8, help="factors of a recommender")
    add(
        "--regularisation", type=_number, default=None, help="of a recommender; default by feedback"
    )
    add("--feedback", default=None, help="explicit, implicit or ials; default that of the source")
    add(
        "--sweeps", type=_integer(1), default=None, help="of a recommender; default until converged"
    )
    add("--seeds", type=_integer(2), default=16, help="originals, and models per method")
    add("--oracles", type=_integer(4), default=32, help="true retrainings to compare with")
    add("--seed", type=_integer(0), default=0, help="of everything random")
    add("--rows", type=_integer(1), default=10_000, help="examples of a part that are evaluated")
    add("--train-rows", type=_integer(1), default=None, help="train on so many rows of the source")
    add("--data-dir", type=Path, default=None, help="where data sets lie; default $JAXUNLEARN_DATA")
    add("--out", type=Path, default=Path("jaxunlearn-compare"), help="folder for the report")
    add("--cache-dir", type=Path, default=None, help=kept)
    add("--no-cache", action="store_true", help="train everything anew, keep nothing")
    add("--quiet", action="store_true", help="no progress")
    audit = commands.add_parser(
        "audit",
        help="attack what a finished comparison made: would it come back, what is still known?",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = audit.add_argument
    add("--run", type=Path, required=True, help="folder of a finished comparison")
    add("--methods", default=None, help="rows of the comparison, by label; default all")
    add(
        "--shadows", type=_integer(0), default=16, help="pairs of shadow models for U-LiRA; 0: none"
    )
    add("--steps", type=_integer(1), default=40, help="minibatches of relearning")
    add("--rows", type=_integer(4), default=512, help="examples of a part that are attacked")
    add("--permutations", type=_integer(19), default=1999, help="relabellings of the test")
    add("--data-dir", type=Path, default=None, help="where data sets lie; default $JAXUNLEARN_DATA")
    add("--cache-dir", type=Path, default=None, help=kept)
    add("--no-cache", action="store_true", help="train everything anew, keep nothing")
    add("--quiet", action="store_true", help="no progress")
    listing = commands.add_parser(
        "methods", help="what there is; NAME shows one in full", allow_abbrev=False
    )
    listing.add_argument("name", nargs="?", help="a method")
    return top


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value


def _integer(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) else -1
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {least}, got {text!r}"
            )
        return value

    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "methods":
            return _methods(options.name)
        return _audit(options) if options.command == "audit" else _compare(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"jaxunlearn: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fewer = "--methods" if options.command == "audit" else "--seeds and --oracles"
        print(
            "jaxunlearn: out of memory. Nothing was written. Look at fewer examples with --rows, "
            f"at fewer models with {fewer}, or free memory. "
            f"({str(error).splitlines()[0] if str(error) else 'MemoryError'})",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\njaxunlearn: interrupted; the cache keeps what was trained.", file=sys.stderr)
        return 130


def _methods(name: str | None) -> int:
    from jaxunlearn import presets, rating_presets

    entries = presets.catalogue()
    if name is None:
        print(_columns([("name", "family", "guarantee", "needs", "arXiv")] + [
            (e.name, e.family, e.guarantee, " ".join(e.needs), e.paper) for e in entries.values()
        ]))  # fmt: skip
        print("\nFor ratings:\n" + _columns([
            (f"  {name}", e.family, e.guarantee, e.paper, e.rule)
            for name, e in rating_presets.METHODS.items()
        ]))  # fmt: skip
        print("\njaxunlearn methods NAME shows one in full.")
        return 0
    if name in rating_presets.METHODS and name not in entries:
        print(rating_presets.page(name))
        return 0
    if name not in entries:
        raise ValueError(f"method: {presets.nearest(name, entries)}")
    print(entries[name].page)
    print(f"\nPreset in comparisons: {presets.PRESETS[name].rule}.")
    for kind, chosen in presets.CALIBRATED.items():
        if name in chosen:
            print(f"  {kind}: {presets.rule_of(name, kind, 2)}")
    return 0


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _compare(options: argparse.Namespace) -> int:
    folder = _folder(options.out)
    cache = _prepared_jax(options)
    from jaxunlearn import results
    from jaxunlearn.publishing import publish_text
    from jaxunlearn.reporting import report

    prepare = _prepare_ratings if _is_of_ratings(options.source) else _prepare_classifiers
    task, run = prepare(options, cache)
    found = _told(options.quiet, task.describe(), run)
    record = found.record | {"command": _command(options)}
    found = dataclasses.replace(found, record=record)
    print(report.table(record))
    written = [
        results.write(found, folder / "results.json"),
        publish_text(folder / "report.html", report.html(record)),
        folder / "report.png",
    ]
    report.png(record, written[-1])
    for note in record["notes"]:
        print(f"note: {note}")
    print("wrote " + ", ".join(str(path) for path in written))
    return 0 if found.informative else NOT_INFORMATIVE


def _audit(options: argparse.Namespace) -> int:
    folder = options.run
    if not (folder / "results.json").is_file():
        raise ValueError(
            f"--run {folder} holds no results.json. Give the --out folder of a finished "
            "`jaxunlearn compare`."
        )
    _folder(folder, "--run")
    cache = _prepared_jax(options)
    from jaxunlearn import auditing, results
    from jaxunlearn.reporting import front

    finished = results.read(folder / "results.json")
    labels = None if options.methods is None else _labels(options.methods)
    settings = auditing.Settings(
        shadows=options.shadows,
        steps=options.steps,
        rows=options.rows,
        permutations=options.permutations,
    )
    told = f"auditing {finished.record['task']['words']} of {finished.record['task']['source']}"
    found = _told(
        options.quiet,
        told,
        lambda say: auditing.audit_comparison(
            finished, settings, methods=labels, data_dir=options.data_dir, cache=cache, say=say
        ),
    )
    found |= {"command": f"jaxunlearn audit {shlex.join(_audit_words(options))}"}
    print(front.audit_table(found))
    written = auditing.write(found, finished, folder)
    for note in found["notes"]:
        print(f"note: {note}")
    pages = [path for path in written if path.parent != folder]
    shown = [str(path) for path in written if path.parent == folder]
    shown += [f"{len(pages)} pages in {folder / 'pages'}"] if pages else []
    print("wrote " + ", ".join(shown))
    return 0 if found["status"] == "informative" else NOT_INFORMATIVE


def _labels(text: str) -> list[str]:
    from jaxunlearn import presets

    return [each.label for each in presets.parse_methods(text)]


def _audit_words(options: argparse.Namespace) -> list[str]:
    """The options that change what is computed, as words of a command line."""
    words = ["--run", str(options.run)]
    words += [] if options.methods is None else ["--methods", options.methods]
    for name in ("shadows", "steps", "rows", "permutations"):
        words += [f"--{name}", str(getattr(options, name))]
    return words


def _prepared_jax(options: argparse.Namespace) -> Any:
    """All cores, compiled programs on disk; returns the cache of trained ensembles, or None."""
    import jax

    from jaxunlearn.cache import Cache, default_root

    root = options.cache_dir or default_root()
    _use_all_cores(jax)
    if not options.no_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return None if options.no_cache else Cache(root / "models")


def _told(quiet: bool, first: str, run: Callable[[Any], Any]) -> Any:
    """run(say), with progress on standard error and warnings shown."""
    say = _Progress(sys.stderr, quiet)
    say(first, 0.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return run(say)
    finally:
        say.done()


_OF_CLASSIFIERS = ("model", "optimizer", "learning_rate", "batch_size", "epochs")
_USUAL_RANGE = "range:200:inf"  # of diabetes: the 29 % whose disease went on fastest
_OF_RATINGS = ("rank", "regularisation", "feedback", "sweeps")


def _is_of_ratings(source: str) -> bool:
    from jaxunlearn.data import is_rating_source

    return is_rating_source(source)


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuses options that were given a value and would have been ignored."""
    usual = parser().parse_args(["compare"])
    for name in names:
        if getattr(options, name) != getattr(usual, name):
            raise ValueError(f"--{name.replace('_', '-')} {why}.")


def _prepare_classifiers(options: argparse.Namespace, cache: Any) -> tuple[Any, Callable]:
    """(task, what runs it) of a comparison of classifiers, or of regressions."""
    from jaxunlearn import compare, data, presets

    where = f"is for recommenders, and {options.source} is classified"
    _refuse(options, _OF_RATINGS, f"{where}; leave it out, or give a source of ratings")
    recipe = presets.Recipe(*(getattr(options, name) for name in _OF_CLASSIFIERS))
    settings = compare.Settings(recipe, options.seeds, options.oracles, options.seed, options.rows)
    methods = presets.parse_methods(options.methods) if options.methods is not None else None
    source = data.load(options.source, data_dir=options.data_dir)
    if options.train_rows is not None:
        source = data.thinned(source, options.train_rows)
    if options.forget is None:
        options.forget = "class:3" if source.target is None else _USUAL_RANGE
    task = data.parse_task(source, options.forget)
    if not options.calibrate:
        _refuse(options, ("budget",), "is for --calibrate; give both or neither")
        return task, lambda say: compare.compare(task, methods, settings, cache=cache, say=say)

    def run(say: Any) -> Any:
        from jaxunlearn import calibration

        asked = compare.usual(task, recipe) if methods is None else methods
        found = calibration.calibrated(
            task, asked, compare.Settings(recipe, seed=options.seed, **calibration.SIZES),
            budget=options.budget, cache=cache, say=say,
        )  # fmt: skip
        made = compare.compare(task, found.methods, settings, cache=cache, say=say)
        return calibration.told(made, found)

    return task, run


def _prepare_ratings(options: argparse.Namespace, cache: Any) -> tuple[Any, Callable]:
    """(task, what runs it) of a comparison of recommenders; fits take seconds and are not kept."""
    from jaxunlearn import compare_ratings, data, rating_presets

    where = f"is for classifiers, and {options.source} is factorised"
    _refuse(options, _OF_CLASSIFIERS, f"{where}; use --rank, --regularisation, --sweeps")
    _refuse(options, ("calibrate", "budget", "train_rows"), f"{where}")
    methods = rating_presets.DEFAULT_METHODS if options.methods is None else options.methods
    methods = rating_presets.parse_methods(methods)
    source = data.load_ratings(options.source, data_dir=options.data_dir)
    feedback = source.kind if options.feedback is None else options.feedback
    recipe = rating_presets.Factorisation(
        options.rank, options.regularisation, feedback, options.sweeps
    )
    settings = compare_ratings.Settings(
        recipe, options.seeds, options.oracles, options.seed, options.rows
    )
    options.forget = "random:0.01" if options.forget is None else options.forget
    task = data.parse_rating_task(source, options.forget)
    compare_ratings.check_feedback(task, recipe)
    return task, lambda say: compare_ratings.compare(task, methods, settings, say=say)


def _use_all_cores(jax: Any) -> None:
    """One virtual device per core, so that ensembles of small networks use them all.

    Accelerators stay as they are, and so does a number of devices that was chosen elsewhere.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 1 and "xla_force_host_platform_device_count" not in flags:
        with contextlib.suppress(RuntimeError):  # JAX has started: the devices are what they are
            jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def _folder(path: Path, option: str = "--out") -> Path:
    """The output folder, made before anything costly begins."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} {path} is a file; give a folder.")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written to.")
    return path


def _command(options: argparse.Namespace) -> str:
    """The options that change what is computed, as a command line."""
    kind = _OF_RATINGS if _is_of_ratings(options.source) else _OF_CLASSIFIERS
    shown = (
        "source",
        "train_rows",
        "forget",
        "methods",
        "budget",
        *kind,
        "seeds",
        "oracles",
        "seed",
        "rows",
    )
    words = [
        f"--{name.replace('_', '-')} {shlex.quote(str(getattr(options, name)))}"
        for name in shown
        if getattr(options, name) is not None
    ]
    words += ["--calibrate"] if options.calibrate else []
    return "jaxunlearn compare " + " ".join(words)


class _Progress:
    """One line that is rewritten on a terminal, one line per stage elsewhere."""

    def __init__(self, stream: Any, quiet: bool):
        self.stream, self.quiet = stream, quiet
        self.rewrite = stream.isatty()

    def __call__(self, text: str, seconds: float) -> None:
        if self.quiet:
            return
        line = f"{seconds:6.1f} s  {text}"
        if self.rewrite:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + line[:width].ljust(width))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def done(self) -> None:
        if self.rewrite and not self.quiet:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self.stream.flush()
