"""From a study to the files of its report."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from nnunet_ext.compare.analysis import analyse
from nnunet_ext.compare.beyond import Beyond
from nnunet_ext.compare.cost import costs, training_logs
from nnunet_ext.compare.empty_labels import apply_rule
from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.report.figures import plots as all_plots
from nnunet_ext.compare.report.files import figure_files
from nnunet_ext.compare.report.html import html_report
from nnunet_ext.compare.report.markdown import markdown_report
from nnunet_ext.compare.report.overlays import scenes as chosen_scenes
from nnunet_ext.compare.report.summary_json import summary
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.study import Study
from nnunet_ext.utils.files import check_writable, remove_left_overs, replacing

CACHE, FIGURES = "cache", "figures"
_NOTHING = Beyond()


def compare(
    study: Study,
    settings: Settings,
    output: Path,
    processes: int,
    cache: Path | None = None,
    *,
    beyond: Beyond = _NOTHING,
) -> Outcome:
    """Measures, analyses and writes report.html, report.md, cases.csv, summary.json and the folder figures.

    Args:
        study: The study.
        settings: The user's settings.
        output: Folder of the report; created if it is missing.
        processes: Largest number of worker processes.
        cache: Folder in which scores are kept; None: in the report's folder.
        beyond: What was made beside the compared trainings, for the report.

    Raises:
        ValueError: as `measure`, and for invalid settings.
        OSError: if a file cannot be written, with its name; an existing report stays as it is.
    """
    settings.check()
    settings.check_lesions(list(study.labels.labels))
    tolerances = settings.tolerance_of(list(study.labels.labels))
    for folder in (output, cache or output / CACHE):  # before hours of measuring
        check_writable(folder)
        remove_left_overs(folder)
    scores = measure(study, tolerances, cache or output / CACHE, processes, settings.lesions)
    logs = training_logs(study)
    analysis = analyse(study, scores, settings)
    scores = apply_rule(scores, settings.empty_labels)
    outcome = Outcome(study, settings, scores, analysis, costs(study, logs, settings.timed), logs, beyond)
    plots, scenes = all_plots(outcome), chosen_scenes(outcome)
    files = {
        "cases.csv": scores.to_csv(index=False, lineterminator="\n"),
        "summary.json": json.dumps(summary(outcome), indent=2, allow_nan=False) + "\n",
        "report.md": markdown_report(outcome),
        "report.html": html_report(outcome, plots, scenes),
    }
    pictures = figure_files(plots, scenes, study.labels)
    with ExitStack() as stack:  # an existing report is replaced once the new one is complete
        for name in reversed(files):  # the page moves into place last, when everything else is there
            file = stack.enter_context(replacing(output / name, "w"))
            file.write(files[name])
            file.flush()
        _write_figures(output / FIGURES, pictures)
    return outcome


def _write_figures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Writes the figures, and removes those of an earlier report that this one does not have."""
    folder.mkdir(exist_ok=True)
    for name, content in pictures.items():
        with replacing(folder / name) as file:
            file.write(content)
    for old in folder.iterdir():
        if old.suffix in (".pdf", ".svg") and old.name not in pictures:
            old.unlink()
