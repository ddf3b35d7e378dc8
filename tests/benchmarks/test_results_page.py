"""Results page, figures, and tables of README and other pages agree with the CSV files; every file has a command."""

import argparse
import csv
import importlib.util
import math
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import chosen, listing
from benchmarks.__main__ import main as entry
from benchmarks.measure import RESULTS
from benchmarks.page import accuracy_tables, figures, results_page, tables
from benchmarks.page.result_files import Results, markdown_table, measured_where
from benchmarks.page.results_page import (
    FIGURES,
    README,
    REPORTED,
    claims,
    differences,
    page,
    pages_with_tables,
    with_tables,
)
from benchmarks.registry import MEASUREMENTS, measurement_of
from benchmarks.transcriptions import PLAIN, rows_of
from nnunet_ext.bench.setting import Setting
from nnunet_ext.cli import bench

COMMITTED, OTHERS = Results(RESULTS), Results(REPORTED)


@pytest.fixture
def copied(tmp_path):
    """The committed files, to be changed."""
    return Results(Path(shutil.copytree(RESULTS, tmp_path / "results")))


def write(results, name, rows):
    with (results.folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change(results, name, column, by):
    """Adds to the first number of a column."""
    rows = results.rows(name)
    row = next(row for row in rows if row[column])
    row[column] = str(float(row[column]) + by)
    write(results, name, rows)


def test_pages_and_figures_show_the_committed_files():
    assert differences(COMMITTED, OTHERS) == []


def test_a_changed_number_is_noticed(copied):
    change(copied, "sasan_cpu", "ours_s", 1)
    assert differences(copied, OTHERS) == ["docs/results.md", "docs/sasan.md"]


def test_a_changed_number_of_a_figure_is_noticed(copied):
    change(copied, "tiles_cpu", "seconds", 1)
    assert differences(copied, OTHERS) == ["docs/results.md", "docs/figures/tiles.svg"]


def test_a_changed_number_of_a_sentence_is_noticed(copied):
    rows = copied.rows("selective_scan_cpu")
    write(copied, "selective_scan_cpu", [row | {"times_faster_than_mambapy": "7.4"} for row in rows])
    assert any("7 times as fast as mambapy" in text for text in differences(copied, OTHERS))
    assert any("7 times as fast as mambapy" in text for _, text in claims(copied, OTHERS))


def test_a_changed_range_of_a_sentence_is_noticed(copied):
    rows = copied.rows("transcriptions_cpu")
    write(copied, "transcriptions_cpu", [row | {"times_faster": "7.4"} for row in rows])
    expected = "(forward and backward pass 1.1 to 7.4 times; MT-UNet's 7.4 times faster)"
    assert any(expected in text for text in differences(copied, OTHERS))


def test_a_changed_number_of_another_page_is_noticed(copied):
    rows = copied.rows("accuracy_hippocampus")
    write(copied, "accuracy_hippocampus", [row | {"dice": "0.1234"} for row in rows])
    assert any(text.startswith("docs/lstm_sa.md, which should say") for text in differences(copied, OTHERS))


def test_a_changed_number_of_a_paper_is_noticed(tmp_path):
    others = Results(Path(shutil.copytree(REPORTED, tmp_path / "reported")))
    change(others, "papers", "value", 1)
    assert any(text.startswith("docs/sasan.md, which should say ' 85.91'") for text in differences(COMMITTED, others))


def test_measured_and_reported_numbers_stand_apart():
    measured, reported = page(COMMITTED, OTHERS).split("## Reported by others, not measured by us")
    for row in OTHERS.rows("papers"):
        assert row["source"] in reported
        assert row["source"] not in measured
    assert "89.04" in reported
    assert "89.04" not in measured


def test_every_file_has_one_command():
    named = [name for measurement in MEASUREMENTS.values() for name in measurement.results]
    assert len(named) == len(set(named))
    assert set(COMMITTED.names) <= set(named)
    for name in COMMITTED.names:
        assert f"benchmarks/results/{name}.csv" in page(COMMITTED, OTHERS)
    with pytest.raises(KeyError, match=r"no command in .* writes"):
        measurement_of("something_else")


@pytest.mark.parametrize("name", COMMITTED.names)
def test_files_are_what_their_command_writes(name):
    """Checks the options that are recorded in the rows."""
    words = measurement_of(name).command
    for option, column in (("--threads", "threads"), ("--clock", "clock")):
        if option in words:
            assert {row[column] for row in COMMITTED.rows(name)} == {words[words.index(option) + 1]}


def test_files_were_measured_with_committed_code():
    rows = [(name, row) for name in COMMITTED.names for row in COMMITTED.rows(name)]
    assert not {name for name, row in rows if row.get("commit", "").endswith("+changes")}


def test_few_shot_methods_have_five_supports_each():
    """docs/fewshot.md says so."""
    rows = COMMITTED.rows("few_shot_hippocampus")
    assert all(len(accuracy_tables.few_shot_dice(rows, row["method"])) == 5 for row in rows)


def test_a_file_of_no_command_is_noticed(copied):
    shutil.copy(copied.folder / "sasan_cpu.csv", copied.folder / "sasan_mine.csv")
    with pytest.raises(KeyError, match=r"no command in .* writes .*sasan_mine\.csv"):
        page(copied, OTHERS)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_commands_can_be_typed(name):
    """Commands of `nnunet_ext` pass its parser; of the others, the module and its options exist."""
    measurement = MEASUREMENTS[name]
    module, *words = measurement.command
    if module == "nnunet_ext":
        assert words.pop(0) == "bench"
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        arguments = parser.parse_args(words)
        label = f"_{arguments.label}" if arguments.label else ""
        assert measurement.results == tuple(f"{what}{label}_{arguments.device}" for what in arguments.what)
    else:
        # The timing options are defined in `add_timing_options`.
        names = (module, "benchmarks.measure")
        source = "".join(Path(importlib.util.find_spec(name).origin).read_text() for name in names)
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))


def test_what_is_not_there_is_said(tmp_path):
    text = page(Results(tmp_path), OTHERS)
    for measurement in MEASUREMENTS.values():
        assert f"* {measurement.title}: " in text


def test_tables_of_a_page_are_replaced_alone(copied):
    old = "a\n<!-- table: benchmarks/results/x_cpu.csv -->\n\n| b |\n\n"
    block = "<!-- table: benchmarks/results/gone_cpu.csv -->\n| c |\n<!-- /table -->\nd\n"
    new = with_tables(old + block, copied)
    assert new.startswith(old)
    assert new.endswith("gone_cpu.csv -->\n\nNot measured yet.\n<!-- /table -->\nd\n")
    pages = pages_with_tables()
    assert README in pages
    assert sum(path.read_text().count("<!-- /table -->") for path in pages) >= 7


def accuracy_rows(trainer, dice):
    fixed = {"trainer": trainer, "fold": "0", "iterations": "600", "batch_size": "2"}
    fixed |= {"patch": "8x16x16", "spacing_mm": "3x1x1"}
    further = {"cases": "2", "seconds_per_epoch": f"{10 * dice:.1f}", "peak_memory_gb": "1", "parameters": "1500000"}
    return [
        fixed | {"label": label, "dice": f"{value:.4f}"} | further
        for label, value in (("anterior", dice - 0.1), ("posterior", dice + 0.1), ("mean", dice))
    ]


def case_rows(trainer, *dice):
    return [
        {"trainer": trainer, "fold": "0", "case": f"case {number}", "label": "anterior", "dice": str(value)}
        for number, value in enumerate(dice)
    ]


def test_accuracy_shows_the_rows_there_are(copied):
    write(copied, "accuracy_hippocampus", accuracy_rows("StockTrainer", 0.6) + accuracy_rows("EMNetTrainer", 0.7))
    cases = case_rows("StockTrainer", 0.5, 0.7, 0.1) + case_rows("EMNetTrainer", 0.7, 0.7, math.nan)
    write(copied, "accuracy_hippocampus_cases", cases)
    text = page(copied, OTHERS)
    assert "Fold 0, 600 iterations of batch 2, patch 8x16x16 at 3x1x1 mm, 2 validation cases" in text
    assert "| `StockTrainer` | 0.500 | 0.700 | 0.600 |  | 6.0 | 1.5 M |" in text
    assert "| `EMNetTrainer` | 0.600 | 0.800 | 0.700 | +0.100 ± 0.100, 1 of 2 | 7.0 | 1.5 M |" in text
    missing = next(line for line in text.splitlines() if line.startswith("Not measured yet:"))
    assert "`SASANTrainer`" in missing
    assert "`EMNetTrainer`" not in missing
    assert "0.700 (`EMNetTrainer`)" in with_tables(README.read_text(), copied)
    cost, *dice = figures.PLOTS["accuracy"].data(copied)["EMNetTrainer"]
    steps = [row for row in copied.rows("networks_cpu") if (row["network"], row["what"]) == ("EM-Net", "training step")]
    assert f"{cost:.2f}" in {f"{float(row['of_PlainConvUNet']):.2f}" for row in steps}
    assert dice == [0.7, 0.7, 0.7]


def test_repeated_trainings_have_a_spread_and_a_verdict(copied):
    """Difference and interval are those of compare, which includes the variation between trainings."""
    judged = {"verdict": "better", "difference": "0.0123", "interval_low": "-0.001", "interval_high": "0.0256"}
    trainings = {"StockTrainer": (0.6, 0.7), "EMNetTrainer": (0.7, 0.72), "SASANTrainer": (0.71,)}
    rows = [
        row
        | {"repeat": repeat, "holds_for_new_trainings": "yes" if len(repeats) > 1 else "no"}
        | (judged if trainer != "StockTrainer" and row["label"] == "mean" else dict.fromkeys(judged, ""))
        for trainer, repeats in trainings.items()
        for repeat, dice in enumerate(repeats, 1)
        for row in accuracy_rows(trainer, dice)
    ]
    write(copied, "accuracy_hippocampus", rows)
    text = page(copied, OTHERS)
    assert "Trainers were trained 1 or 2 times with different random numbers." in text
    assert "variation between trainings. A trainer that was trained once has no verdict" in text
    assert "| `StockTrainer` | 0.550 | 0.750 | 0.650 (0.600 to 0.700 in 2 trainings) |  |" in text
    better = "better, +1.23 (-0.10 to +2.56)"
    assert f"| `EMNetTrainer` | 0.610 | 0.810 | 0.710 (0.700 to 0.720 in 2 trainings) | {better} |" in text
    once = "+1.23 (-0.10 to +2.56)"
    assert f"| `SASANTrainer` | 0.610 | 0.810 | 0.710 (1 training) | {once} |" in text
    written = with_tables(README.read_text(), copied)
    assert "| 0.650 (`StockTrainer`), 0.600 to 0.700 in 2 trainings |" in written
    assert "| 0.710 (`SASANTrainer`) |" in written
    assert figures.PLOTS["accuracy"].data(copied)["StockTrainer"][1:] == pytest.approx([0.65, 0.6, 0.7])


def test_learning_curves_are_means_over_trainings(copied):
    name = "accuracy_hippocampus_3000"
    rows = [row for dice in (0.6, 0.7) for row in accuracy_rows("StockTrainer", dice) if row["label"] == "mean"]
    curves = ("0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 0.8 0.9 0.8", "0.3 0.2 0.3 0.4 0.5 0.8 0.7 0.8 0.9 0.8 0.9 0.8")
    write(copied, name, [row | {"pseudo_dice_by_epoch": curve} for row, curve in zip(rows, curves, strict=True)])
    found = figures.PLOTS["learning_curves"].data(copied)
    expected = [[300, pytest.approx(2.3 / 6)], [600, pytest.approx(4.9 / 6)]]
    assert {trainer: curve["points"] for trainer, curve in found.items()} == {"StockTrainer": expected}
    assert found["StockTrainer"]["validation"] == pytest.approx(0.65)


@pytest.mark.parametrize("report", sorted(RESULTS.glob("accuracy_*.md")), ids=lambda path: path.stem)
def test_reports_are_of_the_rows(report):
    text, means = report.read_text(), accuracy_tables.mean_dice(COMMITTED.rows(report.stem))
    rows = re.findall(
        r"^\| (\w+) \| (?:baseline|better|worse|equivalent|inconclusive|undecided) \| ([\d.]+) \|", text, re.M
    )
    assert dict(rows) == {trainer: f"{100 * dice:.2f}" for trainer, dice in means.items()}
    assert f"{report.name})" in page(COMMITTED, OTHERS)


@pytest.mark.parametrize("name", ["scaling", "tiles", "cost", "accuracy"])
def test_figures_hold_the_hash_of_their_numbers(name, copied, tmp_path):
    write(copied, "accuracy_hippocampus", accuracy_rows("StockTrainer", 0.6))
    plot = figures.PLOTS[name]
    path = figures.save(plot, copied, tmp_path)
    assert figures.shown_digest(path) == figures.digest(plot.data(copied))
    drawn = path.stat().st_mtime_ns
    assert figures.save(plot, copied, tmp_path).stat().st_mtime_ns == drawn  # the same numbers are not drawn again
    assert figures.save(plot, Results(tmp_path / "empty"), tmp_path) is None


def test_a_figure_without_a_hash_is_refused(tmp_path):
    (tmp_path / "drawn.svg").write_text("<svg/>")
    with pytest.raises(ValueError, match=r"drawn\.svg holds no hash"):
        figures.shown_digest(tmp_path / "drawn.svg")


def test_small_tables():
    assert markdown_table(["a", ""], [["1", "2"]]) == "| a |  |\n|---|---|\n| 1 | 2 |"
    rows = [{"device": "cpu", "processor": "X", "threads": "2", "torch": str(v), "commit": f"c{v}"} for v in range(4)]
    assert measured_where(rows) == "cpu (X); 2 threads; torch 0, 1, 2, 3; commit c0, c1, c2, c3"
    scan = {"b_d_n_l": "1 2 3 4", "what": "forward", "milliseconds": "9.6", "extra_memory_in_sizes_of_u": "1.2"}
    rows = [scan | {"method": "loop", "times_faster_than_mambapy": "0.5"}]
    assert "| 1 2 3 4 | forward | loop over time | 9.6 | 2.0 times slower | 1 |" in tables.selective_scan(rows)


def test_entry(capsys):
    assert all(measurement.shown in listing() for measurement in MEASUREMENTS.values())
    assert not any(measurement.needs_data for measurement in chosen(["all"]))
    without_data = {measurement.name for measurement in chosen(["all"])}
    assert {"networks", "selective_scan", "operators"} <= without_data
    assert not {"accuracy", "accuracy_acdc", "few_shot", "feature_matrix"} & without_data
    for name, message in (("unets", "unknown measurement 'unets'; known: .*networks"), ("few_shot", "needs data")):
        with pytest.raises(ValueError, match=message):
            chosen([name])
    with pytest.raises(SystemExit):
        entry(["unets"])
    assert "unknown measurement" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "EM-Net" else name for name in PLAIN]
)
def test_naive_references_have_our_logits(name):
    """`rows_of` raises if they differ."""
    rows = list(rows_of(name, Setting.of_patch((32, 32) if name == "MT-UNet" else (8, 16, 16), 1), repeats=1))
    assert [(row["what"], row["form"]) for row in rows] == [
        (what, form) for what in ("forward", "forward + backward") for form in ("plain", "ours")
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_the_page_is_where_the_readme_links_to():
    assert results_page.PAGE.is_file()
    assert "docs/results.md" in README.read_text()
    for plot in figures.PLOTS.values():
        assert (FIGURES / f"{plot.name}.svg").is_file() == bool(plot.data(COMMITTED))
