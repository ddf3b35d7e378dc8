"""`nnunet_ext doctor --check`: what it finds, and its exit code."""

import pytest
import torch

from nnunet_ext import device_check
from nnunet_ext.cli import doctor
from nnunet_ext.cli.main import main
from nnunet_ext.networks import NETWORKS
from nnunet_ext.nnunet.trainers import trainers_folder
from nnunet_ext.ops.native import native_library

SOME = ["salstm"]


@pytest.fixture
def few(monkeypatch):
    """One network, whose step takes a second."""
    monkeypatch.setattr(device_check, "NETWORKS", {name: NETWORKS[name] for name in SOME})


def test_everything_is_right_on_this_processor(few, capsys):
    assert doctor._print_check(doctor._check("cpu"), "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Everything computes what it should on cpu."
    rows = [line for line in lines if line.startswith("ok ")]
    kernels = 0 if native_library() is None else 7
    assert len(rows) == kernels + 2 + 2 * len(SOME)
    assert any("traced, float32, cpu" in row for row in rows)


def wrong(y):
    return y * 1.01


def lacking(y):
    raise NotImplementedError("no kernel image is available")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(wrong, "it differs from the reference"), (lacking, "NotImplementedError: no kernel image is available")],
)
def test_an_operator_that_is_wrong_or_fails_ends_with_1(monkeypatch, capsys, tmp_path, fault, reason):
    right = device_check.causal_conv1d
    monkeypatch.setattr(device_check, "NETWORKS", {})
    monkeypatch.setattr(device_check, "causal_conv1d", lambda *x, **options: fault(right(*x, **options)))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    assert main(["doctor", "--check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "Everything needed is installed." in out
    assert out.endswith("1 wrong.\n")
    (line,) = [line for line in out.splitlines() if line.startswith("WRONG")]
    assert line.split()[1] == "causal_conv1d"
    assert f"-> {reason}" in out


def test_a_step_that_is_wrong_is_found(few, monkeypatch):
    """A weight that changes on its way to the device; NaN is wrong as well."""
    for value in (1.5, float("nan")):

        def moved(module, *_, value=value):
            with torch.no_grad():
                next(module.parameters()).mul_(value)
            return module

        monkeypatch.setattr(NETWORKS[SOME[0]].network, "to", moved)
        rows = [row for row in device_check.run("cpu") if row.name == SOME[0]]
        assert [row.how.split(",")[0] for row in rows] == ["eager", "traced"]
        assert all(row.reason == "it differs from the reference" for row in rows)


@pytest.mark.slow
def test_every_network_is_right_on_this_processor():
    rows = list(device_check.run("cpu"))
    assert {row.name for row in rows} >= set(NETWORKS)
    assert [row for row in rows if row.reason] == []
