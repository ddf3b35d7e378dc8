"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of spawned processes, because a forked process could use neither CUDA nor another thread's locks.

    Args:
        processes: Largest number of workers.
    """
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Ends this worker when its parent has ended, even by a kill; the initializer of every pool of this package.

    An idle worker of ProcessPoolExecutor waits at a pipe that it holds open itself, and so would wait for ever, with
    all the memory that PyTorch's import takes.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent.sentinel,), daemon=True).start()


def _leave_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
