"""The answer in words, and what must be known to read it."""

from collections.abc import Sequence

import numpy as np

from nnunet_ext.compare.analysis import MEAN, Comparison
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import LEVEL, RESAMPLES

_DICE = METRICS[PRIMARY]
_FEW_CASES = 20
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
    metric, estimate = METRICS[comparison.metric], comparison.estimate
    return f"{metric.shown(estimate.low, signed=True)} to {metric.shown(estimate.high, signed=True)}"


def difference_text(comparison: Comparison) -> str:
    """A mean difference with its unit."""
    metric = METRICS[comparison.metric]
    return f"{metric.shown(comparison.estimate.mean, signed=True)} {metric.title} {metric.unit}"


def headline(outcome: Outcome) -> str:
    """The verdicts in one sentence."""
    baseline = outcome.study.baseline
    groups: dict[str, list[str]] = {}
    for name in outcome.study.challengers:
        groups.setdefault(outcome.analysis.primary(name).verdict or "undecided", []).append(name)
    parts = [
        f"{join(groups[verdict])} {'is' if len(groups[verdict]) == 1 else 'are'} {verdict} {preposition} {baseline}"
        for verdict, preposition in (("better", "than"), ("worse", "than"), ("equivalent", "to"))
        if verdict in groups
    ]
    if "undecided" in groups:
        open_ones = join(groups["undecided"])
        parts.append(f"for {open_ones} it is undecided" if parts else f"Undecided: {open_ones} against {baseline}")
    return "; ".join(parts) + "."


def join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(outcome: Outcome, name: str) -> str:
    """One challenger: verdict, how much, how sure, and why."""
    found = outcome.analysis.primary(name)
    amount = f"{difference_text(found)} (95% interval {interval_text(found)}) over {found.estimate.cases} cases"
    return f"{found.verdict}, {amount}. {reason(outcome, name)}"


def reason(outcome: Outcome, name: str) -> str:
    """Why a challenger got its verdict, and how firm its rank is."""
    found, margin = outcome.analysis.primary(name), _DICE.shown(outcome.settings.margin)
    first = outcome.analysis.ranking.places[name][0]
    sure = f"{p_text(found.p_holm)} after Holm's correction. Ranks first in {first:.0%} of resamples."
    reasons = {
        "better": f"The interval lies above zero, and the signed-rank test agrees: {sure}",
        "worse": f"The interval lies below zero, and the signed-rank test agrees: {sure}",
        "equivalent": f"The interval lies within ±{margin} points, and the test against that margin rejects "
        f"({p_text(found.p_equivalent_holm)}).{_proven(found)}",
        "undecided": f"{_doubt(found)}, nor that it stays within ±{margin} points: more cases or folds are needed.",
    }
    return reasons[found.verdict or "undecided"]


def _includes_zero(found: Comparison) -> bool:
    return not (found.estimate.low > 0 or found.estimate.high < 0)


def _doubt(found: Comparison) -> str:
    p = f"{p_text(found.p_holm)} after Holm's correction"
    if _includes_zero(found):
        return f"Neither is a difference shown ({p}, and the interval includes zero)"
    if found.p_holm >= LEVEL:
        return f"Neither is a difference shown ({p}, though the interval leaves out zero)"
    return f"The mean and the signed ranks speak for different sides ({p}): no difference is shown"


def _proven(found: Comparison) -> str:
    if _includes_zero(found) or found.p_holm >= LEVEL:
        return ""
    return f" A difference is shown ({p_text(found.p_holm)}), but one smaller than the margin."


def cost_ratios(outcome: Outcome, name: str) -> list[tuple[str, float]]:
    """What a challenger costs, as multiples of the baseline: what was measured of both."""
    own, base = outcome.costs.get(name), outcome.costs.get(outcome.study.baseline)
    if own is None or base is None:
        return []
    ratios = [(title, getattr(own, key) / getattr(base, key)) for key, title in _RATIOS if getattr(base, key)]
    return [(title, ratio) for title, ratio in ratios if np.isfinite(ratio)]


def cost_sentence(outcome: Outcome, name: str) -> str:
    """The same in words; empty if nothing was measured."""
    ratios = [
        f"the same {title}" if f"{ratio:.2g}" == "1" else f"{ratio:.2g} times the {title}"
        for title, ratio in cost_ratios(outcome, name)[:3]
    ]
    return f"It costs {join(ratios)}." if ratios else ""


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know to judge the comparison."""
    found = list(outcome.study.notes)
    cases = len(outcome.study.cases)
    if cases < _FEW_CASES:
        found.append(
            f"{cases} cases are few: only large differences can be shown, and with fewer than six no difference at all."
        )
    trained = {name: (cost.epochs, cost.iterations) for name, cost in outcome.costs.items() if cost.epochs}
    if len(set(trained.values())) > 1:
        texts = [
            f"{name} {epochs} epochs{f' of {iterations} iterations' if iterations else ''}"
            for name, (epochs, iterations) in trained.items()
        ]
        found.append(f"The trainings were not equally long, as far as the logs tell: {'; '.join(texts)}.")
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


def _emptiness(outcome: Outcome) -> list[str]:
    texts = []
    for name in (entrant.name for entrant in outcome.study.entrants):
        missed = sum(e.missed for (who, _), e in outcome.analysis.emptiness.items() if who == name)
        invented = sum(e.invented for (who, _), e in outcome.analysis.emptiness.items() if who == name)
        if missed or invented:
            texts.append(f"{name} missed {missed} and invented {invented}")
    if not texts:
        return []
    return [f"Labels of cases wholly missed or invented (Dice 0, no HD95): {'; '.join(texts)}."]


def methods(outcome: Outcome) -> list[str]:
    """How everything was computed."""
    study, settings = outcome.study, outcome.settings
    cross = study.configuration is not None
    where = "cases of all validation folds" if cross else "cases of the held-out set"
    margin = _DICE.shown(settings.margin)
    texts = [
        (
            f"Pairs: the {where}; a case counts with the mean of its labels. A label that neither truth nor prediction "
            "has is left out of the pair; one that only one of both has counts with Dice 0 and surface Dice 0, and "
            "without HD95."
        ),
        (
            f"Difference: the mean of the pairs' differences, with a bootstrap 95% interval of {RESAMPLES:,} resamples "
            f"within folds (seed {settings.seed}), corrected for few cases. Test: Wilcoxon's signed-rank test, "
            f"two-sided, with Holm's correction over the trainers ({len(study.challengers)})."
        ),
        (
            "Verdict: better or worse, if the interval leaves out zero and the test rejects to the same side at 5%; "
            f"equivalent, if the interval lies within ±{margin} Dice points and both one-sided tests against that "
            "margin reject, even where a smaller difference is shown; undecided otherwise. It rests on the mean Dice "
            "alone: other metrics and single labels are reported without correction for their number."
        ),
        (
            f"NSD, the surface Dice at {settings.tolerance:g} mm, and HD95 weight surface elements by their area "
            "(DeepMind's definition). Volume error is the absolute difference of the volumes."
        ),
    ]
    if cross:
        texts.append(
            "Cases of one fold share one training, so the interval speaks for new cases under these trainings; it does "
            "not say how much the result would change with other random seeds."
        )
    return texts


def mean_text(outcome: Outcome, name: str, metric: str = PRIMARY, label: str = MEAN) -> str:
    """An entrant's own mean."""
    return METRICS[metric].shown(outcome.analysis.means[name, metric, label])
