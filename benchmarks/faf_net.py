"""FAF-Net on the CPU: prediction from stored prototypes against encoding the support for every query slice.

python -m benchmarks.faf_net [--threads 2] [--repeats 5] [--clock wall] [--seconds 30] [--size 64] [--slices 8]
python -m benchmarks.faf_net --plain   # against a naive reference implementation instead

A small network's calls are short compared with other load on the machine, so each is repeated for at least --seconds.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import (
    FLOAT32,
    Row,
    check_equal,
    interleaved_seconds,
    median_ratio,
    plain_row,
    run,
    time_columns,
    timing_parser,
)
from benchmarks.plain.faf_net import plain_encoder, plain_episode, plain_forward
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.encoder import ENCODERS

_METHODS = ("encoded for every slice", "stored, slice by slice", "stored, all slices")


def build(encoder: str, size: int) -> FAFNet:
    """A network for one class in eval mode, with the published widths or, for the plan's encoder, nnU-Net's."""
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
    """One support image, its mask for one class, and the query slices."""
    torch.manual_seed(1)
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    return torch.randn(1, 1, size, size), mask, torch.randn(slices, 1, size, size)


@torch.no_grad()
def encoded_again(network: FAFNet, image: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
    """Segments every query slice with its support image; both are encoded in one batch."""
    results = []
    for query in queries:
        features, tau = network.encoder(torch.cat((image, query[None])))
        results.append(network.segment_features(features[:1], mask[0], features[1:], tau[1:]))
    return torch.cat(results)


@torch.no_grad()
def stored(network: FAFNet, queries: Tensor) -> Tensor:
    """Segments query slices with the network's own prediction."""
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
        check_equal(encoder, torch.softmax(other, 1), again, 1e-4)
    return functions


def plain_rows(encoder: str, size: int, slices: int, repeats: int, clock: str = "wall") -> list[dict[str, object]]:
    """Our implementation against the naive reference, with the same weights: prediction and a training episode."""
    network, (image, mask, queries) = build(encoder, size), inputs(size, slices)
    network.set_support(image, mask)

    def predict_plainly() -> Tensor:
        with torch.no_grad():
            return plain_forward(network, image, mask[0], queries)

    def train() -> tuple[Tensor, ...]:
        episode = network.forward_episode(image[None], mask[None], queries[None, :1], mask[None])
        return _backward(episode.query_loss, episode.alignment_loss, episode.prototype_loss)

    def train_plainly() -> tuple[Tensor, ...]:
        features, tau = plain_encoder(network.encoder, torch.cat((image, queries[:1])))
        return _backward(*plain_episode(network.decoder, features, tau, mask[0], mask[0])[:3])

    predictions = {"ours": lambda: stored(network, queries), "plain": predict_plainly}
    episodes = {"ours": train, "plain": train_plainly}
    rows: list[dict[str, object]] = []
    for what, calls in ((f"prediction of {slices} slices", predictions), ("training episode", episodes)):
        network.train(calls is episodes)
        for ours, plain in zip(*(_comparable(call()) for call in calls.values()), strict=True):
            check_equal(f"{encoder}, {what}", ours, plain, 1e-3)
        setting = f"{encoder}, {size}^2, 1 class, 1 support slice"
        rows.append(plain_row(what, setting, **calls, repeats=repeats, clock=clock))
    return rows


def _backward(*losses: Tensor) -> tuple[Tensor, ...]:
    torch.stack(losses).sum().backward()
    return losses


def _comparable(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Probabilities instead of logits, which are sensitive to rounding where a probability is close to 1."""
    return (torch.softmax(result, 1),) if isinstance(result, Tensor) else result


def plain_rows_of_all(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of `plain_rows` for every encoder."""
    for encoder in ENCODERS:
        yield from plain_rows(encoder, arguments.size, arguments.slices, arguments.repeats, arguments.clock)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Stored prototypes against encoding the support for every slice."""
    for encoder in ENCODERS:
        functions = _prepare(encoder, arguments.size, arguments.slices)
        turn = sum(seconds for (seconds,) in interleaved_seconds(functions, 1, clock=arguments.clock).values())
        repeats = max(arguments.repeats, round(arguments.seconds / turn))
        times = interleaved_seconds(functions, repeats, clock=arguments.clock)
        for method in _METHODS:
            yield {
                "encoder": encoder,
                "support": method,
                "setting": f"{arguments.size}^2, {arguments.slices} slices, 1 class, 1 support slice",
                **FLOAT32,
                **time_columns([seconds / arguments.slices for seconds in times[method]], "ms_per_slice", "ms", 2),
                "times_faster": f"{median_ratio(times[_METHODS[0]], times[method]):.2f}",
            }


if __name__ == "__main__":
    parser = timing_parser(__doc__, repeats=5)
    parser.add_argument("--seconds", type=float, default=30, help="minimum time for every encoder")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="compare with the naive reference implementation")
    plain = parser.parse_args().plain
    run("faf_net_plain_cpu" if plain else "faf_net_cpu", plain_rows_of_all if plain else rows, parser)
