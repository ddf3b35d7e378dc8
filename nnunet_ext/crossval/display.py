"""Shows a run: a live table on a terminal, lines elsewhere."""

import os
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from nnunet_ext.crossval.runner import Row, Status
from nnunet_ext.crossval.time_left import progress_of_row, progress_of_trainings, seconds_left
from nnunet_ext.nnunet.training_log import Progress, duration

_STYLES = {Status.RUNNING: "bold", Status.FINISHED: "green", Status.FAILED: "bold red", Status.BLOCKED: "red"}
_ORDER = [Status.FAILED, Status.RUNNING, Status.STOPPED, Status.WAITING, Status.BLOCKED, Status.FINISHED]
_LINES_AROUND = 6
_REFRESH_SECONDS = 2.0


class LineDisplay:
    """One line per step that starts, with the time, and one for the result of each training and for each failure."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._rows: Sequence[Row] = ()

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def note(self, row: Row, text: str = "") -> None:
        if row.status is not Status.FINISHED or row.node.fold is not None:
            line = f"{time.strftime('%H:%M:%S')} {row.status.value:<8} {row.node.name}{self._details(row)}"
            self._console.print(line, markup=False)
        if text:
            self._console.print(text, markup=False)

    def _details(self, row: Row) -> str:
        if row.status is Status.FINISHED:
            dice = progress_of_row(row).dice
            return "" if dice is None else f": validation Dice {dice:.3f}{self._time_left()}"
        if row.status is not Status.RUNNING:
            return ""
        where = f" on {row.slot.name}" if row.slot is not None and row.node.on_gpu else ""
        begun = sum(each.status not in (Status.WAITING, Status.BLOCKED) for each in self._rows)
        count = f" (step {begun} of {len(self._rows)})" if self._rows else ""
        return f"{where}{count}{self._time_left()}"

    def _time_left(self) -> str:
        seconds = seconds_left(self._rows)
        return "" if seconds is None else f", {duration(seconds)} left for the trainings"


class TableDisplay(LineDisplay):
    """A table that is updated within its context, with failures above it."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._shown = 0.0

    def __enter__(self) -> "TableDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        if time.monotonic() >= self._shown + _REFRESH_SECONDS or not any(r.status is Status.RUNNING for r in rows):
            self._shown = time.monotonic()
            self._live.update(progress_table(rows, self._console.height - _LINES_AROUND), refresh=True)

    def note(self, row: Row, text: str = "") -> None:
        if text:
            super().note(row, text)
        self._shown = 0.0  # shows the change at once


def make_display() -> LineDisplay:
    """A table if this process writes to a terminal."""
    return TableDisplay() if Console().is_terminal and os.environ.get("TERM") != "dumb" else LineDisplay()


def progress_table(rows: Sequence[Row], height: int) -> Table:
    """Failed, running and waiting steps, as many as fit, and the number of finished ones."""
    finished = sum(row.status is Status.FINISHED for row in rows)
    progress = progress_of_trainings(rows)
    seconds = seconds_left(rows, progress)
    left = "" if seconds is None else f", {duration(seconds)} left for the trainings"
    table = Table(title=f"{finished} of {len(rows)} steps finished{left}", title_justify="left", expand=False)
    for column in ("step", "state", "on", "epoch", "Dice", "time left"):
        table.add_column(column, no_wrap=True)
    for row in sorted(rows, key=lambda r: _ORDER.index(r.status))[: max(height, 1)]:
        table.add_row(*_cells(row, progress.get(row.node.name)), style=_STYLES.get(row.status))
    return table


def _cells(row: Row, progress: Progress | None) -> list[str]:
    cells = [row.node.name, row.status.value, row.slot.name if row.slot is not None else "", "", "", ""]
    if progress is None:
        return cells
    epoch, dice, left = progress_cells(progress)
    return [*cells[:3], epoch, dice, left] if row.status is Status.RUNNING else [*cells[:4], dice, ""]


def progress_cells(progress: Progress) -> list[str]:
    """Epoch, Dice and time left as text."""
    epoch = f"{progress.epoch}/{progress.epochs}" if progress.begun else "starting"
    if progress.validated:
        of = f" of {progress.cases}" if progress.cases is not None else ""
        epoch = f"validation, case {progress.validated}{of}"
    dice = "" if progress.dice is None else f"{progress.dice:.3f}"
    return [epoch, dice, "" if progress.validated else duration(progress.seconds_left)]
