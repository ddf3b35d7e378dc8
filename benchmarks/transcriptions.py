"""Each network against a naive reference implementation, on one plan: time and memory.

python -m benchmarks.transcriptions [--networks SASAN EM-Net SALSTM LSTMSA MT-UNet] [--patch 40 56 40]
    [--threads 2] [--repeats 5] [--clock wall]

The naive references:

* SASAN transforms every feature map forward and back, and computes and keeps attention matrices
  (`benchmarks.plain.sasan`);
* EM-Net loops over time for the scan, and runs every direction and call separately (`benchmarks.plain.em_net`);
* SALSTM and LSTMSA run three encodings and four whole convolutions for every slice (`benchmarks.plain.lstm_sa`);
* MT-UNet (2D) loops over positions in the Gaussian axial attention; everything else is ours.

For FAF-Net, use `python -m benchmarks.faf_net --plain`. Both forms have the same weights and, as this module checks,
the same logits. They run in eval mode without deep supervision, with batch 1; memory includes the gradients of one
form.
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
"""Patch of networks that do not support volumes: the paper's."""
_TOLERANCE = 1e-3
"""Tolerance relative to the largest logit, in float32."""


@contextmanager
def looped_attention() -> Iterator[None]:
    """Context in which MT-UNet's Gaussian axial attention loops over positions."""
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
"""Functions that turn a network without deep supervision into its naive form, which leaves it unusable otherwise."""


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
    """Rows of one network: two calls, each in both forms.

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
    parser.add_argument("--patch", nargs=3, type=int, default=[40, 56, 40], help="patch of the 3D networks")
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
