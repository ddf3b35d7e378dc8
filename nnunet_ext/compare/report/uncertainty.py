"""Tables of where the uncertainty of a difference comes from, and of what would decide it."""

import numpy as np

from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.needed import needed
from nnunet_ext.compare.report.table import DASH, Table
from nnunet_ext.compare.report.text import equivalence_text, fewest_repeats, interval_text
from nnunet_ext.compare.result import Outcome


def variance_table(outcome: Outcome) -> Table:
    """Shares of trainings, groups and cases in the variance of the differences and in the uncertainty of their mean."""
    rows = []
    for name in outcome.study.challengers:
        found = outcome.analysis.primary(name).estimate
        if found.model is None:
            continue
        components, shares, (folds, groups, cases) = found.model.components, found.model.shares, found.model.counts
        parts = [("cases", cases, 2)]
        if found.model.grouped:
            parts.insert(0, ("groups", groups, 1))
        if found.new_trainings:
            parts.insert(
                0, ("trainings and supports (folds)" if outcome.study.supports else "trainings (folds)", folds, 0)
            )
        for source, count, index in parts:
            deviation = METRICS[PRIMARY].shown(float(np.sqrt(components[index])))
            percent = [_share(part[index], sum(part)) for part in (components, shares)]
            rows.append([name, source, str(count), deviation, *percent])
    heads = ["", "source", "number", "standard deviation, points", "of the variance", "of the mean's uncertainty"]
    return Table("Sources of uncertainty", heads, rows, text_columns=(0, 1))


def size_table(outcome: Outcome) -> Table:
    """Intervals for new trainings and under these, and the sizes of a study that would decide."""
    dice, rows = METRICS[PRIMARY], []
    for name in outcome.study.challengers:
        comparison = outcome.analysis.primary(name)
        found, sizes = comparison.estimate, None
        conditional = (dice.shown(end, signed=True) for end in (found.conditional_low, found.conditional_high))
        if comparison.verdict == "inconclusive":
            sizes = needed(
                found, outcome.settings.margin, fewest_repeats(outcome, name), len(outcome.study.challengers)
            )
        wanted = (sizes.cases, sizes.folds, sizes.repeats) if sizes else (None, None, None)
        intervals = [interval_text(comparison), equivalence_text(comparison), " to ".join(conditional)]
        rows.append([name, *intervals, *(str(size) if size else DASH for size in wanted)])
    heads = ["", "95% interval", "90% interval (TOST)", "95% under these trainings"]
    heads += [f"{what} that would decide" for what in ("cases", "folds", "repeats")]
    return Table("Intervals, and sizes that would decide", heads, rows)


def _share(part: float, total: float) -> str:
    return f"{part / total:.0%}" if total > 0 else DASH
