"""From a study to the files of its report."""

import json
from pathlib import Path

from nnunet_ext.compare.analysis import analyse
from nnunet_ext.compare.cost import costs, training_logs
from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.markdown import markdown_report
from nnunet_ext.compare.outcome import Outcome, Settings
from nnunet_ext.compare.page import html_report
from nnunet_ext.compare.study import Study
from nnunet_ext.compare.summary import summary

CACHE = "cache"


def compare(study: Study, settings: Settings, output: Path, processes: int, cache: Path | None = None) -> Outcome:
    """Measures, analyses and writes report.html, report.md, cases.csv and summary.json.

    Args:
        study: What is compared.
        settings: How.
        output: Folder of the report; made if it is not there.
        processes: To measure with.
        cache: Where scores are kept; None: in the report's folder.

    Raises:
        ValueError: as `measure`, and for a margin or a tolerance that is not above zero.
    """
    for name, value in (("margin", settings.margin), ("tolerance", settings.tolerance)):
        if not value > 0:
            raise ValueError(f"`{name}`={value:g} must be above 0")
    output.mkdir(parents=True, exist_ok=True)
    scores = measure(study, settings.tolerance, cache or output / CACHE, processes)
    logs = training_logs(study)
    outcome = Outcome(
        study, settings, scores, analyse(study, scores, settings.margin, settings.seed), costs(study, logs), logs
    )
    scores.to_csv(output / "cases.csv", index=False)
    (output / "summary.json").write_text(json.dumps(summary(outcome), indent=2, allow_nan=False) + "\n")
    (output / "report.md").write_text(markdown_report(outcome), encoding="utf-8")
    (output / "report.html").write_text(html_report(outcome), encoding="utf-8")
    return outcome
