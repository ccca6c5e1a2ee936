"""Small things that every command says: counts, and how far it is."""

from __future__ import annotations

import pytest

from avssl import progress
from avssl.progress import beyond, shown, steps
from avssl.words import counted, none_of


@pytest.mark.parametrize(("number", "noun", "plural", "text"), [
    (1, "item", "", "1 item"), (0, "item", "", "0 items"), (12_000, "class", "classes", "12,000 classes"),
    (1, "class", "classes", "1 class"),
])  # fmt: skip
def test_counts_agree_with_their_nouns(number, noun, plural, text):
    assert counted(number, noun, plural) == text


def test_none_of_one_is_none():
    assert none_of(1, "item") == "no item" and none_of(3, "class", "classes") == "none of the 3 classes"


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_library_call_prints_nothing(clock, capsys):
    with steps("embedding", 10) as step:
        clock[0] += 60
        step(5)
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_a_line_every_few_seconds_with_rate_and_time_left(clock, capsys):
    with shown(), steps("embedding", 3000) as step:
        for done in (0, 100, 500, 600, 1500):
            step(done)
            clock[0] += 2.5
    assert capsys.readouterr() == (
        "",
        "embedding 500/3,000  100/s  left 0:25\nembedding 1,500/3,000  150/s  left 0:10\n",
    )


def test_a_resumed_job_is_timed_by_what_it_does_itself(clock, capsys):
    with shown(), steps("embedding", 3000) as step:
        step(2000)
        clock[0] += 10
        beyond(step, 2000)(100)
    assert capsys.readouterr().err == "embedding 2,100/3,000  10/s  left 1:30\n"


def test_a_short_job_and_a_job_inside_another_are_silent(clock, capsys):
    with shown(), steps("short", 10) as step:
        step(0)
        with steps("inner", 10) as inner:
            inner(0)
            clock[0] += 60
            inner(10)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_after_the_command(clock, capsys):
    with shown():
        pass
    test_a_library_call_prints_nothing(clock, capsys)
