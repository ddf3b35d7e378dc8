"""Without a true difference, verdicts other than inconclusive or equivalent are rare, whatever the noise."""

import csv

import numpy as np
import pytest

from benchmarks.compare_simulation import FILE, PAGE, SHAPES, STRUCTURES, simulate, table


def check(wrong, covered, runs):
    assert wrong <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / runs)
    assert covered >= 0.92 - 2.33 * np.sqrt(0.08 * 0.92 / runs)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_better_or_worse_is_rare(structure):
    for shape in ("normal", "skewed"):
        check(*simulate(structure, shape, 60, seed=1), 60)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_committed_figures_are_those_of_this_code(structure, shape):
    """A thousand runs: at most 5% errors, plus sampling error, and at least 92% coverage."""
    wrong, covered = simulate(structure, shape, 1000)
    check(wrong, 1.0, 1000)
    assert covered >= 0.92
    with FILE.open() as file:
        row = next(r for r in csv.DictReader(file) if (r["structure"], r["shape"]) == (structure, shape))
    assert (float(row["better_or_worse"]), float(row["coverage"])) == pytest.approx((wrong, covered), abs=0.005)


def test_the_documentation_shows_the_committed_figures():
    with FILE.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["structure"], row["shape"]) for row in rows] == [(a, b) for a in STRUCTURES for b in SHAPES]
    assert table(rows) in PAGE.read_text()
    for row in rows:
        check(float(row["better_or_worse"]), float(row["coverage"]), int(row["runs"]))
        assert all(row[column] for column in ("processor", "numpy", "scipy", "python", "date", "commit"))
