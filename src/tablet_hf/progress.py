"""Progress bars for a terminal, and a line from time to time for a log file."""

import math
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

__all__ = ["Bars"]


class Bars(Progress):
    """Bars that disappear when they end. A console that is a file or a pipe gets plain lines instead.

    These are one line when the first task begins, then one every `SECONDS_BETWEEN_LINES` at most.
    """

    SECONDS_BETWEEN_LINES = 30

    def __init__(self, *columns: ProgressColumn, console: Console, unit: str = "", **settings: Any):
        self._unit, self._last_line = unit, -math.inf
        is_terminal = console.is_interactive or console.is_jupyter
        super().__init__(*columns, console=console, transient=True, disable=not is_terminal, **settings)

    def add_task(self, *arguments: Any, **keywords: Any) -> TaskID:
        task = super().add_task(*arguments, **keywords)
        self._print_line(task)
        return task

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        now = self.get_time()
        if not self.disable or now - self._last_line < self.SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        task = self._tasks[task_id]
        done = "" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f} {self._unit}".rstrip()
        text = ", ".join(filter(None, [done, *task.fields.values()]))
        self.console.print(f"{task.description}: {text}" if text else f"{task.description} ...")
