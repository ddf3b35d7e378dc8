"""Which results are compared, and which are refused."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.compare.collect import collect_cross_validation
from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.heldout import collect_predictions
from nnunet_ext.compare.labels import label_set

TRAINERS = ("nnUNetTrainer", "SASANTrainer")
TOLERANCES = {"Anterior": 2.0, "Posterior": 2.0}


def collect(trainers=TRAINERS, **options):
    return collect_cross_validation("4", "3d_fullres", trainers, **options)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_all_folds_of_all_trainers(results):
    study = collect((*TRAINERS, "EMNetTrainer"))
    assert study.baseline == "nnUNetTrainer"
    assert study.challengers == ["SASANTrainer", "EMNetTrainer"]
    assert list(study.cases) == results.cases
    assert {case.fold for case in study.cases.values()} == {"0", "1"}
    assert study.labels.labels == {"Anterior": 1, "Posterior": 2}
    assert study.notes == []
    first = study.methods[1].cases[results.cases[0]]
    assert first.prediction.parent == results.model("SASANTrainer") / "fold_0" / "validation"
    assert first.image.name == f"{first.name}_0000.nii.gz"


def test_some_folds(results):
    study = collect(folds=["1"])
    assert list(study.cases) == results.splits[1]["val"]
    assert study.notes == ["Fold 1 of 2: the other cases of the dataset are not used."]


def test_the_baseline_is_the_stock_trainer_or_the_one_named_or_the_first(results):
    assert collect(("SASANTrainer", "nnUNetTrainer")).baseline == "nnUNetTrainer"
    assert collect(baseline="SASANTrainer").baseline == "SASANTrainer"
    assert collect(("EMNetTrainer", "SASANTrainer")).baseline == "EMNetTrainer"


def test_one_trainer_under_two_plans(results):
    shutil.copytree(results.model("SASANTrainer"), results.results / "SASANTrainer__OtherPlans__3d_fullres")
    study = collect(("SASANTrainer", "SASANTrainer"), plans=["nnUNetPlans", "OtherPlans"])
    assert [method.name for method in study.methods] == ["SASANTrainer__nnUNetPlans", "SASANTrainer__OtherPlans"]
    with pytest.raises(ValueError, match="--baseline SASANTrainer could be SASANTrainer__nnUNetPlans or"):
        collect(("SASANTrainer", "SASANTrainer"), plans=["nnUNetPlans", "OtherPlans"], baseline="SASANTrainer")
    with pytest.raises(ValueError, match="-p has 2 names for 3 trainers"):
        collect((*TRAINERS, "EMNetTrainer"), plans=["a", "b"])


def test_unknown_names_list_the_known_ones(results):
    with pytest.raises(
        ValueError, match=r"no trained model UNetTrainer__nnUNetPlans__3d_fullres .*known: EMNetTrainer__"
    ):
        collect(("nnUNetTrainer", "UNetTrainer"))
    with pytest.raises(ValueError, match="baseline 'UNetTrainer' is not among those compared; known: nnUNetTrainer"):
        collect(baseline="UNetTrainer")
    with pytest.raises(ValueError, match="nnUNetTrainer alone cannot be compared"):
        collect(("nnUNetTrainer",))
    with pytest.raises(ValueError, match="named twice: SASANTrainer"):
        collect(("SASANTrainer", "SASANTrainer"))
    with pytest.raises(ValueError, match="Could not find a dataset with the ID 77"):
        collect_cross_validation("77", "3d_fullres", TRAINERS)
    with pytest.raises(FileNotFoundError, match="nothing has been trained on Dataset005_Other"):
        collect_cross_validation("Dataset005_Other", "3d_fullres", TRAINERS)


def test_a_missing_fold(results):
    shutil.rmtree(results.model("SASANTrainer") / "fold_1")
    with pytest.raises(ValueError, match=r"SASANTrainer has no fold 1; all have: -f 0"):
        collect()
    assert len(collect(folds=["0"]).cases) == 6
    with pytest.raises(ValueError, match="has no fold 7"):
        collect(folds=["0", "7"])


def test_a_fold_that_was_put_aside_is_none(results):
    model = results.model("SASANTrainer")
    shutil.copytree(model / "fold_1", model / "fold_1_old")
    assert collect().folds == ["0", "1"]


def test_fold_all_is_refused(results):
    with pytest.raises(ValueError, match="fold `all` validates on its own training cases"):
        collect(folds=["all"])


def test_an_unfinished_fold(results):
    (results.model("SASANTrainer") / "fold_1" / "validation" / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"SASANTrainer__\S+/fold_1 is unfinished: .*nnUNetv2_train Dataset004.* --c"):
        collect()


def test_a_missing_prediction(results):
    case = results.splits[1]["val"][2]
    (results.model("SASANTrainer") / "fold_1" / "validation" / f"{case}.nii.gz").unlink()
    with pytest.raises(ValueError, match=f"1 of the 6 cases of splits_final.json are missing \\({case}\\)"):
        collect()


def test_another_split(results):
    edit(results.preprocessed / "splits_final.json", lambda splits: splits[0]["val"].pop())
    with pytest.raises(ValueError, match=r"fold_0/validation has cases that splits_final\.json does not have: hippo"):
        collect()


def test_a_case_in_two_folds(results):
    case = results.splits[0]["val"][0]
    edit(results.preprocessed / "splits_final.json", lambda splits: splits[1]["val"].append(case))
    for trainer in TRAINERS:
        first, second = (results.model(trainer) / f"fold_{fold}" / "validation" for fold in (0, 1))
        shutil.copy(first / f"{case}.nii.gz", second)
        results.evaluate(trainer, 1)
    with pytest.raises(ValueError, match=f"nnUNetTrainer validated {case} in several folds"):
        collect()


def test_trainers_with_different_splits(results):
    """Without splits_final.json the trainers' cases are compared with each other."""
    (results.preprocessed / "splits_final.json").unlink()
    assert "no splits_final.json" in collect().notes[0]
    model = results.model("SASANTrainer")
    (model / "fold_0").rename(model / "other")
    (model / "fold_1").rename(model / "fold_0")
    (model / "other").rename(model / "fold_1")
    with pytest.raises(ValueError, match="nnUNetTrainer and SASANTrainer were validated on other cases or splits"):
        collect()


def test_an_evaluation_of_other_cases(results):
    summary = results.model("SASANTrainer") / "fold_0" / "validation" / "summary.json"
    edit(summary, lambda content: content["metric_per_case"].pop())
    with pytest.raises(ValueError, match=r"summary.json is unfinished .*1 of the 6 cases of its folder are missing"):
        collect()


def test_other_label_names(results):
    edit(
        results.model("SASANTrainer") / "dataset.json",
        lambda content: content["labels"].update({"Anterior": 2, "Posterior": 1}),
    )
    with pytest.raises(ValueError, match=r"the labels differ: SASANTrainer__\S+ has `labels`=.*'Anterior': 2"):
        collect()


def test_a_validation_with_other_label_values(results):
    summary = results.model("SASANTrainer") / "fold_0" / "validation" / "summary.json"
    edit(summary, lambda content: content["metric_per_case"][0]["metrics"].pop("2"))
    with pytest.raises(ValueError, match=r"the validation used the labels 1, dataset\.json has Anterior"):
        collect()


def test_a_validation_against_other_truth(results):
    """The label of a case was changed between two validations."""
    case = results.splits[0]["val"][0]
    image = sitk.ReadImage(str(results.truth(case)))
    sitk.WriteImage(sitk.BinaryErode(image > 0) * image, str(results.truth(case)))
    results.evaluate("SASANTrainer", 0)
    with pytest.raises(ValueError, match=f"validated against different labels: Anterior of {case} had"):
        collect()


def test_files_changed_after_the_validation(results, tmp_path):
    case = results.splits[0]["val"][0]
    file = results.model("SASANTrainer") / "fold_0" / "validation" / f"{case}.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image * 0, str(file))
    with pytest.raises(ValueError, match=f"SASANTrainer, {case}: summary.json has Dice .* its files give 0.0000"):
        measure(collect(), TOLERANCES, tmp_path / "cache", 1)


def test_a_second_measurement_reads_what_the_first_kept(results, tmp_path, monkeypatch):
    """Scores are reused for the same files under any name, and recomputed for another tolerance or a damaged file."""
    from nnunet_ext.compare import evaluate

    study, calls = collect(), []
    original = evaluate._measure_files
    monkeypatch.setattr(evaluate, "_measure_files", lambda task: calls.append(task) or original(task))
    first = measure(study, TOLERANCES, tmp_path / "cache", 1)
    assert len(first) == 2 * 12 * 2
    assert len(calls) == 24
    assert measure(study, TOLERANCES, tmp_path / "cache", 1).equals(first)
    assert len(calls) == 24
    damaged = sorted((tmp_path / "cache").iterdir())[0]
    damaged.write_text("{")
    assert measure(study, TOLERANCES, tmp_path / "cache", 1).equals(first)
    assert len(calls) == 25
    assert not measure(study, dict.fromkeys(TOLERANCES, 1.0), tmp_path / "cache", 1)["nsd"].equals(first["nsd"])
    assert len(calls) == 49


def test_several_processes_measure_the_same(results, tmp_path):
    study = collect(folds=["0"])
    one, two = (measure(study, TOLERANCES, tmp_path / str(n), n) for n in (1, 2))
    assert one.equals(two)


def write_predictions(results, folder, trainer, cases):
    folder.mkdir()
    for fold, split in enumerate(results.splits):
        for case in set(split["val"]) & set(cases):
            shutil.copy(results.model(trainer) / f"fold_{fold}" / "validation" / f"{case}.nii.gz", folder)
    (folder / "dataset.json").write_text(json.dumps(results.dataset))


@pytest.fixture
def held_out(results, tmp_path):
    cases = results.cases[:4]
    (tmp_path / "labels").mkdir()
    for case in cases:
        shutil.copy(results.truth(case), tmp_path / "labels")
    for trainer in TRAINERS:
        write_predictions(results, tmp_path / trainer, trainer, cases)
    return tmp_path


def predictions(folder):
    return collect_predictions([f"{name}={folder / name}" for name in TRAINERS], folder / "labels")


def test_folders_of_predictions(held_out, results):
    study = predictions(held_out)
    assert study.title == "Held-out set labels"
    assert (study.baseline, study.folds) == ("nnUNetTrainer", ["test"])
    assert list(study.cases) == results.cases[:4]
    assert np.isfinite(measure(study, TOLERANCES, held_out / "cache", 1)["dice"]).all()


def test_folders_with_other_cases(held_out, results):
    case = results.cases[2]
    (held_out / "SASANTrainer" / f"{case}.nii.gz").rename(held_out / "SASANTrainer" / "more.nii.gz")
    with pytest.raises(ValueError, match=f"the cases differ: SASANTrainer .* has no prediction of {case}"):
        predictions(held_out)
    shutil.copy(results.truth(case), held_out / "SASANTrainer" / f"{case}.nii.gz")
    with pytest.raises(ValueError, match=r"the cases differ: SASANTrainer .* has no label for more"):
        predictions(held_out)


def test_folders_with_other_labels(held_out):
    edit(held_out / "SASANTrainer" / "dataset.json", lambda content: content["labels"].pop("Posterior"))
    with pytest.raises(ValueError, match="the labels differ: SASANTrainer has `labels`="):
        predictions(held_out)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=x", "x"], "--predictions 'x' must be NAME=FOLDER"),
        (["a=x", "a=y"], "named twice: a"),
        (["a=x"], "a alone cannot be compared"),
    ],
)
def test_wrong_folders(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        collect_predictions(given, tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder: nowhere"):
        collect_predictions(["a=nowhere", f"b={tmp_path}"], tmp_path)


def test_missing_true_labels(results):
    shutil.rmtree(results.preprocessed / "gt_segmentations")
    with pytest.raises(FileNotFoundError, match=r"no \.nii\.gz files in .*gt_segmentations; nnUNetv2_plan"):
        collect()


def test_regions_and_ignore_label_are_those_of_nnunet(results):
    dataset = {
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "edge": 1, "ignore": 3},
        "regions_class_order": [1, 2, 1],
        "file_ending": ".nii.gz",
    }
    labels = label_set(dataset, results.truth(results.cases[0]))
    assert labels.labels == {"whole": (1, 2), "core": (2,), "edge": 1}
    assert labels.ignore_label == 3
    assert labels.reader == "SimpleITKIO"
    with pytest.raises(ValueError, match="names no label besides background"):
        label_set({"labels": {"background": 0}, "file_ending": ".nii.gz"}, results.truth(results.cases[0]))
