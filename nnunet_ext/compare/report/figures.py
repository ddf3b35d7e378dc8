"""The plots of a report."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_ext.compare.analysis import MEAN
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.svg import BAND, GRID, INK, MUTED, TIP, Plot, colour, draw
from nnunet_ext.compare.report.text import count_text, difference_text, interval_text, mean_text
from nnunet_ext.compare.result import Outcome

_WIDTH = 5.0  # in inches: the width of a phone's page
_MOST_DOTS = 5000  # in one plot: more make the page heavy and cover each other
_MARKED_EPOCHS = 10
_WHISKER = 1.5  # in lengths of the box, as Tukey draws them
_DICE = METRICS[PRIMARY]


def plots(outcome: Outcome) -> list[Plot]:
    """All plots for which there are data."""
    made = [differences(outcome), *(label_differences(outcome) if len(outcome.study.labels.labels) > 1 else [])]
    made.append(distributions(outcome))
    made += [plot for plot in (accuracy_against_cost(outcome), *training_curves(outcome)) if plot is not None]
    return made


def _numbers(outcome: Outcome) -> dict[str, int]:
    """Number of each method's colour; the baseline is first."""
    return {name: i for i, name in enumerate([outcome.study.baseline, *outcome.study.challengers])}


def _columns(names: Collection[str]) -> int:
    """Columns of a legend, as many as fit beside each other."""
    return max(1, min(len(names), 46 // (max(map(len, names)) + 6)))


def _difference_axes(axes: Axes, outcome: Outcome) -> None:
    margin = outcome.settings.margin * _DICE.scale
    axes.axvspan(-margin, margin, color=BAND, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.grid(axis="x")
    axes.set_xlabel(f"Dice points more than {outcome.study.baseline}\nband: margin of ±{margin:g}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _interval(axes: Axes, y: float, *, low: float, mean: float, high: float, shade: str) -> None:
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color=shade, linewidth=3, solid_capstyle="butt")
    axes.plot([mean], [y], marker="D", markersize=7, color=shade)


def differences(outcome: Outcome) -> Plot:
    """A dot per case, and the mean with its interval."""
    rows, cases = outcome.study.challengers, list(outcome.study.cases)
    generator = np.random.default_rng(0)  # for the dots' heights only

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _difference_axes(axes, outcome)
        for row, name in enumerate(rows):
            points = outcome.analysis.case_differences[name] * _DICE.scale
            there = np.isfinite(points)
            heights = row - 0.12 - 0.26 * generator.random(len(points))
            dots = axes.scatter(points[there], heights[there], s=22, color=colour(_numbers(outcome)[name]), alpha=0.65)
            dots.set_urls([_tip(c, p) for c, p, kept in zip(cases, points, there, strict=True) if kept])
            found = outcome.analysis.primary(name).estimate
            low, mean, high = (value * _DICE.scale for value in (found.low, found.mean, found.high))
            _interval(axes, row + 0.22, low=low, mean=mean, high=high, shade=INK)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.6)

    text = "; ".join(
        f"{name}: {difference_text(found)}, interval {interval_text(found)}"
        for name in rows
        for found in [outcome.analysis.primary(name)]
    )
    description = f"A dot for each of {len(cases)} cases, below it the mean difference and its 95% interval. {text}."
    return draw("differences", "Paired differences of each case", description, (_WIDTH, 1 + 0.8 * len(rows)), paint)


def _tip(case: str, points: float) -> str:
    return f"{TIP}{case}: {_DICE.shown(points / _DICE.scale, signed=True)} points"


def label_differences(outcome: Outcome) -> list[Plot]:
    """Mean differences of each label with their intervals."""
    labels, names = list(outcome.study.labels.labels), outcome.study.challengers

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _difference_axes(axes, outcome)
        for number, name in enumerate(names):
            shift = (number - (len(names) - 1) / 2) * 0.7 / len(names)
            shade = colour(_numbers(outcome)[name])
            for row, label in enumerate(labels):
                found = outcome.analysis.comparisons[name, PRIMARY, label].estimate
                low, mean, high = (value * _DICE.scale for value in (found.low, found.mean, found.high))
                _interval(axes, row + shift, low=low, mean=mean, high=high, shade=shade)
            axes.plot([], [], color=shade, linewidth=3, marker="D", label=name)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        figure.legend(loc="outside upper left", ncols=_columns(names))

    text = "; ".join(
        f"{name}, {label}: {difference_text(found)}, interval {interval_text(found)}"
        for name in names
        for label in labels
        for found in [outcome.analysis.comparisons[name, PRIMARY, label]]
    )
    height = 1.2 + len(labels) * (0.25 + 0.3 * len(names))
    return [draw("labels", "Differences of each label", f"Means and 95% intervals. {text}.", (_WIDTH, height), paint)]


def distributions(outcome: Outcome) -> Plot:
    """Dice of all cases of each label and method: quartiles and dots."""
    labels, numbers, scores = list(outcome.study.labels.labels), _numbers(outcome), outcome.scores
    generator = np.random.default_rng(0)
    dotted = len(scores) <= _MOST_DOTS

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        step = len(numbers) + 1
        for group, label in enumerate(labels):
            for name, number in numbers.items():
                chosen = scores[(scores["entrant"] == name) & (scores["label"] == label)].dropna(subset=["dice"])
                if len(chosen):
                    values = chosen["dice"].to_numpy() * _DICE.scale
                    tips = [f"{TIP}{name}, {c}: {v:.2f}" for c, v in zip(chosen["case"], values, strict=True)]
                    _box(axes, group * step + number, values, colour(number))
                    if dotted:
                        heights = group * step + number + 0.4 * (generator.random(len(values)) - 0.5)
                        dots = axes.scatter(values, heights, s=10, color=colour(number), alpha=0.7)
                        dots.set_urls(tips)
        for name, number in numbers.items():
            axes.plot([], [], color=colour(number), linewidth=6, label=name)
        axes.set_yticks([group * step + (len(numbers) - 1) / 2 for group in range(len(labels))], labels)
        axes.set_ylim(len(labels) * step - 1, -1)
        axes.set_xlabel("Dice, points")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=_columns(numbers))

    text = "; ".join(
        f"{label}: {', '.join(f'{name} {mean_text(outcome, name, PRIMARY, label)}' for name in numbers)}"
        for label in labels
    )
    height = 1.3 + 0.34 * len(labels) * (len(numbers) + 1)
    dots = ", a dot for each case" if dotted else ""
    shown = f"median, lines to the farthest cases within {_WHISKER:g} box lengths{dots}"
    description = f"Boxes from the first to the third quartile with the {shown}. Means: {text}."
    return draw("distributions", "Dice of each label", description, (_WIDTH, height), paint)


def _box(axes: Axes, y: float, values: NDArray[np.float64], shade: str) -> None:
    first, median, third = np.percentile(values, [25, 50, 75])
    reach = _WHISKER * (third - first)
    low, high = min(values[values >= first - reach]), max(values[values <= third + reach])
    axes.plot([low, high], [y, y], color=shade, linewidth=1)
    axes.barh(y, third - first, left=first, height=0.7, color=shade, alpha=0.35, linewidth=0)
    axes.plot([median, median], [y - 0.35, y + 0.35], color=shade, linewidth=2.5)


def accuracy_against_cost(outcome: Outcome) -> Plot | None:
    """Mean Dice against the time of an epoch, or against multiply-adds where that was not logged for all."""
    costs = outcome.costs
    axis = next(
        (
            (key, title)
            for key, title in (("epoch_seconds", "seconds per epoch"), ("multiply_adds", "multiply-adds per patch"))
            if costs and all(np.isfinite(getattr(cost, key)) for cost in costs.values())
        ),
        None,
    )
    if axis is None:
        return None
    key, title = axis
    values = {name: (getattr(cost, key), outcome.analysis.means[name, PRIMARY, MEAN]) for name, cost in costs.items()}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (x, y) in values.items():
            axes.plot([x], [y * _DICE.scale], "o", markersize=11, color=colour(_numbers(outcome)[name]), label=name)
        axes.set_xscale("log")
        largest, smallest = (pick(x for x, _ in values.values()) for pick in (max, min))
        axes.set_xlim(smallest / 1.5, largest * 1.5)
        ticks = sorted({x for x, _ in values.values()})
        axes.set_xticks(ticks, [count_text(tick) for tick in ticks])
        axes.minorticks_off()
        axes.margins(y=0.3)
        axes.set(xlabel=f"{title}, log scale", ylabel="mean Dice, points")
        axes.grid(axis="y")
        axes.tick_params(axis="y", labelcolor=MUTED)
        figure.legend(loc="outside upper left", ncols=_columns(values))

    text = "; ".join(f"{name}: {count_text(x)} {title}, Dice {_DICE.shown(y)}" for name, (x, y) in values.items())
    return draw("cost", "Accuracy against cost", f"{text}.", (_WIDTH, 3.2), paint)


def training_curves(outcome: Outcome) -> list[Plot]:
    """Losses and pseudo Dice of every epoch: a thin line per fold, a thick one for the folds' mean."""
    made = []
    for key, title, label in (
        ("pseudo_dice", "Training: pseudo Dice of validation patches", "pseudo Dice of validation patches"),
        ("train_loss", "Training: each trainer's own loss", "training loss"),
    ):
        curves = {
            name: [log.curve(key) for log in logs.values() if log.curve(key)[0]] for name, logs in outcome.logs.items()
        }
        if any(curves.values()):
            last = "; ".join(
                f"{n} ends at {np.mean([c[1][-1] for c in all_]):.3f}" for n, all_ in curves.items() if all_
            )
            description = f"{label[0].upper()}{label[1:]} by epoch, mean of the folds. {last}."
            made.append(draw(key.replace("_", "-"), title, description, (_WIDTH, 3.2), _curves(outcome, curves)))
    return made


def _curves(outcome: Outcome, curves: dict[str, list[tuple[list[int], list[float]]]]) -> Callable[..., Any]:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, folds in curves.items():
            shade = colour(_numbers(outcome)[name])
            by_epoch: dict[int, list[float]] = {}
            for epochs, values in folds:
                axes.plot(epochs, values, color=shade, linewidth=0.8, alpha=0.45)
                for epoch, value in zip(epochs, values, strict=True):
                    by_epoch.setdefault(epoch, []).append(value)
            means = [float(np.mean(by_epoch[epoch])) for epoch in sorted(by_epoch)]
            marker = "o" if len(means) <= _MARKED_EPOCHS else None  # a single epoch has no line
            axes.plot(sorted(by_epoch), means, color=shade, linewidth=2.2, marker=marker, label=name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=GRID)
        axes.tick_params(axis="y", labelcolor=MUTED)
        figure.legend(loc="outside upper left", ncols=_columns(curves))

    return paint
