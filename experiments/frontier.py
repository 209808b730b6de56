"""The picture of what each budget buys, `docs/images/frontier.png`, from `calibration.json`.

    python -m experiments.frontier

One panel a request: gap closed on forget data (up) against the largest collateral (across), both on
the request itself, of the settings that proxies chose within each budget.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import calibration_section
from experiments.comparisons import RESULTS
from experiments.records import Record
from jaxunlearn.reporting.drawing import DPI, drawing
from jaxunlearn.reporting.labels import Point, place_labels

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "frontier.png"
_COLOURS = ("#CC79A7", "#E69F00", "#009E73", "#0072B2")  # one a budget, the smallest first
_MARKERS = ("v", "s", "o", "D")
_INK = "#1a1a1a"
_LOWEST = 0.4  # gap closed below which nothing is drawn


def draw(record: Record, path: Path) -> Path:
    """Writes the picture; 1600 pixels wide, a panel for each request of the record."""
    tasks, budgets = record["tasks"], record["budgets"]
    with drawing(1600, 640) as figure:
        width = 0.9 / len(tasks)
        for i, (name, task) in enumerate(tasks.items()):
            axes = figure.add_axes((0.055 + i * (width + 0.02), 0.15, width - 0.02, 0.72))
            axes.set_xscale("symlog", linthresh=1, linscale=0.9)
            axes.set_xlim(-0.45, 40)
            axes.set_ylim(_LOWEST, 1.03)
            axes.set_xticks([0, 1, 3, 10, 30], ["0", "1", "3", "10", "30"])
            axes.xaxis.minorticks_off()
            axes.axvline(task.get("limit", record["limit"]), color=_INK, lw=1, ls="--")
            axes.grid(color="#ececec")
            points, drawn = [], set()
            for k, budget in enumerate(budgets):
                role = f"best within {100 * budget:g} %"
                for row in task["rows"]:
                    gap, kept = row["gap_closed"], row["collateral"]
                    if role not in row["as"] or not gap or not kept or row["label"] in drawn:
                        continue  # the smallest budget that has it counts
                    drawn.add(row["label"])
                    if gap["value"] < _LOWEST or kept["value"] > 40:
                        continue
                    colour, marker = _COLOURS[k], _MARKERS[k]
                    axes.plot([kept["value"]] * 2, [gap["low"], gap["high"]], color=colour, lw=1)
                    axes.scatter(kept["value"], gap["value"], s=70, color=colour, marker=marker,
                                 zorder=4, label=f"{100 * budget:g} %")  # fmt: skip
                    where = kept["value"], gap["value"]
                    points.append(Point(row["method"], *where, colour, marker))
            place_labels(axes, points, size=11, colour=_INK)
            axes.set_title(f"{name}: {task['words']}", fontsize=13)
            axes.set_xlabel("collateral, recipe floors (dashed: the limit)", fontsize=11)
            if i == 0:
                axes.set_ylabel("gap closed on forget data", fontsize=11)
        shown = dict(zip(budgets, zip(_COLOURS, _MARKERS, strict=True), strict=True))
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], ls="", color=c, marker=m, label=f"within {100 * b:g} % of retraining")
            for b, (c, m) in shown.items()
        ]
        figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=11, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws; 2 where there is nothing to draw from."""
    parser = argparse.ArgumentParser(prog="python -m experiments.frontier", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture")
    options = parser.parse_args(arguments)
    try:
        record = calibration_section.read(options.results / "calibration.json")
    except (ValueError, OSError) as error:
        print(f"frontier: {error}", file=sys.stderr)
        return 2
    print(f"wrote {draw(record, options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
