"""Excludes scans that nnU-Net cannot predict, because one unreadable scan would end the prediction of all others."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.nnunet.label_maps import read_label_map
from nnunet_ext.nnunet.scans import Failure, Scan, check_same_grid, read_scan
from nnunet_ext.utils.files import check_whole
from nnunet_ext.utils.workers import worker_pool


@dataclass(frozen=True)
class PredictionTask:
    """Inputs and outputs of a prediction.

    Attributes:
        target: Folder for the masks.
        ending: Ending of the dataset's files.
        previous: Folder of the previous stage's masks, for a cascade.
        probabilities: Whether probabilities are written as well.
        labels: Values that masks of the previous stage may have; None: any.
    """

    target: Path
    ending: str
    previous: Path | None = None
    probabilities: bool = False
    labels: frozenset[int] | None = None

    def mask(self, scan: Scan) -> Path:
        return self.target / f"{scan.case}{self.ending}"

    def is_done(self, reader: Any, scan: Scan) -> bool:
        """Whether the mask can be read to its end; nnU-Net writes in place, so that a kill can leave half of one."""
        needed = [self.target / f"{scan.case}{end}" for end in (".npz", ".pkl")] if self.probabilities else []
        if not all(file.is_file() for file in (self.mask(scan), *needed)):
            return False
        try:
            with redirect_stdout(StringIO()):
                check_whole(self.mask(scan))
                reader.read_seg(str(self.mask(scan)))
                if needed:
                    with needed[0].open("rb") as file, np.load(file) as content:
                        content["probabilities"]
        # The type of the error depends on the reader.
        except Exception:
            return False
        return True


def part_of(scans: Sequence[Scan], number: int, parts: int) -> list[Scan]:
    """The scans that one of several processes predicts, as nnU-Net shares them out.

    Raises:
        ValueError: for a number outside of 0, ..., parts - 1.
    """
    if not 0 <= number < parts:
        raise ValueError(f"-part_id {number} must be one of 0 to {parts - 1}, as -num_parts is {parts}")
    return list(scans[number::parts])


class CheckedScans:
    """Scans for nnU-Net's predictor, each checked and preprocessed by a worker while the device predicts others.

    Args:
        task: Inputs and outputs of the prediction.
        reader: Class of the model's reader.
        channels: Number of channels that the model takes.
        processes: Number of workers; as many scans are kept ready.
        failures: Scans that are already known to be unreadable.

    Attributes:
        ready: Number of scans that could be predicted.
        failures: Scans that could not be predicted, with the reason.
    """

    def __init__(
        self,
        task: PredictionTask,
        reader: Callable[[], Any],
        channels: int,
        processes: int,
        failures: Sequence[Failure] = (),
    ) -> None:
        self._task, self._reader, self._channels, self._processes = task, reader, channels, processes
        self.ready = 0
        self.failures = list(failures)

    def attach(self, predictor: Any, scans: Sequence[Scan]) -> None:
        """Makes nnU-Net's `predict_from_files` take its preprocessed scans from this object.

        Raises:
            RuntimeError: for a version of nnU-Net that prepares scans in another way.
        """
        if not hasattr(predictor, "_internal_get_data_iterator_from_lists_of_filenames"):
            raise RuntimeError("nnunetv2 prepares scans in a way that nnunet_ext does not know; nnUNetv2_predict works")
        own = {scan.files: scan for scan in scans}

        def iterate(
            files: Sequence[Sequence[str]], previous: Sequence[str] | None, targets: Sequence[str], _: int
        ) -> Iterator[dict[str, Any]]:
            masks: Sequence[str | None] = previous or [None] * len(files)
            cases = [own[tuple(case)] for case in files]
            return self._prepare(predictor, list(zip(cases, masks, targets, strict=True)))

        predictor._internal_get_data_iterator_from_lists_of_filenames = iterate

    def _prepare(self, predictor: Any, jobs: list[tuple[Scan, str | None, str]]) -> Iterator[dict[str, Any]]:
        work = partial(
            _checked_and_preprocessed,
            reader=self._reader,
            channels=self._channels,
            task=self._task,
            model=(predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json),
        )
        with worker_pool(min(self._processes, len(jobs))) as pool:
            running: deque[Future[dict[str, Any] | Failure]] = deque()

            def start(number: int) -> None:
                for scan, mask, target in jobs[number : number + 1]:
                    running.append(pool.submit(work, scan, mask, target))

            try:
                for number in range(self._processes):
                    start(number)
                for number in range(len(jobs)):
                    found = running.popleft().result()
                    start(number + self._processes)  # before the device processes the scan that is ready
                    if isinstance(found, Failure):
                        self.failures.append(found)
                    else:
                        self.ready += 1
                        yield found
            finally:
                pool.shutdown(cancel_futures=True)


def problem(scan: Scan, reader: Any, channels: int, task: PredictionTask) -> Failure | None:
    """Reads a scan as nnU-Net will, and returns the reason why it cannot be predicted; None if it can.

    Notes on its geometry go to standard error.

    Args:
        scan: The files of a case.
        reader: The model's reader.
        channels: Number of channels that the model takes.
        task: Inputs and outputs of the prediction.
    """
    try:
        with redirect_stdout(StringIO()):  # readers print what is in the error too
            notes = _check(scan, reader, channels, task)
    # The type of the error depends on the reader.
    except Exception as error:
        return Failure.of(scan, error)
    if notes:
        print(f"Note: {'; '.join(notes)}; nothing was resampled.", file=sys.stderr)
    return None


def _checked_and_preprocessed(
    scan: Scan,
    previous: str | None,
    target: str,
    *,
    reader: Callable[[], Any],
    channels: int,
    task: PredictionTask,
    model: tuple[Any, Any, Any],
) -> dict[str, Any] | Failure:
    """Runs in a worker: returns the predictor's input, made as by nnU-Net's own workers, or the failure."""
    import torch
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    if failure := problem(scan, reader(), channels, task):
        return failure
    plans, configuration, dataset = model
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, mask, properties = preprocessor.run_case(list(scan.files), previous, plans, configuration, dataset)
    if previous is not None:
        labels = plans.get_label_manager(dataset).foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(mask[0], labels, data.dtype)))
    tensor = torch.from_numpy(data).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return {"data": tensor, "data_properties": properties, "ofile": target}


def _check(scan: Scan, reader: Any, channels: int, task: PredictionTask) -> list[str]:
    """Raises an error if a scan cannot be predicted; returns notes on its geometry."""
    found, notes = 0, []
    first: tuple[tuple[int, ...], dict] | None = None
    for file in scan.files:
        image, properties = read_scan(reader, [file])
        if first is None:
            first = image.shape[1:], properties
        names = Path(scan.files[0]).name, Path(file).name
        notes.append(check_same_grid(names, (first[0], image.shape[1:]), (first[1], properties)))
        found += image.shape[0]
    if found != channels:
        raise ValueError(f"{found} channel(s), the model has {channels}")
    if task.previous is not None and first is not None:
        mask = task.previous / f"{scan.case}{task.ending}"
        if not mask.is_file():
            raise FileNotFoundError(f"no mask of the previous stage in {task.previous}")
        earlier = read_label_map(reader, mask, task.labels)
        names = Path(scan.files[0]).name, mask.name
        notes.append(check_same_grid(names, (first[0], earlier.values.shape), (first[1], earlier.properties)))
    return [note for note in notes if note]
