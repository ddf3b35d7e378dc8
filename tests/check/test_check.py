"""`nnunet_ext check`: a good trainer passes, and every fault is named with its remedy."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunet_ext.check import training
from nnunet_ext.check.run import run
from nnunet_ext.check.subject import Failure, Skipped, Subject
from nnunet_ext.check.surroundings import check_compile, check_copies, check_memory, check_pickle, check_trace
from nnunet_ext.check.values import (
    check_gradients,
    check_outputs,
    check_precision,
    check_prediction_weights,
    check_samples,
    check_switch,
)
from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.trainers import find_trainer, known_trainers
from nnunet_ext.training import MONAITrainer
from tests.helpers.own_trainers import write_own_trainers

SIZE = (8, 8)
ONE_OF_EACH_NETWORK = {
    "SASANTrainer",
    "EMNetTrainer",
    "LSTMSATrainer",
    "FAFNetTrainer",
    "UMambaEncTrainer",
    "StockTrainer",
    "MedNeXtTrainer",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", write_own_trainers(tmp_path / "mine"))


def convolution():
    return nn.Conv2d(1, 3, 1)


class Net(nn.Module):
    """A network with one fault, which a function of it and its input adds to the forward pass."""

    def __init__(self, fault=None, deep_supervision=False):
        super().__init__()
        self.head, self.fault, self.deep_supervision = convolution(), fault, deep_supervision
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.head(x) if self.fault is None else self.fault(self, x)
        return [y, y[..., ::2, ::2]] if self.deep_supervision else y


def subject(fault=None, **options):
    return Subject("faulty", lambda supervised: Net(fault, supervised), SIZE, lower_outputs=False, **options)


def cut(network, x):
    return network.head(x)[..., 1:]


def divided(network, x):
    return network.head(x) / 0


def detached(network, x):
    return network.head(x).detach() + 0 * x


def rooted(network, x):
    return network.head(x) + (0 * network.head(x)).sqrt()


def centred(network, x):
    return network.head(x) - network.head(x).mean(0)


def squared(network, x):
    return network.head(x).pow(4).exp()


def counted(network, x):
    return network.head(x) + network.calls


def branching(network, x):
    return network.head(x) if x.sum() > -7 else 2 * network.head(x)


def test_a_network_without_faults_passes():
    good = subject()
    for check in (check_outputs, check_gradients, check_samples, check_prediction_weights, check_copies, check_trace):
        check(good)
    check_memory(good)
    check_precision(good, torch.bfloat16)
    with pytest.raises(Skipped, match="no outputs at lower resolutions"):
        check_switch(good)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        (cut, check_outputs, r"the logits have the shape \(3, 3, 8, 7\) instead of \(3, 3, 8, 8\); return logits"),
        (divided, check_outputs, "the logits are not finite"),
        (rooted, check_gradients, "gradients of head.weight, head.bias are not finite"),
        (centred, check_samples, "logits of a sample depend on the other samples by .*; use no batch statistics"),
        (counted, check_copies, "a deep copy gives other logits by .*; keep all state in parameters and buffers"),
        (branching, check_trace, "a trace gives other logits by .*; branch on shapes"),
    ],
)
def test_faults_are_named_with_a_remedy(fault, check, message):
    with pytest.raises(Failure, match=message):
        check(subject(fault))


def test_a_silent_parameter_is_named():
    faulty = subject()

    def build(_):
        network = Net()
        network.unused = convolution()
        return network

    with pytest.raises(Failure, match=r"unused\.weight, unused\.bias get no gradient; use every"):
        check_gradients(replace(faulty, build=build))


class Residual(nn.Module):
    """Two branches, each with a weight that starts at 0, as the last norm of a residual block often does."""

    def __init__(self, reached):
        super().__init__()
        self.head, self.branch, self.second = convolution(), convolution(), convolution()
        self.scale, self.second_scale = (nn.Parameter(torch.zeros(3, 1, 1)) for _ in range(2))
        self.reached = reached

    def forward(self, x):
        return self.head(x) + self.scale * self.branch(x) + self.second_scale * self.second(self.reached * x)


def test_weights_behind_one_that_starts_at_0_are_judged_with_another_value_of_it():
    check_gradients(Subject("residual", lambda _: Residual(1), SIZE, lower_outputs=False))
    with pytest.raises(Failure, match=r"^gradients of second\.weight are 0; check that they reach the output"):
        check_gradients(Subject("residual", lambda _: Residual(0), SIZE, lower_outputs=False))


def test_low_precision_that_overflows_is_named():
    with pytest.raises(Failure, match="logits are not finite in float16 at images of magnitude 100; compute"):
        check_precision(subject(squared), torch.float16)


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(Failure, match=r"it cannot be pickled \(.*; keep lambdas"):
        check_pickle(subject(lambda network, x: network.head(x)))


def test_outputs_are_those_that_the_targets_have():
    both = Subject("two", lambda supervised: Net(None, supervised), SIZE, scales=((1, 1), (0.5, 0.5)))
    check_outputs(both)
    with pytest.raises(Failure, match=r"the outputs have the sizes \[.*\], but the targets \[\(8, 8\), \(2, 2\)\]"):
        check_outputs(replace(both, scales=((1, 1), (0.25, 0.25))))
    with pytest.raises(Failure, match="under deep supervision it returns a Tensor; return a list"):
        check_outputs(replace(subject(), lower_outputs=True, build=lambda _: Net()))


def test_a_switch_without_effect_is_named():
    def switchless(supervised):
        network = Net(None, supervised)
        network.decoder = nn.Module()
        network.decoder.deep_supervision = supervised
        return network

    with pytest.raises(Failure, match=r"nnU-Net's switch .* does not change what is returned"):
        check_switch(Subject("switchless", switchless, SIZE))


@pytest.mark.slow
def test_a_network_without_faults_compiles():
    check_compile(subject())


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_command_passes_a_good_trainer(capsys):
    assert main(["check", "HalvingTrainer", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "HalvingTrainer works." in printed
    assert "FAILED" not in printed
    for setting in ("2D", "3D", "anisotropic", "3 modalities"):
        assert f"deep supervision        {setting}" in printed
    assert "a class in a trainer's file cannot be imported" in printed


@pytest.mark.usefixtures("own")
def test_the_command_names_faults_and_exits_with_1(capsys):
    assert main(["check", "WrongTrainer", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "-> use every parameter in `forward`" in printed
    assert printed.rstrip().endswith("failed.")
    assert main(["check", "RefusingTrainer", "--quick"]) == 1
    assert "skipped  building                2D" in capsys.readouterr().out
    assert main(["check", "NoSuchTrainer"]) == 2
    assert "unknown trainer 'NoSuchTrainer'" in capsys.readouterr().err


@pytest.mark.usefixtures("own")
def test_a_trainer_of_the_former_signature_is_checked_on_a_plan(nnunet):
    rows = list(run("OldTrainer", nnunet.plans_file, quick=True))
    assert {row.setting for row in rows} >= {"3d_fullres", "2d"}
    assert {row.state for row in rows} <= {"ok", "skipped"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [pytest.param(name, marks=[] if name in ONE_OF_EACH_NETWORK else pytest.mark.long) for name in known_trainers()],
)
def test_our_own_trainers_pass(trainer):
    if issubclass(find_trainer(trainer), MONAITrainer) or "UNetPlusPlus" in trainer:
        pytest.importorskip("monai")
    rows = list(run(trainer, quick=True))
    assert [row for row in rows if row.state == "FAILED"] == []
    assert {row.setting for row in rows} >= {"2D", "3D", "anisotropic", "3 modalities"}


@pytest.mark.slow
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("trainer", ["HalvingTrainer", "OldTrainer", "SASANTrainer"])
def test_all_checks(trainer):
    """Compiled, on two ranks, and trained, resumed and predicted."""
    rows = {row.check: row for row in run(trainer)}
    assert [row for row in rows.values() if row.state == "FAILED"] == []
    assert [rows[name].state for name in ("compilation", "equal ranks", "resume, predict")] == ["ok"] * 3


@pytest.mark.slow
def test_a_failing_stage_of_the_training_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", write_own_trainers(tmp_path / "mine"))
    stage, reason = training.run_training("RefusingTrainer", "cpu")
    assert stage == "plan"
    assert "Wrong cannot be built" in reason
