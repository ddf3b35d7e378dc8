"""`nnunet_ext doctor --check`: compares every operator and a training step of every network with references."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

import nnunet_ext.supervoxels  # noqa: F401 - declares its kernel
from nnunet_ext.networks import NETWORKS
from nnunet_ext.ops import causal_conv1d, causal_conv1d_reference, selective_scan, selective_scan_reference
from nnunet_ext.ops.native import checks, native_library, refusal
from nnunet_ext.ops.self_check import TOLERANCE, check, example
from nnunet_ext.utils.messages import first_line
from nnunet_ext.utils.torch_private import tree_leaves

_SIZE = {"patch_size": (16, 16, 16), "n_stages": 3, "features_per_stage": (8, 16, 16), "kernel_sizes": 3, "strides": 2}
_FURTHER = {"faf_net": {"encoder": "plan"}}
"""Settings that make a network small enough for a check."""
_BACKENDS = {"compiled": "inductor", "traced": "aot_eager"}
"""Backends of torch.compile. nnU-Net does not compile on the CPU, where that takes minutes for each network; the trace
that a compiler would get is checked there."""
_STEP_TOLERANCE = {torch.float32: 5e-3, torch.float16: 0.1}
"""Largest error of a step's outputs and gradients by precision; recent GPUs round float32 convolutions to 10 bits."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Operator or network.
        how: Backend or mode, precision and device.
        error: Largest difference from the reference, relative to its largest value; None if it could not run.
        limit: Largest error that passes.
        seconds: Time that it took, compilation included.
        reason: Reason why it failed; empty if it passed.
    """

    name: str
    how: str
    error: float | None
    limit: float
    seconds: float
    reason: str = ""


def run(device: str) -> Iterator[Row]:
    """Checks every operator and network on a device; rows come as they are found.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    yield from _kernels()
    yield from _operators(device)
    precision = torch.float16 if device == "cuda" else torch.float32  # nnU-Net trains so
    for name in NETWORKS:
        try:
            network, x = _network(name)
            expected = _step(copy.deepcopy(network).double(), x.double(), None)
        except Exception as failure:
            yield Row(
                name,
                "reference on the CPU",
                error=None,
                limit=0.0,
                seconds=0.0,
                reason=f"{type(failure).__name__}: {failure}",
            )
            continue
        for how in ("eager", "traced" if device == "cpu" else "compiled"):
            ours = copy.deepcopy(network).to(device)
            called: Callable[..., Any] = ours if how == "eager" else torch.compile(ours, backend=_BACKENDS[how])
            limit = _STEP_TOLERANCE[precision]
            step = partial(_step, ours, x.to(device), precision, called)
            setup = f"{how}, {str(precision).removeprefix('torch.')}, {device}"
            yield _row(name, setup, limit, lambda step=step, expected=expected: zip(step(), expected, strict=True))


def _row(name: str, how: str, limit: float, compare: Callable) -> Row:
    start = time.perf_counter()
    error: float | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers
            error = max(_difference(found, expected) for found, expected in compare())
        reason = "" if error <= limit else "it differs from the reference"
    except Exception as failure:  # of any kind: the table shows it
        reason = first_line(failure)
    return Row(name, how, error=error, limit=limit, seconds=time.perf_counter() - start, reason=reason)


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _kernels() -> Iterator[Row]:
    """The C kernels as they were built for this processor."""
    library = native_library()
    if library is None:
        reason = refusal()
        if reason is not None:
            yield Row("C extension", "cpu", error=None, limit=0.0, seconds=0.0, reason=reason)
        return
    for kernel, compare in checks().items():
        start = time.perf_counter()
        verdict = check(partial(compare, library))
        seconds = time.perf_counter() - start
        yield Row(
            kernel,
            f"C kernel, {library.instruction_set}",
            error=verdict.error,
            limit=TOLERANCE,
            seconds=seconds,
            reason=verdict.reason,
        )


def _operators(device: str) -> Iterator[Row]:
    """The operators as a network calls them on a device, with gradients."""
    b, d, n, length = 2, 24, 16, 100
    sequences = [example(b, length, d, seed=s).transpose(1, 2) for s in range(3)]
    scan = [
        *sequences[:2],
        -1 - example(d, n, seed=3).abs(),
        *(example(b, n, length, seed=s) for s in (4, 5)),
        example(d, seed=6),
        sequences[2],
        example(d, seed=7),
    ]
    convolution = [sequences[0], example(d, 4, seed=8), example(d, seed=9)]
    for name, ours, reference, inputs, options in (
        ("selective_scan", selective_scan, selective_scan_reference, scan, {"delta_softplus": True}),
        ("causal_conv1d", causal_conv1d, causal_conv1d_reference, convolution, {"activation": "silu"}),
    ):
        expected = _differentiated(partial(reference, **options), [x.double() for x in inputs])
        found = partial(_differentiated, partial(ours, **options), [x.to(device) for x in inputs])
        # TF32 does not touch them: they have no matrix products.
        yield _row(name, device, 1e-3, lambda found=found, expected=expected: zip(found(), expected, strict=True))


def _differentiated(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


def _network(name: str) -> tuple[nn.Module, Tensor]:
    further = _FURTHER.get(name, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name].network(
            input_channels=1, num_classes=3, conv_op=nn.Conv3d, deep_supervision=True, **_SIZE, **further
        )
        size = _SIZE["patch_size"]
        x = torch.randn(2, 1, *size)  # type: ignore[misc]
        if hasattr(network, "set_support"):
            masks = torch.zeros(2, 2, *size[1:])  # type: ignore[index]
            masks[:, 0, :8], masks[:, 1, 8:] = 1, 1
            cast(Any, network).set_support(x[:, :, 0], masks)
    for module in network.modules():
        if "Dropout" in type(module).__name__:
            module.eval()  # dropout draws differently on each device
            cast(Any, module).p = 0.0
    return network, x


def _step(
    network: nn.Module, x: Tensor, precision: torch.dtype | None, called: Callable[..., Any] | None = None
) -> list[Tensor]:
    """Outputs, and all gradients of the weights as one vector."""
    low = precision == torch.float16
    with torch.autocast(x.device.type, dtype=torch.float16, enabled=low):
        outputs = tree_leaves(network(x) if called is None else called(x))
        loss = torch.stack([o.float().square().mean() if low else o.square().mean() for o in outputs]).sum()
    scale = 1024.0 if low else 1.0  # as a GradScaler's
    (loss * scale).backward()
    gradients = [p.grad.flatten() / scale for p in network.parameters() if p.grad is not None]
    return [*(o.detach() for o in outputs), torch.cat(gradients)]
