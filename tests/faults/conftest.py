import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nnunet_ext.utils.subprocesses import console_script

CONFIGURATION = "3d_fullres_tiny"
BUDGET = {"NNUNET_EXT_EPOCHS": "3", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}


class Training:
    """`nnUNetv2_train` as a process of its own, in a results folder of its own, to be killed."""

    def __init__(self, nnunet, folder: Path, **budget: str) -> None:
        self.results = folder / "results"
        (self.results / nnunet.dataset).mkdir(parents=True)
        self.fold = self.results / nnunet.dataset / f"SASANTrainer__nnUNetPlans__{CONFIGURATION}" / "fold_0"
        self.output = folder / "output.txt"
        self._environment = nnunet.environment | {"nnUNet_results": str(self.results)} | BUDGET | budget
        self._command = [console_script("nnUNetv2_train"), "4", CONFIGURATION, "0", "-tr", "SASANTrainer"]

    @property
    def log(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.fold.glob("training_log_*.txt")))

    def kill_when(self, moment, *options: str, seconds: float = 300, starts: int = 5) -> None:
        """Starts it and kills it while `moment()` is true, without a chance to tidy up.

        A moment may pass before the signal arrives, so the process is stopped first and the moment checked again.
        A training that ends because every such moment was missed is started anew, up to `starts` times in all.
        """
        for left in reversed(range(starts)):
            with self.output.open("w") as output:
                process = self._start(output, *options)
                try:
                    deadline = time.monotonic() + seconds
                    while not self._caught(process, moment) and process.poll() is None:
                        assert time.monotonic() < deadline, f"never came to it:\n{self.output.read_text()[-3000:]}"
                        time.sleep(0.0005)
                    if process.returncode is None:
                        process.kill()
                        assert process.wait() == -signal.SIGKILL
                        return
                    assert process.returncode == 0, self.output.read_text()[-3000:]
                    assert left, f"ended before it was killed:\n{self.output.read_text()[-3000:]}"
                finally:
                    with contextlib.suppress(ProcessLookupError):  # its workers
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            shutil.rmtree(self.fold)

    @staticmethod
    def _caught(process: subprocess.Popen, moment) -> bool:
        """Stops the process if the moment has come; whether it still holds then. If not, the process continues."""
        if not moment():
            return False
        process.send_signal(signal.SIGSTOP)
        if process.returncode is not None:  # it had ended
            return False
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state.si_code != os.CLD_STOPPED:
            return False
        if moment():
            return True
        process.send_signal(signal.SIGCONT)
        return False

    def go_on(self, *options: str) -> str:
        """Runs it to its end with --c and returns what it printed."""
        with self.output.open("w") as output:
            code = self._start(output, "--c", *options).wait(600)
        assert code == 0, self.output.read_text()[-4000:]
        return self.output.read_text()

    def _start(self, output, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self._command, "-device", "cpu", *options],
            env=self._environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def training(nnunet, tmp_path):
    return Training(nnunet, tmp_path)


@pytest.fixture(scope="session")
def model(nnunet):
    """A model of SASAN, trained for a moment; its folder is not to be changed."""
    options = ("-tr", "SASANTrainer", "-device", "cpu")
    nnunet.run("nnUNetv2_train", "4", CONFIGURATION, "0", *options, **BUDGET | {"NNUNET_EXT_EPOCHS": "1"})
    return nnunet.model("SASANTrainer", CONFIGURATION).parent
