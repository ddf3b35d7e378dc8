"""MT-UNet's Gaussian axial attention for all positions at once against a loop over positions, on the CPU.

MT-UNet's attention sees 7 x 7 positions at 224 pixels, one token per window of its first level; 28 x 28, that level's
grid without windows, shows the scaling. It takes little of the network's time: see
`python -m benchmarks.transcriptions`.

python -m benchmarks.gaussian_attention [--threads 2] [--repeats 15] [--clock wall]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import (
    add_timing_options,
    begin,
    check_equal,
    interleaved_seconds,
    median_ratio,
    time_columns,
    write_rows,
)
from nnunet_ext.networks.mt_unet.gaussian_attention import gaussian_attention, gaussian_attention_reference

_BATCH, _CHANNELS = 1, 256
_SIDES = (28, 7)
_METHODS = ("loop", "vectorised")


def attention_inputs(side: int) -> list[Tensor]:
    """q, k, v and the shift s; q and k are as small as after a projection of normalised tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(_BATCH, side, side, _CHANNELS) for _ in range(3))
    return [t.requires_grad_() for t in (_CHANNELS**-0.25 * q, _CHANNELS**-0.25 * k, v, torch.tensor([0.1]))]


def loop(q: Tensor, k: Tensor, v: Tensor, shift: Tensor) -> Tensor:
    """One position at a time, as in the authors' code."""
    return gaussian_attention_reference(q, k, v, shift, torch.zeros(1))


def _prepare(method: str, backward: bool, side: int) -> Callable[[], object]:
    attention = {"loop": loop, "vectorised": gaussian_attention}[method]
    tensors = attention_inputs(side)
    gradient = torch.randn_like(tensors[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(*tensors)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*tensors), tensors, gradient)

    return step if backward else forward


def _check_equal(side: int) -> None:
    expected, actual = (attention(*attention_inputs(side)) for attention in (loop, gaussian_attention))
    check_equal(f"{side} x {side} positions", actual, expected, 1e-5)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_timing_options(parser, repeats=15)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    rows = []
    for side in _SIDES:
        _check_equal(side)
        for what, backward in {"forward": False, "forward + backward": True}.items():
            calls = {method: _prepare(method, backward, side) for method in _METHODS}
            times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
            for method in _METHODS:
                rows.append(
                    {
                        "what": what,
                        "method": method,
                        "positions": f"{side} x {side}",
                        "b_c": f"{_BATCH} {_CHANNELS}",
                        "precision": "float32",
                        "seed": 0,
                        **time_columns(times[method], "milliseconds", "ms", 3),
                        "times_faster_than_loop": f"{median_ratio(times['loop'], times[method]):.1f}",
                    }
                )
    write_rows("gaussian_attention_cpu", rows, where)


if __name__ == "__main__":
    main()
