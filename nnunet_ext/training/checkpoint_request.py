"""Lets a signal end a training after the current epoch, with a checkpoint from which it resumes."""

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
    """Listens to SIGUSR1, which job schedulers send before a time limit; does nothing on Windows.

    A training can be resumed exactly only from the end of an epoch: nnU-Net's checkpoint stores neither the position
    within an epoch nor the values that its log averages.

    The signal goes to a whole group of processes. It is blocked in this process, and so in all that it starts, such as
    the workers that export a validation's predictions, which the signal would kill. Threads that started earlier
    receive it instead, so it may arrive a moment late.

    In a Slurm job, SIGTERM asks for a checkpoint too: it announces a preemption.
    """

    def __init__(self) -> None:
        listens = threading.current_thread() is threading.main_thread()  # other threads cannot install handlers
        self._number = getattr(signal, "SIGUSR1", None) if listens else None
        self._received = False
        self._preemption: _Preemption | None = None
        if self._number is not None:
            signal.signal(self._number, self._receive)
            signal.siginterrupt(self._number, False)  # libraries that write files may not expect interruptions
            self._take_blocked()  # meant for an earlier training of this process
            self._received = False
            if _JOB_VARIABLE in os.environ and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
                self._preemption = _Preemption()

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _take_blocked(self) -> None:
        """Delivers signals that arrived while blocked, and blocks them (again).

        Waiting for a pending signal (sigpending, then sigwait) could take for ever: another thread may
        have taken it.
        """
        if self._number is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._number})
            signal.pthread_sigmask(signal.SIG_BLOCK, {self._number})

    def pending(self, device: torch.device) -> bool:
        """Whether a checkpoint was requested; all ranks of a DDP training agree, whichever got the signal."""
        self._take_blocked()
        received = self._received or (self._preemption is not None and self._preemption.announced)
        if not (dist.is_available() and dist.is_initialized()):
            return received
        heard = torch.tensor(float(received), device=device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return bool(heard.item())


class _Preemption:
    """Receives SIGTERM in a training and keeps its workers alive.

    Slurm sends SIGTERM to every process of the job at once, and a training ends its workers with the same signal. A
    worker forked from the training therefore ignores one SIGTERM that the training received at about the same time;
    any other ends it.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._time = mmap.mmap(-1, struct.calcsize("d"))  # when the training received it; its workers read it
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
