"""Tasks from text: the same task, or the form that was expected."""

import pytest

from jaxunlearn.data import (
    Task,
    class_task,
    group_task,
    index_task,
    parse_task,
    random_task,
    subclass_task,
)
from tests.data.cases import SOURCE, TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_name_gives_its_task_back(name):
    task = TASKS[name]()
    again = parse_task(SOURCE, task.name)
    assert task.name == again.name == name
    assert task.digest == again.digest
    assert task.describe() == again.describe()


def test_text_and_functions_say_the_same():
    for text, task in (
        ("class:high,low", class_task(SOURCE, (0, 2))),
        ("subclass:d", subclass_task(SOURCE, 3)),
        ("subclass:0:column=y", subclass_task(SOURCE, 0, column="y")),
        ("group:fine=a,c", group_task(SOURCE, "fine", [0, 2])),
        ("group:user=3,1", group_task(SOURCE, "user", [1, 3])),
        ("random:0.1", random_task(SOURCE, 0.1, seed=0)),
        ("random:1e-1:seed=5", random_task(SOURCE, 0.1, seed=5)),
        ("ids:1004,1001,1004", index_task(SOURCE, [1001, 1004])),
    ):
        parsed = parse_task(SOURCE, text)
        assert isinstance(parsed, Task)
        assert parsed.digest == task.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clas:3", "no kind 'clas'. Did you mean 'class'"),
        ("", "no kind ''. Known: class, subclass, random, group, ids"),
        ("class", "expected class:3 or class:3,5"),
        ("class:", "expected class:3"),
        ("class:42", "no class 42: they are numbered 0 to 2"),
        ("class:1:seed=3", "no option 'seed'. Known: duplicates"),
        ("random:1.5", r"in \[0, 1\), got 1.5"),
        ("random:nan", r"in \[0, 1\), got nan"),
        ("random:lots", "expected a number, got 'lots'; the form is random:0.05"),
        ("random:0.1:sede=1", "no option 'sede'. Did you mean 'seed'"),
        ("random:0.1:seed=x", "expected an integer, got 'x'"),
        ("group:user", "expected group:column=value"),
        ("group:user=x", "expected an integer, got 'x'; the form is group"),
        ("ids:1001,__import__('os')", "expected an integer, got '__import__"),
        ("ids:1001;2", "expected an integer, got '1001;2'"),
    ],
)
def test_text_that_is_no_task_is_refused_with_the_form_or_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse_task(SOURCE, text)
