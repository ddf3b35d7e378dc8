import os
from functools import cache
from pathlib import Path

import pytest

from benchmarks.page import feature_matrix
from nnunet_ext.nnunet.trainers import trainers_folder
from tests.features.forked import Forks
from tests.features.lab import Lab
from tests.features.workspaces import FRUGAL

VARIABLE = "NNUNET_EXT_FEATURE_MATRIX"
FORKED = "NNUNET_EXT_FORKED"


@pytest.fixture(scope="session")
def forks():
    """The forking process, or None: nnU-Net's commands are started normally."""
    if FORKED not in os.environ:
        yield None
        return
    forks = Forks(os.environ | FRUGAL | {"nnUNet_extTrainer": str(trainers_folder())})
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def lab_for(tmp_path_factory, forks):
    """A function that returns the lab with patches of a multiple."""
    return cache(lambda multiple: Lab(tmp_path_factory.mktemp("features"), forks, multiple))


@pytest.fixture(autouse=True)
def _trainers_of_ours(monkeypatch):
    """Environment for nnU-Net in this process."""
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Appends a cell's outcome and seconds to the file that the environment variable names."""
    report = yield
    marker, file = item.get_closest_marker("cell"), os.environ.get(VARIABLE)
    if marker is not None and file is not None:
        seconds = item.stash.setdefault(_SECONDS, 0.0) + call.duration
        item.stash[_SECONDS] = seconds
        if report.when == "call" or (report.when == "setup" and not report.passed):
            started = "forks" if FORKED in os.environ else "commands"
            feature_matrix.append(Path(file), feature_matrix.cell(*marker.args, report.outcome, seconds, started))
    return report


_SECONDS = pytest.StashKey[float]()
