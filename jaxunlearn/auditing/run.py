"""The full suite of audits over a finished comparison: from its record to `audit.json`.

    results.json -> the same models again -> Bench -> one exact test per row -> audit.json, pages

The models of a comparison are made again (`remade`) and every group is measured under equal
conditions (`bench`): originals, oracles, the oracles of innocent recipes, every method, and the
planted groups whose answer is known (`planted`). The groups pass one at a time, so that memory does
not grow with the number of methods. Each is compared with the oracles by one permutation test over
all audits at once (`judging`, `jaxunlearn.audit.evidence`).

The planted groups audit the audits: where one that must be flagged is not, or the other way round,
the record says so and so does the front page. A comparison that says nothing (base at chance, no
oracle) is not audited, and neither is one whose oracles differ from freshly trained ones: then the
reference itself is in doubt.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import audit, compare
from jaxunlearn.auditing import planted, remade
from jaxunlearn.auditing.bench import Bench
from jaxunlearn.auditing.judging import Book, Row, Settings
from jaxunlearn.cache import Cache
from jaxunlearn.publishing import publish_text
from jaxunlearn.reporting.report import command as report_command
from jaxunlearn.results import Results, plain, sealed, unsealed

SCHEMA = 1
KIND = "jaxunlearn audit"


def audit_comparison(
    finished: Results,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    methods: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    cache: Cache | None = None,
    say: compare.Say = lambda text, seconds: None,
) -> dict[str, Any]:
    """The record of an audit: what `audit.json` holds.

    Args:
      finished: the comparison.
      settings: of the audits.
      methods: labels of rows; None: all of them.
      data_dir: as for `data.load`.
      cache: where trained ensembles are kept.
      say: progress, called with a text and the seconds since the start.

    Returns:
      Plain data; see `jaxunlearn.reporting.reading` for its fields.

    Raises:
      ValueError: a comparison of recommenders or of a regression, data that are not those of the
        comparison, models that cannot be made again.
      TooFew: so few models that nothing could be flagged.

    Cost: the models of the comparison (from the cache, but for the methods), 2 x seeds planted
    ones, three short trainings of every model, and (1 + methods) x 2 x shadows trainings or
    unlearnings of the shadow models.
    """
    start = time.perf_counter()

    def progress(text: str) -> None:
        say(text, time.perf_counter() - start)

    record = finished.record
    task = remade.task_of(record, data_dir=data_dir)
    made = remade.settings_of(record)
    specified = remade.methods_of(record, methods)
    if finished.status != "informative":
        reason = finished.status.removeprefix("not informative: ")
        return _nothing(record, settings, f"the comparison itself says nothing ({reason})")
    least = audit.smallest_p_value(made.seeds, made.oracles)
    if least > settings.level:
        raise audit.TooFew(
            f"audit: {made.seeds} models against {made.oracles} oracles cannot give p below "
            f"{least:.2g}, so nothing could be flagged at level {settings.level:g}. Compare anew "
            "with more --seeds and --oracles."
        )
    network = compare.network_of(task.source, made.recipe)
    bench = Bench(network, task, made, rows=settings.rows, steps=settings.steps)
    book = Book(bench, settings, made.seed)

    def groups() -> Iterator[tuple[str, str, str, str | None, bool, Any]]:
        for each in compare.ensembles_of(
            network, task, specified, made, cache=cache, progress=progress, timed=False
        ):
            paired = each.role == "method" and each.facts["method"] not in _FROM_NOTHING
            words = _WORDS.get(each.role, "")
            yield each.label, each.role, words, _EXPECTED.get(each.role), paired, each.params
        for group in planted.planted(
            network, task, made.recipe, originals, seeds=made.seeds, seed=made.seed,
            cache=cache, progress=progress,
        ):  # fmt: skip
            paired = group.label == "last layer masked"
            yield group.label, "control", group.words, group.expected, paired, group.params

    originals = None
    for label, role, words, expected, paired, params in groups():
        if role == "original":
            originals = params
            progress("learning what to steer by")
            bench.learn_steering(params)
        progress(f"auditing {label}")
        measured = bench(params)
        if role != "control":
            remade.check_models(record, label, bench.accuracies(measured))
        book.add(Row(label, role, words, expected, paired, measured))
    doubt = book.doubt()
    if doubt:
        return _nothing(record, settings, doubt)
    shadows = None
    if settings.shadows and task.train_parts["forget"].size >= 2:
        from jaxunlearn.auditing.shadows import shadow_lira

        progress(f"training {2 * settings.shadows} shadow models")
        shadows = shadow_lira(
            task, specified, network=network, recipe=made.recipe, pairs=settings.shadows,
            seed=made.seed, cache=cache, progress=progress, resamples=settings.resamples,
        )  # fmt: skip
    progress("writing it down")
    return plain(
        _head(record, settings, "informative", time.perf_counter() - start)
        | book.told()
        | {"shadows": shadows}
    )


_FROM_NOTHING = ("retrain", "blind_model")
_WORDS = {
    "original": "trained on everything; nothing was forgotten",
    "oracle": "true retrainings on what is retained: the reference",
    "recipe": "true retrainings by a recipe that nobody would call different",
}
_EXPECTED = {"original": planted.FLAGGED}


def _head(
    record: Mapping[str, Any], settings: Settings, status: str, seconds: float
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "status": status,
        "run": {"results": "results.json", "digest": digest(record)},
        "task": {key: record["task"][key] for key in ("name", "words", "description", "source")},
        "settings": dataclasses.asdict(settings) | {"seed": record["settings"]["seed"]},
        "comparison": {
            "settings": record["settings"],
            "command": report_command(record),
        },
        "versions": compare.versions(),
        "metrics": dict(audit.METRIC_VERSIONS),
        "seconds": seconds,
    }


def digest(record: Mapping[str, Any]) -> str:
    """sha256 of a comparison's record, so that an audit can be told from one of another run."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _nothing(record: Mapping[str, Any], settings: Settings, reason: str) -> dict[str, Any]:
    """The record of an audit that cannot say anything, with the reason."""
    empty = {"audits": {}, "measures": {}, "curves": {}, "floors": {}, "rows": [], "notes": []}
    head = _head(record, settings, f"not informative: {reason}", 0.0)
    return plain(head | empty | {"shadows": None})


def read(path: Path) -> dict[str, Any]:
    """The record in an `audit.json`.

    Raises:
      ValueError: not JSON, not an audit, of a newer schema than this version understands, or edited
        since it was written; the field is named.
    """
    return unsealed(path, kind=KIND, schema=SCHEMA, words="the record of a jaxunlearn audit")


def write(
    found: Mapping[str, Any],
    finished: Results,
    folder: Path,
    *,
    publish: Callable[[Path, str], Path] = publish_text,
) -> list[Path]:
    """Writes `audit.json`, `report.html` with its front page, and a page for each row.

    Each file appears whole or not at all; pages of an earlier audit of the same folder are replaced
    and those of rows that are gone are removed.

    Args:
      found: of `audit_comparison`.
      finished: the comparison.
      folder: of the run.

    Returns:
      The paths written.
    """
    from jaxunlearn.reporting import page_names, pages, report

    text, report_page = sealed(found), report.html(finished.record, found)
    made = {folder / name: page for name, page in pages.pages(found).items()}
    (folder / page_names.PAGES).mkdir(exist_ok=True)  # from here on all is made, and is written
    written = [publish(path, page) for path, page in made.items()]
    written = [
        publish(folder / "audit.json", text),
        publish(folder / "report.html", report_page),
        *written,
    ]
    for stale in (folder / page_names.PAGES).glob("*.html"):
        if stale not in made:
            stale.unlink()
    return written
