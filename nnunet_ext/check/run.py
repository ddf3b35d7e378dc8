"""`nnunet_ext check`: every check on every setting of a trainer, as rows of one table."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nnunet_ext.check.cases import not_built, subjects
from nnunet_ext.check.ranks import run_ranks
from nnunet_ext.check.subject import Failure, Skipped, Subject
from nnunet_ext.check.surroundings import (
    check_compile,
    check_copies,
    check_hooks,
    check_memory,
    check_pickle,
    check_trace,
)
from nnunet_ext.check.training import run_training
from nnunet_ext.check.values import (
    check_gradients,
    check_outputs,
    check_precision,
    check_prediction_weights,
    check_samples,
    check_switch,
)
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.utils.messages import first_line

Check = Callable[[Subject], None]
EVERY_SETTING: dict[str, Check] = {
    "outputs": check_outputs,
    "gradients": check_gradients,
    "samples apart": check_samples,
    "deep supervision": check_switch,
    "weights for prediction": check_prediction_weights,
}
"""Checks on every setting."""
FIRST_SETTING: dict[str, Check] = {
    "float16": partial(check_precision, dtype=torch.float16),
    "bfloat16": partial(check_precision, dtype=torch.bfloat16),
    "state dict, deep copy": check_copies,
    "pickle": check_pickle,
    "hooks": check_hooks,
    "trace": check_trace,
    "memory": check_memory,
}
"""Checks on the first setting that the network takes."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        check: Name of the check.
        setting: Name of the setting, or "two ranks" or "training".
        state: ok, FAILED or skipped.
        seconds: Wall-clock time.
        reason: Why it failed or was skipped; empty otherwise.
        remedy: What would mend it; empty unless it failed.
    """

    check: str
    setting: str
    state: str
    seconds: float
    reason: str = ""
    remedy: str = ""


def run(trainer: str, plans_file: Path | None = None, device: str = "cpu", quick: bool = False) -> Iterator[Row]:
    """Checks a trainer; rows come as they are found.

    Args:
        trainer: Name of a trainer of ours, of nnU-Net's or of a folder that `nnUNet_extTrainer` names.
        plans_file: Plans whose configurations are the settings; None: small ones in 2D and 3D.
        device: Type of the device.
        quick: Whether to leave out compilation, the two ranks and the training.

    Raises:
        ValueError: for an unknown trainer.
    """
    found = find_trainer(trainer)
    first: Subject | None = None
    for name, subject in subjects(found, plans_file, device):
        if isinstance(subject, Exception):
            yield _row("building", name, partial(_raise, not_built(subject)))
            continue
        for check, function in EVERY_SETTING.items():
            yield _row(check, name, partial(function, subject))
        first = first or subject
    if first is None:
        reason = "the network is built on no setting"
        yield Row("building", "any", "FAILED", 0.0, reason, "see the rows above")
        return
    last: dict[str, Check] = {} if quick else {"compilation": check_compile}
    for check, function in (FIRST_SETTING | last).items():
        yield _row(check, first.name, partial(function, first))
    if not quick:
        yield _row("equal ranks", "two ranks", partial(_check_ranks, trainer, plans_file, first))
        yield _row("resume, predict", "training", partial(_check_training, trainer, device))


def _row(check: str, setting: str, function: Callable[[], None]) -> Row:
    start = time.perf_counter()
    state, reason, remedy = "ok", "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
    except Failure as failure:
        state, reason, remedy = "FAILED", failure.reason, failure.remedy
    except Skipped as skipped:
        state, reason = "skipped", str(skipped)
    except Exception as error:  # of any kind: the table shows it
        state, reason, remedy = "FAILED", first_line(error), "run the network alone on a batch of this size"
    return Row(check, setting, state, time.perf_counter() - start, reason, remedy)


def _raise(error: Exception) -> None:
    raise error


def _check_ranks(trainer: str, plans_file: Path | None, subject: Subject) -> None:
    if hasattr(subject.network(), "set_support"):
        raise Skipped("a few-shot network is trained by its trainer's own step")
    try:
        reports = run_ranks(trainer, plans_file)
    except RuntimeError as error:
        raise Failure(
            f"a rank ended: {error}", "use every parameter in `forward`; keep shapes equal on ranks"
        ) from error
    remedy = "change parameters by gradients alone; register other state as buffers"
    for report in reports:
        # Each rank has statistics of its own until DDP hands out those of rank 0 before the next forward pass.
        after = [key for key in report["after the step"] if not key.endswith(_STATISTICS)]
        for keys, when in ((after, "step"), (report["after the next forward"], "next forward pass")):
            if keys:
                raise Failure(f"{', '.join(keys[:3])} differ between ranks after the {when}", remedy)


def _check_training(trainer: str, device: str) -> None:
    stage, reason = run_training(trainer, device)
    if stage is not None:
        raise Failure(f"{stage}: {reason}", f"run nnUNetv2_train with -tr {trainer} for the complete message")
