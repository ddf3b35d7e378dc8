"""Progress is read from the logs that nnU-Net writes."""

import json
import os

import pytest

from nnunet_ext.crossval.display import progress_cells
from nnunet_ext.nnunet.training_log import Progress, duration, read_progress

EPOCH = """2026-01-01 10:00:00.000002: Epoch {epoch}
2026-01-01 10:00:00.000003: Current learning rate: 0.01
2026-01-01 10:00:05.000001: train_loss 0.1234
2026-01-01 10:00:05.000002: val_loss 0.0123
2026-01-01 10:00:05.000003: Pseudo dice [np.float32(0.5), np.float32(nan), np.float32(0.25), np.float32(1e-04)]
2026-01-01 10:00:05.000004: Epoch time: {seconds} s
"""
OURS = "2026-01-01 10:00:00.0: nnunet_ext 0.1.0, X: 20 epochs, 2 training and 1 validation iterations per epoch\n"


@pytest.fixture
def log(tmp_path):
    def write(text, name="training_log_2026_1_1_10_00_00.txt"):
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_between_epochs(log):
    text = OURS + "".join(EPOCH.format(epoch=epoch, seconds=5.0 + epoch) for epoch in range(3))
    progress = read_progress(log(text), "SASANTrainer")
    assert (progress.epoch, progress.epochs, progress.seconds_per_epoch) == (2, 20, 6.0)
    assert progress.dice == pytest.approx((0.5 + 0.25 + 1e-4) / 3)
    assert progress.seconds_left == 18 * 6.0
    assert progress_cells(progress) == ["2/20", "0.250", "0:01:48"]


@pytest.mark.parametrize(
    ("trainer", "epochs"), [("nnUNetTrainer", 1000), ("nnUNetTrainer_250epochs", 250), ("nnUNetTrainer_1epoch", 1)]
)
def test_nnunets_trainers(log, trainer, epochs):
    assert read_progress(log(EPOCH.format(epoch=0, seconds=3)), trainer).epochs == epochs


def test_a_long_log_is_read_at_its_ends(log):
    text = OURS + "".join(EPOCH.format(epoch=epoch, seconds=2) for epoch in range(900))
    assert read_progress(log(text), "X").epoch == 899
    assert read_progress(log(text), "X").epochs == 20


def test_validation_and_end(log):
    text = (
        OURS
        + EPOCH.format(epoch=19, seconds=5)
        + "2026-11-01 10:00:00.000000: Training done.\n2026-11-01 10:00:00.000000: predicting a\n"
        + "2026-11-01 10:01:00.000000: predicting b\n"
    )
    folder = log(text)
    assert progress_cells(read_progress(folder, "X")) == ["validation, case 2", "0.250", ""]
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.75}}))
    assert read_progress(folder, "X").dice == 0.75


def test_validation_cases_are_counted_of_all_in_the_split(log):
    split = "2026-01-01 10:00:00.0: This split has 19 training and 5 validation cases.\n"
    assert progress_cells(read_progress(log(split + "2026-01-01 10:00:00.0: predicting a\n"), "X"))[0] == (
        "validation, case 1 of 5"
    )


def test_a_resumed_training_has_the_true_epoch_and_budget(log):
    """Until its first epoch has begun no number is shown; the budget is that of the log in which it stands."""
    folder = log(OURS + EPOCH.format(epoch=7, seconds=5))
    os.utime(folder / "training_log_2026_1_1_10_00_00.txt", (1000, 1000))
    assert progress_cells(read_progress(folder, "X", since=2000)) == ["starting", "", "-"]
    log("2026-01-01 10:00:00.000002: Epoch 6\n", "training_log_2026_1_1_11_00_00.txt")
    assert progress_cells(read_progress(folder, "X", since=2000)) == ["6/20", "", "-"]
    assert read_progress(folder, "X").epoch == 6


def test_logs_of_earlier_starts_do_not_count(log):
    folder = log(EPOCH.format(epoch=7, seconds=5))
    os.utime(folder / "training_log_2026_1_1_10_00_00.txt", (1000, 1000))
    assert read_progress(folder, "X", since=2000) == Progress()
    log(EPOCH.format(epoch=8, seconds=5), "training_log_2026_1_1_11_00_00.txt")
    assert read_progress(folder, "X", since=2000).epoch == 8


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (59.6, "0:01:00"), (90061, "25:01:01")])
def test_durations(seconds, text):
    assert duration(seconds) == text
