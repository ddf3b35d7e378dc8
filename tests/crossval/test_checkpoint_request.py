"""SIGUSR1 asks a training for a checkpoint; test_local.py and test_slurm.py do so with whole trainings."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from nnunet_ext.training.checkpoint_request import CheckpointRequest

CPU = torch.device("cpu")
RANK = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from nnunet_ext.training.checkpoint_request import CheckpointRequest

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
request = CheckpointRequest()
before = request.pending(torch.device("cpu"))
if rank == 1:
    os.kill(os.getpid(), signal.SIGUSR1)
checks = 1  # of as many on both ranks: each waits for the other
while not request.pending(torch.device("cpu")):
    checks += 1
    time.sleep(0.01)
print(before, checks)
dist.destroy_process_group()
"""
MANY = """
import os, signal, threading
import torch
from nnunet_ext.training.checkpoint_request import CheckpointRequest

threading.Thread(target=threading.Event().wait, daemon=True).start()
for _ in range(5000):
    request = CheckpointRequest()
    os.kill(os.getpid(), signal.SIGUSR1)
    while not request.pending(torch.device("cpu")):
        pass
"""


@pytest.fixture(autouse=True)
def _signal():
    previous = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, previous)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_it_is_pending_once_the_signal_came():
    request = CheckpointRequest()
    assert not request.pending(CPU)
    os.kill(os.getpid(), signal.SIGUSR1)
    _wait_until_pending(request)
    assert not CheckpointRequest().pending(CPU)


def test_what_the_training_starts_does_not_die_of_it():
    """The signal goes to a whole group of processes, some of which do not handle it."""
    request = CheckpointRequest()
    code = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('alive')"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"alive\n"
    assert not request.pending(CPU)


def test_outside_of_the_main_thread_it_is_never_pending():
    pending = []
    thread = threading.Thread(target=lambda: pending.append(CheckpointRequest().pending(CPU)))
    thread.start()
    thread.join()
    assert pending == [False]


@pytest.mark.slow
def test_each_of_many_is_heard_whichever_thread_takes_it():
    """The thread of before and the main thread race for each signal; waiting for one already taken has no end."""
    subprocess.run([sys.executable, "-c", MANY], check=True, timeout=120)


@pytest.mark.slow
def test_ranks_agree_when_one_heard_it(run_ranks):
    first, second = (printed.split() for printed in run_ranks(RANK))
    assert first[0] == second[0] == "False"
    assert first[1] == second[1]


def _wait_until_pending(request):
    """A thread that is older than the request may have the signal, and has to run before it is heard."""
    until = time.monotonic() + 60
    while not request.pending(CPU):
        assert time.monotonic() < until
        time.sleep(0.01)
