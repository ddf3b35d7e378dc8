"""The entry point of all measurements.

python -m benchmarks                    lists the measurements and whether their results exist
python -m benchmarks NAME [NAME ...]    measures, writes benchmarks/results, then regenerates docs/results.md
python -m benchmarks all                runs everything that needs no further data on this machine: hours on two cores
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks.measure import RESULTS
from benchmarks.page import results_page
from benchmarks.registry import MEASUREMENTS, Measurement


def listing() -> str:
    """One paragraph per measurement."""
    lines = []
    for measurement in MEASUREMENTS.values():
        there = all((RESULTS / f"{name}.csv").is_file() for name in measurement.results)
        lines.append(f"{measurement.name}{'' if there else '  (not measured yet)'}")
        lines.append(f"    {measurement.measured}\n    {measurement.shown}")
    return "\n".join(lines)


def chosen(names: Sequence[str]) -> list[Measurement]:
    """Measurements by name; "all" selects those that run without further arguments.

    Raises:
        ValueError: for an unknown name, or for a measurement whose command has placeholders.
    """
    if list(names) == ["all"]:
        cuda = torch.cuda.is_available()
        return [m for m in MEASUREMENTS.values() if not m.needs_data and (cuda or not m.cuda)]
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"unknown measurement {unknown[0]!r}; known: {', '.join(MEASUREMENTS)}, all")
    for name in names:
        if MEASUREMENTS[name].needs_data:
            raise ValueError(f"{name} needs data; replace the placeholders and run it: {MEASUREMENTS[name].shown}")
    return [MEASUREMENTS[name] for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args(argv).names
    if not names:
        print(listing())
        return 0
    try:
        measurements = chosen(names)
    except ValueError as error:
        parser.error(str(error))
    failed = []
    for measurement in measurements:
        print(f"== {measurement.shown}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", *measurement.command], check=False, cwd=RESULTS.parents[1]).returncode:
            failed.append(measurement.name)
    results_page.main([])
    if failed:
        print(f"not measured, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
