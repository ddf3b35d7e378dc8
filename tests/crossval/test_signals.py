"""Signals that a shell ignored at the start stay ignored, and commands can still be interrupted."""

import signal
import subprocess
import sys
import time

import pytest

# Handles both signals, starts a command, and says what it and the command do about them.
PARENT = """
import os, signal, subprocess, sys
from nnunet_ext.utils.signals import handling
from nnunet_ext.utils.subprocesses import start_command
with handling({signal.SIGHUP: print, signal.SIGINT: print, signal.SIGTERM: print}):
    own = [signal.getsignal(number) is print for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    code = "import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT)])"
    process = start_command([sys.executable, "-c", code], os.environ, None, own_group=True)
    process.wait()
    print(own, flush=True)
"""


@pytest.mark.parametrize(
    ("shell", "child", "handled"),
    [
        ('"{python}" -c "$CODE"', "[False, False]", "[True, True, True]"),
        ('nohup "{python}" -c "$CODE"', "[True, False]", "[False, True, True]"),
        ('"{python}" -c "$CODE" & wait', "[False, False]", "[True, False, True]"),  # a script's job in the background
    ],
)
def test_what_was_ignored_stays_ignored(shell, child, handled):
    line = shell.format(python=sys.executable)
    done = subprocess.run(["bash", "-c", line], env={"CODE": PARENT}, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [child, handled]


# A training as a job: a worker forked from it, as nnU-Net's that augment data, and one signal to both.
PREEMPTED = """
import multiprocessing, os, signal, sys, time
import torch
from nnunet_ext.training.checkpoint_request import CheckpointRequest

os.setsid()
os.environ["SLURM_JOB_ID"] = "1"
request = CheckpointRequest()
context = multiprocessing.get_context("fork")
ready = context.Event()
worker = context.Process(target=lambda: (ready.set(), time.sleep(100)), daemon=True)
worker.start()
ready.wait()  # Python drops a signal that comes while it sets a forked process up
cpu = torch.device("cpu")
before = request.pending(cpu)
os.killpg(0, signal.SIGTERM)  # as Slurm signals every process of a job
time.sleep(1.5)
print(before, request.pending(cpu), worker.is_alive(), flush=True)
worker.terminate()  # as nnU-Net ends it
worker.join(10)
print(worker.exitcode, flush=True)
"""
ALONE = """
import multiprocessing, os, time
from nnunet_ext.training.checkpoint_request import CheckpointRequest

os.environ["SLURM_JOB_ID"] = "1"
request = CheckpointRequest()
context = multiprocessing.get_context("fork")
ready = context.Event()
worker = context.Process(target=lambda: (ready.set(), time.sleep(100)), daemon=True)
worker.start()
ready.wait()
worker.terminate()
worker.join(10)
print(worker.exitcode, flush=True)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.slow
def test_a_preemption_asks_a_training_and_leaves_its_workers_alive():
    assert run(PREEMPTED).split("\n")[:2] == ["False True True", str(-signal.SIGTERM)]


@pytest.mark.slow
def test_a_worker_that_its_training_ends_dies():
    assert run(ALONE).strip() == str(-signal.SIGTERM)


def test_outside_of_a_job_sigterm_ends_a_training():
    code = """
import time
from nnunet_ext.training.checkpoint_request import CheckpointRequest
CheckpointRequest()
print("listens", flush=True)
time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    process.terminate()
    began = time.monotonic()
    assert process.wait(60) == -signal.SIGTERM
    assert time.monotonic() - began < 30
    process.stdout.close()
