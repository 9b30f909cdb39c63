"""How far a search is, and when it ends."""

import pytest

from jpq_jax.cli.progress import TimeLeft, lines


def test_time_left_is_that_of_the_rounds_to_come():
    now = [0.0]
    left = TimeLeft([10, 90, 100], lambda: now[0])
    assert str(left) == ""
    left.update(1, 0, 3)
    now[0] = 100.0
    left.update(1, 2, 3)  # half of the weights
    assert str(left) == "about 15:00 left"  # of five rounds of 200 s
    now[0] = 160.0
    assert str(left) == "about 14:00 left"
    now[0] = 3000.0
    assert str(left) == ""  # it was wrong
    left.update(5, 0, 3)
    now[0] = 3010.0
    left.update(5, 1, 3)  # too little to tell
    assert str(left) == ""
    left.update(5, 2, 3)
    assert str(left) == "about 0:10 left"
    left.update(7, 3, 3)
    assert str(left) == ""
    hours = TimeLeft([1], lambda: now[0])
    hours.update(1, 0, 2)  # of a search that counts otherwise
    now[0] += 3600
    hours.update(1, 1, 2)
    assert str(hours) == "about 9:00:00 left"
    TimeLeft([]).update(1, 0, 0)


def test_in_a_pipe_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    report = lines(TimeLeft([1] * 100, lambda: now[0]), lambda: now[0])
    for done in range(100):
        now[0] += 0.5
        report(1, done, 100)
    printed = capsys.readouterr()
    assert not printed.out
    said = printed.err.splitlines()
    assert len(said) == 10
    assert said[0] == "jpq: round 1: 1 of 100 leaves"
    assert said[3] == "jpq: round 1: 31 of 100 leaves, about 3:54 left"
