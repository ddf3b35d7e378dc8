"""Which scans of a folder nnU-Net can predict: one that it cannot read ends its prediction of all the others."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.nnunet.label_maps import read_label_map
from nnunet_ext.nnunet.scans import Failure, Scan, check_same_grid, read_scan
from nnunet_ext.utils.files import check_whole


@dataclass(frozen=True)
class Work:
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
        """Whether the mask can be read to its end; nnU-Net writes in place, so that a kill leaves half of one."""
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
        # Whatever a reader makes of a broken file.
        except Exception:
            return False
        return True


def part_of(scans: Sequence[Scan], number: int, parts: int) -> list[Scan]:
    """The scans that one of several processes predicts, as nnU-Net shares them out.

    Raises:
        ValueError: for a number that is not one of the parts'.
    """
    if not 0 <= number < parts:
        raise ValueError(f"-part_id {number} must be one of 0 to {parts - 1}, as -num_parts is {parts}")
    return list(scans[number::parts])


def sort_out(scans: Iterable[Scan], reader: Any, channels: int, work: Work) -> tuple[list[Scan], list[Failure]]:
    """Reads every scan as nnU-Net will.

    Args:
        scans: Scans to predict; an iterable that shows progress, for instance.
        reader: The model's reader.
        channels: Number of channels that the model takes.
        work: Inputs and outputs of the prediction.

    Returns:
        Scans that can be predicted, and the others with the reason.
    """
    good, bad = [], []
    for scan in scans:
        try:
            with redirect_stdout(StringIO()):  # readers print what is in the error too
                notes = _check(scan, reader, channels, work)
        # The type of the error depends on the reader.
        except Exception as error:
            bad.append(Failure.of(scan, error))
        else:
            good.append(scan)
            if notes:
                print(f"Note: {'; '.join(notes)}; nothing was resampled.", file=sys.stderr)
    return good, bad


def _check(scan: Scan, reader: Any, channels: int, work: Work) -> list[str]:
    """Raises an error for whatever keeps a scan from being predicted; returns notes on its geometry."""
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
    if work.previous is not None and first is not None:
        mask = work.previous / f"{scan.case}{work.ending}"
        if not mask.is_file():
            raise FileNotFoundError(f"no mask of the previous stage in {work.previous}")
        earlier = read_label_map(reader, mask, work.labels)
        names = Path(scan.files[0]).name, mask.name
        notes.append(check_same_grid(names, (first[0], earlier.values.shape), (first[1], earlier.properties)))
    return [note for note in notes if note]
