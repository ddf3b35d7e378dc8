"""The selective scan on a GPU: our Triton kernels against mamba_ssm's, both directions, and against the limits.

python -m benchmarks.selective_scan_gpu [--repeats 20]

mamba_ssm's kernel supports one direction only, so it is called twice, the second time on flipped copies, as its users
do. The limits are measured on the same GPU: a copy gives the memory throughput, and a chain of exponentials gives
theirs. A forward scan must move u, delta, z, B, C and y once and compute (b, d, n, l) exponentials.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import environment, median_ratio, write_rows
from benchmarks.selective_scan import scan_inputs
from nnunet_ext.ops import mamba_ssm_scan, selective_scan

_SHAPES = ((4, 96, 16, 32768), (4, 384, 16, 512))
_COPIED_BYTES = 1 << 30
_EXPONENTIALS = 1 << 28


def _channels_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 3 else x


def gpu_inputs(shape: tuple[int, int, int, int], channels_last: bool) -> list[Tensor]:
    """Inputs of the CPU benchmark on the GPU, in the layout that suits the kernel."""
    tensors = [x.detach().cuda() for x in scan_inputs(*shape)]
    return [(_channels_last(x) if channels_last else x).requires_grad_() for x in tensors]


def both_directions(backend: str, tensors: Sequence[Tensor], backward: bool) -> Callable[[], object]:
    """A call that scans in both directions, with all gradients if `backward`."""
    gradient = torch.randn_like(tensors[0])

    def forward() -> Tensor:
        options = {"delta_softplus": True, "backend": backend}
        return selective_scan(*tensors, **options) + selective_scan(*tensors, reverse=True, **options)

    def step() -> object:
        if backward:
            return torch.autograd.grad(forward(), tensors, gradient)
        with torch.no_grad():
            return forward()

    return step


def gpu_milliseconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times of the functions by the GPU's clock, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 3):
        for name, function in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end))
    return times


def limits() -> tuple[float, float]:
    """Bytes and exponentials per second."""
    source = torch.empty(_COPIED_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    copied = gpu_milliseconds({"copy": lambda: target.copy_(source)}, 10)["copy"]
    small = torch.rand(_EXPONENTIALS // 16, device="cuda")

    @torch.compile
    def sixteen(x: Tensor) -> Tensor:
        for _ in range(16):
            x = torch.exp2(-x)
        return x

    taken = gpu_milliseconds({"exp": lambda: sixteen(small)}, 10)["exp"]
    return 2e3 * _COPIED_BYTES / statistics.median(copied), 1e3 * _EXPONENTIALS / statistics.median(taken)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; none here")
    backends = ["triton"] + ([] if mamba_ssm_scan.why_unusable() else ["mamba_ssm"])
    bytes_per_second, exponentials_per_second = limits()
    rows = []
    for shape in _SHAPES:
        b, d, n, length = shape
        memory_ms = 1e3 * 4 * 2 * b * length * (4 * d + 2 * n) / bytes_per_second
        exponential_ms = 1e3 * 2 * b * d * n * length / exponentials_per_second
        for what, backward in (("forward", False), ("forward + backward", True)):
            tensors = {name: gpu_inputs(shape, name == "triton") for name in backends}
            calls = {name: both_directions(name, tensors[name], backward) for name in backends}
            times = gpu_milliseconds(calls, arguments.repeats)
            for name in backends:
                row = {
                    "what": what,
                    "backend": name,
                    "b_d_n_l": " ".join(map(str, shape)),
                    "directions": 2,
                    "precision": "float32",
                    "seed": 0,
                    "milliseconds": f"{statistics.median(times[name]):.3f}",
                    "memory_limit_ms": "" if backward else f"{memory_ms:.3f}",
                    "exponential_limit_ms": "" if backward else f"{exponential_ms:.3f}",
                    "times_faster_than_mamba_ssm": "",
                }
                if "mamba_ssm" in backends:
                    row["times_faster_than_mamba_ssm"] = f"{median_ratio(times['mamba_ssm'], times[name]):.2f}"
                rows.append(row)
    write_rows("selective_scan_gpu", rows, environment() | {"device": torch.cuda.get_device_name()})


if __name__ == "__main__":
    main()
