"""Trainers that also save their initial weights."""

from pathlib import Path

_RECORDER = """
from pathlib import Path
import torch
from nnunet_ext.trainers.{trainer} import {trainer}

class Recording{trainer}({trainer}):
    def on_train_start(self):
        super().on_train_start()
        torch.save(self.network.state_dict(), Path(self.output_folder) / "start.pth")
"""


def write_recorder(folder: Path, trainer: str) -> str:
    """Writes a subclass of a trainer into a folder for nnU-Net to search, and returns its name."""
    folder.mkdir(parents=True)
    name = f"Recording{trainer}"
    (folder / f"{name}.py").write_text(_RECORDER.format(trainer=trainer))
    return name
