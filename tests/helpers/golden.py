"""Golden files: numbers that the authors' own code produced."""

import json

import numpy as np
import torch

from tests.helpers.paths import GOLDEN


class Golden:
    """A golden file: its settings, the authors' state dict, and its arrays as tensors."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.meta = json.loads(str(self.arrays["meta"]))
        self.state_dict = {
            key.removeprefix("weights/"): torch.from_numpy(self.arrays[key])
            for key in self.arrays.files
            if key.startswith("weights/")
        }

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])
