"""Names of files for rows: safe in every file system, no two alike.

    "ssd(alpha=5)"  ->  pages/ssd-alpha-5.html

A label is text that somebody typed: it may hold separators, be as long as it likes, or differ from
another only in letter case. A name holds nothing but letters, digits, "-", "_" and ".".
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape

from .badges import link
from .reading import Record

PAGES = "pages"  # folder of the pages, beside the report
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names of devices on Windows
_LONGEST = 60  # characters of a name, without its ending


def file_names(labels: Sequence[str]) -> list[str]:
    """A name for the page of each label: letters, digits, "-", "_" and ".", no two alike.

    Args:
        labels: any text, repeated or not.

    Returns:
        As many names, without folder and ending, of at most 60 characters. No name is that of a
        device, begins with a dot or holds a separator; names differ in more than letter case. A
        label that is safe already, and the first of its kind, keeps its letters.

    Example:
        >>> file_names(["ssd", "ssd(alpha=5)", "../../etc/passwd", "SSD"])
        ['ssd', 'ssd-alpha-5', 'etc-passwd', 'ssd-2']
    """
    taken: set[str] = set()
    names = []
    for label in labels:
        plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"\.{2,}|[^a-z0-9._-]+", "-", plain).strip("-._")
        if not stem or _RESERVED.match(stem):
            stem = f"row-{stem}".rstrip("-")
        if len(stem) > _LONGEST:
            digest = hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()[:8]
            stem = f"{stem[: _LONGEST - 9].rstrip('-._')}-{digest}"
        name, turn = stem, 1
        while name in taken:
            turn += 1
            name = f"{stem[: _LONGEST - 1 - len(str(turn))]}-{turn}"
        taken.add(name)
        names.append(name)
    return names


def page_names(audit: Record) -> list[str | None]:
    """The file of each row's page in the folder of pages; None for the oracles, the reference."""
    names = file_names([row["label"] for row in audit["rows"]])
    return [
        None if row["role"] == "oracle" else f"{name}.html"
        for row, name in zip(audit["rows"], names, strict=True)
    ]


def linked(audit: Record) -> Iterator[tuple[Record, str]]:
    """Every row with its label as markup: a link to its page where it has one."""
    for row, name in zip(audit["rows"], page_names(audit), strict=True):
        yield row, link(f"{PAGES}/{name}", row["label"]) if name else escape(row["label"])
