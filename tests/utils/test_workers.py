"""Workers end with the process that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_ext.utils.workers import worker_pool

PARENT = """
import os, time
from nnunet_ext.utils.workers import worker_pool

if __name__ == "__main__":
    pool = worker_pool(2)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_an_idle_worker_ends_with_its_killed_parent(tmp_path, name):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(getattr(signal, name))
    ends = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not is_running(worker)


def test_a_pool_works():
    with worker_pool(1) as pool:
        assert pool.submit(pow, 2, 5).result() == 32
