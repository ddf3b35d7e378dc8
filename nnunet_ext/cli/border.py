"""Errors and warnings as the command line shows them."""

import linecache
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("nnunet_ext", "nnunet_ext.plans", "nnunet_ext.trainers")
"""Our packages; in a checkout the latter two lie beside the first."""
_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.M)


def is_users_mistake(error: BaseException) -> bool:
    """Whether an error tells users of their mistake: its message is enough, and a traceback would hide it.

    These are errors of the operating system, such as a missing file, and those ValueErrors that a `raise` of this
    package raises. Any other, for instance a ValueError from within torch, is a fault of the program.
    """
    if isinstance(error, OSError):
        return True
    return isinstance(error, ValueError) and _raised_here(error)


def _raised_here(error: ValueError) -> bool:
    """Whether the innermost frame is a `raise` of this package; for a process pool's error, that of the worker."""
    if type(error.__cause__).__name__.lstrip("_") == "RemoteTraceback":
        frames = _FRAME.findall(str(error.__cause__))
        return bool(frames) and _is_ours(*frames[-1])
    innermost = list(traceback.walk_tb(error.__traceback__))[-1:]
    return any(_is_ours(frame.f_code.co_filename, line) for frame, line in innermost)


def _is_ours(file: str, line: str | int) -> bool:
    specs = [spec for name in _PACKAGES if (spec := find_spec(name)) is not None]
    folders = [folder for spec in specs for folder in spec.submodule_search_locations or ()]
    ours = any(Path(file).is_relative_to(folder) for folder in folders)
    return ours and linecache.getline(file, int(line)).lstrip().startswith("raise ")


@contextmanager
def warnings_of_ours() -> Iterator[None]:
    """Context without the warnings of other packages, which users cannot heed, unless Python's -W is set."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module=r"(?!nnunet_ext(\.|$))")
        yield


def nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; what is still written is then discarded. Not on Windows."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # replaced by a stream in memory
        return False
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    gone = any(events & select.POLLERR for _, events in poll.poll(0))
    if gone:
        # Python would write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone
