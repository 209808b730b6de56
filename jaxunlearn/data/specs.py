"""Forgetting tasks from text, `KIND:VALUE[:option=value...]`, as the command line takes them.

Text is data; nothing of it is evaluated. `parse_task(source, task.name)` gives a task back.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxunlearn.data.regression import range_task
from jaxunlearn.data.selections import (
    class_task,
    group_task,
    index_task,
    random_task,
    subclass_task,
)
from jaxunlearn.data.sources import Source
from jaxunlearn.data.tasks import Task
from jaxunlearn.naming import did_you_mean

_FORMS = {
    "class": "class:3 or class:3,5",
    "subclass": "subclass:3 or subclass:3:column=fine",
    "random": "random:0.05 or random:0.05:seed=1",
    "group": "group:column=value",
    "ids": "ids:1,2,3",
}
_REGRESSION_FORMS = {
    "range": "range:200:350 or range:200:inf",
    **{kind: _FORMS[kind] for kind in ("random", "group", "ids")},
}
_OPTIONS = {"subclass": ("column",), "random": ("seed",)}


def parse_task(source: Source, spec: str) -> Task:
    """A task from text: `KIND:VALUE[:option=value...]`. Text is data; nothing of it is evaluated.

    | text                             | task                                                  |
    |----------------------------------|-------------------------------------------------------|
    | `class:3`, `class:3,cat`         | `class_task`, by number or name                       |
    | `subclass:3`, `subclass:3:column=fine` | `subclass_task`                                 |
    | `random:0.05`, `random:0.05:seed=1`    | `random_task`; the seed is 0 unless given       |
    | `group:user=7`, `group:user=7,9` | `group_task`                                          |
    | `ids:4,7`                        | `index_task`                                          |
    | `range:200:350`, `range:200:inf` | `range_task`, of a regression                         |

    A regression has no `class` and no `subclass`.

    Each takes `:duplicates=forget` or `:duplicates=keep` too.

    Raises:
      ValueError: unknown kind or option (names the nearest), a value out of range or of the wrong
        form.

    Example:
      >>> from jaxunlearn.data.sources import digits
      >>> parse_task(digits(), "random:0.05").name
      'random:0.05:seed=0'
    """
    kind, *fields = spec.split(":")
    forms = _FORMS if source.target is None else _REGRESSION_FORMS
    if kind not in forms:
        raise ValueError(f"task '{spec}': no kind '{kind}'. {did_you_mean(kind, forms)}")
    values_given = 2 if kind == "range" else 1
    if len(fields) < values_given or not all(fields[:values_given]):
        raise ValueError(f"task '{spec}': expected {forms[kind]}.")
    options: dict[str, Any] = {}
    allowed = (*_OPTIONS.get(kind, ()), "duplicates")
    for field in fields[values_given:]:
        option, equals, value = field.partition("=")
        if not equals or option not in allowed:
            raise ValueError(
                f"task '{spec}': no option '{option}'. {did_you_mean(option, allowed)}"
            )
        options[option] = value
    body = fields[0]
    values = body.split(",")
    if kind == "range":
        low, high = (read_number(spec, end, float, forms) for end in fields[:2])
        return range_task(source, low, high, **options)
    if kind == "class":
        return class_task(source, values, **options)
    if kind == "subclass":
        return subclass_task(source, values, **options)
    if kind == "random":
        seed = read_number(spec, options.pop("seed", "0"), int, _FORMS)
        return random_task(source, read_number(spec, body, float, _FORMS), seed=seed, **options)
    if kind == "ids":
        return index_task(
            source, [read_number(spec, value, int, _FORMS) for value in values], **options
        )
    column, equals, value = body.partition("=")
    if not equals:
        raise ValueError(f"task '{spec}': expected {_FORMS[kind]}.")
    if column not in source.label_names:
        return group_task(
            source, column, [read_number(spec, v, int, _FORMS) for v in value.split(",")], **options
        )
    return group_task(source, column, value.split(","), **options)


def read_number(spec: str, text: str, kind: Callable[[str], Any], forms: Mapping[str, str]) -> Any:
    """kind(text), or a `ValueError` that says what form the specification has."""
    try:
        return kind(text)
    except ValueError:
        noun = {int: "an integer", float: "a number"}[kind]
        raise ValueError(
            f"task '{spec}': expected {noun}, got '{text}'; the form is "
            f"{forms[spec.split(':')[0]]}."
        ) from None
