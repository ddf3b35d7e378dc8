"""A real Slurm of two nodes on the loopback, started by slurm/start.sh."""

import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from nnunet_ext.utils.subprocesses import console_script
from tests.crossval.conftest import Space

pytest.importorskip("submitit", reason="needs nnunet_ext[slurm]")
# Left out of continuous integration until it has passed on a quiet machine.
pytestmark = [pytest.mark.slow, pytest.mark.long]

SCRIPTS = Path(__file__).parent / "slurm"
OTHER = "games"
"""An account that every Linux system has, besides root's."""


@pytest.fixture(scope="module")
def readable_folder():
    """Makes folders that every user may read, unlike pytest's."""
    with contextlib.ExitStack() as stack:

        def make(name):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}_")))
            folder.chmod(0o755)
            return folder

        yield make


@pytest.fixture(scope="module")
def slurm(readable_folder):
    folder = readable_folder("slurm")
    started = subprocess.run(
        ["bash", str(SCRIPTS / "start.sh"), str(folder)], stderr=subprocess.PIPE, text=True, check=False
    )
    try:
        if started.returncode == 77:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        assert started.returncode == 0, started.stderr
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "SLURM_FOLDER": str(folder)}
    finally:
        subprocess.run(["bash", str(SCRIPTS / "stop.sh"), str(folder)], check=False)


@pytest.fixture
def ask(slurm):
    """Asks one of Slurm's commands."""

    def run(*command):
        return subprocess.run(
            command, env=os.environ | slurm, capture_output=True, text=True, check=True
        ).stdout.strip()

    yield run
    for user in ("root", OTHER):
        run("scancel", f"--user={user}")


@pytest.fixture
def wait(ask, space):
    def until(condition, seconds=600):
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.5)
        logs = "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in space.bookkeeping.glob("slurm/*.out"))
        assert condition(), f"{ask('squeue')}\n{logs}"

    return until


@pytest.fixture
def submit(space, slurm):
    """Submits; numbers of the jobs by name."""

    def run(*options, **experiment):
        submitted = space.crossval("--slurm", *options, environment=slurm, **experiment)
        assert submitted.returncode == 0, submitted.stdout
        lines = [line.split() for line in submitted.stdout.splitlines()]
        return {words[1]: words[0] for words in lines if len(words) == 2 and words[0].isdigit()}

    return run


@pytest.fixture
def endless(space):
    """Options of jobs whose trainings have 100000 epochs, or as many as `space.epochs` says."""
    space.epochs = space.root / "epochs.txt"
    space.epochs.write_text("100000")
    preamble = space.root / "preamble.sh"
    preamble.write_text(f"export NNUNET_EXT_EPOCHS=$(cat '{space.epochs}')\n")
    return ["--preamble", str(preamble)]


SASAN = "train_SASANTrainer__nnUNetPlans"


@pytest.fixture
def shared_space(nnunet, readable_folder):
    """A space that every user may write to, as a group's folders are."""
    space = Space(nnunet, readable_folder("space"))
    for path in (space.root, *space.root.rglob("*")):
        path.chmod(path.stat().st_mode | 0o777)
    return space


@pytest.fixture
def submit_as(shared_space, slurm):
    """Submits as a user without waiting for it to end."""
    space = shared_space
    home = space.root / "home"
    home.mkdir()
    home.chmod(0o777)

    def start(user, *command):
        account = pwd.getpwnam(user)
        return subprocess.Popen(
            command,
            env=space.environment | slurm | {"HOME": str(home), "USER": user, "LOGNAME": user},
            cwd=space.root,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            umask=0,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    try:
        code, _ = ended(start(OTHER, sys.executable, "-c", "import nnunet_ext"))
    except PermissionError:
        code = None
    if code != 0:
        pytest.skip(f"{OTHER} may not read this environment")

    def submit_as(user, *options):
        options = space.options("--slurm", *options, trainers=["SASANTrainer"], folds=["0"])
        return start(user, console_script("nnunet_ext"), *options)

    return submit_as


def fold_folder(space, fold=0):
    return space.results / "SASANTrainer__nnUNetPlans__2d_small" / f"fold_{fold}"


def epochs_run(fold):
    """Numbers of the epochs in all logs, in the order in which they were trained."""
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    return [int(number) for number in re.findall(r": Epoch (\d+) *$", "".join(log.read_text() for log in logs), re.M)]


def checkpoint_epoch(fold, name="latest"):
    return torch.load(fold / f"checkpoint_{name}.pth", weights_only=False)["current_epoch"]


def test_array_and_dependencies_run_to_the_report(space, slurm, submit, ask, wait):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    submit()
    waiting = ask("squeue", "--noheader", "--array", "--format=%j %i %E")
    assert waiting.count(SASAN) == 2
    assert "afterok" in next(line for line in waiting.splitlines() if "pool_SASANTrainer" in line)
    again = space.crossval("--slurm", environment=slurm)
    assert again.returncode == 2
    assert "are still in the queue" in again.stdout
    wait(lambda: not ask("squeue", "--noheader"))
    for trainer in ("StockTrainer", "SASANTrainer"):
        model = space.results / f"{trainer}__nnUNetPlans__2d_small"
        assert (model / "crossval_results_folds_0_1" / "summary.json").is_file()
    assert (space.report / "report.html").is_file()
    assert "All steps are finished." in space.crossval("--slurm", environment=slurm).stdout
    assert "0 running" in space.crossval("--status").stdout


def test_a_time_limit_in_one_task_leaves_the_other_alone(space, slurm, submit, ask, wait, endless):
    """The first fold has four minutes, too few for its epochs, the second an hour; a failed dependency is cancelled."""
    jobs = submit("--time", "4", "--warn-before", "60", *endless, trainers=["SASANTrainer"])
    job = jobs[SASAN]
    wait(lambda: "RUNNING" in ask("scontrol", "show", "job", f"{job}_1"))
    ask("scontrol", "update", f"JobId={job}_1", "TimeLimit=60")
    wait(lambda: (space.results / "crossval" / "locks").is_dir() and epochs_run(fold_folder(space)))
    here = space.crossval(trainers=["SASANTrainer"])
    assert here.returncode == 2
    assert re.search(rf"{SASAN}_[01] is taken by process \d+ on .*, Slurm job {job}_[01]\)", here.stdout)
    wait(lambda: "Restarts=1" in ask("scontrol", "show", "job", f"{job}_0"))
    done = checkpoint_epoch(fold_folder(space))
    assert done >= 1
    space.epochs.write_text(str(done + 2))
    wait(lambda: (fold_folder(space) / "validation" / "summary.json").is_file())
    assert epochs_run(fold_folder(space)) == list(range(done + 2))  # each once
    assert checkpoint_epoch(fold_folder(space), "final") == done + 2
    other = ask("scontrol", "show", "job", f"{job}_1")
    assert "JobState=RUNNING" in other
    assert "Restarts=0" in other
    assert len(list(fold_folder(space, 1).glob("training_log_*.txt"))) == 1
    assert "pool_SASAN" in ask("squeue", "--noheader", "--states=PENDING", "--format=%j")
    ask("scancel", f"{job}_1")
    wait(lambda: not ask("squeue", "--noheader"))
    assert "JobState=CANCELLED" in ask("scontrol", "show", "job", jobs["pool_SASANTrainer__nnUNetPlans"])
    assert "Restarts=0" in ask("scontrol", "show", "job", f"{job}_1")  # whoever cancels a job does not want it requeued


def test_jobs_of_another_user_are_seen(shared_space, submit_as, ask, wait):
    first, _ = ended(submit_as("root", "--job-option=--hold"))
    assert first == 0
    code, said = ended(submit_as(OTHER))
    assert code == 2
    assert re.search(r"still in the queue: \d+\S* of root", said)
    other = shared_space.root / "of another study"
    shared_space.environment["nnUNet_results"] = str(other)
    other.mkdir()
    other.chmod(0o777)
    code, said = ended(submit_as(OTHER))
    assert code == 0, said


def test_two_users_who_submit_at_the_same_instant_train_a_fold_once(shared_space, submit_as, wait, ask):
    started = [submit_as(user, "--wait") for user in ("root", OTHER)]
    codes = sorted(ended(process)[0] for process in started)
    assert codes in ([0, 0], [0, 2])  # both, if neither saw the other's jobs in the queue
    wait(lambda: not ask("squeue", "--noheader"))
    assert epochs_run(fold_folder(shared_space)) == [0]
    assert (fold_folder(shared_space) / "validation" / "summary.json").is_file()


def ended(process):
    """Exit code and output of a submission."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def test_a_preempted_job_writes_a_checkpoint_and_resumes(space, slurm, submit, ask, wait, endless):
    jobs = submit("--partition", "low", *endless, trainers=["SASANTrainer"], folds=["0"])
    wait(lambda: len(epochs_run(fold_folder(space))) > 1)
    ask("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 5")
    wait(lambda: "Restarts=1" in ask("scontrol", "show", "job", jobs[SASAN]))
    done = checkpoint_epoch(fold_folder(space))
    log = sorted(fold_folder(space).glob("training_log_*.txt"))[0].read_text()
    assert f"Ended on request after epoch {done - 1}; nnUNetv2_train --c resumes." in log
    space.epochs.write_text(str(done + 1))
    wait(lambda: not ask("squeue", "--noheader"))
    assert epochs_run(fold_folder(space)) == list(range(done + 1))


def test_a_job_whose_node_is_killed_goes_on_elsewhere(space, slurm, submit, ask, wait, endless):
    jobs = submit(*endless, trainers=["SASANTrainer"], folds=["0"])
    job = jobs[SASAN]
    wait(lambda: len(epochs_run(fold_folder(space))) > 1)
    node = ask("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    space.epochs.write_text("1")
    slurmd = int((Path(slurm["SLURM_FOLDER"]) / f"slurmd.{node}.pid").read_text())
    for number in [slurmd, *processes_of_job(job)]:
        os.kill(number, signal.SIGKILL)
    try:
        wait(lambda: not ask("squeue", "--noheader"))
        assert "Restarts=1" in ask("scontrol", "show", "job", job)
        assert (fold_folder(space) / "validation" / "summary.json").is_file()
    finally:
        path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        subprocess.run(["slurmd", "-N", node], env=os.environ | slurm | path, check=True)
        wait(lambda: ask("sinfo", "--noheader", "--partition=main", "--format=%D%t") == "2idle", 60)


def processes_of_job(job):
    """All processes of a job, and the daemon's that watch them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                title = (folder / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            if f"SLURM_JOB_ID={job}".encode() in environment or title.startswith(f"slurmstepd: [{job}.".encode()):
                found.append(int(folder.name))
    return found


def test_a_job_that_gets_nowhere_fails_and_says_so(space, submit, ask, wait):
    """A job with a limit of two minutes, too short for one epoch, is not requeued for ever."""
    preamble = space.root / "preamble.sh"
    preamble.write_text("export NNUNET_EXT_EPOCHS=2 NNUNET_EXT_ITERATIONS=1000000\n")
    options = ["--time", "2", "--warn-before", "75", "--preamble", str(preamble)]
    job = submit(*options, trainers=["SASANTrainer"], folds=["0"])[SASAN]
    wait(lambda: not ask("squeue", "--noheader"))
    state = ask("scontrol", "show", "job", job)
    (log,) = (space.bookkeeping / "slurm").glob(f"{job}_*_log.out")
    assert "JobState=FAILED" in state, f"{state}\n{log.read_text()}"
    assert "Restarts=0" in state
    assert "wrote no new checkpoint between two requeues" in log.read_text()


def test_a_refused_job_withdraws_those_before_it(space, slurm, ask):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)  # so that there is something to prepare first
    refused = space.crossval("--slurm", "--gpu-job-option=--partition=nowhere", environment=slurm)
    assert refused.returncode != 0
    assert re.search("^[0-9]+ prepare$", refused.stdout, re.M)
    assert "invalid partition" in refused.stdout.lower()
    assert ask("squeue", "--noheader", "--states=PENDING,RUNNING") == ""  # one that had begun needs a moment to end
