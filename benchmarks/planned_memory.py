"""The traced memory of training steps against measured memory.

python -m benchmarks.planned_memory [--device cpu]     against saved-tensor hooks in real CPU steps
python -m benchmarks.planned_memory --device cuda      against torch.cuda.max_memory_allocated in real training steps

On the CPU the trace follows the CPU's operators in float32, for the comparison. Plans use the trace for CUDA under
autocast, which the second form measures. Writes planned_memory_cpu.csv or planned_memory_cuda.csv.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.measure import environment, write_rows
from nnunet_ext.bench.setting import Setting
from nnunet_ext.profiling.memory import trace_network

_BATCH = 2
_SIZES = {"cpu": (32, 32, 32), "cuda": (128, 128, 128)}
NETWORKS = {"nnU-Net": "PlainConvUNet", "SASAN": "SASAN", "EM-Net": "EM-Net", "SALSTM": "SALSTM", "LSTMSA": "LSTMSA"}
"""Names in the results, and those of `nnunet_ext bench`."""


def build(name: str, patch: tuple[int, ...]) -> nn.Module:
    """A network with nnU-Net's stages and widths, one modality, three classes and deep supervision."""
    strides, kernels = ((1,) * 3, *((2,) * 3,) * 4), ((3,) * 3,) * 5
    setting = Setting(patch, strides, kernels, _BATCH, input_channels=1, num_classes=3, widths=(32, 64, 128, 256, 320))
    return setting.build(NETWORKS[name])


def loss_of(network: nn.Module, image: Tensor) -> Tensor:
    """The mean of the outputs, as in `trace_network`."""
    outputs = network(image)
    return torch.stack([y.float().mean() for y in outputs]).sum()


@contextmanager
def counted_by_hooks(network: nn.Module) -> Iterator[dict[int, int]]:
    """Context that collects the bytes of every storage saved for the backward pass, except parameters."""
    at_rest = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in at_rest:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def measure_cpu(network: nn.Module, patch: tuple[int, ...]) -> dict[str, int]:
    """Bytes that saved-tensor hooks count in a real step."""
    with counted_by_hooks(network) as saved:
        loss = loss_of(network, torch.randn(_BATCH, 1, *patch))
    loss.backward()
    return {"saved": sum(saved.values())}


def measure_cuda(network: nn.Module, patch: tuple[int, ...]) -> dict[str, int]:
    """Peak memory of the second of two training steps, when the momentum has been allocated."""
    network = network.cuda()
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler("cuda")
    image = torch.randn(_BATCH, 1, *patch, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(network, image)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        del loss
    peak = torch.cuda.max_memory_allocated()
    del network, optimiser, image
    torch.cuda.empty_cache()
    return {"total": peak}


def traced_row(name: str, device: str, patch: tuple[int, ...]) -> dict[str, object]:
    """Columns with traced against measured memory."""
    network = build(name, patch)
    traced = trace_network(network, 1, patch, _BATCH, device=device, autocast=device == "cuda")
    measured = (measure_cuda if device == "cuda" else measure_cpu)(network, patch)
    ((what, value),) = measured.items()
    return {
        "network": name,
        "what": what,
        "patch": "x".join(map(str, patch)),
        "batch": _BATCH,
        "precision": "float16 autocast" if device == "cuda" else "float32",
        "seed": 0,
        "traced_MB": f"{getattr(traced, what) / 1e6:.1f}",
        "measured_MB": f"{value / 1e6:.1f}",
        "traced_to_measured": f"{getattr(traced, what) / value:.3f}",
        **traced_at_planning_size(name),
    }


def traced_at_planning_size(name: str) -> dict[str, str]:
    """Columns with the step that planning traces on any machine: a step on CUDA under autocast."""
    patch = _SIZES["cuda"]
    network = build(name, patch)
    started = time.perf_counter()
    traced = trace_network(network, 1, patch, _BATCH)
    seconds = time.perf_counter() - started
    parts = {f"{part}_GB": f"{value / 1e9:.2f}" for part, value in vars(traced).items()}
    return {
        "planned_patch": "x".join(map(str, patch)),
        "planned_GB": f"{traced.total / 1e9:.2f}",
        **parts,
        "trace_s": f"{seconds:.1f}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args(argv).device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("needs a CUDA device; none here")
    where = environment() | ({"device": torch.cuda.get_device_name()} if device == "cuda" else {})
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    rows = [traced_row(name, device, _SIZES[device]) for name in NETWORKS]
    write_rows(f"planned_memory_{device}", rows, where)


if __name__ == "__main__":
    main()
