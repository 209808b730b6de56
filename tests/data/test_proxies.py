"""Proxies are other requests of the same kind and size, and never touch the request's own rows."""

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.data import proxies


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def forgotten(task):
    return set(task.columns("train", "forget")["id"].tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.class_task(data.digits(), 3),
        lambda: data.class_task(data.digits(), (3, 5)),
        lambda: data.subclass_task(data.digits("odd_even"), 3),
        lambda: data.group_task(data.digits("loop"), "fine", 3),
        lambda: data.random_task(data.digits(), 0.05, seed=0),
        lambda: data.index_task(data.digits(), data.digits().train["id"][:7]),
        lambda: data.parse_task(data.load("diabetes"), "range:200:inf"),
        lambda: data.parse_task(data.load("diabetes"), "range:100:130"),
    ],
    ids=["class", "classes", "subclass", "group", "random", "ids", "top", "middle"],
)
def test_proxies_are_of_the_kind_and_leave_the_request_alone(make):
    task = make()
    others = proxies(task, 3)
    assert len({proxy.digest for proxy in others} | {task.digest}) == 4
    for proxy in others:
        assert proxy.source.digest == task.source.digest
        assert not forgotten(proxy) & forgotten(task)
        ratio = len(forgotten(proxy)) / len(forgotten(task))
        assert 0.8 < ratio < 1.25
        assert set(proxy.train_parts) == set(task.train_parts)


def test_sub_classes_come_from_the_same_label():
    for proxy in proxies(data.subclass_task(data.digits("odd_even"), 3), 9):
        assert set(proxy.columns("train", "forget")["fine"]) <= {1, 5, 7, 9}


def test_there_are_as_many_as_there_can_be(digits):
    assert len(proxies(data.class_task(digits, 3), 100)) == 9


def test_the_seed_decides_which(digits):
    task = data.random_task(digits, 0.05, seed=0)
    first, again, other = (proxies(task, 1, seed=s)[0].digest for s in (0, 0, 1))
    assert first == again != other


def test_groups_of_the_nearest_size_come_first(digits):
    task = data.group_task(data.digits("loop"), "fine", 3)
    sizes = np.bincount(task.source.train["fine"])
    chosen = [int(p.name.split("=")[1]) for p in proxies(task, 9)]
    gaps = [abs(int(sizes[c]) - int(sizes[3])) for c in chosen]
    assert gaps == sorted(gaps)


def test_copies_are_treated_as_in_the_request(digits):
    task = data.class_task(digits, 3, duplicates="keep")
    assert all(p.name.endswith("duplicates=keep") for p in proxies(task, 2))


def test_what_cannot_be_done_is_said(digits):
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        proxies(data.class_task(digits, 3), 0)
    everything_but_one = data.class_task(digits, range(9))
    with pytest.raises(ValueError, match="no other request like 'class:0,1,2,3,4,5,6,7,8'"):
        proxies(everything_but_one)
