"""A signal asks a training to end after its running epoch, with a checkpoint from which it resumes."""

import mmap
import os
import signal
import struct
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

_JOB_VARIABLE = "SLURM_JOB_ID"
_TOGETHER_SECONDS = 5.0
_NOTICE_SECONDS = 1.0


class CheckpointRequest:
    """Listens to SIGUSR1, which job schedulers send before a time limit; deaf on Windows.

    Only the end of an epoch can be continued exactly: within one, nnU-Net's checkpoint has no place for how far the
    epoch was and what its log is averaged over.

    The signal goes to a whole group of processes. It is blocked here, and so in all that this process starts, such as
    the workers that export a validation's predictions: those would die of it. Threads from before hear it instead, a
    moment later than the one who sent it might think.

    In a job of Slurm, SIGTERM asks for a checkpoint too: it announces a preemption.
    """

    def __init__(self) -> None:
        listens = threading.current_thread() is threading.main_thread()  # no other thread may say who hears a signal
        self._number = getattr(signal, "SIGUSR1", None) if listens else None
        self._received = False
        self._preemption: _Preemption | None = None
        if self._number is not None:
            signal.signal(self._number, self._receive)
            signal.siginterrupt(self._number, False)  # libraries that write a file need not expect it
            self._take_blocked()  # meant for an earlier training of this process
            self._received = False
            if _JOB_VARIABLE in os.environ and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
                self._preemption = _Preemption()

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
        received = self._received or (self._preemption is not None and self._preemption.announced)
        if not (dist.is_available() and dist.is_initialized()):
            return received
        heard = torch.tensor(float(received), device=device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return bool(heard.item())


class _Preemption:
    """Hears SIGTERM in a training, and keeps its workers alive through it.

    Slurm sends it to every process of the job at once, while a training ends its workers with the same signal. A
    worker that was forked from the training therefore passes over one SIGTERM that the training had, too, at about
    the same time, and dies of any other.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._time = mmap.mmap(-1, struct.calcsize("d"))  # when the training had it; its workers read it
        self._passed = False
        signal.signal(signal.SIGTERM, self._hear)
        signal.siginterrupt(signal.SIGTERM, False)

    @property
    def announced(self) -> bool:
        return self._heard() > 0

    def _hear(self, *_: Any) -> None:
        if os.getpid() == self._owner:
            self._time[:] = struct.pack("d", time.monotonic())
            return
        until = time.monotonic() + _NOTICE_SECONDS
        while not self._is_recent() and time.monotonic() < until:
            time.sleep(0.05)
        if self._is_recent() and not self._passed:
            self._passed = True
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _heard(self) -> float:
        return float(struct.unpack("d", self._time[:])[0])

    def _is_recent(self) -> bool:
        return self.announced and time.monotonic() - self._heard() < _TOGETHER_SECONDS
