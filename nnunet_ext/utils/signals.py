"""Signal handlers that respect the signals that this process ignored from its start."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Handler = Callable[..., Any]


@contextlib.contextmanager
def handling(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handles signals within a block, except those that are ignored already.

    `nohup` starts a command with SIGHUP ignored, and a shell script starts background commands with SIGINT ignored; a
    handler of our own would defeat their purpose. Outside the main thread, where Python installs no handlers, nothing
    is handled.

    Args:
        handlers: Numbers of signals, and functions that are called with the number and the frame.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = {number: handler for number, handler in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    previous = {number: signal.signal(number, handler) for number, handler in heard.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible_children() -> Iterator[None]:
    """Lets commands started within the block hear SIGINT although this process was started with it ignored.

    Commands inherit ignored signals but not handlers, which become the default when they are executed. Without this, a
    command of a background job could only be killed, and would leave its workers behind.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
