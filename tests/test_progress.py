"""Bars, and the lines in their place where nobody watches."""

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from tablet_hf.progress import Bars


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


class TestBars:
    @pytest.fixture
    def clock(self):
        return Clock()

    def bars(self, clock, is_terminal=False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, soft_wrap=True)
        return Bars(TextColumn("{task.description}"), console=console, unit="frames", get_time=clock)

    def told(self, bars):
        return bars.console.file.getvalue()

    def test_a_file_gets_a_line_at_once_and_then_one_in_half_a_minute(self, clock):
        with self.bars(clock) as bars:
            task = bars.add_task("sub-01", total=None)
            assert self.told(bars) == "sub-01 ...\n"
            for clock.seconds in range(1, 100):
                bars.update(task, completed=clock.seconds, total=1200)
        assert self.told(bars).splitlines() == [
            "sub-01 ...",
            "sub-01: 30 of 1,200 frames",
            "sub-01: 60 of 1,200 frames",
            "sub-01: 90 of 1,200 frames",
        ]

    def test_many_short_tasks_do_not_fill_it(self, clock):
        with self.bars(clock) as bars:
            for number in range(100):
                clock.seconds = number / 2
                bars.remove_task(bars.add_task(f"sub-{number}", total=None))
        assert self.told(bars).splitlines() == ["sub-0 ...", "sub-60 ..."]

    def test_what_else_a_task_says(self, clock):
        with self.bars(clock) as bars:
            task = bars.add_task("scans", total=None, rate="")
            clock.seconds = 31
            bars.update(task, completed=2, total=9, rate="7.5 frames/s")
        assert self.told(bars) == "scans ...\nscans: 2 of 9 frames, 7.5 frames/s\n"

    def test_a_terminal_gets_bars_alone(self, clock, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        with self.bars(clock, is_terminal=True) as bars:
            task = bars.add_task("sub-01", total=None)
            clock.seconds = 31
            bars.update(task, completed=5, total=9)
        assert "sub-01" in self.told(bars)
        assert "..." not in self.told(bars)
        assert "5 of 9" not in self.told(bars)
