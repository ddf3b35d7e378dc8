"""FAF-Net's trainers with an encoder of the user's choice, in this process."""

import json

import numpy as np
import pytest
import timm
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.fewshot.described_episodes import DescribedEpisodes
from nnunet_ext.fewshot.episodes import SupervoxelEpisodes
from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.profiling.memory import trace_step
from nnunet_ext.profiling.trainer_step import trainer_step
from nnunet_ext.training import ChosenEncoderTrainer
from nnunet_ext.training.encoder_choice import EncoderChoice, chosen_weights

NAMES = ["FAFNetTimmTrainer", "FAFNetFewShotTimmTrainer"]


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Chooses in the environment; weights are a file of random ones."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def setting(encoder="timm:test_resnet", frozen=True):
        file = tmp_path / f"{encoder.removeprefix('timm:')}.pth"
        torch.save(timm.create_model(encoder.removeprefix("timm:")).state_dict(), file)
        for name, value in ((ENCODER, encoder), (ENCODER_FROZEN, "1" if frozen else "0"), (ENCODER_WEIGHTS, str(file))):
            monkeypatch.setenv(name, value)

    return setting


@pytest.fixture
def no_choice(monkeypatch):
    def setting():
        for name in (ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS):
            monkeypatch.delenv(name, raising=False)

    return setting


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("configuration", ["2d_tiny", "3d_fullres_tiny"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_choice_is_trained_and_kept(make_trainer, choose, no_choice, name, configuration, frozen, tmp_path):
    """Prediction and resumption need no variable, and no weights but the checkpoint's."""
    choose(frozen=frozen)
    trainer = make_trainer(name, configuration)
    training, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    for _ in range(2):
        assert np.isfinite(trainer.train_step(next(training))["loss"])
    changed = {k for k, v in trainer.network.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("encoder.backbone") for k in changed) is not frozen
    assert not any("running" in k for k in changed)
    assert "decoder.icm.fc_q.weight" in changed
    trainer.on_validation_epoch_start()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    kept = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert kept["nnunet_ext"]["encoder"]["encoder"] == "timm:test_resnet"

    no_choice()
    plans = trainer.plans_manager.plans
    trainer_class = find_trainer(name)
    network = trainer_class.build_network_architecture(
        PlansManager(plans), PlansManager(plans).get_configuration(configuration), 1, 3, False
    )
    network.load_state_dict(kept["network_weights"])
    resumed = trainer_class(
        plans | {"continue_training": True}, configuration, 0, trainer.dataset_json, torch.device("cpu")
    )
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    backbone = resumed.network.encoder.backbone
    assert backbone.frozen_norms
    assert backbone.training is not frozen
    x = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        expected = trainer.network.eval()(x)
        for other in (network, resumed.network):
            assert torch.equal(other.eval()(x), expected)


def test_norms_of_an_encoder_from_scratch_learn_after_a_resumption(make_trainer, no_choice, tmp_path):
    trainer = make_trainer("FAFNetTimmTrainer", "2d_tiny")  # the tests' environment: from scratch
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    no_choice()
    plans = trainer.plans_manager.plans | {"continue_training": True}
    resumed = type(trainer)(plans, "2d_tiny", 0, trainer.dataset_json, torch.device("cpu"))
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert not resumed.network.encoder.backbone.frozen_norms


def _rates(trainer, epoch):
    trainer.lr_scheduler.step(epoch)
    return [group["lr"] for group in trainer.optimizer.param_groups]


def test_a_pretrained_encoder_is_trained_with_a_rate_of_its_own(make_trainer, choose, no_choice, tmp_path):
    """The rate of the layers that start from scratch would destroy its weights."""
    choose(frozen=False)
    trainer = make_trainer("FAFNetFewShotTimmTrainer", "2d_tiny")
    others, encoder = (group["params"] for group in trainer.optimizer.param_groups)
    assert {id(p) for p in encoder} == {id(p) for p in trainer.network.encoder.backbone.parameters()}
    assert len(others) + len(encoder) == len(list(trainer.network.parameters()))
    assert _rates(trainer, 0) == [2e-2, 1e-3]
    half = trainer.num_epochs // 2
    assert _rates(trainer, half) == pytest.approx([2e-2 * 0.5**0.9, 1e-3 * 0.5**0.9])
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))

    # From scratch there is nothing to destroy. A resumption goes by the checkpoint, not by the environment.
    no_choice()
    plans = trainer.plans_manager.plans | {"continue_training": True}
    resumed = type(trainer)(plans, "2d_tiny", 0, trainer.dataset_json, torch.device("cpu"))
    resumed.encoder_weights = None
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert _rates(resumed, 0) == [2e-2, 1e-3]


def test_an_encoder_from_scratch_has_the_rate_of_the_other_layers(make_trainer, monkeypatch):
    monkeypatch.setenv(ENCODER_FROZEN, "0")
    trainer = make_trainer("FAFNetFewShotTimmTrainer", "2d_tiny")  # the tests' environment: from scratch
    assert _rates(trainer, 0) == [2e-2, 2e-2]


def test_a_subclass_with_an_optimiser_of_its_own_is_resumed(make_trainer, choose, monkeypatch, tmp_path):
    def own_optimizer(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)
        return optimizer, PolyLRScheduler(optimizer, 1e-4, self.num_epochs)

    choose(frozen=False)
    monkeypatch.setattr(ChosenEncoderTrainer, "configure_optimizers", own_optimizer)
    trainer = make_trainer("FAFNetTimmTrainer", "2d_tiny")
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    trainer.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert _rates(trainer, 0) == [1e-4]


def test_checkpoints_of_one_rate_for_all_are_resumed(make_trainer, choose):
    choose(frozen=False)
    trainer = make_trainer("FAFNetFewShotTimmTrainer", "2d_tiny")
    training, _ = trainer.get_dataloaders()
    trainer.train_step(next(training))
    parameters = list(trainer.network.parameters())
    earlier = torch.optim.SGD(parameters, 2e-2, momentum=0.9)
    for number, parameter in enumerate(parameters):
        earlier.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number)
    trainer.optimizer.load_state_dict(earlier.state_dict())
    for number, parameter in enumerate(parameters):
        assert (trainer.optimizer.state[parameter]["momentum_buffer"] == number).all()
    assert _rates(trainer, 0) == [2e-2, 1e-3]


def test_all_folds_have_one_encoder(make_trainer, choose, no_choice):
    choose()
    trainer = make_trainer("FAFNetTimmTrainer", "2d_tiny")
    fold = trainer.output_folder
    with open(f"{trainer.output_folder_base}/plans.json", "w") as file:
        json.dump(trainer.plans_manager.plans, file)
    choose("timm:test_efficientnet")
    make_trainer("FAFNetTimmTrainer", "2d_tiny")  # nothing has been trained yet
    trainer.save_checkpoint(f"{fold}/checkpoint_latest.pth")
    with pytest.raises(
        ValueError,
        match=r"holds trainings with the encoder timm:test_resnet, frozen, and NNUNET_EXT_ENCODER .* ask for "
        "timm:test_efficientnet, frozen: all folds of a model have one encoder",
    ):
        make_trainer("FAFNetTimmTrainer", "2d_tiny")
    no_choice()
    further = type(trainer)(
        trainer.plans_manager.plans | {"continue_training": False}, "2d_tiny", 1, trainer.dataset_json
    )
    assert further.choice == EncoderChoice("timm:test_resnet", True)


def test_configurations_that_inherit_their_architecture_keep_it(nnunet):
    plans = nnunet.plans
    plans["configurations"]["heir"] = {"inherits_from": "2d_tiny", "batch_size": 3}
    choice = EncoderChoice("timm:resnet18", False)
    written = choice.written_to(plans, "heir")
    assert EncoderChoice.from_plans(written, "heir") == choice
    assert EncoderChoice.from_plans(written, "2d_tiny") is None
    assert EncoderChoice.from_plans(plans, "heir") is None
    old, new = (PlansManager(p).get_configuration("heir").network_arch_init_kwargs for p in (plans, written))
    assert new == old | choice.arguments()


def test_variables_replace_what_they_name():
    default = EncoderChoice("timm:resnet18", True)
    assert EncoderChoice.from_environment(default, {}) == default
    assert EncoderChoice.from_environment(default, {ENCODER_FROZEN: "0"}) == EncoderChoice("timm:resnet18", False)
    assert EncoderChoice.from_environment(default, {ENCODER: "resnet50"}) == EncoderChoice("resnet50", True)
    with pytest.raises(ValueError, match="NNUNET_EXT_ENCODER_FROZEN='yes' must be 0 or 1"):
        EncoderChoice.from_environment(default, {ENCODER_FROZEN: "yes"})
    assert chosen_weights("timm", {}) == "timm"
    assert chosen_weights("timm", {ENCODER_WEIGHTS: "none"}) is None
    assert chosen_weights("timm", {ENCODER_WEIGHTS: "a.pth"}) == "a.pth"


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ({ENCODER_FROZEN: "1"}, ValueError, "a frozen encoder needs weights, and NNUNET_EXT_ENCODER_WEIGHTS is 'none'"),
        ({ENCODER_WEIGHTS: "imagenet"}, ValueError, "_WEIGHTS='imagenet' is no file and none of the weights timm"),
        ({ENCODER_WEIGHTS: "there/is/none.pth"}, FileNotFoundError, "no such file: there/is/none.pth"),
        ({ENCODER: "timm:resnet51"}, ValueError, "unknown `encoder` 'timm:resnet51'; .* similar names"),
    ],
)
def test_impossible_choices_are_refused(make_trainer, monkeypatch, variables, error, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        make_trainer("FAFNetTimmTrainer", "2d_tiny")


def test_the_log_says_which_encoder(make_trainer, choose, capsys):
    choose()
    trainer = make_trainer("FAFNetFewShotTimmTrainer", "2d_tiny")
    trainer.on_train_start()
    assert "Encoder: timm:test_resnet, frozen; initial weights: /" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "frozen"), [("FAFNetTimmTrainer", True), ("FAFNetFewShotTimmTrainer", False)])
def test_who_trains_the_encoder_by_default(make_trainer, choose, monkeypatch, name, frozen):
    choose()
    monkeypatch.delenv(ENCODER_FROZEN)
    trainer = make_trainer(name, "2d_tiny")
    assert trainer.choice.encoder_frozen is frozen
    assert all(p.requires_grad is not frozen for p in trainer.network.encoder.backbone.parameters())


@pytest.mark.parametrize(("frozen", "variants"), [(True, 4), (True, 0), (False, 4)])
def test_a_frozen_encoder_describes_slices_once(make_trainer, choose, frozen, variants):
    choose(frozen=frozen)
    trainer = make_trainer("FAFNetFewShotTimmTrainer", "2d_tiny")
    trainer.described_variants = variants
    described = frozen and variants > 0
    training, _ = trainer.get_dataloaders()
    assert type(training.data_loader) is (DescribedEpisodes if described else SupervoxelEpisodes)
    batch, example = next(training), trainer.example_batch(2)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in example.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [True, False])
def test_planning_traces_a_step(nnunet, choose, name, frozen):
    """On fake tensors, without loading weights."""
    choose(frozen=frozen)
    plans = nnunet.plans | {"continue_training": False}
    step = trainer_step(find_trainer(name), plans, "2d_tiny", nnunet.dataset_json, 2)
    assert trace_step(step).total > 0
