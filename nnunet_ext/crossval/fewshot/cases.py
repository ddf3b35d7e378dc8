"""The scans of a dataset with the classes that they show, and masks of several classes that may overlap."""

import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.nnunet.dataset_json import label_values, read_dataset_json
from nnunet_ext.nnunet.label_maps import LabelMap, read_label_map
from nnunet_ext.nnunet.scans import Scan


@dataclass(frozen=True)
class LabelledCases:
    """The labelled scans of a raw dataset.

    Attributes:
        dataset: Content of dataset.json.
        scans: Scans by case.
        truths: Files of their label maps.
        reader: nnU-Net's reader of the files.
    """

    dataset: Mapping[str, Any]
    scans: Mapping[str, Scan]
    truths: Mapping[str, Path]
    reader: Any

    @property
    def ignore(self) -> int | None:
        return self.dataset["labels"].get("ignore")

    def labels(self, case: str) -> LabelMap:
        """The label map of a case.

        Raises:
            ValueError: as `read_label_map`.
        """
        return read_label_map(self.reader, self.truths[case], label_values(self.dataset))

    def masks(self, case: str, classes: Mapping[str, tuple[int, ...]]) -> tuple[NDArray[np.bool_], LabelMap]:
        """Masks (R, D, H, W) of several classes, and the label map from which they were made."""
        found = self.labels(case)
        return np.stack([np.isin(found.values, values) for values in classes.values()]), found

    def shown(self, classes: Mapping[str, tuple[int, ...]]) -> dict[str, frozenset[str]]:
        """Classes that each case shows.

        Raises:
            ValueError: as `read_label_map`, and for a class that no case shows.
        """
        result = {}
        for case in tqdm(sorted(self.truths), "Reading labels", unit="case", disable=None):
            present = set(self.labels(case).present)
            result[case] = frozenset(name for name, values in classes.items() if present.intersection(values))
        for name, values in classes.items():
            if not any(name in found for found in result.values()):
                raise ValueError(
                    f"no case of the dataset has the class {name!r} (label {', '.join(map(str, values))}): leave it "
                    "out with --test-classes"
                )
        return result


def labelled_cases(raw: Path) -> LabelledCases:
    """The labelled scans of a raw dataset, by nnU-Net's own rules.

    Raises:
        FileNotFoundError: if the raw data or their labels are missing.
        ValueError: for a dataset.json that nnU-Net cannot use, or files that it cannot read.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if not (raw / "imagesTr").is_dir() and not (raw / "dataset.json").is_file():
        raise FileNotFoundError(f"no such folder: {raw}; the protocol segments the raw scans")
    dataset = read_dataset_json(raw / "dataset.json", "channel_names")
    ending = dataset["file_ending"]
    files = get_filenames_of_train_images_and_targets(str(raw), dict(dataset))
    if missing := [entry["label"] for entry in files.values() if not Path(entry["label"]).is_file()]:
        raise FileNotFoundError(f"no such file: {missing[0]}; each scan of imagesTr needs its labels")
    if not files:
        raise ValueError(f"{raw} has no scan in imagesTr that ends with _0000{ending}")
    with redirect_stdout(StringIO()):
        reader = determine_reader_writer_from_dataset_json(
            dict(dataset), str(next(iter(files.values()))["label"]), verbose=False
        )()
    return LabelledCases(
        dataset,
        {case: Scan(case, ending, tuple(map(str, entry["images"]))) for case, entry in files.items()},
        {case: Path(entry["label"]) for case, entry in files.items()},
        reader,
    )


def coded(masks: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
    """One map for several masks that may overlap: mask r is bit r, ignored voxels have the next bit alone.

    Shape:
        (R, D, H, W), (D, H, W) -> (D, H, W)
    """
    bits = (1 << np.arange(len(masks), dtype=np.uint16))[:, None, None, None]
    result = (masks * bits).sum(0, dtype=np.uint16)
    if ignored is not None:
        result[ignored] = 1 << len(masks)
    return result


def coded_dataset(names: Sequence[str], ending: str, channels: Mapping[str, Any], ignore: bool) -> dict[str, Any]:
    """The dataset.json of coded maps: every class is the region of all values that have its bit."""
    bits = range(len(names))
    values = {name: [v for v in range(1 << len(names)) if v >> bit & 1] for name, bit in zip(names, bits, strict=True)}
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: found if len(found) > 1 else found[0] for name, found in values.items()}
    if ignore:
        labels["ignore"] = 1 << len(names)
    content = {"channel_names": dict(channels), "labels": labels, "file_ending": ending}
    return content | ({"regions_class_order": [1 << bit for bit in bits]} if len(names) > 1 else {})


def write_map(reader: Any, values: NDArray[np.integer], file: Path, ending: str, properties: Mapping[str, Any]) -> None:
    """Writes a label map that appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name.removesuffix(ending)}.partial{ending}")
    reader.write_seg(values, str(partial), properties)
    os.replace(partial, file)
