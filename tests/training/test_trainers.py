import numpy as np
import pytest
import torch

from nnunet_ext.networks import NETWORKS
from nnunet_ext.nnunet.budget import StepSettings
from nnunet_ext.nnunet.trainers import known_trainers
from nnunet_ext.training import Budget
from nnunet_ext.weights import from_authors, write_pretrained
from tests.helpers.baselines import OTHER_PATCHES

OTHERS = ("MTUNet", "FAFNet", *OTHER_PATCHES)
TRAINERS = [name for name in known_trainers() if not any(other in name for other in OTHERS)]
SIZES = {"2d_tiny": (24, 16), "3d_fullres_tiny": (16, 24, 16)}


def batch(trainer, channels=1):
    """A batch as nnU-Net's loaders give it: a target for every output."""
    size = tuple(trainer.configuration_manager.patch_size)
    labels = trainer.label_manager
    target = torch.zeros(2, 1, *size, dtype=torch.int16)
    target[..., 4:12] = 1
    target[..., 8:12] = 2
    if labels.ignore_label is not None:
        target[..., -1] = labels.ignore_label
    if labels.has_regions:
        regions = [target == 1, target >= 1] if labels.ignore_label is None else [target == 1, target >= 1, target == 3]
        target = torch.cat(regions, 1)
    data = torch.randn(2, channels, *size)
    scales = trainer._get_deep_supervision_scales()
    if scales is None:
        return {"data": data, "target": target}
    targets = [
        target[(slice(None), slice(None), *(slice(None, None, round(1 / s)) for s in scale))] for scale in scales
    ]
    return {"data": data, "target": targets}


def run_steps(trainer, count=2):
    trainer.on_train_epoch_start()
    losses = [trainer.train_step(batch(trainer))["loss"] for _ in range(count)]
    trainer.on_train_epoch_end([{"loss": np.array(loss)} for loss in losses])
    return losses


def test_every_trainer_is_found_by_nnunet(nnunet_environment):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    names = known_trainers()
    assert {"SASANTrainer", "SASANTrainerDiceCE", "StockTrainer"} <= set(names)
    assert {trainer for info in NETWORKS.values() for trainer in info.trainers} <= set(names)
    for name in names:
        found = recursive_find_trainer_class_by_name(name)
        assert found.__name__ == name


@pytest.mark.parametrize("configuration", list(SIZES))
@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_take_the_plans_topology_and_step(make_trainer, name, configuration):
    trainer = make_trainer(name, configuration)
    for info in NETWORKS.values():
        if name in info.trainers:
            assert type(trainer.network) is info.network
            assert trainer.network.patch_size == SIZES[configuration]
    with torch.no_grad():
        outputs = trainer.network(batch(trainer)["data"])
    assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch(trainer)["target"]]
    assert np.isfinite(run_steps(trainer)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SALSTMMTUNetTrainer", "LSTMSAMTUNetTrainer"])
def test_trainers_on_mt_unet_need_patches_that_32_divides(make_trainer, nnunet, name):
    with pytest.raises(ValueError, match=r"`patch_size\[0\]`=24 must be divisible by 32; nearest: 32"):
        make_trainer(name, "2d_tiny")
    plans = nnunet.plans
    plans["configurations"]["2d_tiny"]["patch_size"] = [32, 64]
    trainer = make_trainer(name, "2d_tiny", plans)
    assert type(trainer.network.backbone).__name__ == "MTUNet"
    before = [p.clone() for p in trainer.network.parameters()]
    losses = run_steps(trainer)
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    trained = [p.requires_grad for p in trainer.network.parameters()]
    assert sum(changed) > 0.95 * sum(trained)


@pytest.mark.parametrize("configuration", list(SIZES))
@pytest.mark.parametrize("name", ["SALSTMTrainer", "LSTMSATrainer"])
def test_lstm_sa_is_optimised_as_by_its_authors_at_a_higher_rate(make_trainer, name, configuration):
    trainer = make_trainer(name, configuration)
    assert type(trainer.optimizer) is torch.optim.Adam
    (group,) = trainer.optimizer.param_groups
    trainer.lr_scheduler.step(trainer.num_epochs // 2)
    assert group["lr"] == pytest.approx(3e-4 * 0.5**0.9)
    assert group["weight_decay"] == 1e-4
    assert (trainer.loss.loss.weight_dice, trainer.loss.loss.weight_ce) == (0.5, 0.5)
    if configuration.startswith("3d"):
        assert {scale[0] for scale in trainer._get_deep_supervision_scales()} == {1.0}


LABELS = {
    "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
    "ignore": {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "Posterior": [2]},
    "regions and ignore": {"background": 0, "whole": [1, 2], "Posterior": [2], "ignore": 3},
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_regions_and_ignore_label(make_trainer, nnunet, kind):
    dataset = nnunet.dataset_json | {"labels": LABELS[kind]}
    if "regions" in kind:
        dataset["regions_class_order"] = [1, 2]
    trainer = make_trainer(dataset=dataset)
    assert trainer.loss.regions == ("regions" in kind)
    assert (trainer.loss.ignore_label is not None) == ("ignore" in kind)
    before = [p.clone() for p in trainer.network.parameters()]
    assert np.isfinite(run_steps(trainer)).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        result = trainer.validation_step(batch(trainer))
    assert np.isfinite(result["loss"])


def test_two_modalities(make_trainer, nnunet):
    dataset = nnunet.dataset_json | {"channel_names": {"0": "T1", "1": "T2"}}
    plans = nnunet.plans
    chosen = plans["configurations"]["3d_fullres_tiny"]
    for key in ("normalization_schemes", "use_mask_for_norm"):
        chosen[key] = chosen[key] * 2
    trainer = make_trainer(plans=plans, dataset=dataset)
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(batch(trainer, channels=2))["loss"])


def test_checkpoint_round_trip_with_the_loss_weights(make_trainer, tmp_path):
    trainer = make_trainer()
    run_steps(trainer)
    trainer.loss.raw_weights.copy_(torch.tensor([1.1, 1.2, 1.3]))
    file = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(file)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint.pth"]

    restored = make_trainer()
    restored.load_checkpoint(file)
    assert restored.loss.raw_weights.tolist() == pytest.approx([1.1, 1.2, 1.3])
    assert restored.loss_history == trainer.loss_history
    for (name, a), b in zip(trainer.network.state_dict().items(), restored.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    same = batch(trainer)
    # Training continues identically: optimiser, loss weights and network are all restored.
    restored.loss.train()
    trainer.loss.train()
    for t in (trainer, restored):
        t._term_sums = torch.zeros(3)
    assert trainer.train_step(same)["loss"] == restored.train_step(same)["loss"]


def test_denormal_numbers_count_as_zero_in_a_training_on_the_cpu_only_while_it_runs(make_trainer, monkeypatch):
    denormal, seen = torch.tensor([1e-39]), []
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush them")

    def interrupt():
        seen.append(float(denormal * 1))
        raise KeyboardInterrupt

    trainer = make_trainer("StockTrainer")
    monkeypatch.setattr(trainer, "on_train_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert seen == [0]
    assert float(denormal * 1) > 0


def test_validation_leaves_the_loss_weights_alone(make_trainer):
    trainer = make_trainer()
    trainer.loss.thresholds = (10.0, 10.0, 10.0)
    run_steps(trainer, count=1)
    after_training = trainer.loss.raw_weights.clone()
    assert after_training.tolist() != [1, 1, 1]
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        trainer.validation_step(batch(trainer))
    assert torch.equal(trainer.loss.raw_weights, after_training)


def test_a_stock_checkpoint_is_noted(make_trainer, tmp_path, capsys):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer("StockTrainer")
    nnUNetTrainer.save_checkpoint(trainer, str(tmp_path / "stock.pth"))
    make_trainer("StockTrainer").load_checkpoint(str(tmp_path / "stock.pth"))
    assert "was not written by a trainer of nnunet_ext" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("SASAN", "SASANTrainer"),
        ("EMNet", "EMNetTrainer"),
        ("LSTMSA", "LSTMSATrainer"),
        ("UMamba", "UMambaEncTrainer"),
    ],
)
def test_stock_trainer_builds_a_network_from_a_plan_that_names_it(make_trainer, nnunet, name_network, name, trainer):
    plans = nnunet.plans
    name_network(name, plans["configurations"]["3d_fullres_tiny"])
    stock = make_trainer("nnUNetTrainer", plans=plans)
    assert type(stock.network).__name__ == name
    with torch.no_grad():
        outputs = stock.network(batch(stock)["data"])
    assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch(stock)["target"]]
    ours = make_trainer(trainer, plans=plans)
    assert ours.network.state_dict().keys() == stock.network.state_dict().keys()
    assert ours._get_deep_supervision_scales() == stock._get_deep_supervision_scales()


def test_a_stale_patch_in_a_plan_is_refused(make_trainer, nnunet, name_network):
    plans = nnunet.plans
    name_network("SASAN", plans["configurations"]["3d_fullres_tiny"])
    plans["configurations"]["3d_fullres_tiny"]["patch_size"] = [16, 32, 16]
    with pytest.raises(ValueError, match=r"`patch_size`=\[16, 32, 16\] and `arch_kwargs` `patch_size`=\[16, 24, 16\]"):
        make_trainer(plans=plans)


def test_trainers_train_what_their_name_says_on_the_plan_of_another_variant(make_trainer, nnunet, name_network):
    plans = nnunet.plans
    changed = {
        "3d_fullres_tiny": ("EMNet", {"variant": "A", "efl_layout": "authors"}),
        "2d_tiny": ("LSTMSA", {"backbone": "mt_unet"}),
    }
    for name, (network, settings) in changed.items():
        name_network(network, plans["configurations"][name])
        plans["configurations"][name]["architecture"]["arch_kwargs"] |= settings
    network = make_trainer("EMNetTrainer", plans=plans).network
    assert (network.variant, network.efl_layout) == ("EM-Net", "spatial")
    network = make_trainer("EMNetBTrainer", plans=plans).network
    assert (network.variant, network.efl_layout) == ("B", "spatial")
    trainer = make_trainer("LSTMSATrainer", "2d_tiny", plans)
    assert type(trainer.network.backbone).__name__ != "MTUNet"
    assert len(trainer.network(batch(trainer)["data"])) == len(batch(trainer)["target"])


def test_losses_of_a_single_output_are_finite(make_trainer, nnunet):
    """nnU-Net would weigh the lowest output, here the only one, by 0 / 0."""
    plans = nnunet.plans
    arguments = plans["configurations"]["2d_tiny"]["architecture"]["arch_kwargs"]
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[key] = arguments[key][:2]
    arguments |= {"n_stages": 2, "n_conv_per_stage_decoder": [2]}
    for name in ("StockTrainer", "SASANTrainerDiceCE", "SALSTMTrainer"):
        assert np.isfinite(run_steps(make_trainer(name, "2d_tiny", plans))).all()


def test_the_state_of_the_loss_is_saved_off_the_device(make_trainer):
    assert {v.device.type for v in make_trainer("SASANTrainer").extra_state()["loss"].values()} == {"cpu"}


def test_no_label_besides_background_is_refused(make_trainer, nnunet):
    with pytest.raises(ValueError, match="no label besides background"):
        make_trainer(dataset=nnunet.dataset_json | {"labels": {"background": 0}})


@pytest.mark.parametrize("classes", [2, 3])
def test_imported_weights_are_taken_over_by_nnunet(make_trainer, nnunet, golden, tmp_path, authors_plan, classes):
    """By its own function, whatever the number of classes."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    imported = from_authors("sasan", golden("sasan").state_dict)
    write_pretrained(imported, tmp_path / "ours.pth")
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    dataset = nnunet.dataset_json | {"labels": {k: v for k, v in labels.items() if v < classes}}
    trainer = make_trainer("SASANTrainer", "authors", authors_plan(nnunet.plans), dataset)
    load_pretrained_weights(trainer.network, str(tmp_path / "ours.pth"))
    for ours, theirs in zip(trainer.network.encoder.parameters(), imported.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_plan_without_topology_is_refused(make_trainer, nnunet):
    plans = nnunet.plans
    del plans["configurations"]["3d_fullres_tiny"]["architecture"]["arch_kwargs"]["features_per_stage"]
    with pytest.raises(ValueError, match=r"PlainConvUNet has no features_per_stage: SASAN cannot take its topology"):
        make_trainer(plans=plans)


def test_budget_variables_bound_the_training(make_trainer, monkeypatch, tmp_path):
    for name, value in Budget(7, 3, 2).environment().items():
        monkeypatch.setenv(name, value)
    trainer = make_trainer("StockTrainer")
    assert trainer.budget == Budget(7, 3, 2)
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    state = torch.load(tmp_path / "c.pth", weights_only=False)["nnunet_ext"]
    assert state["budget"] == {"epochs": 7, "iterations": 3, "val_iterations": 2}


def test_without_budget_variables_nnunets_values_stay(make_trainer):
    assert make_trainer("StockTrainer").budget == Budget(1000, 250, 50)


@pytest.mark.parametrize(
    "trainer", ["StockTrainer", "SASANTrainer", "EMNetSGDTrainer", "LSTMSATrainer", "FAFNetTrainer"]
)
def test_momentum_and_rate_come_from_the_environment(make_trainer, monkeypatch, trainer):
    """Where the optimiser is nnU-Net's; elsewhere the log says that they have no effect."""
    found = {}
    for chosen in (False, True):
        if chosen:
            monkeypatch.setenv("NNUNET_EXT_MOMENTUM", "0.8")
            monkeypatch.setenv("NNUNET_EXT_LEARNING_RATE", "0.05")
        made = make_trainer(trainer)
        optimizer, schedule = made.configure_optimizers()
        made.optimizer, made.lr_scheduler = optimizer, schedule
        schedule.step(0)
        group = optimizer.param_groups[0]
        found[chosen] = group["lr"], group.get("momentum"), made._said_of_steps()
    if trainer in ("StockTrainer", "SASANTrainer"):
        assert found[False][:2] == (0.01, 0.99)
        assert found[True] == (
            0.05,
            0.8,
            "Steps of the environment: NNUNET_EXT_LEARNING_RATE=0.05, NNUNET_EXT_MOMENTUM=0.8.",
        )
    else:
        assert found[True][2].endswith(f"has no effect: {trainer} has an optimiser of its own.")
        # The authors' SGD of EM-Net has nnU-Net's rate, and a momentum of its own.
        heeds_the_rate = trainer == "EMNetSGDTrainer"
        assert found[True][2].startswith("Steps of the environment: NNUNET_EXT_LEARNING_RATE=0.05. ") == heeds_the_rate


@pytest.mark.parametrize(("name", "value"), [("MOMENTUM", "1"), ("MOMENTUM", "0,9"), ("LEARNING_RATE", "-1")])
def test_a_wrong_momentum_or_rate_is_named(name, value):
    with pytest.raises(ValueError, match=f"NNUNET_EXT_{name}='{value}' must be a positive number"):
        StepSettings.from_environment({f"NNUNET_EXT_{name}": value})


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", " 3", "²"])
@pytest.mark.parametrize("name", ["NNUNET_EXT_EPOCHS", "NNUNET_EXT_ITERATIONS", "NNUNET_EXT_VAL_ITERATIONS"])
def test_budgets_that_are_no_positive_integers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a positive integer"):
        Budget.from_environment({name: value})
