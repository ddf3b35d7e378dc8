"""report.html: one self-contained page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_ext import __version__
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.overlays import LABEL_COLOURS, Scene, pictures
from nnunet_ext.compare.report.procedure import procedure
from nnunet_ext.compare.report.svg import Plot
from nnunet_ext.compare.report.tables import all_tables
from nnunet_ext.compare.report.text import cost_ratios, headline, interval_text, lesion_sentence, notes, reason
from nnunet_ext.compare.result import Outcome
from nnunet_ext.utils.messages import named

_SIGNS = {"better": "\N{BLACK UP-POINTING TRIANGLE}", "worse": "\N{BLACK DOWN-POINTING TRIANGLE}"}
_SIGNS |= {"equivalent": "=", "inconclusive": "?"}
_DICE = METRICS[PRIMARY]


def html_report(outcome: Outcome, plots: Sequence[Plot], scenes: Sequence[Scene]) -> str:
    """The text of report.html."""
    study = outcome.study
    labels = study.labels.labels
    environment = Environment(
        loader=PackageLoader("nnunet_ext.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=study.title,
        baseline=study.baseline,
        fold_text=f" of {named('fold', study.folds)}" if study.configuration else "",
        headline=headline(outcome),
        cards=[_card(outcome, name) for name in study.challengers],
        notes=notes(outcome),
        tables=all_tables(outcome),
        plots=plots,
        overlays=[
            (f"{scene.rank.capitalize()} difference: {scene.case}", pictures(scene, study.labels)) for scene in scenes
        ],
        label_colours=[(name, LABEL_COLOURS[i % len(LABEL_COLOURS)]) for i, name in enumerate(labels)],
        case_heads=_case_heads(outcome),
        cases=_cases(outcome),
        methods=procedure(outcome),
        version=__version__,
    )


def _card(outcome: Outcome, name: str) -> dict[str, Any]:
    found = outcome.analysis.primary(name)
    verdict = found.verdict or "inconclusive"
    return {
        "name": name,
        "verdict": verdict,
        "sign": _SIGNS[verdict],
        "amount": _DICE.shown(found.estimate.mean, signed=True),
        "interval": interval_text(found),
        "cases": found.estimate.cases,
        "reason": reason(outcome, name),
        "lesions": lesion_sentence(outcome, name),
        "ratios": [(title, f"{ratio:.2g}") for title, ratio in cost_ratios(outcome, name)],
    }


def _case_heads(outcome: Outcome) -> list[str]:
    study = outcome.study
    return ["Case", "Fold", study.baseline, *study.challengers, *(f"{name}, difference" for name in study.challengers)]


def _cases(outcome: Outcome) -> list[dict[str, Any]]:
    study, analysis = outcome.study, outcome.analysis
    own = [analysis.case_scores[name, PRIMARY] for name in (study.baseline, *study.challengers)]
    differences = [analysis.case_differences[name] for name in study.challengers]
    rows = []
    for number, case in enumerate(study.cases.values()):
        cells = [_cell(column[number]) for column in own]
        cells += [_cell(column[number], signed=True) for column in differences]
        rows.append({"name": case.name, "fold": case.fold, "cells": cells})
    return rows


def _cell(value: float, signed: bool = False) -> tuple[str, str]:
    """Sort key and text of a cell."""
    return (f"{value:.9f}" if np.isfinite(value) else ""), _DICE.shown(value, signed)
