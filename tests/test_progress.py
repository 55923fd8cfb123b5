"""Bars in a terminal, and lines from time to time in a log file."""

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from tablet_hf.progress import Bars


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(clock):
    def start(is_terminal=False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, soft_wrap=True)
        return Bars(TextColumn("{task.description}"), console=console, unit="frames", get_time=clock)

    return start


def lines(bars):
    return bars.console.file.getvalue().splitlines()


def test_a_file_gets_a_line_at_once_and_then_one_every_half_minute(start, clock):
    with start() as bars:
        task = bars.add_task("sub-01", total=None)
        assert lines(bars) == ["sub-01 ..."]
        for clock.seconds in range(1, 70):
            bars.update(task, completed=clock.seconds, total=1200)
    assert lines(bars) == ["sub-01 ...", "sub-01: 30 of 1,200 frames", "sub-01: 60 of 1,200 frames"]


def test_many_short_tasks_do_not_fill_it(start, clock):
    with start() as bars:
        for number in range(100):
            clock.seconds = number / 2
            bars.remove_task(bars.add_task(f"sub-{number}", total=None))
    assert lines(bars) == ["sub-0 ...", "sub-60 ..."]


def test_fields_of_a_task_are_shown(start, clock):
    with start() as bars:
        task = bars.add_task("scans", total=None, rate="")
        clock.seconds = 31
        bars.update(task, completed=2, total=9, rate="7.5 frames/s")
    assert lines(bars) == ["scans ...", "scans: 2 of 9 frames, 7.5 frames/s"]


def test_a_terminal_gets_bars_alone(start, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with start(is_terminal=True) as bars:
        task = bars.add_task("sub-01", total=None)
        clock.seconds = 31
        bars.update(task, completed=5, total=9)
    text = bars.console.file.getvalue()
    assert "sub-01" in text
    assert "..." not in text
    assert "5 of 9" not in text
