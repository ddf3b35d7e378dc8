"""The selective scan on the CPU against the parallel scan of the package mambapy and a loop over time.

pip install mambapy
python -m benchmarks.selective_scan [--sizes 2 96 16] [--length 32768] [--methods mambapy loop extension segments]
    [--threads 2] [--repeats 5] [--clock wall]

Freed memory is kept for all methods, as in our trainings. Sizes are those of batch, channels and states. Lengths other
than EM-Net's in the paper's setting are written to selective_scan_LENGTH_cpu.csv, with other sizes to
selective_scan_BxDxNxLENGTH_cpu.csv.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import (
    BACKWARD,
    FLOAT32,
    Row,
    check_equal,
    interleaved_seconds,
    median_ratio,
    peak_gigabytes,
    run,
    time_columns,
    timing_parser,
)
from nnunet_ext.ops import selective_scan, selective_scan_reference
from nnunet_ext.ops.native import native_library
from nnunet_ext.utils.allocator import keep_freed_memory

_SIZES = [2, 96, 16]
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


_SCANS: dict[str, Callable[..., Tensor]] = {
    "mambapy": mambapy_scan,
    "loop": partial(selective_scan_reference, delta_softplus=True),
    "extension": partial(selective_scan, delta_softplus=True, backend="cpu"),
    "segments": partial(selective_scan, delta_softplus=True, backend="torch"),
}
"""Scans to measure; the others are compared with the first."""


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


def prepare_warm(method: str, backward: bool, shape: tuple[int, ...]) -> Callable[[], object]:
    """The call at full size, after a small call has loaded everything that stays in memory."""
    small = (1, 16, 16, 64)
    _prepare(method, backward, small)()
    return _prepare(method, backward, shape)


def _check_equal(methods: Sequence[str], sizes: Sequence[int]) -> None:
    with torch.no_grad():
        expected, *others = (_prepare(method, False, (*sizes, 2048))() for method in methods)
    for method, other in zip(methods[1:], others, strict=True):
        check_equal(method, other, expected, 1e-4)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    library = native_library()
    if library is None:
        sys.exit("the C extension was not built: install a C compiler and reinstall nnunet_ext")
    shape = (*arguments.sizes, arguments.length)
    size_u = 4 * shape[0] * shape[1] * shape[3] / 1e9
    _check_equal(arguments.methods, arguments.sizes)
    keep_freed_memory()
    for what, backward in BACKWARD.items():
        prepared = {method: partial(prepare_warm, method, backward, shape) for method in arguments.methods}
        memory = {method: peak_gigabytes(prepare)[0] for method, prepare in prepared.items()}
        calls = {method: _prepare(method, backward, shape) for method in arguments.methods}
        times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
        for method in arguments.methods:
            yield {
                "what": what,
                "method": method,
                "kernel": library.instruction_set if method == "extension" else "PyTorch",
                "b_d_n_l": " ".join(map(str, shape)),
                **FLOAT32,
                **time_columns(times[method], "milliseconds", "ms", 2),
                "times_faster_than_mambapy": f"{median_ratio(times['mambapy'], times[method]):.1f}",
                "extra_memory_in_sizes_of_u": f"{memory[method] / size_u:.1f}",
            }


if __name__ == "__main__":
    parser = timing_parser(__doc__, repeats=5)
    parser.add_argument("--sizes", nargs=3, type=int, default=_SIZES, metavar=("BATCH", "CHANNELS", "STATES"))
    parser.add_argument("--length", type=int, default=_LENGTH)
    parser.add_argument("--methods", nargs="+", choices=list(_SCANS), default=list(_SCANS), help="must include mambapy")
    options = parser.parse_args()
    if "mambapy" not in options.methods:
        parser.error("--methods must include mambapy, with which the others are compared")
    name = "" if options.length == _LENGTH else f"_{options.length}"
    if options.sizes != _SIZES:
        name = "_" + "x".join(map(str, (*options.sizes, options.length)))
    run(f"selective_scan{name}_cpu", rows, parser)
