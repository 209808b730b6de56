"""A small problem that every method's own tests share: see `tests/suite/cases.py`."""

import pytest

from tests.suite import cases


@pytest.fixture(scope="session")
def case() -> cases.Case:
    return cases.dict_case()


@pytest.fixture(scope="session")
def single() -> cases.Case:
    """All float32, so that closed forms can be compared closely."""
    made = cases.tuple_case()
    return cases.Case(made.model, made.params, cases.request(batch_size=32))
