"""nnU-Net's own integration tests: its datasets and steps, with our trainers and small patches."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.page.feature_matrix import INTEGRATION, INTEGRATION_TRAINERS
from tests.features.lab import BUDGET
from tests.features.workspaces import FrugalWorkspace

CONVERSIONS = "nnunetv2.dataset_conversion.datasets_for_integration_tests"
STEPS = "nnunetv2.tests.integration_tests"
CONFIGURATIONS = ("3d_fullres", "2d", "3d_lowres", "3d_cascade_fullres")
DATASETS = {
    "integration_ignore": "Dataset998_IntegrationTest_Hippocampus_ignore",
    "integration_regions": "Dataset997_IntegrationTest_Hippocampus_regions",
    "integration_regions_ignore": "Dataset996_IntegrationTest_Hippocampus_regions_ignore",
}
PREDICTABLE = {
    "integration_ignore": {0, 1},
    "integration_regions": {0, 1, 2},
    "integration_regions_ignore": {0, 1, 2},
}
PATCHES = {"3d_fullres": [24, 32, 24], "2d": [56, 40], "3d_lowres": [16, 24, 16]}


class IntegrationWorkspace(FrugalWorkspace):
    """nnU-Net's integration datasets, made from ten of the shipped scans and preprocessed as it prescribes."""

    def _prepare(self) -> None:
        numbers = [name[7:10] for name in DATASETS.values()]
        for name in DATASETS.values():
            self.python("-m", f"{CONVERSIONS}.{name}")
        self.run("nnUNetv2_plan_and_preprocess", "-d", *numbers, "--no_pp", "-npfp", "1")
        self.python("-m", f"{STEPS}.add_lowres_and_cascade", "-d", *numbers)
        for name in DATASETS.values():
            file = self.preprocessed.parent / name / "nnUNetPlans.json"
            plans = json.loads(file.read_text())
            for configuration, patch in PATCHES.items():
                plans["configurations"][configuration] = self.tiny(plans["configurations"][configuration], patch)
            file.write_text(json.dumps(plans))
        processes = ("-np", "1", "1", "1")
        self.run("nnUNetv2_preprocess", "-d", *numbers, "-c", "2d", "3d_lowres", "3d_fullres", *processes)

    def python(self, *arguments: str) -> None:
        self.run("python", *arguments)


@pytest.fixture(scope="module")
def integration(tmp_path_factory, forks):
    return IntegrationWorkspace(tmp_path_factory.mktemp("integration"), 10, forks)


PREDICTION = "        predictor.predict_from_files(source_dir, output_dir, has_ensemble, overwrite=True)\n"
WITH_PREVIOUS_STAGE = """
        previous, segmented = predictor.configuration_manager.previous_stage_name, None
        if previous is not None:
            segmented = join(target_dir_base, "previous_stage")
            stage = nnUNetPredictor(verbose=False, allow_tqdm=False)
            model_folder = get_output_folder(d, im['trainer'], im['plans_identifier'], previous)
            stage.initialize_from_trained_model_folder(model_folder, used_folds)
            stage.predict_from_files(source_dir, segmented, False, overwrite=True)
        predictor.predict_from_files(
            source_dir, output_dir, has_ensemble, overwrite=True, folder_with_segs_from_prev_stage=segmented
        )
"""
"""nnU-Net's step stops, as it says, if a cascade is among the best; here the best one is random."""


@pytest.fixture(scope="module")
def best_configuration_step(tmp_path_factory):
    """nnU-Net's last step, which is hard-wired to its own trainer, for another one, on the CPU in one process."""

    def make(trainer):
        specification = importlib.util.find_spec(f"{STEPS}.run_integration_test_bestconfig_inference")
        source = Path(specification.origin).read_text()
        for old, new in (
            ("nnUNetTrainer_5epochs", trainer),
            ("num_processes=8", "num_processes=1"),
            (PREDICTION, WITH_PREVIOUS_STAGE),
        ):
            assert source.count(old) == 1
            source = source.replace(old, new)
        source = source.replace("nnUNetPredictor(", "nnUNetPredictor(device=torch.device('cpu'), ")
        file = tmp_path_factory.mktemp("steps") / "best_configuration.py"
        file.write_text(source)
        return str(file)

    return make


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("trainer", "feature"),
    [
        pytest.param(trainer, feature, marks=pytest.mark.cell(trainer, feature))
        for trainer in INTEGRATION_TRAINERS
        for feature in INTEGRATION
    ],
)
def test_nnunets_own_integration_steps(integration, best_configuration_step, trainer, feature):
    dataset = DATASETS[feature]
    number, results = dataset[7:10], integration.results.parent / dataset
    shutil.rmtree(results, ignore_errors=True)  # another trainer's
    for configuration in CONFIGURATIONS:
        for fold in "01234":
            arguments = (number, configuration, fold, "-tr", trainer, "--npz", "-device", "cpu")
            integration.run("nnUNetv2_train", *arguments, **BUDGET)
    integration.python(best_configuration_step(trainer), "-d", number)
    information = json.loads((results / "inference_information.json").read_text())
    assert len(information["all_results"]) == len(CONFIGURATIONS) + 6  # and the pairs of them
    (image,) = (integration.raw.parent / dataset / "imagesTs").iterdir()
    mask = sitk.ReadImage(
        str(results / "ensemble_predictions_postprocessed" / image.name.replace("_0000.nii.gz", ".nii.gz"))
    )
    assert mask.GetSize() == sitk.ReadImage(str(image)).GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(mask))) <= PREDICTABLE[feature]
