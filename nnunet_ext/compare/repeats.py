"""Repeats of a training with other random seeds, and groups of cases, as a comparison takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_ext.compare.study import Run, Study
from nnunet_ext.nnunet.groups import groups_from_names, read_groups
from nnunet_ext.utils.messages import some_of


def read_repeats(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Folders by method, from arguments of the form NAME=FOLDER,FOLDER.

    Raises:
        ValueError: for an argument of another form.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, folders = text.partition("=")
        parts = [part for part in folders.split(",") if part]
        if not (name and parts):
            raise ValueError(f"--repeats-of {text!r} must be NAME=FOLDER,FOLDER, for example SASANTrainer=run2,run3")
        found.setdefault(name, []).extend(Path(part) for part in parts)
    return found


def check_repeats(name: str, runs: Sequence[Run]) -> None:
    """Raises ValueError unless all runs of a method have the same cases in the same folds."""
    expected = {case.name: case.fold for case in runs[0].cases.values()}
    for number, run in enumerate(runs[1:], start=2):
        found = {case.name: case.fold for case in run.cases.values()}
        other = sorted(case for case in expected.keys() | found.keys() if expected.get(case) != found.get(case))
        if other:
            raise ValueError(
                f"repeat {number} of {name} was validated on other cases or splits than repeat 1; they differ in "
                f"{some_of(other)}"
            )


def with_groups(study: Study, source: str | None) -> Study:
    """The study with the groups of its cases and the caveats that follow from them.

    Args:
        study: The study.
        source: A CSV file or a regular expression, see `read_groups`; None: every case is independent.

    Raises:
        ValueError: as `read_groups`.
    """
    cases = list(study.cases)
    if source is not None:
        groups = read_groups(source, cases)
        return replace(study, groups=groups, notes=[*_crossing(study, groups), *study.notes])
    guessed = groups_from_names(cases)
    if guessed is None:
        return study
    example = next(case for case in cases if list(guessed.values()).count(guessed[case]) > 1)
    note = (
        f"The names of the cases look grouped ({example} belongs to {guessed[example]}), but every case was taken as "
        "independent: if several belong to one patient, give --groups, or intervals are too narrow."
    )
    return replace(study, notes=[*_crossing(study, guessed), note, *study.notes])


def _crossing(study: Study, groups: Mapping[str, str]) -> list[str]:
    folds: dict[str, set[str]] = {}
    for name, case in study.cases.items():
        folds.setdefault(groups[name], set()).add(case.fold)
    crossing = sorted(group for group, found in folds.items() if len(found) > 1)
    if not crossing:
        return []
    return [
        "WARNING: cases of the same group were in training and in validation, so all scores are too high and no "
        "verdict can be trusted: split by group and train again. Groups in several folds: " + some_of(crossing) + "."
    ]
