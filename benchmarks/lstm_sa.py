"""The effect of checkpointing on time and memory of LSTMSA's training step on the CPU.

python -m benchmarks.lstm_sa [--threads 2] [--repeats 5] [--clock wall]

`python -m benchmarks.transcriptions` compares it with a naive, slice-by-slice reference implementation.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.measure import (
    add_timing_options,
    begin,
    interleaved_seconds,
    median_ratio,
    peak_gigabytes,
    time_columns,
    write_rows,
)
from nnunet_ext.networks import LSTMSA

_PATCH, _BATCH, _WIDTHS = (40, 56, 40), 2, (32, 64, 128, 256)
_SETTING = "40x56x40, batch 2, features 32 64 128 256"
_CHUNKS = {0: "not checkpointed", 8: "checkpointed by 8 slices", 2: "checkpointed by 2 slices"}


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_timing_options(parser, repeats=5)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    memory = {chunk: peak_gigabytes(partial(prepare, chunk))[0] for chunk in _CHUNKS}
    calls = {chunk: prepare(chunk) for chunk in _CHUNKS}
    times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
    rows = [
        {
            "what": f"forward + backward, {described}",
            "setting": _SETTING,
            "precision": "float32",
            "seed": 0,
            **time_columns(times[chunk]),
            "of_not_checkpointed": f"{median_ratio(times[chunk], times[0]):.2f}",
            "added_GB": f"{memory[chunk]:.2f}",
        }
        for chunk, described in _CHUNKS.items()
    ]
    write_rows("lstm_sa_cpu", rows, where)


if __name__ == "__main__":
    main()
