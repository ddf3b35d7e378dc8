"""Two ranks of a DDP training: real processes, on the CPU, where gloo stands in for nnU-Net's NCCL."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_RANKS, _SECONDS = 2, 600


def start_rank(rank: int, store: str) -> None:
    """Makes this process a rank of two that meet at a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=_RANKS)


def rank_report(
    network: nn.Module, loss: Callable[[nn.Module], Tensor], predict: Callable[[nn.Module], object]
) -> dict[str, list[str]]:
    """Trains a network for two steps on this rank; returns the names of parameters that are not as they should be.

    Args:
        network: The network, with weights and data of this rank's own.
        loss: Function from the network in DDP to the loss of a batch.
        predict: A forward pass of the network in DDP, in evaluation.
    """
    wrapped = DistributedDataParallel(network)
    optimiser = torch.optim.SGD(wrapped.parameters(), 0.1)
    for _ in range(2):  # an unused parameter is an error of the second step
        optimiser.zero_grad()
        loss(wrapped).backward()
        optimiser.step()
    saved, other = _states(wrapped)
    wrapped.eval()
    with torch.no_grad():
        predict(wrapped)
    return {
        "idle": [k for k, p in wrapped.module.named_parameters() if p.requires_grad and (p.grad == 0).all()],
        "after the step": _differing(saved, other),
        "after the next forward": [key for state in _states(wrapped) for key in _differing(saved, state)],
    }


def _states(network: DistributedDataParallel) -> list[Mapping[str, Tensor]]:
    both: list[Any] = [None] * _RANKS
    dist.all_gather_object(both, network.module.state_dict())
    return both


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [key for key in a if not torch.equal(a[key], b[key])]


def run_ranks(trainer: str, plans_file: Path | None) -> list[dict[str, list[str]]]:
    """Reports of two ranks that train a trainer's network on its first setting.

    Raises:
        RuntimeError: with the last line that a rank printed, if it ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, plans = str(Path(folder, "store")), str(plans_file or "")
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", __name__, str(rank), store, trainer, plans],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(_RANKS)
        ]
        try:
            printed = []
            for process in processes:
                output, error = process.communicate(timeout=_SECONDS)
                if process.returncode != 0:
                    raise RuntimeError((error.strip().splitlines() or ["no message"])[-1])
                printed.append(json.loads(output.splitlines()[-1]))
            return printed
        finally:
            for process in processes:  # a rank waits for ever for one that failed
                process.kill()


def main() -> None:
    """A rank: its number, the file to meet at, the trainer's name and a plans file, or an empty text."""
    from nnunet_ext.check.cases import first_subject
    from nnunet_ext.check.subject import outputs_of

    rank, store, trainer, plans = sys.argv[1:]
    start_rank(int(rank), store)
    subject = first_subject(trainer, Path(plans) if plans else None, "cpu")
    torch.manual_seed(int(rank))  # other weights and other data on every rank
    network = subject.build(subject.lower_outputs)

    def loss(wrapped: nn.Module) -> Tensor:
        outputs = outputs_of(wrapped, subject.images(seed=int(rank)))
        return torch.stack([(y * torch.randn_like(y)).mean() for y in outputs]).sum()

    report = rank_report(network, loss, lambda wrapped: wrapped(subject.images()))
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
