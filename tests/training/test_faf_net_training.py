"""FAF-Net's trainers in this process; whole runs are in test_console.py."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from nnunet_ext.fewshot.bank import SupportBank, class_labels
from nnunet_ext.fewshot.slices import image_slice
from nnunet_ext.networks import FAFNet

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "Posterior": [2]}, "regions_class_order": [1, 2]}


class Cases:
    """Preprocessed cases in memory, in the form of nnU-Net's datasets."""

    def __init__(self, folder, segmentations):
        self.source_folder = str(folder)
        self.identifiers = list(segmentations)
        self.segmentations = segmentations
        for name, segmentation in segmentations.items():
            locations = {label: np.argwhere(segmentation == label) for label in (1, 2)}
            (folder / f"{name}.pkl").write_bytes(pickle.dumps({"class_locations": locations}))

    def load_case(self, identifier):
        segmentation = self.segmentations[identifier][None]
        return segmentation.astype(np.float32) + 10, segmentation, None, {}


def segmentation(*boxes, size=(6, 20, 20)):
    """Boxes of (label, first slice, end slice, side)."""
    out = np.zeros(size, np.int16)
    for label, first, end, side in boxes:
        out[first:end, 2 : 2 + side, 3 : 3 + side] = label
    return out


def test_the_bank_draws_slices_that_show_the_class(tmp_path):
    cases = Cases(
        tmp_path,
        {
            "a": segmentation((1, 0, 2, 3), (1, 2, 4, 16)),  # slices 2 and 3 have 256 voxels, 0 and 1 have 9
            "b": segmentation((2, 1, 4, 3), (2, 4, 5, 2)),  # small: 9, 9, 9 and 4 voxels; the upper half is 9
        },
    )
    bank = SupportBank(cases, classes=[(1,), (2,)], names=["one", "two"], size=(8, 12))
    for seed in range(5):
        drawn = bank.draw(4, np.random.default_rng(seed))
        assert drawn.images.shape == (5, 1, 8, 12)
        assert drawn.masks.shape == (5, 2, 8, 12)
        assert drawn.counts == (2, 3)
        assert (drawn.masks[:2, 0].sum((1, 2)) == 8 * 12).all()  # the whole window lies within the large box
        assert (drawn.masks[2:, 1].sum((1, 2)) == 9).all()
        assert not drawn.masks[:2, 1].any()
        # Images and masks are cut out alike, within the image.
        assert (drawn.images[2:, 0][drawn.masks[2:, 1]] == 12).all()
        assert (drawn.images > 0).all()
    again = bank.draw(4, np.random.default_rng(4))
    assert np.array_equal(again.images, drawn.images)


def test_different_cases_come_before_further_slices_of_one(tmp_path):
    cases = Cases(tmp_path, {name: segmentation((1, 0, 6, 5)) for name in "abcd"})
    bank = SupportBank(cases, classes=[(1,)], names=["one"], size=(8, 8))
    generator = np.random.default_rng(0)
    for shots in (3, 4, 9):
        chosen = bank._choose(0, shots, bank.cases, generator)
        assert len(set(chosen)) == shots
        assert len({case for case, _ in chosen}) == min(shots, 4)


def test_regions_are_drawn_as_one_class(tmp_path):
    cases = Cases(tmp_path, {"a": segmentation((1, 0, 3, 4), (2, 3, 6, 4))})
    bank = SupportBank(cases, classes=[(1, 2), (2,)], names=["whole", "two"], size=(8, 8))
    drawn = bank.draw(6, np.random.default_rng(0))
    assert drawn.counts == (6, 3)
    assert (drawn.masks[:, 1] <= drawn.masks[:, 0]).all()


def test_a_region_is_no_evidence_of_its_parts(tmp_path):
    """As nnU-Net's preprocessing lists voxels, with regions and an ignore label."""
    cases = Cases(tmp_path, {"a": segmentation((1, 0, 3, 4)), "b": segmentation((1, 0, 3, 4), (2, 3, 6, 4))})
    for case, labels in cases.segmentations.items():
        locations = {key: np.argwhere(np.isin(labels, key)) for key in ((1, 2), 2, (-1, 0, 1, 2))}
        (tmp_path / f"{case}.pkl").write_bytes(pickle.dumps({"class_locations": locations}))
    classes = {"classes": [(1, 2), (2,)], "names": ["whole", "two"], "size": (8, 8)}
    assert SupportBank(cases, **classes).showing == {"a": {0}, "b": {0, 1}}
    cases.identifiers = ["a"]
    with pytest.raises(ValueError, match=r"no training case of this fold has the class 'two' \(2,\)"):
        SupportBank(cases, **classes)


def test_labels_of_the_previous_stage_are_channels():
    image, earlier = np.ones((2, 5, 6, 7), np.float32), np.arange(210).reshape(5, 6, 7) % 3
    drawn = image_slice((image, None, earlier, {}), 4, one_hot=[1, 2])
    assert drawn.shape == (4, 6, 7)
    for channel, label in ((2, 1), (3, 2)):
        assert np.array_equal(drawn[channel], earlier[4] == label)


def test_pixels_of_the_ignore_label_are_drawn_as_unlabelled(tmp_path):
    labels = segmentation((1, 0, 3, 4))
    labels[:, :, 10:] = 3
    bank = SupportBank(Cases(tmp_path, {"a": labels}), classes=[(1,)], names=["one"], size=(20, 20), ignore=3)
    drawn = bank.draw(2, np.random.default_rng(0))
    assert drawn.labelled[:, :, :10].all()
    assert not drawn.labelled[:, :, 10:].any()
    assert drawn.masks.sum() == 2 * 4 * 4


def test_unlabelled_pixels_of_the_support_count_nowhere(make_trainer, nnunet, larger):
    """Labels below the ignore label change neither losses nor prototypes; marking voxels as ignored does."""
    dataset = nnunet.dataset_json
    dataset = dataset | {"labels": dataset["labels"] | {"ignore": 3}}
    trainer = make_trainer("FAFNetTrainer", "2d_tiny", larger, dataset)
    assert trainer.support_bank.ignore == 3
    support = trainer.support_bank.draw(2, np.random.default_rng(0))
    assert support.labelled.all()
    queries = torch.from_numpy(support.images)

    def losses(masks, labelled):
        images, given = trainer.on_device(dataclasses.replace(support, masks=masks, labelled=labelled))
        trainer.network.set_support(images, given)
        episode = trainer.network(queries[None], images[None], given[None])
        return episode.alignment_loss.item(), trainer.network.decoder.seg_layers.prototypes.clone()

    half = support.labelled.copy()
    half[:, : half.shape[1] // 2] = False
    other = np.where(half[:, None], support.masks, ~support.masks)
    loss, prototypes = losses(support.masks, half)
    again, same = losses(other, half)
    complete, different = losses(support.masks, support.labelled)
    assert loss == again > 0
    assert torch.equal(prototypes, same)
    assert loss != complete
    assert not torch.equal(prototypes, different)


def test_a_class_that_no_case_has_is_named(tmp_path):
    cases = Cases(tmp_path, {"a": segmentation((1, 0, 3, 4))})
    with pytest.raises(ValueError, match=r"no training case of this fold has the class 'two' \(2,\)"):
        SupportBank(cases, classes=[(1,), (2,)], names=["one", "two"], size=(8, 8))


def batch(trainer, regions=False):
    size = tuple(trainer.configuration_manager.patch_size)
    target = torch.zeros(2, 1, *size, dtype=torch.int16)
    target[..., 4:12, 4:12] = 1
    target[..., 8:12, 8:12] = 2
    if regions:
        target = torch.cat([target >= 1, target == 2], 1)
    return {"data": torch.randn(2, 1, *size), "target": target}


@pytest.fixture
def larger(nnunet):
    """Patches that leave a feature grid for the encoder's stride of 4."""
    plans = copy.deepcopy(nnunet.plans)
    for name in ("3d_fullres_tiny", "2d_tiny"):
        plans["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 8, 8]
    return plans


@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
@pytest.mark.parametrize("regions", [False, True])
def test_an_epoch_of_episodes(make_trainer, nnunet, larger, configuration, regions, tmp_path):
    dataset = nnunet.dataset_json | (REGIONS if regions else {})
    trainer = make_trainer("FAFNetTrainer", configuration, larger, dataset)
    trainer.max_slices, trainer.shots = 4, 2
    assert type(trainer.network) is FAFNet
    assert trainer._get_deep_supervision_scales() is None
    before = {k: p.clone() for k, p in trainer.network.named_parameters()}
    trainer.on_train_epoch_start()
    losses = [trainer.train_step(batch(trainer, regions))["loss"] for _ in range(3)]
    assert np.isfinite(losses).all()
    assert min(losses) != 0
    changed = {k for k, p in trainer.network.named_parameters() if not torch.equal(before[k], p)}
    # A bias before an instance norm has no gradient but rounding.
    assert {k for k in before if not k.endswith("conv.bias")} <= changed

    assert not trainer.network.has_support
    trainer.on_validation_epoch_start()
    assert trainer.network.has_support
    with torch.no_grad():
        result = trainer.validation_step(batch(trainer, regions))
    assert np.isfinite(result["loss"])

    # The support travels in the checkpoint, encoded by the weights that are in it.
    trainer.network.train()
    trainer.train_step(batch(trainer, regions))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    restored = make_trainer("FAFNetTrainer", configuration, larger, dataset)
    restored.shots = trainer.shots
    restored.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    x = batch(trainer)["data"]
    with torch.no_grad():
        expected = trainer.network.eval()(x)
        assert torch.equal(restored.network.eval()(x), expected)
    restored.refresh_support()
    with torch.no_grad():
        torch.testing.assert_close(restored.network(x), expected)


@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
def test_few_shot_training_takes_its_episodes_from_supervoxels(make_trainer, larger, configuration, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer("FAFNetFewShotTrainer", configuration, larger)
    before = {k: p.clone() for k, p in trainer.network.named_parameters()}
    training, validation = trainer.get_dataloaders()
    assert next(training)["query_masks"].shape[:3] == (trainer.episodes, 1, trainer.classes) == (4, 1, 8)
    made = {path.stem for path in trainer.supervoxel_folder.iterdir()}
    assert made == set(trainer.get_tr_and_val_datasets()[0].identifiers)
    for _ in range(3):
        result = trainer.train_step(next(training))
        assert np.isfinite(result["loss"])
        assert result["loss"] > 0
    assert "target" in next(validation)
    changed = {k for k, p in trainer.network.named_parameters() if not torch.equal(before[k], p)}
    assert {k for k in before if not k.endswith("conv.bias")} <= changed
    trainer.on_validation_epoch_start()
    assert trainer.network.has_support
    # nnU-Net still knows the preprocessed data for its own.
    make_trainer("FAFNetFewShotTrainer", configuration, larger).get_dataloaders()


def test_support_is_drawn_anew_for_an_epoch_and_fixed_for_prediction(make_trainer, larger):
    trainer = make_trainer("FAFNetTrainer", "2d_tiny", larger)
    drawn = []
    for epoch in (0, 0, 1):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        drawn.append(trainer.epoch_support[0].numpy())
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    other = make_trainer("FAFNetTrainer", "2d_tiny", larger)
    assert np.array_equal(trainer.fixed_support.images, other.fixed_support.images)


def test_few_slices_are_said(make_trainer, larger, capsys):
    trainer = make_trainer("FAFNetTrainer", "2d_tiny", larger)
    trainer.shots = 10_000
    trainer._log_support()
    assert "fewer than the 10000 asked for: the fold has no more" in capsys.readouterr().out


def test_the_class_labels_are_nnunets(make_trainer, nnunet, larger):
    assert class_labels(make_trainer("FAFNetTrainer", "2d_tiny", larger).label_manager) == [(1,), (2,)]
    regions = make_trainer("FAFNetTrainer", "2d_tiny", larger, nnunet.dataset_json | REGIONS)
    assert class_labels(regions.label_manager) == [(1, 2), (2,)]


def test_faf_net_is_optimised_as_by_its_authors(make_trainer, larger):
    trainer = make_trainer("FAFNetTrainer", "2d_tiny", larger)
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    rates = []
    for epoch in (0, 71, 72, trainer.num_epochs - 1):
        trainer.lr_scheduler.step(epoch)
        rates.append(group["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 0.98e-3, 0.98**13 * 1e-3])


def test_from_scratch_the_rate_falls_to_0(make_trainer, larger):
    trainer = make_trainer("FAFNetFewShotTrainer", "2d_tiny", larger)
    rates = []
    for epoch in (0, trainer.num_epochs // 2, trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-2, 2e-2 * 0.5**0.9, 0])


def test_the_papers_encoder_says_how_to_start_from_scratch(make_trainer, larger, monkeypatch):
    """The weights are unavailable; this test downloads nothing."""
    import torchvision

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(RuntimeError, match=r"resnet101 cannot be downloaded .*weights=None.*FAFNetTrainer"):
        make_trainer("FAFNetResNet101Trainer", "2d_tiny", larger)
