"""Locks with real processes: many that start at once, killed ones, restarted jobs, holders on other machines."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from nnunet_ext.utils import locks
from nnunet_ext.utils.locks import Lock, LockHeld, acquire, is_held, job_number, read_holder, release

# Starts at a given moment; prints whether it got the lock, and keeps it until both have answered.
RACES = """
import sys, time
from pathlib import Path
from nnunet_ext.utils.locks import Lock, LockHeld
lock = None
for line in sys.stdin:
    if lock is not None:
        lock.release()
    lock = None
    name, moment = line.split()
    while time.time() < float(moment):
        pass
    try:
        lock = Lock(Path(name), "train_0")
    except LockHeld as error:
        print(error, flush=True)
    else:
        print("mine", flush=True)
"""
HOLDS = """
import sys, time, subprocess
from pathlib import Path
from nnunet_ext.utils.locks import Lock
lock = Lock(Path(sys.argv[1]), "train_0")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
lock.add_process(child.pid)
print(child.pid, flush=True)
time.sleep(100)
"""


# Claims a graph of one training that is not done, and does it.
RUNS = """
import sys, time
from pathlib import Path
from nnunet_ext.crossval.claims import claim
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.utils.locks import LockHeld
for line in sys.stdin:
    name, moment = line.split()
    folder = Path(name)
    state = lambda: State.FINISHED if (folder / "done").exists() else State.NOT_STARTED
    graph = Graph([Node("train_0", (), state, list, "train", lock=folder / "train_0.lock")])
    while time.time() < float(moment):
        pass
    try:
        claims = claim(graph)
    except LockHeld:
        print("held", flush=True)
        continue
    if graph.missing(graph.states()):
        with (folder / "runs").open("a") as file:
            file.write("run")
        (folder / "done").touch()
    claims.release()
    print("ran", flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "locks" / "train_0.lock"


def rewrite(path, **changes):
    """Writes another holder into a lock."""
    holder = dataclasses.replace(read_holder(path), **changes)
    path.write_text(json.dumps(holder.__dict__))


def make_old(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def start_both():
    """Starts a script twice; returns the answers of both to a line that they get at the same time."""
    processes = []

    def start(code):
        for _ in range(2):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            processes.append(subprocess.Popen([sys.executable, "-c", code], **pipes))

        def ask(path, seconds):
            for process in processes:
                process.stdin.write(f"{path} {time.time() + seconds}\n")
            return sorted(process.stdout.readline().strip() for process in processes)

        return ask

    yield start
    for process in processes:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_of_two_that_start_at_once_one_gets_it_fifty_times(tmp_path, start_both):
    ask = start_both(RACES)
    for number in range(50):
        path = tmp_path / f"{number}.lock"
        if number % 2:  # a dead holder, whom both find
            path.write_text(json.dumps(DEAD))
        answers = ask(path, 0.1)
        assert answers.count("mine") == 1, (number, answers)
        refused = next(answer for answer in answers if answer != "mine")
        assert re.match(r"train_0 is taken by (process \d+ on|a process that has just begun)", refused)


@pytest.mark.slow
def test_of_two_that_start_at_once_one_trains_fifty_times(tmp_path, start_both):
    """Also if the other run arrives just after the training has ended."""
    ask = start_both(RUNS)
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert "ran" in ask(folder, 0.05)
        assert (folder / "runs").read_text() == "run"


DEAD = {
    "what": "train_0",
    "machine": locks._machine(),
    "processes": [[4194305, "0"]],  # above the largest number of a process
    "job": None,
    "user": "somebody",
    "since": "2000-01-01 00:00:00",
    "token": "",
}


def test_a_killed_holder_is_recognised_once_its_command_has_ended(path):
    """A training continues when the run that started it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    with pytest.raises(LockHeld, match=f"train_0 is taken by process {child} on "):
        Lock(path, "train_0")
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_held(path) and time.monotonic() < deadline:
        time.sleep(0.1)
    Lock(path, "train_0").release()
    assert not path.exists()


def test_a_process_of_the_same_number_is_another_one(path):
    lock = Lock(path, "train_0")
    rewrite(path, processes=((os.getpid(), "1"),))
    assert not is_held(path)
    lock.release()


def test_a_holder_elsewhere_lives_as_long_as_its_heartbeat(path):
    Lock(path, "train_0").release()
    path.write_text(json.dumps(DEAD | {"machine": ["elsewhere"], "job": "12_1"}))
    with pytest.raises(LockHeld, match=r"process 4194305 on elsewhere \(somebody, Slurm job 12_1\), since 2000"):
        Lock(path, "train_0")
    make_old(path, locks.STALE_SECONDS + 10)
    lock = Lock(path, "train_0")
    assert read_holder(path).machine == locks._machine()
    lock.release()


def test_a_job_that_was_restarted_takes_over_from_itself(path, monkeypatch):
    """Its node was killed: the lock was not removed, and the heartbeat is recent."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert job_number() == "12_1"
    path.parent.mkdir()
    path.write_text(json.dumps(DEAD | {"machine": ["elsewhere"], "job": "12_0"}))
    assert is_held(path)
    path.write_text(json.dumps(DEAD | {"machine": ["elsewhere"], "job": "12_1"}))
    Lock(path, "train_0").release()


def test_a_lock_that_is_being_written_is_held(path):
    path.parent.mkdir()
    path.touch()
    with pytest.raises(LockHeld, match="a process that has just begun"):
        Lock(path, "train_0")


def test_the_heartbeat_goes_on_and_notices_a_take_over(path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    lock = Lock(path, "train_0")
    make_old(path, 1000)
    deadline = time.monotonic() + 10
    while time.time() - path.stat().st_mtime > 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.time() - path.stat().st_mtime < 100
    with lock._writing:
        rewrite(path, token="another's")
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock.lost
    lock.release()
    assert path.exists()  # it belongs to another run


def test_all_locks_or_none(tmp_path):
    first, second = tmp_path / "a.lock", tmp_path / "b.lock"
    held = Lock(second, "b")
    with pytest.raises(LockHeld, match="b is taken by"):
        acquire({first: "a", second: "b"})
    assert not first.exists()
    held.release()
    release(acquire({first: "a", second: "b"}).values())
    assert not first.exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_told_whose_it_is(path):
    """A user who may neither signal the holder nor write into the lock's folder."""
    lock = Lock(path, "train_0")
    for folder in path.parents[:6]:
        if folder.stat().st_mode & 0o077 == 0:
            folder.chmod(0o755)
    code = "import sys, pathlib; from nnunet_ext.utils.locks import Lock; Lock(pathlib.Path(sys.argv[1]), 'train_0')"
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c"]
    if subprocess.run([*other, "import nnunet_ext.utils.locks"], capture_output=True, check=False).returncode:
        lock.release()
        pytest.skip("another user cannot run this Python, or cannot read this checkout")
    command = [*other, code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"LockHeld: train_0 is taken by process {os.getpid()} on " in done.stderr
    assert "(root), since" in done.stderr
    assert read_holder(path).token == lock._holder.token
    lock.release()
