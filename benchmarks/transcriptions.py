"""Each network against a plain transcription of its formulas, on one plan: time and memory.

python -m benchmarks.transcriptions [--networks SASAN EM-Net SALSTM LSTMSA MT-UNet] [--patch 40 56 40]
    [--threads 2] [--repeats 5] [--clock wall]

* SASAN: every feature map transformed and back, attention matrices formed and kept (`benchmarks.plain.sasan`);
* EM-Net: a loop over time for the scan, every direction and call by itself (`benchmarks.plain.em_net`);
* SALSTM, LSTMSA: three encodings and four whole convolutions for every slice (`benchmarks.plain.lstm_sa`);
* MT-UNet (2D): the Gaussian axial attention as a loop over positions, everything else ours.

FAF-Net: `python -m benchmarks.faf_net --plain`. Both forms have the same weights and, as is checked, the same logits.
They run in eval mode and without deep supervision, batch 1; memory has the gradients, of that form alone, in it.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.gaussian_attention import loop as attention_loop
from benchmarks.measure import (
    add_timing_options,
    begin,
    check_equal,
    interleaved_seconds,
    median_ratio,
    time_columns,
    write_rows,
)
from benchmarks.plain import em_net as plain_em_net
from benchmarks.plain.lstm_sa import plain_volume
from benchmarks.plain.sasan import leaf_masks, plain_forward
from nnunet_ext.bench.measure import added_gigabytes
from nnunet_ext.bench.setting import Setting
from nnunet_ext.networks.mt_unet import gaussian_attention

Run = Callable[[Tensor], Tensor]
_PATCHES = {"MT-UNet": (224, 224)}
"""Of networks that take no volume: the paper's."""
_TOLERANCE = 1e-3
"""Of the largest logit, in float32."""


@contextmanager
def looped_attention() -> Iterator[None]:
    """Within: MT-UNet's Gaussian axial attention goes position by position."""
    with patch.object(gaussian_attention, "gaussian_attention", attention_loop):
        yield


def _sasan(network: Any) -> Run:
    masks = leaf_masks(network)
    network.plain_masks = nn.ParameterList(masks)  # among its parameters, as those that they replace were
    return lambda image: plain_forward(network, image, list(network.plain_masks))


def _within(context: Callable[[], Any], network: nn.Module) -> Run:
    def run(image: Tensor) -> Tensor:
        with context():
            return network(image)

    return run


PLAIN: dict[str, Callable[[Any], Run]] = {
    "SASAN": _sasan,
    "EM-Net": lambda network: partial(plain_em_net.plain_forward, network),
    "SALSTM": lambda network: partial(plain_volume, network),
    "LSTMSA": lambda network: partial(plain_volume, network),
    "MT-UNet": partial(_within, looped_attention),
}
"""What makes of a network, without deep supervision, its plain form; the network is of no other use then."""


def _call(run: Run, parameters: Sequence[Tensor], image: Tensor, backward: bool) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.no_grad():
            return run(image)

    def step() -> None:
        run(image).square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    return step if backward else forward


def rows_of(name: str, setting: Setting, repeats: int, clock: str = "wall") -> Iterator[dict[str, object]]:
    """Rows of one network: two calls, two forms each.

    Raises:
        RuntimeError: if the two forms' logits differ.
    """
    image = setting.images(1)
    ours, source = (setting.build(name, deep_supervision=False).eval() for _ in range(2))
    runs: dict[str, Run] = {"plain": PLAIN[name](source), "ours": ours}
    with torch.no_grad():
        expected, actual = (run(image) for run in runs.values())
    check_equal(name, actual, expected, _TOLERANCE)
    parameters = {"plain": list(source.parameters()), "ours": list(ours.parameters())}
    for what, backward in (("forward", False), ("forward + backward", True)):
        calls = {form: _call(run, parameters[form], image, backward) for form, run in runs.items()}
        times = interleaved_seconds(calls, repeats, clock=clock)
        for form, call in calls.items():
            memory = added_gigabytes(call)
            yield {
                "what": what,
                "network": name,
                "form": form,
                "patch": "x".join(map(str, setting.patch_size)),
                "batch": 1,
                "precision": "float32",
                "seed": 0,
                **time_columns(times[form]),
                "times_faster": f"{median_ratio(times['plain'], times[form]):.2f}",
                "added_GB": "" if memory is None else f"{memory:.2f}",
            }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--patch", nargs=3, type=int, default=[40, 56, 40], help="of the 3D networks")
    add_timing_options(parser, repeats=5)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    rows = []
    for name in arguments.networks:
        setting = Setting.of_patch(_PATCHES.get(name, tuple(arguments.patch)), 1)
        rows += rows_of(name, setting, arguments.repeats, arguments.clock)
    write_rows("transcriptions_cpu", rows, where)


if __name__ == "__main__":
    main()
