"""Pieces of Markdown that every section uses: a table, a paragraph, where a number comes from."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """A Markdown table: the first column to the left, others to the right, unless `words`.

    Example:
        >>> print(grid(["", "n"], [["a|b", "1"]]))
        |  | n |
        | --- | ---: |
        | a\\|b | 1 |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    rule = ["---", *["---" if words else "---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:]))


def paragraph(text: str, indent: str = "") -> str:
    """`text` in lines of at most 100 characters; words are kept whole."""
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def origin(record: Mapping[str, Any]) -> str:
    """Date, seconds, processor and versions: never the name of the machine."""
    made_on, versions = record["machine"], record["versions"]
    listed = ", ".join(
        f"{n} {version}" for n, version in versions.items() if n not in ("machine", "code")
    )
    return (
        f"Made on {record['date']} in {record['seconds']:.0f} s, compilation included, on "
        f"{made_on['cores']} cores of {made_on['cpu']} ({made_on['system']}; JAX devices: "
        f"{versions['machine']}); {listed}."
    )
