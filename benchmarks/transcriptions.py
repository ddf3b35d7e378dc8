"""Each network against a naive reference implementation, on one plan: time and memory.

python -m benchmarks.transcriptions [--networks SASAN EM-Net SALSTM LSTMSA MT-UNet] [--patch 40 56 40]
    [--threads 2] [--repeats 5] [--clock wall]

The naive references:

* SASAN transforms every feature map forward and back, and computes and keeps attention matrices
  (`benchmarks.plain.sasan`);
* EM-Net loops over time for the scan, and runs every direction and call separately (`benchmarks.plain.em_net`);
* SALSTM and LSTMSA run three encodings and four whole convolutions for every slice (`benchmarks.plain.lstm_sa`);
* MT-UNet (2D) loops over positions in the Gaussian axial attention (`benchmarks.plain.mt_unet`).

For FAF-Net, use `python -m benchmarks.faf_net --plain`. Both forms have the same weights and, as this module checks,
the same logits. They run in eval mode without deep supervision, with batch 1; memory includes the gradients of one
form.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import (
    FLOAT32,
    check_equal,
    interleaved_seconds,
    median_ratio,
    run,
    time_columns,
    timing_parser,
)
from benchmarks.plain import em_net as plain_em_net
from benchmarks.plain import mt_unet as plain_mt_unet
from benchmarks.plain.lstm_sa import plain_volume
from benchmarks.plain.sasan import leaf_masks, plain_forward
from nnunet_ext.bench.measure import added_gigabytes
from nnunet_ext.bench.setting import Setting

Run = Callable[[Tensor], Tensor]
_PATCHES = {"MT-UNet": (224, 224)}
"""Patch of networks that do not support volumes: the paper's."""
_TOLERANCE = 1e-3
"""Tolerance relative to the largest logit, in float32."""


def _sasan(network: Any) -> Run:
    masks = leaf_masks(network)
    network.plain_masks = nn.ParameterList(masks)  # among its parameters, as those that they replace were
    return lambda image: plain_forward(network, image, list(network.plain_masks))


PLAIN: dict[str, Callable[[Any], Run]] = {
    "SASAN": _sasan,
    "EM-Net": lambda network: partial(plain_em_net.plain_forward, network),
    "SALSTM": lambda network: partial(plain_volume, network),
    "LSTMSA": lambda network: partial(plain_volume, network),
    "MT-UNet": lambda network: partial(plain_mt_unet.plain_forward, network),
}
"""Functions that turn a network without deep supervision into its naive form, which leaves it unusable otherwise."""


def _call(compute: Run, parameters: Sequence[Tensor], image: Tensor, backward: bool) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.no_grad():
            return compute(image)

    def step() -> None:
        compute(image).square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    return step if backward else forward


def rows_of(name: str, setting: Setting, repeats: int, clock: str = "wall") -> Iterator[dict[str, object]]:
    """Rows of one network: two calls, each in both forms.

    Raises:
        RuntimeError: if the two forms' logits differ.
    """
    image = setting.images(1)
    ours, source = (setting.build(name, deep_supervision=False).eval() for _ in range(2))
    forwards: dict[str, Run] = {"plain": PLAIN[name](source), "ours": ours}
    with torch.no_grad():
        expected, actual = (forward(image) for forward in forwards.values())
    check_equal(name, actual, expected, _TOLERANCE)
    parameters = {"plain": list(source.parameters()), "ours": list(ours.parameters())}
    for what, backward in (("forward", False), ("forward + backward", True)):
        calls = {form: _call(forward, parameters[form], image, backward) for form, forward in forwards.items()}
        times = interleaved_seconds(calls, repeats, clock=clock)
        for form, call in calls.items():
            memory = added_gigabytes(call)
            yield {
                "what": what,
                "network": name,
                "form": form,
                "patch": "x".join(map(str, setting.patch_size)),
                "batch": 1,
                **FLOAT32,
                **time_columns(times[form]),
                "times_faster": f"{median_ratio(times['plain'], times[form]):.2f}",
                "added_GB": "" if memory is None else f"{memory:.2f}",
            }


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name in arguments.networks:
        setting = Setting.of_patch(_PATCHES.get(name, tuple(arguments.patch)), 1)
        yield from rows_of(name, setting, arguments.repeats, arguments.clock)


if __name__ == "__main__":
    parser = timing_parser(__doc__, repeats=5)
    parser.add_argument("--networks", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--patch", nargs=3, type=int, default=[40, 56, 40], help="patch of the 3D networks")
    run("transcriptions_cpu", rows, parser)
