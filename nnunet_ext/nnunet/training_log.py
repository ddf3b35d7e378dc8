"""What nnU-Net's training logs tell: curves, epoch times, memory, time of a predicted scan."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*?)\s*$")
_EPOCH = re.compile(r"Epoch (\d+)$")
_BUDGET = re.compile(r"(\d+) epochs, (\d+) training and \d+ validation iterations")
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
        epochs: By number: train_loss, val_loss, pseudo_dice (mean of labels), seconds, memory_gb, where logged.
        scan_seconds: Between one scan of the final validation and the next.
        iterations: Training iterations an epoch, where logged (our trainers do).
    """

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    scan_seconds: list[float] = field(default_factory=list)
    iterations: int | None = None

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs, counted from 1, that have a value, and the values."""
        pairs = [(number + 1, values[key]) for number, values in sorted(self.epochs.items()) if key in values]
        return [number for number, _ in pairs], [value for _, value in pairs]

    def median(self, key: str) -> float:
        values = self.curve(key)[1]
        return float(np.median(values)) if values else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        values = self.curve("memory_gb")[1]
        return max(values) if values else float("nan")


def read_training(fold: Path) -> TrainingLog:
    """Reads the logs of a fold, oldest first: where a training went on or began anew, the later values stand."""
    log = TrainingLog()
    for path in sorted(fold.glob("training_log_*.txt"), key=_written):
        _read_file(path, log)
    return log


def _written(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.stem)]


def _read_file(path: Path, log: TrainingLog) -> None:
    epoch: dict[str, float] = {}
    last_scan: datetime | None = None
    scans: list[float] = []
    for line in path.read_text(errors="replace").splitlines():
        stamped = _LINE.match(line)
        if not stamped:
            continue
        time, text = stamped.groups()
        if started := _EPOCH.match(text):
            number = int(started[1])
            for later in [n for n in log.epochs if n > number]:
                del log.epochs[later]  # of a training that was given up
            epoch = log.epochs.setdefault(number, {})
        elif text.startswith("predicting "):
            now = datetime.fromisoformat(time)
            if last_scan is not None:
                scans.append((now - last_scan).total_seconds())
            last_scan = now
        elif budget := _BUDGET.search(text):
            log.iterations = int(budget[2])
        elif dice := _DICE.match(text):
            values = [float(a or b) for a, b in _DICE_VALUE.findall(dice[1])]
            there = [value for value in values if np.isfinite(value)]
            if there:
                epoch["pseudo_dice"] = float(np.mean(there))
        else:
            for key, pattern in _VALUES.items():
                if found := pattern.match(text):
                    epoch[key] = float(found[1])
    if scans:
        log.scan_seconds = scans
