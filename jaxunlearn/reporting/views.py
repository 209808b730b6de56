"""What a record is about, as far as its report differs: the main metric, the attacks, the whole.

A comparison of classifiers measures accuracy, one of recommenders an error or a ranking. The record
says so in three optional fields; a record without them is one of classifiers.

| field     | holds                                                                               |
|-----------|-------------------------------------------------------------------------------------|
| `column`  | the fields of `Column`: the metric in the first columns of the table, and its scale |
| `attacks` | the fields of `Attacks`: what the membership section says and tabulates             |
| `whole`   | names of metrics that have one value for a row, not one for every part              |
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Column(NamedTuple):
    """The metric that fills the first columns, and how its numbers are written."""

    metric: str = "accuracy"  # key in the scores of a row
    title: str = "accuracy"
    unit: str = "%"  # after the title; "" where there is none
    scale: float = 100.0  # stored value times this is what is shown
    digits: int = 1
    limit: float | None = 1.0  # largest value there can be; None: there is no such
    words: str = "The first columns are accuracies"  # begins the legend of the table
    premise: str = ""  # what verdicts mean by accuracy, where it is another number

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


class Attacks(NamedTuple):
    """The membership section: the words under the curves, and tables."""

    words: str = (
        "Mean ROC of the loss attack: forgotten training examples against held-out ones. Black is "
        "the oracle, which never saw either; dotted is guessing. A curve on either side of the "
        "oracle's tells something about the forget data."
    )
    tables: Any = (  # (title, ((score, measure, heading), ...)) each
        (
            "Attack by attack",
            (
                ("loss", "auc", "loss: AUC"),
                ("loss", "accuracy", "loss: accuracy"),
                ("loss", "tpr", "loss: TPR at FPR 0.1"),
                ("confidence", "auc", "confidence: AUC"),
                ("entropy", "auc", "entropy: AUC"),
            ),
        ),
    )


def column(record: Mapping[str, Any]) -> Column:
    """The main metric of a record.

    Example:
        >>> column({}).heading, column({"column": {"title": "RMSE", "unit": ""}}).heading
        ('accuracy, %', 'RMSE')
    """
    return Column(**record.get("column", {}))


def attacks(record: Mapping[str, Any]) -> Attacks:
    """The membership section of a record."""
    return Attacks(**record.get("attacks", {}))


def whole(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics of a row as a whole.

    Example:
        >>> whole({})
        ('tug_of_war',)
    """
    return tuple(record.get("whole", ("tug_of_war",)))
