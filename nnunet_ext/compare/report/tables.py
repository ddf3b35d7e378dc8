"""The tables of a report, as rows of text: for the page, for Markdown and for a paper."""

import numpy as np

from nnunet_ext.compare.analysis import MEAN
from nnunet_ext.compare.lesion_metrics import LESION_METRICS, lesion_title
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.table import DASH, TIMES, Table
from nnunet_ext.compare.report.text import count_text, interval_text, mean_text, p_text, unit
from nnunet_ext.compare.report.uncertainty import size_table, variance_table
from nnunet_ext.compare.result import Outcome


def result_table(outcome: Outcome) -> Table:
    """One row per method: the table for a paper."""
    rows = []
    for name in _names(outcome):
        dice, *others = (mean_text(outcome, name, metric) for metric in METRICS)
        nnunet = METRICS[PRIMARY].shown(outcome.analysis.nnunet_means[name])
        if name == outcome.study.baseline:
            rows.append([name, "baseline", dice, nnunet, DASH, DASH, DASH, *others])
            continue
        found = outcome.analysis.primary(name)
        difference = METRICS[PRIMARY].shown(found.estimate.mean, signed=True)
        judged = [difference, interval_text(found), p_text(found.p_holm)]
        rows.append([name, found.verdict or DASH, dice, nnunet, *judged, *others])
    dice, *others = (f"{metric.title}, {unit(metric, outcome)}" for metric in METRICS.values())
    heads = ["", "verdict", dice, "nnU-Net's foreground_mean", "difference", "95% interval", "p (Holm)", *others]
    return Table("All methods", heads, rows, text_columns=(0, 1))


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
    heads = ["", "label", "verdict", baseline, "own", "difference", "95% interval", "p (Holm)", "pairs"]
    return Table("Dice of each label", heads, rows, text_columns=(0, 1, 2))


def metric_table(outcome: Outcome) -> Table:
    """The differences in the other metrics, mean of labels."""
    rows = []
    for name in outcome.study.challengers:
        for key, metric in METRICS.items():
            if key == PRIMARY:
                continue
            found = outcome.analysis.comparisons[name, key, MEAN]
            direction = "higher" if metric.higher_is_better else "lower"
            rows.append(
                [
                    *(
                        name,
                        f"{metric.title}, {unit(metric, outcome)}; {direction} is better",
                    ),
                    *(metric.shown(found.baseline), metric.shown(found.own)),
                    *(metric.shown(found.estimate.mean, signed=True), interval_text(found), p_text(found.p_holm)),
                    str(found.estimate.cases),
                ]
            )
    heads = ["", "metric", outcome.study.baseline, "own", "difference", "95% interval", "p (Holm)", "pairs"]
    return Table("Other metrics", heads, rows, text_columns=(0, 1))


def false_positive_table(outcome: Outcome) -> Table:
    """Rates of false positives in the cases that do not have a label; no rows if every case has every label."""
    rows = []
    for (name, label), found in outcome.analysis.false_positive_rates.items():
        low, high = (
            f"{100 * end:+.0f}".replace("-", "\N{MINUS SIGN}") for end in (found.estimate.low, found.estimate.high)
        )
        interval = f"{low} to {high}" if np.isfinite(found.estimate.low) else DASH
        numbers = [f"{found.baseline:.0%}", f"{found.own:.0%}", interval, p_text(found.p_holm)]
        rows.append([name, label, *numbers, str(found.estimate.cases)])
    heads = ["", "label", outcome.study.baseline, "own", "95% interval, points", "p (Holm)", "cases without it"]
    return Table("False-positive rates", heads, rows, text_columns=(0, 1))


def lesion_table(outcome: Outcome) -> Table:
    """The detection of lesions; no rows where none were counted."""
    rows = []
    for (name, key, label), found in outcome.analysis.lesions.items():
        metric = LESION_METRICS[key]
        numbers = [metric.shown(found.baseline), metric.shown(found.own)]
        numbers += [metric.shown(found.estimate.mean, signed=True), interval_text(found), p_text(found.p_holm)]
        title = lesion_title(key, outcome.study.labels.in_pixels)
        rows.append([name, label, title, *numbers, str(found.estimate.cases)])
    heads = ["", "label", "metric, points", outcome.study.baseline, "own", "difference", "95% interval", "p (Holm)"]
    return Table("Detection of lesions", [*heads, "pairs"], rows, text_columns=(0, 1, 2))


def lesion_total_table(outcome: Outcome) -> Table:
    """Numbers of lesions over all cases; no rows where none were counted."""
    rows = []
    for label in outcome.settings.lesions:
        for name in _names(outcome):
            total = outcome.analysis.lesion_totals[name, label]
            parts = [(total.found, total.true), (total.found, total.predicted)]
            shares = [f"{part / whole:.0%}" if whole else DASH for part, whole in parts]
            rows.append([name, label, *map(str, (total.true, total.predicted, total.found)), *shares])
    heads = ["", "label", "true", "predicted", "found", "of the true", "of the predicted"]
    return Table("Numbers of lesions", heads, rows, text_columns=(0, 1))


def all_tables(outcome: Outcome) -> list[Table]:
    """Every table that has rows, in the order of the report."""
    makers = (
        *(result_table, size_table, variance_table, label_table, lesion_table, lesion_total_table),
        *(false_positive_table, metric_table, rank_table, cost_table, ensemble_table, mask_table),
    )
    return [table for table in (make(outcome) for make in makers) if table.rows]


def rank_table(outcome: Outcome) -> Table:
    """Mean ranks, and how often each place is taken when the cases are resampled."""
    ranking = outcome.analysis.ranking
    places = range(1, len(outcome.study.methods) + 1)
    rows = [
        [name, f"{ranking.mean_ranks[name]:.2f}", *(f"{ranking.places[name][place - 1]:.0%}" for place in places)]
        for name in ranking.order
    ]
    return Table("Ranks", ["", "mean rank", *(f"place {place}" for place in places)], rows)


def cost_table(outcome: Outcome) -> Table:
    """Costs of each method; no rows where nothing was measured."""
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


def ensemble_table(outcome: Outcome) -> Table:
    """The ensemble of the two best beside its members; no rows without one."""
    beyond, dice = outcome.beyond, METRICS[PRIMARY]
    rows = []
    if beyond.ensemble:
        rows = [[name, dice.shown(value)] for name, value in outcome.analysis.nnunet_means.items()]
        rows.append([f"ensemble of {' and '.join(beyond.ensemble)}", dice.shown(beyond.dice)])
    return Table("Ensemble of the two best", ["", f"nnU-Net's foreground_mean, {unit(dice, outcome)}"], rows)


def mask_table(outcome: Outcome) -> Table:
    """Predicted masks of scans without labels; no rows without any."""
    beyond = outcome.beyond
    rows = [[name, str(number), beyond.folders[name]] for name, number in beyond.predicted.items()]
    return Table("Masks of other scans", ["", "masks", "folder"], rows, text_columns=(0, 2))


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if np.isfinite(value) else DASH


def _names(outcome: Outcome) -> list[str]:
    """The baseline first."""
    return [outcome.study.baseline, *outcome.study.challengers]
