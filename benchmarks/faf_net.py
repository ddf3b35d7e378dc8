"""FAF-Net on the CPU: prediction by stored prototypes against encoding the support again for every query slice.

python -m benchmarks.faf_net [--threads 2] [--repeats 5] [--seconds 30] [--size 64] [--slices 8]

A small network's calls are short against what else a machine does: each is repeated for so many seconds at least.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved_seconds, median_ratio, write_rows
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_encoder import ENCODERS

_METHODS = ("encoded for every slice", "stored, slice by slice", "stored, all slices")


def build(encoder: str, size: int) -> FAFNet:
    """A network of one class in eval mode, widths as published; the plan's as nnU-Net chooses them."""
    torch.manual_seed(0)
    return FAFNet(
        input_channels=1,
        num_classes=2,
        patch_size=(size, size),
        n_stages=3,
        features_per_stage=(32, 64, 128),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=2,
        encoder=encoder,
    ).eval()


def inputs(size: int, slices: int) -> tuple[Tensor, Tensor, Tensor]:
    """One support image, its mask of one class, and the query slices."""
    torch.manual_seed(1)
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    return torch.randn(1, 1, size, size), mask, torch.randn(slices, 1, size, size)


@torch.no_grad()
def encoded_again(network: FAFNet, image: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
    """Every query slice with its support image; both are encoded as one batch."""
    results = []
    for query in queries:
        features, tau = network.encoder(torch.cat((image, query[None])))
        results.append(network.segment_features(features[:1], mask[0], features[1:], tau[1:]))
    return torch.cat(results)


@torch.no_grad()
def stored(network: FAFNet, queries: Tensor) -> Tensor:
    """Query slices as the network predicts them."""
    return network(queries)


def _prepare(encoder: str, size: int, slices: int) -> dict[str, Callable[[], Tensor]]:
    network, (image, mask, queries) = build(encoder, size), inputs(size, slices)
    network.set_support(image, mask)
    functions = {
        _METHODS[0]: lambda: encoded_again(network, image, mask, queries),
        _METHODS[1]: lambda: torch.cat([stored(network, query[None]) for query in queries]),
        _METHODS[2]: lambda: stored(network, queries),
    }
    again, *others = (function() for function in functions.values())
    for other in others:
        error = (again - torch.softmax(other, 1)).abs().max().item()
        if error > 1e-4:
            raise RuntimeError(f"the probabilities differ by {error:.1e}: nothing to compare")
    return functions


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30, help="for every encoder, at least")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--slices", type=int, default=8)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows = []
    for encoder in ENCODERS:
        functions = _prepare(encoder, arguments.size, arguments.slices)
        turn = sum(seconds for (seconds,) in interleaved_seconds(functions, 1).values())
        times = interleaved_seconds(functions, max(arguments.repeats, round(arguments.seconds / turn)))
        for method in _METHODS:
            per_slice = [1e3 * seconds / arguments.slices for seconds in times[method]]
            rows.append(
                {
                    "encoder": encoder,
                    "support": method,
                    "setting": f"{arguments.size}^2, {arguments.slices} slices, 1 class, 1 support slice",
                    "precision": "float32",
                    "seed": 0,
                    "ms_per_slice": f"{statistics.median(per_slice):.1f}",
                    "min_ms": f"{min(per_slice):.1f}",
                    "max_ms": f"{max(per_slice):.1f}",
                    "times_faster": f"{median_ratio(times[_METHODS[0]], times[method]):.2f}",
                }
            )
    write_rows("faf_net_cpu", rows)


if __name__ == "__main__":
    main()
