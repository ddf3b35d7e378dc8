"""Tables of measured accuracy: trainers on equal budgets, fine-tuning and few-shot segmentation."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.page.result_files import Row, Rows, in_order, markdown_table


def mean_dice(accuracy: Rows) -> dict[str, float]:
    """Mean Dice over labels and trainings for each trainer, from rows that `benchmarks.accuracy` wrote."""
    return {trainer: statistics.fmean(dice) for trainer, dice in dice_of_trainings(accuracy, "mean").items()}


def dice_of_trainings(accuracy: Rows, label: str) -> dict[str, list[float]]:
    """Dice of a label for every training of each trainer."""
    found: dict[str, list[float]] = {}
    for row in accuracy:
        if row["label"] == label:
            found.setdefault(row["trainer"], []).append(float(row["dice"]))
    return found


def shown_dice(dice: Mapping[str, float], trainer: str) -> str:
    """A trainer's Dice as tables and sentences show it; empty if it was not measured."""
    return f"{dice[trainer]:.3f} (`{trainer}`)" if trainer in dice else ""


def spread(dice: Sequence[float]) -> str:
    """Lowest and highest Dice of several trainings."""
    return f"{min(dice):.3f} to {max(dice):.3f} in {len(dice)} trainings"


def accuracy(rows: Rows, cases: Rows, baseline: str = "StockTrainer") -> str:
    """Dice of every label, their mean, and the difference between the mean and the baseline's.

    Where trainers were trained more than once, the difference is compare's, else the paired difference over cases.
    """
    labels = [label for label in in_order(row["label"] for row in rows) if label != "mean"]
    dice = {label: dice_of_trainings(rows, label) for label in [*labels, "mean"]}
    last = {row["trainer"]: row for row in rows if row["label"] == "mean"}
    repeated = any(len(values) > 1 for values in dice["mean"].values())
    stock = _case_means(cases, baseline)
    timed = any(row["seconds_per_epoch"] for row in rows)
    difference = "verdict, difference to stock" if repeated else "difference to stock, cases better"
    header = ["trainer", *labels, "mean", difference, *["s per epoch"] * timed, "parameters"]
    lines = []
    for trainer, row in last.items():
        means = [f"{statistics.fmean(dice[label][trainer]):.3f}" for label in [*labels, "mean"]]
        values = dice["mean"][trainer]
        if repeated:
            means[-1] += f" ({spread(values)})" if len(values) > 1 else " (1 training)"
            against = _verdict(row)
        else:
            against = "" if trainer == baseline else _difference(_case_means(cases, trainer), stock)
        size = f"{int(row['parameters']) / 1e6:.1f} M"
        lines.append([f"`{trainer}`", *means, against, *[row["seconds_per_epoch"]] * timed, size])
    return markdown_table(header, lines)


def _verdict(row: Row) -> str:
    """Verdict of `nnunet_ext compare` with the difference and its interval in points; empty for the baseline.

    Where the interval does not hold for new trainings, there is no verdict.
    """
    if not row.get("verdict"):
        return ""
    difference, low, high = (100 * float(row[key]) for key in ("difference", "interval_low", "interval_high"))
    found = f"{difference:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{row['verdict']}, {found}" if row["holds_for_new_trainings"] == "yes" else found


def _case_means(cases: Rows, trainer: str) -> dict[str, float]:
    """Mean Dice over labels for every case; labels absent from both truth and prediction (NaN) are left out."""
    values: dict[str, list[float]] = {}
    for row in cases:
        dice = float(row["dice"])
        if row["trainer"] == trainer and dice == dice:
            values.setdefault(row["case"], []).append(dice)
    return {case: statistics.fmean(dice) for case, dice in values.items()}


def _difference(ours: Mapping[str, float], stock: Mapping[str, float]) -> str:
    """Mean and standard error of the paired differences over shared cases, and the number of better cases."""
    differences = [ours[case] - stock[case] for case in ours if case in stock]
    if len(differences) < 2:
        return ""
    error = statistics.stdev(differences) / len(differences) ** 0.5
    better = sum(difference > 0 for difference in differences)
    return f"{statistics.fmean(differences):+.3f} ± {error:.3f}, {better} of {len(differences)}"


def fine_tuning(rows: Rows) -> str:
    """One row for each trainer and origin of its weights: mean over repeats, and gain over training from scratch."""
    header = ["trainer", "weights from", "iterations there", "iterations", "weights", "trainings"]
    header += ["Dice, mean", "lowest and highest", "gain"]
    lines = []
    for trainer, origin in in_order((row["trainer"], row["origin"]) for row in rows):
        mine = [row for row in rows if (row["trainer"], row["origin"]) == (trainer, origin)]
        dice = [float(row["dice_mean"]) for row in mine]
        scratch = [float(row["dice_mean"]) for row in rows if (row["trainer"], row["origin"]) == (trainer, "scratch")]
        gain = (
            "" if origin == "scratch" or not scratch else f"{statistics.fmean(dice) - statistics.fmean(scratch):+.3f}"
        )
        lines.append(
            [
                *(f"`{trainer}`", origin, *(mine[0][key] for key in ("source_iterations", "iterations", "weights"))),
                *(str(len(dice)), f"{statistics.fmean(dice):.3f}", f"{min(dice):.3f} to {max(dice):.3f}", gain),
            ]
        )
    return markdown_table(header, lines)


_WITHOUT_TRAINING = ("mask copied", "mask resized", "encoder prototypes")


def few_shot_encoders(rows: Rows) -> str:
    """One table for each dataset and setting: a column for each class, a row for each method, encoder and budget.

    Methods that need no training stand first, once each: masks, and prototypes of the encoder before training.
    """
    texts = []
    keys = ("dataset", "setting", "fold", "supports")
    for case in in_order(tuple(row[key] for key in keys) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in keys) == case]
        classes = in_order(row["class"] for row in mine)
        lines: dict[tuple[int, int, str], list[str]] = {}
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in mine:
            groups.setdefault((row["iterations"], row["encoder"], row["method"]), []).append(row)
        for (iterations, encoder, method), own in groups.items():
            of_class = [[float(row["dice"]) for row in own if row["class"] == label] for label in classes]
            means = [statistics.fmean(values) for values in of_class]
            of_training = [statistics.fmean(values) for values in zip(*of_class, strict=True)]
            cells = [f"{value:.3f}" for value in (*means, statistics.fmean(means))]
            if method in _WITHOUT_TRAINING:
                of_what = "" if method.startswith("mask") else "scratch" if encoder == "scratch" else "pretrained"
                place = (0, _WITHOUT_TRAINING.index(method), of_what)
                lines.setdefault(place, [method, of_what, "", "", *cells, ""])
            else:
                name = "FAF-Net" if method.startswith("FAFNet") else f"FAF-Net, {method}"
                spread = f"{min(of_training):.3f} to {max(of_training):.3f}" if len(of_training) > 1 else ""
                place = (1, int(iterations), f"{encoder} {name}")
                lines[place] = [name, encoder, iterations, str(len(of_training)), *cells, spread]
        header = ["method", "encoder", "iterations", "trainings", *classes, "mean", "lowest and highest mean"]
        name, setting, fold, supports = case
        told = f"{name}, setting {setting}, fold {fold}, {supports} supports."
        texts.append(f"{told}\n\n{markdown_table(header, [lines[place] for place in sorted(lines)])}")
    return "\n\n".join(texts)


def few_shot(rows: Rows) -> str:
    """One table for each training and label."""
    texts = []
    for setting, label in in_order((row["setting"], row["label"]) for row in rows):
        mine = [row for row in rows if (row["setting"], row["label"]) == (setting, label)]
        lines = []
        for method in in_order(row["method"] for row in mine):
            dice = few_shot_dice(mine, method)
            spread = f"{min(dice):.2f} to {max(dice):.2f}"
            lines.append([method, str(len(dice)), f"{statistics.fmean(dice):.2f}", spread])
        header = ["method", "supports", "Dice, mean", "lowest and highest"]
        texts.append(f"{setting}; label {label}.\n\n{markdown_table(header, lines)}")
    return "\n\n".join(texts)


def few_shot_dice(rows: Rows, method: str) -> list[float]:
    """Dice of a method for each support."""
    return [float(row["dice"]) for row in rows if row["method"] == method]
