"""SASAN and its loss against naive reference implementations: time and peak memory on the CPU.

python -m benchmarks.sasan [--threads 2] [--repeats 5] [--clock wall]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import add_timing_options, begin, check_equal, peak_gigabytes, plain_row, write_rows
from benchmarks.plain.sasan import leaf_masks, plain_forward, plain_masks
from nnunet_ext.losses import SelfUpdatingLoss
from nnunet_ext.losses.region_terms import region_terms_reference
from nnunet_ext.networks import NETWORKS, SASAN

_SETTING = "96^3, batch 1, 5 classes, features 32..512"
_LOSS_SHAPE = (2, 5, 96, 96, 96)


def _network_and_image() -> tuple[SASAN, Tensor]:
    torch.manual_seed(0)
    paper = NETWORKS["sasan"].paper
    return SASAN(**paper), torch.randn(1, paper["input_channels"], *paper["patch_size"])


def _backward(out: Tensor) -> None:
    out.square().mean().backward()


def prepare_ours() -> Callable[[], object]:
    network, image = _network_and_image()
    return lambda: _backward(network(image))


def prepare_plain() -> Callable[[], object]:
    network, image = _network_and_image()
    masks = leaf_masks(network)
    return lambda: _backward(plain_forward(network, image, masks))


def prepare_ours_forward() -> Callable[[], object]:
    network, image = _network_and_image()
    return torch.no_grad()(lambda: network(image))


def prepare_plain_forward() -> Callable[[], object]:
    network, image = _network_and_image()
    masks = leaf_masks(network)
    return torch.no_grad()(lambda: plain_forward(network, image, masks))


def _check_equal(network: SASAN, image: Tensor) -> None:
    with torch.no_grad():
        ours, plain = network(image), plain_forward(network, image, plain_masks(network))
    check_equal("SASAN", ours, plain, 1e-4)


def _memory_columns(memory: dict[str, tuple[float, float]] | None) -> dict[str, str]:
    """Columns with the GB that the call adds, and the GB of the whole process (including Python, torch and weights)."""
    columns = {}
    for index, name in enumerate(("added", "process")):
        plain, ours = (memory[form][index] for form in ("plain", "ours")) if memory else (None, None)
        columns[f"plain_{name}_GB"] = "" if plain is None else f"{plain:.2f}"
        columns[f"ours_{name}_GB"] = "" if ours is None else f"{ours:.2f}"
        columns[f"{name}_ratio"] = "" if ours is None or plain is None else f"{ours / plain:.2f}"
    return columns


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_timing_options(parser, repeats=5)
    arguments = parser.parse_args(argv)
    where = begin(arguments)
    timing = {"repeats": arguments.repeats, "clock": arguments.clock}

    memory = {
        what: {"ours": peak_gigabytes(ours), "plain": peak_gigabytes(plain)}
        for what, ours, plain in (
            ("forward", prepare_ours_forward, prepare_plain_forward),
            ("forward + backward", prepare_ours, prepare_plain),
        )
    }
    network, image = _network_and_image()
    _check_equal(network, image)
    rows = []
    for what, ours, plain in (
        ("forward", prepare_ours_forward(), prepare_plain_forward()),
        ("forward + backward", prepare_ours(), prepare_plain()),
    ):
        rows.append(plain_row(what, _SETTING, ours, plain, **timing) | _memory_columns(memory[what]))

    logits = torch.randn(_LOSS_SHAPE, requires_grad=True)
    target = torch.randint(0, _LOSS_SHAPE[1], (_LOSS_SHAPE[0], 1, *_LOSS_SHAPE[2:]))
    loss = SelfUpdatingLoss()
    weights = loss.weights

    def ours_loss() -> None:
        logits.grad = None
        loss(logits, target).backward()

    def plain_loss() -> None:
        logits.grad = None
        terms = region_terms_reference(logits, target)
        (torch.stack(tuple(terms)) * weights).sum().backward()

    timing["repeats"] *= 4
    loss_row = plain_row("SM loss, forward + backward", str(_LOSS_SHAPE), ours_loss, plain_loss, **timing, warm_up=3)
    rows.append(loss_row | _memory_columns(None))
    write_rows("sasan_cpu", rows, where)


if __name__ == "__main__":
    main()
