"""Convert a public data set of the few-shot literature, as downloaded, to nnU-Net's raw format."""

import argparse
import sys
from pathlib import Path

from nnunet_ext.converting.layout import check_target, find_cases
from nnunet_ext.converting.sets import SETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=str.lower, choices=list(SETS), help="the data set")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with its files, as unpacked")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FOLDER", help="folder to write, nnUNet_raw/DatasetXXX_NAME"
    )
    parser.epilog = (
        "Cases without labels go to imagesTs. If a case cannot be converted, it is named, nothing is written, and the "
        "exit code is 1. An existing dataset is never overwritten."
    )


def run(arguments: argparse.Namespace) -> int:
    public, target = SETS[arguments.name], arguments.output.absolute()
    check_target(target)
    cases = find_cases(public, arguments.source)

    from nnunet_ext.converting.run import run as convert

    result = convert(public, cases, target)
    for note in result.notes:
        print(f"note: {note}")
    if len(cases) != public.cases:
        print(f"note: {len(cases)} of the {public.cases} published cases of {public.title} are in {arguments.source}")
    for failure in result.failures:
        print(f"{failure.case}: {failure.reason}", file=sys.stderr)
    if result.failures:
        print(f"{len(result.failures)} of {len(cases)} cases cannot be converted; nothing was written", file=sys.stderr)
        return 1
    labelled = sum(bool(case.labels) for case in cases)
    print(f"Wrote {labelled} labelled cases and {len(cases) - labelled} without labels to {target}")
    print(f"Licence: {public.licence} ({public.url})")
    return 0
