"""The time left for a run's trainings, and what a run without a terminal prints of it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.display import LineDisplay
from nnunet_ext.crossval.gpus import Slot
from nnunet_ext.crossval.graph import Node
from nnunet_ext.crossval.runner import Row, Status
from nnunet_ext.crossval.time_left import seconds_left

START = "2026-01-01 10:00:00.0: nnunet_ext 0.1.0, X: 20 epochs, 2 training and 1 validation iterations per epoch\n"
EPOCH = "2026-01-01 10:00:00.0: Epoch {}\n2026-01-01 10:00:01.0: Epoch time: {} s\n"


@pytest.fixture
def training(tmp_path):
    def make(trainer, fold, status, place="", epochs=0, seconds=1.0):
        folder = tmp_path / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}"
        if epochs:
            folder.mkdir(parents=True)
            text = START + "".join(EPOCH.format(epoch, seconds) for epoch in range(epochs))
            (folder / "training_log_2026_1_1_10_00_00.txt").write_text(text)
        name = f"train_{trainer}_{fold}"
        node = Node(name, (), lambda: State.NOT_STARTED, list, name, True, fold=fold, fold_folder=folder)
        return Row(node, status, Slot(place, {}) if place else None)

    return make


def test_without_a_known_speed_nothing_is_promised(training):
    assert seconds_left([training("A", 0, Status.RUNNING, "GPU 0"), training("A", 1, Status.WAITING)]) is None
    assert seconds_left([training("A", 0, Status.FINISHED, "GPU 0", epochs=20)]) is None


def test_waiting_trainings_take_as_long_as_those_of_the_same_trainer(training):
    """In epoch 11 of 20 at 2 s, then a whole training at 2 s and one at the trainers' mean of 2 s and 4 s."""
    rows = [
        training("B", 0, Status.FINISHED, "GPU 0", epochs=20, seconds=4),
        training("A", 0, Status.RUNNING, "GPU 0", epochs=11, seconds=2),
    ]
    assert seconds_left(rows) == 10 * 2
    assert seconds_left([*rows, training("A", 1, Status.WAITING)]) == 10 * 2 + 20 * 2
    assert seconds_left([*rows, training("C", 1, Status.WAITING)]) == 10 * 2 + 20 * 3


def test_two_places_train_at_once(training):
    rows = [
        training("A", 0, Status.RUNNING, "GPU 0", epochs=11, seconds=2),
        training("A", 1, Status.RUNNING, "GPU 1", epochs=20, seconds=2),
        training("A", 2, Status.WAITING),
    ]
    assert seconds_left(rows) == 2 + 40  # the third begins where the second ends


def test_lines_number_the_steps_and_tell_the_time_left(training):
    console = Console(width=200, file=io.StringIO(), highlight=False)
    display = LineDisplay(console)
    waiting = training("A", 1, Status.WAITING)
    running = training("A", 0, Status.RUNNING, "GPU 0", epochs=11, seconds=2)
    display.show([running, waiting])
    display.note(running)
    step = replace(waiting, node=replace(waiting.node, fold=None, fold_folder=None), status=Status.FINISHED)
    display.note(step)
    (line,) = console.file.getvalue().splitlines()
    assert line.endswith("running  train_A_0 on GPU 0 (step 1 of 2), 0:01:00 left for the trainings")
