"""The demo's steps; each is skipped if an earlier run has completed it."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.demo.progress import CommandFailed, count_lines, run_command
from nnunet_ext.demo.workspace import CONFIGURATION, DATASET_ID, Settings, Workspace, check_trainers
from nnunet_ext.nnunet.checkpoints import CHECKPOINTS
from nnunet_ext.utils.devices import choose_device


def run_demo(folder: str | Path, trainers: Sequence[str], iterations: int, device: str = "auto") -> int:
    """Copies the shipped scans, plans, preprocesses, trains, predicts, evaluates and writes a summary.

    Args:
        folder: Working folder, new or from an earlier run with the same settings.
        trainers: Names of our trainers.
        iterations: Training iterations per trainer.
        device: cpu, cuda, mps, or auto for the best available device.

    Returns:
        Exit code: 0, or 1 if a command of nnU-Net failed.

    Raises:
        ValueError: for unknown trainers, fewer than 1 iteration, or a folder that does not belong to the demo.
    """
    if iterations < 1:
        raise ValueError(f"--iterations {iterations} must be at least 1")
    check_trainers(trainers)
    space = Workspace(folder, Settings(iterations, choose_device(device)))
    space.claim()
    started = time.monotonic()
    budget = space.settings.budget
    print(
        f"Demo in {space.root} on {space.settings.device}: {', '.join(trainers)}, "
        f"{budget.epochs} epochs of {budget.iterations} iterations each"
    )
    try:
        space.lay_out_raw()
        _preprocess(space)
        for trainer in trainers:
            _train(space, trainer)
        for trainer in trainers:
            _predict(space, trainer)
    except CommandFailed as error:
        print(f"\n{error}\nRun the demo again to resume from here.", file=sys.stderr)
        return 1
    from nnunet_ext.demo.summary import write_summary

    summary = write_summary(space, trainers)
    print(f"\n{summary.read_text().split('## Training curves')[0]}")
    print(f"Summary with curves and overlays: {summary}  ({(time.monotonic() - started) / 60:.1f} minutes)")
    return 0


def _preprocess(space: Workspace) -> None:
    if not space.preprocessing_done.is_file():
        run_command(
            "Plan and preprocess",
            [
                *f"nnUNetv2_plan_and_preprocess -d {DATASET_ID} -c 3d_fullres -np 2 -npfp 2".split(),
                "--verify_dataset_integrity",
            ],
            environment=space.environment(),
            log=space.log("preprocess"),
            total=len(list((space.raw / "labelsTr").iterdir())),
            count_done=space.count_preprocessed,
            pid_file=space.command_pid,
        )
        space.preprocessing_done.touch()
    space.add_configuration()


def _train(space: Workspace, trainer: str) -> None:
    model = space.model(trainer)
    if (model / "validation" / "summary.json").is_file():
        return
    resume = ["--c"] if any((model / name).is_file() for name in CHECKPOINTS) else []
    log = space.log(f"train_{trainer}")
    epochs, validated = space.settings.budget.epochs or 0, _validation_cases(space)
    done_before = _finished_epochs(model) if resume else 0
    run_command(
        f"Train {trainer}",
        [
            *f"nnUNetv2_train {DATASET_ID} {CONFIGURATION} 0 -tr {trainer} -device {space.settings.device}".split(),
            *resume,
        ],
        environment=space.environment(),
        log=log,
        total=epochs + validated,
        count_done=lambda: done_before + count_lines(log, " Epoch time:", " predicting "),
        pid_file=space.command_pid,
    )


def _predict(space: Workspace, trainer: str) -> None:
    target = space.predictions(trainer)
    cases = [file.name.replace("_0000.nii.gz", ".nii.gz") for file in sorted(space.unlabelled.iterdir())]
    if all((target / case).is_file() for case in cases):
        return
    shutil.rmtree(target, ignore_errors=True)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    run_command(
        f"Predict {trainer}",
        [
            *("nnUNetv2_predict", "-i", str(space.unlabelled), "-o", str(partial)),
            *f"-d {DATASET_ID} -c {CONFIGURATION} -f 0 -tr {trainer}".split(),
            *f"-device {space.settings.device} -npp 1 -nps 1".split(),
        ],
        environment=space.environment(),
        log=space.log(f"predict_{trainer}"),
        total=len(cases),
        count_done=lambda: len(list(partial.glob("*.nii.gz"))) if partial.is_dir() else 0,
        pid_file=space.command_pid,
    )
    partial.rename(target)


def _validation_cases(space: Workspace) -> int:
    """Number of validation cases of fold 0: a fifth of all cases until nnU-Net has written the split."""
    split = space.preprocessed / "splits_final.json"
    if split.is_file():
        return len(json.loads(split.read_text())[0]["val"])
    return len(list((space.raw / "labelsTr").iterdir())) // 5


def _finished_epochs(model: Path) -> int:
    from nnunet_ext.nnunet.checkpoints import read_checkpoint

    for name in CHECKPOINTS:
        if (model / name).is_file():
            return read_checkpoint(model / name)["current_epoch"]
    return 0
