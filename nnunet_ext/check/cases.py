"""The settings on which a trainer's network is checked: small plans of nnU-Net's, or those of a plans file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunet_ext.check.subject import Failure, Skipped, Subject
from nnunet_ext.networks.topology import Topology
from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.plan_settings import plan_setting
from nnunet_ext.planning.architecture import unet_architecture
from nnunet_ext.planning.fitting import Candidate, plans_of
from nnunet_ext.planning.patches import LEARNT_MULTIPLES, rounded_up
from nnunet_ext.profiling.trainer_step import construct_trainer
from nnunet_ext.utils.fake_modules import run_on_fake_tensors
from nnunet_ext.utils.messages import first_line

_FEATURES = (8, 12, 16, 20, 24, 28)
_MIN_EDGE, _MAX_POOLINGS = 4, 4


@dataclass(frozen=True)
class Case:
    """A setting.

    Attributes:
        name: Name for the table.
        patch_size: Patch in voxels, enlarged where the network needs it.
        spacing: Spacing in mm.
        input_channels: Number of modalities.
    """

    name: str
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    input_channels: int = 1


CASES = (
    Case("2D", (48, 40), (1, 1)),
    Case("3D", (24, 32, 40), (1, 1, 1)),
    Case("anisotropic", (8, 40, 48), (3, 1, 1)),
    Case("3 modalities", (48, 40), (1, 1), 3),
)
"""Patches of which one axis is above 32 at least: after five halvings, attention has more than one voxel to weigh."""


def subjects(trainer: type, plans_file: Path | None, device: str) -> Iterator[tuple[str, Subject | Exception]]:
    """Every setting with its network, or with the reason why the trainer builds none.

    Args:
        trainer: The trainer's class.
        plans_file: nnU-Net's plans, with dataset.json in the same folder, whose configurations are the settings; None:
            `CASES`.
        device: Type of the device.
    """
    for name, candidates in _settings(trainer, plans_file):
        refusal: Exception = Skipped("no setting")
        for plans, configuration, dataset in candidates:
            try:
                subject = _subject(trainer, plans, configuration, dataset, name=name, device=device)
                _run_without_values(subject)
            except Exception as error:
                refusal = error if isinstance(refusal, Skipped) else refusal
            else:
                yield name, subject
                break
        else:
            yield name, refusal


def not_built(error: Exception) -> Exception:
    """How a setting on which no network is built ends: a clear refusal is allowed, any other error is a failure."""
    if isinstance(error, ValueError):
        return Skipped(f"the network refuses it: {error}")
    return Failure(
        f"the network is not built, or does not run ({first_line(error)})",
        "declare `patch_multiple`, `poolings` and `network_arguments` on the trainer; for settings that it does not "
        "support, raise a ValueError that says so",
    )


def _settings(trainer: type, plans_file: Path | None) -> Iterator[tuple[str, list[tuple[dict, str, dict]]]]:
    """Name of a setting, and plans for it, of which the first that the network takes is used."""
    if plans_file is None:
        for case in CASES:
            yield case.name, [(*plan_for(trainer, case, multiple),) for multiple in LEARNT_MULTIPLES]
        return
    plans, dataset = read_plans(plans_file), read_dataset_json(plans_file.parent / "dataset.json", "channel_names")
    for name in plans["configurations"]:
        yield name, [(plans, name, dataset)]


def plan_for(trainer: type, case: Case, learnt: int = 1) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """nnU-Net's plans with a small U-Net on a setting, the configuration's name, and dataset.json."""
    _, strides, kernels, padded, _ = get_pool_and_conv_props(
        list(case.spacing), list(case.patch_size), _MIN_EDGE, _MAX_POOLINGS
    )
    steps = [[int(step) for step in stage] for stage in strides]
    patch = rounded_up([int(size) for size in padded], getattr(trainer, "patch_multiple", 1), learnt, steps)
    topology = Topology.create(
        conv_op=nn.Conv2d if len(patch) == 2 else nn.Conv3d,
        patch_size=patch,
        n_stages=len(strides),
        features_per_stage=_FEATURES[: len(strides)],
        kernel_sizes=[[int(k) for k in stage] for stage in kernels],
        strides=steps,
    )
    plans = plans_of(Candidate(unet_architecture(topology), patch), batch_size=2)
    dataset = {
        "channel_names": {str(i): "MRI" for i in range(case.input_channels)},
        "labels": {"background": 0, "first": 1, "second": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    return plans, next(iter(plans["configurations"])), dataset


def _subject(
    trainer_class: type, plans: dict, configuration: str, dataset: Mapping[str, Any], *, name: str, device: str
) -> Subject:
    trainer = construct_trainer(trainer_class, plans, configuration, dict(dataset))
    setting = plan_setting(trainer.plans_manager, configuration, dict(dataset))
    trainer.num_input_channels = setting.input_channels
    supervised = bool(trainer.enable_deep_supervision)
    scales = trainer._get_deep_supervision_scales() if supervised else None
    return Subject(
        name=name,
        build=lambda deep_supervision: setting.network(trainer, deep_supervision),
        patch_size=tuple(int(size) for size in setting.configuration.patch_size),
        input_channels=setting.input_channels,
        num_classes=setting.num_classes,
        lower_outputs=supervised,
        scales=None if scales is None else tuple(tuple(scale) for scale in scales),
        device=device,
        idle=(*Subject.idle, *getattr(trainer_class, "idle_parameters", ())),
    )


def _run_without_values(subject: Subject) -> None:
    """Raises whatever the network says to its patch, at no cost."""
    run_on_fake_tensors(lambda: subject.build(False).eval(), subject.input_channels, subject.patch_size)


def first_subject(trainer: str, plans_file: Path | None, device: str) -> Subject:
    """The first setting's network of a trainer; for another process, which finds it by its name."""
    from nnunet_ext.nnunet.trainers import find_trainer

    found = subjects(find_trainer(trainer), plans_file, device)
    return next(subject for _, subject in found if isinstance(subject, Subject))
