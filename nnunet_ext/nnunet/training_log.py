"""nnU-Net's training logs: learning curves, epoch times, memory, and the progress of a running training."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from nnunet_ext.nnunet.json_files import read_json_if_whole

_DEFAULT_EPOCHS = 1000  # nnU-Net's
_RECENT_EPOCHS = 10
_LOG_BYTES = 32_768
_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*?)\s*$")
_EPOCH = re.compile(r"Epoch (\d+)$")
_BUDGET = re.compile(r"(\d+) epochs, (\d+) training and \d+ validation iterations")
_SPLIT = re.compile(r"This split has \d+ training and (\d+) validation cases")
_EPOCHS_IN_NAME = re.compile(r"_(\d+)epochs?\b")
_NUMBER = r"([-+\d.einfa]+)"
_VALUES = {
    "train_loss": re.compile(rf"train_loss {_NUMBER}"),
    "val_loss": re.compile(rf"val_loss {_NUMBER}"),
    "seconds": re.compile(rf"Epoch time: {_NUMBER} s"),
    "memory_gb": re.compile(rf"Peak memory: {_NUMBER} GB"),
}
_DICE = re.compile(r"Pseudo dice \[(.*)\]")
_DICE_VALUE = re.compile(r"np\.float\d+\(([^)]*)\)|([-+\d.e]+|nan)")


@dataclass
class TrainingLog:
    """The training of one fold.

    Attributes:
        epochs: Values of each epoch by its number: train_loss, val_loss, pseudo_dice (mean over labels), seconds,
            memory_gb, where logged.
        scan_seconds: Seconds between one scan of the final validation and the next.
        iterations: Training iterations per epoch, where logged (our trainers do).
        planned_epochs: Epochs of the whole training, where logged (our trainers do).
        validated: Scans of the final validation whose prediction has begun.
        cases: Validation cases of the fold, where logged (nnU-Net does).
        complete: Whether the last epoch has ended.
    """

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    scan_seconds: list[float] = field(default_factory=list)
    iterations: int | None = None
    planned_epochs: int | None = None
    validated: int = 0
    cases: int | None = None
    complete: bool = False

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs, counted from 1, that have a value, and the values."""
        pairs = [(number + 1, values[key]) for number, values in sorted(self.epochs.items()) if key in values]
        return [number for number, _ in pairs], [value for _, value in pairs]

    def median(self, key: str, recent: int = 0) -> float:
        """Median of a value over all epochs, or over the `recent` last ones; NaN without any."""
        values = self.curve(key)[1][-recent:]
        return float(np.median(values)) if values else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        values = self.curve("memory_gb")[1]
        return max(values) if values else float("nan")


@dataclass(frozen=True)
class Progress:
    """Progress of a training.

    Attributes:
        epoch: Finished epochs.
        epochs: Epochs of the whole training.
        dice: Mean pseudo Dice of the last epoch; after the training the validation's mean Dice.
        seconds_per_epoch: Median over the last epochs.
        validated: Validation cases whose prediction has begun.
        cases: Number of validation cases, where known.
        begun: Whether an epoch or the validation has begun; until then a resumed training's epoch is unknown.
    """

    epoch: int = 0
    epochs: int = _DEFAULT_EPOCHS
    dice: float | None = None
    seconds_per_epoch: float | None = None
    validated: int = 0
    cases: int | None = None
    begun: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the training ends, without the validation."""
        if self.seconds_per_epoch is None:
            return None
        return (self.epochs - self.epoch) * self.seconds_per_epoch


def read_training(fold: Path) -> TrainingLog:
    """Reads all logs of a fold, oldest first: where a training was resumed or restarted, the later values count."""
    log = TrainingLog()
    for path in sorted(fold.glob("training_log_*.txt"), key=_written):
        _read_lines(path.read_text(errors="replace").splitlines(), log)
    return log


def read_progress(fold: Path, trainer: str, since: float = 0.0) -> Progress:
    """Reads the progress of a training from its logs and its evaluation.

    Args:
        fold: nnU-Net's folder of the training.
        trainer: The trainer's name; some of nnU-Net's carry the number of epochs in it.
        since: Of logs last written before this time (seconds since 1970), only the number of planned epochs counts.
    """
    summary = read_json_if_whole(fold / "validation" / "summary.json")
    validation = None if summary is None else float(summary["foreground_mean"]["Dice"])
    log, earlier = TrainingLog(), TrainingLog()
    for file in sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime):
        _read_lines(_ends(file).splitlines(), log if file.stat().st_mtime >= since else earlier)
    named = _EPOCHS_IN_NAME.search(trainer)
    # A validation alone (nnUNetv2_train --val) does not log the training's budget.
    planned = log.planned_epochs or earlier.planned_epochs
    epochs = planned or (int(named[1]) if named else _DEFAULT_EPOCHS)
    dice = log.curve("pseudo_dice")[1]
    seconds = log.median("seconds", _RECENT_EPOCHS)
    return Progress(
        epoch=epochs if log.complete else max(log.epochs, default=0),
        epochs=epochs,
        dice=validation if validation is not None and (log.complete or not log.epochs) else dice[-1] if dice else None,
        seconds_per_epoch=None if np.isnan(seconds) else seconds,
        validated=log.validated,
        cases=log.cases,
        begun=bool(log.epochs) or log.complete,
    )


def duration(seconds: float | None) -> str:
    """Formats seconds for people: 1:02:03, or a dash for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _written(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.stem)]


def _ends(log: Path) -> str:
    """The beginning and the end of a log that may be long."""
    with log.open("rb") as file:
        first = file.read(_LOG_BYTES)
        size = log.stat().st_size
        file.seek(max(len(first), size - _LOG_BYTES))
        return (first + file.read()).decode(errors="replace")


def _read_lines(lines: Iterable[str], log: TrainingLog) -> None:
    """Adds the lines of one log file to a training."""
    epoch: dict[str, float] = {}
    last_scan: datetime | None = None
    scans: list[float] = []
    log.validated, log.complete = 0, False
    for line in lines:
        stamped = _LINE.match(line)
        if not stamped:
            continue
        time, text = stamped.groups()
        if started := _EPOCH.match(text):
            number = int(started[1])
            for later in [n for n in log.epochs if n > number]:
                del log.epochs[later]  # they belong to a training that was abandoned
            epoch = log.epochs.setdefault(number, {})
        elif text.startswith("predicting "):
            now = datetime.fromisoformat(time)
            if last_scan is not None:
                scans.append((now - last_scan).total_seconds())
            last_scan = now
            log.validated += 1
            log.complete = True
        elif text.startswith("Training done."):
            log.complete = True
        elif split := _SPLIT.match(text):
            log.cases = int(split[1])
        elif budget := _BUDGET.search(text):
            log.planned_epochs, log.iterations = int(budget[1]), int(budget[2])
        elif dice := _DICE.match(text):
            values = [float(a or b) for a, b in _DICE_VALUE.findall(dice[1])]
            there = [value for value in values if np.isfinite(value)]  # NaN: a class that no case had
            if there:
                epoch["pseudo_dice"] = float(np.mean(there))
        else:
            for key, pattern in _VALUES.items():
                if found := pattern.match(text):
                    epoch[key] = float(found[1])
    if scans:
        log.scan_seconds = scans
