"""The effect of checkpointing on time and memory of LSTMSA's training step on the CPU.

python -m benchmarks.lstm_sa [--threads 2] [--repeats 5] [--clock wall]

`python -m benchmarks.transcriptions` compares it with a naive, slice-by-slice reference implementation.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.measure import FLOAT32, Row, form_columns, run, timing_parser
from nnunet_ext.networks import LSTMSA

_PATCH, _BATCH, _WIDTHS = (40, 56, 40), 2, (32, 64, 128, 256)
_SETTING = "40x56x40, batch 2, features 32 64 128 256"
_FORMS = {"not checkpointed": 0, "checkpointed by 8 slices": 8, "checkpointed by 2 slices": 2}


def prepare(checkpoint_slices: int) -> Callable[[], object]:
    """Forward and backward pass of LSTMSATrainer on hippocampus, with deep supervision."""
    torch.manual_seed(0)
    topology = {"n_stages": len(_WIDTHS), "features_per_stage": _WIDTHS, "kernel_sizes": 3, "strides": 2}
    network = LSTMSA(
        1, 3, _PATCH, conv_op=nn.Conv3d, **topology, checkpoint_slices=checkpoint_slices, deep_supervision=True
    )
    image = torch.randn(_BATCH, 1, *_PATCH)

    def step() -> None:
        sum(y.square().mean() for y in network(image)).backward()
        network.zero_grad(set_to_none=True)

    return step


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    forms = {form: partial(prepare, slices) for form, slices in _FORMS.items()}
    measured = form_columns(forms, arguments, ratio="of_not_checkpointed", base="not checkpointed", faster=False)
    for form, columns in measured.items():
        yield {"what": f"forward + backward, {form}", "setting": _SETTING, **FLOAT32, **columns}


if __name__ == "__main__":
    run("lstm_sa_cpu", rows, timing_parser(__doc__, repeats=5))
