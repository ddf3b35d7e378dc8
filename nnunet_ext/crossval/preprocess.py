"""Resumes an interrupted preprocessing: nnU-Net's command would remove the finished cases and start over."""

import argparse
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nnunet_ext.crossval.completion import is_whole_pickle
from nnunet_ext.nnunet.datasets import dataset_name
from nnunet_ext.nnunet.json_files import read_json, read_json_if_whole
from nnunet_ext.utils.files import replacing
from nnunet_ext.utils.workers import end_with_parent


def note_plan(plans_file: Path, configuration: str, folder: Path) -> None:
    """Notes the plan of a folder of preprocessed data beside it, before the data are made."""
    digest = _digest(plans_file, configuration)
    if digest is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # as nnU-Net does, but before the note ties them to this plan
        with replacing(_note(folder), "w") as file:
            json.dump({"configuration": configuration, "digest": digest}, file)


def is_resumable(plans_file: Path, configuration: str, folder: Path) -> bool:
    """Whether some cases are done under this plan, by a preprocessor that can process cases one by one."""
    digest = _digest(plans_file, configuration)
    note = read_json_if_whole(_note(folder))
    return digest is not None and note is not None and note.get("digest") == digest and bool(whole_cases(folder))


def whole_cases(folder: Path) -> set[str]:
    """Cases that are preprocessed: nnU-Net writes a case's .pkl last."""
    return {file.stem for file in folder.glob("*.pkl") if is_whole_pickle(file)}


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.preprocessing.json")


def _digest(plans_file: Path, configuration: str) -> str | None:
    """Digest of all settings of a plan that shape the data; None for a plan that needs nnU-Net's own command."""
    plans = read_json_if_whole(plans_file)
    if plans is None:
        return None
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    if settings.preprocessor_class.run is not DefaultPreprocessor.run:
        return None
    common = {key: value for key, value in plans.items() if key not in ("configurations", "plans_name")}
    text = json.dumps([common, settings.configuration], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _case(job: tuple[Any, ...]) -> None:
    preprocessor, *arguments = job
    preprocessor.run_case_save(*arguments)


def _remove_parts(folder: Path, cases: Collection[str]) -> None:
    """Removes what an interruption left of cases: the library that writes their arrays refuses existing files."""
    for case in cases:
        for name in (case, f"{case}_seg"):
            for file in folder.glob(f"{glob.escape(name)}.*"):
                file.unlink()


def resume(dataset: str, plans_name: str, configuration: str, processes: int) -> None:
    """Preprocesses the missing cases, then copies the true labels, as nnUNetv2_preprocess does."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
    from tqdm import tqdm

    name = dataset_name(dataset)
    raw, preprocessed = Path(nnUNet_raw, name), Path(nnUNet_preprocessed, name)
    plans = PlansManager(read_json(preprocessed / f"{plans_name}.json"))
    settings = plans.get_configuration(configuration)
    content = read_json(preprocessed / "dataset.json")
    cases = get_filenames_of_train_images_and_targets(str(raw), content)
    folder = preprocessed / settings.data_identifier
    done = whole_cases(folder)
    preprocessor = settings.preprocessor_class(verbose=False)
    jobs = [
        (preprocessor, str(folder / case), files["images"], files["label"], plans, settings, content)
        for case, files in cases.items()
        if case not in done
    ]
    _remove_parts(folder, cases.keys() - done)
    print(f"{len(done)} of {len(cases)} cases are done already", flush=True)
    with multiprocessing.get_context("spawn").Pool(max(1, min(processes, len(jobs))), end_with_parent) as pool:
        for _ in tqdm(pool.imap_unordered(_case, jobs), "Preprocessing cases", total=len(jobs)):
            pass
    truth = preprocessed / "gt_segmentations"
    truth.mkdir(exist_ok=True)
    for case, files in cases.items():
        shutil.copy2(files["label"], truth / f"{case}{content['file_ending']}")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", dest="dataset", required=True)
    parser.add_argument("-plans_name", dest="plans", required=True)
    parser.add_argument("-c", dest="configuration", required=True)
    parser.add_argument("-np", dest="processes", type=int)
    arguments = parser.parse_args()
    # nnU-Net's own numbers for its command.
    default = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}.get(arguments.configuration, 4)
    processes = arguments.processes or min(default, os.cpu_count() or 1)
    resume(arguments.dataset, arguments.plans, arguments.configuration, processes)


if __name__ == "__main__":
    run()
