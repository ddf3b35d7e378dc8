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

    The signal goes to a whole group of processes. It is blocked here, and so in all that this process starts, such as
    the workers that export a validation's predictions: those would die of it. Threads from before hear it instead, a
    moment later than the one who sent it might think.
    """

    def __init__(self) -> None:
        listens = threading.current_thread() is threading.main_thread()  # no other thread may say who hears a signal
        self._number = getattr(signal, "SIGUSR1", None) if listens else None
        if self._number is not None:
            signal.signal(self._number, self._receive)
            signal.siginterrupt(self._number, False)  # libraries that write a file need not expect it
            self._take_blocked()  # meant for an earlier training of this process
        self._received = False

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _take_blocked(self) -> None:
        """Hears what came meanwhile, and blocks the signal (again).

        Waiting for a signal that is said to be there (sigpending, sigwait) could wait for ever: another thread may
        have taken it.
        """
        if self._number is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._number})
            signal.pthread_sigmask(signal.SIG_BLOCK, {self._number})

    def pending(self, device: torch.device) -> bool:
        """Whether a checkpoint was asked for; all ranks of a DDP training agree, whichever heard it."""
        self._take_blocked()
        if not (dist.is_available() and dist.is_initialized()):
            return self._received
        heard = torch.tensor(float(self._received), device=device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return bool(heard.item())
