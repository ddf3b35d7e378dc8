"""Freed memory is kept: tensors of a later step cause no page faults."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, statistics, sys
import torch
from nnunet_ext.utils.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())
else:
    print(False)

def step():
    tensors = [torch.ones(3_000_000) for _ in range(4)]
    del tensors

for _ in range(3):
    step()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_low(faults))  # the heap may still grow in one of the steps
"""
GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def run(kind, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("LD_PRELOAD", None)
    command = [sys.executable, "-c", SCRIPT, kind]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_later_steps_cause_no_page_faults():
    assert run("keep") == (True, pytest.approx(0, abs=300))
    # Left to itself, glibc raises its threshold for mmap and may keep them too; a threshold that is set stays.
    assert run("default", MALLOC_MMAP_THRESHOLD_="131072")[1] > 3000


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_a_user_who_chose_otherwise_is_left_alone():
    assert not run("keep", MALLOC_ARENA_MAX="2")[0]
