"""The selective scan on the CPU against the parallel scan of the package mambapy and a loop over time.

pip install mambapy
python -m benchmarks.selective_scan [--length 32768] [--methods mambapy loop extension segments] [--threads 2]
    [--repeats 5] [--clock wall]

Lengths other than EM-Net's in the paper's setting are written to selective_scan_LENGTH_cpu.csv.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
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
from nnunet_ext.ops import selective_scan, selective_scan_reference
from nnunet_ext.ops.native import native_library

_B_D_N = (2, 96, 16)
_LENGTH = 32768


def scan_inputs(b: int, d: int, n: int, length: int) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias as in a newly initialised Mamba block, contiguous in time."""
    torch.manual_seed(0)
    bias = torch.empty(d).uniform_(-6.9, -2.3).exp().expm1().log()
    rates = -torch.arange(1, n + 1.0) * (1 + 0.1 * torch.rand(d, n))
    sequences = [torch.randn(b, size, length) for size in (d, d, n, n, d)]
    tensors = [sequences[0], 0.5 * sequences[1], rates, *sequences[2:4], torch.ones(d), sequences[4], bias]
    return [t.requires_grad_() for t in tensors]


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan of mambapy's Mamba block."""
    from mambapy.pscan import pscan

    delta = F.softplus(delta + delta_bias[:, None]).transpose(1, 2)
    x = u.transpose(1, 2)
    decay = torch.exp(delta[..., None] * A)
    drive = delta[..., None] * B.transpose(1, 2)[:, :, None] * x[..., None]
    states = pscan(decay, drive)
    y = (states @ C.transpose(1, 2)[..., None])[..., 0] + D * x
    return y.transpose(1, 2) * F.silu(z)


def extension_scan(*tensors: Tensor) -> Tensor:
    """Our scan with the C extension."""
    return selective_scan(*tensors, delta_softplus=True, backend="cpu")


def loop_scan(*tensors: Tensor) -> Tensor:
    """The recurrence as a loop over positions in PyTorch."""
    return selective_scan_reference(*tensors, delta_softplus=True)


def segment_scan(*tensors: Tensor) -> Tensor:
    """Our scan without the C extension, in plain PyTorch."""
    return selective_scan(*tensors, delta_softplus=True, backend="torch")


_SCANS = {"mambapy": mambapy_scan, "loop": loop_scan, "extension": extension_scan, "segments": segment_scan}
"""Scans to measure; the first is the yardstick."""


def _prepare(method: str, backward: bool, shape: tuple[int, ...]) -> Callable[[], object]:
    scan = _SCANS[method]
    tensors = scan_inputs(*shape)
    gradient = torch.randn_like(tensors[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return scan(*tensors)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(scan(*tensors), tensors, gradient)

    return step if backward else forward


def prepare_warm(method: str, backward: bool, length: int) -> Callable[[], object]:
    """The call at full size, after a small call has loaded everything that stays in memory."""
    small = (1, 16, 16, 64)
    _prepare(method, backward, small)()
    return _prepare(method, backward, (*_B_D_N, length))


def _check_equal(methods: Sequence[str]) -> None:
    with torch.no_grad():
        expected, *others = (_prepare(method, False, (*_B_D_N, 2048))() for method in methods)
    for method, other in zip(methods[1:], others, strict=True):
        check_equal(method, other, expected, 1e-4)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=_LENGTH)
    parser.add_argument("--methods", nargs="+", choices=list(_SCANS), default=list(_SCANS), help="must include mambapy")
    add_timing_options(parser, repeats=5)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    library = native_library()
    if library is None:
        sys.exit("the C extension was not built: install a C compiler and reinstall nnunet_ext")
    if "mambapy" not in arguments.methods:
        parser.error("--methods must include mambapy, with which the others are compared")
    shape = (*_B_D_N, arguments.length)
    size_u = 4 * shape[0] * shape[1] * shape[3] / 1e9
    modes = {"forward": False, "forward + backward": True}
    memory = {
        (what, method): peak_gigabytes(partial(prepare_warm, method, backward, arguments.length))[0]
        for what, backward in modes.items()
        for method in arguments.methods
    }
    _check_equal(arguments.methods)
    rows = []
    for what, backward in modes.items():
        times = interleaved_seconds(
            {method: _prepare(method, backward, shape) for method in arguments.methods},
            arguments.repeats,
            clock=arguments.clock,
        )
        for method in arguments.methods:
            rows.append(
                {
                    "what": what,
                    "method": method,
                    "kernel": library.instruction_set if method == "extension" else "PyTorch",
                    "b_d_n_l": " ".join(map(str, shape)),
                    "precision": "float32",
                    "seed": 0,
                    **time_columns(times[method], "milliseconds", "ms", 2),
                    "times_faster_than_mambapy": f"{median_ratio(times['mambapy'], times[method]):.1f}",
                    "extra_memory_in_sizes_of_u": f"{memory[what, method] / size_u:.1f}",
                }
            )
    name = "selective_scan_cpu" if arguments.length == _LENGTH else f"selective_scan_{arguments.length}_cpu"
    write_rows(name, rows, where)


if __name__ == "__main__":
    main()
