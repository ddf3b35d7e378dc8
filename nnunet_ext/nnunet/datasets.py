"""Datasets as users name them."""

import re


def dataset_name(dataset: str) -> str:
    """The name of a dataset that is given by its number or its name.

    Raises:
        ValueError: for anything else, and for a number without a dataset.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    if not dataset.isdigit() and not re.match(r"Dataset\d{3}_", dataset):
        raise ValueError(f"-d {dataset} must be a number, for example 4, or a name such as Dataset004_Hippocampus")
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except RuntimeError as error:
        raise ValueError(f"-d {dataset}: {' '.join(str(error).split())}") from error
