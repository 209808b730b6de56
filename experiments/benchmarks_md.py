"""Writes BENCHMARKS.md from the JSON files in `experiments/results/`, and from nothing else.

    python -m experiments.benchmarks_md             writes BENCHMARKS.md
    python -m experiments.benchmarks_md --check     exit status 1 if it is not what the files give

| file                      | becomes                                                        |
|---------------------------|----------------------------------------------------------------|
| `NAME/results.json`       | a section: what was asked, findings, scores, distances, floors |
| `ensemble.json`           | the section on many models as one program                      |
| `calibration.json`        | the section on what calibration buys, with its picture         |
| `curvature.json`          | the section on the price of a Fisher diagonal                  |
| `continual.json`          | the section on continual learning                              |
| `entangled.json`          | the section on a digit forgotten among its like                |
| `analytic.json`           | the section on deleting from analytic heads                    |
| `als.json`                | the section on recommenders: sweeps and deletions              |
| `kernel.json`             | the section on leaving rows out of kernel machines             |
| `autoencoder.json`        | the section on deleting people from a linear autoencoder       |
| `shards.json`             | the section on sharded training                                |
| `shadows.json`            | the section on the attack with shadow models                   |
| `audit_errors.json`       | the section on false alarms and power of the audits            |
| `auditor_coverage.json`   | the section on the auditors, audited                           |
| none                      | an error; no empty page is written                             |

The same files give the same bytes: no clock, no machine and no random number is read here. Numbers
are shown as in the table of `jaxunlearn compare` (`jaxunlearn.reporting.tables`), the sentences
under them follow from the records by rules, and an undefined number is the word "undefined".
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments import (
    audit_errors_section,
    auditor_coverage_section,
    calibration_section,
    continual_section,
    entangled_section,
    sections,
)
from experiments.benchmarks import (
    als_section,
    analytic_section,
    autoencoder_section,
    curvature_section,
    ensemble,
    kernel_section,
    shadows_section,
    shards_section,
)
from experiments.benchmarks.section import many_models
from experiments.comparisons import COMPARISONS, RESULTS
from experiments.records import Record, read_record
from jaxunlearn import results

BENCHMARKS = Path(__file__).resolve().parents[1] / "BENCHMARKS.md"

_INTRODUCTION = """\
# Benchmarks

Every number here is read from a file in `experiments/results/` by
`python -m experiments.benchmarks_md`; nothing is written by hand. `experiments/README.md` says
which command makes which file.

**Where settings come from.** The settings of the methods are rules in `jaxunlearn/presets.py` that
know the training recipe and the kind of task, and over them what proxies on digits chose
(`jaxunlearn/calibrated.py`, made by the run under "What calibration buys"): other requests of the
same kind and size, never the oracles of the request itself. Of a method without a setting within a
tenth of retraining the rule stands, set by hand. Methods on other data (MNIST) have what was chosen
on digits. Another setting may do better, and a method that fails here has failed at this setting,
on this network and on these data.

How to read the tables:

* *original*: models trained on everything; *oracle*: true retrainings on what is retained; further
  rows of oracles: retrainings by recipes that nobody would call different. Accuracy in % with half
  its 95 % interval over models; `forget_test` are test examples of the forgotten kind, `test` the
  other ones.
* *gap closed*, on forget data: 1 = as near to retraining as a retraining, 0 = as far as the
  original. *Collateral*: the largest distance from retraining on the other data, in recipe floors;
  up to 1 is what an innocent change of the recipe does. Both with 95 % intervals.
* *verdict* and *p*: an exact permutation test of the method's models against the oracles, at level
  5 % and not corrected for the number of methods: one perfect method in twenty is rejected.
* *time*: seconds of the method over seconds of `retrain`, all models of a row at once, compilation
  and the first call apart, medians of up to five runs (one where it takes longer than a second).
"""


# Files that become one section each: name -> (path -> record, record -> Markdown).
FURTHER: dict[str, tuple[Callable[[Path], Record], Callable[[Record], str]]] = {
    "calibration.json": (calibration_section.read, calibration_section.calibrated),
    "curvature.json": (curvature_section.read, curvature_section.curvature_price),
    "continual.json": (continual_section.read, continual_section.continual),
    "entangled.json": (entangled_section.read, entangled_section.entangled),
    "analytic.json": (analytic_section.read, analytic_section.analytic),
    "kernel.json": (kernel_section.read, kernel_section.kernels),
    "als.json": (als_section.read, als_section.alternating),
    "autoencoder.json": (autoencoder_section.read, autoencoder_section.autoencoder),
    "shards.json": (shards_section.read, shards_section.sharding),
    "shadows.json": (shadows_section.read, shadows_section.attacks),
    "audit_errors.json": (audit_errors_section.read, audit_errors_section.audit_errors),
    "auditor_coverage.json": (
        auditor_coverage_section.read,
        auditor_coverage_section.auditor_coverage,
    ),
}


def markdown(
    comparisons: Mapping[str, Record],
    benchmark: Record | None = None,
    further: Sequence[str] = (),
) -> str:
    """BENCHMARKS.md as text.

    Args:
      comparisons: name -> record of a comparison, in the order of the sections.
      benchmark: record of `experiments.benchmarks.ensemble`, or None.
      further: sections that stand at the end, as Markdown.

    Raises:
      ValueError: there is nothing to show.
    """
    if not comparisons and benchmark is None and not further:
        raise ValueError(
            "no results to tabulate: expected NAME/results.json or ensemble.json. Run "
            "`python -m experiments.comparisons` first."
        )
    blocks = [_INTRODUCTION.rstrip()]
    if comparisons:
        blocks.append(sections.overview(list(comparisons.values())))
    blocks += [sections.comparison(record) for record in comparisons.values()]
    blocks += [many_models(benchmark)] if benchmark else []
    blocks += further
    return "\n\n".join(blocks) + "\n"


def read(folder: Path) -> tuple[dict[str, Record], Record | None]:
    """(comparisons by name, benchmark or None) of a folder of results.

    The comparisons come in the order of `experiments.comparisons`, then unknown names by alphabet.

    Raises:
      ValueError: a file that is not what its name says, or of a newer schema.
    """
    found = {path.parent.name: path for path in folder.glob("*/results.json")}
    known = [name for name in COMPARISONS if name in found]
    names = known + sorted(set(found) - set(known))
    comparisons: dict[str, Record] = {name: results.read(found[name]).record for name in names}
    path = folder / "ensemble.json"
    return comparisons, _benchmark(path) if path.exists() else None


def read_further(folder: Path) -> list[str]:
    """The sections of the files of `FURTHER` that are in a folder of results.

    Raises:
      ValueError: a file that is not what its name says, or of another schema.
    """
    return [
        show(read_one(folder / name))
        for name, (read_one, show) in FURTHER.items()
        if (folder / name).exists()
    ]


def _benchmark(path: Path) -> Record:
    return read_record(path, ensemble.KIND, ensemble.SCHEMA, "experiments.benchmarks.ensemble")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the page; 2 when the results cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks_md", allow_abbrev=False)
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    add("--out", type=Path, default=BENCHMARKS, help="the page")
    add("--check", action="store_true", help="write nothing; 1 if the page is out of date")
    options = parser.parse_args(arguments)
    try:
        text = markdown(*read(options.results), read_further(options.results))
    except ValueError as error:
        print(f"benchmarks_md: {error}", file=sys.stderr)
        return 2
    if options.check:
        if options.out.exists() and options.out.read_text(encoding="utf-8") == text:
            return 0
        print(f"{options.out.name} is not what {options.results.name} gives.", file=sys.stderr)
        return 1
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
