"""Decides the folds and unpacks a configuration's data, once, before any training starts.

The first training of nnU-Net does this; trainings that start together would all do it, over each other.
"""

import argparse
import os
from pathlib import Path


def unpack(folder: Path) -> None:
    """Writes nnU-Net's default split beside a folder of preprocessed data, and unpacks what is packed there."""
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    dataset = infer_dataset_class(str(folder))
    splits = folder.parent / "splits_final.json"
    if not splits.is_file():
        cases = sorted(dataset.get_identifiers(str(folder)))
        partial = splits.with_name(f"{splits.name}.partial")
        save_json(generate_crossval_split(cases, seed=12345, n_splits=5), str(partial))  # as nnUNetTrainer.do_split
        os.replace(partial, splits)
    dataset.unpack_dataset(
        str(folder), overwrite_existing=False, num_processes=max(1, get_allowed_n_proc_DA() // 2), verify=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    unpack(parser.parse_args().folder)
