"""Verdicts without a true difference: how often `nnunet_ext compare` errs, and how often its interval covers zero.

    python -m benchmarks.compare_simulation

writes results/compare_simulation.csv and its table into docs/compare.md.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from benchmarks.measure import RESULTS, environment, write_rows
from nnunet_ext.compare.inference import estimate, verdict

NAME = "compare_simulation"
FILE = RESULTS / f"{NAME}.csv"
PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
MARGIN, SPREAD, FOLDS, RUNS = 0.005, 0.02, 5, 1000
TRAININGS = {"independent": 0.0, "trainings": 0.5, "weak trainings": 0.3}
PATIENTS = {"two scans of each patient": 2, "ten scans of each patient": 10}
STRUCTURES = (*TRAININGS, *PATIENTS)
SHAPES: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda generator, size: generator.normal(0, 1, size),
    "skewed": lambda generator, size: generator.exponential(size=size) - 1,
    "heavy-tailed": lambda generator, size: generator.standard_t(3, size) / np.sqrt(3),
}


def sample(
    generator: np.random.Generator, structure: str, shape: str
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Differences whose true mean is zero, with the fold and the group of each."""
    draw = SHAPES[shape]
    if structure in TRAININGS:
        cases, correlation = 50, 0.0
        groups = np.arange(cases)
        values = draw(generator, cases)
        if TRAININGS[structure]:
            values = values + TRAININGS[structure] * generator.normal(size=FOLDS)[groups % FOLDS]
    else:
        scans = PATIENTS[structure]
        patients, correlation = (25 if scans == 2 else 10), 0.9
        groups = np.arange(patients * scans) // scans
        values = np.sqrt(correlation) * draw(generator, patients)[groups]
        values = values + np.sqrt(1 - correlation) * draw(generator, patients * scans)
    return SPREAD * values, [str(group % FOLDS) for group in groups], [str(group) for group in groups]


def simulate(structure: str, shape: str, runs: int, seed: int = 0) -> tuple[float, float]:
    """Share of runs with the verdict better or worse, and share of 95% intervals that cover zero."""
    generator = np.random.default_rng(seed)
    wrong = covered = 0
    for _ in range(runs):
        values, folds, groups = sample(generator, structure, shape)
        found = estimate(values, folds, MARGIN, groups=groups, resamples=0)
        wrong += verdict(found, found.p, found.p_equivalent, MARGIN) in ("better", "worse")
        covered += found.low <= 0 <= found.high
    return wrong / runs, covered / runs


def table(rows: list[dict[str, str]]) -> str:
    """The rows of the CSV file as a table of docs/compare.md."""
    lines = ["| noise | differences | better or worse | interval covers |", "|---|---|--:|--:|"]
    for row in rows:
        shares = [f"{100 * float(row[key]):.1f}%" for key in ("better_or_worse", "coverage")]
        lines.append(f"| {row['structure']} | {row['shape']} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines)


def main() -> None:
    rows = []
    for structure in STRUCTURES:
        for shape in SHAPES:
            wrong, covered = simulate(structure, shape, RUNS)
            known = {"structure": structure, "shape": shape, "runs": str(RUNS), "seed": "0"}
            rows.append(known | {"better_or_worse": f"{wrong:.3f}", "coverage": f"{covered:.3f}"})
    write_rows(NAME, rows, {"numpy": np.__version__, "scipy": scipy.__version__, **environment()})
    text = PAGE.read_text()
    marks = r"(<!-- simulation -->\n).*(<!-- /simulation -->)"
    PAGE.write_text(re.sub(marks, lambda found: f"{found[1]}{table(rows)}\n{found[2]}", text, flags=re.S))


if __name__ == "__main__":
    main()
