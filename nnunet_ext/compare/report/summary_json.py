"""summary.json: everything that the report says, for programs; its keys are documented in docs/compare.md."""

from dataclasses import asdict
from typing import Any

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.compare.metrics import METRICS
from nnunet_ext.compare.report.text import headline, notes
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.statistics import LEVEL, RESAMPLES

SCHEMA = 1


def summary(outcome: Outcome) -> dict[str, Any]:
    """The content of summary.json; numbers that are not there are null."""
    study, analysis = outcome.study, outcome.analysis
    comparisons = [
        {
            "entrant": c.entrant,
            "metric": c.metric,
            "label": c.label,
            "verdict": c.verdict,
            "mean": c.own,
            "baseline_mean": c.baseline,
            "difference": c.estimate.mean,
            "interval_low": c.estimate.low,
            "interval_high": c.estimate.high,
            "p": c.estimate.p,
            "p_holm": c.p_holm,
            "p_equivalent_holm": c.p_equivalent_holm,
            "pairs": c.estimate.cases,
            "dropped": c.dropped,
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
            "entrants": [entrant.name for entrant in study.entrants],
            "folds": list(study.folds),
            "cases": len(study.cases),
            "labels": dict(study.labels.labels),
            "settings": asdict(outcome.settings) | {"resamples": RESAMPLES, "level": LEVEL},
            "metrics": {
                key: {"title": metric.title, "higher_is_better": metric.higher_is_better}
                for key, metric in METRICS.items()
            },
            "verdicts": {name: analysis.primary(name).verdict for name in study.challengers},
            "comparisons": comparisons,
            "means": [
                {"entrant": entrant, "metric": metric, "label": label, "mean": value}
                for (entrant, metric, label), value in analysis.means.items()
            ],
            "ranks": {
                name: {"mean_rank": analysis.ranking.mean_ranks[name], "places": analysis.ranking.places[name]}
                for name in analysis.ranking.order
            },
            "emptiness": [
                {"entrant": entrant, "label": label} | asdict(counts)
                for (entrant, label), counts in analysis.emptiness.items()
            ],
            "costs": {name: asdict(cost) for name, cost in outcome.costs.items()},
            "notes": notes(outcome),
        }
    )


def _plain(value: Any) -> Any:
    """Without NaN, which JSON does not have, and without tuples."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
