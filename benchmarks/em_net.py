"""EM-Net on the CPU, and the time of its scan, against the same network with a multiplication in place of the scan.

python -m benchmarks.em_net [--threads 2] [--repeats 7] [--clock wall]
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import BACKWARD, FLOAT32, Row, form_columns, run, timed_call, timing_parser
from nnunet_ext.blocks import mamba
from nnunet_ext.networks import NETWORKS, EMNet
from nnunet_ext.ops import describe_backend, selective_scan

_PATCH = (64, 64, 64)
_SETTING = "64^3, batch 1, 1 channel, 9 classes, features 48..384"


def prepare(form: str, backward: bool) -> Callable[[], object]:
    """A call of the paper's network on a smaller patch, with a backend's scan or, for "multiplication", u * delta."""
    torch.manual_seed(0)
    network = EMNet(**(NETWORKS["em_net"].paper | {"patch_size": _PATCH}))
    image = torch.randn(1, 1, *_PATCH)

    def scan(u: Tensor, delta: Tensor, *others: Tensor, **options: object) -> Tensor:
        return u * delta if form == "multiplication" else selective_scan(u, delta, *others, **options, backend=form)

    call = timed_call(lambda: network(image), backward)

    def with_the_scan() -> object:
        with patch.object(mamba, "selective_scan", scan):
            return call()

    return with_the_scan


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    runs_on = {"cpu": describe_backend("cpu"), "torch": "segments in plain PyTorch", "multiplication": "u * delta"}
    for what, backward in BACKWARD.items():
        forms = {form: partial(prepare, form, backward) for form in runs_on}
        measured = form_columns(forms, arguments, ratio="of_multiplication", base="multiplication", faster=False)
        for form, columns in measured.items():
            described = {"scan": form, "scan_runs_on": runs_on[form], "setting": _SETTING}
            yield {"what": what, **described, **FLOAT32, **columns}


if __name__ == "__main__":
    run("em_net_cpu", rows, timing_parser(__doc__, repeats=7))
