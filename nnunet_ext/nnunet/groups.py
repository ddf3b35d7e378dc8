"""Groups of cases that are not independent: the scans of one patient, the patients of one site."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.utils.messages import some_of

_HEADER_GROUPS = {"group", "patient", "subject", "site", "centre", "center"}
# A stem that ends in a number, and the frame, visit or slice after it: ACDC's patient001_frame01.
_NUMBERED = re.compile(r"(?P<stem>.*\d)[_\-.]+(?P<word>[A-Za-z]*)[_\-.]?(?P<number>\d*)")
_BEFORE_NUMBERS = {
    *("", "frame", "fr", "f", "visit", "v", "session", "ses", "scan", "time", "timepoint", "tp", "t", "phase", "ph"),
    *("slice", "s", "z", "series", "run", "day", "month", "week", "year"),
}
_WITHOUT_NUMBERS = {"ed", "es", "baseline", "followup", "fu", "pre", "post", "left", "right", "l", "r"}


def read_groups(source: str, cases: Sequence[str]) -> dict[str, str]:
    """The group of every case, from a table or from the cases' names.

    Args:
        source: A CSV file with the columns case and group (a header is optional; further columns are ignored), or a
            regular expression that is searched in each name. The group is what the expression's first parentheses
            match, or its whole match where it has none.
        cases: Identifiers of the cases.

    Returns:
        Group by case, in the order of `cases`.

    Raises:
        ValueError: if the file is damaged, the expression is invalid, or cases have no group.
        FileNotFoundError: if `source` ends in .csv and there is no such file.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv" or path.is_file():
        table = _read_table(path)
        if missing := [case for case in cases if case not in table]:
            raise ValueError(f"{path} has no group for {some_of(missing)}: add a line `case,group` for each")
        return {case: table[case] for case in cases}
    return _match_names(source, cases)


def _read_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: save the table as CSV") from error
    groups: dict[str, str] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise ValueError(f"{path}, line {number}: {','.join(row)!r} must be `case,group`, both filled in")
        case, group = cells[:2]
        if not groups and case.lower() == "case" and group.lower() in _HEADER_GROUPS:
            continue
        if groups.get(case, group) != group:
            raise ValueError(f"{path}, line {number}: {case} is in the groups {groups[case]} and {group}: keep one")
        groups[case] = group
    return groups


def _match_names(expression: str, cases: Sequence[str]) -> dict[str, str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"groups {expression!r}: neither a file nor a valid regular expression ({error}); "
            "for example `^(patient\\d+)_` or groups.csv"
        ) from error
    groups, missing = {}, []
    for case in cases:
        found = pattern.search(case)
        group = found.group(1 if pattern.groups else 0) if found else None
        if group:
            groups[case] = group
        else:
            missing.append(case)
    if missing:
        raise ValueError(
            f"the regular expression {expression!r} finds no group in {some_of(missing)}: it must match every name"
        )
    return groups


def groups_from_names(cases: Sequence[str]) -> dict[str, str] | None:
    """The groups that the names of the cases suggest, or None if they suggest none.

    Names look grouped where some share a stem that ends in a number and differ only in what follows: a number
    (case12_03), a frame, visit or slice with its number (patient001_frame01), or a word such as ED and ES. A single
    stem for all cases is the name of the data set (BraTS2021_00001), not a group.

    Args:
        cases: Identifiers of the cases.

    Returns:
        Group by case, in the order of `cases`.
    """
    groups = {case: _stem(case) for case in cases}
    return groups if 1 < len(set(groups.values())) < len(groups) else None


def _stem(case: str) -> str:
    found = _NUMBERED.fullmatch(case)
    if found is None:
        return case
    known = _BEFORE_NUMBERS if found["number"] else _WITHOUT_NUMBERS
    return found["stem"] if found["word"].lower() in known else case
