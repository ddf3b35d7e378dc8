"""The demo's summary: a table, training curves and overlays of the predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import SimpleITK as sitk
import torch

mpl.use("Agg")
from matplotlib import pyplot as plt

from nnunet_ext.demo.workspace import Workspace, write_atomically

_COLOURS = ("tab:orange", "tab:cyan", "tab:pink", "tab:olive")


@dataclass(frozen=True)
class Result:
    """Result of a trained fold.

    Attributes:
        trainer: Name of the trainer.
        dice: Validation Dice by label name.
        mean: Mean Dice of the classes.
        cases: Number of validation cases.
        epoch_seconds: Median duration of an epoch in seconds.
        logging: nnU-Net's record of the training, one list per quantity.
    """

    trainer: str
    dice: dict[str, float]
    mean: float
    cases: int
    epoch_seconds: float
    logging: dict[str, list]


def write_summary(space: Workspace, trainers: Sequence[str]) -> Path:
    """Writes summary.md and its pictures to the demo's folder; returns the path of summary.md."""
    labels = {v: k for k, v in json.loads((space.raw / "dataset.json").read_text())["labels"].items() if v}
    results = [_read(space.model(trainer), trainer, labels) for trainer in trainers]
    _plot_curves(results, space.root / "curves.png")
    overlays = [_plot_overlay(space, case, trainers, labels) for case in sorted(space.unlabelled.iterdir())]
    budget = space.settings.budget
    setting = (
        f"{budget.epochs} epochs of {budget.iterations} iterations, batch 2, half the plan's widths, on "
        f"{space.settings.device}, the same for every trainer. nnU-Net's default is 1000 epochs of 250 iterations: "
        "this shows that everything works and learns, not which trainer is better."
    )
    lines = [
        "# Demo: hippocampus, fold 0",
        "",
        setting,
        "",
        f"Dice of the {results[0].cases} validation cases:",
        "",
        f"| trainer | {' | '.join(labels.values())} | mean | seconds per epoch |",
        f"|---|{'---|' * (len(labels) + 2)}",
        *(
            f"| {r.trainer} | {' | '.join(f'{r.dice[name]:.3f}' for name in labels.values())} | {r.mean:.3f} | "
            f"{r.epoch_seconds:.1f} |"
            for r in results
        ),
        "",
        "## Training curves",
        "",
        "![Training loss and pseudo Dice of every epoch](curves.png)",
        "",
        "## Predictions of the unlabelled scans",
        "",
        *(f"![{path.stem}: prediction of each trainer]({path.name})\n" for path in overlays),
        f"Masks: {', '.join(f'`predictions/{trainer}`' for trainer in trainers)}",
        "",
    ]
    path = space.root / "summary.md"
    write_atomically(path, "\n".join(lines))
    return path


def _read(model: Path, trainer: str, labels: dict[int, str]) -> Result:
    summary = json.loads((model / "validation" / "summary.json").read_text())
    checkpoint = torch.load(model / "checkpoint_final.pth", map_location="cpu", mmap=True, weights_only=False)
    logging = checkpoint["logging"]
    seconds = np.subtract(logging["epoch_end_timestamps"], logging["epoch_start_timestamps"])
    return Result(
        trainer,
        dice={name: summary["mean"][str(label)]["Dice"] for label, name in labels.items()},
        mean=summary["foreground_mean"]["Dice"],
        cases=len(summary["metric_per_case"]),
        epoch_seconds=float(np.median(seconds)),
        logging=logging,
    )


def _plot_curves(results: Sequence[Result], path: Path) -> None:
    figure, (loss, dice) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for result, colour in zip(results, _cycle(len(results)), strict=True):
        epochs = range(1, len(result.logging["train_losses"]) + 1)
        loss.plot(epochs, result.logging["train_losses"], color=colour, label=result.trainer)
        dice.plot(epochs, result.logging["mean_fg_dice"], color=colour, label=result.trainer)
    loss.set(xlabel="epoch", ylabel="training loss (each trainer's own)", title="Loss")
    dice.set(xlabel="epoch", ylabel="pseudo Dice of validation patches", title="Dice", ylim=(0, 1))
    dice.legend()
    for axis in (loss, dice):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_overlay(space: Workspace, image_file: Path, trainers: Sequence[str], labels: dict[int, str]) -> Path:
    case = image_file.name.replace("_0000.nii.gz", "")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(image_file)))
    masks = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(space.predictions(trainer) / f"{case}.nii.gz")))
        for trainer in trainers
    ]
    # The slice with the most foreground over all trainers is the most informative.
    index = int(np.sum([(mask > 0).sum((1, 2)) for mask in masks], axis=0).argmax())
    figure, axes = plt.subplots(1, len(trainers), figsize=(4 * len(trainers), 4.4), layout="constrained", squeeze=False)
    for axis, trainer, mask in zip(axes[0], trainers, masks, strict=True):
        axis.imshow(image[index], cmap="gray")
        for label, colour in zip(labels, _cycle(len(labels)), strict=True):
            if (mask[index] == label).any():
                axis.contour(mask[index] == label, levels=[0.5], colors=[colour], linewidths=1.5)
            axis.plot([], [], color=colour, label=labels[label])
        axis.set_title(trainer)
        axis.axis("off")
    axes[0][0].legend(loc="lower left", fontsize="small")
    figure.suptitle(f"{case}, slice {index + 1} of {len(image)}")
    path = space.root / f"overlay_{case}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
