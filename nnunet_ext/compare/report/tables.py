"""The tables of a report, as rows of text: for the page, for Markdown and for a paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_ext.compare.analysis import MEAN
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.text import count_text, interval_text, mean_text, p_text
from nnunet_ext.compare.result import Outcome

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Table:
    """Of a report.

    Attributes:
        title: Above it.
        heads: Of the columns.
        rows: Text of the cells.
        words: Columns of words, to the left; the others hold numbers.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)


def result_table(outcome: Outcome) -> Table:
    """One row an entrant: the table for a paper."""
    rows = []
    for name in _names(outcome):
        dice, *others = (mean_text(outcome, name, metric) for metric in METRICS)
        if name == outcome.study.baseline:
            rows.append([name, "baseline", dice, DASH, DASH, DASH, *others])
            continue
        found = outcome.analysis.primary(name)
        difference = METRICS[PRIMARY].shown(found.estimate.mean, signed=True)
        judged = [difference, interval_text(found), p_text(found.p_holm)]
        rows.append([name, found.verdict or DASH, dice, *judged, *others])
    dice, *others = (f"{metric.title}, {metric.unit}" for metric in METRICS.values())
    heads = ["", "verdict", dice, "difference", "95% interval", "Wilcoxon, Holm", *others]
    return Table("All trainers", heads, rows, words=(0, 1))


def label_table(outcome: Outcome) -> Table:
    """Dice of each label, and every other metric's difference."""
    baseline, dice = outcome.study.baseline, METRICS[PRIMARY]
    rows = []
    for name in outcome.study.challengers:
        for label in outcome.study.labels.labels:
            found = outcome.analysis.comparisons[name, PRIMARY, label]
            rows.append(
                [
                    *(name, label, found.verdict or DASH, dice.shown(found.baseline), dice.shown(found.own)),
                    *(dice.shown(found.estimate.mean, signed=True), interval_text(found), p_text(found.p_holm)),
                    str(found.estimate.cases),
                ]
            )
    heads = ["", "label", "verdict", baseline, "own", "difference", "95% interval", "Wilcoxon, Holm", "pairs"]
    return Table("Dice of each label", heads, rows, words=(0, 1, 2))


def metric_table(outcome: Outcome) -> Table:
    """The differences in the other metrics, mean of labels."""
    rows = []
    for name in outcome.study.challengers:
        for key, metric in METRICS.items():
            if key == PRIMARY:
                continue
            found = outcome.analysis.comparisons[name, key, MEAN]
            rows.append(
                [
                    *(
                        name,
                        f"{metric.title}, {metric.unit}; {'higher' if metric.higher_is_better else 'lower'} is better",
                    ),
                    *(metric.shown(found.baseline), metric.shown(found.own)),
                    *(metric.shown(found.estimate.mean, signed=True), interval_text(found), p_text(found.p_holm)),
                    str(found.estimate.cases),
                ]
            )
    heads = ["", "metric", outcome.study.baseline, "own", "difference", "95% interval", "Wilcoxon, Holm", "pairs"]
    return Table("Other metrics", heads, rows, words=(0, 1))


def rank_table(outcome: Outcome) -> Table:
    """Mean ranks, and how often each place is taken when the cases are resampled."""
    ranking = outcome.analysis.ranking
    places = range(1, len(outcome.study.entrants) + 1)
    rows = [
        [name, f"{ranking.mean_ranks[name]:.2f}", *(f"{ranking.places[name][place - 1]:.0%}" for place in places)]
        for name in ranking.order
    ]
    return Table("Ranks", ["", "mean rank", *(f"place {place}" for place in places)], rows)


def cost_table(outcome: Outcome) -> Table:
    """What each entrant costs; no rows where nothing was measured."""
    rows = []
    for name, cost in outcome.costs.items():
        iterations = f" {TIMES} {cost.iterations}" if cost.iterations else ""
        rows.append(
            [
                *(name, count_text(cost.parameters), count_text(cost.multiply_adds)),
                *(_number(cost.epoch_seconds, "s"), _number(cost.memory_gb, "GB"), _number(cost.scan_seconds, "s")),
                f"{cost.epochs}{iterations}" if cost.epochs else DASH,
                f" {TIMES} ".join(map(str, cost.patch_size)) or DASH,
            ]
        )
    heads = ["", "parameters", "multiply-adds", "epoch", "peak memory", "predicted scan"]
    return Table("Cost", [*heads, f"epochs {TIMES} iterations", "patch"], rows)


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if np.isfinite(value) else DASH


def _names(outcome: Outcome) -> list[str]:
    """The baseline first."""
    return [outcome.study.baseline, *outcome.study.challengers]
