"""From a study to the files of its report."""

import json
from contextlib import ExitStack
from pathlib import Path

from nnunet_ext.compare.analysis import analyse
from nnunet_ext.compare.cost import costs, training_logs
from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.report.html import html_report
from nnunet_ext.compare.report.markdown import markdown_report
from nnunet_ext.compare.report.summary_json import summary
from nnunet_ext.compare.result import Outcome, Settings
from nnunet_ext.compare.study import Study
from nnunet_ext.utils.files import check_writable, remove_left_overs, replacing

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
        OSError: if a file cannot be written, with its name; a report that was there stays as it was.
    """
    for name, value in (("margin", settings.margin), ("tolerance", settings.tolerance)):
        if not value > 0:
            raise ValueError(f"`{name}`={value:g} must be above 0")
    for folder in (output, cache or output / CACHE):  # before hours of measuring
        check_writable(folder)
        remove_left_overs(folder)
    scores = measure(study, settings.tolerance, cache or output / CACHE, processes)
    logs = training_logs(study)
    analysis = analyse(study, scores, settings.margin, settings.seed)
    outcome = Outcome(study, settings, scores, analysis, costs(study, logs, settings.timed), logs)
    files = {
        "cases.csv": scores.to_csv(index=False, lineterminator="\n"),
        "summary.json": json.dumps(summary(outcome), indent=2, allow_nan=False) + "\n",
        "report.md": markdown_report(outcome),
        "report.html": html_report(outcome),
    }
    with ExitStack() as stack:  # a report that was there is replaced when all of the new one is written
        for name in reversed(files):  # the page comes last into its place: it says that all is there
            file = stack.enter_context(replacing(output / name, "w"))
            file.write(files[name])
            file.flush()
    return outcome
