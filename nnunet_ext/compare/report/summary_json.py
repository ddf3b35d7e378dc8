"""summary.json: everything that the report says, for programs; its keys are documented in docs/compare.md."""

from dataclasses import asdict
from typing import Any

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.compare.analysis import MEAN, Comparison
from nnunet_ext.compare.lesion_metrics import ALL_METRICS
from nnunet_ext.compare.metrics import METRICS
from nnunet_ext.compare.mixed_model import MixedModel
from nnunet_ext.compare.report.text import headline, notes
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import LEVEL, RESAMPLES

SCHEMA = 2


def summary(outcome: Outcome) -> dict[str, Any]:
    """The content of summary.json; missing numbers are null."""
    study, analysis, beyond = outcome.study, outcome.analysis, outcome.beyond
    comparisons = [
        {
            "entrant": c.method,
            "metric": c.metric,
            **_label(c.label),
            "verdict": c.verdict,
            **_difference(c),
            "p_equivalent_holm": c.p_equivalent_holm,
            "equivalence_low": c.estimate.equivalence_low,
            "equivalence_high": c.estimate.equivalence_high,
            "conditional_low": c.estimate.conditional_low,
            "conditional_high": c.estimate.conditional_high,
            "p_model": c.estimate.p_model,
            "p_signed_rank": c.estimate.p_signed_rank,
            "p_permutation": c.estimate.p_permutation,
            "new_trainings": c.estimate.new_trainings,
            "variance": _variance(c.estimate.model),
        }
        for c in analysis.comparisons.values()
    ]
    return _plain(
        {
            "schema": SCHEMA,
            "nnunet_ext": __version__,
            "title": study.title,
            "headline": headline(outcome),
            "baseline": study.baseline,
            "entrants": [method.name for method in study.methods],
            "folds": list(study.folds),
            "cases": len(study.cases),
            "labels": dict(study.labels.labels),
            "settings": asdict(outcome.settings) | {"resamples": RESAMPLES, "level": LEVEL},
            "metrics": {
                key: {"title": metric.title, "higher_is_better": metric.higher_is_better}
                for key, metric in (ALL_METRICS if outcome.settings.lesions else METRICS).items()
            },
            "verdicts": {name: analysis.primary(name).verdict for name in study.challengers},
            "comparisons": comparisons,
            "means": [
                {"entrant": method, "metric": metric, **_label(label), "mean": value}
                for (method, metric, label), value in analysis.means.items()
            ],
            "ranks": {
                name: {"mean_rank": analysis.ranking.mean_ranks[name], "places": analysis.ranking.places[name]}
                for name in analysis.ranking.order
            },
            "emptiness": [
                {
                    "entrant": method,
                    "label": label,
                    "missed": c.missed,
                    "invented": c.false_positives,
                    "absent": c.absent,
                }
                for (method, label), c in analysis.emptiness.items()
            ],
            "nnunet_foreground_means": analysis.nnunet_means,
            "false_positive_rates": [
                {
                    "entrant": method,
                    "label": label,
                    "mean": c.own,
                    "baseline_mean": c.baseline,
                    "interval_low": c.estimate.low,
                    "interval_high": c.estimate.high,
                    "p_holm": c.p_holm,
                    "pairs": c.estimate.cases,
                }
                for (method, label), c in analysis.false_positive_rates.items()
            ],
            "lesions": [
                {
                    "entrant": method,
                    "metric": metric,
                    "label": label,
                    **_difference(c),
                }
                for (method, metric, label), c in analysis.lesions.items()
            ],
            "lesion_totals": [
                {"entrant": method, "label": label, **asdict(total)}
                for (method, label), total in analysis.lesion_totals.items()
            ],
            "repeats": {method.name: len(method.runs) for method in study.methods},
            "groups": dict(study.groups) if study.groups else None,
            "costs": {name: asdict(cost) for name, cost in outcome.costs.items()},
            "ensemble": {"models": list(beyond.ensemble), "foreground_mean": beyond.dice} if beyond.ensemble else None,
            "masks": [
                {"name": name, "masks": n, "folder": beyond.folders[name]} for name, n in beyond.predicted.items()
            ],
            "notes": notes(outcome),
        }
    )


def _difference(c: Comparison) -> dict[str, Any]:
    return {
        "mean": c.own,
        "baseline_mean": c.baseline,
        "difference": c.estimate.mean,
        "interval_low": c.estimate.low,
        "interval_high": c.estimate.high,
        "p": c.estimate.p,
        "p_holm": c.p_holm,
        "pairs": c.estimate.cases,
        "dropped": c.dropped,
    }


def _label(label: str) -> dict[str, Any]:
    """A label may be called mean: the second key tells it from the mean of labels."""
    return {"label": label or "mean", "mean_of_labels": label == MEAN}


def _variance(model: MixedModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    names = ("trainings", "groups", "cases")
    return {
        "of_mean": model.variance,
        "freedom": model.freedom,
        "components": dict(zip(names, model.components, strict=True)),
        "contributions": dict(zip(names, model.shares, strict=True)),
        "counts": dict(zip(names, model.counts, strict=True)),
    }


def _plain(value: Any) -> Any:
    """Replaces NaN, which JSON does not have, by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
