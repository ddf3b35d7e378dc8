"""`nnunet_ext plan`: from a dataset and a trainer to a plans file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from nnunet_ext.nnunet.datasets import dataset_name
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.planning.arguments import check_arguments
from nnunet_ext.planning.data_identifiers import is_preprocessed
from nnunet_ext.planning.decisions import WHY_MISSING, Decisions, with_data
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.planning.verification import check_labels


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
) -> Decisions:
    """Plans a dataset for a trainer and writes the plans file.

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
        dry_run: Whether to write no plans file.

    Returns:
        The decisions with their reasons.

    Raises:
        ValueError: if the dataset, the trainer or a configuration is unknown, if nnU-Net cannot train on the labels or
            files, or if nothing fits the memory.
    """
    check_arguments(gpu_memory, spacing, configurations)
    trainer = find_trainer(trainer_name)
    with _as_value_error():
        name = dataset_name(dataset)
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
    if not plans["configurations"]:
        raise ValueError(f"{name} has no {', '.join(planner.configurations)}: {WHY_MISSING}")
    ready = {c: is_preprocessed(plans, c, planner.folder, len(planner.dataset)) for c in with_data(plans)}
    return Decisions(
        planner, plans, tuple(configurations or ()), preprocessed=ready, file=None if dry_run else planner.write(plans)
    )


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Turns nnU-Net's errors, for missing folders and datasets and from its verification, into ValueError."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
