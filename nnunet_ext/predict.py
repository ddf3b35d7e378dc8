"""Which scans of a folder nnU-Net can predict: one that it cannot read ends its prediction of all the others."""

from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.nnunet.scans import Failure, Scan, geometry_differences, read_scan
from nnunet_ext.utils.files import check_whole


@dataclass(frozen=True)
class Work:
    """What there is to predict, and where to.

    Attributes:
        target: Folder of the masks.
        ending: Of the dataset's files.
        previous: Folder of the previous stage's masks, for a cascade.
        probabilities: Whether these are written too.
    """

    target: Path
    ending: str
    previous: Path | None = None
    probabilities: bool = False

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
        scans: To predict; an iterable that shows progress, for instance.
        reader: The model's.
        channels: That the model takes.
        work: What for.

    Returns:
        Scans that can be predicted, and the others with the reason.
    """
    good, bad = [], []
    for scan in scans:
        try:
            with redirect_stdout(StringIO()):  # readers print what is in the error too
                _check(scan, reader, channels)
            if work.previous is not None and not (work.previous / f"{scan.case}{work.ending}").is_file():
                raise FileNotFoundError(f"no mask of the previous stage in {work.previous}")
        # Whatever a reader makes of a broken file.
        except Exception as error:
            bad.append(Failure.of(scan, error))
        else:
            good.append(scan)
    return good, bad


def _check(scan: Scan, reader: Any, channels: int) -> None:
    """Raises whatever keeps a scan from being predicted."""
    found, first = 0, None
    for file in scan.files:
        image, properties = read_scan(reader, [file])
        if first is None:
            first = image.shape[1:], properties
        different = geometry_differences(first[1], properties)
        if image.shape[1:] != first[0]:
            different.insert(0, f"size {first[0]} and {image.shape[1:]}")
        if different:
            raise ValueError(f"{Path(scan.files[0]).name} and {Path(file).name} differ in {'; '.join(different)}")
        found += image.shape[0]
    if found != channels:
        raise ValueError(f"{found} channel(s), the model has {channels}")
