"""The answer in words, with its reasons and caveats."""

from collections.abc import Sequence

import numpy as np

from nnunet_ext.compare.analysis import MEAN, Comparison
from nnunet_ext.compare.lesion_metrics import ALL_METRICS
from nnunet_ext.compare.metrics import METRICS, PRIMARY, Metric
from nnunet_ext.compare.needed import needed
from nnunet_ext.compare.report.trust import warnings
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import LEVEL

_DICE = METRICS[PRIMARY]
_FEW_CASES = 20
_FEW_FOLDS = 5
_RATIOS = (
    ("epoch_seconds", "time per epoch"),
    ("memory_gb", "peak memory"),
    ("parameters", "parameters"),
    ("multiply_adds", "multiply-adds"),
    ("scan_seconds", "time per predicted scan"),
)


def p_text(value: float) -> str:
    """A p-value as papers print it."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    text = "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def count_text(value: float, unit: str = "") -> str:
    """A large number with three digits and a suffix."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}{unit}"
    return f"{value:.3g}{' ' + unit if unit else ''}"


def interval_text(comparison: Comparison) -> str:
    """The 95% interval of a difference."""
    metric, estimate = ALL_METRICS[comparison.metric], comparison.estimate
    return f"{metric.shown(estimate.low, signed=True)} to {metric.shown(estimate.high, signed=True)}"


def difference_text(comparison: Comparison) -> str:
    """A mean difference with its unit."""
    metric = METRICS[comparison.metric]
    return f"{metric.shown(comparison.estimate.mean, signed=True)} {metric.title} {metric.unit}"


def unit(metric: Metric, outcome: Outcome) -> str:
    """The unit of a metric: natural images have pixels."""
    return metric.pixel_unit if metric.pixel_unit and outcome.study.labels.in_pixels else metric.unit


def equivalence_text(comparison: Comparison) -> str:
    """The 90% interval, which belongs to the test of equivalence."""
    metric, found = METRICS[comparison.metric], comparison.estimate
    low, high = (metric.shown(value, signed=True) for value in (found.equivalence_low, found.equivalence_high))
    return f"{low} to {high}"


def headline(outcome: Outcome) -> str:
    """The verdicts in one sentence."""
    baseline = outcome.study.baseline
    groups: dict[str, list[str]] = {}
    for name in outcome.study.challengers:
        groups.setdefault(outcome.analysis.primary(name).verdict or "inconclusive", []).append(name)
    parts = [
        f"{join(groups[verdict])} {'is' if len(groups[verdict]) == 1 else 'are'} {verdict} {preposition} {baseline}"
        for verdict, preposition in (("better", "than"), ("worse", "than"), ("equivalent", "to"))
        if verdict in groups
    ]
    if "inconclusive" in groups:
        open_ones = join(groups["inconclusive"])
        is_are = "is" if len(groups["inconclusive"]) == 1 else "are"
        parts.append(f"{open_ones} {is_are} inconclusive" if parts else f"Inconclusive: {open_ones} against {baseline}")
    return "; ".join(parts) + "."


def join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(outcome: Outcome, name: str) -> str:
    """The verdict on one challenger with its amount, its certainty and its reason."""
    found = outcome.analysis.primary(name)
    amount = f"{difference_text(found)} (95% interval {interval_text(found)}) over {found.estimate.cases} cases"
    return f"{found.verdict}, {amount}. {reason(outcome, name)}"


def reason(outcome: Outcome, name: str) -> str:
    """Why a challenger got its verdict, and how firm its rank is."""
    found, margin = outcome.analysis.primary(name), _DICE.shown(outcome.settings.margin)
    first = outcome.analysis.ranking.places[name][0]
    certain = f"{p_text(found.p_holm)} after Holm's correction. Ranks first in {first:.0%} of resamples."
    reasons = {
        "better": f"The interval lies above zero, and the tests agree: {certain}",
        "worse": f"The interval lies below zero, and the tests agree: {certain}",
        "equivalent": f"The 90% interval ({equivalence_text(found)}) lies within ±{margin} points, and the tests "
        f"against that margin reject ({p_text(found.p_equivalent_holm)}).{_proven(found)}",
        "inconclusive": f"{_doubt(found)}, and equivalence within ±{margin} points is not shown either. "
        f"{needed_text(outcome, name)}",
    }
    return f"{reasons[found.verdict or 'inconclusive']} {scope(outcome, found)}".strip()


def scope(outcome: Outcome, found: Comparison) -> str:
    """The trainings for which a verdict holds; empty if it holds for new ones too."""
    if found.estimate.new_trainings:
        return ""
    what = "this training of each method" if outcome.study.configuration else "these predictions"
    return f"This holds under {what} only: new trainings could change it."


def needed_text(outcome: Outcome, name: str) -> str:
    """The sizes that would decide an inconclusive comparison."""
    found = outcome.analysis.primary(name).estimate
    sizes = needed(found, outcome.settings.margin, fewest_repeats(outcome, name), len(outcome.study.challengers))
    if sizes is None:
        return "There are too few cases to estimate how many more would decide."
    texts = [f"about {sizes.cases} cases"] if sizes.cases else []
    texts += [f"{sizes.folds} folds"] if sizes.folds else []
    repeated = "supports" if outcome.study.supports else "trainings"
    texts += [f"{sizes.repeats} {repeated} of each fold"] if sizes.repeats else []
    if not texts:
        return "Neither more cases, folds nor repeats alone would decide it."
    return f"If mean and variances stay as they are, {' or '.join(texts)} would decide."


def fewest_repeats(outcome: Outcome, name: str) -> int:
    """Trainings of each fold, the fewer of a challenger's and the baseline's."""
    return min(len(m.runs) for m in outcome.study.methods if m.name in (name, outcome.study.baseline))


def _includes_zero(found: Comparison) -> bool:
    return not (found.estimate.low > 0 or found.estimate.high < 0)


def _doubt(found: Comparison) -> str:
    p = f"{p_text(found.p_holm)} after Holm's correction"
    if _includes_zero(found):
        return f"No difference is shown ({p}, and the interval includes zero)"
    if found.p_holm >= LEVEL:
        return f"No difference is shown ({p}, although the interval excludes zero)"
    return f"No difference is shown: the mean and the signed ranks point in opposite directions ({p})"


def _proven(found: Comparison) -> str:
    if _includes_zero(found) or found.p_holm >= LEVEL:
        return ""
    return f" A difference is shown ({p_text(found.p_holm)}), but it is smaller than the margin."


def cost_ratios(outcome: Outcome, name: str) -> list[tuple[str, float]]:
    """Costs of a challenger as multiples of the baseline's, where both were measured."""
    own, base = outcome.costs.get(name), outcome.costs.get(outcome.study.baseline)
    if own is None or base is None:
        return []
    ratios = [(title, getattr(own, key) / getattr(base, key)) for key, title in _RATIOS if getattr(base, key)]
    return [(title, ratio) for title, ratio in ratios if np.isfinite(ratio)]


def cost_sentence(outcome: Outcome, name: str) -> str:
    """The cost ratios in words; empty if nothing was measured."""
    ratios = [
        f"the same {title}" if f"{ratio:.2g}" == "1" else f"{ratio:.2g} times the {title}"
        for title, ratio in cost_ratios(outcome, name)[:3]
    ]
    return f"It costs {join(ratios)}." if ratios else ""


def lesion_sentence(outcome: Outcome, name: str) -> str:
    """The detection of lesions of one challenger, in F1; empty where none were counted."""
    texts = []
    for label in outcome.settings.lesions:
        found = outcome.analysis.lesions.get((name, "lesion_f1", label))
        if found is not None:
            amount = ALL_METRICS[found.metric].shown(found.estimate.mean, signed=True)
            texts.append(f"F1 of {label} lesions {amount} points (95% interval {interval_text(found)})")
    return f"{'; '.join(texts)}." if texts else ""


def notes(outcome: Outcome) -> list[str]:
    """Caveats."""
    found = [*outcome.study.notes, *warnings(outcome)]
    cases, folds = len(outcome.study.cases), len(outcome.study.folds)
    if outcome.study.configuration and folds == 1 and not _all_repeated(outcome):
        found.append(
            "A single training of each method was compared: the verdicts hold under this training, and published "
            "repeats of one recipe differ by more than a point of Dice. Train more folds, or repeat the training."
        )
    elif 1 < folds < _FEW_FOLDS:
        found.append(
            f"{folds} folds say little about how much trainings differ, so that intervals are wide: use five or more."
        )
    present = outcome.scores.groupby("label")["truth_voxels"].max()
    never = [name for name in outcome.study.labels.labels if not present[name]]
    if never and outcome.settings.empty_labels == "score":
        found.append(f"No case has the label {join(never)}: an empty prediction scores 1 there, in every mean.")
    if cases < _FEW_CASES:
        found.append(
            f"{cases} cases are few: only large differences can be shown, and none at all with fewer than six."
        )
    trained = {name: (cost.epochs, cost.iterations) for name, cost in outcome.costs.items() if cost.epochs}
    if len(set(trained.values())) > 1:
        texts = [
            f"{name} {epochs} epochs{f' of {iterations} iterations' if iterations else ''}"
            for name, (epochs, iterations) in trained.items()
        ]
        found.append(f"The trainings were not equally long, as far as the logs tell: {'; '.join(texts)}.")
    if outcome.beyond.ensemble:
        found.append(
            "The ensemble's two models were chosen by the cases on which it is evaluated here: its Dice is optimistic, "
            "and no verdict is given on it."
        )
    patches = {cost.patch_size for cost in outcome.costs.values() if cost.patch_size}
    if len(patches) > 1:
        found.append("The plans have different patch sizes: multiply-adds are of one patch each.")
    found += [f"{name}: not counted, {cost.reason}" for name, cost in outcome.costs.items() if cost.reason]
    if outcome.costs and not outcome.settings.timed:
        found.append("Seconds are left out: the trainings did not have equal machines to themselves.")
    missing = [name for name, cost in outcome.costs.items() if not np.isfinite(cost.memory_gb)]
    if missing:
        found.append(f"{join(missing)}: nnU-Net's own trainers do not log their memory; StockTrainer does.")
    return found + _emptiness(outcome)


def _all_repeated(outcome: Outcome) -> bool:
    return all(len(method.runs) > 1 for method in outcome.study.methods)


def _emptiness(outcome: Outcome) -> list[str]:
    texts = []
    for name in (method.name for method in outcome.study.methods):
        missed = sum(e.missed for (who, _), e in outcome.analysis.emptiness.items() if who == name)
        false_positives = sum(e.false_positives for (who, _), e in outcome.analysis.emptiness.items() if who == name)
        if missed or false_positives:
            texts.append(f"{name} missed {missed} entirely and has {false_positives} false positives")
    if not texts:
        return []
    return [f"Labels missed entirely, or false positive (cases): {'; '.join(texts)}."]


def mean_text(outcome: Outcome, name: str, metric: str = PRIMARY, label: str = MEAN) -> str:
    """The mean of a method."""
    return METRICS[metric].shown(outcome.analysis.means[name, metric, label])
