"""SASAN and its loss against naive reference implementations: time and peak memory on the CPU.

python -m benchmarks.sasan [--threads 2] [--repeats 5] [--clock wall]
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import (
    BACKWARD,
    Row,
    check_equal,
    peak_gigabytes,
    plain_row,
    run,
    timed_call,
    timing_parser,
)
from benchmarks.plain.sasan import leaf_masks, plain_forward
from nnunet_ext.losses import SelfUpdatingLoss
from nnunet_ext.losses.region_terms import region_terms_reference
from nnunet_ext.networks import NETWORKS, SASAN

_SETTING = "96^3, batch 1, 5 classes, features 32..512"
_LOSS_SHAPE = (2, 5, 96, 96, 96)


def prepare(form: str, backward: bool) -> Callable[[], object]:
    """A call of the paper's network or, for "plain", of its naive reference."""
    torch.manual_seed(0)
    paper = NETWORKS["sasan"].paper
    network, image = SASAN(**paper), torch.randn(1, paper["input_channels"], *paper["patch_size"])
    if form == "ours":
        return timed_call(lambda: network(image), backward)
    masks = leaf_masks(network)
    return timed_call(lambda: plain_forward(network, image, masks), backward)


def _memory_columns(memory: dict[str, tuple[float, float]] | None) -> dict[str, str]:
    """Columns with the GB that the call adds, and the GB of the whole process (including Python, torch and weights)."""
    columns = {}
    for index, name in enumerate(("added", "process")):
        plain, ours = (memory[form][index] for form in ("plain", "ours")) if memory else (None, None)
        columns[f"plain_{name}_GB"] = "" if plain is None else f"{plain:.2f}"
        columns[f"ours_{name}_GB"] = "" if ours is None else f"{ours:.2f}"
        columns[f"{name}_ratio"] = "" if ours is None or plain is None else f"{ours / plain:.2f}"
    return columns


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    timing = {"repeats": arguments.repeats, "clock": arguments.clock}
    for what, backward in BACKWARD.items():
        forms = {form: partial(prepare, form, backward) for form in ("ours", "plain")}
        memory = {form: peak_gigabytes(prepared) for form, prepared in forms.items()}
        calls = {form: prepared() for form, prepared in forms.items()}
        if not backward:
            check_equal("SASAN", *(call() for call in calls.values()), 1e-4)
        yield plain_row(what, _SETTING, **calls, **timing) | _memory_columns(memory)

    logits = torch.randn(_LOSS_SHAPE, requires_grad=True)
    target = torch.randint(0, _LOSS_SHAPE[1], (_LOSS_SHAPE[0], 1, *_LOSS_SHAPE[2:]))
    loss = SelfUpdatingLoss()
    weights = loss.weights

    def plain_loss() -> Tensor:
        return (torch.stack(tuple(region_terms_reference(logits, target))) * weights).sum()

    def step(loss_of: Callable[[], Tensor]) -> None:
        logits.grad = None
        loss_of().backward()

    calls = {"ours": partial(step, lambda: loss(logits, target)), "plain": partial(step, plain_loss)}
    timing["repeats"] *= 4
    what = "SM loss, forward + backward"
    yield plain_row(what, str(_LOSS_SHAPE), **calls, **timing, warm_up=3) | _memory_columns(None)


if __name__ == "__main__":
    run("sasan_cpu", rows, timing_parser(__doc__, repeats=5))
