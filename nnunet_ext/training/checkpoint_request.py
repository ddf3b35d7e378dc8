"""A signal asks a training to end after its running epoch, with a checkpoint to go on from."""

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist


class CheckpointRequest:
    """Listens to SIGUSR1, which job schedulers send before a time limit; deaf on Windows.

    Only the end of an epoch can be continued exactly: within one, nnU-Net's checkpoint has no place for how far the
    epoch was and what its log is averaged over.
    """

    def __init__(self) -> None:
        self._received = False
        number = getattr(signal, "SIGUSR1", None)
        if number is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, self._receive)
            signal.siginterrupt(number, False)  # libraries that write a file need not expect it

    def _receive(self, *_: Any) -> None:
        self._received = True

    def pending(self, device: torch.device) -> bool:
        """Whether a checkpoint was asked for; all ranks of a DDP training agree, whichever heard it."""
        if not (dist.is_available() and dist.is_initialized()):
            return self._received
        heard = torch.tensor(float(self._received), device=device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return bool(heard.item())
