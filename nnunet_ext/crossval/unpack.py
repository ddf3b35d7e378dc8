"""Makes the split and unpacks a configuration's data, once, before any training starts.

nnU-Net's first training does this; trainings that start together would overwrite each other's files.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.crossval.experiment import DEFAULT_FOLDS
from nnunet_ext.crossval.splits import split_by_group
from nnunet_ext.nnunet.groups import read_groups


def new_split(cases: Sequence[str], groups: str | None = None) -> list[dict[str, list[str]]]:
    """The split that is made where a dataset has none.

    Args:
        cases: Identifiers of the training cases.
        groups: Source of the cases' groups, which no fold may divide; None: nnU-Net's default split.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    ordered = sorted(cases)
    if groups is None:
        return generate_crossval_split(ordered, seed=12345, n_splits=DEFAULT_FOLDS)  # as nnUNetTrainer.do_split
    return split_by_group(ordered, read_groups(groups, ordered), DEFAULT_FOLDS)


def unpack(folder: Path, groups: str | None = None) -> None:
    """Writes a split beside a folder of preprocessed data, unless one exists, and unpacks the packed cases.

    Args:
        folder: The preprocessed data of a configuration.
        groups: Source of the cases' groups, which no fold may divide; None: nnU-Net's default split.
    """
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    dataset = infer_dataset_class(str(folder))
    splits = folder.parent / "splits_final.json"
    if not splits.is_file():
        partial = splits.with_name(f"{splits.name}.partial")
        save_json(new_split(dataset.get_identifiers(str(folder)), groups), str(partial))
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
