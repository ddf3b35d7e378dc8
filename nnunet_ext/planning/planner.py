"""nnU-Net's experiment planner with traced memory instead of its estimate for U-Nets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from math import ceil, inf, prod
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from tqdm import tqdm

from nnunet_ext.networks.from_plan import planned_arguments
from nnunet_ext.networks.own import takes
from nnunet_ext.nnunet.trained_model import default_plans
from nnunet_ext.nnunet.trainers import find_trainer, network_of
from nnunet_ext.planning.architecture import describe
from nnunet_ext.planning.arguments import CONFIGURATIONS
from nnunet_ext.planning.data_identifiers import shared_identifiers
from nnunet_ext.planning.fitting import Candidate, Fitting, Search
from nnunet_ext.planning.patches import LEARNT_MULTIPLES, Refusal, rounded_up
from nnunet_ext.planning.preset import Preset
from nnunet_ext.planning.verification import flat_axis
from nnunet_ext.profiling.memory import TrainingMemory

GIGABYTE = 10**9
MARGIN = 0.1
"""Fraction of the GPU's memory left free for the CUDA context, cuDNN's workspaces and fragmentation, which no trace
sees."""
_CASCADE = "3d_cascade_fullres"


class TracedPlanner(ExperimentPlanner):
    """Plans a trainer's training by its traced memory.

    Spacing, normalisation, resampling, the fingerprint and the order in which a patch shrinks (the axis that is largest
    relative to the median shape first) are determined by nnU-Net's own code. Subclasses declare what their network
    needs: `network`, `trainer_name`, `poolings`, `preset`.

    Args:
        dataset_name_or_id: nnU-Net's dataset.
        gpu_memory_target_in_gb: Memory of the GPU in GB (10^9 bytes); plans leave the fraction `MARGIN` of it free.
        preprocessor_name: As for nnU-Net's planner.
        plans_name: Name of the plans; None: derived from the trainer, as in nnUNetSASANPlans.
        overwrite_target_spacing: Target spacing of 3d_fullres in mm, in the order of array axes; None: nnU-Net's, or
            the preset's.
        suppress_transpose: As for nnU-Net's planner.
        trainer: The trainer's class; None: the class named by `trainer_name`.
        configurations: A selection of `CONFIGURATIONS`; None: all that the dataset allows.
        use_preset: Whether to plan the paper's own setting instead of one that fits the memory.

    Raises:
        ValueError: if the paper's preset is asked for and there is none, or it belongs to another trainer.
        RuntimeError: nnU-Net's own, if the dataset or its fingerprint is missing.
    """

    network: type[nn.Module] | None = None
    """Class of the network; None: the U-Net of nnU-Net's plan."""
    trainer_name = "StockTrainer"
    poolings = 0
    """Smallest number of poolings that the network works with."""
    preset: Preset | None = None
    """The paper's own setting."""
    learns_patches = False
    """Whether a patch that the network refuses is enlarged until it takes one, for networks whose needs are unknown."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        trainer: type | None = None,
        configurations: Sequence[str] | None = None,
        use_preset: bool = False,
    ) -> None:
        self.trainer = find_trainer(self.trainer_name) if trainer is None else trainer
        self.settings: dict[str, Any] = getattr(self.trainer, "all_network_settings", dict)()
        self.network = self.network or network_of(self.trainer)
        if self.network is not None:
            self.poolings = max(self.poolings, getattr(self.trainer, "poolings", 0))
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
        # nnU-Net compares its estimate with these: ours is the bytes of a step with the smallest batch.
        self.UNet_reference_val_2d = self.UNet_reference_val_3d = self.target
        self.UNet_reference_val_corresp_GB = gpu_memory_target_in_gb
        self.UNet_reference_val_corresp_bs_2d = self.UNet_reference_val_corresp_bs_3d = self.UNet_min_batch_size
        self.reasons: dict[str, str] = {}
        """Why a configuration has its patch and batch size."""
        self._fullres_patch: list[int] | None = None
        self._has_cascade = False
        self._searches: dict[str, Search] = {}
        self._search: Search | None = None

    @property
    def folder(self) -> Path:
        """Folder of the dataset's plans and preprocessed data."""
        return Path(nnUNet_preprocessed) / self.dataset_name

    def plan_experiment(self) -> dict[str, Any]:
        """Returns the plans; `write` writes them.

        Raises:
            ValueError: if not even the smallest patch that the network works with fits.
        """
        with redirect_stdout(StringIO()):  # nnU-Net prints its complete plans
            plans = super().plan_experiment()
            if _CASCADE in plans["configurations"]:
                # The cascade's input includes the first stage's segmentation; 3d_fullres must fit with that as well.
                self._has_cascade = True
                plans = super().plan_experiment()
        for name, identifier in shared_identifiers(plans, self.folder).items():
            plans["configurations"][name]["data_identifier"] = identifier
        return plans

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """nnU-Net's order of axes, but with the axis along which all images are flat first, so that 2D is planned.

        nnU-Net decides by the spacing alone, and plans slices of the wrong plane where the flat axis is another one.
        """
        forward, backward = super().determine_transpose()
        flat = flat_axis(self.dataset_fingerprint["shapes_after_crop"], forward[0])
        if self.suppress_transpose or flat is None or flat == forward[0]:
            return forward, backward
        forward = [flat, *(axis for axis in range(3) if axis != flat)]
        return forward, [forward.index(axis) for axis in range(3)]

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Keeps the requested configurations and chooses their batch sizes; nnU-Net calls it at the end of planning."""
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
        """Writes the plans file; other configurations in an existing file are kept, as by nnU-Net's planners."""
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
        """nnU-Net's plan of a configuration, with architecture, patch and largest batch size for this network."""
        name = data_identifier.removeprefix(f"{self.plans_identifier}_")
        if not self._is_needed(name):
            # nnU-Net uses it only to decide whether a resolution below that of 3d_fullres is worthwhile.
            return {"patch_size": self._fullres_patch or tuple(median_shape), "spacing": spacing}
        self._searches[name] = Search(name, self._is_cascaded(name))
        shape = self._large_enough(spacing, median_shape[: len(spacing)])
        with self._searching(name):
            plan = super().get_plans_for_configuration(
                spacing, shape, data_identifier, approximate_n_voxels_dataset, {}
            )
            # nnU-Net's rule against overfitting: a batch has at most 5% of the training voxels.
            covering = round(approximate_n_voxels_dataset * self.max_dataset_covered / prod(plan["patch_size"]))
            plan["batch_size"] = max(covering, self.UNet_min_batch_size)
            plan["median_image_size_in_voxels"] = median_shape
            self._searches[name].strides = plan["architecture"]["arch_kwargs"]["strides"]
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
        """Bytes of a training step with the smallest batch, or infinity if they exceed the target.

        nnU-Net's planner shrinks a patch whose estimate exceeds its reference value, which is the target here.
        """
        if self.used_preset is not None:
            return self.target  # a preset is planned however much memory it takes
        search = self._search
        assert search is not None, "nnU-Net's planner asks within get_plans_for_configuration only"
        unet = {
            "network_class_name": arch_class_name,
            "arch_kwargs": dict(arch_kwargs),
            "_kw_requires_import": arch_kwargs_req_import,
        }
        search.strides = arch_kwargs["strides"]
        try:
            candidate, memory = self._first_accepted(search, patch_size, unet)
        except (ValueError, Refusal) as error:
            raise self._nothing_fits(search, error) from error
        if memory is None:
            search.too_large.append(candidate)
            return inf
        return memory.total

    def _first_accepted(
        self, search: Search, patch_size: Sequence[int], unet: dict[str, Any]
    ) -> tuple[Candidate, TrainingMemory | None]:
        """The patch, or the next larger one that the network takes, with the memory of its step; None: too large.

        Raises:
            ValueError: if the network does not work with the U-Net's stages.
            Refusal: if it takes no patch that was tried.
        """
        first = None
        for multiple in [m for m in LEARNT_MULTIPLES if m >= search.multiple] if self.learns_patches else [1]:
            search.multiple, before = multiple, search.multiple
            patch = self.legal_patch(patch_size)
            if first is not None and patch == self._rounded(patch_size, before):
                continue
            self._show(f"{search.name}: {_times(patch)}")
            candidate = Candidate(self.architecture(unet, patch), patch, search.cascaded)
            try:
                return candidate, self.fitting.trace(candidate, self.UNet_min_batch_size)
            except Exception as error:
                if not self.learns_patches:
                    raise
                first = first or Refusal.of(self.trainer, patch, error)
                search.refusals.append(Refusal.of(self.trainer, patch, error))
        assert first is not None
        raise first

    def legal_patch(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Returns the smallest patch that the network works with and that is at least as large on every axis."""
        if self.used_preset is not None:
            return tuple(int(size) for size in self.used_preset.patch_size)
        return self._rounded(patch_size, 1 if self._search is None else self._search.multiple)

    def architecture(self, unet: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Returns the plan's `architecture` for this network, derived from that of nnU-Net's U-Net.

        Raises:
            ValueError: if the network does not work with the U-Net's stages.
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

    def _rounded(self, patch_size: Sequence[int], learnt: int) -> tuple[int, ...]:
        declared = getattr(self.trainer, "patch_multiple", 1) if self.network is not None else 1
        strides = None
        if self._search is not None and self.network is not None and takes(self.network, "strides"):
            strides = self._search.strides
        return rounded_up(patch_size, declared, learnt, strides)

    def _is_needed(self, name: str) -> bool:
        return name in self.configurations or (name == "3d_fullres" and "3d_lowres" in self.configurations)

    def _large_enough(self, spacing: Sequence[float], shape: Sequence[int]) -> list[float]:
        """The median shape, enlarged where nnU-Net's rules for pooling need it to allow `poolings`."""
        finest = [axis for axis, mm in enumerate(spacing) if mm < 2 * min(spacing)]
        # nnU-Net pools to an edge of 4, a single axis to one of 6.
        least = self.UNet_featuremap_min_edge_length * (1 if len(finest) > 1 else 1.5) * 2**self.poolings
        return [max(size, least) if axis in finest and self.poolings else size for axis, size in enumerate(shape)]

    def _is_cascaded(self, name: str) -> bool:
        return self._has_cascade and name == "3d_fullres"

    @contextmanager
    def _searching(self, name: str) -> Iterator[Search]:
        """The search that nnU-Net's calls of `static_estimate_VRAM_usage` belong to, with its progress shown."""
        self._search = self._searches[name]
        with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None) as self._progress:
            try:
                yield self._search
            finally:
                self._search = None

    def _show(self, text: str) -> None:
        self._progress.set_description_str(text)

    def _choose_batch_size(self, name: str, plan: dict[str, Any]) -> None:
        if self.used_preset is not None:
            plan["batch_size"] = self.used_preset.batch_size
            self.reasons[name] = f"preset: {self.used_preset.source}"
            return
        most, least = int(plan["batch_size"]), self.UNet_min_batch_size
        candidate = Candidate(plan["architecture"], tuple(plan["patch_size"]), self._is_cascaded(name))
        with self._searching(name) as search:
            self._show(f"{name}: {_times(candidate.patch_size)}, batch size")
            batch_size = plan["batch_size"] = self.fitting.largest_batch(candidate, least, most)
        begun = f"from {_times(search.too_large[0].patch_size)}" if search.too_large else "not"
        limit = "5% of the training voxels" if batch_size == most else "what fits"
        self.reasons[name] = f"patch {begun} shrunk; batch: {limit if batch_size > least else 'the least'}"
        if search.refusals:
            self.reasons[name] += f"; {search.refusals[0]}; planned in multiples of {search.multiple} instead"

    def _suitable_preset(self) -> Preset:
        if self.preset is None:
            raise ValueError(f"{self.trainer.__name__} has no preset from a paper: its network is the plan's own")
        differing = {key: value for key, value in self.preset.settings.items() if self.settings.get(key) != value}
        if differing:
            raise ValueError(
                f"the paper's preset is for trainers with {differing}, {self.trainer.__name__} has {self.settings}; "
                f"plan it for {self.trainer_name}"
            )
        return self.preset

    def _nothing_fits(self, search: Search, error: Exception) -> ValueError:
        if not search.too_large:
            return ValueError(f"{search.name}: {error}")
        smallest = search.too_large[-1]
        needed = self.fitting.trace(smallest, self.UNet_min_batch_size, unlimited=True)
        assert needed is not None  # for mypy: without a limit there is always a result
        gigabytes = needed.total / GIGABYTE
        return ValueError(
            f"{search.name}: the smallest patch that the network works with here, {_times(smallest.patch_size)}, needs "
            f"{gigabytes:.3g} GB for a batch of {self.UNet_min_batch_size} in {self.trainer.__name__}, more than the "
            f"{self.target / GIGABYTE:.3g} GB that {self.UNet_vram_target_GB:g} GB of GPU memory leave; "
            f"give at least {ceil(100 * gigabytes / (1 - MARGIN)) / 100:.2f} GB (a smaller patch: {error})"
        )


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def default_plans_name(trainer: type) -> str:
    """Name of the plans of a trainer's class; see `default_plans`."""
    return default_plans(trainer.__name__)
