"""A forward pass of UMambaEnc on the CPU with our selective scan, and with the scan of the package mambapy.

pip install mambapy
python -m benchmarks.u_mamba [--threads 2] [--repeats 5] [--clock wall]
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import FLOAT32, Row, check_equal, form_columns, run, timing_parser
from benchmarks.selective_scan import mambapy_scan
from nnunet_ext.bench.setting import Setting
from nnunet_ext.blocks import mamba
from nnunet_ext.ops import describe_backend

_SETTING = Setting.of_patch((64, 64, 64), batch_size=1)
_NETWORK = "U-Mamba Enc"


def _mambapy(*tensors: Tensor, delta_bias: Tensor, delta_softplus: bool, reverse: bool) -> Tensor:
    """mambapy's scan with the arguments of ours; it always applies softplus and cannot run backwards."""
    if reverse or not delta_softplus:
        raise ValueError(f"`reverse`={reverse} and `delta_softplus`={delta_softplus} are not supported by mambapy")
    return mambapy_scan(*tensors, delta_bias)


def prepare(package: str) -> Callable[[], Tensor]:
    """A forward pass of the seeded network on a seeded image, without gradients, in float32."""
    network, image = _SETTING.build(_NETWORK, deep_supervision=False).eval(), _SETTING.images(1)

    def forward() -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if package != "nnunet_ext":  # a scan that is continued is ours
                stack.enter_context(patch.object(mamba, "selective_scan", _mambapy))
                stack.enter_context(patch.object(mamba, "can_continue", lambda tokens: False))
            return network(image)

    return forward


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    runs_on = {"mambapy": "PyTorch", "nnunet_ext": describe_backend("cpu")}
    check_equal(_NETWORK, prepare("nnunet_ext")(), prepare("mambapy")(), 1e-3)
    forms = {package: partial(prepare, package) for package in runs_on}
    measured = form_columns(forms, arguments, ratio="times_faster_than_mambapy", base="mambapy")
    for package, columns in measured.items():
        setting = {"patch": "x".join(map(str, _SETTING.patch_size)), "features": _SETTING.features_in_words}
        scan = {"scan": package, "scan_runs_on": runs_on[package]}
        yield {"network": _NETWORK, "what": "forward", **scan, **setting, **FLOAT32, **columns}


if __name__ == "__main__":
    run("u_mamba_cpu", rows, timing_parser(__doc__, repeats=5))
