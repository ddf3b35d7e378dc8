"""EM-Net on the CPU, and the time of its scan, against the same network with a multiplication in place of the scan.

python -m benchmarks.em_net [--threads 2] [--repeats 7] [--clock wall]
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import (
    add_timing_options,
    begin,
    interleaved_seconds,
    median_ratio,
    peak_gigabytes,
    time_columns,
    write_rows,
)
from nnunet_ext.networks import NETWORKS, EMNet
from nnunet_ext.ops import describe_backend

_PATCH = (64, 64, 64)
_SETTING = "64^3, batch 1, 1 channel, 9 classes, features 48..384"


@contextmanager
def scan_as(form: str) -> Iterator[None]:
    """Context in which EM-Net's scan uses the backend of that name or, for "multiplication", u * delta."""
    from nnunet_ext.blocks import mamba

    if form == "multiplication":
        with patch.object(mamba, "selective_scan", lambda u, delta, *_, **__: u * delta):
            yield
    else:
        with patch.object(mamba, "selective_scan", partial(mamba.selective_scan, backend=form)):
            yield


def _network_and_image() -> tuple[EMNet, Tensor]:
    torch.manual_seed(0)
    return EMNet(**(NETWORKS["em_net"].paper | {"patch_size": _PATCH})), torch.randn(1, 1, *_PATCH)


def prepare(form: str, backward: bool) -> Callable[[], object]:
    """A forward pass, with or without a backward pass, of the paper's network on a smaller patch."""
    network, image = _network_and_image()

    def forward() -> Tensor:
        with scan_as(form), torch.no_grad():
            return network(image)

    def step() -> None:
        with scan_as(form):
            network(image).square().mean().backward()

    return step if backward else forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_timing_options(parser, repeats=7)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    forms = {"cpu": describe_backend("cpu"), "torch": "segments in plain PyTorch", "multiplication": "u * delta"}
    modes = {"forward": False, "forward + backward": True}
    memory = {
        (what, form): peak_gigabytes(partial(prepare, form, backward))[0]
        for what, backward in modes.items()
        for form in forms
    }
    rows = []
    for what, backward in modes.items():
        calls = {form: prepare(form, backward) for form in forms}
        times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
        rows += [
            {
                "what": what,
                "scan": form,
                "scan_runs_on": described,
                "setting": _SETTING,
                "precision": "float32",
                "seed": 0,
                **time_columns(times[form]),
                "of_multiplication": f"{median_ratio(times[form], times['multiplication']):.2f}",
                "added_GB": f"{memory[what, form]:.2f}",
            }
            for form, described in forms.items()
        ]
    write_rows("em_net_cpu", rows, where)


if __name__ == "__main__":
    main()
