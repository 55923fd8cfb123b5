"""Bars that tell how far something is, for commands and the demo."""

import math
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

__all__ = ["Bars"]


class Bars(Progress):
    """Bars that disappear when they end; where no one watches, a plain line from time to time in their place.

    A console that is a file or a pipe gets one line when the first task begins, and then at most one each
    `SECONDS_BETWEEN_LINES`: what is done, and any text in the task's fields.
    """

    SECONDS_BETWEEN_LINES = 30

    def __init__(self, *columns: ProgressColumn, console: Console, unit: str = "", **settings: Any):
        self._unit, self._last_line = unit, -math.inf
        is_watched = console.is_interactive or console.is_jupyter
        super().__init__(*columns, console=console, transient=True, disable=not is_watched, **settings)

    def add_task(self, *arguments: Any, **keywords: Any) -> TaskID:
        task = super().add_task(*arguments, **keywords)
        self._tell_in_a_line(task)
        return task

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell_in_a_line(task_id)

    def _tell_in_a_line(self, task_id: TaskID) -> None:
        now = self.get_time()
        if not self.disable or now - self._last_line < self.SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        task = self._tasks[task_id]
        done = "" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f} {self._unit}".rstrip()
        said = ", ".join(filter(None, [done, *task.fields.values()]))
        self.console.print(f"{task.description}: {said}" if said else f"{task.description} ...")
