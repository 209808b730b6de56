"""The comparisons behind BENCHMARKS.md, each into `OUT/NAME/results.json`.

    python -m experiments.comparisons          all of them (MNIST when its data are found)
    python -m experiments.comparisons --only random      one
    python -m experiments.comparisons --seeds 3 --oracles 4 --epochs 2 --out DIR       a smoke run

| name     | source          | forget      | models                                             |
|----------|-----------------|-------------|----------------------------------------------------|
| class    | digits          | class:3     | 8 originals, 32 oracles                            |
| subclass | digits:odd_even | subclass:3  | 8 originals, 32 oracles                            |
| random   | digits          | random:0.05 | 8 originals, 32 oracles                            |
| mnist    | mnist           | class:3     | 8 originals, 16 oracles; 5 epochs, parts <= 2000 rows |

Each is exactly what the `jaxunlearn compare` command in its record does: the default methods with
their presets, nothing read from a cache of models or of programs, so that the seconds are those of
a first run. The files are the command's `results.json` without what is listed per model and the
curves (a tenth of the size, small enough to be committed), and with date and processor.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import machine
from jaxunlearn import compare, presets, results
from jaxunlearn.data import load, parse_task, thinned

RESULTS = Path(__file__).parent / "results"
_BULK = ("per_model", "info", "curves")


class Comparison(NamedTuple):
    """One section of BENCHMARKS.md."""

    source: str  # as `--source`
    forget: str  # as `--forget`
    settings: compare.Settings = compare.Settings()
    train_rows: int | None = None  # as `--train-rows`


_DIGITS = compare.Settings(seeds=8)

COMPARISONS = {
    "class": Comparison("digits", "class:3", _DIGITS),
    "subclass": Comparison("digits:odd_even", "subclass:3", _DIGITS),
    "random": Comparison("digits", "random:0.05", _DIGITS),
    "mnist": Comparison(
        "mnist",
        "class:3",
        compare.Settings(presets.Recipe(epochs=5), seeds=8, oracles=16, rows=2000),
    ),
}


def command(comparison: Comparison, methods: str | None = None) -> str:
    """The `jaxunlearn compare` command line that asks for the same; quoted for a shell.

    Example:
        >>> command(COMPARISONS["class"])
        'jaxunlearn compare --source digits --forget class:3 --seeds 8'
        >>> command(COMPARISONS["mnist"])
        'jaxunlearn compare --source mnist --forget class:3 --epochs 5 --seeds 8 --oracles 16 --rows 2000'
    """  # noqa: E501
    words = ["jaxunlearn", "compare", "--source", comparison.source, "--forget", comparison.forget]
    words += ["--train-rows", str(comparison.train_rows)] if comparison.train_rows else []
    words += ["--methods", methods] if methods else []
    options, usual = _options(comparison.settings), _options(compare.Settings())
    for name, value in options.items():
        if value != usual[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _options(settings: compare.Settings) -> dict[str, Any]:
    names = ("seeds", "oracles", "seed", "rows")
    return dataclasses.asdict(settings.recipe) | {name: getattr(settings, name) for name in names}


def without_bulk(value: Any) -> Any:
    """A record without its lists of single models, its curves and the traces of the methods.

    Example:
        >>> without_bulk({"rows": [{"value": 1.0, "per_model": [1.0, 1.0]}], "curves": {}})
        {'rows': [{'value': 1.0}]}
    """
    if isinstance(value, dict):
        return {k: without_bulk(v) for k, v in value.items() if k not in _BULK}
    if isinstance(value, list):
        return [without_bulk(each) for each in value]
    return value


def run(comparison: Comparison, methods: str | None, data_dir: Path | None) -> results.Results:
    """One comparison, from nothing, with its command, date and processor in the record.

    Raises:
      FileNotFoundError: the data of the source are not on this machine.
    """
    source = load(comparison.source, data_dir=data_dir)
    if comparison.train_rows:
        source = thinned(source, comparison.train_rows)
    task = parse_task(source, comparison.forget)
    chosen = presets.parse_methods(methods) if methods else None
    found = compare.compare(task, chosen, comparison.settings, say=_say)
    facts = {
        "command": command(comparison, methods),
        "date": machine.today(),
        "machine": machine.description(),
    }
    return results.Results(without_bulk(found.record) | facts)


def _say(text: str, seconds: float) -> None:
    print(f"{seconds:7.1f} s  {text}", file=sys.stderr, flush=True)


def _shrunk(comparison: Comparison, options: argparse.Namespace) -> Comparison:
    """The comparison with the numbers that were given on the command line."""
    given = {name: getattr(options, name) for name in ("seeds", "oracles", "rows")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.epochs is not None:
        recipe = comparison.settings.recipe
        changes["recipe"] = dataclasses.replace(recipe, epochs=options.epochs)
    return comparison._replace(settings=dataclasses.replace(comparison.settings, **changes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparisons; 0, or 2 when one that was asked for by name has no data here."""
    parser = argparse.ArgumentParser(prog="python -m experiments.comparisons", allow_abbrev=False)
    add = parser.add_argument
    add("--only", choices=COMPARISONS, action="append", help="this one; may be repeated")
    add("--out", type=Path, default=RESULTS, help="folder of the results")
    add("--data-dir", type=Path, default=None, help="where data sets lie; or $JAXUNLEARN_DATA")
    add("--methods", default=None, help="instead of the default ones, as for `jaxunlearn compare`")
    for name in ("seeds", "oracles", "epochs", "rows"):
        add(f"--{name}", type=int, default=None, help="instead of what the comparison has")
    options = parser.parse_args(arguments)
    machine.use_all_cores()
    for name in options.only or COMPARISONS:
        comparison = _shrunk(COMPARISONS[name], options)
        print(f"{name}: {command(comparison, options.methods)}")
        try:
            found = run(comparison, options.methods, options.data_dir)
        except FileNotFoundError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            if options.only:
                return 2
            continue
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{found.record['headline']}\nwrote {results.write(found, folder / 'results.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
