"""Trainings that are killed (SIGKILL) at the worst moments and resumed, by nnU-Net's own command."""

import json
import re

import pytest

from nnunet_ext.nnunet.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow


def checkpoints(fold):
    """Every file under a checkpoint's name, whole: reading a damaged one raises."""
    return {file.name: read_checkpoint(file) for file in fold.glob("checkpoint_*.pth")}


def left_overs(fold):
    return sorted(file.name for file in fold.iterdir() if file.suffix in (".base", ".partial"))


def check_finished(training, printed):
    found = checkpoints(training.fold)
    assert set(found) == {"checkpoint_final.pth", "checkpoint_best.pth"}
    assert found["checkpoint_final.pth"]["current_epoch"] == 3
    assert left_overs(training.fold) == []
    summary = json.loads((training.fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert "Validation complete" in printed
    assert len(found["checkpoint_final.pth"]["logging"]["train_losses"]) == 3


def within(training, epoch):
    """Whether the log's last epoch is this one, and its losses are still to come."""
    begun = training.log.rpartition("Epoch ")[2] if training.fold.is_dir() else ""
    return begun.startswith(f"{epoch} \n") and "train_loss" not in begun


@pytest.mark.parametrize(
    "written", [".base", pytest.param(".partial", marks=pytest.mark.long)], ids=["nnU-Net's part", "ours"]
)
def test_killed_while_a_checkpoint_is_written(training, written):
    """Killed while writing the second checkpoint_latest: the first must be complete, and training resumes from it."""

    def moment():
        latest = training.fold / "checkpoint_latest.pth"
        return latest.is_file() and latest.with_name(latest.name + written).is_file()

    training.kill_when(moment)
    before = checkpoints(training.fold)
    assert "checkpoint_latest.pth" in before
    assert left_overs(training.fold)
    epoch = before["checkpoint_latest.pth"]["current_epoch"]
    assert epoch in (1, 2)
    printed = training.go_on()
    epochs = re.findall(r"Epoch (\d)", printed)
    assert epochs == [str(number) for number in range(epoch, 3)]
    check_finished(training, printed)


@pytest.mark.long
def test_killed_within_an_epoch(training):
    training.kill_when(lambda: within(training, 1))
    assert checkpoints(training.fold)["checkpoint_latest.pth"]["current_epoch"] == 1
    printed = training.go_on()
    assert re.findall(r"Epoch (\d)", printed) == ["1", "2"]
    check_finished(training, printed)


@pytest.mark.long
def test_killed_before_the_first_checkpoint(training):
    training.kill_when(lambda: within(training, 0))
    assert checkpoints(training.fold) == {}
    printed = training.go_on()
    assert re.findall(r"Epoch (\d)", printed) == ["0", "1", "2"]
    check_finished(training, printed)


@pytest.mark.long
def test_killed_while_it_validates(training):
    validation = training.fold / "validation"
    training.kill_when(lambda: any(validation.glob("*.nii.gz")) and not (validation / "summary.json").is_file())
    assert not (validation / "summary.json").is_file()
    assert "checkpoint_final.pth" in checkpoints(training.fold)
    printed = training.go_on()
    assert "Epoch " not in re.sub(r"Epoch time", "", printed)
    check_finished(training, printed)
