"""Sphinx builds these pages from MyST Markdown and from the docstrings.

python -m sphinx -W -b html docs docs/_build/html
"""

import itertools
import re
import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = _project["name"]
release = _project["version"]
author = "the jaxunlearn authors"
copyright = "2026, the jaxunlearn authors"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_parser"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"
# A docstring's 100 columns fit the page without a scroll bar.
html_theme_options = {"light_css_variables": {"code-font-size": "72%"}}

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88


def is_prose(paragraph):
    """Whether a paragraph is flush-left text: no equation, table, list, section or example."""
    lines = paragraph.split("\n")
    flush_left = all(line == line.lstrip() for line in lines)
    return flush_left and not re.match(r"[|=*>+-]|\d+\.|\w+:$", lines[0])


def prose(paragraph):
    """Plain text with `code` as reStructuredText: code becomes literal, all else is escaped."""
    parts = re.split(r"`([^`]+)`", " ".join(paragraph.split()))
    parts[::2] = [re.sub(r"([\\*|_`])", r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"\\ ``{code}``\\ " for code in parts[1::2]]
    return "".join(parts)


def as_written(app, what, name, obj, options, lines):
    """Show a docstring as its author sees it: flush-left paragraphs as prose, the rest verbatim.

    The docstrings are laid out for an editor and for `help()`: aligned equations, tables, indented
    Args. A markup language would need every |x|^2 and theta_ escaped, and would break the build
    over a missing blank line; plain text never does.
    """
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", "\n".join(lines))]
    lines[:] = [f".. rubric:: {name}", ""] if what == "module" else []
    for is_text, run in itertools.groupby(filter(str.strip, paragraphs), key=is_prose):
        if is_text:
            lines += [line for paragraph in run for line in (prose(paragraph), "")]
        else:
            block = "\n\n".join(run).split("\n")
            lines += [".. code-block:: text", "", *("   " + line for line in block), ""]


def undescribed_field(app, what, name, obj, skip, options):
    """Leave out "Alias for field number 3"; the comments of a NamedTuple are in its source."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field") else None


def setup(app):
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-skip-member", undescribed_field)
