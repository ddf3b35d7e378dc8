"""docs/results.md, its figures and the tables of the README and docs/planning.md, made of the committed CSV files.

python -m benchmarks.page.results_page            writes them
python -m benchmarks.page.results_page --check    says which differ from the CSV files, and fails if one does
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.accuracy import TRAINERS
from benchmarks.measure import RESULTS
from benchmarks.page import tables
from benchmarks.page.figures import PLOTS, digest, save, shown_digest
from benchmarks.page.result_files import Results, Row, markdown_table, measured_where
from benchmarks.registry import MEASUREMENTS, Measurement, measurement_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "figures"
README = ROOT / "README.md"
PLANNING = ROOT / "docs" / "planning.md"
REPORTED = ROOT / "benchmarks" / "reported"

_HEAD = """# Results

Made by `python -m benchmarks.page.results_page` from the CSV files under [benchmarks/results](../benchmarks/results),
not by hand; a test fails when they disagree. `python -m benchmarks` lists all measurements, `python -m benchmarks NAME`
repeats one, unless it needs data that you must name, and makes this page anew. What others report, and what we have not
measured, stands apart, at the end.

Times are medians of repeated runs; lowest and highest, which most CSV files have too, stand in brackets where there is
room. What is compared was run in turn in one process, and ratios are medians over the turns. Brackets are of one run:
of another day's, seconds differed by up to 15% and ratios by up to 10% where we looked (no file has these). "Processor
seconds" are those that one thread computes, on a machine that others used at the same time; elsewhere they are those
that pass. Memory is what a call adds to what the process holds before, gradients included, weights and the optimiser's
state not. A training step is forward and backward pass with deep supervision, a mean square of the outputs for the
loss, clipping and SGD; FAF-Net's is an episode of FAFNetTrainer's. Under each table stands where it was measured.
"""
_PLOT_OF = {"networks": "cost", "scaling": "scaling", "tiles": "tiles", "accuracy": "accuracy"}
_ELSEWHERE = {"feature_matrix": "[features.md](features.md)"}
_PAGES_WITH_DICE = (
    ("accuracy_hippocampus", "sasan.md", ("StockTrainer", "SASANTrainer", "SASANTrainerDiceCE")),
    (
        "accuracy_hippocampus",
        "em_net.md",
        ("StockTrainer", "EMNetTrainer", "EMNetSGDTrainer", "EMNetAuthorsTrainer", "EMNetNoMambaTrainer"),
    ),
    ("accuracy_hippocampus", "lstm_sa.md", ("StockTrainer", "SALSTMTrainer", "LSTMSATrainer")),
    ("accuracy_acdc", "lstm_sa.md", ("StockTrainer", "LSTMSATrainer")),
)
"""Files, pages, and the trainers whose mean Dice in the file the page's sentences hold."""
_BLOCK = re.compile(r"(<!-- table: benchmarks/results/(\w+)\.csv -->\n)(?:(?!<!-- ).)*(<!-- /table -->)", re.S)


def page(results: Results, reported: Results) -> str:
    """The page.

    Raises:
        KeyError: for a CSV file that no command of the registry makes.
    """
    for name in results.names:
        measurement_of(name)
    there = {name: all(map(results.rows, m.results)) for name, m in MEASUREMENTS.items()}
    parts = [_HEAD, *(_section(m, results) for name, m in MEASUREMENTS.items() if there[name]), _reported(reported)]
    missing = [f"* {m.title}: {m.measured}; `{m.shown}`." for name, m in MEASUREMENTS.items() if not there[name]]
    if missing:
        parts.append("## Not measured yet\n\n" + "\n".join(missing) + "\n")
    return "\n".join(parts)


def _section(measurement: Measurement, results: Results) -> str:
    files = ", ".join(f"[CSV](../benchmarks/results/{name}.csv)" for name in measurement.results)
    report = f"{measurement.results[0]}.md"
    if (results.folder / report).is_file():
        files += f", [report of `nnunet_ext compare`](../benchmarks/results/{report})"
    sentence = measurement.measured
    if not sentence.startswith("nnU-Net"):
        sentence = sentence[0].upper() + sentence[1:]
    lines = [f"## {measurement.title}\n", f"{sentence}: `{measurement.shown}` ({files}).\n"]
    if measurement.name in _ELSEWHERE:
        return "\n".join([*lines, f"Its page: {_ELSEWHERE[measurement.name]}.\n"])
    rows = results.rows(measurement.results[0])
    if measurement.name.startswith("accuracy"):
        lines += [_budget(measurement, rows), tables.accuracy(rows, results.rows(measurement.results[1]))]
    else:
        lines.append("\n\n".join(tables.TABLES[name](results.rows(name)) for name in measurement.results))
    lines.append(f"\n*{measured_where(rows)}*\n")
    plot = PLOTS.get(_PLOT_OF.get(measurement.name, ""))
    if plot and plot.data(results):
        lines.append(f"![{plot.alternative}](figures/{plot.name}.svg)\n")
    return "\n".join(lines)


def _budget(measurement: Measurement, rows: Sequence[Row]) -> str:
    """What the numbers rest on, and who is missing."""
    words = measurement.command
    expected = words[words.index("--trainers") + 1 :] if "--trainers" in words else TRAINERS
    first = rows[0]
    means = [row for row in rows if row["label"] == "mean"]
    text = (
        f"Fold {first['fold']}, {_all(means, 'iterations')} iterations of batch {_all(means, 'batch_size')}, patch "
        f"{_all(means, 'patch')} at {_all(means, 'spacing_mm')} mm, {_all(means, 'cases')} validation cases; nnU-Net's "
        "default is 250,000 iterations, so this is how the trainers start, not where they end. The difference of the "
        "mean Dice to `StockTrainer` is that of the same cases, with its standard error over cases: one training "
        "each, so the spread of another seed is not in it.\n"
    )
    missing = [f"`{trainer}`" for trainer in expected if trainer not in {row["trainer"] for row in rows}]
    return text + (f"\nNot there yet: {', '.join(missing)}.\n" if missing else "")


def _all(rows: Sequence[Row], key: str) -> str:
    return ", ".join(dict.fromkeys(row[key] for row in rows))


def _reported(reported: Results) -> str:
    papers = markdown_table(
        ["network", "", "reported", "compared with", "its", "on", "source"],
        [list(row.values()) for row in reported.rows("papers")],
    )
    stock = markdown_table(["", "Dice"], [list(row.values()) for row in reported.rows("stock_hippocampus")])
    return (
        "## Reported by others, not measured by us\n\n"
        "Numbers of the papers, in their set-ups ([CSV](../benchmarks/reported/papers.csv)):\n\n"
        f"{papers}\n\n"
        "Stock nnU-Net on hippocampus, `3d_fullres`, at its full budget of 1000 epochs and five folds, as it was "
        "given to us ([CSV](../benchmarks/reported/stock_hippocampus.csv)). Not measured here, and at another budget "
        "than the accuracies above, with which it must not be compared:\n\n"
        f"{stock}\n"
    )


def with_tables(text: str, results: Results) -> str:
    """A page with its tables, those between `<!-- table: FILE -->` and `<!-- /table -->`, made anew."""

    def block(match: re.Match) -> str:
        name = match.group(2)
        rows = results.rows(name)
        if not rows:
            return f"{match.group(1)}\nNot measured yet.\n{match.group(3)}"
        where = measured_where(rows)
        if name == "networks_cpu":
            accuracy = results.rows("accuracy_hippocampus")
            table = tables.networks_short(rows, accuracy)
            where += f". Dice: {measured_where(accuracy)}" if accuracy else ""
        else:
            table = tables.TABLES[name](rows)
        return f"{match.group(1)}\n{table}\n\n*{where}*\n{match.group(3)}"

    return _BLOCK.sub(block, text)


def claims(results: Results, reported: Results) -> list[tuple[Path, str]]:
    """Files, and what their sentences must hold as the CSV files are now."""
    scans = [row for name in ("selective_scan_cpu", "selective_scan_8192_cpu") for row in results.rows(name)]
    times = min(float(row["times_faster_than_mambapy"]) for row in scans if row["method"] == "extension")
    said = [(README, f"on the CPU {_rounded_down(times)} times faster than mambapy's parallel scan in PyTorch")]
    for row in reported.rows("papers"):
        said += [(README, text) for text in (f" {row['value']}", f" {row['its_value']}", row["compared_with"])]
    steps = [row for row in results.rows("transcriptions_cpu") if row["what"] == "forward + backward"]
    steps += [row for row in results.rows("faf_net_plain_cpu") if row["what"] == "training episode"]
    faster = [row["times_faster"] for row in steps if row.get("form") != "plain" and row.get("network") != "MT-UNet"]
    lowest, highest = (function(map(float, faster), default=math.nan) for function in (min, max))
    mt_unet = [row["times_faster"] for row in steps if row.get("network") == "MT-UNet" and row["form"] == "ours"]
    also = f"; MT-UNet's {tables.faster(min(mt_unet, key=float))}" if mt_unet else ""
    said.append((README, f"(forward and backward pass {lowest:.1f} to {highest:.1f} times{also})"))
    lowest = min(tables.few_shot_dice(results.rows("few_shot_hippocampus"), "trained"), default=math.nan)
    said.append((README, f"({lowest:.2f} by one of the five)"))
    for file, name, trainers in _PAGES_WITH_DICE:
        dice = tables.mean_dice(results.rows(file))
        said += [(ROOT / "docs" / name, tables.shown_dice(dice, trainer)) for trainer in trainers]
    return said


def _rounded_down(value: float) -> int:
    """To one digit, so that "90 times faster" holds for 94.6."""
    size = 10 ** (len(str(int(value))) - 1)
    return int(value // size * size)


def texts(results: Results, reported: Results) -> Mapping[Path, str]:
    """What the files must hold."""
    tabled = {path: with_tables(path.read_text(), results) for path in (README, PLANNING)}
    return {PAGE: page(results, reported), **tabled}


def differences(results: Results, reported: Results) -> list[str]:
    """Files that do not show what the CSV files hold."""
    wrong = [path for path, text in texts(results, reported).items() if not path.is_file() or path.read_text() != text]
    for plot in PLOTS.values():
        path, data = FIGURES / f"{plot.name}.svg", plot.data(results)
        if path.is_file() != bool(data) or (data and shown_digest(path) != digest(data)):
            wrong.append(path)
    unsupported = [
        f"{path.relative_to(ROOT)}, which should say {text!r},"
        for path, text in claims(results, reported)
        if text not in " ".join(path.read_text().split())
    ]
    return [*(str(path.relative_to(ROOT)) for path in wrong), *unsupported]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    results, reported = Results(RESULTS), Results(REPORTED)
    if parser.parse_args(argv).check:
        wrong = differences(results, reported)
        print("\n".join(f"{path} differs from the CSV files" for path in wrong), file=sys.stderr)
        return 1 if wrong else 0
    for path, text in texts(results, reported).items():
        path.write_text(text)
    for plot in PLOTS.values():
        if save(plot, results, FIGURES) is None:
            (FIGURES / f"{plot.name}.svg").unlink(missing_ok=True)
    wrong = differences(results, reported)
    if wrong:
        raise SystemExit("\n".join(f"{text} differs from the CSV files: edit it by hand" for text in wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
