"""A forward pass of UMambaEnc on the CPU with our selective scan, and with the scan of the package mambapy.

pip install mambapy
python -m benchmarks.u_mamba [--threads 2] [--repeats 5] [--clock wall]
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
    check_equal,
    interleaved_seconds,
    median_ratio,
    peak_gigabytes,
    time_columns,
    write_rows,
)
from benchmarks.selective_scan import mambapy_scan
from nnunet_ext.bench.setting import Setting
from nnunet_ext.ops import describe_backend

_SETTING = Setting.of_patch((64, 64, 64), batch_size=1)
_NETWORK = "U-Mamba Enc"


def _as_called(*tensors: Tensor, delta_bias: Tensor, delta_softplus: bool, reverse: bool) -> Tensor:
    """mambapy's scan with the arguments of ours, for what its own block computes: softplus, and no reversed time."""
    if reverse or not delta_softplus:
        raise ValueError(f"`reverse`={reverse} and `delta_softplus`={delta_softplus} are not mambapy's")
    return mambapy_scan(*tensors, delta_bias)


@contextmanager
def _scan_of(package: str) -> Iterator[None]:
    from nnunet_ext.blocks import mamba

    with patch.object(mamba, "selective_scan", mamba.selective_scan if package == "nnunet_ext" else _as_called):
        yield


def prepare(package: str) -> Callable[[], Tensor]:
    """A forward pass of the seeded network on a seeded image, without gradients, in float32."""
    network, image = _SETTING.build(_NETWORK, deep_supervision=False).eval(), _SETTING.images(1)

    def forward() -> Tensor:
        with _scan_of(package), torch.no_grad():
            return network(image)

    return forward


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_timing_options(parser, repeats=5)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    scans = {"mambapy": "PyTorch", "nnunet_ext": describe_backend("cpu")}
    memory = {package: peak_gigabytes(partial(prepare, package))[0] for package in scans}
    calls = {package: prepare(package) for package in scans}
    check_equal(_NETWORK, calls["nnunet_ext"](), calls["mambapy"](), 1e-3)
    times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
    rows = [
        {
            "network": _NETWORK,
            "what": "forward",
            "scan": package,
            "scan_runs_on": described,
            "patch": "x".join(map(str, _SETTING.patch_size)),
            "features": _SETTING.features_in_words,
            "precision": "float32",
            "seed": 0,
            **time_columns(times[package]),
            "times_faster_than_mambapy": f"{median_ratio(times['mambapy'], times[package]):.2f}",
            "added_GB": f"{memory[package]:.2f}",
        }
        for package, described in scans.items()
    ]
    write_rows("u_mamba_cpu", rows, where)


if __name__ == "__main__":
    main()
