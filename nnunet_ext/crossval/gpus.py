"""Which GPUs a run on this machine uses, and how many workers each training may start there."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_WORKERS = "nnUNet_n_proc_DA"
_DEFAULT_WORKERS = 12  # nnU-Net's


@dataclass(frozen=True)
class Slot:
    """A place for one command at a time, with the variables that assign its device."""

    name: str
    environment: Mapping[str, str]


def make_slots(
    device: str,
    gpus: Sequence[str] | None,
    num_gpus: int = 1,
    *,
    environment: Mapping[str, str] = os.environ,
    available: int | None = None,
    cpus: int | None = None,
) -> list[Slot]:
    """One slot for each GPU, or for each `num_gpus` of them; one on cpu and mps.

    Args:
        device: cuda, cpu or mps.
        gpus: Numbers or names, separated by commas or spaces. As in torch, numbers count the GPUs that
            CUDA_VISIBLE_DEVICES lists. None: all of these; without the variable, the first `num_gpus`.
        num_gpus: GPUs that train one fold together.
        environment: Holds CUDA_VISIBLE_DEVICES and nnUNet_n_proc_DA.
        available: Number of GPUs of this machine; None: unknown.
        cpus: CPUs that are divided among the slots; None: all that this process may use.

    Raises:
        ValueError: for GPUs that do not exist, and for a number of them that is not a multiple of `num_gpus`.
    """
    if device != "cuda":
        if gpus is not None:
            raise ValueError(f"--gpus {' '.join(gpus)}: the device is {device}; --gpus needs --device cuda")
        return [Slot(device, {})]
    visible = [gpu.strip() for gpu in environment.get(_VISIBLE, "").split(",") if gpu.strip()]
    if gpus is None:
        chosen = visible or [str(number) for number in range(num_gpus)]
    else:
        chosen = _chosen(gpus, visible, available)
    if len(set(chosen)) < len(chosen) or len(chosen) % num_gpus:
        raise ValueError(
            f"--gpus {' '.join(gpus or chosen)} must be different GPUs, a multiple of --num-gpus {num_gpus}"
        )
    groups = [",".join(chosen[start : start + num_gpus]) for start in range(0, len(chosen), num_gpus)]
    workers = _workers(len(groups), environment, cpus)
    return [Slot(f"GPU {group}", {_VISIBLE: group, **workers}) for group in groups]


def _chosen(gpus: Sequence[str], visible: Sequence[str], available: int | None) -> list[str]:
    given = " ".join(gpus)
    names = [name for text in gpus for name in text.replace(",", " ").split()]
    if not names:
        raise ValueError(f"--gpus {given!r} names no GPU; give numbers, for example --gpus 0 1")
    chosen = []
    for name in names:
        if not name.isdigit():
            if not name.startswith(("GPU-", "MIG-")) or (visible and name not in visible):
                known = ", ".join(visible) or "numbers from 0 on"
                raise ValueError(f"--gpus {given}: no GPU {name!r}; known: {known}")
            chosen.append(name)
        elif visible:
            if int(name) >= len(visible):
                raise ValueError(
                    f"--gpus {given}: CUDA_VISIBLE_DEVICES={','.join(visible)} has {len(visible)} GPU(s), which count "
                    f"from 0 to {len(visible) - 1} here"
                )
            chosen.append(visible[int(name)])
        else:
            if available is not None and int(name) >= available:
                raise ValueError(f"--gpus {given}: this machine has {available} GPU(s), 0 to {available - 1}")
            chosen.append(str(int(name)))
    return chosen


def _workers(slots: int, environment: Mapping[str, str], cpus: int | None) -> dict[str, str]:
    """Workers of data augmentation for each of several trainings, unless the user has chosen their number."""
    if environment.get(_WORKERS) or slots == 1:
        return {}
    if cpus is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {_WORKERS: str(max(1, min(_DEFAULT_WORKERS, cpus // slots)))}
