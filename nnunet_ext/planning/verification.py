"""Checks of a dataset before it is planned: its labels, and the axis along which 2D images are flat."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ext.nnunet.dataset_json import check_consecutive, label_values, read_dataset_json
from nnunet_ext.nnunet.label_maps import read_label_map
from nnunet_ext.nnunet.scans import label_files
from nnunet_ext.utils.workers import worker_pool

_MANY_FILES = 100
"""Number of label files from which several processes read them."""


def check_labels(raw: Path) -> None:
    """Checks the labels that dataset.json names, and those in the label files that exist.

    Args:
        raw: The dataset's folder of raw data.

    Raises:
        FileNotFoundError: if there is no dataset.json.
        ValueError: for a dataset.json that nnU-Net cannot use, values that are not consecutive, or a label file with
            other values.
    """
    content = read_dataset_json(raw / "dataset.json", "channel_names", "numTraining")
    check_consecutive(raw / "dataset.json", content)
    files = _label_files(raw, content)
    if not files:
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # tracebacks of readers that do not read the file
        reader = determine_reader_writer_from_dataset_json(content, str(files[0]), verbose=False)
    check = partial(_check_label_file, reader, frozenset(label_values(content)))
    if len(files) < _MANY_FILES:
        for file in files:
            check(file)
        return
    with worker_pool(default_num_processes) as pool:
        deque(pool.map(check, files, chunksize=8), maxlen=0)


def flat_axis(shapes: Sequence[Sequence[int]], preferred: int = 0) -> int | None:
    """The axis along which all images have size 1; None for volumes.

    Args:
        shapes: (D, H, W) of each image.
        preferred: Axis to take if there are several.
    """
    flat = [axis for axis in range(3) if all(shape[axis] == 1 for shape in shapes)]
    return preferred if preferred in flat else next(iter(flat), None)


def _label_files(raw: Path, content: Mapping[str, Any]) -> list[Path]:
    if "dataset" in content:  # nnU-Net's other way to lay out a dataset: every file is named
        return [Path(case["label"]) for case in get_filenames_of_train_images_and_targets(str(raw), content).values()]
    folder = raw / "labelsTr"
    return list(label_files(folder, content["file_ending"]).values()) if folder.is_dir() else []


def _check_label_file(reader: type, values: Collection[int], file: Path) -> None:
    read_label_map(reader(), file, values)
