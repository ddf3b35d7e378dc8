"""`nnunet_ext plan`: from a dataset and a trainer to a plans file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name

from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.planning.data_identifiers import is_preprocessed
from nnunet_ext.planning.planner import CONFIGURATIONS, GIGABYTE, MARGIN, TracedPlanner
from nnunet_ext.planning.report import cost_table, plan_costs
from nnunet_ext.planning.verification import check_labels, flat_axis


def run(
    dataset: str,
    trainer_name: str,
    planner_for: Callable[[type], type[TracedPlanner]],
    *,
    gpu_memory: float = 24,
    plans_name: str | None = None,
    spacing: Sequence[float] | None = None,
    configurations: Sequence[str] | None = None,
    preset: bool = False,
    dry_run: bool = False,
) -> Path | None:
    """Plans a dataset for a trainer, prints the decisions with their reasons, and writes the plans file.

    The labels are checked first. If the fingerprint is missing, nnU-Net verifies the dataset and extracts it, as
    nnUNetv2_plan_and_preprocess --verify_dataset_integrity does.

    Args:
        dataset: Number or name of nnU-Net's dataset.
        trainer_name: One of our trainers, of nnU-Net's, or of `nnUNet_extTrainer`.
        planner_for: Function from a trainer to its planner, `nnunet_ext.plans.planner_for`.
        gpu_memory: Memory of the GPU in GB (10^9 bytes).
        plans_name: Name of the plans; None: derived from the trainer.
        spacing: Target spacing of 3d_fullres in mm, in the order of array axes; None: nnU-Net's.
        configurations: A selection of 2d, 3d_fullres and 3d_lowres; None: all.
        preset: Whether to plan the paper's own setting, however much memory it needs.
        dry_run: Whether to print only.

    Returns:
        The plans file, or None if nothing was written.

    Raises:
        ValueError: if the dataset, the trainer or a configuration is unknown, if nnU-Net cannot train on the labels or
            files, or if nothing fits the memory.
    """
    _check(gpu_memory, spacing, configurations)
    trainer = find_trainer(trainer_name)
    with _as_value_error():
        name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
        check_labels(Path(nnUNet_raw) / name)
        if not (Path(nnUNet_preprocessed) / name / "dataset_fingerprint.json").is_file():
            verify_dataset_integrity(str(Path(nnUNet_raw) / name), default_num_processes)
            extract_fingerprint_dataset(convert_dataset_name_to_id(name), clean=False)
        planner = planner_for(trainer)(
            name,
            gpu_memory,
            plans_name=plans_name,
            overwrite_target_spacing=spacing,
            trainer=trainer,
            configurations=configurations,
            use_preset=preset,
        )
    plans = planner.plan_experiment()
    missing = [c for c in configurations or () if c not in plans["configurations"]]
    if not plans["configurations"]:
        raise ValueError(f"{name} has no {', '.join(planner.configurations)}: {_WHY_MISSING}")
    _print_decisions(planner, plans)
    for configuration in missing:
        print(f"{configuration}: not planned, {_WHY_MISSING}")
    if dry_run:
        print("\nNothing was written (--dry-run).")
        return None
    ready = {c: is_preprocessed(plans, c, planner.folder, len(planner.dataset)) for c in _with_data(plans)}
    file = planner.write(plans)
    _print_next(planner, plans, ready, file)
    return file


_WHY_MISSING = "the images are 2D, or no larger than about four patches (3d_lowres)"


def _check(gpu_memory: float, spacing: Sequence[float] | None, configurations: Sequence[str] | None) -> None:
    if not gpu_memory > 0:
        raise ValueError(f"--gpu-memory {gpu_memory} must be positive")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"--overwrite-target-spacing {' '.join(map(str, spacing))} must be three positive numbers, mm")
    for configuration in configurations or ():
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"unknown configuration {configuration!r}; known: {', '.join(CONFIGURATIONS)}")


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Turns nnU-Net's errors, for missing folders and datasets and from its verification, into ValueError."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _print_decisions(planner: TracedPlanner, plans: dict[str, Any]) -> None:
    gpu = f"{planner.UNet_vram_target_GB:g} GB of GPU memory less {MARGIN:.0%}"
    target = f"{planner.target / GIGABYTE:.2f} GB ({gpu})"
    aim = f"regardless of memory; the target is {target}" if planner.used_preset else f"training in at most {target}"
    print(f"{plans['plans_name']} for {planner.dataset_name}: {planner.trainer.__name__}, {aim}\n")
    print(cost_table(plan_costs(planner.trainer, plans, planner.dataset_json)))
    print("\nTotal: parameters + optimiser state + the larger of gradients and saved + transient.\n")
    flat = flat_axis(planner.dataset_fingerprint["shapes_after_crop"], plans["transpose_forward"][0])
    if flat is not None:
        print(f"All images are flat: size 1 along axis {flat} of (0, 1, 2), as nnU-Net reads them; planned in 2D.\n")
    for name in plans["configurations"]:
        if name in planner.reasons:
            data = plans["configurations"][name]["data_identifier"]
            print(f"{name}: {planner.reasons[name]}; data: {data}")


def _print_next(planner: TracedPlanner, plans: dict[str, Any], ready: dict[str, bool], file: Path) -> None:
    print(f"\nWritten: {file}\nNext:")
    number, name = convert_dataset_name_to_id(planner.dataset_name), plans["plans_name"]
    todo = [configuration for configuration, done in ready.items() if not done]
    if todo:
        print(f"  nnUNetv2_preprocess -d {number} -plans_name {name} -c {' '.join(todo)}")
    else:
        print("  (nothing to preprocess: the data already exist)")
    example = "3d_fullres" if "3d_fullres" in plans["configurations"] else next(iter(plans["configurations"]))
    print(f"  nnUNetv2_train {number} {example} 0 -tr {planner.trainer.__name__} -p {name}")


def _with_data(plans: dict[str, Any]) -> list[str]:
    return [name for name, configuration in plans["configurations"].items() if "data_identifier" in configuration]
