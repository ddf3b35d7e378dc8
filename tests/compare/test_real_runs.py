"""The example from raw data to an ensemble, with nnU-Net's own commands, and its report in a browser."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.helpers.workspaces import SHIPPED_CASES, lay_out

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATASET = "Dataset004_Hippocampus"
TRAINERS = ["StockTrainer", "SASANTrainer"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Ten scans for training and two with labels for testing: planned, trained on two folds, compared, ensembled.

    At half their resolution, so that the plan's networks train in seconds on a CPU.
    """
    root = tmp_path_factory.mktemp("example")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
    lay_out(root / "nnUNet_raw" / DATASET, SHIPPED_CASES[:10], SHIPPED_CASES[10:12], every=2)
    return root, run_example(root)


def run_example(root):
    """Runs it to success on the CPU with the smallest budget, and returns what it printed."""
    environment = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment |= dict.fromkeys(("NNUNET_EXT_EPOCHS", "NNUNET_EXT_ITERATIONS", "NNUNET_EXT_VAL_ITERATIONS"), "1")
    environment |= {"TRAINERS": " ".join(TRAINERS), "FOLDS": "0 1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
    environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "compare_and_ensemble.sh"), "4", str(root / "out"), "3d_fullres", "cpu"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-4000:]
    return printed


def test_the_report_of_real_trainings(example):
    root, _ = example
    content = json.loads((root / "out" / "report" / "summary.json").read_text())
    assert (content["entrants"], content["baseline"], content["cases"]) == (TRAINERS, "StockTrainer", 4)
    assert any(note.startswith("4 cases are few") for note in content["notes"])
    assert "Folds 0, 1 of 5: the other cases of the dataset are not used." in content["notes"]
    # One iteration and four cases cannot decide anything.
    assert content["verdicts"] == {"SASANTrainer": "inconclusive"}
    for cost in content["costs"].values():
        assert cost["parameters"] > 1e6
        assert cost["epoch_seconds"] > 0
        assert cost["scan_seconds"] > 0
        assert cost["memory_gb"] > 0.1
        assert (cost["epochs"], cost["iterations"]) == (1, 1)


def test_the_dice_are_nnunets(example):
    """The means by label, from every fold's summary.json."""
    root, _ = example
    content = json.loads((root / "out" / "report" / "summary.json").read_text())
    found = {(m["entrant"], m["label"]): m["mean"] for m in content["means"] if m["metric"] == "dice"}
    for trainer in TRAINERS:
        model = root / "nnUNet_results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres"
        cases = [
            case["metrics"]
            for fold in (0, 1)
            for case in json.loads((model / f"fold_{fold}" / "validation" / "summary.json").read_text())[
                "metric_per_case"
            ]
        ]
        for name, value in (("Anterior", "1"), ("Posterior", "2")):
            expected = sum(case[value]["Dice"] for case in cases) / len(cases)
            assert found[trainer, name] == pytest.approx(expected)


def test_nnunet_ensembles_and_finds_the_best_configuration(example):
    """Our trainers go through nnUNetv2_find_best_configuration and nnUNetv2_ensemble."""
    root, printed = example
    assert "***All results:***" in printed
    assert "*Best*: " in printed
    assert "***Run inference like this:***" in printed
    results = root / "nnUNet_results" / DATASET
    (ensemble,) = (results / "ensembles").iterdir()
    for trainer in TRAINERS:
        assert f"{trainer}__nnUNetPlans__3d_fullres" in ensemble.name
    assert len(list(ensemble.glob("*.nii.gz"))) == 4
    information = json.loads((results / "inference_information.json").read_text())
    assert len(information["all_results"]) == 3
    assert len(list((root / "out" / "ensemble").glob("*.nii.gz"))) == 2


def test_the_ensemble_is_compared_on_the_held_out_set(example):
    root, _ = example
    content = json.loads((root / "out" / "report_test" / "summary.json").read_text())
    assert content["entrants"][2] == "ensemble"
    assert set(content["entrants"][:2]) == set(TRAINERS)
    assert (content["cases"], content["folds"], content["costs"]) == (2, ["test"], {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["report", "report_test"])
def test_the_reports_in_a_browser(example, open_page, name, width, scheme):
    root, _ = example
    browser = open_page(root / "out" / name / "report.html", width, scheme)
    heads = browser.find_elements(By.CSS_SELECTOR, "#case-table thead button")
    heads[2].click()
    cells = browser.find_elements(By.CSS_SELECTOR, "#case-table tbody td:nth-child(3)")
    values = [float(cell.get_attribute("data-value")) for cell in cells]
    assert len(values) == {"report": 4, "report_test": 2}[name]
    assert values == sorted(values)
    titles = [title.text for title in browser.find_elements(By.CSS_SELECTOR, ".plots figcaption")]
    assert ("Training: each trainer's own loss" in titles) == (name == "report")
    page = browser.find_element(By.TAG_NAME, "html")
    assert page.get_property("scrollWidth") == page.get_property("clientWidth")
    assert browser.get_log("browser") == []


def test_run_again_it_trains_nothing(example):
    """Without scans to predict, it remakes the report and leaves the trainings unchanged."""
    root, _ = example
    finished = sorted((root / "nnUNet_results" / DATASET).glob("*/fold_*/checkpoint_final.pth"))
    written = [file.stat().st_mtime_ns for file in finished]
    assert len(written) == 4
    shutil.move(root / "nnUNet_raw" / DATASET / "imagesTs", root / "imagesTs")
    printed = run_example(root)
    assert "Epoch time" not in printed
    assert "Measure cases" not in printed  # all scores are kept
    assert [file.stat().st_mtime_ns for file in finished] == written
