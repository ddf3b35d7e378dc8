"""Makes the split and unpacks a configuration's data, once, before any training starts.

nnU-Net's first training does this; trainings that start together would overwrite each other's files.
"""

import argparse
import os
from pathlib import Path

from nnunet_ext.crossval.experiment import DEFAULT_FOLDS
from nnunet_ext.crossval.splits import split_by_group
from nnunet_ext.nnunet.groups import read_groups


def unpack(folder: Path, groups: str | None = None) -> None:
    """Writes a split beside a folder of preprocessed data, unless one exists, and unpacks the packed cases.

    Args:
        folder: The preprocessed data of a configuration.
        groups: Source of the cases' groups, which no fold may divide; None: nnU-Net's default split.
    """
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    dataset = infer_dataset_class(str(folder))
    splits = folder.parent / "splits_final.json"
    if not splits.is_file():
        cases = sorted(dataset.get_identifiers(str(folder)))
        partial = splits.with_name(f"{splits.name}.partial")
        if groups is None:
            content = generate_crossval_split(cases, seed=12345, n_splits=DEFAULT_FOLDS)  # as nnUNetTrainer.do_split
        else:
            content = split_by_group(cases, read_groups(groups, cases), DEFAULT_FOLDS)
        save_json(content, str(partial))
        os.replace(partial, splits)
    dataset.unpack_dataset(
        str(folder), overwrite_existing=False, num_processes=max(1, get_allowed_n_proc_DA() // 2), verify=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups")
    arguments = parser.parse_args()
    unpack(arguments.folder, arguments.groups)
