"""The runner with real, small processes: order, slots, failures, Ctrl-C, requests for checkpoints."""

import io
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from nnunet_ext.crossval.claims import claim
from nnunet_ext.crossval.cluster.task import Outcome, run_steps
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.display import LineDisplay, TableDisplay, progress_table
from nnunet_ext.crossval.gpus import Slot
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.crossval.local import listening
from nnunet_ext.crossval.runner import Runner, Status
from nnunet_ext.utils.locks import LockHeld
from nnunet_ext.utils.signals import handling
from nnunet_ext.utils.subprocesses import is_running

# Listens as our trainers do: ends on SIGUSR1, here by writing a file of its own.
LISTENS = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1] + ".checkpoint").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, end)
pathlib.Path(sys.argv[1] + ".ready").write_text("yes")
time.sleep(100)
"""
# Starts a worker in the way of nnU-Net's data loaders and leaves both running.
HAS_WORKER = """
import pathlib, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
pathlib.Path(sys.argv[1] + ".worker").write_text(str(worker.pid))
time.sleep(100)
"""
WRITES = """
import os, pathlib, sys, time
time.sleep(float(sys.argv[2]))
pathlib.Path(sys.argv[1]).write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {time.time()}")
"""
# Ends only once another command runs too, whose name is the argument.
MEETS = """
import os, pathlib, sys, time
product = pathlib.Path(sys.argv[1])
product.with_name(product.name + ".here").touch()
other, until = product.with_name(sys.argv[2] + ".here"), time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < until, f"{sys.argv[2]} does not run"
    time.sleep(0.02)
product.write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {time.time()}")
"""
FAILS = "import sys; print('this went wrong'); sys.exit(3)"
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(sys.argv[1] + ".ready").write_text("yes")
time.sleep(100)
"""
DEAF = "import time; time.sleep(100)"


@pytest.fixture
def node(tmp_path):
    def make(name, code=WRITES, needs=(), on_gpu=True, argument="0"):
        product = tmp_path / name

        def state():
            return State.FINISHED if product.exists() else State.NOT_STARTED

        command = [sys.executable, "-c", code, str(product), argument]
        lock = tmp_path / "locks" / f"{name}.lock"
        return Node(name, tuple(needs), state, lambda: command, name, on_gpu, lock=lock)

    return make


def run_of(graph, slots, folder, display, only=None, **options):
    claims = claim(graph, None if only is None else [graph.nodes[name] for name in only])
    places = {"bookkeeping": folder, "environment": dict(os.environ), "display": display}
    return Runner(graph, slots, **places, claims=claims, only=only, **options)


@pytest.fixture
def make_runner(tmp_path):
    def make(*nodes, gpus=("0", "1"), **options):
        slots = [Slot(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]
        return run_of(Graph(nodes), slots, tmp_path / "crossval", LineDisplay(), **options)

    return make


def statuses(runner):
    return {name: row.status.value for name, row in runner.rows.items()}


def send_when(*files, number=signal.SIGUSR1, seconds=30):
    """Sends this process a signal when files are written."""

    def send():
        deadline = time.monotonic() + seconds
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def test_one_process_a_gpu_and_what_is_needed_first(node, make_runner, tmp_path):
    a, b = node("a", MEETS, argument="b"), node("b", MEETS, argument="a")
    runner = make_runner(a, b, node("c", needs=["a", "b"]), node("d", needs=["c"], on_gpu=False))
    assert runner.run()
    gpu = {name: (tmp_path / name).read_text().split() for name in "abcd"}
    assert {gpu["a"][0], gpu["b"][0]} == {"0", "1"}
    assert gpu["d"][0] == str(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert float(gpu["a"][1]) < float(gpu["c"][1]) < float(gpu["d"][1])
    assert not list((tmp_path / "locks").glob("*.lock"))
    assert "$ " in (tmp_path / "crossval" / "logs" / "a.txt").read_text()


def test_a_failure_stops_only_what_needs_it(node, make_runner, capsys):
    failing = node("a", FAILS)
    runner = make_runner(failing, node("b"), node("c", needs=["a"]), node("d", needs=["c"]), node("e", needs=["b"]))
    assert not runner.run()
    expected = {"a": "failed", "b": "finished", "c": "blocked", "d": "blocked", "e": "finished"}
    assert statuses(runner) == expected
    printed = capsys.readouterr().out
    assert "a ended with exit code 3; the end of " in printed
    assert "this went wrong" in printed


def test_success_without_a_product_is_a_failure(node, make_runner, capsys):
    runner = make_runner(node("a", "pass"))
    assert not runner.run()
    assert "a ended without an error, but did not write its results" in capsys.readouterr().out


def test_a_command_that_is_not_installed_fails_its_part_only(node, make_runner, capsys):
    absent = replace(node("a"), command=lambda: ["nnUNetv9_train"])
    runner = make_runner(absent, node("b"))
    assert not runner.run()
    assert statuses(runner) == {"a": "failed", "b": "finished"}
    assert "a could not be run: the command nnUNetv9_train is not installed" in capsys.readouterr().out


def test_what_is_finished_is_not_run(node, make_runner, tmp_path):
    (tmp_path / "a").write_text("before")
    assert make_runner(node("a"), node("b", needs=["a"])).run()
    assert (tmp_path / "a").read_text() == "before"


def test_ctrl_c_ends_commands_and_their_workers(node, make_runner, tmp_path):
    runner = make_runner(node("a", HAS_WORKER), node("b", HAS_WORKER), node("c"))
    send_when(*(tmp_path / f"{name}.worker" for name in "ab"), number=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), listening(runner):
        runner.run()
    assert statuses(runner) == {"a": "stopped", "b": "stopped", "c": "waiting"}
    deadline = time.monotonic() + 5
    workers = [int((tmp_path / f"{name}.worker").read_text()) for name in "ab"]
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def test_ctrl_c_returns_in_seconds_although_a_command_ignores_it(node, make_runner, tmp_path):
    runner = make_runner(node("a", STUBBORN), node("b", STUBBORN))
    sent: list[float] = []

    def interrupt(*_):
        sent.append(time.monotonic())
        runner.interrupt()

    send_when(*(tmp_path / f"{name}.ready" for name in "ab"), number=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), handling({signal.SIGINT: interrupt}):
        runner.run()
    assert time.monotonic() - sent[0] < 3
    assert statuses(runner) == {"a": "stopped", "b": "stopped"}


@pytest.mark.slow
def test_a_request_ends_what_listens_and_after_the_grace_what_does_not(node, make_runner, tmp_path):
    runner = make_runner(
        node("a", LISTENS), node("b", DEAF), node("c"), grace=15
    )  # seconds that a busy machine may take to run a's handler
    with listening(runner):
        send_when(tmp_path / "a.ready")
        assert not runner.run()
    assert (tmp_path / "a.checkpoint").exists()
    assert statuses(runner) == {"a": "stopped", "b": "stopped", "c": "waiting"}


def test_commands_hear_a_request_although_this_process_blocks_it(node, make_runner, tmp_path):
    """As a training does that ran in this process before."""
    heard_by_other_threads = threading.Event()
    threading.Thread(target=heard_by_other_threads.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        runner = make_runner(node("a", LISTENS), grace=15)
        with listening(runner):
            send_when(tmp_path / "a.ready")
            assert not runner.run()
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        heard_by_other_threads.set()
    assert (tmp_path / "a.checkpoint").exists()


def test_a_second_run_of_a_step_is_refused_and_told_by_whom(node, make_runner):
    first = make_runner(node("a"), node("b"))
    with pytest.raises(LockHeld, match=rf"a is taken by process {os.getpid()} on .*, since .*: end it, or wait for it"):
        make_runner(node("a"))
    assert first.run()
    assert make_runner(node("a")).run()


def test_a_step_needs_what_is_before_it(node, make_runner):
    with pytest.raises(ValueError, match="b needs a, which is not finished"):
        make_runner(node("a"), node("b", needs=["a"]), only=["b"])
    with pytest.raises(ValueError, match="--only z: no such step; known: prepare, a"):
        run_steps(Graph([node("a")]), None, "z", 60)


def test_a_step_in_the_foreground(node, tmp_path, capfd):
    assert run_steps(Graph([node("a")]), tmp_path / "crossval", "a", 60) is Outcome.FINISHED
    assert run_steps(Graph([node("b", FAILS)]), tmp_path / "crossval", "b", 60) is Outcome.FAILED
    assert "this went wrong" in capfd.readouterr().out


def test_a_step_that_was_asked_to_end_can_be_resumed(node, tmp_path):
    send_when(tmp_path / "a.ready")
    assert run_steps(Graph([node("a", LISTENS)]), tmp_path / "crossval", "a", 60) is Outcome.RESUMABLE


def test_table_shows_what_fails_and_runs_first(node, make_runner):
    runner = make_runner(*(node(name) for name in "abcd"))
    for name, status in zip("abcd", (Status.FINISHED, Status.WAITING, Status.RUNNING, Status.FAILED), strict=True):
        runner.rows[name].status = status
    console = Console(width=100, file=io.StringIO())
    console.print(progress_table(list(runner.rows.values()), height=3))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "1 of 4 steps finished"
    assert [line.split()[1] for line in lines if "│" in line] == ["d", "c", "b"]


def test_table_on_a_terminal_is_kept_up_to_date(node, tmp_path):
    console = Console(width=300, height=30, file=io.StringIO(), force_terminal=True, highlight=False)
    with TableDisplay(console) as display:
        graph = Graph([node("a"), node("b", FAILS)])
        run_of(graph, [Slot("GPU 7", {})], tmp_path / "crossval", display).run()
    shown = console.file.getvalue()
    assert "GPU 7" in shown
    assert "b ended with exit code 3; the end of " in shown
    assert "this went wrong" in shown
    assert shown.rindex("1 of 2 steps finished") > shown.rindex("0 of 2 steps finished")
