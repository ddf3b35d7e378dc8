"""How far a training is, read from nnU-Net's training log and evaluation."""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.crossval.completion import read_json

_DEFAULT_EPOCHS = 1000  # nnU-Net's
_RECENT_EPOCHS = 10
_LOG_BYTES = 32_768
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Progress:
    """State of a training.

    Attributes:
        epoch: Finished epochs.
        epochs: Epochs in all.
        dice: Mean pseudo Dice of the last epoch; after the training the validation's mean Dice.
        seconds_per_epoch: Median of the last epochs.
        validated: Validation cases that were predicted.
    """

    epoch: int = 0
    epochs: int = _DEFAULT_EPOCHS
    dice: float | None = None
    seconds_per_epoch: float | None = None
    validated: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Of the training, without the validation."""
        if self.seconds_per_epoch is None:
            return None
        return (self.epochs - self.epoch) * self.seconds_per_epoch


def read_progress(fold: Path, trainer: str, since: float = 0.0) -> Progress:
    """Reads the newest log of a fold.

    Args:
        fold: nnU-Net's folder of the training.
        trainer: Its name; some of nnU-Net's carry the number of epochs in it.
        since: A log that was last written before this time (s since the epoch) does not count.
    """
    summary = read_json(fold / "validation" / "summary.json")
    validation = None if summary is None else float(summary["foreground_mean"]["Dice"])
    logs = [file for file in fold.glob("training_log_*.txt") if file.stat().st_mtime >= since]
    if not logs:
        return Progress(dice=validation)
    log = max(logs, key=lambda file: file.stat().st_mtime)
    text = _ends(log)
    epochs = _epochs(text, trainer)
    begun = [int(n) for n in re.findall(r": Epoch (\d+) *$", text, re.M)]
    times = [float(seconds) for seconds in re.findall(r": Epoch time: ([\d.]+) s", text)]
    dice = re.findall(r": Pseudo dice \[(.*)\]", text)
    complete = "Training done." in text or "predicting " in text
    return Progress(
        epoch=epochs if complete else (begun[-1] if begun else 0),
        epochs=epochs,
        dice=validation if complete and validation is not None else _mean(dice[-1]) if dice else None,
        seconds_per_epoch=statistics.median(times[-_RECENT_EPOCHS:]) if times else None,
        validated=len(re.findall(r": predicting ", text)),
    )


def _ends(log: Path) -> str:
    """Beginning and end of a log that may be long."""
    with log.open("rb") as file:
        first = file.read(_LOG_BYTES)
        size = log.stat().st_size
        file.seek(max(len(first), size - _LOG_BYTES))
        return (first + file.read()).decode(errors="replace")


def _epochs(text: str, trainer: str) -> int:
    ours = re.search(r": (\d+) epochs, \d+ training and ", text)
    named = re.search(r"_(\d+)epochs?\b", trainer)
    found = ours or named
    return int(found.group(1)) if found else _DEFAULT_EPOCHS


def _mean(values: str) -> float | None:
    numbers = [float(number) for number in _NUMBER.findall(values)]  # NaN: a class that no case had
    return statistics.fmean(numbers) if numbers else None


def duration(seconds: float | None) -> str:
    """For people: 1:02:03, or a dash."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
