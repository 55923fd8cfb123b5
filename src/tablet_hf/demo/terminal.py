"""Telling about a demo while it runs: bars that disappear with their stage, sentences that stay, and the clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tablet_hf.demo.results import RESULT_COLUMNS, DemoResult, next_command, result_rows, verdict
from tablet_hf.progress import Bars

__all__ = ["OnProgress", "Terminal"]

OnProgress = Callable[[int, int], None]
"""Is told the work done and the work in all."""


class Terminal:
    """Attributes: `seconds`, what each finished stage took by the clock."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, emoji=False)
        self.seconds: dict[str, float] = {}

    def say(self, sentence: str) -> None:
        self.console.print(escape(sentence))

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[OnProgress]:
        """A bar for one stage, which says nothing when it is done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        start = time.perf_counter()
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, in_all: bars.update(task, completed=done, total=in_all)
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def conclude(self, result: DemoResult) -> None:
        """The table of results, the verdict, where things lie, and what to type next."""
        table = Table(title=f"{len(result.split.held_out)} people held out", title_justify="left")
        for column in RESULT_COLUMNS:
            table.add_column(column)
        for row in result_rows(result.methods, result.chance):
            table.add_row(*row)
        self.console.print(table)
        self.say(verdict(result.methods, result.chance))
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        self.say(f"It took {sum(self.seconds.values()):.0f} s: {stages}.")
        self.say(f"Open this page: {result.page}")
        self.say(f"Type next:      {next_command(result.model, result.people[result.split.held_out[0]].scan)}")
