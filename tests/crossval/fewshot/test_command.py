"""The protocol through the console command, on shapes with known answers."""

import json

import pandas as pd
import pytest
import torch

from tests.helpers.shapes import FlatShapes

METHODS = ["FAFNetFewShotTrainer", "encoder prototypes", "local prototypes", "mask copied", "mask resized"]
SLICES, SLICES_WITH_BALL = 8, 2


def trainings(shapes):
    return sorted(shapes.results.glob("FAFNetFewShotTrainer__*/fold_*/checkpoint_final.pth"))


@pytest.mark.slow
def test_setting_2_in_two_folds(shapes):
    """Copying the ball's cross section to all slices gives Dice 2 * 2 / (2 + 8), resizing its mask gives 1."""
    options = ("--test-classes", "ball", "--folds", "0", "1")
    printed = shapes.run(*options)
    assert f"| ball | mask copied | {100 * 2 * SLICES_WITH_BALL / (SLICES_WITH_BALL + SLICES):.2f} |" in printed
    rows = pd.read_csv(shapes.output / "dice.csv")
    assert sorted(set(rows.method)) == METHODS
    exact = {method: set(found) for method, found in rows.groupby("method").dice}
    assert exact["mask copied"] == {0.4}
    assert exact["mask resized"] == {1.0}
    assert set(rows["class"]) == {"ball"}

    # Each fold has two patients: one supports, the two scans of the other are segmented.
    splits = json.loads((shapes.preprocessed / "splits_final.json").read_text())
    for fold in (0, 1):
        of_fold = rows[rows.fold == fold]
        assert len(of_fold) == 2 * len(METHODS)
        patients = {name: {case[:2] for case in of_fold[name]} for name in ("support", "case")}
        assert all(len(found) == 1 for found in patients.values())
        assert patients["support"] | patients["case"] == {case[:2] for case in splits[fold]["val"]}
    assert (pd.read_csv(shapes.output / "supports.csv").support == rows.groupby("fold").support.first().tolist()).all()

    # The slices with the ball trained nothing: 16 training scans of 8 slices, two of which show it.
    files = trainings(shapes)
    assert len(files) == 2
    for file in files:
        (log,) = file.parent.glob("training_log_*.txt")
        assert "Left out of training: 32 of 128 slices, which show ball" in log.read_text()
        state = torch.load(file, weights_only=True)
        assert state["nnunet_ext"]["left_out_classes"] == ["ball"]
        assert state["init_args"]["plans"]["left_out_classes"] == ["ball"]
    report = (shapes.output / "report" / "report.md").read_text()
    assert "appear in no training slice (setting 2)" in report
    assert (shapes.output / "report" / "report.html").is_file()

    # A second run does only what is missing: one mask.
    times = {file: file.stat().st_mtime_ns for file in [*files, *shapes.output.glob("masks/*/*/*.nii.gz")]}
    lost = next(file for file in times if "mask_copied" in str(file))
    lost.unlink()
    shapes.run(*options)
    changed = {file for file, time in times.items() if file.stat().st_mtime_ns != time}
    case = lost.name
    assert changed == {file for file in times if file.name == case}
    assert pd.read_csv(shapes.output / "dice.csv").equals(rows)


@pytest.mark.slow
@pytest.mark.long
def test_setting_1_in_3d_with_several_supports_and_classes(shapes):
    printed = shapes.run(
        *("--folds", "0", "--supports", "2", "--support-from", "training"), setting="1", configuration="3d_fullres"
    )
    assert "| mean of classes | mask copied | 70.00 |" in printed  # rod 1, ball 0.4
    rows = pd.read_csv(shapes.output / "dice.csv")
    assert len(rows) == 4 * 2 * 2 * len(METHODS)  # the fold's scans, supports, classes
    exact = rows[rows.method.isin(["mask copied", "mask resized"])].groupby(["class", "method"]).dice
    assert {key: set(found) for key, found in exact} == {
        ("ball", "mask copied"): {0.4},
        ("ball", "mask resized"): {1.0},
        ("rod", "mask copied"): {1.0},
        ("rod", "mask resized"): {1.0},
    }
    split = json.loads((shapes.preprocessed / "splits_final.json").read_text())[0]
    assert set(rows.case) == set(split["val"])
    assert set(rows.support) <= set(split["train"])
    (file,) = trainings(shapes)
    assert "__nnUNetPlans__" in str(file)  # a plain training serves
    # Noise apart, the shapes' brightness tells them from the background: the untrained encoder finds them too.
    table = pd.read_csv(shapes.output / "table.csv").set_index(["class", "method"])
    assert list(table.loc[("rod", "mask resized"), ["dice", "over_supports_low", "over_supports_high"]]) == [1, 1, 1]
    assert table.loc[("rod", "encoder prototypes"), "dice"] > 0.5


@pytest.mark.slow
@pytest.mark.long
def test_colour_images_of_one_slice(tmp_path):
    """One slice is one part: masks at the same place are copied and resized exactly."""
    shapes = FlatShapes(tmp_path / "shapes")
    shapes.run("--folds", "0", setting="1")
    rows = pd.read_csv(shapes.output / "dice.csv")
    assert len(rows) == 1 * 2 * len(METHODS)  # the fold's other patient, classes
    assert set(rows[rows.method.isin(["mask copied", "mask resized"])].dice) == {1.0}
    assert {path.suffix for path in shapes.output.glob("masks/*/support_1/p*")} == {".png"}
