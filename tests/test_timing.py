"""Seconds of a program: the first call apart, further ones only where they are cheap."""

import time

from jaxunlearn.timing import seconds_of


def test_the_first_call_is_not_what_is_told_where_others_can_be_had():
    calls = []

    def program():
        calls.append(None)
        time.sleep(0.2 if len(calls) == 1 else 0.01)
        return len(calls)

    out, seconds = seconds_of(program)
    assert out == 1 and len(calls) == 6
    assert 0.01 <= seconds < 0.15


def test_a_long_program_runs_once():
    calls = []

    def program():
        calls.append(None)
        time.sleep(1.05)

    assert seconds_of(program)[1] >= 1.05 and len(calls) == 1
