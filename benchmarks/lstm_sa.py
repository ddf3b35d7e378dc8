"""LSTMSA's training step on the CPU: its parts, the effect of checkpointing, and a stack of slices against a naive one.

python -m benchmarks.lstm_sa [--threads 2] [--repeats 5] [--clock wall]

The step runs in turns with variants of itself, with its convolutions and matrix products alone
(`nnunet_ext.bench.operators`), and with the step of nnU-Net's own network. A stack of 8 slices is compared with the
naive, slice-by-slice reference implementation, as whole patches are by `python -m benchmarks.transcriptions`.
"""

import argparse
from collections.abc import Callable, Collection, Iterator
from functools import partial
from unittest import mock

import torch
from torch import nn

from benchmarks.measure import BACKWARD, FLOAT32, Forms, Row, check_equal, form_columns, run, timed_call, timing_parser
from benchmarks.plain.lstm_sa import plain_volume
from nnunet_ext.bench.operators import record, replay
from nnunet_ext.bench.setting import Setting
from nnunet_ext.networks import LSTMSA
from nnunet_ext.ops import winograd

_PATCH, _BATCH, _WIDTHS = (40, 56, 40), 2, (32, 64, 128, 256)
_STACK = (8, 56, 40)
_FEATURES = "features 32 64 128 256"
_TOLERANCE = 1e-3

Step = Callable[[], object]


def _network(patch: tuple[int, ...], **settings: object) -> LSTMSA:
    torch.manual_seed(0)
    topology = {"n_stages": len(_WIDTHS), "features_per_stage": _WIDTHS, "kernel_sizes": 3, "strides": 2}
    return LSTMSA(1, 3, patch, conv_op=nn.Conv3d, **topology, **settings)


def _step(network: nn.Module) -> Step:
    """Forward and backward pass, with deep supervision."""
    image = torch.randn(_BATCH, 1, *_PATCH)

    def step() -> None:
        sum(y.square().mean() for y in network(image)).backward()
        network.zero_grad(set_to_none=True)

    return step


def prepare(checkpoint_slices: int = 0) -> Step:
    """The step of LSTMSATrainer on hippocampus."""
    return _step(_network(_PATCH, checkpoint_slices=checkpoint_slices, deep_supervision=True))


def prepare_without_winograd() -> Step:
    """The same by PyTorch's convolutions."""
    step = prepare()

    def without() -> None:
        with mock.patch.object(winograd, "is_faster", return_value=False):
            step()

    return without


def prepare_products() -> Step:
    """The convolutions and matrix products of the step."""
    step = prepare()
    step()
    return replay(record(step))


def prepare_stock() -> Step:
    """The step of nnU-Net's own network."""
    torch.manual_seed(0)
    return _step(Setting.of_patch(_PATCH, _BATCH).build("PlainConvUNet", deep_supervision=True))


def prepare_stack(plain: bool, backward: bool) -> Step:
    """A stack of slices, by the network or by its naive form."""
    network = _network(_STACK, deep_supervision=False).eval()
    image = torch.randn(1, 1, *_STACK)
    with torch.no_grad():
        check_equal("LSTMSA", network(image), plain_volume(network, image), _TOLERANCE)
    call = timed_call(partial(plain_volume, network, image) if plain else partial(network, image), backward)

    def step() -> None:
        call()
        network.zero_grad(set_to_none=True)

    return step


_CHECKPOINTED = {
    "not checkpointed": prepare,
    "checkpointed by 8 slices": partial(prepare, 8),
    "checkpointed by 2 slices": partial(prepare, 2),
}
"""Forms whose memory is measured."""
_FORMS = _CHECKPOINTED | {
    "not checkpointed, by PyTorch's convolutions": prepare_without_winograd,
    "convolutions and matrix products alone": prepare_products,
    "nnU-Net's PlainConvUNet": prepare_stock,
}


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    step = f"{'x'.join(map(str, _PATCH))}, batch {_BATCH}, {_FEATURES}"
    stack = f"{'x'.join(map(str, _STACK))}, batch 1, {_FEATURES}"
    groups: dict[tuple[str, str], tuple[Forms, Collection[str]]] = {
        ("forward + backward", step): (_FORMS, tuple(_CHECKPOINTED))
    }
    for what, backward in BACKWARD.items():
        forms = {
            name: partial(prepare_stack, plain, backward)
            for name, plain in {"whole stack": False, "slice by slice": True}.items()
        }
        groups[what, stack] = forms, ()
    for (what, setting), (forms, memory_of) in groups.items():
        base = next(iter(forms))
        measured = form_columns(forms, arguments, ratio="of_first", base=base, faster=False, memory_of=memory_of)
        for form, columns in measured.items():
            yield {"what": f"{what}, {form}", "setting": setting, **FLOAT32, **columns}


if __name__ == "__main__":
    run("lstm_sa_cpu", rows, timing_parser(__doc__, repeats=5))
