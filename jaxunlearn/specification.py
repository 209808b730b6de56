"""Methods as a person writes them on one line, read as data.

    ssd,neggrad_plus(alpha=0.9,epochs=3)    ->    names, each with the arguments that are changed

The text has the form of Python and is parsed by its parser, but nothing of it is ever evaluated.

| in the text                                       | what happens                        |
|---------------------------------------------------|-------------------------------------|
| a name, a name with arguments by name             | read                                |
| a number, a string, True, False, None as value    | read                                |
| any other value, an argument by place, an address | `ValueError`                        |
| an unknown name                                   | `ValueError` with the nearest one   |
| the same entry or the same argument twice         | `ValueError`                        |
| text that is no such list, or very long           | `ValueError`                        |
"""

import ast
import warnings
from collections.abc import Collection
from typing import Any, NamedTuple

from jaxunlearn.naming import nearest


class Specified(NamedTuple):
    """One method of the text."""

    label: str  # as written, for tables
    name: str
    changes: dict[str, Any]  # arguments that differ from the preset


def parse(text: str, known: Collection[str]) -> list[Specified]:
    """The entries of a list such as `ssd,neggrad_plus(alpha=0.9,epochs=3)`.

    Args:
      text: at most 10,000 characters.
      known: names that there are.

    Raises:
      ValueError: as the table of the module says.

    Example:
      >>> parse("ssd(alpha=5)", ["ssd"])
      [Specified(label='ssd(alpha=5)', name='ssd', changes={'alpha': 5})]
    """
    unreadable = ValueError(
        f"methods: cannot read {_short(text)}. Write names separated by commas, with arguments in "
        "brackets: ssd,neggrad_plus(alpha=0.9,epochs=3)."
    )
    if len(text) > _LONGEST:
        raise unreadable
    try:
        with warnings.catch_warnings():  # of the parser, about odd escapes and the like
            warnings.simplefilter("ignore")
            tree = ast.parse(f"[{text}]", mode="eval").body
            ast.unparse(tree)  # of what is nested too deeply, here and not in a message below
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise unreadable from None
    if not isinstance(tree, ast.List):
        raise unreadable
    found = [_specified(node, known) for node in tree.elts]
    if not found:
        raise ValueError("methods: expected at least one method.")
    for each in found:
        times = sum(each[1:] == other[1:] for other in found)
        if times > 1:
            raise ValueError(f"methods: {each.label} is listed {times} times.")
    return found


_LONGEST = 10_000  # characters of a specification; no honest one comes near


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _specified(node: ast.expr, known: Collection[str]) -> Specified:
    call = node if isinstance(node, ast.Call) else None
    target = call.func if call else node
    written = ast.unparse(node)
    if not isinstance(target, ast.Name) or (call and call.args):
        raise ValueError(
            f"methods: {_short(written)} is not a method; arguments are given by name, "
            "as in ssd(alpha=5)."
        )
    if target.id not in known:
        raise ValueError(f"method: {nearest(target.id, known)}")
    changes = {}
    for keyword in call.keywords if call else ():
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            value = ...
        if keyword.arg is None or not isinstance(value, int | float | str | None):
            raise ValueError(
                f"methods: {_short(written)}: a value must be a number, a string, True, False "
                "or None."
            )
        if keyword.arg in changes:
            raise ValueError(f"methods: {_short(written)}: {keyword.arg} is given twice.")
        changes[keyword.arg] = value
    return Specified(written, target.id, changes)
