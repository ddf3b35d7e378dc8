"""nnU-Net's experiment planner with traced memory in the place of its estimate for U-Nets."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from tqdm import tqdm

from nnunet_ext.networks.from_plan import planned_arguments
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.planning.architecture import describe
from nnunet_ext.planning.data_identifiers import shared_identifiers
from nnunet_ext.planning.fitting import Fitting
from nnunet_ext.planning.preset import Preset

GIGABYTE = 10**9
MARGIN = 0.1
"""Of the GPU's memory: for the CUDA context, cuDNN's workspaces and gaps between tensors, which no trace sees."""
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
_CASCADE = "3d_cascade_fullres"
_FITS, _TOO_LARGE, _REFERENCE = 1.0, float("inf"), 1e9
"""What nnU-Net's planner gets for an estimate, and compares with. A patch that fits leaves the batch size to its other
rule: at most 5% of the training voxels."""


class TracedPlanner(ExperimentPlanner):
    """Plans for the training that a trainer does, by its traced memory.

    Spacing, normalisation, resampling, the fingerprint, the order in which a patch shrinks (the axis that is largest
    relative to the median shape first) and the largest batch are nnU-Net's own code. Subclasses say what their
    network needs: `network`, `trainer_name`, `poolings`, `preset`.

    Args:
        dataset_name_or_id: nnU-Net's dataset.
        gpu_memory_target_in_gb: Memory of the GPU in GB (10^9 bytes); plans stay below it by `MARGIN`.
        preprocessor_name: As for nnU-Net's planner.
        plans_name: Name of the plans; None: after the trainer, as in nnUNetSASANPlans.
        overwrite_target_spacing: Of 3d_fullres, in mm, in the order of array axes; None: nnU-Net's, or the preset's.
        suppress_transpose: As for nnU-Net's planner.
        trainer: The trainer; None: that of `trainer_name`.
        configurations: Which of `CONFIGURATIONS`; None: all that the dataset allows.
        use_preset: Whether to plan the paper's own setting instead of one that fits the memory.

    Raises:
        ValueError: for a preset that there is not, or not for this trainer.
        RuntimeError: nnU-Net's, if the dataset or its fingerprint is missing.
    """

    network: type[nn.Module] | None = None
    """None: the U-Net of nnU-Net's plan."""
    trainer_name = "StockTrainer"
    poolings = 0
    """The least that the network works with."""
    preset: Preset | None = None

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        trainer: type | None = None,
        configurations: Sequence[str] | None = None,
        use_preset: bool = False,
    ) -> None:
        self.trainer = find_trainer(self.trainer_name) if trainer is None else trainer
        self.settings: dict[str, Any] = getattr(self.trainer, "all_network_settings", dict)()
        self.used_preset = self._suitable_preset() if use_preset else None
        if self.used_preset is not None:
            configurations = [self.used_preset.configuration]
            overwrite_target_spacing = overwrite_target_spacing or self.used_preset.spacing
        spacing = None if overwrite_target_spacing is None else [float(mm) for mm in overwrite_target_spacing]
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or default_plans_name(self.trainer),
            spacing,
            suppress_transpose,
        )
        self.configurations = tuple(configurations or CONFIGURATIONS)
        self.target = round(gpu_memory_target_in_gb * (1 - MARGIN) * GIGABYTE)
        self.fitting = Fitting(self.trainer, self.dataset_json, self.target)
        self.UNet_reference_val_2d = self.UNet_reference_val_3d = _REFERENCE
        self.UNet_reference_val_corresp_GB = gpu_memory_target_in_gb
        self.reasons: dict[str, str] = {}
        """Why a configuration has its patch and batch size."""
        self._name = ""
        self._fullres_patch: list[int] | None = None
        self._second_stage = False
        self._too_large: dict[str, list[tuple[dict[str, Any], tuple[int, ...]]]] = {}

    @property
    def folder(self) -> Path:
        """Of the dataset's plans and preprocessed data."""
        return Path(nnUNet_preprocessed) / self.dataset_name

    def plan_experiment(self) -> dict[str, Any]:
        """The plans; `write` writes them.

        Raises:
            ValueError: if not even the smallest patch that the network works with fits.
        """
        with redirect_stdout(StringIO()):  # nnU-Net prints its plans whole
            plans = super().plan_experiment()
            if _CASCADE in plans["configurations"]:
                # Its input has the first stage's segmentation too; 3d_fullres must fit with that as well.
                self._second_stage = True
                plans = super().plan_experiment()
        for name, identifier in shared_identifiers(plans, self.folder).items():
            plans["configurations"][name]["data_identifier"] = identifier
        return plans

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Keeps the wanted configurations; nnU-Net calls it at the end of planning."""
        found, wanted = plans["configurations"], set(self.configurations)
        if {"3d_fullres", "3d_lowres"} <= wanted:
            wanted.add(_CASCADE)
        plans["configurations"] = {name: found[name] for name in found if name in wanted}
        for name in self.configurations:
            if name in plans["configurations"]:
                self._choose_batch_size(name, plans["configurations"][name])
        if _CASCADE not in wanted:
            plans["configurations"].get("3d_lowres", {}).pop("next_stage", None)
        recursive_fix_for_json_export(plans)

    def write(self, plans: dict[str, Any]) -> Path:
        """Writes the plans file; other configurations of an older one stay in it, as with nnU-Net's planners."""
        with redirect_stdout(StringIO()):
            super().save_plans(plans)
        return self.folder / f"{self.plans_identifier}.json"

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict[str, Any]:
        """nnU-Net's plan of a configuration, with architecture, patch and batch size for this network."""
        name = data_identifier.removeprefix(f"{self.plans_identifier}_")
        if not self._is_needed(name):
            # nnU-Net reads on only to see whether a lower resolution than that of 3d_fullres is worth while.
            return {"patch_size": self._fullres_patch or tuple(median_shape), "spacing": spacing}
        self._look_at(name)
        self._too_large[name] = []
        shape = self._large_enough(spacing, median_shape[: len(spacing)])
        with self._progress_bar():
            plan = super().get_plans_for_configuration(
                spacing, shape, data_identifier, approximate_n_voxels_dataset, {}
            )
            plan["median_image_size_in_voxels"] = median_shape
            patch = self.legal_patch(plan["patch_size"])
            plan.update(patch_size=list(patch), architecture=self.architecture(plan["architecture"], patch))
        if name == "3d_fullres":
            self._fullres_patch = plan["patch_size"]
        return plan

    def static_estimate_VRAM_usage(  # nnU-Net calls it on the planner, not on the class
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Whether a patch fits, in the form in which nnU-Net's planner asks; it shrinks a patch that does not."""
        if self.used_preset is not None:
            return _FITS
        unet = {
            "network_class_name": arch_class_name,
            "arch_kwargs": dict(arch_kwargs),
            "_kw_requires_import": arch_kwargs_req_import,
        }
        patch = self.legal_patch(patch_size)
        self._show(f"{self._name}: {_times(patch)}")
        try:
            architecture = self.architecture(unet, patch)
            fits = self.fitting.trace(architecture, patch, self.UNet_min_batch_size) is not None
        except ValueError as error:
            raise self._nothing_fits(error) from error
        if not fits:
            self._too_large[self._name].append((architecture, patch))
        return _FITS if fits else _TOO_LARGE

    def legal_patch(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The smallest patch, at least as large on every axis, that the network works with."""
        return tuple(int(size) for size in (patch_size if self.used_preset is None else self.used_preset.patch_size))

    def architecture(self, unet: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """`architecture` of the plan, for this network, from that of nnU-Net's U-Net.

        Raises:
            ValueError: if the network does not work with its stages.
        """
        if self.used_preset is not None and self.network is not None:
            preset = self.used_preset
            return describe(self.network, {"patch_size": preset.patch_size, **preset.arguments, **self.settings})
        if min(patch_size) < 1 or unet["arch_kwargs"]["n_stages"] < 2:
            raise ValueError(f"a patch of {tuple(patch_size)} is too small to be pooled")
        if self.network is None:
            return unet
        manager = ConfigurationManager({"patch_size": list(patch_size), "architecture": unet})
        return describe(self.network, planned_arguments(self.network, manager) | self.settings)

    def _is_needed(self, name: str) -> bool:
        return name in self.configurations or (name == "3d_fullres" and "3d_lowres" in self.configurations)

    def _large_enough(self, spacing: Sequence[float], shape: Sequence[int]) -> list[float]:
        """The median shape, or as much more as nnU-Net's rules for pooling need for `poolings`."""
        finest = [axis for axis, mm in enumerate(spacing) if mm < 2 * min(spacing)]
        # nnU-Net pools to an edge of 4, a single axis to one of 6.
        least = self.UNet_featuremap_min_edge_length * (1 if len(finest) > 1 else 1.5) * 2**self.poolings
        return [max(size, least) if axis in finest and self.poolings else size for axis, size in enumerate(shape)]

    def _progress_bar(self) -> tqdm:
        self._progress = tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None)
        return self._progress

    def _show(self, text: str) -> None:
        self._progress.set_description_str(text)

    def _look_at(self, name: str) -> None:
        self._name = name
        self.fitting.cascaded = self._second_stage and name == "3d_fullres"

    def _choose_batch_size(self, name: str, plan: dict[str, Any]) -> None:
        if self.used_preset is not None:
            plan["batch_size"] = self.used_preset.batch_size
            self.reasons[name] = f"preset: {self.used_preset.source}"
            return
        self._look_at(name)
        most, least = int(plan["batch_size"]), self.UNet_min_batch_size
        patch = tuple(plan["patch_size"])
        with self._progress_bar():
            self._show(f"{name}: {_times(patch)}, batch size")
            batch_size = plan["batch_size"] = self.fitting.largest_batch(plan["architecture"], patch, least, most)
        first = self._too_large[name][:1]
        begun = f"from {_times(first[0][1])}" if first else "not"
        limit = "5% of the training voxels" if batch_size == most else "what fits"
        self.reasons[name] = f"patch {begun} shrunk; batch: {limit if batch_size > least else 'the least'}"

    def _suitable_preset(self) -> Preset:
        if self.preset is None:
            raise ValueError(f"there is no paper's preset for {self.trainer.__name__}: its network is the plan's own")
        differing = {key: value for key, value in self.preset.settings.items() if self.settings.get(key) != value}
        if differing:
            raise ValueError(
                f"the paper's preset is for trainers with {differing}, {self.trainer.__name__} has {self.settings}; "
                f"plan it for {self.trainer_name}"
            )
        return self.preset

    def _nothing_fits(self, error: ValueError) -> ValueError:
        if not self._too_large[self._name]:
            return ValueError(f"{self._name}: {error}")
        architecture, patch = self._too_large[self._name][-1]
        needed = self.fitting.trace(architecture, patch, self.UNet_min_batch_size, unlimited=True)
        assert needed is not None  # for mypy: without a limit there is always a result
        gigabytes = needed.total / GIGABYTE
        return ValueError(
            f"{self._name}: the smallest patch that the network works with here, {_times(patch)}, needs "
            f"{gigabytes:.3g} GB for a batch of {self.UNet_min_batch_size} in {self.trainer.__name__}, more than the "
            f"{self.target / GIGABYTE:.3g} GB that {self.UNet_vram_target_GB:g} GB of GPU memory leave; "
            f"give at least {ceil(100 * gigabytes / (1 - MARGIN)) / 100:.2f} GB (a smaller patch: {error})"
        )


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def default_plans_name(trainer: type) -> str:
    """nnUNetSASANPlans for SASANTrainer and SASANTrainerDiceCE: they train one network, on one plan."""
    return f"nnUNet{trainer.__name__.split('Trainer')[0].removeprefix('nnUNet') or 'Traced'}Plans"
